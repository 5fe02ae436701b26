"""Proof of ready-made columns: why a column that nobody can make again from bars cannot have known the test part.

    witnessed   every value that a test window reads was seen by the service before that window's label began, and has
                not changed since (`contracts.market.ColumnWitness`)
    declared    the source says of every bar when it was known (`available_at`): its owner's word, and no more
    none        neither: the certificate stays `unprovable`

A column is as well proven as the best of these; a training as its weakest column. A first bulk read witnesses nothing,
for its values are seen long after their labels began. Where an expression reads back, or a window does, the bars
before the test part count too: each has to be seen before the first label whose window reads it. An expression over
built-in columns is made again; one over a column of the user's has that column's proof. What it reads of another series
(`at("1d", my_signal)`) is asked of that series' own bars, each by the first label whose window reads it.

Legend: N bars of one symbol, M bars that test windows read, R rows of all symbols.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.evaluation import Proof
from ml_workbench_service.contracts.feature_names import may_be_column
from ml_workbench_service.contracts.market import ColumnWitness, FeatureStore, FeatureTable, Ints, Witnessing
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.market.features.expressions.elsewhere import NONE, earlier_ms, rows_read
from ml_workbench_service.market.features.expressions.nodes import Elsewhere, Expression
from ml_workbench_service.market.features.expressions.parser import parse

SLACK_SHARE = 0.1
"""Of a bar: nobody sees a value at the very moment of its bar's end. The same that live evidence has (finance.md)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColumnProof:
    """What a training's ready-made columns are proven by; `reason` says it, or what is missing.

    Attributes:
        declared: columns that nothing but their owner's word proves.
    """

    proof: Proof | None
    reason: str
    declared: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ReadBars:
    """Bars of one series that test windows read, and until when each must have been seen.

    Attributes:
        column: of the series, as its own store names it.
        rows: (M,) of the table.
    """

    column: str
    table: FeatureTable
    rows: Ints
    deadline_ms: Ints


def prove(columns: Collection[str], order: TrainingOrder, data: TrainingData, store: FeatureStore) -> ColumnProof:
    """The proof of ready-made columns; `recomputed` where there are none."""
    if not columns:
        return ColumnProof("recomputed", "every column was made from bars, and made again")
    witness = store.witness if isinstance(store, Witnessing) else None
    read = {name: list(_read_bars(name, order, data, store)) for name in sorted(columns)}
    unseen = [name for name, bars in read.items() if not all(_is_witnessed(each, witness) for each in bars)]
    if not unseen:
        return ColumnProof("witnessed", f"seen before their labels began, and unchanged since: {_listed(columns)}")
    behind = [*data.tables, *(each.table for name in unseen for each in read[name])]
    if all(table.declares_times for table in behind):
        reason = f"by their owner's `available_at` alone: {_listed(unseen)}"
        return ColumnProof("declared", reason, tuple(unseen))
    return ColumnProof(
        None,
        f"nobody can make these again from bars, or saw them before their labels began: {_listed(unseen)}",
    )


def _is_witnessed(read: _ReadBars, witness: ColumnWitness | None) -> bool:
    """Whether every value that a test window reads was seen in time."""
    if witness is None:
        return False
    try:
        seen_ms = witness.seen_ms(
            (read.table.symbol, read.table.timeframe),
            read.column,
            opened_ms=read.table.opened_ms[read.rows],
            values_N=np.asarray(read.table.columns[read.column])[read.rows],
        )
    except PlatformError as error:
        log.warning("the column %s counts as unseen: %s", read.column, error.message)
        return False
    return not (seen_ms > read.deadline_ms).any()


def _read_bars(name: str, order: TrainingOrder, data: TrainingData, store: FeatureStore) -> Iterator[_ReadBars]:
    """What test windows read behind a base column, of every symbol: of the asking series, or of another one."""
    node = None if may_be_column(name) else parse(name).root
    for table, rows, deadline_ms in _read_rows(order, data):
        if isinstance(node, Elsewhere):
            yield from _read_elsewhere(node, _ReadBars(name, table, rows, deadline_ms), store)
        elif name in table.columns:
            yield _ReadBars(name, table, rows, deadline_ms)


def _read_elsewhere(node: Elsewhere, asking: _ReadBars, store: FeatureStore) -> Iterator[_ReadBars]:
    """Of another series, behind the bars of the asking one: those that its rows read, and what windows reach back."""
    if not len(asking.rows):
        return
    inner = Expression(node.inner)
    plain = [column for column in inner.base_columns if column not in inner.elsewhere]
    timeframe = node.timeframe or asking.table.timeframe
    known_ms = asking.table.available_at_ms[asking.rows]
    (other,) = store.fetch(
        [node.symbol or asking.table.symbol], timeframe,
        start_ms=earlier_ms(int(known_ms[0]), inner.history, timeframe), end_ms=None,
        features=plain or ["close"], as_of_ms=int(known_ms[-1]),
    )  # fmt: skip
    places = rows_read(asking.table, other)[asking.rows]
    read, deadline_ms = places[places != NONE], asking.deadline_ms[places != NONE]
    if not len(read):
        return
    rows = np.arange(max(int(read[0]) - inner.history, 0), int(read[-1]) + 1)
    first = np.searchsorted(read, rows)  # the first asking row that reads a bar, by itself or back from a later one
    for column in plain:
        yield _ReadBars(column, other, rows, deadline_ms[first])
    for other_node in inner.elsewhere.values():
        yield from _read_elsewhere(other_node, _ReadBars(other_node.text, other, rows, deadline_ms[first]), store)


def _read_rows(order: TrainingOrder, data: TrainingData) -> Iterator[tuple[FeatureTable, Ints, Ints]]:
    """Each table with its bars that test windows read (M,), and until when each must have been seen (M,)."""
    reach, begin = data.windows.lookback - 1 + order.derivation.history, 0
    ends_R = np.sort(data.windows.parts["test"])
    for table in data.tables:
        ends = ends_R[(ends_R >= begin) & (ends_R < begin + len(table))] - begin
        begin += len(table)
        rows = np.arange(max(int(ends[0]) - reach, 0), int(ends[-1]) + 1) if len(ends) else np.zeros(0, dtype=np.int64)
        first_end = ends[np.searchsorted(ends, rows)] if len(ends) else rows
        read = rows >= first_end - reach
        slack_ms = int(SLACK_SHARE * TIMEFRAMES_MS[table.timeframe])
        yield table, rows[read], table.available_at_ms[first_end[read]] + slack_ms


def _listed(columns: Collection[str]) -> str:
    names = sorted(columns)
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
