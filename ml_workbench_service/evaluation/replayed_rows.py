"""Replayed rows: what a version answered at every bar of a replay, what came of it, and what its signal earned there.

    series.parquet    in the replay's job folder; one row an answer, by time and symbol

The columns are `contracts/series.py`'s `ReplayRow`, made by the rules of training: labels by `learning/data/labelling`,
steps by `market/trading_series`, so that a replay of a test part says what the version's own rows say there. Positions
are the signal's own (a policy's by its own position fed back), not an agent's, which decides later by what it learnt.

Bounded: the first `MOST_ROWS` answers are kept, as columns of numbers, some 100 MB at most while the replay runs.

Legend: N kept answers, B bars of one table.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Bools, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.calibration.class_probabilities import class_numbers
from ml_workbench_service.learning.data.labelling import Labelling, label_tables
from ml_workbench_service.market.sizing import wanted_position
from ml_workbench_service.market.trading_series import POSITIONS, StackedBars, TradingSeries, build_trading_series
from ml_workbench_service.serving.model import ServedModel

MOST_ROWS = 1_000_000
ROWS_OF_A_GROUP = 32_768
SIDES = ("sell", "hold", "buy")
NUMBERS = ("price", "prediction", "lower", "upper", "confidence", "wanted")
MONEY = ("gross", "cost", "net", "equity")
UNKNOWN_RULE = frozenset({"market_regime", "follow"})
"""Measures whose labels follow a rule that no price after the training part tells."""


class ReplayedRows:
    """Collects a replay's answers; `write` adds what came of them once all bars are there.

    Args:
        model: who answered.
        tables: the replay's bars, one symbol each.
        most_rows: how many answers are kept.
    """

    def __init__(self, model: ServedModel, tables: Sequence[FeatureTable], *, most_rows: int = MOST_ROWS) -> None:
        self._model, self._tables, self._most = model, tables, most_rows
        self._numbers = {name: array("d") for name in NUMBERS}
        self._as_of, self._table, self._direction, self._is_ok = array("q"), array("q"), array("b"), array("b")
        self._ids: list[str] = []
        self._classes: dict[str, array[float]] = {f"p_{name}": array("d") for name in model.card.classes}
        self.num_left_out = 0

    def add(self, place: int, record: PredictionRecord) -> None:
        """One answer about a bar of the table at that place."""
        if len(self._ids) >= self._most:
            self.num_left_out += 1
            return
        interval = record.interval
        ends = (None, None) if interval is None else (interval.lower, interval.upper)
        told = (record.price, record.prediction, *ends, record.confidence, wanted_position(record))
        for name, value in zip(NUMBERS, told, strict=True):
            self._numbers[name].append(np.nan if value is None else value)
        for name in self._model.card.classes:
            value = record.outputs.get(name) if record.status == "ok" else None
            self._classes[f"p_{name}"].append(np.nan if value is None else value)
        self._as_of.append(to_ms(record.as_of))
        self._table.append(place)
        self._direction.append(SIDES.index(record.direction))
        self._is_ok.append(record.status == "ok")
        self._ids.append(record.prediction_id)

    def write(self, file: Path) -> None:
        """The file, whole or not at all."""
        import polars as pl  # no API process's

        columns = self._columns()
        whole = {name for name in ("position", "action") if name in columns and _is_whole(columns[name])}
        series = [pl.Series("as_of", columns.pop("as_of")).cast(pl.Datetime("ms", "UTC"))]
        for name, values in columns.items():
            if values.dtype.kind == "f":
                found = pl.Series(name, values, nan_to_null=True)
                series.append(found.cast(pl.Int8) if name in whole else found)
            else:
                series.append(pl.Series(name, values.tolist(), dtype=pl.String))
        staged = file.with_name(f".{file.name}")
        pl.DataFrame(series).write_parquet(staged, compression="zstd", row_group_size=ROWS_OF_A_GROUP)
        staged.replace(file)

    def _columns(self) -> dict[str, np.ndarray]:
        """(N,) each, in the order of `ReplayRow`."""
        tables_N, as_of_N = np.array(self._table, dtype=np.int64), np.array(self._as_of, dtype=np.int64)
        rows_N = np.empty(len(as_of_N), dtype=np.int64)
        for place, table in enumerate(self._tables):
            own = tables_N == place
            rows_N[own] = np.searchsorted(table.available_at_ms, as_of_N[own])
        numbers = {name: np.array(values) for name, values in self._numbers.items()}
        sides_N, is_ok_N = np.array(self._direction, dtype=np.int64) - 1, np.array(self._is_ok, dtype=bool)
        holds = self._model.decoder.holds_positions
        wanted_N = np.where(is_ok_N, np.nan_to_num(numbers["prediction"] if holds else numbers["wanted"]), 0.0)
        labelled = self._labelled()
        realised_N, money = np.full(len(rows_N), np.nan), {name: np.full(len(rows_N), np.nan) for name in MONEY}
        held_N = np.full(len(rows_N), np.nan)
        if labelled is not None:
            known = [place for place, table in enumerate(self._tables) if table.symbol in self._model.costs]
            is_known_N = np.isin(tables_N, known)
            offsets = np.cumsum([0, *(len(each.labels_NK) for each in labelled.rows)])
            stacked_N = rows_N[is_known_N] + offsets[np.searchsorted(known, tables_N[is_known_N])]
            realised_N[is_known_N] = self._realised(labelled)[stacked_N]
            if self._is_traded:
                series = build_trading_series(_stacked(labelled), costs=self._model.costs, fill=self._model.card.fill)
                held_N[is_known_N] = self._taken(series, stacked_N, wanted_N[is_known_N], is_ok_N[is_known_N])
                for name, values in _paid(series, stacked_N, held_N[is_known_N]).items():
                    money[name][is_known_N] = values
        symbols_N = np.array([table.symbol for table in self._tables], dtype=object)[tables_N]
        found: dict[str, np.ndarray] = {
            "as_of": as_of_N,
            "symbol": symbols_N,
            "price": numbers["price"],
            "realised": realised_N,
            **{name: numbers[name] for name in ("prediction", "lower", "upper")},
            "direction": np.array(SIDES, dtype=object)[sides_N + 1],
            "confidence": numbers["confidence"],
            "status": np.where(is_ok_N, "ok", "abstain").astype(object),
            "position": held_N,
            **money,
            **({"action": np.where(is_ok_N, held_N, np.nan)} if holds else {}),
            "prediction_id": np.array(self._ids, dtype=object),
            **{name: np.array(values) for name, values in self._classes.items()},
        }
        order = np.lexsort((symbols_N.astype(str), as_of_N))
        return {name: values[order] for name, values in found.items()}

    @property
    def _is_traded(self) -> bool:
        target = self._model.target
        if target is None:
            return self._model.decoder.holds_positions
        return target.is_traded(self._model.card.fill)

    def _labelled(self) -> Labelling | None:
        """The tables of the symbols that the version knows, with labels; None where it knows none."""
        model = self._model
        known = [table for table in self._tables if table.symbol in model.costs]
        if not known:
            return None
        target = model.target
        targets = (target,) if target is not None and target.measure not in UNKNOWN_RULE else ()
        labelled = label_tables(
            known,
            features=("close",),
            columns=[{"close": np.asarray(table.columns["close"])} for table in known],
            targets=targets,
            costs=model.costs,
            barrier_width=model.barrier_width,
        )
        labelled.rows = [
            replace(rows, bar_volatility_N=model.bar_volatility(table.symbol, table.opened_ms, rows.close_N))
            for table, rows in zip(known, labelled.rows, strict=True)
        ]
        labelled.bar_again()
        return labelled

    def _realised(self, labelled: Labelling) -> Floats:
        """(B,) over all tables: labels in the target's units, classes by their numbers."""
        labels = np.concatenate([each.labels_NK for each in labelled.rows])
        if not labels.shape[1]:
            return np.full(len(labels), np.nan)
        values, classes = labels[:, 0], labelled.targets[0].classes
        if not classes:
            return values
        there = np.isfinite(values)
        return np.where(there, class_numbers(classes)[np.where(there, values, 0).astype(np.int64)], np.nan)

    def _taken(self, series: TradingSeries, rows_N: Ints, wanted_N: Floats, is_ok_N: Bools) -> Floats:
        """(N,) the positions that the version's rule takes; an abstention makes flat, and the next one begins anew."""
        found_N = wanted_N.copy()
        asked = np.flatnonzero(is_ok_N)[np.argsort(rows_N[is_ok_N])]
        found_N[asked] = signal_backtest.taken_in_rows(
            self._model.decoder.sizing, wanted_N[asked], rows_N[asked], series
        )
        return found_N


