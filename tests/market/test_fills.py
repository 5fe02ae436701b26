"""Fills of bars: what price and spread a decision meets, when a side becomes a mid, what the roll does to a bid."""

from dataclasses import replace

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Bars, FeatureTable, Floats
from ml_workbench_service.contracts.reading_reports import PriceSide, SpreadTime
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import Windows, build
from ml_workbench_service.market.calendar import HOUR_MS, trading_day_opening
from ml_workbench_service.market.costs import pip_size, resolved_costs, session_factor
from ml_workbench_service.market.fills import at_mid, is_near_roll, keeps_side, open_prices, open_spreads
from ml_workbench_service.market.significance import clark_west_gains, hac_mean
from tests.market.series_for_tests import hours

SYMBOL = "EUR/USD"


def bars_of(num: int, *, side: PriceSide, spread_time: SpreadTime, seed: int = 0) -> tuple[Bars, Floats, Floats]:
    """Bars of one side around a random walk, and the middle's open and close."""
    chance, opened = np.random.default_rng(seed), hours(num)
    close = 1.1 * np.exp(np.cumsum(chance.normal(0, 1e-3, num)))
    start = np.append(1.1, close[:-1])
    at_open, at_close = chance.uniform(1e-5, 4e-4, (2, num))
    sign = {"bid": -0.5, "ask": 0.5, "mid": 0.0}[side]
    spread = at_open if spread_time == "open" else at_close
    shown = {"open": start + sign * at_open, "close": close + sign * at_close}
    high, low = np.maximum(*shown.values()), np.minimum(*shown.values())
    bars = Bars(
        SYMBOL, "1h", opened, opened + HOUR_MS, shown["open"], high, low, shown["close"], "file", {"spread": spread},
        price_side=side, spread_time=spread_time,
    )  # fmt: skip
    return bars, start, close


@pytest.mark.parametrize("side", ["bid", "ask"])
def test_only_a_spread_of_the_same_moment_makes_a_mid(side: PriceSide) -> None:
    for moment in ("open", "close", "average", "minimum", "unknown"):
        bars, start, close = bars_of(50, side=side, spread_time=moment)
        found = at_mid(bars)
        assert np.allclose(found.open, start, atol=1e-15) == (moment == "open")
        assert np.allclose(found.close, close, atol=1e-15) == (moment == "close")
        assert (found.high >= np.maximum(found.open, found.close)).all()
        assert (found.low <= np.minimum(found.open, found.close)).all()
    bars, *_ = bars_of(50, side=side, spread_time="close")
    holed = replace(bars, extra={"spread": np.where(np.arange(50) == 9, np.nan, bars.extra["spread"])})
    assert at_mid(holed) is not bars
    np.testing.assert_array_equal(at_mid(holed).close, bars.close, "a column of two sides would be neither")


def test_both_spreads_make_both_ends_and_coarse_bars_keep_their_moments() -> None:
    bars, start, close = bars_of(48, side="bid", spread_time="unknown")
    ends = {"spread_open": 2 * (start - bars.open), "spread_close": 2 * (close - bars.close)}
    found = at_mid(replace(bars, extra=ends))
    np.testing.assert_allclose(found.open, start, rtol=1e-15)
    np.testing.assert_allclose(found.close, close, rtol=1e-15)
    coarse = resample(replace(bars, extra=ends), "4h")
    np.testing.assert_array_equal(coarse.extra["spread_open"], ends["spread_open"][::4])
    np.testing.assert_array_equal(coarse.extra["spread_close"], ends["spread_close"][3::4])
    for moment, place in (("open", 0), ("close", 3)):
        timed = replace(bars, spread_time=moment)  # type: ignore[arg-type]
        np.testing.assert_array_equal(resample(timed, "4h").extra["spread"], bars.extra["spread"][place::4])


def test_without_opens_the_close_before_stands_for_each() -> None:
    close = np.array([1.0, 2.0, 3.0])
    assert open_prices({"close": close}).tolist() == [1.0, 1.0, 2.0]
    assert open_prices({"close": close, "open": close + 1}).tolist() == [2.0, 3.0, 4.0]


