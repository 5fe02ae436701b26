"""Adaptive conformal intervals: `IntervalTracker` widens an interval so that it keeps the coverage it promises.

    widening = exp(level + slope · lean)         lean = log scale - its long mean, cut to ±1; scale: ex-ante volatility

    after each outcome, surprise = (1 outside the interval, 0 inside) - (1 - promised), lean as it was when stated:
    level += LEVEL_STEP · surprise              slope += SLOPE_STEP · surprise · lean

Idea: the first line is online quantile tracking (Gibbs and Candès, NeurIPS 2021; the P part of Angelopoulos, Candès and
Tibshirani's conformal PID control, NeurIPS 2023) of the log of the score |residual| ÷ volatility: whatever the market
does, the share of misses tends to what was promised, since a long run of either drives the level without bound. The
second is the same step for the slope of that quantile in the volatility itself (Gibbs, Cherian and Candès, JRSS B 87,
2025, ask for coverage under such shifts; here online): a short EWMA overshoots in storms and undershoots in calm, so
its intervals cover too much in the one and too little in the other. A slope below zero leans the volatility towards its
own long mean by as much as the outcomes ask for.

When it fails: after a jump of the level it needs some hundred outcomes. It promises a share over time, not the next
one. Outcomes that overlap (a horizon of several bars) come late and together, and the spread shrinks less.

Cost: a dozen float operations an outcome, seven numbers of state. Steps, memory and start were chosen on simulated
series and real rates; `make evaluate` shows what they reach on both.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Annotated, ClassVar, NamedTuple

from pydantic import ConfigDict, Field

LEVEL_STEP = 0.005
"""Faster follows chance: at 0.02 the spread of coverage over terciles of volatility is a third larger."""
PLAIN_LEVEL_STEP, LEAST_PLAIN_STEP = 0.1, 0.03
"""Where an interval has no volatility in it, the level alone must follow the market: it forgets a volatility of three
times the usual within some hundred outcomes. Outcomes that overlap share the first, down to the second: they come late
and together, and a level that believed each of them would swing."""
SLOPE_STEP = 0.2
START_SLOPE = -0.4
"""Where most of the series studied settle, between -0.3 and -0.7, for a volatility of decay 0.94."""
SCALE_MEMORY = 1000
"""Scales in the long mean of the log; the mean of all until there are as many."""
MOST_LEAN = 1.0
SLOPES = (-1.0, 0.5)
MOST_LEVEL = log(4.0)
"""A widening stays within a quarter and four times; beyond it the model, not its interval, is what is wrong."""


class Widening(NamedTuple):
    """How an interval was widened, and what learning from its outcome needs."""

    factor: float
    lean: float


PUBLISHED = Widening(1.0, 0.0)
"""The interval as it was published."""


@dataclass(slots=True)
class IntervalTracker:
    """The state for one series of intervals: one model version, one symbol.

    Attributes:
        has_scale: whether the intervals are stated in units of a volatility; without, there is no slope.
        level: log of the widening at the usual scale.
        slope: what the log of the scale, less its long mean, adds to it.
        usual: long mean of the log of the scale.
        num_scales: scales seen, up to `SCALE_MEMORY`.
        num_outcomes: outcomes learnt from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False, extra="forbid")  # when read from a file

    has_scale: bool = True
    level: Annotated[float, Field(ge=-MOST_LEVEL, le=MOST_LEVEL)] = 0.0
    slope: Annotated[float, Field(ge=SLOPES[0], le=SLOPES[1])] = START_SLOPE
    usual: float = 0.0
    num_scales: Annotated[int, Field(ge=0, le=SCALE_MEMORY)] = 0
    num_outcomes: Annotated[int, Field(ge=0)] = 0

    def widening(self, scale: float) -> Widening:
        """For an interval of this scale (above zero); changes nothing. One, until an outcome was learnt from."""
        if not self.has_scale:
            return Widening(exp(self.level), 0.0)
        if not self.num_scales:
            return PUBLISHED
        lean = min(max(log(scale) - self.usual, -MOST_LEAN), MOST_LEAN)
        return Widening(exp(self.level + self.slope * lean) if self.num_outcomes else 1.0, lean)

    def saw(self, scale: float) -> None:
        """The scale of one more bar; once a bar."""
        if self.has_scale:
            self.num_scales = min(self.num_scales + 1, SCALE_MEMORY)
            self.usual += (log(scale) - self.usual) / self.num_scales

    def learn(self, lean: float, *, is_covered: bool, promised: float, num_overlapping: int = 1) -> None:
        """The outcome of an interval that was stated with this lean.

        Args:
            promised: its level, such as 0.9.
            num_overlapping: intervals whose horizons overlap, this one included.
        """
        surprise = (0.0 if is_covered else 1.0) - (1.0 - promised)
        step = LEVEL_STEP if self.has_scale else max(PLAIN_LEVEL_STEP / num_overlapping, LEAST_PLAIN_STEP)
        self.level = min(max(self.level + step * surprise, -MOST_LEVEL), MOST_LEVEL)
        if self.has_scale:
            self.slope = min(max(self.slope + SLOPE_STEP * surprise * lean, SLOPES[0]), SLOPES[1])
        self.num_outcomes += 1
