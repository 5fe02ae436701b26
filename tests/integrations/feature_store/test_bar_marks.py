"""Numbers of bars files: decimal and thousands marks, sides of the price, spreads and their units."""

from pathlib import Path

import polars as pl
import pytest

from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from tests.integrations.feature_store.bar_texts import OPENED_MS, PLAIN, PRICES, refusal, rows, values, write

NUMBERS: dict[str, tuple[str, str, list[str], list[float]]] = {
    "points": ("EURUSD", ",", ["1.10038", "1.1"], [1.10038, 1.1]),
    "decimal commas": ("EURUSD", ";", ["1,10038", "1,1"], [1.10038, 1.1]),
    "decimal commas in quotes": ("EURUSD", ",", ['"1,10038"', '"1,1"'], [1.10038, 1.1]),
    "thousands commas and points": ("XAUUSD", ",", ['"2,650.10"', '"2,655.00"'], [2650.10, 2655.0]),
    "thousands points and commas": ("XAUUSD", ";", ["1.310,50", "1.311,00"], [1310.5, 1311.0]),
    "thousands blanks": ("XAUUSD", ";", ["2 650,10", "2\u202f655,00"], [2650.10, 2655.0]),
    "thousands apostrophes": ("XAUUSD", ",", ["2'650.10", "2\u2019655.00"], [2650.10, 2655.0]),
    "thousands alone": ("XAUUSD", ",", ['"2,655"', '"2,650"'], [2655.0, 2650.0]),
    "thousands of a won": ("USDKRW", ",", ['"1,310"', '"1,311"'], [1310.0, 1311.0]),
    "thousands of a rupiah": ("USDIDR", ";", ["15.817", "15.820"], [15817.0, 15820.0]),
    "thousands of a rupiah, tabs": ("USDIDR", "\t", ["15.817", "15.820"], [15817.0, 15820.0]),
    "thousands of a dong": ("USDVND", ";", ["25,310", "25,311"], [25310.0, 25311.0]),
    "three decimals of a yen": ("USDJPY", ",", ["157.310", "157.311"], [157.31, 157.311]),
    "three decimals of a yen behind semicolons": ("USDJPY", ";", ["157.310", "157.311"], [157.31, 157.311]),
    "three decimals of a yen with commas": ("USDJPY", ";", ["157,310", "157,311"], [157.31, 157.311]),
    "three decimals of what is not known": ("BTCUSD", ",", ["15.817", "15.820"], [15.817, 15.82]),
    "thousands crossed": ("XAUUSD", ";", ["999.500", "1.000.500"], [999500.0, 1000500.0]),
    "whole numbers": ("USDKRW", ",", ["1310", "1311"], [1310.0, 1311.0]),
    "exponents": ("EURUSD", ",", ["1.10038e0", "11E-1"], [1.10038, 1.1]),
}


@pytest.mark.parametrize(("pair", "separator", "cells", "right"), NUMBERS.values(), ids=list(NUMBERS))
def test_marks_are_decided_over_the_whole_column(
    tmp_path: Path, pair: str, separator: str, cells: list[str], right: list[float]
) -> None:
    header = separator.join(("time", "open", "high", "low", "close"))
    lines = [separator.join([f"2024-07-01 1{row}:00", *[cell] * 4]) for row, cell in enumerate(cells)]
    raw = read_bars(write(tmp_path, [header, *lines], f"{pair}_1h.csv"))
    assert values(raw) == [(number,) * 4 for number in right]
    assert bool(raw.doubts) is (pair == "BTCUSD")


@pytest.mark.parametrize(
    ("pair", "cells", "says"),
    [
        ("XAUUSD", '"2,655"', "its prices have a comma for thousands: such an instrument costs about 1,100"),
        ("USDJPY", "157.310", "its prices have a decimal point: such an instrument costs about 115"),
    ],
)
def test_what_decided_about_marks_is_noted(tmp_path: Path, pair: str, cells: str, says: str) -> None:
    lines = [f"2024-07-01 1{row}:00," + ",".join([cells] * 4) for row in range(3)]
    assert read_bars(write(tmp_path, ["time,open,high,low,close", *lines], f"{pair}_1h.csv")).notes == (says,)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("cell", ["15.817", "15,817"])