def test_a_fill_pays_the_opens_own_spread_else_the_larger_of_column_and_session() -> None:
    bars, *_ = bars_of(300, side="mid", spread_time="unknown")
    own, costs = bars.extra["spread"], resolved_costs(SYMBOL)
    session = 0.2 * pip_size(SYMBOL) * session_factor(bars.opened_ms)
    table = table_of(bars)
    np.testing.assert_array_equal(open_spreads(table, costs), np.maximum(own, session))
    np.testing.assert_array_equal(open_spreads(replace(table, spread_time="open"), costs), own)
    np.testing.assert_array_equal(open_spreads(replace(table, columns={"close": bars.close}), costs), session)
    assert (own > session).any()
    assert (own < session).any()


def table_of(bars: Bars) -> FeatureTable:
    return FeatureTable(
        bars.symbol, bars.timeframe, bars.opened_ms, bars.available_at_ms,
        {"open": bars.open, "close": bars.close, **bars.extra}, "file",
        price_side=bars.price_side, spread_time=bars.spread_time,
    )  # fmt: skip


def bid_of_a_random_walk(num: int) -> FeatureTable:
    """A martingale's hours; the file holds its bid, whose spread is forty times as wide in the hours at the roll."""
    chance, opened = np.random.default_rng(3), hours(num)
    known = opened + HOUR_MS
    mid = 1.1 * np.exp(np.cumsum(chance.normal(0, 4e-4, num)))
    widened = is_near_roll(FeatureTable(SYMBOL, "1h", opened, known, {"close": mid}, "file", price_side="bid"), known)
    close = mid - np.where(widened, 4e-4, 1e-5) / 2
    columns = {
        "hour": ((opened - trading_day_opening(opened)) // HOUR_MS).astype(float),
        "open": np.append(mid[0], close[:-1]),
        "close": close,
    }
    return FeatureTable(SYMBOL, "1h", opened, known, columns, "file", price_side="bid")


def windows_of(table: FeatureTable) -> Windows:
    labelling = label_tables(
        [table], features=["hour"], columns=[table.columns], targets=(parse_target("price_change_1h"),),
        costs={SYMBOL: resolved_costs(SYMBOL)},
    )  # fmt: skip
    return build(labelling.rows, features=["hour"], is_level=[False], lookback=1, split=0.5)


def p_value_of_an_hour_table(windows: Windows, hour_N: Floats) -> float:
    """Against no change, on the test part, of the training part's mean move by hour since the roll."""
    labels_N, train, test = windows.own_labels_RK[:, 0], windows.parts["train"], windows.parts["test"]
    means = np.array([labels_N[train[hour_N[train] == hour]].mean() for hour in range(24)])
    said_N = means[hour_N[test].astype(int)]
    p_value = hac_mean(clark_west_gains(labels_N[test], baseline=np.zeros(len(test)), model=said_N)).p_value
    assert p_value is not None
    return p_value


def test_a_random_walk_whose_bid_falls_at_the_roll_shows_no_skill() -> None:
    table = bid_of_a_random_walk(12_000)
    hour_N = np.asarray(table.columns["hour"])
    windows, blind = windows_of(table), windows_of(replace(table, price_side="mid"))
    assert p_value_of_an_hour_table(blind, hour_N) < 1e-6, "taken for a mid it looks like skill"
    assert p_value_of_an_hour_table(windows, hour_N) > 0.025
    left_out = np.setdiff1d(blind.parts["test"], windows.parts["test"])
    assert windows.num_untested == len(left_out) > 0.1 * len(blind.parts["test"])
    assert blind.num_untested == 0
    np.testing.assert_array_equal(windows.parts["train"], blind.parts["train"], "they are left out of tests alone")
    np.testing.assert_array_equal(windows.decisions["test"], blind.decisions["test"], "and are decided on")


def test_which_closes_the_roll_moves() -> None:
    table = bid_of_a_random_walk(100)
    near = is_near_roll(table, table.available_at_ms)
    assert sorted({int(each) for each in table.columns["hour"][near]}) == [0, 22, 23], (
        "known at 18:00, 16:00 and 17:00 New York"
    )
    for changes in ({"price_side": "mid"}, {"timeframe": "1d"}):
        assert not is_near_roll(replace(table, **changes), table.available_at_ms).any()  # type: ignore[arg-type]
    spread = {**table.columns, "spread": np.full(100, 1e-4)}
    assert keeps_side(replace(table, columns=spread, spread_time="open"))
    assert not keeps_side(replace(table, columns=spread, spread_time="close"))
