"""State bins of a Q table, in words: what a row of the table stands for, for readers of tables and of figures alike.

A table has a row for each strength of the forecast (the last one: the model abstained), within it for each width of the
interval, within that for each position held.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

ACTIONS = ("short", "flat", "long")
"""Also the positions that may be held, in the order of a table's rows and columns."""
ABSTAINED = "abstained"


class StateWords(NamedTuple):
    """The parts of one state."""

    forecast: str
    width: str
    held: str


def bin_words(edges: Sequence[float]) -> list[str]:
    """Of each bin between edges, the open ones at both ends included."""
    if not edges:
        return ["any"]
    inner = [f"{low:g}…{high:g}" for low, high in itertools.pairwise(edges)]
    return [f"≤{edges[0]:g}", *inner, f">{edges[-1]:g}"]


def state_words(strength_edges: Sequence[float], width_edges: Sequence[float]) -> list[StateWords]:
    """Of each row of a table."""
    forecasts = [*bin_words(strength_edges), ABSTAINED]
    return [StateWords(*each) for each in itertools.product(forecasts, bin_words(width_edges), ACTIONS)]


def best_action(values: Sequence[float]) -> str:
    """The action that would be chosen without exploring: the best one; among equals flat, then short."""
    return max(("flat", "short", "long"), key=lambda action: values[ACTIONS.index(action)])
