"""TradingSeries and backtest: what a step pays, where a position is closed, and that the live agent pays the same."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.positions import Bar, FillPoint, Position, open_step, realise
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.market.backtest import backtest
from ml_workbench_service.market.costs import pip_size, swap_cost, unit_cost
from ml_workbench_service.market.trading_series import (
    RUIN_LOG_RETURN,
    TradingSeries,
    build_trading_series,
    segment_starts,
    step_rewards,
    step_table,
)
from tests.market.series_for_tests import COSTS, HOUR_MS, START_MS, hours, series_of, stacked, window_ends

pytestmark = pytest.mark.processor

YEAR = 6240.0
FILLS: tuple[FillRule, ...] = ("next_open", "next_close")


def small(prices: list[float], *, start_ms: int = START_MS, costs: Costs = COSTS["EUR/USD"]) -> TradingSeries:
    """Consecutive hours of EUR/USD."""
    return build_trading_series(
        stacked(np.array(prices), start_ms + np.arange(len(prices)) * HOUR_MS),
        costs={"EUR/USD": costs},
        fill="next_open",
    )


pips = st.floats(-5, 5, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_row_costs_what_the_scalar_functions_say(data: st.DataObject) -> None:
    symbol = data.draw(st.sampled_from(["EUR/USD", "USD/JPY", "USD/CAD"]))
    costs = Costs(
        spread_pips=data.draw(st.floats(0, 50, allow_subnormal=False)),
        commission_bp=data.draw(st.floats(0, 20, allow_subnormal=False)),
        slippage_bp=data.draw(st.floats(0, 20, allow_subnormal=False)),
        swap_long_pips=data.draw(pips),
        swap_short_pips=data.draw(pips),
    )
    prices = data.draw(st.lists(st.floats(0.01, 1000, allow_subnormal=False), min_size=2, max_size=12))
    known = START_MS + np.cumsum(data.draw(st.lists(st.integers(1, 200), min_size=len(prices), max_size=len(prices))))
    known = known * 1 + np.arange(len(prices)) * 37 * HOUR_MS
    spreads = data.draw(
        st.lists(
            st.one_of(st.just(math.nan), st.floats(0, 9, allow_subnormal=False)), min_size=len(prices), max_size=99
        )
    )
    series = build_trading_series(
        stacked(np.array(prices), known, symbol=symbol, spread_R=np.array(spreads[: len(prices)]) * pip_size(symbol)),
        costs={symbol: costs},
        fill="next_open",
    )
    for row, price in enumerate(prices):
        here = costs if math.isnan(spreads[row]) else costs.model_copy(update={"spread_pips": spreads[row]})
        assert series.unit_cost_R[row] == pytest.approx(unit_cost(here, symbol, price), rel=1e-14)
        if row + 1 < len(prices):
            from_ms, to_ms = int(known[row]), int(known[row + 1])
            assert series.swap_long_R[row] == swap_cost(here, symbol, price, 1, from_ms, to_ms)
            assert series.swap_short_R[row] == swap_cost(here, symbol, price, -1, from_ms, to_ms)
            assert series.move_R[row] == prices[row + 1] / price - 1.0


@pytest.mark.parametrize("fill", FILLS)
def test_the_step_rule_in_arrays_equals_the_backtest_on_random_positions(fill: FillRule) -> None:
    series = series_of(fill=fill)
    rows = series.payable(window_ends(series))
    positions = np.random.default_rng(1).integers(-1, 2, len(rows))
    starts = segment_starts(rows)
    held = np.where(starts, 0, np.roll(positions, 1))
    judged = backtest(series, rows, positions, bars_per_year=YEAR)
    assert starts.sum() == 3 * 5, "four gaps in each of three symbols"
    np.testing.assert_allclose(
        step_rewards(series, rows, held_N=held, position_N=positions), judged.net_N, rtol=0, atol=2e-16
    )
    table = step_table(series, rows)
    np.testing.assert_array_equal(
        table[np.arange(len(rows)), held + 1, positions + 1],
        step_rewards(series, rows, held_N=held, position_N=positions),
    )


@pytest.mark.parametrize("is_sized", [False, True])
@pytest.mark.parametrize("fill", FILLS)
def test_the_live_agent_pays_the_same_for_the_same_positions(fill: FillRule, is_sized: bool) -> None:
    """Each record brings its bar's prices and costs; a step pays those of the moment at which it is filled."""
    series = series_of(fill=fill, num_missing=0)
    rows = series.payable(np.flatnonzero(series.symbol_R == 1))
    chance = np.random.default_rng(2)
    positions = chance.integers(-1, 2, len(rows)) * (chance.uniform(0, 1.5, len(rows)) if is_sized else 1)
    standing, earned = Position(), []
    for row, position in zip(rows, positions, strict=True):
        price, at_ms, spread = (
            float(series.price_R[row]),
            int(series.priced_at_ms_R[row]),
            float(series.spread_R[row]),
        )
        own = {} if math.isnan(spread) else {"spread_pips": spread}
        costs = COSTS["USD/JPY"].model_copy(update=own)
        here, elsewhere = FillPoint(at_ms, price, costs, True), FillPoint(at_ms, 9.9 * price, costs, False)
        bar = Bar(here, elsewhere) if fill == "next_open" else Bar(elsewhere, here)
        realised, still_open = realise(standing, symbol="USD/JPY", bar=bar, state=0)
        earned += [each.reward for each in realised]
        assert {each.fill for each in realised} <= {fill}
        step = open_step(standing, state=0, action=0, exposure=float(position), fill=fill, bar=bar)
        standing = Position(
            last_ms=at_ms, position=float(position), exposure=float(position), steps=(*still_open, step)
        )
    judged = backtest(series, rows, positions, bars_per_year=YEAR)
    assert len(earned) > 250
    np.testing.assert_allclose(earned, judged.net_N[: len(earned)], rtol=0, atol=5e-16 if is_sized else 1e-16)


