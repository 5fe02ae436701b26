"""Input drift: population stability index and Kolmogorov-Smirnov, of live inputs against training's.

The reference, how each input was distributed on the training part as the network read its last rows, is kept in
`recipe.json`.

    PSI = Σ over the reference's tenths of (live share - its share) · log (live share ÷ its share)
    KS  = the largest distance of the two distribution functions

Conventions for the PSI: under 0.1 no change, 0.1 to 0.25 some, above a major one (Siddiqi, Credit Risk Scorecards,
2006). They hold for many rows only: without any drift the PSI of B bins is about chi-squared with B - 1 degrees of
freedom times (1/n + 1/m), so B - 1 times that in the mean (Yurdakul and Naranjo, Journal of Risk Model Validation 14,
2020). So an alarm needs both: the convention, and a PSI that is rarer than chance allows; and where chance alone might
look like a major change, the absence of an alarm is `insufficient_data`, not `stable`.

Rows are no independent draws: neighbouring bars resemble each other, and so do symbols at one bar. What both tests are
told is the effective number of rows: as many independent ones would leave the mean of the feature's ranks as unsure.
Ranks, since both tests look at nothing else. A short segment cannot see how long its own memory is, so it is taken to
be at least as long as training's. What training itself was too short to see, moods of a year or more, looks like drift:
`major` is a reason to look and not to stop.

Legend: N live rows in time order (of the reference: training windows), F features, Q grid points, B bins, T bars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.outcomes import Drift, DriftState, FeatureDrift
from ml_workbench_service.market.significance import mean_by_moment

NUM_BINS = 10
PSI_MODERATE, PSI_MAJOR = 0.1, 0.25
FALSE_ALARMS = 0.01
"""Of a whole report, by chance: the threshold of each feature is Bonferroni's."""
FEWEST_EFFECTIVE = 10.0
"""Effective rows under which nothing is said: one a bin."""
WINDOW_TIMES = 5.0
"""Autocorrelations are summed up to this many correlation times (Sokal, Monte Carlo methods, 1996, section 3)."""
SAME_RANK = 1e-12
"""Variance of ranks that is nothing but rounding."""
PRIOR_COUNT = 0.5
"""Added to each bin's live rows, so that an empty one has a logarithm (Jeffreys)."""


@dataclass(frozen=True)
class Reference:
    """One feature's distribution in training.

    Attributes:
        grid_Q: values at equal steps of probability from 0 to 1, each one that occurred.
        num_effective: as many independent rows would tell as much.
        persistence: correlation of one bar's mean rank with the next bar's, if it fades evenly.
    """

    grid_Q: Floats
    num_effective: float
    persistence: float = 0.0

    @classmethod
    def fit(cls, values_N: Floats, bars_N: Ints, *, num_grid: int) -> "Reference":
        """From rows in the order of time, with the bar of each."""
        grid_Q = np.quantile(values_N, np.linspace(0, 1, num_grid), method="inverted_cdf")
        ranks_N = cls(grid_Q, 1.0).ranks(values_N)
        means_T = mean_by_moment(ranks_N, bars_N)
        time = correlation_time(means_T)
        persistence = ((time - 1) / (time + 1)) ** (1 / _bars_apart(bars_N))
        return cls(grid_Q, _num_effective(ranks_N, means_T, time), persistence)

    def ranks(self, values: Floats) -> Floats:
        """The share of training below each value, with half of what equals it."""
        return (self.below(values, inclusive=False) + self.below(values, inclusive=True)) / 2

    def below(self, values: Floats, *, inclusive: bool) -> Floats:
        """The share of training below each value, or below and at it; linear between grid points."""
        steps, first, counts = np.unique(self.grid_Q, return_index=True, return_counts=True)
        last = max(len(self.grid_Q) - 1, 1)
        below, upto = first / last, (first + counts - 1) / last
        place = np.clip(np.searchsorted(steps, values, side="right") - 1, 0, None)
        following = np.minimum(place + 1, len(steps) - 1)
        width = steps[following] - steps[place]
        way = np.divide(values - steps[place], width, out=np.zeros(len(values)), where=width > 0)
        shares = upto[place] + np.clip(way, 0, 1) * np.maximum(below[following] - upto[place], 0)
        if not inclusive:
            shares = np.where(values == steps[place], below[place], shares)
        return np.where(values < steps[0], 0.0, np.where(values > steps[-1], 1.0, shares))


