"""Rejections: what pydantic says of data that do not fit a contract, as the platform's one error.

Each finding has its path, a sentence and a code, and never the value. The work is linear in what was found, and what
was found is cut before anything is compared: whoever sends a hundred thousand wrong things is told of the first.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import Contract

UNKNOWN_KEY = "extra_forbidden"
NOT_SENT = ("string_type", "list_type", "model_type")
"""What pydantic says of a shape that was not sent."""
SHAPE = re.compile(r"(?:list\[)?(?:constrained-\w+|function-\w+\[.*\])\]?")
SHAPES = ("list[", "constrained-", "function-")
"""Its own names for a shape, and how they begin."""
MOST_FINDINGS = 500
"""More are not looked at: to put them into words would take longer than to read the data."""
MOST_ERRORS = 50
MOST_SUGGESTIONS = 5
"""Unknown keys that are compared with the known ones, which takes 1 ms for each."""
MOST_CHARACTERS = 200


def validation_error(errors: Sequence[Any], *, known: Sequence[str] = (), prefix: str = "") -> DataValidationError:
    """One DataValidationError for pydantic's findings: path, message and code of each; no values.

    Args:
        errors: pydantic's or FastAPI's list.
        known: names that a misspelt key is compared with.
        prefix: put before each path, such as "body".
    """
    told = _of_the_shape_sent(errors[:MOST_FINDINGS])
    unknown = [place for place, each in enumerate(told) if each.get("type") == UNKNOWN_KEY]
    names = dict.fromkeys(known)
    explained = [
        _explained(each, names if place in unknown[:MOST_SUGGESTIONS] else (), prefix)
        for place, each in enumerate(told[:MOST_ERRORS])
    ]
    first = explained[0] if explained else {"path": prefix, "message": "not usable", "code": "invalid"}
    num = len(told) + max(len(errors) - MOST_FINDINGS, 0)
    more = f" (and {num - 1} more)" if num > 1 else ""
    return DataValidationError(
        f"{first['path']}: {first['message']}{more}; correct it and send the request again",
        details={"errors": explained},
    )


def of_pydantic(error: ValidationError, contract: type[Contract], *, prefix: str) -> DataValidationError:
    """A contract's own ValidationError as the platform's."""
    if error.error_count() > MOST_FINDINGS:
        place = prefix or "body"
        return DataValidationError.at(
            place,
            f"{place}: {error.error_count()} things in it are not as they should be; GET /docs shows how it looks",
            code="too_many_errors",
        )
    return validation_error(
        error.errors(include_url=False, include_input=False), known=list(names_of(contract)), prefix=prefix
    )


def names_of(contract: type[Contract]) -> Iterator[str]:
    """The keys of a contract and of the contracts inside it."""
    for name, field in contract.model_fields.items():
        yield name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Contract):
                yield from names_of(inner)


def _of_the_shape_sent(errors: Sequence[Any]) -> list[Any]:
    """Of a key that takes a text or a list, only what is said of the one that was sent, and under the key's own path.

    Pydantic tells of both, each under a path that ends in its own name for the shape.
    """
    places = [tuple(part for part in each.get("loc", ()) if not _names_a_shape(part)) for each in errors]
    is_answered: set[tuple[Any, ...]] = set()  # something of the shape that was sent is said at this place, or below it
    for each, place in zip(errors, places, strict=True):
        is_answered.update(place[:length] for length in range(len(place)))
        if each["type"] not in NOT_SENT:
            is_answered.add(place)
    return [
        {**each, "loc": place}
        for each, place in zip(errors, places, strict=True)
        if place == tuple(each.get("loc", ())) or each["type"] not in NOT_SENT or place not in is_answered
    ]


def _names_a_shape(part: object) -> bool:
    text = str(part)
    return text.startswith(SHAPES) and SHAPE.fullmatch(text) is not None


def _explained(error: Mapping[str, Any], known: Iterable[str], prefix: str) -> dict[str, str]:
    path = ".".join(_printable(part) for part in ((prefix,) if prefix else ()) + tuple(error.get("loc", ())))
    message = str(error.get("msg", "not usable")).removeprefix("Value error, ")
    if error.get("type") == UNKNOWN_KEY:
        name = path.rpartition(".")[2]
        near = close_names(name, known, n=1, cutoff=0.5)
        message = "this key is not known" + (f"; did you mean {near[0]}?" if near else "")
    if error.get("type") == "json_invalid":
        message = "the body is not valid JSON"
    return {"path": path, "message": _printable(message), "code": str(error.get("type", "invalid"))}


def _printable(part: object) -> str:
    text = str(part).encode("utf-8", "replace").decode()
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
