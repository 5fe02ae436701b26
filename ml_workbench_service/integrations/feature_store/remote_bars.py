"""Bars of a Feature Store Service, from which the features are made here: what can be made can be made again.

A server that lists `open`, `high`, `low` and `close` is asked for them (and for `spread` and `volume`, where it has
them), a whole series once; later the newest bars alone, with some before them. Where those are no longer what they
were, the series is fetched anew. Indicators are then computed here over the whole of it, so a leakage certificate can
make them again from other bars. Further columns of the server are asked for by name and count as the user's own.

Legend: N bars.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.clock import Clock, clock_ms
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, BarSource, ColumnWitness, FeatureTable, OutsideThing
from ml_workbench_service.contracts.market_data import BAR_COLUMNS
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote_format import Asked, nonsense
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache, bars_bytes
from ml_workbench_service.market.features.tables import SYNTHETIC_RANGE, normal_request

Ask = Callable[[Asked, int, int], list[FeatureTable]]
"""What was asked, from, to (exclusive), in milliseconds; raises as `FeatureStore.fetch` does."""
CACHE_BYTES = 256 * 2**20
OPTIONAL = (("spread", "volume"), ("spread",), ("volume",), ())
"""A server may list both and have neither for a symbol: the most that it lists and does not refuse."""
MOST_BARS = 200_000
"""Bars of the clock in one question; a server may refuse longer answers."""
OVERLAP_BARS = 50
"""Bars asked for again with the newest ones: a correction within them has the whole series fetched anew."""
FIRST_START_MS = 631_238_400_000  # 2 January 1990, before any feed of foreign exchange


@dataclass(frozen=True)
class _Kept:
    bars: Bars
    columns: tuple[str, ...]  # what the server was asked for


class RemoteBars:
    """A `BarSource` over a server.

    Args:
        ask: one question to the server.
        listed: names of all columns of the server, by its list.
        own: those of them that are neither indicators nor the bars' own.
        clock: a bar that is not over by it is not kept.
    """

    def __init__(
        self, ask: Ask, *, listed: Callable[[], Collection[str]], own: Callable[[], list[str]], clock: Clock
    ) -> None:
        self._ask = ask
        self._listed = listed
        self._own = own
        self._clock = clock
        self._wanted: dict[tuple[str, str], tuple[str, ...]] = {}
        self._series: SeriesCache[_Kept] = SeriesCache(max_bytes=CACHE_BYTES)
        self._lock = threading.Lock()

    def want(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """From now on the series has these columns of the server too, unless it refuses them."""
        with self._lock:
            known = self._wanted.get((symbol, timeframe), ())
            self._wanted[symbol, timeframe] = tuple(dict.fromkeys([*known, *names]))

    def forget(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """What a refused question asked for is wanted no more, where the series does not have it already."""
        with self._lock:
            kept = self._series.get((symbol, timeframe))
            gone = set(names) - set(() if kept is None else kept.columns)
            known = self._wanted.get((symbol, timeframe), ())
            self._wanted[symbol, timeframe] = tuple(name for name in known if name not in gone)

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """All bars that are over, fetched where a newer one may be; raises as the server refuses or fails."""
        with self._lock:
            own = self._wanted.get((symbol, timeframe), ())
            kept = self._series.get((symbol, timeframe))
            now_ms = clock_ms(self._clock)
            if kept is None or not set(own) <= set(kept.columns):
                kept = self._whole(symbol, timeframe, own, now_ms)
            elif now_ms >= int(kept.bars.opened_ms[-1]) + 2 * TIMEFRAMES_MS[timeframe]:
                kept = self._newer(kept, now_ms) or self._whole(symbol, timeframe, own, now_ms)
            self._series.put((symbol, timeframe), kept, num_bytes=bars_bytes(kept.bars))
            return kept.bars

    def own_columns(self) -> list[str]:
        """The server's further columns, as it lists them."""
        return self._own()

    def series(self) -> SeriesList:
        """None of its own: the server lists them."""
        return SeriesList()

    def now_ms(self) -> int | None:
        """None: the server lives by the clock."""
        return None

    def check(self) -> OutsideThing:
        """Not asked: the store in front of it knows."""
        return OutsideThing(mode="remote", state="ok")

    def _whole(self, symbol: str, timeframe: str, own: tuple[str, ...], now_ms: int) -> _Kept:
        """The whole series, with as many of the optional columns as the server has for it."""
        refused: DataValidationError | None = None
        listed = set(self._listed())
        for optional in (each for each in OPTIONAL if set(each) <= listed):
            columns = tuple(dict.fromkeys([*BAR_COLUMNS, *optional, *own]))
            try:
                return _Kept(_bars(self._ranges(Asked((symbol,), timeframe, columns), now_ms), now_ms), columns)
            except DataValidationError as error:
                refused = error
        assert refused is not None
        raise refused

    def _ranges(self, asked: Asked, now_ms: int) -> FeatureTable:
        """One table out of as many answers as the clock's bars need; a stretch without a bar may be refused."""
        step_ms = MOST_BARS * TIMEFRAMES_MS[asked.timeframe]
        tables, refused = [], None
        for start_ms in range(FIRST_START_MS, now_ms + 1, step_ms):
            try:
                tables += self._ask(asked, start_ms, min(start_ms + step_ms, now_ms + 1))
            except DataValidationError as error:
                refused = error
        tables = [table for table in tables if len(table)]
        if not tables:
            raise refused or DataValidationError.at(
                "symbols", f"the Feature Store has no bar of {asked.symbols[0]} {asked.timeframe}", code="no_bars"
            )
        return _joined(tables)

    def _newer(self, kept: _Kept, now_ms: int) -> _Kept | None:
        """The series with its newest bars; None where those before them have changed."""
        old = kept.bars
        asked = Asked((old.symbol,), old.timeframe, kept.columns)
        first = max(0, len(old) - OVERLAP_BARS)
        try:
            new = _bars(self._ask(asked, int(old.opened_ms[first]), now_ms + 1)[0], now_ms)
        except DataValidationError:
            return None
        num = len(old) - first
        if not _same(_part(old, first, len(old)), _part(new, 0, num)):
            return None
        return kept if len(new) == num else _Kept(_appended(old, _part(new, num, len(new))), kept.columns)


