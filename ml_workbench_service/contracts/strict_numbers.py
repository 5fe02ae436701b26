"""Numbers as they are written: `true` is no 1, `"2"` no 2, and 5e-324 is nothing that can be computed with."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ml_workbench_service.contracts.contract import Contract

NO_NUMBER = "write a number without quotes; true and false are none"
TOO_SMALL = f"no number but 0 is nearer to 0 than {sys.float_info.min:.0e}; write 0 or a larger one"

MOST_DIGITS = 18
"""Of a whole number in a header, a cursor or a query: it fits into 64 bits."""


def whole_number(text: str | bytes) -> int | None:
    """The number that stands in ASCII digits; None where none does. To Python `²` is a digit, and `٣` three."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def is_denormal(value: Any) -> bool:
    """Whether it is nearer to 0 than any number that keeps its digits."""
    return isinstance(value, float) and 0 < abs(value) < sys.float_info.min


def loose_numbers(kind: type[Contract], values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Place, code and message of each value that pydantic would take for a number, and nobody meant as one."""
    for name, value in values.items():
        field = kind.model_fields.get(name)
        leaves = set() if field is None else set(_leaves(field.annotation))
        if leaves & {int, float}:
            for place, each in _each(name, value):
                if _only_resembles_one(each, leaves):
                    yield place, "no_number", NO_NUMBER
                elif is_denormal(each):
                    yield place, "too_small", TOO_SMALL


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, and the values of its literals."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _leaves(each)


def _each(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _each(f"{name}.{number}", inner)
    else:
        yield name, value


def _only_resembles_one(value: Any, leaves: set[Any]) -> bool:
    """Whether it is a truth value, or a text that would be read as a number, where neither is meant."""
    if isinstance(value, bool):
        return bool not in leaves
    if not isinstance(value, str) or str in leaves or value in leaves:
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
