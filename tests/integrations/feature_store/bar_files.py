"""Simulated hourly bars for tests, and the layouts in which exports write them."""

from pathlib import Path

import numpy as np
import polars as pl

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.integrations.feature_store import simulation

FIRST_MS = int(np.datetime64("2022-12-04T22:00", "ms").astype(np.int64))  # a Sunday evening


def bars_frame(
    *, num_weeks: int = 12, timeframe: str = "1h", seed: int = 1, level: float = 1.1, first_ms: int = FIRST_MS
) -> pl.DataFrame:
    """`opened_ms`, open, high, low, close, rounded to five digits as quotes are."""
    steps = simulation.step_openings(first_ms, first_ms + (num_weeks - 1) * 7 * 86_400_000)
    path = simulation.simulate(steps, key=(seed, 0), level=level, daily_variance=0.005**2)
    opened, *prices = simulation.candles(path, timeframe_ms=TIMEFRAMES_MS[timeframe])
    open_, high, low, close = (np.round(column, 5) for column in prices)
    return pl.DataFrame({"opened_ms": opened, "open": open_, "high": high, "low": low, "close": close})


def local_texts(opened_ms: Ints, pattern: str, *, zone: str = "UTC", added_hours: int = 0) -> list[str]:
    """The openings as a clock in that zone shows them, written by a strftime pattern."""
    utc = pl.Series(opened_ms).cast(pl.Datetime("ms", "UTC"))
    local = utc.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.offset_by(f"{added_hours}h")
    return local.dt.strftime(pattern).to_list()


def write_plain(folder: Path, name: str, frame: pl.DataFrame, **columns: object) -> Path:
    """`timestamp,open,high,low,close` with further columns."""
    texts = local_texts(frame["opened_ms"].to_numpy(), "%Y-%m-%dT%H:%M:%SZ")
    table = frame.drop("opened_ms").insert_column(0, pl.Series("timestamp", texts))
    table = table.with_columns(pl.Series(key, values) for key, values in columns.items())
    path = folder / name
    table.write_csv(path)
    return path


def write_metatrader(path: Path, frame: pl.DataFrame, *, zone: str, added_hours: int = 0, spread: int = 12) -> Path:
    """MetaTrader 5's tab-separated export on a broker's clock."""
    opened = frame["opened_ms"].to_numpy()
    days = local_texts(opened, "%Y.%m.%d", zone=zone, added_hours=added_hours)
    times = local_texts(opened, "%H:%M:%S", zone=zone, added_hours=added_hours)
    header = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    rows = [
        f"{day}\t{time}\t{o:.5f}\t{h:.5f}\t{low:.5f}\t{c:.5f}\t100\t0\t{spread}"
        for day, time, (_, o, h, low, c) in zip(days, times, frame.iter_rows(), strict=True)
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path
