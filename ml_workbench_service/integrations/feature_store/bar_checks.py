"""From files as they stand to bars one can trust: in UTC, sorted, checked, and with a reading report of each file.

Refused, with file and line: prices that are not positive numbers, high below low, open or close outside them, bad ticks
(`bar_ticks`), different bars at one time, bars closer together than the timeframe says, a spread in
other units (`bar_spreads`), and the prices of another pair (`bar_fixings`). The clock: `bar_clocks`.

Left out and counted by reason: rows with an empty price (a missing bar), exact repetitions, and bars outside the FX
week, where nothing trades: an exporter's filling, a coin's weekend, or a feed's stray bars, which are doubtful.

Legend: N rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Bools, Floats, Ints
from ml_workbench_service.contracts.reading_reports import ReadingReport, SpreadTime
from ml_workbench_service.integrations.feature_store.bar_clocks import COINS, Decision, observed
from ml_workbench_service.integrations.feature_store.bar_columns import PRICES, SPREADS, RawBars, bad_file
from ml_workbench_service.integrations.feature_store.bar_fixings import Fixings, Unlike, compare
from ml_workbench_service.integrations.feature_store.bar_spreads import doubt_of_spread
from ml_workbench_service.integrations.feature_store.bar_ticks import checked_moves
from ml_workbench_service.integrations.feature_store.bar_times import MISSING_MS
from ml_workbench_service.market.calendar import market_ms
from ml_workbench_service.market.fills import at_mid

CLOSEST_SHARE = 0.75  # of a timeframe; daily bars on a clock with summer time lie up to an hour closer
MOST_OUTSIDE = 0.05  # of bars: more than a feed's strays
INSIDE_TOLERANCE = 1e-9  # of the price: the rounding of sums of two sides


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


@dataclass
class _Account:
    """What happened to one file's rows."""

    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def checked_bars(
    files: Sequence[RawBars],
    decisions: Sequence[Decision],
    *,
    symbol: str,
    timeframe: str,
    fixings: Fixings | None,
) -> Bars:
    """One series from its files.

    Args:
        decisions: each file's clock.
        fixings: what the prices are held against; None: nothing, for bars that are made up.

    Raises:
        DataValidationError: as the module's docstring says.
    """
    sides = {raw.price_side for raw in files}
    if len(sides) > 1:
        names = ", ".join(raw.file for raw in files)
        raise bad_file(names, "hold different price sides of one series; keep the files of one side only")
    length_ms = TIMEFRAMES_MS[timeframe]
    accounts = [
        _Account(
            Counter({reason.replace(" ", "_"): num for reason, num in raw.dropped.items()}),
            [*decision.notes, *raw.notes],
            [*decision.warnings, *raw.doubts],
        )
        for raw, decision in zip(files, decisions, strict=True)
    ]
    parts = [
        _read_rows(raw, index, decisions[index], symbol, length_ms, accounts[index]) for index, raw in enumerate(files)
    ]
    rows = _without_repetitions(_joined(parts), files, accounts)
    _check_spacing(rows, files, timeframe)
    rows, spread_time = _with_spread(rows, files, symbol, accounts)
    _check_moves(rows, files, length_ms, accounts)
    if fixings is not None:
        _compare(rows, files, symbol, length_ms, fixings, accounts)
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
        declares_times=all(_declares_times(raw) for raw in files),
        spread_time=spread_time,
        reports=tuple(
            _report(raw, decisions[index], accounts[index], rows.taken(rows.file == index), (symbol, timeframe))
            for index, raw in enumerate(files)
        ),
    )
    return at_mid(bars)


def _declares_times(raw: RawBars) -> bool:
    """Whether it says of every bar when it was known."""
    return raw.available_ms is not None and bool((raw.available_ms != MISSING_MS).all())


def _read_rows(raw: RawBars, index: int, decision: Decision, symbol: str, length_ms: int, account: _Account) -> _Rows:
    """One file's rows within the FX week, prices checked, in UTC."""
    present = _checked_prices(raw)
    opened = decision.clock.opened(raw.times.local_ms, length_ms)
    closed = np.asarray(market_ms(opened + length_ms) == market_ms(opened))  # not a moment of it in the FX week
    account.dropped["empty_price"] += int((~present).sum())
    away = present & closed
    if not COINS.isdisjoint(symbol.split("/")):
        account.dropped["weekend"] += int(away.sum())
        account.notes.append(f"{symbol} trades at weekends too; bars of the FX week alone are used")
    else:
        stray = away & observed(raw)
        account.dropped["weekend_filling"] += int((away & ~stray).sum())
        account.dropped["outside_fx_week"] += int(stray.sum())
        if stray.sum() > MOST_OUTSIDE * present.sum():
            share = stray.sum() / present.sum()
            raise bad_file(raw.file, f"{share:.0%} of its bars lie outside the FX week; check its times and clock")
        if stray.any():
            account.warnings.append(f"{int(stray.sum())} bars lie outside the FX week and are left out")
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
    high, low = raw.prices["high"] * (1 + INSIDE_TOLERANCE), raw.prices["low"] * (1 - INSIDE_TOLERANCE)
    crossed = present & (high < low)
    if crossed.any():
        raise bad_file(raw.where(int(np.argmax(crossed))), "high is below low; correct or delete the row")
    for name in ("open", "close"):
        beyond = present & ((raw.prices[name] > high) | (raw.prices[name] < low))
        if beyond.any():
            where = raw.where(int(np.argmax(beyond)))
            many = f" ({int(beyond.sum())} such rows)" if beyond.sum() > 1 else ""
            raise bad_file(where, f"`{name}` lies outside low to high{many}; correct or delete the row")
    return np.asarray(present)


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


