"""Information by counting: the formula, ranks, and what is held out from noise and from a signal."""

import numpy as np
import pytest

from ml_workbench_service.learning.feature_search.mutual_information import (
    COLUMN_BINS,
    Counter,
    bias,
    held_out_information,
    information,
    ranked,
    shared,
)


def test_information_is_what_the_formula_says() -> None:
    table = np.array([[30.0, 10.0], [10.0, 50.0]])
    p = table / 100
    expected = sum(p[i, j] * np.log(p[i, j] / (p[i].sum() * p[:, j].sum())) for i in (0, 1) for j in (0, 1))
    assert information(table) == pytest.approx(expected)
    assert information(np.full((3, 3), 7.0)) == pytest.approx(0)
    assert bias(np.full((5, 3), 10.0)) == pytest.approx(4 * 2 / 300)
    assert bias(np.array([[5.0, 5.0], [0.0, 0.0]])) == 0


def test_ranks_depend_on_order_alone_share_ties_and_keep_missing_apart() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert (ranked(values, 5) == ranked(np.exp(3 * values), 5)).all()
    assert (np.bincount(ranked(values, 5)) == 200).all()
    rare = np.where(np.arange(1000) % 10 == 0, 1.0, 0.0)
    for few in (rare, 1 - rare):
        bins = ranked(few, 5)
        assert len(np.unique(bins)) == 2
        assert (bins[few == 0].max(initial=0) < bins[few == 1]).all()
    values[7] = np.nan
    assert list(np.flatnonzero(ranked(values, 5) == 5)) == [7]


def test_held_out_information_is_negative_for_noise_and_near_the_plug_in_for_a_signal() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 20_000).astype(np.uint8)
    columns = np.stack([rng.integers(0, 5, 20_000), np.where(rng.random(20_000) < 0.3, target, 4)]).astype(np.uint8)
    folds = np.arange(20_000) * 5 // 20_000
    counts = Counter(columns, folds, num_groups=5, num_bins=COLUMN_BINS, num_targets=3).counts(target)
    assert counts.sum() == 2 * 20_000
    scores = held_out_information(counts, counts.sum(axis=1, keepdims=True) - counts).mean(axis=1)
    assert -0.001 < scores[0] < 0
    assert scores[1] == pytest.approx(float(information(counts.sum(axis=1))[1]), rel=0.02)


def test_missing_values_count_for_nothing() -> None:
    columns, target = np.array([[0, 1, 5, 2]], dtype=np.uint8), np.array([0, 3, 1, 2], dtype=np.uint8)
    groups = np.zeros(4, dtype=np.int64)
    counts = Counter(columns, groups, num_groups=1, num_bins=5, num_targets=3).counts(target)
    assert counts.sum() == 2
    assert counts[0, 0, 0, 0] == counts[0, 0, 2, 2] == 1


def test_shared_information_runs_from_none_to_all() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 9000))
    columns = np.stack([ranked(each, 5) for each in (one, other, -one, 0.95 * one + np.sqrt(1 - 0.95**2) * other)])
    alike = shared(columns, num_bins=5)
    assert alike == pytest.approx(alike.T)
    assert alike[0] == pytest.approx([1, 0, 1, 0.5], abs=0.03)
