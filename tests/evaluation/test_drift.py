"""Drift is found where it was injected, and not where there is none: rows that resemble each other included."""

import numpy as np
import pytest
from scipy import signal, stats

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation.drift import (
    NUM_GRID,
    PSI_MAJOR,
    InputReference,
    Reference,
    correlation_time,
    ks_distance,
    num_effective,
    population_stability,
)

FEATURES = ("a", "b")
NUM_TRAIN = 3000
NUM_SEEDS = 200


def series(kind: str, num: int, chance: np.random.Generator) -> Floats:
    """(num, features) values: independent, heavy tails, with atoms, or with a memory of some 20 bars."""
    shape = (num, len(FEATURES))
    if kind == "normal":
        return chance.standard_normal(shape)
    if kind == "heavy":
        return chance.standard_t(3, shape)
    if kind == "atoms":
        return np.maximum(chance.standard_normal(shape), 0.3).round(1)
    return np.asarray(signal.lfilter([1.0], [1.0, -0.9], chance.standard_normal(shape), axis=0))


def fitted(values: Floats) -> InputReference:
    """The reference of these training rows, as it comes back from its file."""
    reference = InputReference.fit(values.astype(np.float32), np.arange(len(values)), FEATURES)
    return InputReference.from_json(reference.to_json())


@pytest.mark.parametrize(("kind", "num"), [("normal", 100), ("heavy", 300), ("atoms", 300), ("memory", 600)])
def test_rows_of_the_same_distribution_are_no_drift(kind: str, num: int) -> None:
    """Over 200 seeds, at most 2 % of the reports have an alarm; the conventions alone would have alarmed far more."""
    alarms, small = 0, 0
    for seed in range(NUM_SEEDS):
        values = series(kind, NUM_TRAIN + 300 + num, np.random.default_rng(seed))
        found = fitted(values[:NUM_TRAIN]).drift(values[-num:].astype(np.float32), np.arange(num))
        alarms += any(each.state in ("moderate", "major") for each in found.features)
        small += sum(each.ks_p_value is not None and each.ks_p_value < 0.01 for each in found.features)
    assert alarms <= 0.02 * NUM_SEEDS
    assert small <= 0.02 * NUM_SEEDS * len(FEATURES)


@pytest.mark.parametrize(("kind", "num", "shift"), [("normal", 300, 0.7), ("heavy", 300, 1.0), ("memory", 4000, 3.0)])
def test_an_injected_shift_is_found_and_named(kind: str, num: int, shift: float) -> None:
    for seed in range(10):
        values = series(kind, NUM_TRAIN + 300 + num, np.random.default_rng(seed))
        live = values[-num:].copy()
        live[:, 1] += shift
        found = fitted(values[:NUM_TRAIN]).drift(live.astype(np.float32), np.arange(num))
        assert found.worst_feature == "b"
        assert found.features[0].state in ("moderate", "major")
        assert found.features[0].ks_p_value is not None
        assert found.features[0].ks_p_value < 0.01
        assert found.features[1].state in ("stable", "insufficient_data")


def test_a_feature_that_got_stuck_or_changed_its_unit_is_a_major_drift() -> None:
    values = series("normal", NUM_TRAIN, np.random.default_rng(0))
    live = series("normal", 200, np.random.default_rng(1))
    live[:, 0], live[:, 1] = 0.1, live[:, 1] * 100
    found = {each.feature: each for each in fitted(values).drift(live.astype(np.float32), np.arange(200)).features}
    assert (found["a"].state, found["b"].state) == ("major", "major")
    assert found["b"].outside_share > 0.9
    assert found["a"].outside_share == 0


def test_few_rows_say_that_they_are_few() -> None:
    reference = fitted(series("normal", NUM_TRAIN, np.random.default_rng(0)))
    for num in (1, 2, 9):
        found = reference.drift(np.zeros((num, 2), dtype=np.float32), np.arange(num))
        assert {each.state for each in found.features} == {"insufficient_data"}
        assert found.worst_feature is None


def test_a_constant_of_training_has_no_index_but_a_share_outside() -> None:
    values = series("normal", 500, np.random.default_rng(0))
    values[:, 0] = 1.5
    reference = fitted(values)
    still = reference.drift(values.astype(np.float32), np.arange(500))
    constant = next(each for each in still.features if each.feature == "a")
    assert (constant.state, constant.psi, constant.outside_share) == ("constant", None, 0.0)
    values[:, 0] = 1.6
    moved = next(
        each for each in reference.drift(values.astype(np.float32), np.arange(500)).features if each.feature == "a"
    )
    assert moved.outside_share == 1.0


def test_the_distance_is_scipys_to_half_a_step_of_the_grid() -> None:
    for seed, (train, live) in enumerate(
        [
            (stats.norm.rvs(size=5000, random_state=1), stats.norm.rvs(loc=0.2, size=400, random_state=2)),
            (stats.expon.rvs(size=5000, random_state=3), stats.gamma.rvs(2, size=300, random_state=4)),
            (stats.poisson.rvs(3, size=5000, random_state=5), stats.poisson.rvs(4, size=500, random_state=6)),
        ]
    ):
        reference = Reference.fit(train.astype(np.float64), np.arange(len(train)), num_grid=NUM_GRID)
        wanted = stats.ks_2samp(train, live).statistic
        assert ks_distance(live.astype(np.float64), reference) == pytest.approx(wanted, abs=0.006), seed


def test_without_drift_the_index_is_as_large_as_chance_says() -> None:
    """Its mean over samples of n and m is (bins - 1) (1/n + 1/m)."""
    found = []
    for seed in range(300):
        chance = np.random.default_rng(seed)
        reference = Reference.fit(chance.standard_normal(2000), np.arange(2000), num_grid=NUM_GRID)
        index, num_bins = population_stability(chance.standard_normal(500), reference)
        assert num_bins == 10
        found.append(index)
    assert np.mean(found) == pytest.approx(9 * (1 / 2000 + 1 / 500), rel=0.1)


def test_a_moved_normal_has_the_index_that_the_formula_has() -> None:
    chance = np.random.default_rng(0)
    reference = Reference.fit(chance.standard_normal(200_000), np.arange(200_000), num_grid=NUM_GRID)
    edges = stats.norm.ppf(np.linspace(0, 1, 11))
    expected, moved = np.diff(stats.norm.cdf(edges)), np.diff(stats.norm.cdf(edges - 0.6))
    wanted = float(np.sum((moved - expected) * np.log(moved / expected)))
    assert wanted > PSI_MAJOR
    found, _ = population_stability(chance.standard_normal(200_000) + 0.6, reference)
    assert found == pytest.approx(wanted, rel=0.03)


def test_effective_rows_are_those_that_the_mean_behaves_like() -> None:
    """Independent ones count whole, copies of a bar's other symbol not at all, a memory of 19 bars one in 19."""
    chance = np.random.default_rng(0)
    alone = chance.random(4000)
    assert num_effective(alone, np.arange(4000)) == pytest.approx(4000, rel=0.15)
    assert num_effective(np.repeat(alone, 2), np.repeat(np.arange(4000), 2)) == pytest.approx(4000, rel=0.15)
    remembered = np.argsort(np.argsort(series("memory", 20_000, chance)[:, 0])) / 20_000
    assert correlation_time(remembered) == pytest.approx(19, rel=0.25)
    assert num_effective(remembered, np.arange(20_000)) == pytest.approx(20_000 / 19, rel=0.25)
    sparse = remembered[::100]
    assert num_effective(sparse, 100 * np.arange(200), persistence=0.9) == pytest.approx(200, rel=0.2)