def _without_repetitions(rows: _Rows, files: Sequence[RawBars], accounts: Sequence[_Account]) -> _Rows:
    repeats = np.diff(rows.opened_ms, prepend=MISSING_MS) == 0
    if not repeats.any():
        return rows
    differs = np.zeros(len(repeats), dtype=bool)
    for column in rows.columns.values():
        differs[1:] |= ~np.isclose(column[1:], column[:-1], rtol=0, atol=0, equal_nan=True)
    conflicts = np.flatnonzero(repeats & differs)
    if len(conflicts):
        at = int(conflicts[0])
        here, there = (_place(rows, files, k) for k in (at, at - 1))
        raise bad_file(here, f"has the same time as {there}, but other values; keep one of them")
    for index, account in enumerate(accounts):
        account.dropped["repeated"] += int((repeats & (rows.file == index)).sum())
    return rows.taken(~repeats)


def _place(rows: _Rows, files: Sequence[RawBars], at: int) -> str:
    return files[int(rows.file[at])].where(int(rows.row[at]))


def _check_spacing(rows: _Rows, files: Sequence[RawBars], timeframe: str) -> None:
    if len(rows.opened_ms) == 0:
        raise bad_file(files[0].file, "has no bar within the FX week; check its times and prices")
    gaps = np.diff(rows.opened_ms)
    close = np.flatnonzero(gaps < CLOSEST_SHARE * TIMEFRAMES_MS[timeframe])
    if len(close):
        minutes = int(gaps[close[0]]) / 60_000
        raise bad_file(
            _place(rows, files, int(close[0]) + 1),
            f"follows the bar before by {minutes:g} minutes, too soon for the {timeframe} in its name; rename the file",
        )


def _with_spread(
    rows: _Rows, files: Sequence[RawBars], symbol: str, accounts: Sequence[_Account]
) -> tuple[_Rows, SpreadTime]:
    """The rows with a spread that is one, or without, and when it was taken."""
    columns, times = dict(rows.columns), {raw.spread_time for raw in files}
    for name in [name for name in SPREADS if name in columns]:
        for index, raw in enumerate(files):
            own = rows.file == index
            doubt = doubt_of_spread(symbol, columns[name][own], columns["close"][own]) if own.any() else None
            if doubt is None:
                continue
            text, is_refused = doubt[0].replace("`spread`", f"`{name}`"), doubt[1]
            if is_refused:
                raise bad_file(raw.file, text)
            accounts[index].warnings.append(text)
            columns[name] = np.where(own, np.nan, columns[name])
        if np.isnan(columns[name]).all():
            del columns[name]
    spread_time: SpreadTime = times.pop() if len(times) == 1 and "spread" in columns else "unknown"
    return _Rows(rows.opened_ms, rows.available_at_ms, columns, rows.file, rows.row), spread_time


def _check_moves(rows: _Rows, files: Sequence[RawBars], length_ms: int, accounts: Sequence[_Account]) -> None:
    def refuse(at: int, problem: str) -> DataValidationError:
        return bad_file(_place(rows, files, at), problem)

    moves = checked_moves(rows.opened_ms, rows.columns, length_ms, refuse)
    for account in accounts:
        account.notes.extend(moves)


def _compare(
    rows: _Rows,
    files: Sequence[RawBars],
    symbol: str,
    length_ms: int,
    fixings: Fixings,
    accounts: Sequence[_Account],
) -> None:
    """Each file's prices against the fixings."""
    for index, (raw, account) in enumerate(zip(files, accounts, strict=True)):
        own = rows.taken(rows.file == index)
        if len(own.opened_ms) == 0:
            account.notes.append("every row of it stands in another file of the series too")
            continue
        try:
            finding = compare(symbol, own.opened_ms, own.columns["open"], own.columns["close"], length_ms, fixings)
        except Unlike as unlike:
            raise bad_file(raw.file, str(unlike)) from unlike
        (account.warnings if finding.is_doubt else account.notes).append(finding.text)


def _report(raw: RawBars, decision: Decision, account: _Account, rows: _Rows, series: tuple[str, str]) -> ReadingReport:
    base, quote = series[0].split("/")
    has_rows = len(rows.opened_ms) > 0
    return ReadingReport(
        file=raw.file,
        symbol=series[0],
        timeframe=series[1],
        num_rows=len(rows.opened_ms),
        dropped=_counted(account.dropped),
        time_zone=str(decision.clock.zone),
        time_zone_from=decision.source,
        price_side=raw.price_side,
        price_unit=f"{quote} for one {base}",
        spread_unit=raw.spread_unit if any(name.startswith("spread") for name in raw.extra) else None,
        spread_time=raw.spread_time,
        first=_moment(int(rows.opened_ms[0])) if has_rows else None,
        last=_moment(int(rows.opened_ms[-1])) if has_rows else None,
        columns=tuple(name for name in rows.columns if name not in PRICES),
        notes=tuple(dict.fromkeys(account.notes)),
        warnings=tuple(dict.fromkeys(account.warnings)),
    )


def _counted(dropped: Mapping[str, int]) -> dict[str, int]:
    return {reason: num for reason, num in dropped.items() if num}


def _moment(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
