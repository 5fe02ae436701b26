"""Split-conformal intervals, the calibrated probability of a direction, and the novelty of an input.

Intervals: split conformal on |residual| ÷ ex-ante volatility (Papadopoulos et al., 2002; Lei et al., JASA 113, 2018),
from the calibration part alone. Without a volatility the symbol's label scale stands in: the unconditional interval.
A live version's intervals are widened by what came true meanwhile (`learning/calibration/adaptive_intervals.py`).
Novelty: Mahalanobis distance of the last row from the training part's, and the worst single feature, each in units of
its own 99.9 % quantile. One row's score is the same to the bit alone and among others: products are summed feature by
feature, in their order, for a BLAS product's last bits depend on the number of rows.

Legend: N rows, F features, Q grid points.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import constructed
from ml_workbench_service.contracts.market import Bools, Floats, Floats32
from ml_workbench_service.contracts.prediction import Direction, Interval, Novelty
from ml_workbench_service.contracts.runs.columns import Coded, Nested, Numbers

INTERVAL_LEVEL = 0.9
NOVELTY_QUANTILE = 0.999
NOVELTY_THRESHOLD = 1.0
NUM_GRID = 1001
"""Points of the stored residual distribution: a probability is read to a thousandth."""
RIDGE = 1e-3
"""Added to the covariance of unit-scaled features, so that a constant one that starts to move is a novelty."""
NUM_TOP_FEATURES = 3
MOST_NOVEL = 1e12
MOST_AS_NUMBERS = 8
"""Features whose products a loop over Python's numbers sums faster than numpy's calls."""
TOO_WIDE = 5.0
"""Abstain where the interval is this many times wider than the unconditional one."""


_in_order = np.add.accumulate  # a sum whose order is said; `sum` and BLAS choose one by the shape


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
        return interval_of(INTERVAL_LEVEL, lower, upper)

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

    def probabilities(
        self, is_buy_N: Bools, is_sell_N: Bools, prediction_N: Floats, *, scale_N: Floats, dead_zone_N: Floats
    ) -> Floats:
        """(N,) `probability` of each row; of one that neither buys nor sells that it stays inside."""
        num = len(self.grid_Q)
        above_N = np.searchsorted(self.grid_Q, (dead_zone_N - prediction_N) / scale_N, side="right")
        below_N = np.searchsorted(self.grid_Q, (-dead_zone_N - prediction_N) / scale_N, side="left")
        up_N, down_N = (num - above_N + 0.5) / (num + 1), (below_N + 0.5) / (num + 1)
        inside_N = 1.0 - up_N - down_N
        return np.where(is_buy_N, up_N, np.where(is_sell_N, down_N, np.where(inside_N < 0.0, 0.0, inside_N)))

    @cached_property
    def _grid(self) -> list[float]:
        """The grid as Python's own numbers, which a single probability is found among several times faster."""
        return list(self.grid_Q.tolist())


def interval_of(level: float, lower: float, upper: float) -> Interval:
    """An interval; raises pydantic's ValidationError where an end is no finite number."""
    if isfinite(lower) and isfinite(upper):
        return constructed(Interval, {"level": level, "lower": lower, "upper": upper})
    return Interval(level=level, lower=lower, upper=upper)


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
        distance, away, worst = self._measured(last_row_F)
        score = min(max(distance / self.distance_quantile, away[worst[0]] / self.worst_quantile), MOST_NOVEL)
        top_features = tuple([self.features[number] for number in worst])
        if not isfinite(score):
            return Novelty(score=score, threshold=NOVELTY_THRESHOLD, top_features=top_features)  # says so
        return constructed(Novelty, {"score": score, "threshold": NOVELTY_THRESHOLD, "top_features": top_features})

    def _measured(self, last_row_F: Floats32) -> tuple[float, list[float], list[int]]:
        """The distance of one row, how far each feature is away from its mean, and the worst features.

        Few features are faster as Python's own numbers, whose products and sums are the same to the bit in this order.
        """
        if len(self.features) <= MOST_AS_NUMBERS:
            mean, precision = self._numbers
            centred = [value - centre for value, centre in zip(last_row_F.tolist(), mean, strict=True)]
            square = 0.0
            for number, own in enumerate(centred):
                weighted = 0.0
                for value, weights in zip(centred, precision, strict=True):
                    weighted += value * weights[number]
                square += weighted * own
            if isfinite(square):
                near = [-abs(value) for value in centred]
                worst = sorted(range(len(near)), key=near.__getitem__)[:NUM_TOP_FEATURES]
                return sqrt(max(square, 0.0)), [-value for value in near], worst
        centred_F = last_row_F.astype(np.float64) - self.mean_F
        weighted_F = _in_order(centred_F[:, None] * self.precision_FF)[-1]
        distance = sqrt(max(float(_in_order(weighted_F * centred_F)[-1]), 0.0))
        away_F = np.abs(centred_F)
        return distance, away_F.tolist(), (-away_F).argsort(kind="stable")[:NUM_TOP_FEATURES].tolist()

    @cached_property
    def _numbers(self) -> tuple[list[float], list[list[float]]]:
        """Means and precisions as Python's own numbers."""
        return self.mean_F.tolist(), self.precision_FF.tolist()

    def scores(self, last_rows_NF: Floats32) -> Floats:
        """(N,) the score of each row."""
        return self._scores(last_rows_NF.astype(np.float64) - self.mean_F)

    def novelties(self, last_rows_NF: Floats32) -> Nested:
        """`novelty` of each row, as a column."""
        centred_NF = last_rows_NF.astype(np.float64) - self.mean_F
        worst_N3 = np.argsort(-np.abs(centred_NF), axis=1, kind="stable")[:, :NUM_TOP_FEATURES]
        num, keys_N = len(self.features), np.zeros(len(centred_NF), dtype=np.int64)
        for column_N in worst_N3.T:
            keys_N = keys_N * num + column_N
        _, firsts, codes_N = np.unique(keys_N, return_index=True, return_inverse=True)
        tops = [tuple([self.features[number] for number in worst_N3[first].tolist()]) for first in firsts.tolist()]
        scores_N = self._scores(centred_NF)
        fields = {
            "score": Numbers(np.where(scores_N > MOST_NOVEL, MOST_NOVEL, scores_N)),
            "threshold": Coded.same(NOVELTY_THRESHOLD, len(scores_N)),
            "top_features": Coded(tuple(tops), codes_N),
        }
        return Nested(Novelty, fields)

    def _scores(self, centred_NF: Floats) -> Floats:
        weighted_NF = centred_NF[:, :1] * self.precision_FF[0]
        for number in range(1, len(self.mean_F)):
            weighted_NF += centred_NF[:, number : number + 1] * self.precision_FF[number]
        products_FN = (weighted_NF * centred_NF).T
        squares_N = products_FN[0].copy()
        for each_N in products_FN[1:]:
            squares_N += each_N
        distances_N = np.sqrt(np.maximum(squares_N, 0.0))
        worst_N = np.abs(centred_NF).max(axis=1)
        return np.asarray(np.maximum(distances_N / self.distance_quantile, worst_N / self.worst_quantile))

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
