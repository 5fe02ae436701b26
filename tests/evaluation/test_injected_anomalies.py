"""What is injected is what is said: in copies, at the window's end, in the features that are named, by the seed."""

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.evaluation.injected_anomalies import (
    BURST_FACTOR,
    KINDS,
    LONGEST_EPISODE,
    SHORTEST_EPISODE,
    SPIKE_DEVIATIONS,
    Injected,
    inject,
)

LOOKBACK = 24
IS_LEVEL = (False, False, True)


def market(num: int = 900, num_features: int = 3) -> tuple[Floats32, Ints]:
    """Rows that never repeat a value, and the last rows of some windows in the middle."""
    rows = np.random.default_rng(0).standard_normal((num, num_features)).astype(np.float32)
    rows[:, -1] = np.cumsum(rows[:, -1])
    return rows, np.arange(300, 800)


def injected(**changes: int) -> tuple[Injected, Floats32]:
    """All kinds, and the windows as they were."""
    rows, ends = market()
    found = inject(rows, ends, lookback=LOOKBACK, is_level_F=IS_LEVEL, **{"seed": 3, "num_per_kind": 60} | changes)
    return found, rows[found.ends_N[:, None] + np.arange(1 - LOOKBACK, 1)]


def test_every_kind_is_injected_as_often_as_asked_and_in_real_windows() -> None:
    found, before = injected()
    assert [int(found.of(kind).sum()) for kind in KINDS] == [60] * 4
    assert set(found.ends_N.tolist()) <= set(range(300, 800))
    begins = LOOKBACK - LONGEST_EPISODE
    assert found.windows_NTF[:, :begins].tobytes() == before[:, :begins].tobytes()
    untouched = np.broadcast_to(~found.changed_NF[:, None, :], before.shape)
    assert (found.windows_NTF[untouched] == before[untouched]).all()
    assert all((found.windows_NTF[number] != before[number]).any() for number in range(len(before)))


def test_a_spike_is_one_value_of_the_last_row() -> None:
    found, before = injected()
    moved = (found.windows_NTF - before)[found.of("spike")]
    assert (moved[:, :-1] == 0).all()
    assert ((moved[:, -1] != 0).sum(axis=1) == 1).all()
    sizes = moved[:, -1].sum(axis=1)
    assert (np.abs(sizes) >= SPIKE_DEVIATIONS[0] - 1e-5).all()
    assert (np.abs(sizes) <= SPIKE_DEVIATIONS[1] + 1e-5).all()
    assert 0.25 < np.mean(sizes > 0) < 0.75


def test_a_stale_price_repeats_one_real_row_to_the_end() -> None:
    found, before = injected()
    lengths = set()
    for window, real in zip(found.windows_NTF[found.of("stale_price")], before[found.of("stale_price")], strict=True):
        stands = int(np.argmax((window == window[-1]).all(axis=1)))
        assert (window[stands:] == real[stands]).all()
        assert (window[: stands + 1] == real[: stands + 1]).all()
        lengths.add(LOOKBACK - 1 - stands)
    assert lengths == set(range(SHORTEST_EPISODE, LONGEST_EPISODE + 1))


def test_a_burst_multiplies_the_deviations_from_the_rows_before() -> None:
    found, before = injected()
    for window, real in zip(
        found.windows_NTF[found.of("volatility_burst")], before[found.of("volatility_burst")], strict=True
    ):
        begin = int(np.argmax((window != real).any(axis=1)))
        mean = real[:begin].mean(axis=0)
        np.testing.assert_allclose(window[begin:] - mean, BURST_FACTOR * (real[begin:] - mean), rtol=1e-3, atol=1e-3)


def test_a_broken_correlation_is_one_feature_of_another_time_and_a_level_goes_on_where_it_was() -> None:
    rows, _ = market()
    found, before = injected()
    num_levels = 0
    for number in np.flatnonzero(found.of("broken_correlation")):
        (feature,) = np.flatnonzero(found.changed_NF[number])
        window, real = found.windows_NTF[number, :, feature], before[number, :, feature]
        begin = int(np.argmax(window != real))
        if IS_LEVEL[feature]:
            moves = np.diff(window[begin - 1 :])
            known = np.lib.stride_tricks.sliding_window_view(np.diff(rows[:, feature]), len(moves))
            assert np.abs(known - moves).max(axis=1).min() < 1e-4
            assert abs(window[begin] - real[begin - 1]) < 6
            num_levels += 1
            continue
        known = np.lib.stride_tricks.sliding_window_view(rows[:, feature], LOOKBACK - begin)
        assert (known == window[begin:]).all(axis=1).any()
    assert 5 < num_levels < 55


def test_the_seed_decides_everything_and_the_series_stays_as_it_is() -> None:
    rows, ends = market()
    kept = rows.copy()
    first, again, other = (
        inject(rows, ends, lookback=LOOKBACK, is_level_F=IS_LEVEL, seed=seed, num_per_kind=20) for seed in (1, 1, 2)
    )
    assert first.windows_NTF.tobytes() == again.windows_NTF.tobytes()
    assert first.windows_NTF.tobytes() != other.windows_NTF.tobytes()
    assert rows.tobytes() == kept.tobytes()


def test_a_single_feature_has_no_correlation_to_break() -> None:
    rows, ends = market(num_features=1)
    found = inject(rows, ends, lookback=LOOKBACK, is_level_F=[False], seed=0, num_per_kind=10)
    assert [int(found.of(kind).sum()) for kind in KINDS] == [10, 10, 10, 0]


@pytest.mark.parametrize("lookback", [3, 4, 5])
def test_the_shortest_windows_still_have_a_past(lookback: int) -> None:
    rows, ends = market()
    found = inject(rows, ends[:7], lookback=lookback, is_level_F=IS_LEVEL, seed=0, num_per_kind=10)
    before = rows[found.ends_N[:, None] + np.arange(1 - lookback, 1)]
    assert [int(found.of(kind).sum()) for kind in KINDS] == [7] * 4  # no more than there are windows
    assert (found.windows_NTF[:, 0] == before[:, 0]).all()
    assert (found.windows_NTF[:, -1] != before[:, -1]).any(axis=1).all()
