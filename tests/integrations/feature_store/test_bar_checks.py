"""Bars one can trust: bad ticks, another pair's prices and spreads that are none are refused; what is odd is told."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.reading_reports import ReadingReport
from ml_workbench_service.integrations.feature_store.bar_fixings import Fixings, Unlike, compare, ecb_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.bar_spreads import doubt_of_spread
from tests.integrations.feature_store.bar_files import bars_frame, local_texts, write_plain

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
PRICES = ("open", "high", "low", "close")


def read(folder: Path, frame: pl.DataFrame, **columns: object) -> ReadingReport:
    write_plain(folder, "EURUSD_1h.csv", frame, **columns)
    (report,) = FolderBars(folder).bars("EUR/USD", "1h").reports
    return report


def refusal(folder: Path, frame: pl.DataFrame, **columns: object) -> str:
    with pytest.raises(DataValidationError) as caught:
        read(folder, frame, **columns)
    return caught.value.message


def scaled(frame: pl.DataFrame, rows: slice, factor: float, columns: tuple[str, ...] = PRICES) -> pl.DataFrame:
    """The frame with these prices multiplied."""
    values = {name: frame[name].to_numpy().copy() for name in columns}
    for column in values.values():
        column[rows] *= factor
    return frame.with_columns(pl.Series(name, column) for name, column in values.items())


@pytest.mark.parametrize("row", [0, 100, -1])
@pytest.mark.parametrize("factor", [100.0, 10.0, 0.01])
def test_a_price_a_power_of_ten_away_is_refused_with_its_line(tmp_path: Path, row: int, factor: float) -> None:
    frame = bars_frame()
    at = row % len(frame)
    said = refusal(tmp_path, scaled(frame, slice(at, at + 1), factor))
    assert said.startswith(f"EURUSD_1h.csv, line {at + 2}: ")
    assert "its neighbour's" in said


def test_a_tick_that_the_next_bar_takes_back_is_refused_and_a_move_that_stays_is_listed(tmp_path: Path) -> None:
    frame = bars_frame()
    assert "a bad tick" in refusal(tmp_path, scaled(frame, slice(200, 201), 1.05))
    assert "line 302: `high`" in refusal(tmp_path, scaled(frame, slice(300, 301), 1.05, ("high",)))
    report = read(tmp_path, scaled(frame, slice(400, None), 0.95))
    (move,) = (note for note in report.notes if "stays and is kept" in note)
    assert move.startswith("a move of -4.9")


def test_a_stretch_of_inverse_prices_is_refused(tmp_path: Path) -> None:
    frame = bars_frame(level=1.3)
    flipped = {"open": "open", "high": "low", "low": "high", "close": "close"}
    inverse = pl.DataFrame({"opened_ms": frame["opened_ms"], **{to: 1 / frame[of] for to, of in flipped.items()}})
    assert "inverse" in refusal(tmp_path, pl.concat([frame.head(700), inverse.slice(700)]))


def test_a_jump_over_parity_that_happens_upon_the_inverse_is_kept_and_listed_so(tmp_path: Path) -> None:
    frame = bars_frame(level=0.965)
    factor = 1 / float(frame["close"][399] * frame["close"][400])
    assert 1.01 < factor < 1.06
    report = read(tmp_path, scaled(frame, slice(400, None), factor))
    (move,) = (note for note in report.notes if "stays and is kept" in note)
    assert "leads to the inverse price" in move


@pytest.mark.parametrize("name", ["open", "close"])
def test_prices_outside_low_to_high_are_refused(tmp_path: Path, name: str) -> None:
    frame = bars_frame()
    column = frame[name].to_numpy().copy()
    column[50] = float(frame["high"][50]) + 1e-5
    said = refusal(tmp_path, frame.with_columns(pl.Series(name, column)))
    assert said == f"EURUSD_1h.csv, line 52: `{name}` lies outside low to high; correct or delete the row"


def fixings_of(symbols: tuple[str, ...], num_days: int, seed: int = 3) -> Fixings:
    """Random walks of some currencies against the euro, on weekdays of 2023."""
    days = np.datetime64("2023-01-02") + np.arange(num_days * 2)
    days = days[np.is_busday(days)][:num_days]
    rng = np.random.default_rng(seed)
    levels = {"USD": 1.08, "JPY": 150.0, "GBP": 0.87, "CHF": 0.98}
    walks = {each: levels[each] * np.exp(np.cumsum(rng.normal(0, 0.005, num_days))) for each in symbols}
    return Fixings(days.astype("datetime64[ms]").astype(np.int64), {"EUR": np.ones(num_days), **walks})


def hours_through(fixings: Fixings, log_price: Floats) -> tuple[np.ndarray, Floats, Floats]:
    """Hourly bars whose price at each fixing is this one: opened, open, close."""
    moments = fixings.moments_ms
    opened = np.arange(moments[0] // DAY_MS * DAY_MS, moments[-1] + DAY_MS, HOUR_MS)
    path = [np.exp(np.interp(opened + shift, moments, log_price)) for shift in (0, HOUR_MS)]
    return opened, path[0], path[1]


def test_the_pairs_own_prices_are_a_note_and_few_days_a_doubt() -> None:
    fixings = fixings_of(("USD",), 60)
    finding = compare("EUR/USD", *hours_through(fixings, fixings.log_cross("EUR/USD")), HOUR_MS, fixings)
    assert not finding.is_doubt
    assert "correlated 1.00, on 59 days" in finding.text
    few = fixings_of(("USD",), 20)
    assert compare("EUR/USD", *hours_through(few, few.log_cross("EUR/USD")), HOUR_MS, few).is_doubt
    assert compare("XAU/USD", *hours_through(few, few.log_cross("EUR/USD")), HOUR_MS, few).is_doubt


@pytest.mark.parametrize(
    ("of", "change", "says"),
    [
        ("USD/EUR", lambda log: log, "they are inverted"),
        ("EUR/GBP", lambda log: log, "they are EUR/GBP's; rename the file"),
        ("EUR/USD", lambda log: np.roll(log, 1), "one too late"),
        ("EUR/USD", lambda log: np.roll(log, -1), "one too early"),
        ("EUR/USD", lambda log: log + np.log(100), "as the ECB fixed them"),
        ("EUR/JPY", lambda log: log * 0 + np.log(1.3), "as the ECB fixed them"),
    ],
)
def test_other_prices_are_refused_by_whose_they_are(of: str, change: Callable[[Floats], Floats], says: str) -> None:
    fixings = fixings_of(("USD", "JPY", "GBP", "CHF"), 80)
    with pytest.raises(Unlike, match=says):
        compare("EUR/USD", *hours_through(fixings, change(fixings.log_cross(of))), HOUR_MS, fixings)


def test_prices_near_the_pairs_that_move_as_nothing_does_are_doubtful() -> None:
    fixings = fixings_of(("USD",), 80)
    walk = np.log(1.09) + np.cumsum(np.random.default_rng(9).normal(0, 0.002, 80))
    finding = compare("EUR/USD", *hours_through(fixings, walk), HOUR_MS, fixings)
    assert finding.is_doubt
    assert "does not move" in finding.text.replace("do not", "does not")


def test_a_file_that_another_repeats_whole_is_told_so_and_stops_no_listing(tmp_path: Path) -> None:
    frame = bars_frame()
    for name in ("EURUSD_1h.csv", "EURUSD60.csv", "EURUSDm_H1.csv"):
        write_plain(tmp_path, name, frame)
    folder = FolderBars(tmp_path)
    found = folder.series()
    assert [(each.origin, each.num_rows) for each in found.series] == [
        ("EURUSD60.csv", len(frame)), ("EURUSD_1h.csv", 0), ("EURUSDm_H1.csv", 0),
    ]  # fmt: skip
    for report in folder.bars("EUR/USD", "1h").reports[1:]:
        assert report.dropped == {"repeated": len(frame)}
        assert report.notes[-1] == "every row of it stands in another file of the series too"


def test_the_banks_own_file_is_read_at_a_quarter_past_two_in_frankfurt() -> None:
    moments = ecb_fixings().moments_ms.astype("datetime64[ms]")
    assert np.isin(np.array(["2024-01-05T13:15", "2024-07-05T12:15"], dtype="datetime64[ms]"), moments).all()


@pytest.mark.parametrize(
    ("symbol", "price", "spread", "is_refused"),
    [
        ("EUR/USD", 1.1, 1.2e-4, None),
        ("EUR/USD", 1.1, 12.0, True),
        ("EUR/USD", 1.1, 1.2e-2, True),
        ("EUR/USD", 1.1, 0.0, False),
        ("EUR/USD", 1.1, 5e-7, False),
        ("USD/JPY", 150.0, 1.0, True),
        ("USD/JPY", 150.0, 0.012, None),
        ("XAU/USD", 2650.0, 0.2, None),
        ("XAU/USD", 2650.0, 20.0, True),
        ("EUR/USD", 1.1, -1e-4, True),
        ("EUR/USD", 1.1, np.nan, False),
        ("ABC/DEF", 1.0, 0.02, True),
        ("ABC/DEF", 1.0, 0.002, None),
    ],
)
def test_a_spread_is_one_between_a_twentieth_and_twenty_times_the_usual(
    symbol: str, price: float, spread: float, is_refused: bool | None
) -> None:
    doubt = doubt_of_spread(symbol, np.full(5, spread), np.full(5, price))
    assert (None if doubt is None else doubt[1]) == is_refused


def test_a_spread_that_is_none_is_left_out_with_a_warning(tmp_path: Path) -> None:
    frame = bars_frame()
    report = read(tmp_path, frame, spread=[0.0] * len(frame))
    assert any("which is none" in each for each in report.warnings)
    assert "spread" not in FolderBars(tmp_path).bars("EUR/USD", "1h").extra


def test_coins_keep_the_bars_of_the_fx_week(tmp_path: Path) -> None:
    frame = bars_frame()
    hours = np.arange(int(frame["opened_ms"][0]), int(frame["opened_ms"][-1]), HOUR_MS)
    rng = np.random.default_rng(2)
    close = np.round(40_000 * np.exp(np.cumsum(rng.normal(0, 0.003, len(hours)))), 2)
    coin = pl.DataFrame({"opened_ms": hours, "open": close, "high": close + 1, "low": close - 1, "close": close})
    write_plain(tmp_path, "BTCUSD_1h.csv", coin)
    bars = FolderBars(tmp_path).bars("BTC/USD", "1h")
    (report,) = bars.reports
    assert bars.opened_ms.tolist() == frame["opened_ms"].to_list()[:-1]
    assert report.dropped == {"weekend": len(hours) - len(bars)}


def test_what_a_report_says_of_a_good_file(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=2)
    seventh = pl.int_range(pl.len()) == 7
    table = frame.with_columns(pl.when(seventh).then(None).otherwise(pl.col("close")).alias("close"))
    report = read(tmp_path, pl.concat([table, table.slice(3, 2)]), mine=[1.0] * (len(frame) + 2))
    assert report.dropped == {"empty_price": 1, "repeated": 2}
    assert report.num_rows == len(frame) - 1
    assert (report.time_zone, report.time_zone_from, report.price_side) == ("UTC", "file", "mid")
    assert (report.price_unit, report.spread_unit, report.columns) == ("USD for one EUR", None, ("mine",))
    assert report.first is not None
    assert report.first.timestamp() * 1000 == frame["opened_ms"][0]


def test_a_decision_is_pinned_and_never_moves_rows_that_were_read(tmp_path: Path) -> None:
    frame, pins = bars_frame(num_weeks=6), tmp_path / "state" / "bar_readings.jsonl"
    folder = tmp_path / "bars"
    folder.mkdir()
    texts = local_texts(frame["opened_ms"].to_numpy(), "%Y-%m-%d %H:%M:%S", zone="America/New_York", added_hours=7)
    rows = frame.drop("opened_ms").insert_column(0, pl.Series("timestamp", texts))
    rows.head(360).write_csv(folder / "EURUSD_1h.csv")
    first = FolderBars(folder, pins=pins).bars("EUR/USD", "1h")
    assert pins.read_text().count("\n") == 1
    rows.write_csv(folder / "EURUSD_1h.csv")
    grown = FolderBars(folder, pins=pins).bars("EUR/USD", "1h")
    assert grown.opened_ms.tolist() == frame["opened_ms"].to_list()
    assert grown.opened_ms[:360].tolist() == first.opened_ms.tolist()
    moved = rows.with_columns(pl.Series("timestamp", _later(texts, 360)))
    moved.write_csv(folder / "EURUSD_1h.csv")
    with pytest.raises(DataValidationError, match=r"EURUSD_1h\.csv"):
        FolderBars(folder, pins=pins).bars("EUR/USD", "1h")
    rows.write_csv(folder / "EURUSD_1h.csv")
    with pytest.raises(DataValidationError, match="BARS_TIMEZONE"):
        FolderBars(folder, pins=pins, bars_timezone="America/New_York+8").bars("EUR/USD", "1h")
    rows.tail(1).write_csv(folder / "EURUSD_1h.csv")
    with pytest.raises(DataValidationError, match="fit several"):  # another file now, and too short to tell
        FolderBars(folder, pins=pins).bars("EUR/USD", "1h")


def test_what_contradicts_a_pin_is_refused_with_both_readings(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=2)
    few = frame.slice(10, 60)  # Monday to Wednesday: nothing tells the clock
    texts = local_texts(few["opened_ms"].to_numpy(), "%Y-%m-%d %H:%M:%S")
    few.drop("opened_ms").insert_column(0, pl.Series("timestamp", texts)).write_csv(tmp_path / "EURUSD_1h.csv")
    pins = tmp_path / "pins.jsonl"
    FolderBars(tmp_path, pins=pins, bars_timezone="UTC").bars("EUR/USD", "1h")
    assert len(FolderBars(tmp_path, pins=pins).bars("EUR/USD", "1h")) == 60  # still read as then
    with pytest.raises(DataValidationError, match=r"was read as UTC and now speaks for UTC\+2, .* opened at") as caught:
        FolderBars(tmp_path, pins=pins, bars_timezone="UTC+2").bars("EUR/USD", "1h")
    assert "bar_readings.jsonl" in caught.value.message


def _later(texts: list[str], begin: int) -> list[str]:
    """The times from there on an hour later."""
    moved = np.array(texts[begin:], dtype="datetime64[s]") + np.timedelta64(1, "h")
    return texts[:begin] + [str(each).replace("T", " ") for each in moved]


def test_series_lists_each_file_and_why_others_are_not_read(tmp_path: Path) -> None:
    frame = bars_frame(num_weeks=4)
    write_plain(tmp_path, "EURUSD_1h.csv", frame)
    write_plain(tmp_path, "GBPUSD_1h.csv", scaled(frame, slice(9, 10), 100.0))
    (tmp_path / "notes.txt").write_text("hello")
    found = FolderBars(tmp_path).series()
    assert [(each.origin, each.symbol, each.source) for each in found.series] == [("EURUSD_1h.csv", "EUR/USD", "file")]
    assert [each.origin for each in found.ignored] == ["GBPUSD_1h.csv", "notes.txt"]
    assert "line 11" in found.ignored[0].reason
    assert all(each.reason for each in found.ignored)
