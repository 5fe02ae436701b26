"""Probabilistic metrics: CRPS, pinball loss, coverage, and the calibration of stated confidence.

| figure              | what it is                                                                                |
|---------------------|-------------------------------------------------------------------------------------------|
| `crps`              | continuous ranked probability score of the calibration part's residuals around the        |
|                     | forecast, in the target's unit; of a point alone it would be the absolute error           |
| `pinball_loss`      | mean over all quantile outputs, in units of the label scale                               |
| `share_below_q…`    | how often the outcome lay below each quantile                                             |
| `calibration_error` | expected error of the stated direction's probability, against its coming true beyond the  |
|                     | round-trip cost; 15 bins                                                                  |

Legend: N rows of all symbols, K outputs, Q points of a distribution or quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.evaluation import HourCoverage, IntervalReport
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.evaluation.forecast_metrics import interval_report
from ml_workbench_service.learning.calibration.class_metrics import calibration_error
from ml_workbench_service.learning.calibration.conformal import INTERVAL_LEVEL, TOO_WIDE, ResidualDistribution
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder, headline_column
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.significance import NORMAL_9995, crps, pinball, terciles, trailing_move, wilson
from ml_workbench_service.market.sizing import sides

HOUR_SLACK = 0.05
"""How far from its promise an hour's coverage may lie (finance.md, "Intervals, confidence, novelty")."""


@dataclass(frozen=True)
class DecodedRows:
    """The headline's outputs on some rows, as its decoder reads them.

    Attributes:
        decoder: fitted on the calibration part.
        outputs_NK: the network's outputs.
        labels_N: realised values, in the target's own unit.
        label_scale_N: the unit of the outputs.
        volatility_N: ex-ante volatility of the target; NaN where unknown.
    """

    decoder: ForecastDecoder
    outputs_NK: Floats
    labels_N: Floats
    label_scale_N: Floats
    volatility_N: Floats

    @property
    def predictions_N(self) -> Floats:
        """The point forecasts, in the target's own unit."""
        return np.asarray(self.outputs_NK[:, headline_column(self.decoder.quantiles)] * self.label_scale_N)

    def distributions(self) -> list[tuple[np.ndarray, ResidualDistribution, Floats]]:
        """Which rows answer with which residuals, and the scale of each row: conditional where that is known."""
        decoder, known_N = self.decoder, np.isfinite(self.volatility_N) & (self.volatility_N > 0)
        if decoder.conditional is None:
            return [(np.full(len(self.labels_N), True), decoder.unconditional, self.label_scale_N)]
        return [
            (known_N, decoder.conditional, self.volatility_N),
            (~known_N, decoder.unconditional, self.label_scale_N),
        ]

    def crps(self) -> float:
        """Mean over the rows."""
        total = 0.0
        for mask_N, distribution, scale_N in self.distributions():
            total += float(
                crps(
                    self.labels_N[mask_N], self.predictions_N[mask_N], scales_N=scale_N[mask_N],
                    grid_Q=distribution.grid_Q,
                ).sum()
            )  # fmt: skip
        return total / len(self.labels_N)

    def calibration_error(self, dead_zones_N: Floats) -> float:
        """Of the stated direction's probability; `dead_zones_N` is the round-trip cost of each row."""
        stated_N, confidence_N = self.directions(dead_zones_N)
        return calibration_error(confidence_N, is_hit_N=stated_N == _directions(self.labels_N, dead_zones_N))

    def directions(self, dead_zones_N: Floats) -> tuple[Ints, Floats]:
        """(N,) the stated direction of each row, 0 inside ± its round-trip cost, and its probability."""
        stated_N = _directions(self.predictions_N, dead_zones_N)
        confidence_N = np.empty(len(stated_N))
        for mask_N, distribution, scale_N in self.distributions():
            confidence_N[mask_N] = _probabilities(
                distribution, stated_N[mask_N], predictions_N=self.predictions_N[mask_N], scales_N=scale_N[mask_N],
                dead_zones_N=dead_zones_N[mask_N],
            )  # fmt: skip
        return stated_N, confidence_N

    def pinball(self) -> dict[str, float | None]:
        """Mean pinball loss, and the share below each quantile; nothing for point forecasts."""
        quantiles = self.decoder.quantiles
        if not quantiles:
            return {}
        own_NQ, labels_N = self.outputs_NK[:, : len(quantiles)], self.labels_N / self.label_scale_N
        figures: dict[str, float | None] = {
            "pinball_loss": float(np.mean(pinball(labels_N, own_NQ, quantiles=quantiles)))
        }
        for quantile, below in zip(quantiles, (labels_N[:, None] < own_NQ).mean(axis=0), strict=True):
            figures[f"share_below_q{quantile:g}"] = float(below)
        return figures

    def bounds(self) -> tuple[float, Floats, Floats]:
        """Level, lower and upper end of each row's interval: the decoder's own, for all rows at once."""
        decoder = self.decoder
        if len(decoder.quantiles) > 1:
            level = round(decoder.quantiles[-1] - decoder.quantiles[0], 9)
            return (level, *decoder.band(self.outputs_NK, self.label_scale_N, self.volatility_N))
        radius_N = np.empty(len(self.labels_N))
        for mask_N, distribution, scale_N in self.distributions():
            radius_N[mask_N] = distribution.radius * scale_N[mask_N]
        lower_N, upper_N = self.predictions_N - radius_N, self.predictions_N + radius_N
        if not decoder.targets[0].needs_price:
            lower_N, upper_N = np.maximum(lower_N, 0.0), np.maximum(upper_N, 0.0)
        return INTERVAL_LEVEL, lower_N, upper_N

    def is_stated(self) -> Bools:
        """(N,) whether each row's interval is narrow enough to be stated; else serving abstains."""
        decoder = self.decoder
        if len(decoder.quantiles) > 1:
            _, lower_N, upper_N = self.bounds()
            half_width_N = (upper_N - lower_N) / 2
        else:
            half_width_N = np.empty(len(self.labels_N))
            for mask_N, distribution, scale_N in self.distributions():
                half_width_N[mask_N] = distribution.radius * scale_N[mask_N]
        return np.asarray(half_width_N <= TOO_WIDE * decoder.unconditional.radius * self.label_scale_N)

    def interval(self, windows: Windows, ends: Ints) -> IntervalReport:
        """Coverage overall, by tercile of each symbol's trailing mean move, and of intraday bars by hour."""
        level, lower_N, upper_N = self.bounds()
        report = interval_report(
            self.labels_N, lower_N, upper_N, level=level, terciles_N=volatility_terciles(windows, ends)
        )
        covered_N = (lower_N <= self.labels_N) & (self.labels_N <= upper_N)
        moments_N, horizon = windows.moments(ends), self.decoder.targets[0].horizon
        return report.model_copy(
            update={"coverage_by_hour": coverage_by_hour(covered_N, moments_N, level=level, horizon=horizon)}
        )


