"""From files as they stand to bars one can trust: in UTC, sorted, checked.

Refused, with file and line: prices that are not positive numbers, high below low, different bars at one time, bars
closer together than the timeframe says, a spread in points, more than 1 % of bars outside the FX week (the error names
the likely zone), and a MetaTrader clock that nothing tells.

Left out: rows with an empty price (a missing bar), exact repetitions, and bars outside the FX week, where nothing
trades; flat ones without volume there are an exporter's filling and do not count towards the 1 %.

Legend: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Bools, Floats, Ints
from ml_workbench_service.integrations.feature_store.bar_columns import PRICES, RawBars, bad_file
from ml_workbench_service.integrations.feature_store.bar_time_zones import (
    MAX_OUTSIDE_SHARE,
    infer_zone,
    outside,
    to_utc,
)
from ml_workbench_service.integrations.feature_store.bar_times import MISSING_MS
from ml_workbench_service.market.fills import at_mid

MAX_SPREAD_SHARE = 0.01  # of the price; a wider median spread is not in price units
CLOSEST_SHARE = 0.75  # of a timeframe; daily bars on a clock with summer time lie up to an hour closer


@dataclass(frozen=True)
class _Rows:
    """Rows in UTC and where each stands."""

    opened_ms: Ints  # (N,)
    available_at_ms: Ints  # (N,)
    columns: dict[str, Floats]  # each (N,): prices and extras
    file: Ints  # (N,) index into the files
    row: Ints  # (N,) row within the file

    def taken(self, chosen: "Ints | Bools") -> "_Rows":
        """Some of the rows, or all in another order."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return _Rows(self.opened_ms[chosen], self.available_at_ms[chosen], columns, self.file[chosen], self.row[chosen])


def checked_bars(files: Sequence[RawBars], *, symbol: str, timeframe: str, zone: str | None) -> Bars:
    """One series from its files.

    Args:
        zone: the clock of files that do not say theirs; None leaves UTC, and MetaTrader's to inference.

    Raises:
        DataValidationError: as the module's docstring says.
    """
    sides = {raw.price_side for raw in files}
    if len(sides) > 1:
        names = ", ".join(raw.file for raw in files)
        raise bad_file(names, "hold different price sides of one series; keep the files of one side only")
    length_ms = TIMEFRAMES_MS[timeframe]
    parts = [_read_rows(raw, index, length_ms, zone=zone) for index, raw in enumerate(files)]
    rows = _without_repetitions(_joined(parts), files)
    _check_spacing(rows, files, timeframe)
    _check_spread(rows, files)
    bars = Bars(
        symbol=symbol,
        timeframe=timeframe,
        opened_ms=rows.opened_ms,
        available_at_ms=np.maximum.accumulate(rows.available_at_ms),  # a row's indicators use every bar before it
        open=rows.columns["open"],
        high=rows.columns["high"],
        low=rows.columns["low"],
        close=rows.columns["close"],
        data_source="file",
        extra={name: column for name, column in rows.columns.items() if name not in PRICES},
        price_side=files[0].price_side,
        declares_times=all(
            raw.available_ms is not None and bool((raw.available_ms != MISSING_MS).all()) for raw in files
        ),
        spread_time=files[0].spread_time,
    )
    return at_mid(bars)


def _read_rows(raw: RawBars, index: int, length_ms: int, *, zone: str | None) -> _Rows:
    """One file's rows within the FX week, prices checked, in UTC."""
    present = _checked_prices(raw)
    flat = (raw.prices["high"] == raw.prices["low"]) & ~(raw.extra.get("volume", np.zeros(len(present))) > 0)
    local_ms = raw.times.local_ms
    observed = present & ~flat
    opened = to_utc(local_ms, raw.times.zone or _zone_of(raw, np.sort(local_ms[observed]), length_ms, zone=zone))
    closed = outside(opened, length_ms)
    if np.sum(closed & observed) > MAX_OUTSIDE_SHARE * max(1, np.sum(observed)):
        raise _wrong_zone(raw, np.sort(local_ms[observed]), length_ms)
    known = opened + length_ms
    if raw.available_ms is not None:
        known = np.where(raw.available_ms == MISSING_MS, known, np.maximum(known, raw.available_ms))
    rows = _Rows(
        opened, known, {**raw.prices, **raw.extra}, np.full(len(opened), index), np.arange(len(opened), dtype=np.int64)
    )
    return rows.taken(present & ~closed)