def _paid(series: TradingSeries, rows_N: Ints, positions_N: Floats) -> Mapping[str, Floats]:
    """What each position's step came to; missing where it has no second price."""
    found = {name: np.full(len(rows_N), np.nan) for name in MONEY}
    order = np.argsort(rows_N)
    payable = series.payable(rows_N[order])
    if not len(payable):
        return found
    places = order[np.searchsorted(rows_N[order], payable)]
    account = signal_backtest.pay(series, payable, positions_N[places])
    found["gross"][places], found["net"][places] = account.gross_N, account.net_N
    found["cost"] = found["gross"] - found["net"]
    found["equity"][places] = account.equity_N
    return found


def _is_whole(positions_N: Floats) -> bool:
    """Whether all of them are short, flat or long, of size 1."""
    return bool(np.isin(positions_N[np.isfinite(positions_N)], POSITIONS).all())


def _stacked(labelled: Labelling) -> StackedBars:
    rows = labelled.rows
    first_runs = np.cumsum([0] + [int(each.runs_N.max(initial=-1)) + 1 for each in rows])

    def one(name: str) -> Any:
        return np.concatenate([getattr(each, name) for each in rows])

    return StackedBars(
        rows_RF=np.zeros((sum(len(each.close_N) for each in rows), 0), dtype=np.float32),
        open_R=one("open_N"),
        close_R=one("close_N"),
        opened_ms_R=one("opened_ms_N"),
        available_at_ms_R=one("available_at_ms_N"),
        runs_R=np.concatenate([each.runs_N + first for each, first in zip(rows, first_runs, strict=False)]),
        symbol_R=np.concatenate([np.full(len(each.close_N), number) for number, each in enumerate(rows)]),
        spread_R=one("spread_N"),
        spread_open_R=one("spread_open_N"),
        symbols=tuple(each.symbol for each in rows),
    )
