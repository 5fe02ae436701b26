"""The control plane's feature store, for a worker on another machine: its bars, of which features are made here.

So a column can be made again from altered bars, and a certificate says the same as on the service's own machine. Of a
store that has ready-made columns alone these are fetched as they are, and nobody can make them again there either.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import orjson

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.clock import WALL
from ml_workbench_service.contracts.market import (
    Bars,
    ColumnWitness,
    FeatureDescription,
    FeatureKind,
    FeatureStore,
    FeatureTable,
    Floats,
    Ints,
    OutsideThing,
)
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.contracts.work_elsewhere import ColumnsAsked, StoreFacts, WitnessQuestion
from ml_workbench_service.elsewhere.bars_wire import bars_of_arrow
from ml_workbench_service.elsewhere.connection import JobConnection
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote_bars import DerivedFeatures
from ml_workbench_service.integrations.replicas.features import table_from_wire
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.expression_store import ExpressionStore


def open_store(connection: JobConnection) -> FeatureStore:
    """The control plane's store with expressions, for one attempt: its bars are read once."""
    facts = connection.get("store", StoreFacts)
    witness = WitnessElsewhere(connection) if facts.is_witnessed else None
    if not facts.makes_columns:
        return ExpressionStore(ColumnsElsewhere(connection, facts, witness))
    bars = BarsElsewhere(connection, facts)
    if facts.by_request:
        return ExpressionStore(DerivedElsewhere(bars, facts.described, witness=witness))
    return ExpressionStore(LocalFeatureStore(bars, witness=witness))


class BarsElsewhere:
    """A `BarSource` over the control plane's: each series is fetched once, and anew where more columns are wanted."""

    def __init__(self, connection: JobConnection, facts: StoreFacts) -> None:
        self._connection = connection
        self._facts = facts
        self._wanted: dict[tuple[str, str], tuple[str, ...]] = {}
        self._known: dict[tuple[str, str], tuple[tuple[str, ...], Bars]] = {}
        self._lock = Lock()

    def want(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """From now on the series has these columns of a server too."""
        with self._lock:
            known = self._wanted.get((symbol, timeframe), ())
            self._wanted[symbol, timeframe] = tuple(dict.fromkeys([*known, *names]))

    def forget(self, symbol: str, timeframe: str, names: Sequence[str]) -> None:
        """What was refused is wanted no more."""
        with self._lock:
            known = self._wanted.get((symbol, timeframe), ())
            self._wanted[symbol, timeframe] = tuple(name for name in known if name not in names)

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series; raises as the control plane's store does."""
        with self._lock:
            own = self._wanted.get((symbol, timeframe), ())
            kept = self._known.get((symbol, timeframe))
            if kept is None or not set(own) <= set(kept[0]):
                sent = self._connection.get_bytes("bars", symbol=symbol, timeframe=timeframe, own=list(own))
                kept = self._known[symbol, timeframe] = own, bars_of_arrow(sent)
            return kept[1]

    def own_columns(self) -> list[str]:
        """The user's own columns, or the server's."""
        return list(self._facts.own_columns)

    def series(self) -> SeriesList:
        """Nobody asks a worker."""
        return SeriesList()

    def now_ms(self) -> int | None:
        """The source's own "now", as the attempt began."""
        return self._facts.now_ms

    def check(self) -> OutsideThing:
        """As the attempt began."""
        return self._facts.check

    def is_own(self, feature: str) -> bool:
        """Whether a name is a server's column rather than an indicator of ours."""
        if feature in self._facts.own_columns:
            return True
        try:
            indicators.kind_of(feature)
        except DataValidationError:
            return True
        return False


class DerivedElsewhere(DerivedFeatures):
    """Features of a server's bars: columns of the server's own are asked for by name."""

    def __init__(
        self, source: BarsElsewhere, described: Sequence[FeatureDescription], *, witness: ColumnWitness | None
    ) -> None:
        super().__init__(source, is_own=source.is_own, clock=WALL, witness=witness)
        self._described = described

    def kind_of(self, feature: str) -> FeatureKind:
        """By our table, else as the server described it, else `stationary`."""
        return indicators.kind_among(self._described, feature)


class ColumnsElsewhere:
    """A `FeatureStore` of ready-made columns."""

    def __init__(self, connection: JobConnection, facts: StoreFacts, witness: ColumnWitness | None) -> None:
        self.witness = witness
        self._connection = connection
        self._facts = facts

    def fetch(
        self, symbols: Sequence[str], timeframe: str, *, start_ms: int | None, end_ms: int | None,
        features: Sequence[str], as_of_ms: int | None = None, last: int | None = None,
    ) -> list[FeatureTable]:  # fmt: skip
        """See `contracts.market.FeatureStore`."""
        asked = ColumnsAsked(
            symbols=tuple(symbols), timeframe=timeframe, start_ms=start_ms, end_ms=end_ms, features=tuple(features),
            as_of_ms=as_of_ms, last=last,
        )  # fmt: skip
        tables = orjson.loads(self._connection.put_for_bytes("columns", asked))
        return [table_from_wire(each) for each in tables]

    def describe(self) -> list[FeatureDescription]:
        """As the attempt began."""
        return list(self._facts.described)

    def series(self) -> SeriesList:
        """Nobody asks a worker."""
        return SeriesList()

    def kind_of(self, feature: str) -> FeatureKind:
        """By our table, else as the server described it, else `stationary`."""
        return indicators.kind_among(self._facts.described, feature)

    def now_ms(self) -> int | None:
        """As the attempt began."""
        return self._facts.now_ms

    def check(self) -> OutsideThing:
        """As the attempt began."""
        return self._facts.check


class WitnessElsewhere:
    """The control plane's witness: it sees columns as it hands them out, and is asked here what it has seen."""

    def __init__(self, connection: JobConnection) -> None:
        self._connection = connection

    def observe(self, series: tuple[str, str], *, opened_ms: Ints, columns: Mapping[str, Floats], now_ms: int) -> None:
        """Nothing: the control plane has seen them."""

    def seen_ms(self, series: tuple[str, str], column: str, *, opened_ms: Ints, values_N: Floats) -> Ints:
        """(N,) when each value was first seen; see `ColumnWitness`."""
        asked = {
            "symbol": series[0], "timeframe": series[1], "column": column,
            "opened_ms": b64encode(np.ascontiguousarray(opened_ms, dtype="<i8").tobytes()),
            "values": b64encode(np.ascontiguousarray(values_N, dtype="<f8").tobytes()),
        }  # fmt: skip
        sent = self._connection.put_for_bytes("witness", WitnessQuestion.model_validate(asked))
        return np.frombuffer(sent, dtype="<i8").astype(np.int64)

    def watched(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Nobody asks a worker."""
        return {}
