"""Query parameters: those that a route does not know are refused, with the nearest that it knows; and so is a number or
a truth value that is not written as JSON writes it.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from fastapi import Depends, Request

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.rejections import MOST_ERRORS
from ml_workbench_service.contracts.strict_numbers import TOO_SMALL, is_denormal

WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
"""As JSON writes them: pydantic takes ` 5 `, `1_0`, `5.0`, `nan` and `yes` out of a text as well."""
NO_TRUTH_VALUE = "write true or false"
CODES = {TOO_SMALL: "too_small", NO_TRUTH_VALUE: "no_truth_value"}
"""By message; of others `no_number`."""


async def _known_alone(request: Request) -> None:
    """Raises DataValidationError for a query parameter that the matched route does not declare."""
    if not request.query_params:
        return
    declared = dict(_declared(request.scope["route"].dependant))
    known = sorted(declared)
    unknown = sorted(set(request.query_params) - set(known))
    errors = [
        {"path": f"query.{name[:64]}", "message": _advice(name, known), "code": "extra"}
        for name in unknown[:MOST_ERRORS]
    ]
    errors += [
        {"path": f"query.{name}", "message": message, "code": CODES.get(message, "no_number")}
        for name, text in request.query_params.multi_items()
        if name in declared and (message := _unlike(text, declared[name]))
    ][:MOST_ERRORS]
    if errors:
        raise DataValidationError(
            f"{errors[0]['path']}: {errors[0]['message']}; correct it and send the request again",
            details={"errors": errors},
        )


KnownQueries = Depends(_known_alone)
"""Among a route's dependencies: a misspelt parameter is an error and no default."""


def _declared(dependant: Any) -> Iterator[tuple[str, set[Any]]]:
    """Names, and the types that a value may have."""
    yield from ((each.alias, set(_leaves(each.field_info.annotation))) for each in dependant.query_params)
    for each in dependant.dependencies:
        yield from _declared(each)


def _leaves(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield str
        return
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _leaves(each)


def _unlike(text: str, kinds: set[Any]) -> str:
    """What is wrong with how a number or a truth value is written; nothing where the type is another."""
    kinds = kinds - {type(None)}
    if kinds == {bool}:
        return "" if text in ("true", "false") else NO_TRUTH_VALUE
    if kinds == {int}:
        return "" if WHOLE.fullmatch(text) else "write a whole number in digits"
    if kinds == {float}:
        if not NUMBER.fullmatch(text):
            return "write a number in digits, such as 1.5"
        return TOO_SMALL if is_denormal(float(text)) else ""
    return ""


def _advice(name: str, known: list[str]) -> str:
    near = close_names(name, known, n=1, cutoff=0.5)
    if near:
        return f"this parameter is not known; did you mean {near[0]}?"
    return f"this parameter is not known; there {'are ' + ', '.join(known) if known else 'is none'}"