def test_what_can_be_read_in_two_ways_is_refused_with_the_way_to_write_it(
    tmp_path: Path, separator: str, cell: str
) -> None:
    header = separator.join(("time", "open", "high", "low", "close"))
    lines = [separator.join([f"2024-07-01 1{row}:00", *[cell] * 4]) for row in range(3)]
    says = refusal(write(tmp_path, [header, *lines], "BTCUSD_1h.csv"))
    assert "BTCUSD_1h.csv, line 2: `open` is " + cell + ", which can be read as 15817 or 15.817" in says
    assert "without a mark for thousands" in says


@pytest.mark.parametrize(
    ("column", "prices"), [("volume;5.1", 15.817), ("spread;0.005", 15.817), ("mine;1.234,5", 15817.0)]
)
def test_another_column_tells_the_prices_marks(tmp_path: Path, column: str, prices: float) -> None:
    name, cell = column.split(";")
    lines = [
        f"time;open;high;low;close;{name}",
        *(f"2024-07-01 1{row}:00;15.817;15.817;15.817;15.817;{cell}" for row in range(3)),
    ]
    raw = read_bars(write(tmp_path, lines, "BTCUSD_1h.csv"))
    assert values(raw) == [(prices,) * 4] * 3
    assert any(name in note for note in raw.notes)


def test_smaller_numbers_without_a_mark_tell_that_it_is_of_thousands(tmp_path: Path) -> None:
    cells = ["998", "999", *(f"1.0{row:02d}" for row in range(30))]
    lines = [f"2024-07-01 10:{row:02d};{cell};{cell};{cell};{cell}" for row, cell in enumerate(cells)]
    raw = read_bars(write(tmp_path, ["time;open;high;low;close", *lines], "BTCUSD_1m.csv"))
    assert raw.prices["close"].tolist() == [998.0, 999.0, *(1000.0 + row for row in range(30))]


@pytest.mark.parametrize("name", ["volume", "spread", "mine"])
def test_a_mark_beside_prices_without_one_that_may_be_of_thousands_is_not_guessed(tmp_path: Path, name: str) -> None:
    lines = [
        f"time;open;high;low;close;{name}",
        *(f"2024-07-01 1{row}:00;1310;1310;1310;1310;2.909" for row in range(3)),
    ]
    path = write(tmp_path, lines, "USDKRW_1h.csv")
    if name != "mine":
        assert f"`{name}` has a point or comma that may be of thousands" in refusal(path)
        return
    raw = read_bars(path)
    assert raw.extra == {}
    assert raw.doubts == ("`mine` is not read: its point or comma may be a decimal mark or of thousands",)


def test_a_volume_with_thousands_is_not_divided(tmp_path: Path) -> None:
    lines = ["time,open,high,low,close,volume", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN + ',"2,909"')]
    assert set(read_bars(write(tmp_path, lines)).extra["volume"]) == {2909.0}


SIDES = {
    "FXCM, ask first": ("AskOpen,AskHigh,AskLow,AskClose,BidOpen,BidHigh,BidLow,BidClose", True),
    "bid first": ("bid_open,bid_high,bid_low,bid_close,ask_open,ask_high,ask_low,ask_close", False),
    "OANDA": ("bid.o,bid.h,bid.l,bid.c,ask.o,ask.h,ask.l,ask.c", False),
    "words the other way round": ("open_ask,high_ask,low_ask,close_ask,open_bid,high_bid,low_bid,close_bid", True),
    "with blanks": ("Open Bid,High Bid,Low Bid,Close Bid,Open Offer,High Offer,Low Offer,Close Offer", False),
}


@pytest.mark.parametrize(("names", "is_ask_first"), SIDES.values(), ids=list(SIDES))
def test_both_sides_make_the_mid_and_the_spread(tmp_path: Path, names: str, is_ask_first: bool) -> None:
    sides = [PLAIN, "{o:.5f}9,{h:.5f}9,{l:.5f}9,{c:.5f}7"][:: -1 if is_ask_first else 1]
    lines = rows("{t:%Y-%m-%dT%H:%M:%SZ}," + ",".join(sides) + ",3")
    raw = read_bars(write(tmp_path, [f"time,{names},spread", *lines]))
    assert raw.price_side == "mid"
    assert raw.prices["open"].tolist() == [round(o + 0.0000045, 7) for o, *_ in PRICES]
    assert raw.extra["spread_open"].tolist() == pytest.approx([9e-6] * 6)
    assert raw.extra["spread_close"].tolist() == pytest.approx([7e-6] * 6)
    assert raw.extra["spread"].tolist() == raw.extra["spread_close"].tolist()
    assert (raw.spread_time, raw.spread_unit) == ("close", "price")
    assert raw.extra.keys() == {"spread", "spread_open", "spread_close"}
    assert "its spread is its ask less its bid; not read: spread" in raw.notes