def drift_of(feature: str, values_N: Floats, bars_N: Ints, reference: Reference, *, num_features: int) -> FeatureDrift:
    """One feature's drift; see the module.

    Args:
        bars_N: the bar of each row, ascending; rows of one bar are not independent.
        num_features: in the report, of which one may be an alarm by chance.
    """
    low, high = float(reference.grid_Q[0]), float(reference.grid_Q[-1])
    outside = float(np.mean((values_N < low) | (values_N > high))) if len(values_N) else 0.0
    effective = num_effective(reference.ranks(values_N), bars_N, persistence=reference.persistence)
    psi = psi_by_chance = psi_threshold = statistic = p_value = None
    state: DriftState = "insufficient_data"
    if low == high:
        state = "constant"
    elif effective >= FEWEST_EFFECTIVE:
        from scipy.special import chdtri, kolmogorov  # the API process does without scipy until somebody asks

        psi, num_bins = population_stability(values_N, reference)
        spread = 1 / effective + 1 / reference.num_effective
        psi_by_chance = (num_bins - 1) * spread
        psi_threshold = float(chdtri(max(num_bins - 1, 1), FALSE_ALARMS / num_features)) * spread
        statistic = ks_distance(values_N, reference)
        root = spread**-0.5
        p_value = float(kolmogorov((root + 0.12 + 0.11 / root) * statistic))  # Stephens, JRSS B 32, 1970
        state = _state(psi, psi_threshold)
    return FeatureDrift(
        feature=feature,
        state=state,
        psi=psi,
        psi_by_chance=psi_by_chance,
        psi_threshold=psi_threshold,
        ks_statistic=statistic,
        ks_p_value=p_value,
        outside_share=outside,
        num_rows=len(values_N),
        num_effective=effective,
    )


def population_stability(values_N: Floats, reference: Reference) -> tuple[float, int]:
    """The PSI over the reference's tenths, and how many bins there are: fewer where a value holds more than a tenth."""
    grid = reference.grid_Q
    places = np.linspace(0, len(grid) - 1, NUM_BINS + 1).round().astype(np.int64)
    edges = np.unique(grid[places[1:-1]])
    expected = np.diff(np.concatenate([[0.0], reference.below(edges, inclusive=True), [1.0]]))
    if expected[-1] <= 0:  # the last edge is the largest value
        edges, expected = edges[:-1], expected[:-1]
    counts = np.bincount(np.searchsorted(edges, values_N, side="left"), minlength=len(expected))
    found = (counts + PRIOR_COUNT) / (len(values_N) + PRIOR_COUNT * len(expected))
    return float(np.sum((found - expected) * np.log(found / expected))), len(expected)


def ks_distance(values_N: Floats, reference: Reference) -> float:
    """The largest distance of the distribution functions, to half a step of the grid; ties are no trouble."""
    ordered = np.sort(values_N)
    at = np.unique(np.concatenate([ordered, reference.grid_Q]))
    upto = np.searchsorted(ordered, at, side="right") / len(ordered)
    below = np.searchsorted(ordered, at, side="left") / len(ordered)
    distances = (
        np.abs(upto - reference.below(at, inclusive=True)),
        np.abs(below - reference.below(at, inclusive=False)),
    )
    return float(np.max(distances))


def num_effective(ranks_N: Floats, bars_N: Ints, *, persistence: float = 0.0) -> float:
    """As many independent rows would leave the mean rank as unsure as these do; at most as many as there are.

    Rows of one bar are averaged first, which counts what symbols share; then the bars' autocorrelation is summed, and
    taken to be no less than a process of this persistence has at these bars' distance.
    """
    if len(ranks_N) < 2:
        return float(len(ranks_N))
    means_T = mean_by_moment(ranks_N, bars_N)
    kept = persistence ** _bars_apart(bars_N)
    return _num_effective(ranks_N, means_T, max(correlation_time(means_T), (1 + kept) / (1 - kept)))


