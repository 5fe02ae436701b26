"""Bars with another future: the past stays to the last bit, and nothing impossible comes after it."""

from collections.abc import Sequence

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Bars, Floats
from ml_workbench_service.evaluation.leakage.perturbations import (
    JUMP,
    cut_after,
    lifted,
    mirrored,
    replaced_after,
    wild_elsewhere,
)
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.targets import ewma_volatility

NUM = 400
MOMENT = 250
PRICES = ("open", "high", "low", "close")


def bars(close: Floats | None = None, **extra: Floats) -> Bars:
    """Hourly bars; a random walk unless closes are given."""
    chance = np.random.default_rng(3)
    close = 1.1 * np.exp(0.001 * np.cumsum(chance.standard_normal(NUM))) if close is None else close
    opened = np.append(close[:1], close[:-1])
    times = HOUR_MS * np.arange(1, len(close) + 1)
    return Bars(
        symbol="EUR/USD", timeframe="1h", opened_ms=times, available_at_ms=times + HOUR_MS, open=opened,
        high=np.maximum(opened, close), low=np.minimum(opened, close), close=close, data_source="file", extra=extra,
    )  # fmt: skip


def columns(of: Bars, names: Sequence[str] = PRICES) -> list[Floats]:
    """Prices and extra columns."""
    return [getattr(of, name) for name in names] + list(of.extra.values())


def test_replacing_leaves_the_past_as_it_was_and_changes_every_later_price() -> None:
    true = bars(own=np.random.default_rng(1).standard_normal(NUM), spread=np.full(NUM, 2e-5))
    other = replaced_after(true, int(true.available_at_ms[MOMENT]), seed=5)
    for before, after in zip(columns(true), columns(other), strict=True):
        np.testing.assert_array_equal(before[: MOMENT + 1], after[: MOMENT + 1])
        assert (before[MOMENT + 1 :] != after[MOMENT + 1 :]).all()
    np.testing.assert_array_equal(true.available_at_ms, other.available_at_ms)


def test_the_first_replaced_bar_jumps_and_the_price_stays_within_reach_of_the_true_one() -> None:
    true = bars()
    typical = float(np.median(np.abs(np.diff(np.log(true.close)))))
    for seed in range(5):
        other = replaced_after(true, int(true.available_at_ms[MOMENT]), seed=seed)
        path = np.log(other.close / true.close)
        assert abs(path[MOMENT + 1]) == pytest.approx(JUMP * typical, rel=0.01)
        assert np.abs(path).max() < 2.0


def test_replaced_bars_are_possible_bars() -> None:
    other = replaced_after(bars(), 0, seed=5)
    assert (other.low > 0).all()
    assert (other.low <= np.minimum(other.open, other.close)).all()
    assert (other.high >= np.maximum(other.open, other.close)).all()


def test_a_price_that_stands_still_stands_still_in_another_future() -> None:
    close = np.append(bars().close[:300], np.full(100, 1.1))
    other = replaced_after(bars(close), int(bars().available_at_ms[MOMENT]), seed=5)
    assert len(np.unique(other.close[300:])) == 1
    flat = slice(301, None)
    np.testing.assert_array_equal(other.high[flat], other.low[flat])
    np.testing.assert_array_equal(other.open[flat], other.close[flat])


def test_missing_values_of_an_own_column_stay_missing_and_zeros_zero() -> None:
    own = np.where(np.arange(NUM) % 3 == 0, np.nan, np.where(np.arange(NUM) % 3 == 1, 0.0, 1.0))
    other = replaced_after(bars(own=own), 0, seed=5).extra["own"]
    np.testing.assert_array_equal(np.isnan(own), np.isnan(other))
    np.testing.assert_array_equal(own == 0.0, other == 0.0)


def test_two_seeds_are_two_futures() -> None:
    first, second = (replaced_after(bars(), 0, seed=seed).close for seed in (1, 2))
    assert (first[1:] != second[1:]).all()  # the first bar has no move


def test_cutting_keeps_what_is_known_and_nothing_else() -> None:
    true = bars(own=np.arange(NUM, dtype=np.float64))
    cut = cut_after(true, int(true.available_at_ms[MOMENT]))
    assert len(cut) == MOMENT + 1
    for before, after in zip(columns(true), columns(cut), strict=True):
        np.testing.assert_array_equal(before[: MOMENT + 1], after)


def test_lifting_moves_the_bars_after_each_row_and_no_others() -> None:
    close, rows, horizon = bars().close, np.array([10, 50]), 3
    moved = np.flatnonzero(lifted(close, rows, horizon) != close)
    assert moved.tolist() == [11, 12, 13, 51, 52, 53]


def test_wild_closes_are_true_around_the_rows_alone() -> None:
    close, rows, horizon = bars().close, np.array([10, 50]), 3
    same = np.flatnonzero(wild_elsewhere(close, rows, horizon, seed=1) == close)
    assert same.tolist() == [10, 11, 12, 13, 50, 51, 52, 53]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_mirrored_moves_keep_their_squares(elsewhere: bool) -> None:
    close, rows, horizon = bars().close, np.array([10, 50]), 3
    other = mirrored(close, rows, horizon, elsewhere=elsewhere)
    signs = np.sign(np.diff(np.log(other)) / np.diff(np.log(close)))
    turned = np.flatnonzero(signs < 0) + 1
    own = np.array([11, 12, 13, 51, 52, 53])
    assert turned.tolist() == (np.setdiff1d(np.arange(1, NUM), own) if elsewhere else own).tolist()
    np.testing.assert_allclose(ewma_volatility(other), ewma_volatility(close), rtol=1e-9)
