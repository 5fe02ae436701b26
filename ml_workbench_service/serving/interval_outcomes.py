"""Live interval coverage: the intervals that a live version stated, which of them held, and what that taught.

One series a symbol, no files. Its prices also tell an ex-ante volatility, for answers to features that bring none. A
bar's price matures the intervals whose horizon ends there; an interval whose end passes without a price is dropped, and
so is one for a volatility that misses a bar in between. As it stands it is written as JSON
(`serving/live_intervals.py`). When a segment is over and what came true of it is the rule of
`market/outcomes/realised.py`.
"""

from dataclasses import dataclass, field
from math import exp, log
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.calibration.adaptive_intervals import IntervalTracker
from ml_workbench_service.learning.calibration.conformal import INTERVAL_LEVEL
from ml_workbench_service.market import calendar
from ml_workbench_service.market.outcomes.realised import (
    FROM_FILE,
    Positive,
    PriceSeries,
    Segment,
    meets_closure,
    slack_ms,
)
from ml_workbench_service.market.targets import EWMA_BARS, EWMA_DECAY

NUM_RECENT = 500
"""Outcomes behind the live coverage: its standard error is 1.3 points at 90 %."""
SPARE_WAITING = 8
"""Intervals of a symbol that may wait for their outcome beyond one for each bar of the horizon."""
Reason = Literal["late", "repeated", "gap", "closure", "crowded"]
REASONS: tuple[Reason, ...] = ("late", "repeated", "gap", "closure", "crowded")
"""Older than a bar already seen · a bar seen before · the end of the horizon was never priced, or for a volatility a
bar within it · the horizon spans a closure, as no label of an intraday bar does · too many wait."""


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
class StatedInterval(Segment):
    """An interval whose outcome is not known yet.

    Attributes:
        level: the share it promises.
        lean: how unusual the volatility was (`learning/calibration/adaptive_intervals.py`).
        is_volatility: whether it was stated in units of a volatility.
    """

    lower: float
    upper: float
    level: float
    lean: float
    is_volatility: bool


@dataclass(slots=True)
class IntervalSeries(PriceSeries):
    """One symbol: its priced bars, what waits, and a tracker for each kind of interval.

    Attributes:
        scale: the newest bar's, which the tracker learns when the next bar comes, so that a repeated question is
            answered as it was.
        squares, weights, num_returns: of the EWMA of squared deseasonalised returns; one over a missing bar is left
            out, and after a gap as long as the kernel it begins anew.
        waiting: by `as_of`, oldest first.
    """

    scale: Positive | None = None
    squares: Annotated[float, Field(ge=0)] = 0.0
    weights: Annotated[float, Field(ge=0)] = 0.0
    num_returns: Annotated[int, Field(ge=0)] = 0
    waiting: dict[int, StatedInterval] = field(default_factory=dict)
    by_volatility: IntervalTracker = field(default_factory=IntervalTracker)
    plain: IntervalTracker = field(default_factory=lambda: IntervalTracker(has_scale=False))

    @property
    def deviation(self) -> float | None:
        """Of a bar's deseasonalised return, as `market.targets.ewma_deviation` has it; None until it has enough."""
        if self.num_returns < EWMA_BARS // 4 or self.squares == 0.0:
            return None
        return float((self.squares / self.weights) ** 0.5)

    def move(self, as_of_ms: int, price: float, *, factor: float, bar_ms: int) -> None:
        """The return to a new bar's price, before it is added; `factor` is the bar's season."""
        if self.newest_ms < 0:
            return
        passed_ms = calendar.market_ms_at(as_of_ms) - calendar.market_ms_at(self.newest_ms)
        if passed_ms > EWMA_BARS * bar_ms:
            self.squares, self.weights, self.num_returns = 0.0, 0.0, 0
        elif abs(passed_ms - bar_ms) <= slack_ms(bar_ms):
            self.squares = self.squares * EWMA_DECAY + ((log(price) - log(self.price)) / factor) ** 2
            self.weights = self.weights * EWMA_DECAY + 1.0
            self.num_returns = min(self.num_returns + 1, EWMA_BARS)

    def tracker(self, *, is_volatility: bool) -> IntervalTracker:
        """That of intervals in units of volatility, or of the plain ones."""
        return self.by_volatility if is_volatility else self.plain


