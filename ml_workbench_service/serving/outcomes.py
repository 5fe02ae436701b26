"""`VersionIntervals`: the intervals that a live version stated, which of them held, and what that taught.

One lane a symbol, no files. A bar's price matures the intervals whose horizon ends there; an interval whose end passes
without a price is dropped, and so is one for a volatility that misses a bar in between. As it stands it is written as
JSON (`serving/adaptive.py`).
"""

from dataclasses import dataclass, field
from math import exp, log
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.adaptive import IntervalTracker
from ml_workbench_service.learning.uncertainty import INTERVAL_LEVEL
from ml_workbench_service.market import calendar

NUM_RECENT = 500
"""Outcomes behind the live coverage: its standard error is 1.3 points at 90 %."""
SPARE_WAITING = 8
"""Intervals of a symbol that may wait for their outcome beyond one for each bar of the horizon."""
DAY_MS = calendar.DAY_MS
Reason = Literal["late", "repeated", "gap", "closure", "crowded"]
REASONS: tuple[Reason, ...] = ("late", "repeated", "gap", "closure", "crowded")
"""Older than a bar already seen · a bar seen before · the end of the horizon was never priced, or for a volatility a
bar within it · the horizon spans a closure, as no label of an intraday bar does · too many wait."""
FROM_FILE = ConfigDict(allow_inf_nan=False, extra="forbid")
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class LiveCoverage:
    """What a card and the metrics say of a version's live intervals.

    Attributes:
        level: the share that was promised.
        coverage: the share of the last `NUM_RECENT` outcomes inside their interval; None before the first.
        num_outcomes: all that ever matured.
        factor: what intervals are multiplied by at usual volatility, the geometric mean over the symbols.
        num_dropped: questions and intervals that taught nothing, by reason.
    """

    level: float
    coverage: float | None
    num_outcomes: int
    factor: float
    num_dropped: dict[Reason, int]


@dataclass(slots=True)
class StatedInterval:
    """An interval whose outcome is not known yet.

    Attributes:
        due_ms: when its horizon ends.
        price: of its bar.
        level: the share it promises.
        lean: how unusual the volatility was (`learning/adaptive.py`).
        is_volatility: whether it was stated in units of a volatility.
        path, run: the lane's, at its bar.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    due_ms: int
    price: Positive
    lower: float
    upper: float
    level: float
    lean: float
    is_volatility: bool
    path: float
    run: int


@dataclass(slots=True)
class Lane:
    """One symbol: its newest priced bar, what waits, and a tracker for each kind of interval.

    Attributes:
        newest_ms: the newest priced bar's moment; -1 before the first.
        price: its price.
        path: sum of squared log returns over the unbroken run of bars; kept for volatilities alone.
        run: number of that run.
        scale: the newest bar's, which the tracker learns when the next bar comes, so that a repeated question is
            answered as it was.
        waiting: by `as_of`, oldest first.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    newest_ms: int = -1
    price: float = 0.0
    path: float = 0.0
    run: int = 0
    scale: Positive | None = None
    waiting: dict[int, StatedInterval] = field(default_factory=dict)
    by_volatility: IntervalTracker = field(default_factory=IntervalTracker)
    plain: IntervalTracker = field(default_factory=lambda: IntervalTracker(has_scale=False))

    def tracker(self, *, is_volatility: bool) -> IntervalTracker:
        """The one for intervals stated like this."""
        return self.by_volatility if is_volatility else self.plain


