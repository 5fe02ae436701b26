"""Split-conformal intervals, the calibrated probability of a direction, and the novelty of an input.

Intervals: split conformal on |residual| ÷ ex-ante volatility (Papadopoulos et al., 2002; Lei et al., JASA 113, 2018),
from the calibration part alone. Without a volatility the symbol's label scale stands in: the unconditional interval.
A live version's intervals are widened by what came true meanwhile (`learning/calibration/adaptive_intervals.py`).
Novelty: Mahalanobis distance of the last row from the training part's, and the worst single feature, each in units of
its own 99.9 % quantile.

Legend: N rows, F features, Q grid points.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.prediction import Direction, Interval, Novelty

INTERVAL_LEVEL = 0.9
NOVELTY_QUANTILE = 0.999
NOVELTY_THRESHOLD = 1.0
NUM_GRID = 1001
"""Points of the stored residual distribution: a probability is read to a thousandth."""
RIDGE = 1e-3
"""Added to the covariance of unit-scaled features, so that a constant one that starts to move is a novelty."""
NUM_TOP_FEATURES = 3
TOO_WIDE = 5.0
"""Abstain where the interval is this many times wider than the unconditional one."""


@dataclass(frozen=True)
class ResidualDistribution:
    """Signed residuals in units of a scale (an ex-ante volatility or the label scale), and their conformal radius."""

    grid_Q: Floats  # sorted
    radius: float

    @classmethod
    def fit(cls, residuals_N: Floats, scales_N: Floats) -> "ResidualDistribution | None":
        """From the calibration part; None where fewer than 20 rows have a scale."""
        usable = np.isfinite(scales_N) & (scales_N > 0)
        ratios = residuals_N[usable] / scales_N[usable]
        num = len(ratios)
        if num < 20:
            return None
        rank = min(num, int(np.ceil((num + 1) * INTERVAL_LEVEL)))
        grid = np.quantile(ratios, np.linspace(0, 1, NUM_GRID)) if num > NUM_GRID else np.sort(ratios)
        return cls(grid, float(np.sort(np.abs(ratios))[rank - 1]))

    def interval(
        self, prediction: float, scale: float, *, may_be_negative: bool = True, widening: float = 1.0
    ) -> Interval:
        """Prediction ± widening x radius x scale; what cannot be negative (a volatility) has no negative bound."""
        reach = self.radius * scale * widening
        lower, upper = prediction - reach, prediction + reach
        if not may_be_negative:
            lower, upper = max(lower, 0.0), max(upper, 0.0)
        return Interval(level=INTERVAL_LEVEL, lower=lower, upper=upper)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {"grid": self.grid_Q.tolist(), "radius": self.radius}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "ResidualDistribution":
        """The inverse of `to_json`."""
        return cls(np.array(plain["grid"]), float(plain["radius"]))

    def probability(self, direction: Direction, prediction: float, *, scale: float, dead_zone: float) -> float:
        """How probable it is that the realised value lies above, below or inside ± `dead_zone`; never quite 0 or 1."""
        num = len(self._grid)
        up = (num - bisect_right(self._grid, (dead_zone - prediction) / scale) + 0.5) / (num + 1)
        down = (bisect_left(self._grid, (-dead_zone - prediction) / scale) + 0.5) / (num + 1)
        if direction == "buy":
            return up
        if direction == "sell":
            return down
        return max(1.0 - up - down, 0.0)

    @cached_property
    def _grid(self) -> list[float]:
        """The grid as Python's own numbers, which a single probability is found among several times faster."""
        return list(self.grid_Q.tolist())


@dataclass(frozen=True)
class NoveltyDetector:
    """Mean and precision of the training part's last rows, and the two 99.9 % quantiles."""

    features: tuple[str, ...]
    mean_F: Floats
    precision_FF: Floats
    distance_quantile: float
    worst_quantile: float

    @classmethod
    def fit(cls, last_rows_NF: Floats32, features: Sequence[str]) -> "NoveltyDetector":
        """From the training windows' last rows, after the window stage."""
        x_NF = last_rows_NF.astype(np.float64)
        mean = x_NF.mean(axis=0)
        covariance = np.cov(x_NF, rowvar=False, bias=True).reshape(len(mean), len(mean))
        precision: Floats = np.linalg.inv(covariance + RIDGE * np.eye(len(mean))).astype(np.float64)
        centred = x_NF - mean
        distances = np.sqrt(np.einsum("nf,fg,ng->n", centred, precision, centred))
        return cls(
            tuple(features),
            mean,
            precision,
            distance_quantile=max(float(np.quantile(distances, NOVELTY_QUANTILE)), 1e-6),
            worst_quantile=max(float(np.quantile(np.abs(centred).max(axis=1), NOVELTY_QUANTILE)), 1e-6),
        )

    def novelty(self, last_row_F: Floats32) -> Novelty:
        """The score of one row, and the features that stand out most, worst first."""
        centred = last_row_F.astype(np.float64) - self.mean_F
        distance = max(float(centred @ self.precision_FF @ centred), 0.0) ** 0.5
        away = np.abs(centred)
        worst = (-away).argsort()[:NUM_TOP_FEATURES].tolist()
        score = max(distance / self.distance_quantile, float(away[worst[0]]) / self.worst_quantile)
        return Novelty(
            score=min(score, 1e12),
            threshold=NOVELTY_THRESHOLD,
            top_features=tuple([self.features[number] for number in worst]),
        )

    def scores(self, last_rows_NF: Floats32) -> Floats:
        """(N,) the score of each row."""
        centred_NF = last_rows_NF.astype(np.float64) - self.mean_F
        squares_N = np.einsum("nf,fg,ng->n", centred_NF, self.precision_FF, centred_NF)
        distances_N = np.sqrt(np.maximum(squares_N, 0.0))
        return np.asarray(
            np.maximum(distances_N / self.distance_quantile, np.abs(centred_NF).max(axis=1) / self.worst_quantile)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "features": list(self.features),
            "mean": self.mean_F.tolist(),
            "precision": self.precision_FF.tolist(),
            "distance_quantile": self.distance_quantile,
            "worst_quantile": self.worst_quantile,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "NoveltyDetector":
        """The inverse of `to_json`."""
        return cls(
            tuple(plain["features"]),
            np.array(plain["mean"]),
            np.array(plain["precision"]),
            float(plain["distance_quantile"]),
            float(plain["worst_quantile"]),
        )
