"""What costs windows: which column, the bars' own gaps, or the labels leave how few of them; and what tells nothing.

A window needs consecutive bars with every feature, so a column that is empty in every seventh row leaves no window of
eight: asking for a longer range would not help, and a message that names only the sum sends its reader the wrong way.

Legend: N rows of a symbol, F features, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Ints

COSTLY_SHARE = 0.1
"""Of the windows that the bars allow: a column that costs more is named on the card."""
DECISIVE_SHARE = 0.5
"""Of the windows that the bars allow: a cause that leaves fewer is what too few windows are put down to."""


class Rows(Protocol):
    """What is counted of one symbol."""

    @property
    def symbol(self) -> str:
        """Whose rows they are."""
        ...

    @property
    def labels_NK(self) -> Floats:
        """Labels; NaN where there is none."""
        ...

    @property
    def runs_N(self) -> Ints:
        """Number of the run of consecutive bars that each row belongs to."""
        ...


@dataclass(frozen=True)
class WindowLoss:
    """One cause, alone: the windows there would be if nothing else cost any."""

    cause: str
    num_left: int
    num_possible: int

    @property
    def share(self) -> float:
        """Of the possible windows, what the cause takes away."""
        return 1 - self.num_left / self.num_possible if self.num_possible else 0.0


def streaks(complete_N: Bools, runs_N: Ints) -> Ints:
    """How many consecutive complete rows of the same run end at each row."""
    num = len(complete_N)
    breaks = np.ones(num, dtype=bool)
    breaks[1:] = (runs_N[1:] != runs_N[:-1]) | ~complete_N[:-1]
    start = np.maximum.accumulate(np.where(breaks, np.arange(num), 0))
    return np.where(complete_N, np.arange(num) - start + 1, 0)


def column_losses(
    tables: Sequence[Rows], values: Sequence[Floats], features: Sequence[str], lookback: int
) -> list[WindowLoss]:
    """What each feature's missing values cost, over all symbols; `values` (N, F) as windows read them."""
    possible = sum(_num_windows(np.ones(len(table.runs_N), dtype=bool), table, lookback) for table in tables)
    return [
        WindowLoss(
            name,
            sum(
                _num_windows(np.isfinite(x_NF[:, f]), table, lookback)
                for table, x_NF in zip(tables, values, strict=True)
            ),
            possible,
        )
        for f, name in enumerate(features)
    ]


def why_too_few(tables: Sequence[Rows], values: Sequence[Floats], features: Sequence[str], lookback: int) -> str:
    """The cause of too few windows, with what it costs and what to do; as the end of a sentence."""
    num_rows = sum(len(table.runs_N) for table in tables)
    losses = column_losses(tables, values, features, lookback)
    possible = losses[0].num_possible if losses else 0
    if possible < DECISIVE_SHARE * (num_rows - len(tables) * (lookback - 1)):
        return (
            f"bars are missing between its {num_rows:,}, which leaves {possible:,} windows of consecutive ones: check "
            "that they are as far apart as the timeframe says, or ask for a shorter lookback"
        )
    worst = min(losses, key=lambda each: each.num_left, default=None)
    if worst is not None and worst.num_left < DECISIVE_SHARE * possible:
        number = list(features).index(worst.cause)
        empty = sum(int(np.sum(~np.isfinite(x_NF[:, number]))) for x_NF in values)
        return (
            f"{worst.cause} has no value in {empty:,} of {num_rows:,} rows, which alone leaves {worst.num_left:,} of "
            f"{possible:,} windows: fill it in the data, or leave it out"
        )
    labelled = sum(int(np.sum(np.isfinite(table.labels_NK).all(axis=1))) for table in tables)
    if labelled < DECISIVE_SHARE * num_rows:
        return (
            f"only {labelled:,} of {num_rows:,} rows have a label, for the others reach over a closure or a missing "
            "bar: ask for a shorter horizon or a longer timeframe"
        )
    return "ask for a longer range, a shorter lookback, or features with a shorter warm-up"


def quality_warnings(
    tables: Sequence[Rows], values: Sequence[Floats], features: Sequence[str], *, lookback: int, train: Sequence[Bools]
) -> list[str]:
    """Columns that cost many windows, and those that are constant over the training rows, each `code: details`."""
    found = [
        f"column_costs_windows: {each.cause} alone costs {each.share:.0%} of the {each.num_possible:,} windows"
        for each in column_losses(tables, values, features, lookback)
        if each.share > COSTLY_SHARE
    ]
    for f, name in enumerate(features):
        for table, x_NF, rows in zip(tables, values, train, strict=True):
            column = x_NF[rows, f]
            column = column[np.isfinite(column)]
            if len(column) and column.min() == column.max():
                found.append(
                    f"constant_column: {name} of {table.symbol} is {column[0]:g} all through the training part"
                )
    return found


def _num_windows(complete_N: Bools, table: Rows, lookback: int) -> int:
    return int(np.sum(streaks(complete_N, table.runs_N) >= lookback))
