"""Realised outcomes: one symbol's priced bars as they become known, and what came true over a segment of them.

The one rule by which live answers meet their outcome, for the intervals that adapt (`serving/interval_outcomes.py`) and
for the ledger (`market/outcomes/pending.py`): a segment begins at a priced bar and ends with the bar whose moment is
the end of its horizon, give or take `slack_ms`. Where a label of training exists over the same bars, both are equal: to
the bit for price changes, to rounding for logarithms and volatilities (tests/market/outcomes/test_realised.py).
"""

from dataclasses import dataclass, field
from math import copysign, inf, log
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ml_workbench_service.contracts.training import Target
from ml_workbench_service.market import calendar

Standing = Literal["new", "late", "repeated"]
"""A bar not seen before · older than the newest · less than a bar after the newest."""
End = Literal["waits", "ended", "gap"]
"""Not over yet · over, with the newest bar · the end was never priced, or for a path a bar within."""
PATHS = ("volatility", "triple_barrier")
"""Measures that read every bar of the segment, not its ends alone."""
FROM_FILE = ConfigDict(allow_inf_nan=False, extra="forbid")
Positive = Annotated[float, Field(gt=0)]


@dataclass(slots=True)
class PriceSeries:
    """The newest priced bar and the path to it.

    Attributes:
        newest_ms: its moment; -1 before the first.
        price: its price.
        path: sum of squared log returns over the unbroken run of bars.
        run: number of that run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    newest_ms: int = -1
    price: float = 0.0
    path: float = 0.0
    run: int = 0

    def standing(self, as_of_ms: int, bar_ms: int) -> Standing:
        """Where a moment stands to the newest bar."""
        if self.newest_ms < 0:
            return "new"
        passed_ms = as_of_ms - self.newest_ms
        if passed_ms < 0:
            return "late"
        return "repeated" if passed_ms < bar_ms - slack_ms(bar_ms) else "new"

    def add(self, as_of_ms: int, price: float, bar_ms: int) -> None:
        """A new bar's price."""
        follows = self.newest_ms >= 0 and abs(_passed_ms(self.newest_ms, as_of_ms, bar_ms) - bar_ms) <= slack_ms(bar_ms)
        self.path = self.path + (log(price) - log(self.price)) ** 2 if follows else 0.0
        self.run += not follows
        self.newest_ms, self.price = as_of_ms, price

    def begin(self, segment: "Segment") -> None:
        """A segment that begins a bar later does so with the newest bar, if none is missing in between."""
        if segment.delay and segment.run == self.run:
            segment.price, segment.path, segment.delay = self.price, self.path, segment.delay - 1

    def end(self, segment: "Segment", target: Target, bar_ms: int) -> End:
        """Whether the segment is over with the newest bar."""
        over_ms, slack = _passed_ms(segment.due_ms, self.newest_ms, bar_ms), slack_ms(bar_ms)
        if over_ms < -slack:
            return "waits"
        is_broken = segment.delay > 0 or (target.measure in PATHS and segment.run != self.run)
        return "gap" if is_broken or over_ms > slack else "ended"

    def realised(self, segment: "Segment", target: Target) -> float:
        """The target's value over a segment that ended with the newest bar; classes by their number, -1, 0 or 1.

        Infinite where a price is no price of the other's market.
        """
        ratio = self.price / segment.price
        if target.measure == "price_change":
            return ratio - 1.0
        if target.measure == "log_return":
            return log(ratio) if 0.0 < ratio < inf else copysign(inf, ratio - 1.0)
        if target.measure == "volatility":
            return float(max(self.path - segment.path, 0.0) ** 0.5)
        assert isinstance(segment, ClassSegment), "regimes, scores and actions have no outcome in prices"
        if target.measure == "triple_barrier":
            return float(segment.touched)
        move = ratio - 1.0
        return float((move > segment.break_even) - (move < -segment.break_even))


@dataclass(slots=True)
class Segment:
    """From a priced bar to the end of a horizon.

    Attributes:
        due_ms: when the horizon ends.
        price: of the bar at which it begins.
        path, run: the series', at that bar.
        delay: bars until it begins; until then the rest is of the bar at which it was asked.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    due_ms: int
    price: Positive
    path: float
    run: int
    delay: int = field(default=0, kw_only=True)


@dataclass(slots=True)
class ClassSegment(Segment):
    """A segment of which a class tells.

    Attributes:
        break_even: what a move must exceed to pay for its costs.
        barrier: distance of both barriers in log price; 0: there are none.
        touched: the barrier that a price touched first, -1 or 1; 0: neither so far.
    """

    break_even: float = 0.0
    barrier: float = 0.0
    touched: int = 0

    def pass_by(self, price: float) -> None:
        """The close of a bar within the segment."""
        if self.barrier and not self.touched:
            moved = log(price) - log(self.price)
            self.touched = (moved >= self.barrier) - (moved <= -self.barrier)


def slack_ms(bar_ms: int) -> int:
    """How far a moment may lie from a bar's end and still be that bar's.

    Callers that let the service take the time of receipt come some seconds after the bar. A daily bar may become known
    an hour earlier or later where two cities change their clocks on different days.
    """
    return bar_ms // 2 if bar_ms >= calendar.DAY_MS else bar_ms // 10


def has_outcome_in_prices(target: Target) -> bool:
    """Whether prices tell what came true: not of regimes, whose rule was fitted on the training part."""
    return target.measure != "market_regime"


def meets_closure(as_of_ms: int, due_ms: int, *, bar_ms: int, horizon: int) -> bool:
    """Whether a horizon on intraday bars spans a closure of the market: no label does."""
    return bar_ms < calendar.DAY_MS and due_ms - as_of_ms != horizon * bar_ms


def _passed_ms(from_ms: int, to_ms: int, bar_ms: int) -> int:
    """From one moment to another; for daily bars in market time.

    A bar that is stamped with midnight UTC becomes known on Saturday, while the market is closed, and a horizon of
    market time ends on Monday in its place.
    """
    if bar_ms < calendar.DAY_MS:
        return to_ms - from_ms
    return calendar.market_ms_at(to_ms) - calendar.market_ms_at(from_ms)