class WantedBars(BarSource, Protocol):
    """A `BarSource` that has a series' further columns only once they are asked for."""

    def want(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """From now on the series has these columns too, unless they are refused."""
        ...

    def forget(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """What a refused question asked for is wanted no more."""
        ...


class DerivedFeatures(LocalFeatureStore):
    """A `FeatureStore` whose indicators are made here from a server's bars; the server's own columns as they are.

    Args:
        source: the bars.
        is_own: whether a name is a column of the server rather than an indicator of ours.
        clock, alter, witness: as of every local store.
    """

    def __init__(
        self,
        source: WantedBars,
        *,
        is_own: Callable[[str], bool],
        clock: Clock,
        alter: Callable[[Bars], Bars] = lambda bars: bars,
        witness: ColumnWitness | None = None,
    ) -> None:
        super().__init__(source, clock=clock, alter=alter, witness=witness)
        self._remote = source
        self._is_own = is_own

    def fetch(
        self,
        symbols: Sequence[str],
        timeframe: str,
        *,
        start_ms: int | None,
        end_ms: int | None,
        features: Sequence[str],
        as_of_ms: int | None = None,
        last: int | None = None,
    ) -> list[FeatureTable]:
        """Tables in the order of `symbols`; see `contracts.market.FeatureStore`."""
        own = [name for name in features if self._is_own(name)]
        names, length = normal_request(symbols, timeframe)
        for symbol in names:
            self._remote.want(symbol, length, own)
        try:
            return super().fetch(
                symbols, timeframe, start_ms=start_ms, end_ms=end_ms, features=features, as_of_ms=as_of_ms, last=last
            )
        except DataValidationError:  # a name that the server refuses must stay with none of the series
            for symbol in names:
                self._remote.forget(symbol, length, own)
            raise

    def whole_bars(self, symbol: str, timeframe: str, own: Sequence[str] = ()) -> Bars:
        """See `LocalFeatureStore`; raises as the server refuses."""
        (name,), length = normal_request([symbol], timeframe)
        self._remote.want(name, length, own)
        try:
            return super().whole_bars(name, length)
        except DataValidationError:
            self._remote.forget(name, length, own)
            raise

    def altered(self, alter: Callable[[Bars], Bars]) -> "DerivedFeatures":
        """The same store over altered bars, with a cache of its own."""
        return DerivedFeatures(
            self._remote, is_own=self._is_own, clock=self._clock, alter=lambda bars: alter(self._alter(bars))
        )


def _bars(table: FeatureTable, now_ms: int) -> Bars:
    """The rows that are whole bars and over; raises UpstreamError for prices that are none."""
    prices = {name: np.asarray(table.columns[name]) for name in BAR_COLUMNS}
    # A row's indicators use all bars before it, so no bar counts as known before its predecessor.
    known_N = np.maximum.accumulate(table.available_at_ms)
    whole_N = np.isfinite(np.stack(list(prices.values()))).all(axis=0) & (known_N <= now_ms)
    rows = np.flatnonzero(whole_N)
    if not len(rows):
        raise DataValidationError.at(
            "symbols", f"the Feature Store has no whole bar of {table.symbol} {table.timeframe}", code="no_bars"
        )
    opened, high, low, close = (prices[name][rows] for name in BAR_COLUMNS)
    if np.any(low <= 0) or np.any(low > np.minimum(opened, close)) or np.any(high < np.maximum(opened, close)):
        raise nonsense(f"a bar of {table.symbol} has a price that is not positive, or outside its low and high")
    return Bars(
        symbol=table.symbol,
        timeframe=table.timeframe,
        opened_ms=table.opened_ms[rows],
        available_at_ms=known_N[rows],
        open=opened,
        high=high,
        low=low,
        close=close,
        data_source=table.data_source,
        extra={name: np.asarray(column)[rows] for name, column in table.columns.items() if name not in BAR_COLUMNS},
        calendar=table.calendar,
        fill=table.fill,
        synthetic_range=SYNTHETIC_RANGE in table.warnings,
    )


def _joined(tables: Sequence[FeatureTable]) -> FeatureTable:
    first = tables[0]
    if len(tables) == 1:
        return first
    return replace(
        first,
        opened_ms=np.concatenate([table.opened_ms for table in tables]),
        available_at_ms=np.concatenate([table.available_at_ms for table in tables]),
        columns={name: np.concatenate([table.columns[name] for table in tables]) for name in first.columns},
        warnings=tuple(dict.fromkeys(warning for table in tables for warning in table.warnings)),
    )


_COLUMNS = ("opened_ms", "available_at_ms", *BAR_COLUMNS)


def _part(bars: Bars, begin: int, end: int) -> Bars:
    columns: dict[str, Any] = {name: getattr(bars, name)[begin:end] for name in _COLUMNS}
    return replace(bars, **columns, extra={name: column[begin:end] for name, column in bars.extra.items()})


def _appended(old: Bars, new: Bars) -> Bars:
    columns: dict[str, Any] = {name: np.concatenate([getattr(old, name), getattr(new, name)]) for name in _COLUMNS}
    extra = {name: np.concatenate([column, new.extra[name]]) for name, column in old.extra.items()}
    return replace(old, **columns, extra=extra)


def _same(first: Bars, second: Bars) -> bool:
    """To the bit; missing equals missing."""
    pairs = [(getattr(first, name), getattr(second, name)) for name in _COLUMNS]
    pairs += [(column, second.extra.get(name, np.empty(0))) for name, column in first.extra.items()]
    return all(np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for one, other in pairs)