def _num_effective(ranks_N: Floats, means_T: Floats, time: float) -> float:
    """The same of bars' means with this correlation time."""
    num = len(ranks_N)
    if num < 2:
        return float(num)
    variance = float(np.var(ranks_N))
    of_means = float(np.var(means_T)) * time
    if variance < SAME_RANK:
        return float(len(means_T))  # it is stuck
    if of_means < SAME_RANK / num:
        return float(num)
    return float(min(variance * len(means_T) / of_means, num))


def correlation_time(values_T: Floats) -> float:
    """1 + twice the sum of the autocorrelations, at least 1: how many neighbours tell what one would tell alone."""
    num = len(values_T)
    centred = values_T - values_T.mean()
    total = float(centred @ centred)
    if num < 3 or total <= 0:
        return 1.0
    size = 1 << (2 * num - 1).bit_length()  # zeros behind, so that nothing wraps around
    spectrum = np.fft.rfft(centred, n=size)
    correlations = np.fft.irfft(spectrum * np.conj(spectrum), n=size)[:num] / total
    times = 1 + 2 * np.cumsum(correlations[1:])
    ends = np.flatnonzero(np.arange(1, num) >= WINDOW_TIMES * times)
    time = float(times[ends[0]]) if len(ends) else float(times.max())
    return max(time, 1.0)


def _bars_apart(bars_N: Ints) -> float:
    """Bars from one that has rows to the next, in the mean; closures are counted alike in training and live."""
    num = np.count_nonzero(np.diff(bars_N)) + 1
    return max(float(bars_N[-1] - bars_N[0]) / (num - 1), 1.0) if num > 1 else 1.0


def _state(psi: float, threshold: float) -> DriftState:
    if psi < PSI_MODERATE or psi <= threshold:
        return "stable" if threshold <= PSI_MAJOR else "insufficient_data"
    return "major" if psi >= PSI_MAJOR else "moderate"


NUM_GRID = 201
"""Quantiles in steps of half a percent: a distance of distribution functions is known to a quarter of one."""
_WORST_FIRST = ("major", "moderate", "stable", "insufficient_data", "constant")


@dataclass(frozen=True)
class InputReference:
    """Each feature's reference.

    Attributes:
        num_rows: training windows behind it.
    """

    features: tuple[str, ...]
    references: tuple[Reference, ...]
    num_rows: int

    @classmethod
    def fit(cls, last_rows_NF: Floats32, bars_N: Ints, features: Sequence[str]) -> Self:
        """From the training windows' last rows, after the window stage.

        Args:
            bars_N: number of the bar of each; rows of several symbols at one bar count as one.
        """
        in_time = np.argsort(bars_N, kind="stable")
        references = tuple(
            Reference.fit(column_N, bars_N[in_time], num_grid=NUM_GRID)
            for column_N in last_rows_NF[in_time].T.astype(np.float64)
        )
        return cls(tuple(features), references, len(last_rows_NF))

    def drift(self, rows_MF: Floats32, bars_M: Ints) -> Drift:
        """Every feature's drift, worst first; rows in the order of time, with the bar of each."""
        found = [
            drift_of(name, rows_MF[:, column].astype(np.float64), bars_M, reference, num_features=len(self.features))
            for column, (name, reference) in enumerate(zip(self.features, self.references, strict=True))
        ]
        found.sort(key=_badness)
        worst = found[0].feature if found and found[0].psi is not None else None
        return Drift(worst_feature=worst, num_rows=len(rows_MF), features=tuple(found))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`; each value is written as briefly as its float32 allows."""
        return {
            "features": list(self.features),
            "num_rows": self.num_rows,
            "num_effective": [round(each.num_effective, 1) for each in self.references],
            "persistence": [round(each.persistence, 6) for each in self.references],
            "grids": [[float(str(np.float32(value))) for value in each.grid_Q] for each in self.references],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        grids = [np.array(grid, dtype=np.float32).astype(np.float64) for grid in plain["grids"]]
        references = tuple(map(Reference, grids, plain["num_effective"], plain["persistence"]))
        return cls(tuple(plain["features"]), references, int(plain["num_rows"]))


def _badness(drift: FeatureDrift) -> tuple[int, float]:
    return _WORST_FIRST.index(drift.state), -(drift.psi or 0.0)
