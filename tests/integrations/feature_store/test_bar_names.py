"""Names of bars files: symbol and timeframe, the spacing of rows where they say none, and files that are not read."""

from pathlib import Path

import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars, series_of_name
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.integrations.feature_store.bar_listing import as_named
from tests.integrations.feature_store.bar_files import bars_frame, local_texts, write_plain


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("EURUSD_1h.csv", ("EUR/USD", "1h")),
        ("EURUSD_H1.csv", ("EUR/USD", "1h")),
        ("EUR_USD-1h.parquet", ("EUR/USD", "1h")),
        ("EUR_USD-H1.parquet", ("EUR/USD", "1h")),
        ("FOREX_EURUSD_1H_ASK.csv", ("EUR/USD", "1h")),
        ("DAT_ASCII_EURUSD_M1_2023.csv", ("EUR/USD", "1m")),
        ("EURUSD_Candlestick_1_Hour_BID_01.01.2020-31.12.2020.csv", ("EUR/USD", "1h")),
        ("usdjpy-m15-bid-2020-01-01-2021-01-01.csv", ("USD/JPY", "15m")),
        ("GBPUSD_Daily_201001010000_202312310000.csv", ("GBP/USD", "1d")),
        ("the_old_eurusd_4h.csv", ("EUR/USD", "4h")),
        ("EURUSD60.csv", ("EUR/USD", "1h")),
        ("EURUSD1440.csv", ("EUR/USD", "1d")),
        ("EURUSDH1.csv", ("EUR/USD", "1h")),
        ("EURUSDM15.csv", ("EUR/USD", "15m")),
        ("OANDA_EURUSD, 60.csv", ("EUR/USD", "1h")),
        ("OANDA_EURUSD, 1D.csv", ("EUR/USD", "1d")),
        ("FX_EURUSD, 240_x.csv", ("EUR/USD", "4h")),
        ("EURUSDm_H1.csv", ("EUR/USD", "1h")),
        ("EURUSDpro_H1.csv", ("EUR/USD", "1h")),
        ("EURUSD.r_H1.csv", ("EUR/USD", "1h")),
        ("EURUSDc_M5.csv", ("EUR/USD", "5m")),
        ("eurusd_d.csv", ("EUR/USD", "1d")),
        ("EURUSD_1 D_Bid_2024.01.01_2024.06.01.csv", ("EUR/USD", "1d")),
        ("EURUSD_5d_1h.csv", ("EUR/USD", "1h")),
        ("EURUSD_1h.csv.gz", ("EUR/USD", "1h")),
        ("GOLD_H1.csv", ("XAU/USD", "1h")),
        ("GOLDm_M5.csv", ("XAU/USD", "5m")),
        ("XBTUSD_1h.csv", ("XBT/USD", "1h")),
        ("BTCUSD_1h.csv", ("BTC/USD", "1h")),
        ("USDVND_H1.csv", ("USD/VND", "1h")),
        ("EURUSD.csv", None),
        ("EURUSD_2023.csv", None),
        ("notes_1h.csv", None),
    ],
)
def test_a_files_name_says_symbol_and_timeframe(name: str, series: tuple[str, str] | None) -> None:
    assert series_of_name(name) == series


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("US30_H1.csv", "`US30` is no pair of two currency codes"),
        ("NAS100_1h.csv", "`NAS100` is no pair"),
        ("golden_1h.csv", "`golden` is no pair"),
        ("BTCUSDT_1h.csv", "`BTCUSDT` is no pair"),
        ("EURUSD_W1.csv", "the service has no timeframe W1; it has 1m, 5m"),
        ("EURUSD_MN1.csv", "no timeframe MN1"),
        ("EURUSD_H8.csv", "no timeframe H8"),
        ("EURUSD_M2.csv", "no timeframe M2"),
        ("EURUSD_M10.csv", "no timeframe M10"),
        ("EURUSD_3h.csv", "no timeframe 3h"),
        ("EURUSD10080.csv", "no timeframe 10080"),
        ("OANDA_EURUSD, 1W.csv", "no timeframe 1W"),
        ("OANDA_EURUSD, 1M.csv", "no timeframe 1M"),
        ("EURUSD_1h.xlsx", "is a spreadsheet; save it as CSV"),
        ("EURUSD_1h.zip", "is packed; unpack it"),
        ("EURUSD60.hst", "export it as CSV"),
        ("readme.md", "has none of the suffixes that are read"),
        (".DS_Store", "is hidden"),
        ("old", "is a folder"),
    ],
)
def test_every_file_that_is_not_read_is_named_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    write_plain(tmp_path, "EURUSD_1h.csv", bars_frame(num_weeks=1))
    (tmp_path / "old").mkdir() if name == "old" else (tmp_path / name).write_text("x")
    folder = FolderBars(tmp_path)
    ((ignored, says),) = folder.ignored()
    assert ignored == name
    assert reason in says
    detail = folder.check().detail
    assert detail.startswith(f"1 series of bars, 1 file ignored: {name} (")
    with pytest.raises(DataValidationError) as caught:
        folder.bars("GBP/USD", "1h")
    assert f"not read: {name} ({says})" in caught.value.message


