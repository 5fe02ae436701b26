"""Pending outcomes: the ledger's predictions that wait for a later price, one series a model, timeframe and symbol.

A model's versions share a series: when another version goes live, its questions still tell what became of the answers
before. Different models do not: their callers may read different prices.

A prediction waits from the newest priced bar, if it was made at that bar (`realised.slack_ms`); one made within a bar,
or without any price, is left to the feature store, and so is one whose end is never priced. Everything here is bounded
and forgotten with the process; what waits and needs its own price alone is given back at the next start (`recall`).
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, NamedTuple

from ml_workbench_service.contracts.training import Target
from ml_workbench_service.market import calendar
from ml_workbench_service.market.outcomes.realised import (
    PATHS,
    ClassSegment,
    PriceSeries,
    Segment,
    has_outcome_in_prices,
    meets_closure,
    slack_ms,
)

MOST_SERIES = 4096
"""The series asked longest ago leaves; its predictions are settled from the feature store."""
MOST_WAITING = 512
"""Of one series: the oldest is left to the feature store."""

SeriesKey = tuple[str, str, str]
"""Model, timeframe, symbol."""
Missing = Literal["closure"]
"""The horizon spans a closure of an intraday market, as no label of training does."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a series reads of one record.

    Attributes:
        price: of its bar; None: nothing is learnt from it.
        target: None: nothing that prices could tell is forecast, or nobody wants to know.
        break_even: of a class by direction, what a move must exceed; None where the costs are unknown.
        barrier: of a triple barrier, its distance in log price; None where the volatility is unknown.
    """

    prediction_id: str
    series: SeriesKey
    as_of_ms: int
    due_ms: int
    bar_ms: int
    horizon: int
    price: float | None
    target: Target | None = None
    break_even: float | None = None
    barrier: float | None = None


class Found(NamedTuple):
    """An outcome, or why there never will be one.

    Attributes:
        realised: the target's value; None: there is none, for the reason `missing`.
        at_ms: when it became known.
    """

    prediction_id: str
    realised: float | None
    at_ms: int
    missing: Missing | None = None


@dataclass(slots=True)
class _PendingSeries(PriceSeries):
    waiting: dict[str, tuple[Segment, Target]] = field(default_factory=dict)


class PendingOutcomes:
    """All series of one process; for one thread."""

    def __init__(self) -> None:
        self._series_by_key: OrderedDict[SeriesKey, _PendingSeries] = OrderedDict()

    def take(self, asked: Asked, *, now_ms: int) -> list[Found]:
        """The outcomes that this record's price makes known; from then on it waits for its own.

        A question about the future, by the clock, says nothing of prices: it would make late whatever comes until then.
        """
        series = self._series(asked.series)
        found: list[Found] = []
        is_timely = asked.as_of_ms <= now_ms + asked.bar_ms
        if asked.price is not None and is_timely and series.standing(asked.as_of_ms, asked.bar_ms) == "new":
            series.add(asked.as_of_ms, asked.price, asked.bar_ms)
            found = _matured(series, asked.bar_ms)
        target = asked.target
        if target is None or not has_outcome_in_prices(target):
            return found
        if series.newest_ms < 0 or abs(asked.as_of_ms - series.newest_ms) > slack_ms(asked.bar_ms):
            return found
        if meets_closure(asked.as_of_ms, asked.due_ms, bar_ms=asked.bar_ms, horizon=asked.horizon):
            if _spans_closure(asked):
                found.append(Found(asked.prediction_id, None, asked.due_ms, "closure"))
        elif target.measure != "triple_barrier" or asked.barrier is not None:
            _wait(series, asked, target, price=series.price, run=series.run)
        return found

    def is_new(self, key: SeriesKey, as_of_ms: int, bar_ms: int) -> bool:
        """Whether a price of that moment would be of a bar not seen before; other prices say nothing."""
        series = self._series_by_key.get(key)
        return series is None or series.standing(as_of_ms, bar_ms) == "new"

    def recall(self, asked: Asked) -> None:
        """A prediction of before the start waits again; of one that needs every bar in between the run is broken."""
        if asked.price is not None and asked.target is not None and asked.target.measure not in PATHS:
            _wait(self._series(asked.series), asked, asked.target, price=asked.price, run=-1)

    def _series(self, key: SeriesKey) -> _PendingSeries:
        series = self._series_by_key.get(key)
        if series is None:
            series = self._series_by_key[key] = _PendingSeries()
            if len(self._series_by_key) > MOST_SERIES:
                self._series_by_key.popitem(last=False)
        self._series_by_key.move_to_end(key)
        return series


def _spans_closure(asked: Asked) -> bool:
    """Whether the bar's own horizon meets a closure, and not only that of a caller who came some seconds after it."""
    bar_at_ms = asked.as_of_ms - slack_ms(asked.bar_ms)
    due_ms = calendar.advance_from(bar_at_ms, asked.horizon * asked.bar_ms)
    return meets_closure(bar_at_ms, due_ms, bar_ms=asked.bar_ms, horizon=asked.horizon)


def _wait(series: _PendingSeries, asked: Asked, target: Target, *, price: float, run: int) -> None:
    if len(series.waiting) >= MOST_WAITING:
        del series.waiting[next(iter(series.waiting))]
    if target.classes:
        segment: Segment = ClassSegment(
            asked.due_ms, price, series.path, run, break_even=asked.break_even or 0.0, barrier=asked.barrier or 0.0,
            delay=target.delay,
        )  # fmt: skip
    else:
        segment = Segment(asked.due_ms, price, series.path, run, delay=target.delay)
    series.waiting[asked.prediction_id] = (segment, target)


def _matured(series: _PendingSeries, bar_ms: int) -> list[Found]:
    """What ends with the newest bar; what has no end any more is forgotten."""
    found = []
    for prediction_id, (segment, target) in list(series.waiting.items()):
        series.begin(segment)
        if isinstance(segment, ClassSegment):
            segment.pass_by(series.price)
        end = series.end(segment, target, bar_ms)
        if end == "waits":
            continue
        del series.waiting[prediction_id]
        if end == "ended" and isfinite(realised := series.realised(segment, target)):
            found.append(Found(prediction_id, realised, series.newest_ms))
    return found
