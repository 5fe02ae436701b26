"""`ExpressionStore`: any feature store that also serves expressions, of its own series and of others.

    store.fetch(["EUR/USD"], "1h", features=["rsi_14", "zscore(close, 50)", 'at("1d", rsi_14)', 'of("GBP/USD", close)'])

The store behind it serves columns by name; here expressions are evaluated from them, and what they read of another
series is fetched, evaluated there and set beside the asking rows by what was known when (`expressions.elsewhere`). The
bars that a window needs before the asked range are fetched along and cut off again, so that a row has the same value,
to the bit, whatever range is asked for.

Whoever trains or predicts asks for the base columns of its expressions (`Derivation.base_columns`); of those only what
lies on another series is made here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.feature_names import is_column, may_be_column
from ml_workbench_service.contracts.market import (
    NEVER_MS,
    Bars,
    ColumnWitness,
    FeatureDescription,
    FeatureKind,
    FeatureStore,
    FeatureTable,
    Floats,
    OutsideThing,
    Recomputing,
    Witnessing,
    recomputing,
)
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.features.expressions.elsewhere import (
    aligned,
    check_source,
    check_timeframe,
    earlier_ms,
    rows_read,
)
from ml_workbench_service.market.features.expressions.nodes import Elsewhere
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import kind
from ml_workbench_service.market.features.tables import SPREADS, normal_request, sliced


class ExpressionStore:
    """A `FeatureStore` in front of another.

    Args:
        store: serves columns by name.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.columns = store

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
        """Tables in the order of `symbols`, with the asked features under the texts they were asked by; see
        `contracts.market.FeatureStore`."""
        expressions = self._expressions(features)
        if not expressions:
            return self.columns.fetch(
                symbols, timeframe, start_ms=start_ms, end_ms=end_ms, features=features, as_of_ms=as_of_ms, last=last
            )
        names, timeframe = normal_request(symbols, timeframe)
        derivation = Derivation(tuple(features), expressions)
        for feature, expression in derivation.parsed.items():
            for node in expression.elsewhere.values():
                check_timeframe(node, timeframe, path=f"features.{list(features).index(feature)}")
        plain = [name for name in derivation.base_columns if name not in derivation.elsewhere]
        tables = self.columns.fetch(
            names,
            timeframe,
            start_ms=None if start_ms is None else earlier_ms(start_ms, derivation.history, timeframe),
            end_ms=end_ms,
            features=plain or ["close"],
            as_of_ms=as_of_ms,
            last=None if last is None else last + derivation.history,
        )
        return [self._read(table, derivation, start_ms=start_ms, last=last) for table in tables]

    def describe(self) -> list[FeatureDescription]:
        """The columns of the store behind it."""
        return self.columns.describe()

    def series(self) -> SeriesList:
        """The store's."""
        return self.columns.series()

    def kind_of(self, feature: str) -> FeatureKind:
        """Of a column by the store, of an expression by its units."""
        if is_column(feature):
            return self.columns.kind_of(feature)
        expressions = self._expressions([feature])
        if not expressions:
            return self.columns.kind_of(feature)
        return kind(parse(feature, path="features"), self.columns.kind_of, path="features")

    def now_ms(self) -> int | None:
        """The store's."""
        return self.columns.now_ms()

    def check(self) -> OutsideThing:
        """How the store is."""
        return self.columns.check()

    def close(self) -> None:
        """Gives the store's connections back, where it has any."""
        close: Callable[[], None] | None = getattr(self.columns, "close", None)
        if close is not None:
            close()

    @property
    def witness(self) -> ColumnWitness | None:
        """Who sees the store's ready-made columns."""
        return self.columns.witness if isinstance(self.columns, Witnessing) else None

    def makes_columns(self) -> bool:
        """Whether the store makes its columns itself, so that all of this can be made again from other bars."""
        return recomputing(self.columns) is not None

    def altered(self, alter: Callable[[Bars], Bars]) -> FeatureStore:
        """The same over altered bars, of every series that is read."""
        assert isinstance(self.columns, Recomputing), "asked of a store that makes its columns"
        return ExpressionStore(self.columns.altered(alter))

    def _expressions(self, features: Sequence[str]) -> dict[str, str]:
        """Texts of those that are no columns, by the text they were asked by."""
        found = {}
        for number, feature in enumerate(features):
            if is_column(feature) or (may_be_column(feature) and self._has(feature)):
                continue
            found[feature] = parse(feature, path=f"features.{number}").text
        return found

    def _has(self, name: str) -> bool:
        """Whether a name with a dash is a column of the store, and no difference of two."""
        return any(name in (each.name, each.example) for each in self.columns.describe())

    def _read(
        self, table: FeatureTable, derivation: Derivation, *, start_ms: int | None, last: int | None
    ) -> FeatureTable:
        """A fetched table with the features, cut to what was asked for."""
        others, warnings = self._elsewhere(table, derivation.elsewhere)
        whole = replace(table, columns={**table.columns, **others})
        columns = derivation.read_table(whole)
        columns |= {name: table.columns[name] for name in SPREADS & table.columns.keys() if name not in columns}
        found = replace(whole, columns=columns, warnings=tuple(dict.fromkeys([*table.warnings, *warnings])))
        found = sliced(found, start_ms=start_ms, end_ms=None, as_of_ms=NEVER_MS, last=last)
        if not len(found):
            raise DataValidationError.at(
                "start_date",
                f"no bar of {table.symbol} {table.timeframe} lies in this range; widen it",
                code="empty_range",
            )
        return found

    def _elsewhere(
        self, table: FeatureTable, nodes: Mapping[str, Elsewhere]
    ) -> tuple[dict[str, Floats], tuple[str, ...]]:
        """(N,) of each node by its text, and what is said of the bars behind them; each series is fetched once."""
        found: dict[str, Floats] = {}
        warnings: list[str] = []
        wanted: dict[tuple[str, str], list[Elsewhere]] = {}
        for node in nodes.values():
            series = (node.symbol or table.symbol, node.timeframe or table.timeframe)
            wanted.setdefault(series, []).append(node)
        for (symbol, timeframe), asked in wanted.items():
            (other,) = self.fetch(
                [symbol],
                timeframe,
                start_ms=earlier_ms(int(table.available_at_ms[0]), 0, timeframe),
                end_ms=None,
                features=list(dict.fromkeys(each.inner.text for each in asked)),
                as_of_ms=int(table.available_at_ms[-1]),
            )
            check_source(table, other)
            warnings += other.warnings
            rows_N = rows_read(table, other)
            found |= {each.text: aligned(np.asarray(other.columns[each.inner.text]), rows_N) for each in asked}
        return found, tuple(warnings)
