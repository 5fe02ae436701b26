"""Coarser bars are whole or not there."""

from dataclasses import replace

import numpy as np
import pytest

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.contracts.reading_reports import ReadingReport, SpreadTime
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, market_ms, runs


def utc(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


def week_bars(timeframe: str, *, start: str = "2024-01-07T16:00", end: str = "2024-01-26T23:00") -> Bars:
    """Every bar of the FX week, prices drawn once."""
    length_ms = TIMEFRAMES_MS[timeframe]
    opened = np.arange(utc(start), utc(end), length_ms)
    opened = opened[market_ms(opened + length_ms) > market_ms(opened)]
    rng = np.random.default_rng(3)
    prices = 1.1 + rng.normal(size=(2, len(opened))) * 1e-3
    return Bars(
        symbol="EUR/USD",
        timeframe=timeframe,
        opened_ms=opened,
        available_at_ms=opened + length_ms,
        open=prices[0],
        high=prices.max(axis=0) + 1e-4,
        low=prices.min(axis=0) - 1e-4,
        close=prices[1],
        data_source="file",
        extra={
            "volume": np.ones(len(opened)),
            "spread": np.full(len(opened), 2e-4),
            "signal": rng.normal(size=len(opened)),
        },
    )


def without(bars: Bars, missing: np.ndarray) -> Bars:
    names = ("opened_ms", "available_at_ms", "open", "high", "low", "close")
    extra = {name: column[~missing] for name, column in bars.extra.items()}
    return Bars(**{**vars(bars), **{name: getattr(bars, name)[~missing] for name in names}, "extra": extra})


def test_a_bar_holds_what_its_parts_held() -> None:
    fine = week_bars("1h")
    coarse = resample(fine, "4h")
    row = int(np.flatnonzero(coarse.opened_ms == utc("2024-01-10T08:00"))[0])
    parts = (fine.opened_ms >= utc("2024-01-10T08:00")) & (fine.opened_ms < utc("2024-01-10T12:00"))
    assert coarse.open[row] == fine.open[parts][0]
    assert coarse.high[row] == fine.high[parts].max()
    assert coarse.low[row] == fine.low[parts].min()
    assert coarse.close[row] == fine.close[parts][-1]
    assert coarse.extra["volume"][row] == 4
    assert coarse.extra["spread"][row] == pytest.approx(2e-4)
    assert coarse.extra["signal"][row] == fine.extra["signal"][parts][-1]
    assert coarse.available_at_ms[row] == utc("2024-01-10T12:00")


@pytest.mark.parametrize("timeframe", ["2h", "4h", "1d"])
def test_whole_weeks_give_whole_runs_with_the_stubs_at_their_ends(timeframe: str) -> None:
    coarse = resample(week_bars("1h"), timeframe)
    assert runs(coarse.opened_ms, TIMEFRAMES_MS[timeframe], "fx").max() == 0
    assert len(coarse) == {"2h": 180, "4h": 93, "1d": 15}[timeframe]


def test_daily_bars_are_trading_days_from_five_to_five_in_new_york() -> None:
    daily = resample(week_bars("1h"), "1d")
    assert daily.opened_ms[:2].tolist() == [utc("2024-01-07T22:00"), utc("2024-01-08T22:00")]
    assert daily.extra["volume"].tolist() == [24.0] * 15


def test_four_hour_bars_across_the_roll_make_days_of_utc() -> None:
    daily = resample(week_bars("4h"), "1d")
    assert np.all(daily.opened_ms % DAY_MS == 0)
    assert runs(daily.opened_ms, DAY_MS, "fx").max() == 0


@pytest.mark.parametrize(
    ("fine", "coarse", "missing", "is_whole"),
    [
        ("1h", "2h", ["2024-01-16T08:00"], False),  # nine tenths of one other are one
        ("1h", "4h", ["2024-01-16T09:00"], False),
        ("1h", "1d", ["2024-01-16T09:00"], True),
        ("1h", "1d", ["2024-01-16T09:00", "2024-01-16T10:00"], True),  # 21 of 23
        ("1h", "1d", ["2024-01-16T09:00", "2024-01-16T10:00", "2024-01-16T11:00"], False),
        ("1h", "1d", ["2024-01-16T21:00"], False),  # the last before 17:00 New York
        ("4h", "1d", ["2024-01-16T08:00"], False),
        ("15m", "4h", ["2024-01-16T09:00"], True),
        ("15m", "4h", ["2024-01-16T11:45"], False),
    ],
)
def test_a_bar_needs_its_last_part_and_nine_tenths_of_the_others(
    fine: str, coarse: str, missing: list[str], is_whole: bool
) -> None:
    bars = week_bars(fine)
    holed = resample(without(bars, np.isin(bars.opened_ms, [utc(each) for each in missing])), coarse)
    gone = sorted(set(resample(bars, coarse).opened_ms.tolist()) - set(holed.opened_ms.tolist()))
    assert len(gone) == (not is_whole)
    assert all(each <= utc(missing[0]) < each + TIMEFRAMES_MS[coarse] for each in gone)


def test_what_is_lost_is_counted_by_reason_and_above_a_hundredth_doubtful() -> None:
    report = ReadingReport(
        file="EURUSD_1h.csv", symbol="EUR/USD", timeframe="1h", num_rows=360, dropped={"repeated": 2}
    )
    bars = replace(week_bars("1h"), reports=(report,))
    assert resample(bars, "1d").reports == (report,)
    lost = np.isin(bars.opened_ms, [utc("2024-01-16T21:00")]) | (
        (bars.opened_ms >= utc("2024-01-18T03:00")) & (bars.opened_ms < utc("2024-01-18T09:00"))
    )
    (told,) = resample(without(bars, lost), "1d").reports
    assert told.dropped == {"repeated": 2, "1h_to_1d_without_last": 1, "1h_to_1d_too_few": 1}
    assert told.warnings == ("2 of 15 bars of 1d lack bars of 1h and are left out",)
    forming = resample(without(bars, bars.opened_ms >= utc("2024-01-26T10:00")), "1d").reports
    assert forming == (report,)


@pytest.mark.parametrize(("time", "part"), [("open", 0), ("close", -1), ("minimum", None), ("unknown", None)])
def test_a_spread_keeps_its_moment(time: SpreadTime, part: int | None) -> None:
    bars = week_bars("1h")
    spread = np.random.default_rng(1).uniform(1e-4, 3e-4, len(bars))
    bars = replace(bars, spread_time=time, extra={**bars.extra, "spread": spread})
    coarse = resample(bars, "4h")
    row = int(np.flatnonzero(coarse.opened_ms == utc("2024-01-10T08:00"))[0])
    parts = spread[(bars.opened_ms >= utc("2024-01-10T08:00")) & (bars.opened_ms < utc("2024-01-10T12:00"))]
    assert coarse.extra["spread"][row] == pytest.approx(parts.mean() if part is None else parts[part])


@pytest.mark.parametrize("num_hours", [1, 2, 3])
def test_the_newest_bar_waits_for_its_last_part(num_hours: int) -> None:
    fine = week_bars("1h", end="2024-01-10T08:00")
    begun = week_bars("1h", end=f"2024-01-10T{8 + num_hours:02d}:00")
    assert len(begun) == len(fine) + num_hours
    assert resample(begun, "4h").opened_ms[-1] == utc("2024-01-10T04:00")


def test_minutes_without_a_tick_do_not_spoil_an_hour_but_a_hole_does() -> None:
    fine = week_bars("1m", start="2024-01-09T00:00", end="2024-01-09T06:00")
    quiet = np.isin(fine.opened_ms, [utc("2024-01-09T02:13"), utc("2024-01-09T02:40")])
    hole = (fine.opened_ms >= utc("2024-01-09T04:10")) & (fine.opened_ms < utc("2024-01-09T04:30"))
    hours = resample(without(fine, quiet | hole), "1h").opened_ms
    assert ((hours - utc("2024-01-09")) // HOUR_MS).tolist() == [0, 1, 2, 3, 5]
    forming = without(fine, fine.opened_ms >= utc("2024-01-09T05:58"))
    assert resample(forming, "1h").opened_ms[-1] == utc("2024-01-09T04:00")


def test_bars_off_the_grid_are_left_out() -> None:
    fine = week_bars("2h")
    shifted = Bars(
        **{**vars(fine), "opened_ms": fine.opened_ms + HOUR_MS, "available_at_ms": fine.available_at_ms + HOUR_MS}
    )
    assert len(resample(shifted, "4h")) == 0


def test_a_bar_is_known_no_earlier_than_its_latest_part() -> None:
    fine = week_bars("1h")
    late = fine.available_at_ms.copy()
    late[fine.opened_ms == utc("2024-01-10T09:00")] += 10 * HOUR_MS
    coarse = resample(Bars(**{**vars(fine), "available_at_ms": late}), "4h")
    row = int(np.flatnonzero(coarse.opened_ms == utc("2024-01-10T08:00"))[0])
    assert coarse.available_at_ms[row] == utc("2024-01-10T20:00")


def test_no_bars_resample_to_no_bars() -> None:
    fine = week_bars("1h")
    assert len(resample(without(fine, np.ones(len(fine), dtype=bool)), "4h")) == 0
