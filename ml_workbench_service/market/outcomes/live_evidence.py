"""Live evidence: which answers of a live version prove anything, and what came true of them by the store's bars alone.

An answer is evidence where it was received within a tenth of a bar after its bar was known, about that bar (on the
grid), the first one to that bar, and live: not about the past, not on the sample's clock. What came true is made again
from the store's bars by training's label functions; callers' prices and posted outcomes are never read.

Nobody may choose his moments afterwards. So each symbol's period runs from its first evidence to the last bar whose
label is known, and counts every bar that has a label or should have one: unasked and unsettled ones are missing.

Legend: N answers of one symbol, B bars, M bars of the period that were answered in time and have an outcome.
"""

from dataclasses import dataclass, replace

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.market import calendar
from ml_workbench_service.market.class_labels import price_moves, regime_labels
from ml_workbench_service.market.targets import Labels, label

RECEIVED_SHARE = 0.1
"""finance.md: of a bar, after it was known; later answers may have seen what came of it."""
UNKNOWN_ACTION = 9
"""In place of a position that an answer does not say: records of before it was kept."""
MOST_MISSING_SHARE = 0.05
"""finance.md: of a period's bars; who leaves out more may have chosen them."""


@dataclass(frozen=True)
class LiveAnswers:
    """A version's live answers about one symbol, in any order; NaN where an answer has no such number.

    Attributes:
        answered_ms_N: when each was given, by the service's clock.
        break_even_N: what a move must exceed to pay for its costs.
        barrier_N: distance of a triple barrier's bounds in log price.
        actions_N3: the position that follows for one who holds -1, 0 and 1, of policies their own, of followers what
            following their primary always would make of it; `UNKNOWN_ACTION` where an answer does not say it.
    """

    as_of_ms_N: Ints
    answered_ms_N: Ints
    prediction_N: Floats
    abstains_N: Bools
    break_even_N: Floats
    barrier_N: Floats
    actions_N3: Ints | None = None


@dataclass(frozen=True)
class Evidence:
    """One symbol's period.

    Attributes:
        row_M: places in the table.
        moment_ms_M: when each bar was known.
        prediction_M, realised_M: in the target's units; classes by their number, -1, 0 or 1.
        num_bars: of the period, that have an outcome or should have one.
        num_answered: of them, answered in time with an outcome, abstentions included.
        first_row: of the period.
    """

    row_M: Ints
    moment_ms_M: Ints
    prediction_M: Floats
    realised_M: Floats
    num_bars: int
    num_answered: int
    first_row: int

    @property
    def missing_share(self) -> float:
        """Of the period's bars."""
        return 1.0 - self.num_answered / self.num_bars if self.num_bars else 1.0


def gather(
    answers: LiveAnswers, table: FeatureTable, target: Target, *, regimes_B: Floats | None = None
) -> Evidence | None:
    """The evidence among one symbol's answers; None where no answer is any.

    Args:
        regimes_B: where regimes are forecast, the one that each bar is in.
    """
    bar_ms = TIMEFRAMES_MS[table.timeframe]
    chosen, row_M = timely(answers, table, bar_ms)
    if not len(row_M):
        return None
    labels = _labels(target, table, bar_ms)
    if regimes_B is not None:
        labels = regime_labels(target, labels, classes_N=regimes_B)
    realised_M = _realised(target, labels, table, row_M, answers, chosen)
    due_N = np.flatnonzero(np.arange(len(table)) + target.reach < len(table))
    first, last = int(row_M[0]), int(due_N[-1]) if len(due_N) else -1
    inside = row_M <= last
    settled = inside & np.isfinite(realised_M)
    answered = settled & ~answers.abstains_N[chosen] & np.isfinite(answers.prediction_N[chosen])
    return Evidence(
        row_M=row_M[answered],
        moment_ms_M=table.available_at_ms[row_M[answered]],
        prediction_M=answers.prediction_N[chosen][answered],
        realised_M=realised_M[answered],
        num_bars=_num_bars(labels, table, target, first=first, last=last),
        num_answered=int(settled.sum()),
        first_row=first,
    )


def until(evidence: Evidence, moment_ms: int) -> Evidence:
    """The same without bars that were known later than the moment."""
    kept = evidence.moment_ms_M <= moment_ms
    return replace(
        evidence,
        row_M=evidence.row_M[kept],
        moment_ms_M=evidence.moment_ms_M[kept],
        prediction_M=evidence.prediction_M[kept],
        realised_M=evidence.realised_M[kept],
    )