def _checked_prices(raw: RawBars) -> Bools:
    """(N,) whether a row has all its prices; raises where one cannot be a price."""
    prices = np.stack([raw.prices[name] for name in PRICES])
    present = ~np.isnan(prices).any(axis=0)
    bad = present & ~((prices > 0) & np.isfinite(prices)).all(axis=0)
    if bad.any():
        raise bad_file(raw.where(int(np.argmax(bad))), "a price is not a positive number; correct or delete the row")
    crossed = present & (raw.prices["high"] < raw.prices["low"])
    if crossed.any():
        raise bad_file(raw.where(int(np.argmax(crossed))), "high is below low; correct or delete the row")
    return np.asarray(present)


def _zone_of(raw: RawBars, local_ms: Ints, length_ms: int, *, zone: str | None) -> str:
    """The zone of a file that does not say its own."""
    if zone is not None:
        return zone
    if not raw.is_broker_time:
        return "UTC"
    inferred = infer_zone(local_ms, length_ms)
    if inferred is None:
        raise bad_file(
            raw.file,
            "holds a broker's clock that its weekly close does not tell; set BARS_TIMEZONE, for most brokers to "
            "America/New_York+7",
        )
    return inferred


def _wrong_zone(raw: RawBars, local_ms: Ints, length_ms: int) -> DataValidationError:
    likely = infer_zone(local_ms, length_ms)
    step = f"its clock is likely {likely}: set BARS_TIMEZONE={likely}" if likely else "set BARS_TIMEZONE to its clock"
    if raw.times.zone is not None:
        step = f"the times say {raw.times.zone}, " + (
            f"but are likely {likely}; correct them" if likely else "check them"
        )
    return bad_file(
        raw.file, f"more than 1 % of its bars lie outside the FX week (Sunday to Friday 17:00 New York); {step}"
    )


def _joined(parts: Sequence[_Rows]) -> _Rows:
    """All files' rows, sorted by opening; a column that a file lacks is NaN there."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns = {
        name: np.concatenate([part.columns.get(name, np.full(len(part.opened_ms), np.nan)) for part in parts])
        for name in names
    }
    rows = _Rows(
        np.concatenate([part.opened_ms for part in parts]),
        np.concatenate([part.available_at_ms for part in parts]),
        columns,
        np.concatenate([part.file for part in parts]),
        np.concatenate([part.row for part in parts]),
    )
    return rows.taken(np.argsort(rows.opened_ms, kind="stable"))


def _without_repetitions(rows: _Rows, files: Sequence[RawBars]) -> _Rows:
    repeats = np.diff(rows.opened_ms, prepend=MISSING_MS) == 0
    if not repeats.any():
        return rows
    differs = np.zeros(len(repeats), dtype=bool)
    for column in rows.columns.values():
        differs[1:] |= ~np.isclose(column[1:], column[:-1], rtol=0, atol=0, equal_nan=True)
    conflicts = np.flatnonzero(repeats & differs)
    if len(conflicts):
        at = int(conflicts[0])
        here, there = (files[rows.file[k]].where(int(rows.row[k])) for k in (at, at - 1))
        raise bad_file(here, f"has the same time as {there}, but other values; keep one of them")
    return rows.taken(~repeats)


def _check_spacing(rows: _Rows, files: Sequence[RawBars], timeframe: str) -> None:
    if len(rows.opened_ms) == 0:
        raise bad_file(files[0].file, "has no bar within the FX week; check its times and prices")
    gaps = np.diff(rows.opened_ms)
    close = np.flatnonzero(gaps < CLOSEST_SHARE * TIMEFRAMES_MS[timeframe])
    if len(close):
        at = int(close[0]) + 1
        minutes = int(gaps[close[0]]) / 60_000
        raise bad_file(
            files[rows.file[at]].where(int(rows.row[at])),
            f"follows the bar before by {minutes:g} minutes, too soon for the {timeframe} in its name; rename the file",
        )


def _check_spread(rows: _Rows, files: Sequence[RawBars]) -> None:
    spread = rows.columns.get("spread")
    if spread is None or np.isnan(spread).all():
        return
    if np.nanmedian(spread / rows.columns["close"]) > MAX_SPREAD_SHARE:
        raise bad_file(
            files[0].file, "`spread` is over 1 % of the price; write it in price units, not in points or pips"
        )
    if np.nanmin(spread) < 0:
        raise bad_file(files[0].file, "`spread` is below zero; correct it")
