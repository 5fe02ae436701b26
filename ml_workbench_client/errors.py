"""Errors of the service, raised here as what they were there: the tree of `common_lib.exceptions`, by `error_code`.

Each has `details`, `correlation_id` (under which the service's log tells of it) and `retry_after_s`. Where nothing came
that could be an error of the service's:

    nobody answers                  UnavailableError
    it stopped answering, too late  UnavailableError · UpstreamTimeoutError
    an answer that is none of ours  UpstreamError
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from common_lib.exceptions import (
    PlatformError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ml_workbench_client.wire import Answer

LONGEST_EXCERPT = 200


def _tree(root: type[PlatformError]) -> Iterator[type[PlatformError]]:
    yield root
    for each in root.__subclasses__():
        yield from _tree(each)


def class_of(error_code: str, status: int) -> type[PlatformError]:
    """The class with that code, else the tree's broadest of that status, else the root."""
    known = [each for each in _tree(PlatformError) if each.__module__ == "common_lib.exceptions"]
    of_code = [each for each in known if each.error_code == error_code]
    of_status = [each for each in known if each.status == status and each is not PlatformError]
    return next(iter(of_code or of_status), PlatformError)


def error_of_body(body: dict[str, Any], status: int, *, retry_after_s: int | None = None) -> PlatformError:
    """The error that a body in the platform's one shape tells of."""
    kind = class_of(str(body.get("error_code")), status)
    error = kind(str(body.get("message")), details=body.get("details") or {}, retry_after_s=retry_after_s)
    error.correlation_id = str(body.get("correlation_id") or "")
    if error.correlation_id:
        error.add_note(f"correlation id: {error.correlation_id}")
    return error


def error_of(answer: Answer) -> PlatformError:
    """The error of an answer with a status of 400 or more."""
    wait = retry_after_s(answer)
    whole_s = None if wait is None else round(wait)
    body = platform_body(answer)
    if body is not None:
        return error_of_body(body, answer.status, retry_after_s=whole_s)
    kind = class_of("", answer.status) if answer.status != 500 else UpstreamError
    text = answer.content[:LONGEST_EXCERPT].decode("utf-8", "replace").strip()
    said = f": {text}" if text else ""
    return kind(
        f"the address answered {answer.status}, which is no answer of the ML Workbench service{said}; check the url",
        retry_after_s=whole_s,
    )


def platform_body(answer: Answer) -> dict[str, Any] | None:
    """The error body in the platform's shape; None where something else answered, such as a proxy."""
    try:
        body = json.loads(answer.content)
    except ValueError:
        return None
    return body if isinstance(body, dict) and "error_code" in body and "message" in body else None


def retry_after_s(answer: Answer) -> float | None:
    """`Retry-After` in seconds, written as a number or as a date."""
    written = answer.headers.get("Retry-After")
    if written is None:
        return None
    if written.strip().isdigit():
        return float(written)
    try:
        moment = parsedate_to_datetime(written)
    except ValueError:
        return None
    return max((moment - datetime.now(tz=UTC)).total_seconds(), 0.0)


def unreachable(error: httpx.TransportError, *, url: str, was_sent: bool) -> PlatformError:
    """What a failure of the transport means for the caller."""
    reason = str(error) or type(error).__name__
    if not was_sent:
        return UnavailableError(
            f"no service answers at {url} ({reason}); start it with `make serve`, or name another address: "
            "Workbench(url=…) or WORKBENCH_URL"
        )
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeoutError(
            f"{url} did not answer in time ({reason}); what was asked for may still happen: look before asking again, "
            "or give the client a longer `timeout_s`"
        )
    return UnavailableError(
        f"the connection to {url} broke before the answer came ({reason}); what was asked for may have happened: look "
        "before asking again"
    )
