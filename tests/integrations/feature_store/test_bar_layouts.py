"""Layouts and times of bars files, each as programs write them, and what is refused with which reason."""

import gzip
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from tests.integrations.feature_store.bar_texts import OPENED_MS, PLAIN, PRICES, opened, refusal, rows, values, write

LAYOUTS: dict[str, tuple[list[str], str]] = {
    "pandas with an index of numbers": ([",time,open,high,low,close"], "{n},{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "pandas saved twice": (["Unnamed: 0,date,open,high,low,close"], "{n},{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "pandas with an unnamed index of times": ([",open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S+00:00}," + PLAIN),
    "pandas with its index as a column": (["index,time,open,high,low,close"], "{n},{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "R with row numbers": (['"time","open","high","low","close"'], '"{n}",{t:%Y-%m-%d %H:%M:%S},' + PLAIN),
    "rows that end with a separator": (["time,open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN + ","),
    "quantmod's own header in quotes": (['"","Open","High","Low","Close"'], '"{t:%Y-%m-%d %H:%M:%S}",' + PLAIN),
    "quotes behind blanks": (
        ['"time", "open", "high", "low", "close"'],
        '"{t:%Y-%m-%d %H:%M}", "{o:.5f}", "{h:.5f}", "{l:.5f}", "{c:.5f}"',
    ),
    "a separator named above": (["sep=,", "time,open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "comments above": (["# EURUSD", "// bid", "time,open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "a commented header": (["# time,open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "an address above": (
        ["https://www.cryptodatadownload.com", "unix,date,symbol,open,high,low,close"],
        "{e}000,{t:%Y-%m-%d %H:%M:%S},EURUSD," + PLAIN,
    ),
    "symbols that begin like comments": (["symbol,time,open,high,low,close"], "#EURUSD,{t:%Y-%m-%d %H:%M}," + PLAIN),
    "empty lines above": (["", "", "time,open,high,low,close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "bars between": (["time|open|high|low|close"], "{t:%Y-%m-%d %H:%M:%S}|{o:.5f}|{h:.5f}|{l:.5f}|{c:.5f}"),
    "tabs between": (["time\topen\thigh\tlow\tclose"], "{t:%Y-%m-%d %H:%M:%S}\t{o:.5f}\t{h:.5f}\t{l:.5f}\t{c:.5f}"),
    "yfinance by hours": (
        [
            "Price,Close,High,Low,Open,Volume",
            "Ticker,EURUSD=X,EURUSD=X,EURUSD=X,EURUSD=X,EURUSD=X",
            "Datetime,,,,,",
        ],
        "{t:%Y-%m-%d %H:%M:%S+00:00},{c},{h},{l},{o},0",
    ),
    "TradingView": (["time,open,high,low,close,Volume,Volume MA"], "{e},{o},{h},{l},{c},5,NaN"),
    "OANDA's candles, mid": (["time,volume,mid.o,mid.h,mid.l,mid.c"], "{t:%Y-%m-%dT%H:%M:%S.000000000Z},7," + PLAIN),
    "Stooq and Finam": (
        ["<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>"],
        "EURUSD,60,{t:%Y%m%d},{t:%H%M%S}," + PLAIN,
    ),
    "names in brackets": (["[DATE];[TIME];[OPEN];[HIGH];[LOW];[CLOSE]"], "{t:%Y%m%d};{t:%H%M%S};{o};{h};{l};{c}"),
    "clocks without leading zeros": (["date,time,open,high,low,close"], "{t:%Y%m%d},{t.hour}{t:%M}," + PLAIN),
    "Alpha Vantage": (["timestamp,1. open,2. high,3. low,4. close"], "{t:%Y-%m-%d %H:%M:%S}," + PLAIN),
    "names in capitals in another order": (["CLOSE,OPEN,LOW,HIGH,UTC"], "{c},{o},{l},{h},{t:%Y-%m-%d %H:%M}"),
    "letters beside words": (["c,DateTimeUTC,o,open,high,low,close"], "9,{t:%Y-%m-%d %H:%M},9," + PLAIN),
    "close as last": (["Date,Open,High,Low,Close/Last"], "{t:%Y-%m-%d %H:%M}," + PLAIN),
}


@pytest.mark.parametrize(("header", "template"), LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts_are_read_as_they_are(tmp_path: Path, header: list[str], template: str) -> None:
    raw = read_bars(write(tmp_path, [*header, *rows(template)]))
    assert opened(raw) == OPENED_MS
    assert values(raw) == PRICES


def test_investing_coms_price_is_the_close_and_its_volume_is_cut_short(tmp_path: Path) -> None:
    lines = [
        '"Date","Price","Open","High","Low","Vol.","Change %"',
        '"07/15/2024","2,428.90","2,411.20","2,439.50","2,401.95","171.42K","0.34%"',
        '"07/12/2024","2,420.70","2,415.50","2,423.40","2,391.60","1.2M","-0.05%"',
        '"07/11/2024","2,421.90","2,372.10","2,424.80","2,370.00","-","1.78%"',
    ]
    raw = read_bars(write(tmp_path, lines, "XAUUSD.csv"))
    assert values(raw)[0] == (2411.20, 2439.50, 2401.95, 2428.90)
    assert raw.extra["volume"][:2].tolist() == pytest.approx([171_420, 1_200_000])
    assert np.isnan(raw.extra["volume"][2])
    assert raw.extra.keys() == {"volume"}
    assert "columns that hold no numbers are not read: change" in raw.notes


TIMES: dict[str, tuple[str, str, str | None]] = {
    "ISO 8601": ("time", "{t:%Y-%m-%dT%H:%M:%SZ}", "offset"),
    "nine digits of a second": ("time", "{t:%Y-%m-%dT%H:%M:%S}.000000000Z", "offset"),
    "seconds": ("unix", "{e}", "epoch"),
    "seconds as floats": ("time", "{e}.0", "epoch"),
    "thousandths": ("timestamp_ms", "{e}000", "epoch"),
    "thousandths as floats": ("time", "{e}000.0", "epoch"),
    "millionths": ("time", "{e}000000", "epoch"),
    "billionths": ("time", "{e}000000000", "epoch"),
    "AM and PM, month first": ("time", "{t:%m/%d/%Y %I:%M:%S %p}", None),
    "a.m. and p.m., day first": ("time", "{t:%d.%m.%Y %I:%M} {p}", None),
    "a named month in the middle": ("date", "{t:%d-%b-%Y %H:%M:%S}", None),
    "a named month, years of two digits": ("date", "{t:%d-%b-%y %H:%M}", None),
    "a named month first": ("date", "{t:%b %d, %Y %I:%M %p}", None),
    "a whole named month": ("date", "{t:%B %d, %Y %H:%M}", None),
    "the year before a named month": ("date", "{t:%Y-%b-%d %H:%M}", None),
    "a weekday before": ("date", "{t:%a, %d %b %Y %H:%M:%S} GMT", "offset"),
    "Interactive Brokers without a zone": ("date", "{t:%Y%m%d  %H:%M:%S}", None),
    "Interactive Brokers in UTC": ("date", "{t:%Y%m%d  %H:%M:%S} UTC", "offset"),
    "digits": ("timestamp", "{t:%Y%m%d %H%M%S}", None),
    "digits without a blank": ("timestamp", "{t:%Y%m%d%H%M}", None),
    "JavaScript": ("time", "{t:%a %b %d %Y %H:%M:%S} GMT+0000 (Coordinated Universal Time)", "offset"),
    "named in the header": ("Time (UTC)", "{t:%Y-%m-%d %H:%M}", "header"),
    "named as the header": ("UTC", "{t:%d.%m.%Y %H:%M:%S.000}", "header"),
    "named as the header and in the cells": ("UTC", "{t:%d.%m.%Y %H:%M:%S.000} UTC", "offset"),
    "named without a blank": ("TimestampUTC", "{t:%Y-%m-%d %H:%M}", "header"),
    "named before the word": ("utc_time", "{t:%Y-%m-%d %H:%M}", "header"),
    "Greenwich": ("Gmt time", "{t:%d.%m.%Y %H:%M:%S.000}", "header"),
}


@pytest.mark.parametrize(("header", "time", "source"), TIMES.values(), ids=list(TIMES))
def test_times_are_read_whatever_they_look_like(tmp_path: Path, header: str, time: str, source: str | None) -> None:
    quoted = f'"{time}"' if "," in time else time
    raw = read_bars(write(tmp_path, [f"{header},open,high,low,close", *rows(f"{quoted},{PLAIN}")]))
    assert opened(raw) == OPENED_MS
    assert (raw.times.zone, raw.times.zone_from) == ("UTC" if source else None, source)


NEW_YORK, LONDON, ATHENS = ZoneInfo("America/New_York"), ZoneInfo("Europe/London"), ZoneInfo("Europe/Athens")
ZONES: dict[str, tuple[str, str, ZoneInfo, str, str]] = {
    "Interactive Brokers": ("date", "{t:%Y%m%d  %H:%M:%S} US/Eastern", NEW_YORK, "US/Eastern", "cell"),
    "an IANA name in the cells": ("date", "{t:%Y-%m-%d %H:%M} Europe/Athens", ATHENS, "Europe/Athens", "cell"),
    "Java": ("time", "{t:%Y-%m-%dT%H:%M:%S%z}[America/New_York]", NEW_YORK, "UTC", "offset"),
    "an offset": ("Local time", "{t:%d.%m.%Y %H:%M:%S.000} GMT{t:%z}", LONDON, "UTC", "offset"),
    "an offset wins over the header": ("Time (EET)", "{t:%Y-%m-%d %H:%M:%S%z}", NEW_YORK, "UTC", "offset"),
    "EDT": ("time", "{t:%Y-%m-%d %H:%M} EDT", NEW_YORK, "America/New_York", "cell"),
    "BST in the header": ("Time (BST)", "{t:%Y-%m-%d %H:%M}", LONDON, "Europe/London", "header"),
    "EET in the header": ("Time (EET)", "{t:%d.%m.%Y %H:%M:%S.000}", ATHENS, "Europe/Athens", "header"),
    "a city in the header": ("Date (Europe/London)", "{t:%Y-%m-%d %H:%M}", LONDON, "Europe/London", "header"),
    "an offset in the header": ("Time [UTC+3]", "{t:%Y-%m-%d %H:%M}", ATHENS, "UTC+3", "header"),
    "a zone before the word": ("EET time", "{t:%Y-%m-%d %H:%M}", ATHENS, "Europe/Athens", "header"),
    "a zone behind the word": ("datetime_ny", "{t:%Y-%m-%d %H:%M}", NEW_YORK, "America/New_York", "header"),
}


@pytest.mark.parametrize(("header", "time", "zone", "named", "source"), ZONES.values(), ids=list(ZONES))
def test_a_zone_is_what_the_file_says(
    tmp_path: Path, header: str, time: str, zone: ZoneInfo, named: str, source: str
) -> None:
    lines = rows(f"{time},{PLAIN}", clock=lambda moment: moment.astimezone(zone))
    raw = read_bars(write(tmp_path, [f"{header},open,high,low,close", *lines]))
    assert (raw.times.zone, raw.times.zone_from, raw.times.is_local) == (named, source, False)
    assert opened(raw) == OPENED_MS


@pytest.mark.parametrize(
    ("header", "cells", "zone", "source"),
    [
        ("date,time,timezone", "{t:%Y-%m-%d},{t:%H:%M},Europe/Athens", "Europe/Athens", "cell"),
        ("Local time,tz", "{t:%Y-%m-%d %H:%M},+03:00", "UTC", "offset"),
        ("Time (UTC+1),utc_offset", "{t:%Y-%m-%d %H:%M},UTC+3", "UTC", "offset"),
    ],
)
def test_a_column_of_zones_belongs_to_the_times(
    tmp_path: Path, header: str, cells: str, zone: str, source: str
) -> None:
    lines = rows(f"{cells},{PLAIN}", clock=lambda moment: moment.astimezone(ATHENS))
    raw = read_bars(write(tmp_path, [f"{header},open,high,low,close", *lines]))
    assert (raw.times.zone, raw.times.zone_from, raw.times.is_local) == (zone, source, False)
    assert opened(raw) == OPENED_MS
    assert raw.notes == ()


@pytest.mark.parametrize(
    ("time", "available", "is_read"),
    [
        ("{t:%Y-%m-%dT%H:%M:%SZ}", "{t:%Y-%m-%dT%H:%M:%SZ}", True),
        ("{e}", "{t:%Y-%m-%d %H:%M}", True),
        ("{t:%Y-%m-%d %H:%M}", "{e}", True),
        ("{t:%Y-%m-%d %H:%M}", "", True),
        ("{t:%Y-%m-%d %H:%M}", "{t:%Y-%m-%d %H:%M}", False),
        ("{t:%Y-%m-%d %H:%M} Europe/Athens", "{t:%Y-%m-%d %H:%M}", False),
        ("{e}", "{t:%Y-%m-%d %H:%M} Europe/Athens", False),
    ],
)
def test_available_at_is_in_utc_or_refused(tmp_path: Path, time: str, available: str, is_read: bool) -> None:
    path = write(tmp_path, ["time,available_at,open,high,low,close", *rows(f"{time},{available},{PLAIN}")])
    if not is_read:
        assert "`available_at` is not in UTC; write it as 2025-03-01T00:00:00Z" in refusal(path)
        return
    known = read_bars(path).available_ms
    assert (known is None) if not available else (known is not None and known.tolist() == OPENED_MS)


def test_local_time_is_nobodys_until_bars_timezone_says_whose(tmp_path: Path) -> None:
    for header in ("Local time", "local_time", "Time (local)"):
        raw = read_bars(write(tmp_path, [f"{header},open,high,low,close", *rows("{t:%d.%m.%Y %H:%M:%S.000}," + PLAIN)]))
        assert (raw.times.zone, raw.times.is_local) == (None, True)
        assert raw.times.local_ms.tolist() == OPENED_MS


def test_times_in_dukascopys_manner_without_a_header_say_no_zone(tmp_path: Path) -> None:
    raw = read_bars(write(tmp_path, rows("{t:%d.%m.%Y %H:%M:%S.000}," + PLAIN)))
    assert (raw.format, raw.times.zone, raw.times.is_local) == ("dukascopy", None, False)


@pytest.mark.parametrize(
    ("header", "template", "noted"),
    [
        ("Local time,unix", "{t:%Y-%m-%d %H:%M},{e}", "unix"),
        ("timestamp,time", "{e},{t:%H:%M:%S}", None),
        ("date,time,epoch", "{t:%Y.%m.%d},{t:%H:%M},{e}000", "epoch"),
        ("datetime,Time (UTC)", "{t:%Y-%m-%d %H:%M},2024-07-01 22:00", None),
    ],
)
def test_the_column_that_says_its_zone_decides(tmp_path: Path, header: str, template: str, noted: str | None) -> None:
    lines = rows(template + "," + PLAIN, clock=lambda moment: moment + timedelta(hours=3))
    raw = read_bars(write(tmp_path, [f"{header},open,high,low,close", *lines]))
    assert raw.times.zone == "UTC"
    if "unix" in header or "epoch" in header or header.startswith("timestamp"):
        assert opened(raw) == OPENED_MS
    assert raw.extra == {}
    assert noted is None or f"its times are those of `{noted}`" in raw.notes


def test_own_columns_with_names_of_times_stay_own(tmp_path: Path) -> None:
    lines = rows("{t:%Y-%m-%dT%H:%M:%SZ},{n},0.5,3," + PLAIN)
    raw = read_bars(write(tmp_path, ["time,epoch,t,day,open,high,low,close", *lines]))
    assert raw.extra.keys() == {"epoch", "t", "day"}
    assert raw.extra["epoch"].tolist() == list(range(6))
    assert (opened(raw), raw.notes) == (OPENED_MS, ())


def test_columns_that_say_other_times_are_doubtful(tmp_path: Path) -> None:
    lines = rows("{e},{t:%Y-%m-%dT%H:%M:%SZ}," + PLAIN, clock=lambda moment: moment + timedelta(hours=1))
    raw = read_bars(write(tmp_path, ["timestamp,datetime,open,high,low,close", *lines]))
    assert raw.doubts == ("`datetime` says other times than `timestamp`, which was read",)
    assert opened(raw) == OPENED_MS


REFUSED: dict[str, tuple[list[str], str]] = {
    "a Russian header": (
        ["Дата,Открытие,Макс,Мин,Закрытие", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN)],
        "has no open, high, low, close, timestamp; name its columns in English: timestamp, open, high, low and close "
        "(its columns are Дата, Открытие, Макс, Мин, Закрытие)",
    ),
    "a German header": (
        ["Datum;Erster;Hoch;Tief;Schlusskurs", *rows("{t:%Y-%m-%d %H:%M};{o};{h};{l};{c}")],
        "it needs timestamp, open, high, low and close (its columns are Datum, Erster, Hoch, Tief, Schlusskurs)",
    ),
    "no time that can be read": (
        ["time,open,high,low,close", "soon,1.1,1.1,1.1,1.1"],
        "line 2: the timestamp cannot be read; write it as 2025-03-01T00:00:00Z",
    ),
    "numbers of days": (["time,open,high,low,close", "45474.5,1.1,1.1,1.1,1.1"], "spreadsheet's number of days"),
    "scientific notation": (["time,open,high,low,close", "1.71979E+12,1.1,1.1,1.1,1.1"], "has lost digits"),
    "clocks alone": (["time,open,high,low,close", "10:00,1.1,1.1,1.1,1.1"], "line 2: the timestamp has no date"),
    "years of two digits": (["time,open,high,low,close", "02/07/24,1.1,1.1,1.1,1.1"], "have years of two digits"),
    "days or months": (
        ["time,open,high,low,close", "02/07/2024 10:00,1.1,1.1,1.1,1.1"],
        "day and month cannot be told apart; write dates as 2025-03-01",
    ),
    "days and months": (
        ["time,open,high,low,close", "02/13/2024,1,1,1,1", "13/02/2024,1,1,1,1"],
        "neither day-first nor month-first",
    ),
    "ends of bars": (
        ["close_time,open,high,low,close", *rows("{e}," + PLAIN)],
        "its times, `close_time`, are the ends of its bars; write their openings",
    ),
    "a zone that is two": (
        ["Time (EST),open,high,low,close", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN)],
        "its times say EST, which can mean America/New_York or UTC-5; write the times with their offset, or name their "
        "column like `Time (America/New_York)`",
    ),
    "a zone that is none": (
        ["Time (Mars),open,high,low,close", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN)],
        "its times say the zone `Mars`, which is not known; write it as UTC+2 or Europe/Athens",
    ),
    "zones here and there": (
        ["time,open,high,low,close", "2024-07-01T10:00:00Z,1,1,1,1", "2024-07-01T11:00:00,1,1,1,1"],
        "some timestamps have a zone and some have none",
    ),
    "an hour of thirteen in the afternoon": (
        ["time,open,high,low,close", "2024-07-01 13:00 PM,1,1,1,1"],
        "line 2: the timestamp cannot be read",
    ),
    "decimal commas between commas": (
        ["time,open,high,low,close", "2024-07-01 10:00,1,10038,1,10038,1,10038,1,10038"],
        "line 2: has 9 cells where 5 are named; export it with ; between cells if its numbers have commas",
    ),
    "a column twice": (["time,open,high,low,close,close", "1,1,1,1,1,1"], "two columns of the same name, `close`"),
    "a currency before the price": (
        ["time,open,high,low,close", "2024-07-01 10:00,$1.1,$1.1,$1.1,$1.1"],
        "line 2: `open` is not a number: '$1.1'",
    ),
    "one mark here, another there": (
        ["time;open;high;low;close", "2024-07-01 10:00;1,10038;1,10038;1,10038;1.10038"],
        "line 2: `close` is not a number with a decimal comma",
    ),
    "a volume with another mark": (
        ["time;open;high;low;close;volume", "2024-07-01 10:00;1.10038;1.10038;1.10038;1.10038;2,5"],
        "line 2: `volume` is not a number with a decimal point",
    ),
    "an ask below its bid": (
        ["time,bid_open,bid_high,bid_low,bid_close,ask_open,ask_high,ask_low,ask_close", "2024-07-01,2,2,2,2,2,2,2,1"],
        "line 2: `ask_close` is below `bid_close`",
    ),
}


@pytest.mark.parametrize(("lines", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, lines: list[str], says: str) -> None:
    assert says in refusal(write(tmp_path, lines))


def test_blank_lines_and_comments_are_counted_and_do_not_move_the_lines_of_errors(tmp_path: Path) -> None:
    lines = ["time,open,high,low,close", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN)]
    lines[3:3] = ["", "# half way, or so", "   ", ",,,,"]
    raw = read_bars(write(tmp_path, [*lines, "", ""]))
    assert dict(raw.dropped) == {"blank line": 5, "comment": 1}
    assert values(raw) == PRICES
    assert raw.where(5).endswith("line 11")
    lines[-1] = lines[-1].replace("1.09970", "low")
    assert "line 11: `low` is not a number" in refusal(write(tmp_path, lines))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    lines = ["time,open,high,low,close,note", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN + ",é")]
    for text in (lines, [line.removesuffix(",é") for line in lines[1:]]):
        (tmp_path / "EURUSD_1h.csv").write_bytes("\r\n".join(text).encode(encoding))
        assert values(read_bars(tmp_path / "EURUSD_1h.csv")) == PRICES


def test_what_is_packed_is_unpacked(tmp_path: Path) -> None:
    lines = ["time,open,high,low,close", *rows("{t:%Y-%m-%d %H:%M}," + PLAIN)]
    path = tmp_path / "EURUSD_1h.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert values(read_bars(path)) == PRICES
    path.write_bytes(path.read_bytes()[:40])
    assert "cannot be read as bars" in refusal(path)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    header = "time,open,high,low,close,adj_close,mine,theirs,comma,note,сигнал"
    lines = rows("{t:%Y-%m-%d %H:%M}," + PLAIN + ',1.1,{n},{n},"1,5",x,1')
    lines[2] = lines[2].replace(",2,2,", ",2,two,")
    raw = read_bars(write(tmp_path, [header, *lines]))
    assert raw.extra.keys() == {"mine"}
    assert "columns that hold no numbers are not read: note" in raw.notes
    assert any("`adj_close` is adjusted" in note for note in raw.notes)
    assert "`сигнал` is not read: its name has no Latin letter" in raw.notes
    assert raw.doubts == (
        "a column is not read: EURUSD_1h.csv, line 4: `theirs` is no number",
        "`comma` is not read: its decimal mark is not that of the prices",
    )