def test_a_long_bar_and_its_closing_pay_by_hand() -> None:
    series = small([1.09, 1.10, 1.11, 1.12, 1.13])
    judged = backtest(series, np.array([0, 1, 2]), np.array([1, 1, 0]), bars_per_year=YEAR)
    unit = 0.4e-4 / 2 / 1.10 + 0.45e-4
    assert judged.net_N[0] == pytest.approx(math.log(1.11 / 1.10 - unit))
    assert judged.net_N[1] == pytest.approx(math.log(1.12 / 1.11))
    assert judged.net_N[2] == pytest.approx(math.log(1 - 0.4e-4 / 2 / 1.12 - 0.45e-4))
    assert judged.turnover_N.tolist() == [1, 0, 1]
    assert judged.summary.num_trades == 2
    assert judged.summary.gross_log_return == pytest.approx(math.log(1.12 / 1.10))


def test_the_position_is_closed_and_paid_where_a_segment_ends() -> None:
    series = small([1.10] * 7)
    unit = unit_cost(COSTS["EUR/USD"], "EUR/USD", 1.10)
    judged = backtest(series, np.array([0, 1, 3, 4]), np.array([1, 1, 1, -1]), bars_per_year=YEAR)
    assert judged.cost_N == pytest.approx([unit, unit, unit, 3 * unit])
    assert judged.turnover_N.tolist() == [1, 1, 1, 3]
    assert judged.summary.num_trades == 5


