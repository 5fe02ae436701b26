"""Desk rows: a version's kept rows of the test part as columns, with what they are rows of.

Legend: N rows of the test part, by time and symbol; E rows of the parts before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common_lib.exceptions import SeriesNotFoundError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import SIDED, Target, parse_target
from ml_workbench_service.integrations.table_files import Table, open_stored, read_columns
from ml_workbench_service.market.calendar import DAY_MS

READ = ("as_of", "symbol", "price", "realised", "prediction", "direction", "status", "position", "gross", "net")
BEFORE = ("as_of", "symbol", "price")
SIDES = (("p_buy", "p_sell"), ("p_upper", "p_lower"), ("p_trend_up", "p_trend_down"))
SIDE_OF = {"buy": 1.0, "sell": -1.0}


@dataclass(frozen=True)
class DeskRows:
    """The rows, and the card that says what they are of.

    Attributes:
        columns: of `READ` and `p_<class>`, (N,) each.
        before: of `BEFORE`, (E,) each; what happened before the test part began.
    """

    card: ModelCard
    columns: Mapping[str, np.ndarray]
    before: Mapping[str, np.ndarray]

    @cached_property
    def as_of_N(self) -> Ints:
        """When each decision was made, in milliseconds."""
        return self.columns["as_of"].astype(np.int64)

    @cached_property
    def place_N(self) -> Ints:
        """Place of each row's moment among the moments of the part."""
        return np.asarray(np.unique(self.as_of_N, return_inverse=True)[1])

    @cached_property
    def num_moments(self) -> int:
        """Of the part; symbols at one moment share it."""
        return int(self.place_N.max()) + 1

    @cached_property
    def symbol_N(self) -> Ints:
        """Place of each row's symbol in `symbols`."""
        return np.searchsorted(self.symbols, self.columns["symbol"].astype(str)).astype(np.int64)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Those that have rows, sorted."""
        return tuple(np.unique(self.columns["symbol"].astype(str)).tolist())

    @cached_property
    def target(self) -> Target | None:
        """What is forecast; None of policies and anomalies."""
        return None if self.card.target is None else parse_target(self.card.target, self.card.timeframe)

    @property
    def horizon(self) -> int:
        """Bars that a label reaches."""
        return 1 if self.target is None else self.target.horizon + (self.card.label_start == "fill")

    @property
    def has_sides(self) -> bool:
        """Whether outcomes are moves of the price, up or down."""
        return self.target is not None and self.target.measure in SIDED

    @cached_property
    def signal_N(self) -> Floats:
        """What is ranked: the forecast; of classes how much more probable up is than down."""
        for up, down in SIDES:
            if up in self.columns and down in self.columns:
                return np.asarray(self.columns[up] - self.columns[down])
        return self.columns["prediction"]

    @cached_property
    def ordered_outcome_N(self) -> Floats | None:
        """What came true, where larger means something: not of regimes and followers, nor where nothing is forecast."""
        if self.target is None or self.target.measure in ("market_regime", "follow"):
            return None
        return self.columns["realised"]

    @cached_property
    def stated_side_N(self) -> Floats:
        """1 for buy, -1 for sell, 0 for hold."""
        side_N = np.zeros(len(self.as_of_N))
        for word, side in SIDE_OF.items():
            side_N[self.columns["direction"] == word] = side
        return side_N

    @cached_property
    def is_traded(self) -> bool:
        """Whether positions are taken."""
        return self.card.evaluation.backtest is not None and bool(np.isfinite(self.columns["net"]).any())

    @cached_property
    def answered_N(self) -> Bools:
        """Rows that serving answers."""
        return np.asarray(self.columns["status"] == "ok")

    def of_symbol(self, place: int) -> Ints:
        """The symbol's rows, oldest first."""
        return np.flatnonzero(self.symbol_N == place)

    def opened_ms(self, as_of: Ints) -> Ints:
        """When the bars of those moments began, as far as the rows tell."""
        if self.card.calendar == "fixings":
            return as_of // DAY_MS * DAY_MS
        return as_of - TIMEFRAMES_MS[self.card.timeframe]


def read_desk_rows(card: ModelCard, path: Path) -> DeskRows:
    """The rows of `evaluation.parquet`.

    Raises:
        SeriesNotFoundError: it has none of the test part.
    """
    table = open_stored(path, "version", "test")
    classes = [name for name in table.schema.names if name.startswith("p_")]
    columns = read_columns(table, [*READ, *classes])
    order = np.lexsort((columns["symbol"].astype(str), columns["as_of"]))
    return DeskRows(card, {name: values[order] for name, values in columns.items()}, _before(path))


def _before(path: Path) -> dict[str, np.ndarray]:
    tables: list[Table] = []
    for part in ("validation", "calibration"):
        try:
            tables.append(open_stored(path, "version", "validation" if part == "validation" else "calibration"))
        except SeriesNotFoundError:
            continue
    read = [read_columns(table, BEFORE) for table in tables]
    return {name: np.concatenate([each[name] for each in read]) if read else np.empty(0) for name in BEFORE}