@dataclass(slots=True)
class VersionIntervals:
    """One version's live intervals.

    Attributes:
        digest: the bundle's: another bundle under the same name starts anew.
        recent: a letter for each of the last outcomes, 1 inside and 0 outside.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    model_id: str
    version: str
    digest: str
    level: float = INTERVAL_LEVEL
    lanes: dict[str, Lane] = field(default_factory=dict)
    recent: Annotated[str, Field(pattern="^[01]*$", max_length=NUM_RECENT)] = ""
    num_outcomes: Annotated[int, Field(ge=0)] = 0
    num_dropped: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def drop(self, reason: Reason) -> None:
        """One more that taught nothing."""
        self.num_dropped[reason] = self.num_dropped.get(reason, 0) + 1

    def price(self, lane: Lane, target: Target, *, as_of_ms: int, price: float, bar_ms: int) -> None:
        """A new bar's price: the path grows, what is due matures, what has no end any more is dropped."""
        slack = slack_ms(bar_ms)
        needs_path = not target.needs_price
        if lane.scale is not None:
            lane.by_volatility.saw(lane.scale)
            lane.scale = None
        if needs_path:
            follows = lane.newest_ms >= 0 and abs(as_of_ms - _next_ms(lane.newest_ms, bar_ms)) <= slack
            lane.path = lane.path + log(price / lane.price) ** 2 if follows else 0.0
            lane.run += not follows
        lane.newest_ms, lane.price = as_of_ms, price
        for stated_ms, stated in list(lane.waiting.items()):
            if as_of_ms < stated.due_ms - slack:
                break
            del lane.waiting[stated_ms]
            if as_of_ms > stated.due_ms + slack or (needs_path and stated.run != lane.run):
                self.drop("gap")
                continue
            self.count(lane, stated, _realised(target, stated, lane))

    def expect(self, lane: Lane, stated: StatedInterval, *, as_of_ms: int, bar_ms: int, horizon: int) -> None:
        """Keeps an interval until its outcome is known; one that spans a closure of an intraday market has none."""
        if bar_ms < DAY_MS and stated.due_ms - as_of_ms != horizon * bar_ms:
            self.drop("closure")
            return
        if len(lane.waiting) >= horizon + SPARE_WAITING:
            del lane.waiting[next(iter(lane.waiting))]
            self.drop("crowded")
        lane.waiting[as_of_ms] = stated

    def count(self, lane: Lane, stated: StatedInterval, realised: float) -> None:
        """One outcome, into the coverage and the tracker."""
        is_covered = stated.lower <= realised <= stated.upper
        tracker = lane.tracker(is_volatility=stated.is_volatility)
        tracker.learn(stated.lean, is_covered=is_covered, promised=stated.level)
        self.level = stated.level
        self.num_outcomes += 1
        self.recent = (self.recent + ("1" if is_covered else "0"))[-NUM_RECENT:]

    def coverage(self) -> LiveCoverage:
        """The figures so far."""
        trackers = [each for lane in self.lanes.values() for each in (lane.by_volatility, lane.plain)]
        levels = [each.level for each in trackers if each.num_outcomes] or [0.0]
        return LiveCoverage(
            level=self.level,
            coverage=self.recent.count("1") / len(self.recent) if self.recent else None,
            num_outcomes=self.num_outcomes,
            factor=exp(sum(levels) / len(levels)),
            num_dropped=dict(self.num_dropped),
        )


def slack_ms(bar_ms: int) -> int:
    """How far a moment may lie from a bar's end and still be that bar's.

    Callers that let the service take the time of receipt come some seconds after the bar. A daily bar may become known
    an hour earlier or later where two cities change their clocks on different days.
    """
    return bar_ms // 2 if bar_ms >= DAY_MS else bar_ms // 10


def _next_ms(known_ms: int, bar_ms: int) -> int:
    """When the bar after the one known at this moment is known."""
    return known_ms + bar_ms if bar_ms < DAY_MS else int(calendar.advance(known_ms, bar_ms))


def _realised(target: Target, stated: StatedInterval, lane: Lane) -> float:
    """The target's value over the stretch that ends at the lane's newest bar."""
    if target.measure == "price_change":
        return lane.price / stated.price - 1.0
    if target.measure == "log_return":
        return log(lane.price / stated.price)
    return float(max(lane.path - stated.path, 0.0) ** 0.5)