def timely(answers: LiveAnswers, table: FeatureTable, bar_ms: int) -> tuple[Ints, Ints]:
    """The first timely answer to each bar, as places among the answers, and the bars' rows, oldest first."""
    if not len(table):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = np.argsort(answers.answered_ms_N, kind="stable")
    row_N = np.searchsorted(table.available_at_ms, answers.as_of_ms_N[order], side="right") - 1
    known_ms_N = table.available_at_ms[np.maximum(row_N, 0)]
    slack_ms = int(RECEIVED_SHARE * bar_ms)
    is_timely = row_N >= 0
    for moment_ms_N in (answers.as_of_ms_N[order], answers.answered_ms_N[order]):
        is_timely &= (moment_ms_N >= known_ms_N) & (moment_ms_N <= known_ms_N + slack_ms)
    rows, first = np.unique(row_N[is_timely], return_index=True)
    return order[is_timely][first], rows


def _labels(target: Target, table: FeatureTable, bar_ms: int) -> Labels:
    """Of prices, or volatilities; the moves that classes are made from."""
    make = price_moves if target.classes else label
    return make(
        target,
        close=np.asarray(table.columns["close"]),
        opened_ms=table.opened_ms,
        available_at_ms=table.available_at_ms,
        runs=calendar.runs(table.opened_ms, bar_ms, table.calendar),
        timeframe=table.timeframe,
    )


def _realised(
    target: Target, labels: Labels, table: FeatureTable, row_M: Ints, answers: LiveAnswers, chosen: Ints
) -> Floats:
    """(M,) the target's values; classes by the costs or barriers that each answer was made with."""
    moved_M = labels.values[row_M]
    if target.measure == "direction":
        even_M = np.nan_to_num(answers.break_even_N[chosen])  # an answer may have been given without costs
        return np.where(np.isfinite(moved_M), np.sign(moved_M) * (np.abs(moved_M) > even_M), np.nan)
    if target.measure == "triple_barrier":
        return _touched(target, moved_M, np.log(np.asarray(table.columns["close"])), row_M, answers.barrier_N[chosen])
    return np.asarray(moved_M)


def _touched(target: Target, moved_M: Floats, log_close_B: Floats, row_M: Ints, barrier_M: Floats) -> Floats:
    """(M,) the barrier that a close touches first: -1, 1, or 0 for neither."""
    found_M = np.where(np.isfinite(moved_M) & (barrier_M > 0), 0.0, np.nan)
    waits_M = np.isfinite(found_M)
    last = len(log_close_B) - 1
    begins_M = np.minimum(row_M + target.delay, last)
    for ahead in range(1, target.horizon + 1):
        path_M = log_close_B[np.minimum(begins_M + ahead, last)] - log_close_B[begins_M]
        hit_M = waits_M & (np.abs(path_M) >= barrier_M)
        found_M[hit_M] = np.sign(path_M[hit_M])
        waits_M &= ~hit_M
    return found_M


def _num_bars(labels: Labels, table: FeatureTable, target: Target, *, first: int, last: int) -> int:
    """Bars of the period that have a label, or whose label a missing bar took, or that are missing themselves.

    Those whose label would span a closure of the market are none of them.
    """
    if last < first:
        return 0
    bar_ms = TIMEFRAMES_MS[table.timeframe]
    runs_B = calendar.runs(table.opened_ms, bar_ms, table.calendar)
    rows = np.arange(first, last + 1)
    is_broken = runs_B[rows + target.reach] != runs_B[rows]
    num = int((np.isfinite(labels.values[rows]) | is_broken).sum())
    return num + num_missing_bars(table, first=first, last=last)


def num_missing_bars(table: FeatureTable, *, first: int, last: int) -> int:
    """Expected bars that the table lacks between two of its rows; of fixings nobody can say."""
    if table.calendar == "fixings" or last < first:
        return 0
    from_ms, to_ms = int(table.opened_ms[first]), int(table.opened_ms[last]) + TIMEFRAMES_MS[table.timeframe]
    return max(calendar.num_expected_bars(from_ms, to_ms, table.timeframe) - (last + 1 - first), 0)