@pytest.mark.parametrize("side", ["bid", "ask", "mid"])
@pytest.mark.parametrize("name", ["EURUSD_1h.csv", "EURUSD_1h_ASK.csv"])
def test_the_side_is_that_of_the_columns_that_were_taken(tmp_path: Path, side: str, name: str) -> None:
    header = ",".join(["time", *(f"{side}.{letter}" for letter in "ohlc")])
    raw = read_bars(write(tmp_path, [header, *rows("{t:%Y-%m-%dT%H:%M:%SZ}," + PLAIN)], name))
    assert raw.price_side == side
    assert values(raw) == PRICES


def test_a_close_on_the_other_side_is_the_spread_at_the_close(tmp_path: Path) -> None:
    lines = ["time,bid_open,bid_high,bid_low,bid_close,ask_close", *rows("{e}," + PLAIN + ",1.2")]
    raw = read_bars(write(tmp_path, lines))
    assert (raw.price_side, raw.spread_time) == ("bid", "close")
    assert raw.extra.keys() == {"spread", "spread_close"}
    assert raw.extra["spread"].tolist() == pytest.approx([1.2 - row[3] for row in PRICES])


@pytest.mark.parametrize(
    ("column", "cell", "price", "right", "unit", "time"),
    [
        ("spread", "20", "2650.00", 0.20, "points", "unknown"),
        ("spread", "20.0", "2650.00", 0.20, "points", "unknown"),
        ("spread", "1", "157.310", 0.001, "points", "unknown"),
        ("spread", "0.8", "157.310", 0.8, "price", "unknown"),
        ("spread", "0.00012", "1.10038", 0.00012, "price", "unknown"),
        ("spread", "2", "1310", 2.0, "price", "unknown"),
        ("spread", "0", "1.10038", 0.0, "points", "unknown"),
        ("spread_close", "0.00012", "1.10038", 0.00012, "price", "close"),
        ("avg_spread", "0.00012", "1.10038", 0.00012, "price", "average"),
        ("spread_min", "12", "1.10038", 0.00012, "points", "minimum"),
        ("open_spread", "0.00012", "1.10038", 0.00012, "price", "open"),
    ],
)
def test_a_spreads_unit_is_told_by_its_numbers_and_its_time_by_its_name(
    tmp_path: Path, column: str, cell: str, price: str, right: float, unit: str, time: str
) -> None:
    lines = [
        f"time,open,high,low,close,{column}",
        *(f"2024-07-01 1{row}:00,{price},{price},{price},{price},{cell}" for row in range(3)),
    ]
    raw = read_bars(write(tmp_path, lines, "USDKRW_1h.csv" if price == "1310" else "XXXUSD_1h.csv"))
    assert raw.extra["spread"].tolist() == pytest.approx([right] * 3)
    assert (raw.spread_unit, raw.spread_time) == (unit, time)


def test_a_spread_in_points_beside_parquets_prices_counts_their_digits(tmp_path: Path) -> None:
    table = {name: [row[index] for row in PRICES] for index, name in enumerate(("open", "high", "low", "close"))}
    noisy = {name: [value * 1.000000001 for value in column] for name, column in table.items()}
    times = pl.Series(OPENED_MS).cast(pl.Datetime("ms", "UTC"))
    pl.DataFrame({"__index_level_0__": range(6), "time": times, **table, "spread": [12] * 6}).write_parquet(
        tmp_path / "a.parquet"
    )
    pl.DataFrame({"time": times, **noisy, "spread": [12] * 6}).write_parquet(tmp_path / "b.parquet")
    raw, doubtful = read_bars(tmp_path / "a.parquet"), read_bars(tmp_path / "b.parquet")
    assert raw.extra["spread"].tolist() == pytest.approx([0.00012] * 6)
    assert raw.times.zone_from == "offset"
    assert raw.extra.keys() == {"spread"}
    assert doubtful.extra["spread"].tolist() == [12.0] * 6
    assert "may be in points" in doubtful.doubts[0]
