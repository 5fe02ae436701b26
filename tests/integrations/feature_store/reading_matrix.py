"""The reading matrix: files written on every clock, in every timeframe, layout and instrument, and what became of each.

A cell is right where every row opens at its true moment with its true prices, refused where an error says what to do,
and silently wrong otherwise. Where the file or BARS_TIMEZONE says another clock than the true one and the bars cannot
prove it (gold, which decides nothing; four hours that straddle the week's ends; dates), the report must say so.
`python -m tests.integrations.feature_store.reading_matrix` reads all of it and prints its size by outcome; the suite
reads a part.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.integrations.feature_store import simulation
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.market.calendar import HOUR_MS, trading_day_opening

FIRST_MS = int(np.datetime64("2023-02-05T22:00", "ms").astype(np.int64))  # New York's spring and Europe's follow
WEEKS = {"1m": 2, "5m": 10, "15m": 10, "1h": 45, "2h": 45, "4h": 45, "1d": 45}  # all but minutes see a clock change
CLOCKS = {
    "UTC": ("UTC", 0), "UTC+3": ("UTC", 3), "UTC-5": ("UTC", -5),
    "New York+7": ("America/New_York", 7), "New York+8": ("America/New_York", 8),
    "New York+6": ("America/New_York", 6), "New York": ("America/New_York", 0), "London": ("Europe/London", 0),
    "London+1": ("Europe/London", 1), "London-1": ("Europe/London", -1), "Berlin": ("Europe/Berlin", 0),
    "Athens": ("Europe/Athens", 0), "Athens+1": ("Europe/Athens", 1), "UTC+1": ("UTC", 1), "UTC-1": ("UTC", -1),
}  # fmt: skip
"""The clock on the writer's wall: a zone and hours added to it."""
LAYOUTS = ("plain", "metatrader5", "metatrader4", "dukascopy_local", "dukascopy_gmt", "zulu")
SAYS_UTC = ("dukascopy_gmt", "zulu")  # whatever the clock was
ALIGNED = ("utc", "roll")
INSTRUMENTS = {"EURUSD": 1.1, "XAUUSD": 1900.0}


@dataclass(frozen=True)
class Cell:
    """One file."""

    clock: str
    timeframe: str
    layout: str
    instrument: str
    is_end: bool  # whether bars are stamped with their end
    aligned: str  # what bars over an hour are aligned to
    setting: str | None = None  # BARS_TIMEZONE
    with_fx: bool = False  # whether an hourly FX file of the same program lies beside it


def cells() -> Iterator[Cell]:
    """All of them."""
    for clock, timeframe, layout, instrument, is_end in product(CLOCKS, WEEKS, LAYOUTS, INSTRUMENTS, (False, True)):
        for aligned in ALIGNED if TIMEFRAMES_MS[timeframe] > HOUR_MS else ALIGNED[:1]:
            cell = Cell(clock, timeframe, layout, instrument, is_end, aligned)
            yield cell
            if layout in ("plain", "metatrader5"):
                zone, hours = CLOCKS[clock]
                yield Cell(*_values(cell), setting=f"{zone}{hours:+d}" if hours else zone)
                yield Cell(*_values(cell), setting=f"{zone}{hours + 1:+d}")
                yield Cell(*_values(cell), setting=f"{zone}{hours - 1:+d}")
            if instrument == "XAUUSD" and layout in ("plain", "metatrader5"):
                yield Cell(*_values(cell), with_fx=True)


def _values(cell: Cell) -> tuple[str, str, str, str, bool, str]:
    return cell.clock, cell.timeframe, cell.layout, cell.instrument, cell.is_end, cell.aligned


@cache
def true_bars(timeframe: str, instrument: str, aligned: str) -> pl.DataFrame:
    """`opened_ms`, open, high, low, close; gold pauses in the hour from 17:00 New York."""
    steps = simulation.step_openings(FIRST_MS, FIRST_MS + (WEEKS[timeframe] - 1) * 7 * 24 * HOUR_MS)
    path = simulation.simulate(steps, key=(7, 0), level=INSTRUMENTS[instrument], daily_variance=0.005**2)
    opened, ends = path.opened_ms, path.ends
    if timeframe == "1m":  # five of one step, on a straight way
        opened = (opened[:, None] + 60_000 * np.arange(5)).ravel()
        ends = (path.starts[:, None] + (path.ends - path.starts)[:, None] * np.arange(1, 6) / 5).ravel()
    if instrument == "XAUUSD":
        kept = opened - trading_day_opening(opened) >= HOUR_MS
        opened, ends = opened[kept], ends[kept]
    length_ms = TIMEFRAMES_MS[timeframe]
    base = trading_day_opening(opened) if aligned == "roll" else np.zeros_like(opened)
    group = base + (opened - base) // length_ms * length_ms
    firsts = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    lasts = np.append(firsts[1:], len(group)) - 1
    digits = 5 if instrument == "EURUSD" else 2
    starts = np.concatenate([ends[:1], ends[:-1]])
    high = np.maximum(np.maximum.reduceat(ends, firsts), starts[firsts]) + 1e-4
    low = np.minimum(np.minimum.reduceat(ends, firsts), starts[firsts]) - 1e-4
    prices = {"open": starts[firsts], "high": high, "low": low, "close": ends[lasts]}
    columns = {name: np.round(np.exp(values), digits) for name, values in prices.items()}
    return pl.DataFrame({"opened_ms": group[firsts], **columns})