def test_a_position_held_over_the_weekend_earns_the_jump_and_pays_no_night_of_the_weekend() -> None:
    opened = hours(145)
    jump = int(np.flatnonzero(np.diff(opened) > HOUR_MS)[0])
    prices = np.full(145, 1.10)
    prices[jump + 1 :] = 1.12
    series = build_trading_series(
        stacked(prices, opened),
        costs=COSTS,
        fill="next_open",
    )
    rows = series.payable(np.arange(145))
    judged = backtest(series, rows, np.ones(len(rows), dtype=np.int64), bars_per_year=YEAR)
    assert judged.gross_N[jump - 1] == pytest.approx(math.log(1.12 / 1.10))
    nights = series.swap_long_R / (0.6e-4 / prices)
    assert np.round(nights[nights > 0.5]).tolist() == [1, 1, 3, 1, 1, 1], "Monday to Friday, then Monday"


def test_no_step_is_payable_over_a_gap_or_beyond_the_border() -> None:
    for fill in FILLS:
        series = dataclasses.replace(small([1.0] * 5), fill=fill)
        assert series.payable(np.arange(5)).tolist() == [0, 1, 2]
        border = int(series.priced_at_ms_R[3])
        assert series.payable(np.arange(5), until_ms=border).tolist() == [0, 1]
    gap = build_trading_series(
        stacked(
            np.array([1.0, 1.0, 1.0, 1.0, math.nan, 1.0]), START_MS + np.arange(6), runs_R=np.array([0, 0, 0, 0, 0, 1])
        ),
        costs=COSTS,
        fill="next_open",
    )
    assert gap.payable(np.arange(6)).tolist() == [0, 1]


def test_the_account_weighs_the_symbols_of_a_moment_equally() -> None:
    series = series_of(num_missing=0)
    rows = series.payable(np.arange(series.num_rows))
    positions = np.where(series.symbol_R[rows] == 2, 0, 1)
    judged = backtest(series, rows, positions, bars_per_year=YEAR)
    net = np.expm1(judged.net_N).reshape(3, -1).mean(axis=0)
    assert judged.summary.net_log_return == pytest.approx(np.log1p(net).sum())
    assert judged.summary.sharpe == pytest.approx(net.mean() / net.std(ddof=1) * math.sqrt(YEAR))


def test_the_drawdown_is_the_largest_loss_from_a_peak() -> None:
    free = Costs(spread_pips=0, commission_bp=0, slippage_bp=0, swap_long_pips=0, swap_short_pips=0)
    series = small([1.0, 1.0, 1.2, 0.9, 1.1, 0.8, 1.5], costs=free)
    judged = backtest(series, np.arange(5), np.ones(5, dtype=np.int64), bars_per_year=YEAR)
    assert judged.summary.max_drawdown == pytest.approx(1 - 0.8 / 1.2)
    flat = backtest(series, np.arange(5), np.zeros(5, dtype=np.int64), bars_per_year=YEAR).summary
    assert (flat.net_log_return, flat.max_drawdown, flat.sharpe, flat.num_trades) == (0.0, 0.0, None, 0)


def test_what_cannot_be_paid_is_refused_with_the_next_step() -> None:
    series = small([1.0, 1.0, 1.0, 2.5])
    with pytest.raises(DataValidationError, match=r"TradingSeries\.payable"):
        backtest(series, np.array([1, 2]), np.array([0, 0]), bars_per_year=YEAR)
    with pytest.raises(DataValidationError, match=r"TradingSeries\.payable"):
        backtest(series, np.array([1, 0]), np.array([0, 0]), bars_per_year=YEAR)
    with pytest.raises(DataValidationError, match="lost the whole capital"):
        backtest(series, np.array([1]), np.array([-1]), bars_per_year=YEAR)
    assert step_rewards(series, np.array([1]), held_N=np.array([0]), position_N=np.array([-1])) == RUIN_LOG_RETURN
    with pytest.raises(DataValidationError, match="resolved_costs"):
        small([1.0, 1.0, 1.0], costs=Costs(spread_pips=1.0))
    with pytest.raises(DataValidationError, match="no costs for EUR/USD"):
        build_trading_series(
            stacked(np.ones(1), np.array([START_MS])),
            costs={},
            fill="next_open",
        )