@dataclass(slots=True)
class VersionIntervals:
    """One version's live intervals.

    Attributes:
        digest: the bundle's: another bundle under the same name starts anew.
        recent: a letter for each of the last outcomes, 1 inside and 0 outside.
        applied: the last item of the hand-over stream that is in it; empty where one process does it all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FROM_FILE

    model_id: str
    version: str
    digest: str
    level: float = INTERVAL_LEVEL
    lanes: dict[str, IntervalSeries] = field(default_factory=dict)
    recent: Annotated[str, Field(pattern="^[01]*$", max_length=NUM_RECENT)] = ""
    num_outcomes: Annotated[int, Field(ge=0)] = 0
    num_dropped: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    applied: str = ""

    def drop(self, reason: Reason, num: int = 1) -> None:
        """So many more that taught nothing."""
        self.num_dropped[reason] = self.num_dropped.get(reason, 0) + num

    def price(
        self, series: IntervalSeries, target: Target, *, as_of_ms: int, price: float, bar_ms: int, factor: float = 1.0
    ) -> None:
        """A new bar's price: the path grows, what is due matures, what has no end any more is dropped.

        Args:
            factor: the bar's season.
        """
        if series.scale is not None:
            series.by_volatility.saw(series.scale)
            series.scale = None
        series.move(as_of_ms, price, factor=factor, bar_ms=bar_ms)
        series.add(as_of_ms, price, bar_ms)
        for stated in series.waiting.values():
            series.begin(stated)
        for stated_ms, stated in list(series.waiting.items()):
            end = series.end(stated, target, bar_ms)
            if end == "waits":
                break
            del series.waiting[stated_ms]
            if end == "gap":
                self.drop("gap")
                continue
            self.count(series, stated, series.realised(stated, target))

    def expect(
        self, series: IntervalSeries, stated: StatedInterval, *, as_of_ms: int, bar_ms: int, horizon: int
    ) -> None:
        """Keeps an interval until its outcome is known; one that spans a closure of an intraday market has none."""
        if meets_closure(as_of_ms, stated.due_ms, bar_ms=bar_ms, horizon=horizon):
            self.drop("closure")
            return
        if len(series.waiting) >= horizon + SPARE_WAITING:
            del series.waiting[next(iter(series.waiting))]
            self.drop("crowded")
        series.waiting[as_of_ms] = stated

    def count(self, series: IntervalSeries, stated: StatedInterval, realised: float) -> None:
        """One outcome, into the coverage and the tracker."""
        is_covered = stated.lower <= realised <= stated.upper
        tracker = series.tracker(is_volatility=stated.is_volatility)
        overlapping = len(series.waiting) + 1
        tracker.learn(stated.lean, is_covered=is_covered, promised=stated.level, num_overlapping=overlapping)
        self.level = stated.level
        self.num_outcomes += 1
        self.recent = (self.recent + ("1" if is_covered else "0"))[-NUM_RECENT:]

    def coverage(self) -> LiveCoverage:
        """Its share of intervals that held, and the mean widening of what has learnt something."""
        trackers = [each for series in self.lanes.values() for each in (series.by_volatility, series.plain)]
        levels = [each.level for each in trackers if each.num_outcomes] or [0.0]
        return LiveCoverage(
            level=self.level,
            coverage=self.recent.count("1") / len(self.recent) if self.recent else None,
            num_outcomes=self.num_outcomes,
            factor=exp(sum(levels) / len(levels)),
            num_dropped=dict(self.num_dropped),
        )