def write(folder: Path, cell: Cell) -> pl.DataFrame:
    """The cell's file in the folder; the bars as they truly are."""
    frame = true_bars(cell.timeframe, cell.instrument, cell.aligned)
    _write(folder, cell, frame)
    if cell.with_fx:
        beside = Cell(cell.clock, "1h", cell.layout, "EURUSD", cell.is_end, "utc")
        _write(folder, beside, true_bars("1h", "EURUSD", "utc"))
    return frame


def local_times(cell: Cell, opened_ms: Ints) -> pl.Series:
    """The stamps as the writer's clock shows them."""
    zone, hours = CLOCKS[cell.clock]
    stamps = opened_ms + (TIMEFRAMES_MS[cell.timeframe] if cell.is_end else 0)
    utc = pl.Series("time", stamps).cast(pl.Datetime("ms", "UTC"))
    return utc.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.offset_by(f"{hours}h")


def _write(folder: Path, cell: Cell, frame: pl.DataFrame) -> None:
    local = local_times(cell, frame["opened_ms"].to_numpy())
    patterns = {
        "plain": "%Y-%m-%d %H:%M:%S",
        "metatrader5": "%Y.%m.%d\t%H:%M:%S",
        "metatrader4": "%Y.%m.%d,%H:%M",
        "dukascopy_local": "%d.%m.%Y %H:%M:%S.000",
        "dukascopy_gmt": "%d.%m.%Y %H:%M:%S.000",
        "zulu": "%Y-%m-%dT%H:%M:%SZ",
    }
    headers = {
        "plain": "timestamp,open,high,low,close",
        "metatrader5": "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>",
        "metatrader4": None,
        "dukascopy_local": "Local time,Open,High,Low,Close",
        "dukascopy_gmt": "Gmt time,Open,High,Low,Close",
        "zulu": "timestamp,open,high,low,close",
    }
    mark = "\t" if cell.layout == "metatrader5" else ","
    table = pl.DataFrame([local.dt.strftime(patterns[cell.layout]).alias("time"), *frame.drop("opened_ms")])
    text = table.select(pl.concat_str(pl.all(), separator=mark)).to_series().to_list()
    header = headers[cell.layout]
    name = f"{cell.instrument}_{cell.timeframe}.csv"
    (folder / name).write_text("\n".join([*([header] if header else []), *text, ""]))


def outcome(cell: Cell) -> str:
    """`right`, `refused: …` or `WRONG: …`."""
    symbol = f"{cell.instrument[:3]}/{cell.instrument[3:]}"
    with tempfile.TemporaryDirectory() as name:
        frame = write(Path(name), cell)
        try:
            bars = FolderBars(Path(name), bars_timezone=cell.setting).bars(symbol, cell.timeframe)
        except DataValidationError as error:
            return f"refused: {error.message}"
    opened = frame["opened_ms"].to_numpy()
    (report,) = bars.reports
    if np.array_equal(bars.opened_ms, opened) and np.array_equal(bars.close, frame["close"].to_numpy()):
        return "right"
    if report.time_zone_from == "none":
        # Dates alone: never known before the bar truly ended.
        ends = opened + TIMEFRAMES_MS[cell.timeframe]
        if len(bars) == len(opened) and (bars.available_at_ms >= ends - (cell.instrument != "EURUSD")).all():
            return "right by the rule for dates"
    told = " ".join([*report.notes, *report.warnings])
    if was_misled(cell) and (cell.instrument != "EURUSD" or "weeks do not prove" in told or "days open at" in told):
        return "told wrong, and said to be unproven"
    if was_misled(cell) and cell.timeframe == "1d":
        return "told wrong about dates"
    return f"WRONG: {len(bars)} of {len(opened)} rows, first off by {(bars.opened_ms[0] - opened[0]) / HOUR_MS:g} h"


def was_misled(cell: Cell) -> bool:
    """Whether the file or BARS_TIMEZONE says another clock than the true one."""
    zone, hours = CLOCKS[cell.clock]
    truth = f"{zone}{hours:+d}" if hours else zone
    return cell.layout in SAYS_UTC or cell.setting not in (None, truth)


def main() -> int:
    """Reads every cell; prints the matrix's size by outcome, and each cell that is silently wrong."""
    counts: Counter[str] = Counter()
    for cell in cells():
        found = outcome(cell)
        counts[found.partition(":")[0]] += 1
        if found.startswith("WRONG"):
            print(cell, found)  # noqa: T201
    print(sum(counts.values()), "cells:", dict(counts))  # noqa: T201
    return int("WRONG" in counts)


if __name__ == "__main__":
    sys.exit(main())