@pytest.mark.parametrize(
    ("name", "timeframe"),
    [
        ("EURUSD.csv", "1h"),
        ("EURUSD_2022.csv", "15m"),
        ("EURUSD_5.csv", "5m"),
        ("EURUSD=X.csv", "1h"),
        ("EURUSD=X.csv", "1d"),
    ],
)
def test_the_spacing_of_its_rows_tells_a_timeframe_that_the_name_does_not_say(
    tmp_path: Path, name: str, timeframe: str
) -> None:
    frame = bars_frame(num_weeks=2, timeframe="1h" if timeframe == "1d" else timeframe)
    if timeframe == "1d":
        frame = frame.gather_every(24)
    path = write_plain(tmp_path, name, frame)
    folder = FolderBars(tmp_path)
    assert folder.bars("EUR/USD", timeframe).opened_ms.tolist() == frame["opened_ms"].to_list()
    assert folder.ignored() == []
    assert folder.bars("EUR/USD", timeframe) is folder.bars("EUR/USD", timeframe)
    path.write_text("timestamp,open,high,low,close\n2022-12-05T00:00:00Z,1,1,1,1\n2022-12-05T03:00:00Z,1,1,1,1\n")
    if "=X" in name:
        assert folder.ignored() == []  # so few rows are days
        return
    ((_, reason),) = folder.ignored()
    assert "its name says no timeframe, and its rows lie apart like none of" in reason


def test_what_a_name_was_taken_for_is_noted(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=1)
    for name, says in {
        "EURUSDpro_H1.csv": "`pro` in its name is taken for a broker's suffix",
        "GOLDm_H1.csv": "`GOLDm` in its name is read as XAU/USD",
        "EURUSD.csv": "its name says no timeframe; its rows lie 1h apart",
    }.items():
        assert as_named(read_bars(write_plain(tmp_path, name, frame)), "1h").notes == (says,)


def test_histdatas_list_of_gaps_is_no_bars(tmp_path: Path) -> None:
    write_plain(tmp_path, "DAT_ASCII_EURUSD_H1_2022.csv", bars_frame(num_weeks=1))
    (tmp_path / "DAT_ASCII_EURUSD_H1_2022.txt").write_text("Gap of 120s found between 20220102170200 and ...\n")
    ((name, reason),) = FolderBars(tmp_path).ignored()
    assert (name, reason) == ("DAT_ASCII_EURUSD_H1_2022.txt", "is HistData's list of gaps, no bars")


def test_columns_are_found_where_the_first_rows_alone_do_not_tell_day_from_month(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=2, timeframe="5m").tail(2000)
    texts = local_texts(frame["opened_ms"].to_numpy(), "%d/%m/%Y")
    clocks = local_texts(frame["opened_ms"].to_numpy(), "%H:%M")
    first_day = [text for text in texts if text == "08/12/2022"]
    assert len(first_day) > 100
    start = texts.index(first_day[0])
    lines = [f"{day} {clock},1.1,1.1,1.1,1.1,3" for day, clock in zip(texts[start:], clocks[start:], strict=True)]
    (tmp_path / "EURUSD.csv").write_text("\n".join(["time,open,high,low,close,mine", *lines]))
    folder = FolderBars(tmp_path)
    assert folder.own_columns() == ["mine"]
    assert folder.ignored() == []


def test_a_file_without_timeframe_whose_rows_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "EURUSD.csv").write_text("timestamp,open\n1,2\n")
    ((name, reason),) = FolderBars(tmp_path).ignored()
    assert name == "EURUSD.csv"
    assert "has no high, low, close" in reason


@pytest.mark.parametrize(
    ("named", "held", "says"),
    [("4h", "1h", "lie 1 hour apart, its name says 4h"), ("15m", "1h", "lie 1 hour apart, its name says 15m")],
)
def test_a_file_whose_rows_lie_apart_otherwise_than_it_says_is_refused(
    tmp_path: Path, named: str, held: str, says: str
) -> None:
    write_plain(tmp_path, f"EURUSD_{named}.csv", bars_frame(num_weeks=2, timeframe=held))
    with pytest.raises(DataValidationError, match=says):
        FolderBars(tmp_path).bars("EUR/USD", named)


def test_days_before_hours_in_one_file_are_refused_where_they_begin(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=30)
    hours = frame.tail(1000)
    days = frame.head(len(frame) - 1000).gather_every(24)
    write_plain(tmp_path, "EURUSD_1h.csv", pl.concat([hours, days]))
    with pytest.raises(DataValidationError, match=r"EURUSD_1h\.csv, line 1002: from here its rows lie 1 day apart"):
        FolderBars(tmp_path).bars("EUR/USD", "1h")


def test_a_file_that_is_refused_does_not_hide_the_columns_of_others(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=1)
    write_plain(tmp_path, "EURUSD_1h.csv", frame, mine=frame["open"])
    (tmp_path / "GBPUSD_1h.csv").write_text("a,b\n1,2\n")
    assert FolderBars(tmp_path).own_columns() == ["mine"]
