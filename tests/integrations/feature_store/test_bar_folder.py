"""A folder of bars: common exports are read as they are, and what is wrong in them is named."""

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars, folder_of_url
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.market.calendar import runs
from ml_workbench_service.testing.clocks import FixedClock
from tests.integrations.feature_store.bar_files import FIRST_MS, bars_frame, local_texts, write_metatrader, write_plain

HOUR_MS = 3_600_000
PRICES = ("open", "high", "low", "close")
BROKER = {"zone": "America/New_York", "added_hours": 7}


def frame_over_spring() -> pl.DataFrame:
    """Hours over both spring changes of the clock, New York's and Europe's."""
    return bars_frame(num_weeks=10, first_ms=int(np.datetime64("2023-02-12T22:00", "ms").astype(np.int64)))


def assert_same(bars: Bars, frame: pl.DataFrame) -> None:
    assert bars.opened_ms.tolist() == frame["opened_ms"].to_list()
    for side in PRICES:
        assert getattr(bars, side).tolist() == frame[side].to_list()


def write_lines(path: Path, frame: pl.DataFrame, texts: list[str], *, header: str | None, separator: str = ",") -> None:
    rows = [
        separator.join([text, *map(str, prices), "5"])
        for text, (_, *prices) in zip(texts, frame.iter_rows(), strict=True)
    ]
    path.write_text("\n".join(([header] if header else []) + rows) + "\n")


def test_the_real_hours_of_gym_anytrading_are_read_as_they_are(tmp_path: Path) -> None:
    source = files("gym_anytrading") / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv"
    shutil.copy(str(source), tmp_path)
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert len(bars) == 6225
    assert bars.price_side == "ask"
    assert bars.opened_ms[0] == int(np.datetime64("2017-01-01T22:00", "ms").astype(np.int64))
    assert bars.close[-1] == 1.20075
    assert runs(bars.opened_ms, HOUR_MS, "fx").max() == 0  # Christmas is its only pause


@pytest.mark.parametrize(
    ("pattern", "header"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", "timestamp,open,high,low,close,volume"),
        ("%Y-%m-%d %H:%M:%S", "Datetime,Open,High,Low,Close,Volume"),
        ("%Y-%m-%d %H:%M:%S+00:00", "Date,Open,High,Low,Close,Volume"),
        ("%d.%m.%Y %H:%M:%S.000", "Gmt time,Open,High,Low,Close,Volume"),
        ("%d/%m/%Y %H:%M", "time,o,h,l,c,vol"),
        ("%m/%d/%Y %H:%M", "time,open,high,low,close,volume"),
        ("%s", "timestamp,open,high,low,close,volume"),
        ("%s000", "timestamp,open,high,low,close,volume"),
        ("%Y.%m.%d %H:%M:%S", "Time (UTC),Open,High,Low,Close,Volume"),
        ("%Y%m%d %H%M", "timestamp,open,high,low,close,volume"),
        ("%Y-%m-%d %H:%M:%S", None),
    ],
)
def test_plain_layouts_are_read_whatever_their_times_look_like(
    tmp_path: Path, pattern: str, header: str | None
) -> None:
    frame = bars_frame()
    write_lines(tmp_path / "EURUSD_1h.csv", frame, local_texts(frame["opened_ms"].to_numpy(), pattern), header=header)
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert_same(bars, frame)
    assert bars.extra["volume"].tolist() == [5.0] * len(frame)
    assert bars.price_side == "mid"


def test_times_with_an_offset_are_moved_to_utc(tmp_path: Path) -> None:
    frame = frame_over_spring()
    texts = [
        text + "+0200"
        for text in local_texts(frame["opened_ms"].to_numpy(), "%d.%m.%Y %H:%M:%S.000 GMT", added_hours=2)
    ]
    write_lines(tmp_path / "EURUSD_1h.csv", frame, texts, header="Local time,Open,High,Low,Close,Volume")
    assert_same(FolderBars(tmp_path).bars("EUR/USD", "1h"), frame)


