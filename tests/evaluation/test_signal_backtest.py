"""The backtest of a signal: judged by the scalar one, to the cent in every cost, blind beyond its part."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, FeatureTable, FillRule, Floats, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation.signal_backtest import daily_net, realise, report
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import Part, Windows, build
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market import calendar, performance
from ml_workbench_service.market.backtest import backtest
from ml_workbench_service.market.costs import pip_size, resolved_costs, session_factor
from ml_workbench_service.market.fills import open_prices
from ml_workbench_service.market.significance import hac_mean
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of

pytestmark = pytest.mark.processor

HOUR_MS = TIMEFRAMES_MS["1h"]
DAY_MS = 24 * HOUR_MS
SUNDAY_MS = int(np.datetime64("2024-01-07T22:00", "ms").astype(np.int64))
FREE = Costs(spread_pips=0, commission_bp=0, slippage_bp=0, swap_long_pips=0, swap_short_pips=0)
LEVELS = {"EUR/USD": 1.1, "USD/JPY": 150.0}
FILLS: tuple[FillRule, ...] = ("next_open", "next_close")


def table(
    symbol: str = "EUR/USD", *, num: int = 900, seed: int = 0, missing: Sequence[int] = (), start_ms: int = SUNDAY_MS
) -> FeatureTable:
    """Hourly bars of the FX week with the feature `noise`; those at `missing` never came."""
    chance = np.random.default_rng(seed)
    hours = start_ms + HOUR_MS * np.arange(2 * (num + len(missing)))
    opened = np.delete(hours[calendar.is_open(hours)][: num + len(missing)], list(missing))
    close = LEVELS[symbol] * np.exp(np.cumsum(chance.normal(0, 0.001, num)))
    columns = {"noise": chance.standard_normal(num), "close": close}
    return FeatureTable(symbol, "1h", opened, opened + HOUR_MS, columns, data_source="file")


def with_column(of: FeatureTable, name: str, values: Floats) -> FeatureTable:
    return replace(of, columns={**of.columns, name: values})


def problem(
    *tables: FeatureTable, target: str | None = "direction_2h", fill: FillRule = "next_open", **costs: float
) -> TrainingProblem:
    """Windows of four bars; default costs but for those that are named."""
    targets = () if target is None else (parse_target(target),)
    resolved = {each.symbol: resolved_costs(each.symbol, Costs(**costs)) for each in tables}
    labelling = label_tables(
        tables, features=["noise"], columns=[each.columns for each in tables], targets=targets, costs=resolved
    )
    windows = build(labelling.rows, features=["noise"], is_level=[False], lookback=4, split=0.4, scales_labels=[False])
    return TrainingProblem(windows=windows, targets=targets, costs=resolved, fill=fill, tables=tables)


def signal(of: TrainingProblem, part: Part = "test", *, seed: int = 1) -> tuple[Ints, Ints]:
    """Random positions at the part's windows, in the windows' own order."""
    ends = of.windows.parts[part]
    return np.random.default_rng(seed).integers(-1, 2, len(ends)), ends


@pytest.mark.parametrize("largest", [None, 1.0, 3.0])
@pytest.mark.parametrize("fill", FILLS)
def test_the_report_says_what_the_scalar_backtest_says(fill: FillRule, largest: float | None) -> None:
    spread = np.where(np.arange(900) % 3 == 0, 0.0003, np.nan)
    given = problem(
        with_column(table(missing=[700, 820]), "spread", spread), table("USD/JPY", seed=1, missing=[710]), fill=fill
    )
    positions, ends = signal(given)
    if largest is not None:
        positions = positions * np.random.default_rng(2).uniform(0, largest, len(ends))
    shuffled = np.random.default_rng(0).permutation(len(ends))
    found = report(positions[shuffled], ends[shuffled], given)

    series, order = series_of(given), np.argsort(ends)
    rows = series.payable(ends[order])
    payable = positions[order][np.isin(ends[order], rows)]
    judged = backtest(series, rows, payable, bars_per_year=1.0)
    summary, held = judged.summary, payable != 0
    account = realise(positions, ends, given)
    rounding = 2e-16 if largest is None else 1e-15
    np.testing.assert_allclose(account.net_N, judged.net_N, rtol=0, atol=rounding)
    np.testing.assert_allclose(account.gross_N, judged.gross_N, rtol=0, atol=rounding)
    np.testing.assert_allclose(account.trading_N + account.swap_N, judged.cost_N, rtol=0, atol=rounding)
    np.testing.assert_array_equal(account.turnover_N, judged.turnover_N)
    assert found.net_log_return == pytest.approx(summary.net_log_return, rel=1e-12)
    assert found.gross_log_return == pytest.approx(summary.gross_log_return, rel=1e-12)
    assert found.max_drawdown == pytest.approx(summary.max_drawdown, rel=1e-12)
    assert found.mean_cost_bp == pytest.approx(1e4 * summary.mean_cost, rel=1e-12)
    assert found.num_trades == summary.num_trades
    assert found.turnover == pytest.approx(summary.turnover / 2), "two symbols share the account"
    assert found.total_cost == pytest.approx(judged.cost_N.sum() / 2)
    assert found.share_in_market == pytest.approx(held.mean())
    assert found.hit_rate == pytest.approx((judged.gross_N[held] > 0).mean())


def test_the_ratios_are_those_of_the_days() -> None:
    given = problem(table(num=2000))
    positions, ends = signal(given)
    found, days = report(positions, ends, replace(given, num_evaluations=5)), daily_net(positions, ends, given)
    daily_D = np.array(list(days.values()))
    assert daily_D.sum() == pytest.approx(found.net_log_return, rel=1e-12)
    assert found.num_days == len(daily_D) > 10
    assert found.sharpe == performance.annual(performance.sharpe(daily_D))
    assert found.sortino == performance.annual(performance.sortino(daily_D))
    assert found.calmar == performance.calmar(daily_D)
    assert found.probabilistic_sharpe == performance.probabilistic_sharpe(daily_D)
    assert found.deflated_sharpe == performance.deflated_sharpe(daily_D, num_trials=5)
    assert found.p_value == hac_mean(daily_D).p_value is not None
    assert found.gross_sharpe is not None
    assert found.sharpe is not None
    assert found.gross_sharpe > found.sharpe
    one, many = report(positions, ends, given), report(positions, ends, replace(given, num_evaluations=50))
    assert one.deflated_sharpe == one.probabilistic_sharpe
    assert many.deflated_sharpe is not None
    assert found.deflated_sharpe is not None
    assert many.deflated_sharpe < found.deflated_sharpe


def test_doubling_the_spread_costs_turnover_times_half_the_spread() -> None:
    """To rounding in relative returns, where costs are paid; logarithms of them differ in second order."""
    half = 0.7e-4
    bars = table(num=2000)
    single, double = (
        problem(
            with_column(replace(bars, spread_time="open"), "spread", factor * 2 * half * open_prices(bars.columns)),
            target=None,
            **no_swap(),
        )
        for factor in (1, 2)
    )
    positions, ends = signal(single)
    dear, cheap = report(positions, ends, double), report(positions, ends, single)
    assert cheap.turnover > 100
    assert dear.gross_log_return == cheap.gross_log_return
    assert dear.total_cost - cheap.total_cost == pytest.approx(cheap.turnover * half, rel=1e-12)
    before, after = realise(positions, ends, single), realise(positions, ends, double)
    inside = slice(0, -1)  # the last decision pays its closing as a step of its own
    lost = np.expm1(before.net_N[inside]) - np.expm1(after.net_N[inside])
    np.testing.assert_allclose(lost, half * before.turnover_N[inside], rtol=0, atol=1e-15)
    assert cheap.net_log_return - dear.net_log_return == pytest.approx(cheap.turnover * half, rel=0.002)


def no_swap() -> dict[str, float]:
    return {"swap_long_pips": 0.0, "swap_short_pips": 0.0}


def test_net_is_gross_less_costs_and_every_cost_has_its_place() -> None:
    given = problem(table(num=2000), target=None, swap_long_pips=0.9, swap_short_pips=-0.4)
    positions, ends = signal(given)
    account, found = realise(positions, ends, given), report(positions, ends, given)
    inside = slice(0, -1)
    np.testing.assert_allclose(
        np.expm1(account.net_N[inside]),
        np.expm1(account.gross_N[inside]) - account.trading_N[inside] - account.swap_N[inside],
        rtol=0,
        atol=1e-15,
    )
    free = report(positions, ends, replace(given, costs={"EUR/USD": FREE}, windows=without_spread(given)))
    assert (free.total_cost, free.net_log_return) == (0.0, pytest.approx(free.gross_log_return, abs=1e-15))
    assert found.total_cost - found.swap_cost == pytest.approx(account.trading_N.sum())
    assert found.swap_cost == pytest.approx(account.swap_N.sum())
    assert (account.swap_N[account.positions_N < 0] <= 0).all()
    assert (account.swap_N < 0).any(), "a short receives here"
    assert found.net_log_return == pytest.approx(found.gross_log_return - found.total_cost, rel=0.01)


def without_spread(given: TrainingProblem) -> Windows:
    nothing = np.full(len(given.windows.spread_R), np.nan)
    return replace(given.windows, spread_R=nothing, spread_open_R=nothing)


def test_at_the_break_even_cost_nothing_is_left() -> None:
    bars = table(num=2000)
    foresight = problem(bars, target=None, spread_pips=0, slippage_bp=0, commission_bp=0)
    ends = foresight.windows.parts["test"][:-1]
    rng = np.random.default_rng(0)
    positions = np.where(rng.random(len(ends)) < 0.7, 1, -1) * np.sign(np.diff(bars.columns["close"])[ends]).astype(int)
    found = report(positions, ends, foresight)
    assert found.break_even_cost_bp is not None
    assert found.break_even_cost_bp > 0.1
    charged = {"EUR/USD": foresight.costs["EUR/USD"].model_copy(update={"commission_bp": found.break_even_cost_bp})}
    left = report(positions, ends, replace(foresight, costs=charged)).net_log_return
    assert abs(left) < 1e-6 < found.net_log_return
    flat = report(np.zeros_like(positions), ends, foresight)
    assert (flat.break_even_cost_bp, flat.hit_rate, flat.sharpe, flat.p_value) == (None,) * 4
    assert (flat.net_log_return, flat.total_cost, flat.turnover, flat.share_in_market) == (0.0,) * 4


def test_every_wednesday_roll_charges_three_nights_in_summer_and_in_winter() -> None:
    given = problem(table(num=6240), target=None, swap_long_pips=1.0, spread_pips=0)
    everything = np.sort(np.concatenate([*given.windows.parts.values()]))
    account = realise(np.ones(len(everything), dtype=np.int64), everything, given)
    series = series_of(given)
    nights = np.round(account.swap_N / (1e-4 / series.price_R[account.rows_N + series.delay]), 9)
    charged = np.flatnonzero(nights)
    rolls = [
        datetime.fromtimestamp(series.priced_at_ms_R[account.rows_N[row] + 2] / 1000, tz=calendar.NEW_YORK)
        for row in charged
    ]
    assert {(at.hour, at.minute, at.weekday() == 6) for at in rolls} == {(17, 0, False), (17, 0, True)}
    assert {at.utcoffset() for at in rolls} == {at.utcoffset() for at in (rolls[0], rolls[len(rolls) // 2])}
    assert len({at.utcoffset() for at in rolls}) == 2, "both sides of both changes of the clocks"
    assert len(rolls) == pytest.approx(6240 / 24, abs=2)
    assert [int(each) for each in nights[charged]] == [3 if at.weekday() == 2 else 1 for at in rolls], (
        "Friday's: Sunday"
    )


@pytest.mark.parametrize("wednesday", ["2024-03-06", "2024-03-13", "2024-07-10", "2024-10-30", "2024-11-06"])
def test_a_few_hours_around_wednesday_17_00_new_york_cost_three_days_of_swap(wednesday: str) -> None:
    given = problem(table(num=6240), target=None, swap_long_pips=0.8, swap_short_pips=-0.3)
    roll_ms = int(datetime.fromisoformat(f"{wednesday}T17:00").replace(tzinfo=calendar.NEW_YORK).timestamp() * 1000)
    known = given.windows.available_at_ms_R
    price = given.windows.open_R[np.flatnonzero(known == roll_ms)[0]]
    before = np.flatnonzero((known >= roll_ms - 3 * HOUR_MS) & (known < roll_ms))
    after = np.flatnonzero((known >= roll_ms) & (known < roll_ms + 3 * HOUR_MS))
    for position, pips in ((1, 0.8), (-1, -0.3)):
        over = report(np.full(3, position), before, given)
        assert over.swap_cost == pytest.approx(3 * pips * 1e-4 / price, rel=1e-12)
        assert report(np.full(3, position), after, given).swap_cost == 0.0


def test_policy_and_signal_earn_the_weekends_gap_though_no_hourly_label_spans_it() -> None:
    bars = table(num=1200)
    gap = int(np.flatnonzero(np.diff(bars.opened_ms) > HOUR_MS)[-1])  # the last bar of a week
    close = np.full(1200, 1.1)
    close[gap + 1 :] = 1.12
    bars = with_column(bars, "close", close)
    bars = with_column(bars, "open", close)
    for target in (None, "price_change_1h"):
        given = problem(bars, target=target)
        ends, labelled = given.windows.decisions["test"], given.windows.parts["test"]
        assert (target is None) == (gap in labelled)
        found = report(np.ones(len(ends), dtype=np.int64), ends, given)
        assert found.gross_log_return == pytest.approx(math.log(1.12 / 1.1))
        assert found.num_trades == 2, "nothing closes on Friday"
        last = np.flatnonzero(realise(np.ones(len(ends), dtype=np.int64), ends, given).gross_N)
        assert ends[last].tolist() == [gap - 1], "the decision before Friday's last bar holds on over the weekend"
    monday = str((bars.opened_ms[gap + 1] + DAY_MS // 2).astype("datetime64[ms]").astype("datetime64[D]"))
    given = problem(bars, target=None, **no_swap())
    ends = given.windows.parts["test"]
    days = daily_net(np.ones(len(ends), dtype=np.int64), ends, given)
    assert days[monday] == pytest.approx(math.log(1.12 / 1.1))
    assert datetime.fromisoformat(monday).weekday() == 0


def test_the_default_spread_follows_the_session_and_the_bars_own_or_a_named_one_does_not() -> None:
    bars = table()
    own = np.where(np.arange(900) % 2 == 0, 0.0007, np.nan)
    pips = resolved_costs("EUR/USD").spread_pips
    assert pips is not None
    session = pips * 1e-4 * session_factor(bars.available_at_ms)
    opening = pips * 1e-4 * session_factor(bars.opened_ms)
    assert set(np.round(session / (pips * 1e-4), 6)) == {1.0, 1.2, 1.5, 5.0}

    def spread_of(of: FeatureTable, **costs: float) -> Floats:
        return problem(of, **costs).windows.spread_R

    np.testing.assert_array_equal(spread_of(bars), session)
    np.testing.assert_array_equal(spread_of(bars, commission_bp=0.0), session)
    mixed = np.where(np.isfinite(own), own, session)
    np.testing.assert_array_equal(spread_of(with_column(bars, "spread", own)), mixed)
    np.testing.assert_array_equal(spread_of(with_column(bars, "spread", own), spread_pips=3.0), own)
    assert np.isnan(spread_of(bars, spread_pips=pips)).all(), "named, though it is the default's number"
    assert np.isnan(spread_of(replace(bars, calendar="fixings"))).all()

    def cost_of(of: FeatureTable, **costs: float) -> Floats:
        """What a fill at each open pays of the spread, in price units."""
        series = series_of(problem(of, commission_bp=0.0, slippage_bp=0.0, **costs))
        return 2 * series.unit_cost_R * series.price_R

    owned = with_column(bars, "spread", own)
    np.testing.assert_allclose(cost_of(bars), opening, rtol=1e-12)
    np.testing.assert_allclose(cost_of(owned), np.fmax(own, opening), rtol=1e-12)
    np.testing.assert_allclose(cost_of(replace(owned, spread_time="close")), np.fmax(own, opening), rtol=1e-12)
    at_open = np.where(np.isfinite(own), own, opening)
    np.testing.assert_allclose(cost_of(replace(owned, spread_time="open")), at_open, rtol=1e-12)
    np.testing.assert_allclose(
        cost_of(with_column(owned, "spread_open", own / 2)), np.fmin(own / 2, at_open), rtol=1e-12
    )
    np.testing.assert_allclose(cost_of(owned, spread_pips=9.0), 9e-4, rtol=1e-12)


def test_directions_are_worth_the_sessions_round_trip() -> None:
    bars = table(num=2000)
    given = problem(bars, target="direction_1h", commission_bp=0.0, slippage_bp=0.0)
    named = problem(bars, target="direction_1h", commission_bp=0.0, slippage_bp=0.0, spread_pips=0.2)
    roll = session_factor(bars.available_at_ms) == 5.0
    differs = given.windows.own_labels_RK[:, 0] != named.windows.own_labels_RK[:, 0]
    known = np.isfinite(named.windows.own_labels_RK[:, 0])
    assert (given.windows.own_labels_RK[differs & known, 0] == 1.0).all(), "a dearer hour only turns moves into holds"
    close = bars.columns["close"]
    rows = np.flatnonzero(roll & known)
    moves = close[rows + 1] / close[rows] - 1
    zone = 5 * 0.2 * pip_size("EUR/USD") / close[rows]
    np.testing.assert_array_equal(given.windows.own_labels_RK[rows, 0], 1.0 + (moves > zone) - (moves < -zone))
    assert (differs & roll).any()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("part", ["train", "validation", "calibration"])
def test_nothing_beyond_the_parts_border_is_read(fill: FillRule, part: Part) -> None:
    bars = table(num=1500)
    given = problem(bars, target=None, fill=fill)
    positions, ends = signal(given, part)
    border = next(
        each
        for each in sorted(given.windows.borders_ms.values())
        if each >= given.windows.available_at_ms_R[ends].max()
    )
    later = given.windows.available_at_ms_R > border
    blind = replace(
        given.windows,
        close_R=np.where(later, 1e6, given.windows.close_R),
        open_R=np.where(given.windows.opened_ms_R > border, 1e6, given.windows.open_R),
    )
    assert report(positions, ends, replace(given, windows=blind)) == report(positions, ends, given)
    rows = realise(positions, ends, given).rows_N
    np.testing.assert_array_equal(rows, decision_rows(series_of(given), given, part))


def test_what_is_no_signal_is_refused() -> None:
    given = problem(table())
    positions, ends = signal(given)
    for wrong in (positions[:-1], np.full(len(ends), 20.1), np.where(positions == 1, np.nan, positions)):
        with pytest.raises(DataValidationError, match="A signal is a size within"):
            report(wrong, ends, given)
    with pytest.raises(DataValidationError, match="No decision can be paid"):
        report(positions[:0], ends[:0], given)
    with pytest.raises(DataValidationError, match="No decision can be paid"):
        report(np.ones(1, dtype=np.int64), np.array([899]), given)
