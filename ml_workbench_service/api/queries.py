"""Query parameters: those that a route does not know are refused, with the nearest that it knows."""

import difflib
from collections.abc import Iterator
from typing import Any

from fastapi import Depends, Request

from common_lib.exceptions import DataValidationError


async def _known_alone(request: Request) -> None:
    """Raises DataValidationError for a query parameter that the matched route does not declare."""
    if not request.query_params:
        return
    known = sorted(set(_declared(request.scope["route"].dependant)))
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        errors = [{"path": f"query.{name[:64]}", "message": _advice(name, known), "code": "extra"} for name in unknown]
        raise DataValidationError(
            f"{errors[0]['path']}: {errors[0]['message']}; correct it and send the request again",
            details={"errors": errors},
        )


KnownQueries = Depends(_known_alone)
"""Among a route's dependencies: a misspelt parameter is an error and no default."""


def _declared(dependant: Any) -> Iterator[str]:
    yield from (each.alias for each in dependant.query_params)
    for each in dependant.dependencies:
        yield from _declared(each)


def _advice(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"this parameter is not known; did you mean {near[0]}?"
    return f"this parameter is not known; there {'are ' + ', '.join(known) if known else 'is none'}"
