"""Forecast decoding: a number with its prediction interval, and the direction that is worth its costs.

The first target is the headline: its value is the prediction, its interval is kept. With quantile outputs the interval
has the level of the outermost pair. Where the volatility is known its ends lie at fixed numbers of ex-ante volatilities
from the median, the calibration part's conformal quantiles: one tail each, as the quantiles say. Without a volatility
it is the outermost pair itself, moved by one margin so that it covers as promised on the calibration part
(conformalised quantile regression: Romano, Patterson and Candès, NeurIPS 2019).

Why not the pair and a margin in units of volatility: of a band as wide in calm as in storm, a calm calibration part
asks for a margin below zero, which then narrows the band most in the storm that follows. Measured in storms, of a
promised 90 %: a margin in label units covered 87 % (72 % at worst), a margin times the volatility 85 %, the tails 90 %.

Legend: N windows, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Self

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import AbstainReason, Direction, Interval
from ml_workbench_service.contracts.runs.columns import Coded, Nested, Numbers
from ml_workbench_service.contracts.sizing import PositionWanted
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.learning.calibration.conformal import (
    INTERVAL_LEVEL,
    TOO_WIDE,
    ResidualDistribution,
    interval_of,
)
from ml_workbench_service.learning.decoders.decoder import (
    Decoded,
    DecodedRun,
    Decoder,
    DecodingContext,
    DecodingRun,
    IntervalScale,
)
from ml_workbench_service.market.sizing import PLAIN, Sizing, side, sides

DIRECTIONS: tuple[Direction, ...] = ("sell", "hold", "buy")
"""Of the sides -1, 0 and 1."""


@dataclass(frozen=True)
class ForecastDecoder(Decoder):
    """What the calibration part taught about the headline forecast.

    Attributes:
        targets: what is forecast, in the order of the outputs.
        names: the outputs' names: one a target, or one a target and quantile.
        quantiles: ascending; empty for point forecasts.
        conditional: residuals in units of the ex-ante volatility of the target; None where too few rows have one.
        unconditional: residuals in units of the label scale.
        margin: what the outermost quantiles are moved out by, in units of the label scale; 0 for point forecasts.
        tails: where the interval of quantiles begins and ends, from the median, in units of the ex-ante volatility of
            the target; None for point forecasts, and where too few rows have a volatility.
        sizing: by which rule the headline becomes a position; its volatility is the interval's own scale.
    """

    kind: ClassVar[str] = "forecast"
    foretells: ClassVar[bool] = True
    targets: tuple[Target, ...]
    names: tuple[str, ...]
    quantiles: tuple[float, ...]
    conditional: ResidualDistribution | None
    unconditional: ResidualDistribution
    margin: float = 0.0
    tails: tuple[float, float] | None = None
    sizing: Sizing = PLAIN

    @classmethod
    def fit(
        cls,
        outputs_NK: Floats,
        *,
        targets: Sequence[Target],
        names: Sequence[str],
        quantiles: Sequence[float],
        labels_N: Floats,
        label_scale_N: Floats,
        volatility_N: Floats,
    ) -> Self:
        """From the calibration part.

        Args:
            outputs_NK: the network's outputs, in units of the label scale.
            labels_N: the first target's realised values, in its own unit.
            label_scale_N: the first target's unit.
            volatility_N: its ex-ante volatility over the horizon; NaN where unknown.
        """
        residuals = labels_N - outputs_NK[:, headline_column(quantiles)] * label_scale_N
        unconditional = ResidualDistribution.fit(residuals, label_scale_N)
        assert unconditional is not None, "windows.build lets no calibration part of under 20 windows pass"
        margin, tails = 0.0, None
        if len(quantiles) > 1:
            margin = _margin(outputs_NK, labels_N / label_scale_N, quantiles)
            tails = _tails(residuals, volatility_N, quantiles)
        return cls(
            tuple(targets),
            tuple(names),
            tuple(quantiles),
            ResidualDistribution.fit(residuals, volatility_N),
            unconditional,
            margin,
            tails,
        )

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The headline forecast with its interval, direction and confidence, and every output in its own unit."""
        target, label_scale = self.targets[0], float(context.label_scale_K[0])
        per_target = len(self.names) // len(self.targets)
        scales = [scale for scale in context.label_scale_K.tolist() for _ in range(per_target)]
        values = [output * scale for output, scale in zip(outputs_K.tolist(), scales, strict=True)]
        value = values[headline_column(self.quantiles)]
        distribution, scale = self.unconditional, label_scale
        warnings: tuple[str, ...] = ("unconditional_interval",)
        volatility = self._volatility(context)
        if self.conditional is not None and isfinite(volatility):
            distribution, scale, warnings = self.conditional, volatility, ()
        widening = context.widening
        interval = distribution.interval(value, scale, may_be_negative=target.needs_price, widening=widening)
        half_width = distribution.radius * scale
        if len(self.quantiles) > 1:
            lower, upper = self.band(
                outputs_K[None].astype(np.float64), np.array([label_scale]), np.array([volatility])
            )
            half_width = (float(upper[0]) - float(lower[0])) / 2
            interval = self._widened(value, float(lower[0]), float(upper[0]), widening, self._level)
            warnings = warnings if self.tails is not None else ()  # a band without tails never needs a volatility
        reasons: tuple[AbstainReason, ...] = ()
        if half_width > TOO_WIDE * self.unconditional.radius * label_scale:
            reasons = ("interval_too_wide",)
        direction: Direction = "hold"
        confidence = None
        if target.needs_price:
            dead_zone = context.dead_zone
            direction = DIRECTIONS[side(value, dead_zone) + 1]
            confidence = distribution.probability(direction, value, scale=scale, dead_zone=dead_zone)
        wanted = None
        if not self.sizing.is_plain:
            wanted = self.sizing.wants(value, volatility=scale, dead_zone=context.dead_zone, weight=context.size_weight)
        return Decoded(
            prediction=value,
            outputs=dict(zip(self.names, values, strict=True)),
            direction=direction,
            confidence=confidence,
            interval=interval,
            volatility=scale,
            wanted=wanted,
            reasons=reasons,
            warnings=warnings,
        )

    def decode_run(self, outputs_NK: Floats32, run: DecodingRun) -> DecodedRun:
        """`decode` of each window; one by one where a number is not finite, for the errors that this has."""
        num, label_scale_N, widening_N = len(outputs_NK), run.label_scale_NK[:, 0], run.widening_N
        scales_NK = np.repeat(run.label_scale_NK, len(self.names) // len(self.targets), axis=1)
        values_NK = outputs_NK.astype(np.float64) * scales_NK
        value_N = values_NK[:, headline_column(self.quantiles)]
        volatility_N = self._volatilities(run)
        knows_N = np.isfinite(volatility_N) if self.conditional is not None else np.zeros(num, dtype=np.bool_)
        scale_N = np.where(knows_N, volatility_N, label_scale_N)
        known_radius = 0.0 if self.conditional is None else self.conditional.radius
        half_N = np.where(knows_N, known_radius, self.unconditional.radius) * scale_N
        lower_N, upper_N = self._kept(value_N - half_N * widening_N), self._kept(value_N + half_N * widening_N)
        level, warns = INTERVAL_LEVEL, True
        if len(self.quantiles) > 1:
            ends = self.band(outputs_NK.astype(np.float64), label_scale_N, volatility_N)
            level, warns, half_N = self._level, self.tails is not None, (ends[1] - ends[0]) / 2
            moved = [self._kept(value_N + widening_N * (each - value_N)) for each in ends]
            lower_N, upper_N = (np.where(widening_N != 1.0, *each) for each in zip(moved, ends, strict=True))
        if not np.isfinite(np.column_stack([values_NK, lower_N, upper_N])).all():
            return super().decode_run(outputs_NK, run)
        is_too_wide_N = half_N > TOO_WIDE * self.unconditional.radius * label_scale_N
        direction, confidence = self._directions(value_N, run.dead_zone_N, scale_N, knows_N)
        ends_of = {"level": Coded.same(level, num), "lower": Numbers(lower_N), "upper": Numbers(upper_N)}
        return DecodedRun(
            prediction=Numbers(value_N),
            outputs=Nested(None, dict(zip(self.names, map(Numbers, values_NK.T), strict=True))),
            direction=direction,
            confidence=confidence,
            label=Coded.same(None, num),
            interval=Nested(Interval, ends_of),
            volatility=Numbers(scale_N),
            strength=Numbers(np.full(num, np.nan)),
            wanted=self._wanted(value_N, scale_N, run),
            drivers=Coded.same((), num),
            reasons=Coded(((), ("interval_too_wide",)), is_too_wide_N.astype(np.int64)),
            warnings=Coded(((), ("unconditional_interval",)), (~knows_N & warns).astype(np.int64)),
        )

    def interval_scale(self, context: DecodingContext) -> IntervalScale:
        """The ex-ante volatility of the target, where the interval is stated by it; else the label scale."""
        volatility = self._volatility(context)
        knows = self.tails is not None if len(self.quantiles) > 1 else self.conditional is not None
        if knows and isfinite(volatility):
            return IntervalScale(volatility, is_volatility=True)
        return IntervalScale(float(context.label_scale_K[0]), is_volatility=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "kind": self.kind,
            "interval_level": INTERVAL_LEVEL,
            "conditional": None if self.conditional is None else self.conditional.to_json(),
            "unconditional": self.unconditional.to_json(),
            "margin": self.margin,
            "tails": None if self.tails is None else list(self.tails),
            **({} if self.sizing.is_plain else {"sizing": self.sizing.to_json()}),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The inverse of `to_json`."""
        conditional, tails = plain["conditional"], plain.get("tails")
        return cls(
            targets=tuple(parse_target(name) for name in card.target_names),
            names=card.outputs,
            quantiles=card.quantiles,
            conditional=None if conditional is None else ResidualDistribution.from_json(conditional),
            unconditional=ResidualDistribution.from_json(plain["unconditional"]),
            margin=float(plain.get("margin", 0.0)),
            tails=None if tails is None else (float(tails[0]), float(tails[1])),
            sizing=Sizing.from_json(plain.get("sizing")),
        )

    def wanted(
        self, values_N: Floats, *, label_scale_N: Floats, volatility_N: Floats, dead_zone_N: Floats, weight_N: Floats
    ) -> Floats:
        """(N,) the position that each headline forecast alone would have, by the scale that its interval is stated in.

        Args:
            values_N: in the target's own unit.
            volatility_N: ex-ante volatility of the target; NaN where unknown.
            dead_zone_N: the round-trip cost, a fraction.
            weight_N: of each row's symbol.
        """
        knows_N = np.isfinite(volatility_N) & (volatility_N > 0) & (self.conditional is not None)
        scale_N = np.where(knows_N, volatility_N, label_scale_N)
        return np.asarray(self.sizing.wanted(values_N, volatility=scale_N, dead_zone=dead_zone_N, weight=weight_N))

    def _volatility(self, context: DecodingContext) -> float:
        """Ex-ante standard deviation of the target over its horizon; NaN where unknown."""
        if context.bar_volatility is None or context.bar_volatility <= 0:
            return float("nan")
        return float(context.bar_volatility * self.targets[0].horizon ** 0.5)

    def _volatilities(self, run: DecodingRun) -> Floats:
        """(N,) `_volatility` of each window."""
        known_N = np.where(run.bar_volatility_N > 0, run.bar_volatility_N, np.nan)
        return np.asarray(known_N * self.targets[0].horizon ** 0.5)

    @property
    def _level(self) -> float:
        """Of the interval of quantiles."""
        return round(self.quantiles[-1] - self.quantiles[0], 9)

    def _kept(self, ends_N: Floats) -> Floats:
        """Ends of intervals: of what cannot be negative (a volatility) none is."""
        return ends_N if self.targets[0].needs_price else np.where(ends_N < 0.0, 0.0, ends_N)

    def _directions(
        self, value_N: Floats, dead_zone_N: Floats, scale_N: Floats, knows_N: Bools
    ) -> tuple[Coded, Numbers]:
        """Directions and how sure they are; of a target without a price there are none."""
        if not self.targets[0].needs_price:
            return Coded.same("hold", len(value_N)), Numbers(np.full(len(value_N), np.nan))
        side_N = sides(value_N, dead_zone_N)
        is_buy_N, is_sell_N = side_N > 0, side_N < 0
        asked: dict[str, Floats] = {"scale_N": scale_N, "dead_zone_N": dead_zone_N}
        confidence_N = self.unconditional.probabilities(is_buy_N, is_sell_N, value_N, **asked)
        if self.conditional is not None and knows_N.any():
            confidence_N = np.where(
                knows_N, self.conditional.probabilities(is_buy_N, is_sell_N, value_N, **asked), confidence_N
            )
        return Coded(("hold", "buy", "sell"), is_buy_N + 2 * is_sell_N), Numbers(confidence_N)

    def _wanted(self, value_N: Floats, scale_N: Floats, run: DecodingRun) -> Nested | Coded:
        """What records carry of the rule; nothing where it is what their direction says."""
        num, sizing = len(value_N), self.sizing
        if sizing.is_plain:
            return Coded.same(None, num)
        rule = sizing.rule
        terms = {"band": rule.band, "decide": rule.decide, "horizon": sizing.horizon}
        wanted_N = np.asarray(
            sizing.wanted(value_N, volatility=scale_N, dead_zone=run.dead_zone_N, weight=run.size_weight_N)
        )
        own = {"rule": Coded.same(rule.rule, num), "wanted": Numbers(wanted_N)}
        return Nested(PositionWanted, own | {name: Coded.same(value, num) for name, value in terms.items()})

    def _widened(self, median: float, lower: float, upper: float, widening: float, level: float) -> Interval:
        """Both ends moved away from the median by the same factor; an end never passes the other."""
        if widening != 1.0:
            lower, upper = median + widening * (lower - median), median + widening * (upper - median)
            if not self.targets[0].needs_price:
                lower, upper = max(lower, 0.0), max(upper, 0.0)
        return interval_of(level, lower, upper)

    def band(self, outputs_NK: Floats, label_scale_N: Floats, volatility_N: Floats) -> tuple[Floats, Floats]:
        """The interval of quantile outputs, by tails where the volatility is known, else by the margin.

        A margin below zero may turn the ends round: they are put in order again.
        """
        ends_N2 = outputs_NK[:, [0, len(self.quantiles) - 1]] + np.array([-self.margin, self.margin])
        ends_N2 = np.sort(ends_N2, axis=1) * label_scale_N[:, None]
        if self.tails is not None:
            median_N = outputs_NK[:, headline_column(self.quantiles)] * label_scale_N
            by_tails_N2 = median_N[:, None] + volatility_N[:, None] * np.array(self.tails)
            ends_N2 = np.where(np.isfinite(volatility_N)[:, None], by_tails_N2, ends_N2)
        if not self.targets[0].needs_price:
            ends_N2 = np.where(ends_N2 < 0.0, 0.0, ends_N2)  # `maximum` leaves it open which zero it takes
        return ends_N2[:, 0], ends_N2[:, 1]


def headline_column(quantiles: Sequence[float]) -> int:
    """The first target's point forecast among the outputs: the median, or the only one."""
    return tuple(quantiles).index(0.5) if quantiles else 0


def _margin(outputs_NK: Floats, labels_N: Floats, quantiles: Sequence[float]) -> float:
    """How far the outermost quantiles must move to cover their share of the calibration part."""
    beyond = np.maximum(outputs_NK[:, 0] - labels_N, labels_N - outputs_NK[:, len(quantiles) - 1])
    num, level = len(beyond), quantiles[-1] - quantiles[0]
    rank = min(num, int(np.ceil((num + 1) * level)))
    return float(np.sort(beyond)[rank - 1])


def _tails(residuals_N: Floats, volatility_N: Floats, quantiles: Sequence[float]) -> tuple[float, float] | None:
    """The outermost quantiles of what the calibration part's residuals are in volatilities, at conformal ranks.

    None where fewer than 20 rows have a volatility, as for `ResidualDistribution`.
    """
    usable = np.isfinite(volatility_N) & (volatility_N > 0)
    ratios = np.sort(residuals_N[usable] / volatility_N[usable])
    num = len(ratios)
    if num < 20:
        return None
    below = max(int(np.floor(round((num + 1) * quantiles[0], 9))), 1)
    above = min(int(np.ceil(round((num + 1) * quantiles[-1], 9))), num)
    return float(ratios[below - 1]), float(ratios[above - 1])
