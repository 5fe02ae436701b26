"""`LocalFeatureStore`: features over bars of our own, a folder's or the sample's.

Indicators are computed over the whole history of a series and then sliced, so that a row's values are the same, to the
bit, whatever range is asked for. Only bars known at `as_of`, or now, are served.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.clock import WALL, Clock, clock_ms
from ml_workbench_service.contracts.market import (
    Bars,
    BarSource,
    ColumnWitness,
    FeatureDescription,
    FeatureKind,
    FeatureTable,
    Floats,
    OutsideThing,
)
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.tables import (
    known_by,
    no_bars,
    normal_request,
    sliced,
    whole_table,
)

CACHE_BYTES = 128 * 2**20


class LocalFeatureStore:
    """A `FeatureStore` over any `BarSource`; keeps computed columns, bounded by bytes.

    Args:
        source: where the bars come from.
        clock: the present; a source's own "now" holds where it is earlier.
        alter: through which every series of the source passes.
        witness: sees the bars' own columns at each fetch; None: nobody does.
    """

    def __init__(
        self,
        source: BarSource,
        *,
        clock: Clock = WALL,
        alter: Callable[[Bars], Bars] = lambda bars: bars,
        witness: ColumnWitness | None = None,
    ) -> None:
        self.witness = witness
        self.source = source
        self._clock = clock
        self._alter = alter
        self._columns: SeriesCache[tuple[Bars, Floats]] = SeriesCache(max_bytes=CACHE_BYTES)

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
        names, timeframe = normal_request(symbols, timeframe)
        own_now = self.now_ms()
        now = clock_ms(self._clock) if own_now is None else own_now
        as_of = known_by(as_of_ms, now)
        tables = []
        for symbol in names:
            bars = self._alter(self.source.bars(symbol, timeframe))
            self._show(bars, now)
            computed = partial(self._computed, bars)
            whole = whole_table(bars, features, own_columns=self.source.own_columns, computed=computed)
            table = sliced(whole, start_ms=start_ms, end_ms=end_ms, as_of_ms=as_of, last=last)
            if len(table) == 0:
                raise no_bars(bars, as_of)
            tables.append(table)
        return tables

    def whole_bars(self, symbol: str, timeframe: str, own: Sequence[str] = ()) -> Bars:
        """The series itself, for whoever makes features of it elsewhere; the witness sees it as in `fetch`.

        Args:
            own: further columns that it must have, where the source has them by request alone.
        """
        (name,), length = normal_request([symbol], timeframe)
        bars = self._alter(self.source.bars(name, length))
        own_now = self.now_ms()
        self._show(bars, clock_ms(self._clock) if own_now is None else own_now)
        return bars

    def describe(self) -> list[FeatureDescription]:
        """The table of indicators, the bars' own columns and the user's."""
        has_files = self.source.check().mode == "folder"
        known = [entry for entry in indicators.describe() if has_files or entry.name not in ("volume", "spread")]
        own = [
            FeatureDescription(name=name, example=name, kind=self.kind_of(name), description="A column of your files.")
            for name in self.source.own_columns()
            if name not in {entry.name for entry in known}
        ]
        return [*known, *own]

    def series(self) -> SeriesList:
        """The source's."""
        return self.source.series()

    def kind_of(self, feature: str) -> FeatureKind:
        """By our table; the user's own columns are `stationary`, unless named like one of the table's."""
        try:
            return indicators.kind_of(feature)
        except DataValidationError:
            own = self.source.own_columns()
            if feature in own:
                return "stationary"
            raise indicators.unknown_feature(feature, own) from None

    def now_ms(self) -> int | None:
        """The source's own "now" where the clock has passed it: bars end there, and so does what is known."""
        own_ms = self.source.now_ms()
        return own_ms if own_ms is not None and own_ms < clock_ms(self._clock) else None

    def check(self) -> OutsideThing:
        """How the source is."""
        return self.source.check()

    def altered(self, alter: Callable[[Bars], Bars]) -> "LocalFeatureStore":
        """The same store over altered bars, with a cache of its own: what the leakage certificate computes again."""
        return LocalFeatureStore(self.source, clock=self._clock, alter=lambda bars: alter(self._alter(bars)))

    def _show(self, bars: Bars, now_ms: int) -> None:
        """Has the witness see what is known by now of the bars' own columns."""
        if self.witness is None or not bars.extra:
            return
        num = int(np.searchsorted(bars.available_at_ms, now_ms, side="right"))
        self.witness.observe(
            (bars.symbol, bars.timeframe),
            opened_ms=bars.opened_ms[:num],
            columns={name: column[:num] for name, column in bars.extra.items()},
            now_ms=now_ms,
        )

    def _computed(self, bars: Bars, indicator: indicators.Indicator) -> Floats:
        key = (bars.symbol, bars.timeframe, indicator.name)
        kept = self._columns.get(key)
        if kept is not None and kept[0] is bars:
            return kept[1]
        column = indicator(bars)
        self._columns.put(key, (bars, column), num_bytes=column.nbytes)
        return column