def test_histdata_is_five_hours_behind_all_the_year_and_bid(tmp_path: Path) -> None:
    frame = bars_frame(
        num_weeks=6, timeframe="5m", first_ms=int(np.datetime64("2023-02-26T22:00", "ms").astype(np.int64))
    )
    texts = local_texts(frame["opened_ms"].to_numpy(), "%Y%m%d %H%M%S", added_hours=-5)
    write_lines(tmp_path / "DAT_ASCII_EURUSD_M5_2023.csv", frame, texts, header=None, separator=";")
    bars = FolderBars(tmp_path, bars_timezone="UTC+9").bars("EUR/USD", "5m")  # the format knows better
    assert_same(bars, frame)
    assert bars.price_side == "bid"


@pytest.mark.parametrize("timeframe", ["15m", "1h", "4h"])
def test_metatraders_clock_is_told_by_the_weekly_close(tmp_path: Path, timeframe: str) -> None:
    step_ms = {"15m": HOUR_MS // 4, "1h": HOUR_MS, "4h": 4 * HOUR_MS}[timeframe]
    frame = frame_over_spring()
    if timeframe == "15m":
        frame = bars_frame(num_weeks=10, timeframe="15m", first_ms=int(frame["opened_ms"][0]))
    if timeframe == "4h":  # from the roll, as brokers cut them
        week = (pl.col("opened_ms") - pl.col("opened_ms").min()) // step_ms
        frame = frame.filter(pl.int_range(pl.len()) % 4 == 0).with_columns(week.alias("week")).drop("week")
    write_metatrader(tmp_path / f"EURUSD_{timeframe}_2023.csv", frame, **BROKER)
    bars = FolderBars(tmp_path).bars("EUR/USD", timeframe)
    assert_same(bars, frame)
    assert bars.price_side == "bid"
    assert bars.extra["spread"].tolist() == pytest.approx([12e-5] * len(frame))
    assert set(bars.extra) == {"volume", "spread"}


def test_metatraders_clock_may_be_given_and_is_refused_where_nothing_tells_it(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=1).head(20)
    write_metatrader(tmp_path / "EURUSD_H1.csv", frame, **BROKER)
    with pytest.raises(DataValidationError, match="BARS_TIMEZONE"):
        FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert_same(FolderBars(tmp_path, bars_timezone="America/New_York+7").bars("EUR/USD", "1h"), frame)
    with pytest.raises(DataValidationError, match="timezone"):
        FolderBars(tmp_path, bars_timezone="Mars/Olympus")


@pytest.mark.parametrize("setting", ["UTC", "Europe/Athens"])
def test_a_wrong_clock_is_refused_with_the_likely_one(tmp_path: Path, setting: str) -> None:
    frame = frame_over_spring()
    texts = local_texts(frame["opened_ms"].to_numpy(), "%Y-%m-%d %H:%M:%S", **BROKER)
    write_lines(tmp_path / "EURUSD_1h.csv", frame, texts, header="timestamp,open,high,low,close,volume")
    with pytest.raises(DataValidationError, match=r"BARS_TIMEZONE=America/New_York\+7"):
        FolderBars(tmp_path, bars_timezone=setting).bars("EUR/USD", "1h")
    assert_same(FolderBars(tmp_path, bars_timezone="America/New_York+7").bars("EUR/USD", "1h"), frame)
    assert_same(FolderBars(tmp_path).bars("EUR/USD", "1h"), frame)


def test_weekend_filling_is_left_out_and_does_not_accuse_the_clock(tmp_path: Path) -> None:
    frame = bars_frame()
    hours = np.arange(FIRST_MS, int(frame["opened_ms"][-1]), HOUR_MS)
    closed = np.setdiff1d(hours, frame["opened_ms"].to_numpy())
    flat = pl.DataFrame({"opened_ms": closed, **{side: np.full(len(closed), 1.1) for side in PRICES}})
    filled = pl.concat([frame, flat]).sort("opened_ms")
    write_plain(tmp_path, "EURUSD_1h.csv", filled, volume=np.where(np.isin(filled["opened_ms"], closed), 0.0, 7.0))
    assert_same(FolderBars(tmp_path).bars("EUR/USD", "1h"), frame)


def test_parquet_with_and_without_a_zone(tmp_path: Path) -> None:
    frame = bars_frame()
    times = pl.col("opened_ms").cast(pl.Datetime("ms"))
    table = frame.with_columns(times.dt.replace_time_zone("UTC").alias("timestamp"), pl.lit(3).alias("volume"))
    table.drop("opened_ms").write_parquet(tmp_path / "EUR_USD-1h.parquet")
    franc = bars_frame(level=0.93)
    franc.with_columns(times.cast(pl.Datetime("ns")).alias("Time")).drop("opened_ms").write_parquet(
        tmp_path / "USDCHF_1h.parquet"
    )
    folder = FolderBars(tmp_path)
    assert_same(folder.bars("EUR/USD", "1h"), frame)
    assert_same(folder.bars("USD/CHF", "1h"), franc)


def test_further_numeric_columns_are_features_under_their_own_names(tmp_path: Path) -> None:
    frame = bars_frame()
    numbers, notes = [0.5 if row else None for row in range(len(frame))], ["x"] * len(frame)
    write_plain(tmp_path, "EURUSD_1h.csv", frame, **{"My Signal!": numbers, "note": notes})
    source = FolderBars(tmp_path)
    assert source.own_columns() == ["my_signal"]
    store = LocalFeatureStore(source)
    table = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["my_signal", "close"])[0]
    assert np.isnan(table.columns["my_signal"][0])
    assert set(table.columns["my_signal"][1:]) == {0.5}
    assert store.kind_of("my_signal") == "stationary"
    with pytest.raises(DataValidationError, match="my_signal"):
        store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["my_sinal"])


