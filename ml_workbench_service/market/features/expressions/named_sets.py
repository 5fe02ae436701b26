"""Named sets: expressions that ship under a name, such as `@alpha158`; a request names them as it names a trained set.

Such a set was chosen by nobody's data, so it has no selection that a test part could reach into.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ml_workbench_service.market.features.expressions.alpha158 import alpha158, alpha158_price


@dataclass(frozen=True)
class NamedSet:
    """A set and what it is; `expressions` gives canonical texts by column name."""

    name: str
    description: str
    expressions: Callable[[], Mapping[str, str]]


NAMED_SETS = {
    each.name: each
    for each in (
        NamedSet("alpha158", "Qlib's Alpha158 without VWAP0: 157 columns; the bars need `volume`.", alpha158),
        NamedSet("alpha158_price", "The 117 columns of Alpha158 that read no volume.", alpha158_price),
    )
}


def named_set(reference: str) -> NamedSet | None:
    """The set of a reference such as `@alpha158`; None where none ships under that name."""
    return NAMED_SETS.get(reference.removeprefix("@")) if reference.startswith("@") else None
