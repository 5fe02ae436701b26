"""The error tree: drawn as it is, each class with a status and a stable code, one body for all."""

import re
import subprocess
import sys

import pytest

from common_lib import exceptions
from common_lib.exceptions import (
    ConflictError,
    DataValidationError,
    GateFailedError,
    IdempotencyMismatchError,
    InsufficientMemoryError,
    JobCancelled,
    MethodNotAllowedError,
    ModelNotFoundError,
    PlatformError,
    QueueStalledError,
    UnavailableError,
    UpstreamTimeoutError,
    VersionExistsError,
)

CLASSES = [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, PlatformError)]


def drawn() -> dict[str, tuple[str | None, int]]:
    """Name → (parent, status) as the docstring draws them; a name without a number has its parent's."""
    found: dict[str, tuple[str | None, int]] = {}
    stack: list[tuple[int, str, int]] = []
    for line in str(exceptions.__doc__).splitlines():
        match = re.match(r"^ {4}([│ ]*[├└]── |)((?:[A-Z]\w+(?: · )?)+)(?: +(\d{3}))?", line)
        if match is None:
            continue
        depth = len(match[1])
        stack = [each for each in stack if each[0] < depth]
        parent = stack[-1] if stack else None
        for name in match[2].strip().split(" · "):
            status = int(match[3]) if match[3] else parent[2] if parent else 0
            found[name] = (parent[1] if parent else None, status)
        stack.append((depth, name, status))
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    real = {
        cls.__name__: (cls.__mro__[1].__name__ if cls is not PlatformError else None, cls.status) for cls in CLASSES
    }
    assert drawn() == real


def test_codes_are_stable_and_differ() -> None:
    codes = {cls: cls.error_code for cls in CLASSES}
    assert len(set(codes.values())) == len(codes)
    expected = {
        PlatformError: "PLATFORM_ERROR",
        DataValidationError: "DATA_VALIDATION_ERROR",
        IdempotencyMismatchError: "IDEMPOTENCY_MISMATCH",
        ModelNotFoundError: "MODEL_NOT_FOUND",
        MethodNotAllowedError: "METHOD_NOT_ALLOWED",
        ConflictError: "CONFLICT",
        GateFailedError: "GATE_FAILED",
        VersionExistsError: "VERSION_EXISTS",
        JobCancelled: "JOB_CANCELLED",
        QueueStalledError: "QUEUE_STALLED",
        UnavailableError: "UNAVAILABLE",
        UpstreamTimeoutError: "UPSTREAM_TIMEOUT",
        InsufficientMemoryError: "INSUFFICIENT_MEMORY",
    }
    assert {cls: codes[cls] for cls in expected} == expected


def test_a_new_class_gets_its_code_from_its_name_and_not_from_its_parent() -> None:
    class DriftTooLargeError(ConflictError):
        """For this test."""

    class Halted(ConflictError):
        """For this test."""

        error_code = "STOP"

    assert (DriftTooLargeError.error_code, DriftTooLargeError.status) == ("DRIFT_TOO_LARGE", 409)
    assert Halted.error_code == "STOP"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_the_one_body(cls: type[PlatformError]) -> None:
    error = cls("look again, then decide", details={"a": 1})
    assert error.body("corr") == {
        "error_type": cls.__name__,
        "error_code": cls.error_code,
        "message": "look again, then decide",
        "details": {"a": 1},
        "correlation_id": "corr",
    }
    assert str(error) == error.message
    assert cls.__doc__


def test_an_error_about_a_field_names_it() -> None:
    error = DataValidationError.at("body.symbols", "list each once", code="twins", known=["EUR/USD"])
    assert error.details == {
        "errors": [{"path": "body.symbols", "message": "list each once", "code": "twins"}],
        "known": ["EUR/USD"],
    }
    assert type(IdempotencyMismatchError.at("header", "x")) is IdempotencyMismatchError


def test_details_are_the_errors_own() -> None:
    given = {"a": 1}
    error = PlatformError("x", details=given)
    error.details["b"] = 2
    assert given == {"a": 1}
    assert PlatformError("x").details == {}


def test_the_tree_needs_nothing_but_the_standard_library() -> None:
    code = "import common_lib.exceptions, common_lib.logging, sys; print('pydantic' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "False\n"


def test_an_error_that_is_kept_holds_no_frame_that_keeps_it() -> None:
    """Else whoever keeps a thousand of them leaves a thousand circles to the collector."""

    def refused() -> None:
        try:
            int("one")
        except ValueError as error:
            raise DataValidationError.at("body.x", "not a number") from error

    kept: list[PlatformError] = []
    try:
        refused()
    except PlatformError as error:
        kept.append(error.kept())
    assert (kept[0].__traceback__, kept[0].__cause__, kept[0].__context__) == (None, None, None)
    assert kept[0].message == "not a number"
