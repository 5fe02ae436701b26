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

from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import AbstainReason, Direction, Interval
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.learning.calibration.conformal import INTERVAL_LEVEL, TOO_WIDE, ResidualDistribution
from ml_workbench_service.learning.decoders.decoder import Decoded, Decoder, DecodingContext, IntervalScale


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
            level = round(self.quantiles[-1] - self.quantiles[0], 9)
            half_width = (float(upper[0]) - float(lower[0])) / 2
            interval = self._widened(value, float(lower[0]), float(upper[0]), widening, level)
            warnings = warnings if self.tails is not None else ()  # a band without tails never needs a volatility
        reasons: tuple[AbstainReason, ...] = ()
        if half_width > TOO_WIDE * self.unconditional.radius * label_scale:
            reasons = ("interval_too_wide",)
        direction: Direction = "hold"
        confidence = None
        if target.needs_price:
            dead_zone = context.dead_zone
            direction = "hold" if abs(value) <= dead_zone else ("buy" if value > 0 else "sell")
            confidence = distribution.probability(direction, value, scale=scale, dead_zone=dead_zone)
        return Decoded(
            prediction=value,
            outputs=dict(zip(self.names, values, strict=True)),
            direction=direction,
            confidence=confidence,
            interval=interval,
            volatility=scale,
            reasons=reasons,
            warnings=warnings,
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
        )

    def _volatility(self, context: DecodingContext) -> float:
        """Ex-ante standard deviation of the target over its horizon; NaN where unknown."""
        if context.bar_volatility is None or context.bar_volatility <= 0:
            return float("nan")
        return float(context.bar_volatility * self.targets[0].horizon ** 0.5)

    def _widened(self, median: float, lower: float, upper: float, widening: float, level: float) -> Interval:
        """Both ends moved away from the median by the same factor; an end never passes the other."""
        if widening != 1.0:
            lower, upper = median + widening * (lower - median), median + widening * (upper - median)
            if not self.targets[0].needs_price:
                lower, upper = max(lower, 0.0), max(upper, 0.0)
        return Interval(level=level, lower=lower, upper=upper)

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
            ends_N2 = np.maximum(ends_N2, 0.0)
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
