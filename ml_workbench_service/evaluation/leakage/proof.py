"""Proof of ready-made columns: why a column that nobody can make again from bars cannot have known the test part.

    witnessed   every value that a test window reads was seen by the service before that window's label began, and has
                not changed since (`contracts.market.ColumnWitness`)
    declared    the source says of every bar when it was known (`available_at`): its owner's word, and no more
    none        neither: the certificate stays `unprovable`

A column is as well proven as the best of these; a training as its weakest column. A first bulk read witnesses nothing,
for its values are seen long after their labels began. Where an expression reads back, or a window does, the bars
before the test part count too: each has to be seen before the first label whose window reads it.

Legend: N bars of one symbol, M bars that test windows read, R rows of all symbols.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.evaluation import Proof
from ml_workbench_service.contracts.market import ColumnWitness, FeatureStore, FeatureTable, Ints, Witnessing
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder

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


def prove(columns: Collection[str], order: TrainingOrder, data: TrainingData, store: FeatureStore) -> ColumnProof:
    """The proof of ready-made columns; `recomputed` where there are none."""
    if not columns:
        return ColumnProof("recomputed", "every column was made from bars, and made again")
    witness = store.witness if isinstance(store, Witnessing) else None
    unseen = [name for name in sorted(columns) if not _is_witnessed(name, order, data, witness)]
    if not unseen:
        return ColumnProof("witnessed", f"seen before their labels began, and unchanged since: {_listed(columns)}")
    if all(table.declares_times for table in data.tables):
        reason = f"by their owner's `available_at` alone: {_listed(unseen)}"
        return ColumnProof("declared", reason, tuple(unseen))
    return ColumnProof(
        None,
        f"nobody can make these again from bars, or saw them before their labels began: {_listed(unseen)}",
    )


def _is_witnessed(name: str, order: TrainingOrder, data: TrainingData, witness: ColumnWitness | None) -> bool:
    """Whether every value that a test window reads was seen in time, of every symbol that has the column."""
    if witness is None:
        return False
    for table, rows, deadline_ms in _read_rows(order, data):
        try:
            seen_ms = witness.seen_ms(
                (table.symbol, table.timeframe),
                name,
                opened_ms=table.opened_ms[rows],
                values_N=np.asarray(table.columns[name])[rows],
            )
        except PlatformError as error:
            log.warning("the column %s counts as unseen: %s", name, error.message)
            return False
        if (seen_ms > deadline_ms).any():
            return False
    return True


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