def coverage_by_hour(covered_N: Bools, moments_N: Ints, *, level: float, horizon: int) -> tuple[HourCoverage, ...]:
    """Coverage in each hour of the day, UTC, in which a forecast was made; none where bars are daily.

    An hour has failed only where all of Wilson's 99.9 % interval lies beyond `HOUR_SLACK`: of 24 hours that are as
    promised, one would fail at 95 % in most evaluations. Symbols at one moment are one observation, and so are moments
    of one hour whose horizons overlap.
    """
    times, at = np.unique(moments_N, return_inverse=True)
    bar_ms = int(np.median(np.diff(times))) if len(times) > 1 else DAY_MS
    if bar_ms >= DAY_MS:
        return ()
    share_T = np.bincount(at, covered_N) / np.bincount(at)
    hours_T, days_in_horizon = times % DAY_MS // HOUR_MS, horizon * bar_ms / DAY_MS
    found = []
    for hour in np.unique(hours_T).tolist():
        here_T = hours_T == hour
        num_days = len(np.unique(times[here_T] // DAY_MS))
        num_independent = max(float(here_T.sum()) / horizon, num_days / max(days_in_horizon, 1.0))
        coverage = float(share_T[here_T].mean())
        low, high = wilson(coverage, num_independent, z=NORMAL_9995)
        found.append(
            HourCoverage(
                hour_utc=hour, num_rows=int(np.sum(here_T[at])), coverage=coverage, low=low, high=high,
                failed=high < level - HOUR_SLACK or low > level + HOUR_SLACK,
            )
        )  # fmt: skip
    return tuple(found)


def volatility_terciles(windows: Windows, ends: Ints) -> Ints:
    """(N,) each row's tercile among its symbol's rows, by `market.significance.trailing_move`; -1 where unknown."""
    found_N = np.full(len(ends), -1, dtype=np.int64)
    for number in range(len(windows.symbols)):
        here = windows.symbol_R == number
        trailing_R = np.full(len(here), np.nan)
        trailing_R[here] = trailing_move(windows.close_R[here])
        own = windows.symbol_R[ends] == number
        found_N[own] = terciles(trailing_R[ends[own]])
    return found_N


def train_quantiles(windows: Windows, quantiles: Sequence[float]) -> Floats:
    """(Q,) of the training part's headline labels, in units of the label scale: what knows nothing answers."""
    return np.asarray(np.quantile(windows.labels_RK[windows.parts["train"], 0], list(quantiles)))


def _directions(values_N: Floats, dead_zones_N: Floats) -> Ints:
    return sides(values_N, dead_zones_N).astype(np.int64)


def _probabilities(
    distribution: ResidualDistribution, directions_N: Ints, *, predictions_N: Floats, scales_N: Floats,
    dead_zones_N: Floats,
) -> Floats:  # fmt: skip
    """`ResidualDistribution.probability` for many rows."""
    grid_Q = distribution.grid_Q
    num = len(grid_Q)
    above_N = num - np.searchsorted(grid_Q, (dead_zones_N - predictions_N) / scales_N, side="right")
    below_N = np.searchsorted(grid_Q, (-dead_zones_N - predictions_N) / scales_N, side="left")
    up_N, down_N = (above_N + 0.5) / (num + 1), (below_N + 0.5) / (num + 1)
    return np.where(directions_N > 0, up_N, np.where(directions_N < 0, down_N, np.maximum(1 - up_N - down_N, 0.0)))