def test_coarser_timeframes_are_made_where_absent(tmp_path: Path) -> None:
    write_plain(tmp_path, "EURUSD_1h.csv", bars_frame())
    folder = FolderBars(tmp_path)
    assert folder.bars("EUR/USD", "4h").opened_ms[1] == FIRST_MS + 2 * HOUR_MS
    assert len(folder.bars("EUR/USD", "1d")) == 60
    with pytest.raises(DataValidationError, match="1h only"):
        folder.bars("EUR/USD", "15m")
    with pytest.raises(DataValidationError, match="EUR/USD"):
        folder.bars("AUD/USD", "1h")


def test_yearly_files_are_joined_and_repeated_bars_dropped(tmp_path: Path) -> None:
    frame = bars_frame()
    write_plain(tmp_path, "EURUSD_1h_a.csv", frame.slice(600).reverse())
    write_plain(tmp_path, "EURUSD_1h_b.csv", frame.head(620))
    assert_same(FolderBars(tmp_path).bars("EUR/USD", "1h"), frame)


def test_a_row_without_a_price_is_a_missing_bar(tmp_path: Path) -> None:
    frame = bars_frame()
    close = [None if row == 100 else value for row, value in enumerate(frame["close"].to_list())]
    write_plain(tmp_path, "EURUSD_1h.csv", frame.with_columns(pl.Series("close", close)))
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert len(bars) == len(frame) - 1
    assert runs(bars.opened_ms, HOUR_MS, "fx")[99:101].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "column", "value", "says"),
    [
        (50, "close", "0", "EURUSD_1h.csv, line 52: a price is not a positive number"),
        (50, "low", "inf", "EURUSD_1h.csv, line 52: a price is not a positive number"),
        (7, "high", "0.5", "EURUSD_1h.csv, line 9: high is below low"),
        (3, "open", "abc", "EURUSD_1h.csv, line 5: `open` is not a number"),
        (0, "timestamp", "yesterday", "EURUSD_1h.csv, line 2: the timestamp cannot be read"),
        (9, "timestamp", "2022-02-30T00:00:00Z", "EURUSD_1h.csv, line 11: the timestamp cannot be read"),
        (9, "timestamp", "2022-12-05T06:00:00Z", "EURUSD_1h.csv, line 11: has the same time as EURUSD_1h.csv, line 10"),
        (9, "timestamp", "2022-12-05T06:30:00Z", "line 11: follows the bar before by 30 minutes"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    tmp_path: Path, row: int, column: str, value: str, says: str
) -> None:
    path = write_plain(tmp_path, "EURUSD_1h.csv", bars_frame())
    table = pl.read_csv(path, infer_schema=False)
    cells = table[column].to_list()
    cells[row] = value
    table.with_columns(pl.Series(column, cells)).write_csv(path)
    with pytest.raises(DataValidationError) as caught:
        FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert says in caught.value.message


def test_whole_numbers_beside_decimal_prices_are_a_spread_in_points(tmp_path: Path) -> None:
    frame = bars_frame()
    write_plain(tmp_path, "EURUSD_1h.csv", frame, spread=[12.0] * len(frame))
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert bars.extra["spread"].tolist() == pytest.approx([0.00012] * len(frame))


def test_bid_and_ask_of_one_series_are_not_mixed(tmp_path: Path) -> None:
    frame = bars_frame()
    write_plain(tmp_path, "EURUSD_1h_BID.csv", frame)
    assert FolderBars(tmp_path).bars("EUR/USD", "1h").price_side == "bid"
    write_plain(tmp_path, "EURUSD_1h_ASK.csv", frame)
    with pytest.raises(DataValidationError, match="price sides"):
        FolderBars(tmp_path).bars("EUR/USD", "1h")


@pytest.mark.parametrize("text", ["", "timestamp,open,high,low,close\n", "a,b\n1,2\n", "\x00\xff\x00\n", "1,2,3\n"])
def test_a_file_that_holds_no_bars_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "EURUSD_1h.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataValidationError, match=r"EURUSD_1h\.csv"):
        FolderBars(tmp_path).bars("EUR/USD", "1h")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    frame = bars_frame()
    path = write_plain(tmp_path, "EURUSD_1h.csv", frame.head(500))
    folder = FolderBars(tmp_path)
    first = folder.bars("EUR/USD", "1h")
    assert folder.bars("EUR/USD", "1h") is first
    write_plain(tmp_path, "EURUSD_1h.csv", frame)
    os.utime(path, ns=(1, 1))
    assert_same(folder.bars("EUR/USD", "1h"), frame)


def test_a_bar_that_is_still_forming_is_not_served(tmp_path: Path) -> None:
    frame = bars_frame()
    write_plain(tmp_path, "EURUSD_1h.csv", frame)
    forming = int(frame["opened_ms"][200])
    store = LocalFeatureStore(FolderBars(tmp_path), clock=FixedClock.at_ms(forming + HOUR_MS - 1))
    table = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])[0]
    assert table.opened_ms[-1] == frame["opened_ms"][199]


def test_available_at_delays_a_bar_and_all_that_build_on_it(tmp_path: Path) -> None:
    frame = bars_frame()
    late = local_texts(frame["opened_ms"].to_numpy() + 2 * HOUR_MS, "%Y-%m-%dT%H:%M:%SZ")
    late[10] = late[14]
    write_plain(tmp_path, "EURUSD_1h.csv", frame, available_at=late)
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    delays = (bars.available_at_ms - bars.opened_ms) // HOUR_MS
    assert delays[8:16].tolist() == [2, 2, 6, 5, 4, 3, 2, 2]
    assert "available_at" not in bars.extra


def test_the_folder_says_how_it_is(tmp_path: Path) -> None:
    assert FolderBars(tmp_path).check().state == "degraded"
    assert FolderBars(tmp_path / "absent").check().state == "down"
    write_plain(tmp_path, "EURUSD_1h.csv", bars_frame(num_weeks=1))
    assert FolderBars(tmp_path).check().state == "ok"


def test_a_folders_url_may_be_relative_and_escaped() -> None:
    assert folder_of_url("file:///data/my%20bars") == Path("/data/my bars")
    assert folder_of_url("file://bars") == Path("bars")
