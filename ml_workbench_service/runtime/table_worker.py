"""Table process: reads tables and writes them in any format, so that the service itself never loads what that needs.

    python -m ml_workbench_service.runtime.table_worker      its standard input is a socket of the service

For each question the service sends one end of a fresh socket over it; a thread answers there and closes it. When the
service closes its end, or ends however that happens, the process ends at once: there is nothing that it has to finish.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from common_lib.logging import configure_logging
from common_lib.storage import keep_as_child
from ml_workbench_service.contracts.batches import BatchTask
from ml_workbench_service.contracts.bodies import BodyTask
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.desk_report import DeskReport, DeskTask
from ml_workbench_service.contracts.explanations import ExplanationTask
from ml_workbench_service.contracts.figures import FigureTask, SentFigureTask
from ml_workbench_service.contracts.market import FeatureStore
from ml_workbench_service.contracts.outcomes import RecordedPrediction
from ml_workbench_service.contracts.series import columns_of
from ml_workbench_service.contracts.tables import (
    ROWS,
    ComparisonTask,
    FeatureTask,
    LabelTask,
    MarketTask,
    PredictionTable,
    SentTable,
    StoredTable,
    TableFormat,
    TableHead,
    TableOrder,
    sent,
)
from ml_workbench_service.evaluation.desk.report import desk_report
from ml_workbench_service.integrations.feature_store.table_format import columns_of_tables, json_of
from ml_workbench_service.integrations.prediction_ledger.reader import LedgerReader, Wanted
from ml_workbench_service.integrations.table_files import (
    Table,
    open_sent,
    open_stored,
    page_of,
    schema_of,
    sound_rows,
    write_table,
)
from ml_workbench_service.runtime.batch_stream import answer_batch
from ml_workbench_service.runtime.body_reader import read_body
from ml_workbench_service.runtime.table_exchange import (
    ANSWERS,
    BODY,
    CHUNK,
    END,
    ERROR,
    FRAME,
    HEAD,
    LONGEST_FRAME,
    NEED,
    QUESTION,
    ToldError,
)
from ml_workbench_service.runtime.table_exchange import ROWS as ROWS_FRAME
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.draw_figures import drawn
from ml_workbench_service.workflows.judged.compare_versions import compare

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.boosted_trees.explanations import TreeExplainer

PREDICTIONS_AT_ONCE = 2_000
MOST_EXPLAINERS = 8
"""Versions whose trees are kept in memory."""
_EXPLAINING = threading.Lock()
"""LightGBM's boosters are asked one at a time: one thread each, whatever the machine has."""

log = logging.getLogger(__name__)


class _Answer:
    """Frames into a socket; a write waits until the service takes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def frame(self, kind: bytes, data: bytes = b"") -> None:
        """One frame."""
        self._connection.sendall(FRAME.pack(kind, len(data)) + data)

    def more(self) -> bytes:
        """Some of a batch's body; nothing at its end."""
        return self._asked(NEED, b"", BODY)

    def answered(self, chunk: bytes) -> bytes:
        """A chunk's answers."""
        return self._asked(CHUNK, chunk, ANSWERS)

    def _asked(self, kind: bytes, data: bytes, wanted: bytes) -> bytes:
        self.frame(kind, data)
        found, size = FRAME.unpack(_exactly(self._connection, FRAME.size))
        assert found == wanted, "each frame of a batch has its answer"
        return _exactly(self._connection, size)

    def write(self, data: bytes) -> None:
        """Rows, in frames of bounded length."""
        for place in range(0, len(data), LONGEST_FRAME):
            self.frame(ROWS_FRAME, data[place : place + LONGEST_FRAME])


class _AskersClock:
    """The present of the service that asks; each thread answers one order."""

    def __init__(self) -> None:
        self._of_order = threading.local()

    def set(self, now: datetime) -> None:
        """For this thread."""
        self._of_order.now = now

    def now(self) -> datetime:
        """That moment."""
        return getattr(self._of_order, "now", None) or utc_now()


_CLOCK = _AskersClock()


@cache
def _feature_store() -> FeatureStore:
    """The service's, opened when it is first asked; what it has read it keeps."""
    from ml_workbench_service.resources import open_configured_store

    return open_configured_store(Settings(), clock=_CLOCK)


def serve(control: socket.socket) -> None:
    """Answers until the service has closed its end."""
    while True:
        message, ends, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        for end in ends:
            connection = socket.socket(fileno=end)
            threading.Thread(target=_converse, args=(connection,), name="table", daemon=True).start()


def _converse(connection: socket.socket) -> None:
    """One question, one answer; a service that has gone away, or has given up, ends it."""
    with connection:
        answer = _Answer(connection)
        try:
            order, buffers = _question(connection)
            try:
                _answer(order, buffers, answer)
            except (OSError, EOFError):
                raise
            except Exception as error:
                told = ToldError.of(error)
                if told.name is None:
                    log.exception("a table could not be read")
                answer.frame(ERROR, told.model_dump_json().encode())
            answer.frame(END)
        except (ConnectionError, EOFError):
            log.debug("the service gave a table up")
        except OSError as error:
            log.error("a table could not be read: %s", error)
            answer.frame(ERROR, ToldError.of(error).model_dump_json().encode())


def _question(connection: socket.socket) -> tuple[TableOrder, list[bytes]]:
    size, behind = QUESTION.unpack(_exactly(connection, QUESTION.size))
    order = TableOrder.model_validate_json(_exactly(connection, size))
    if isinstance(order.what, BodyTask | ExplanationTask):
        return order, [_exactly(connection, behind)]
    if not isinstance(order.what, SentTable):
        return order, []
    plain, place, buffers = _exactly(connection, behind), 0, []
    for column in order.what.columns:
        if column.same is None and column.texts is None:
            buffers.append(plain[place : place + column.num_bytes])
            place += column.num_bytes
    return order, buffers


def _exactly(connection: socket.socket, num_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < num_bytes:
        piece = connection.recv(min(num_bytes - len(found), LONGEST_FRAME))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _answer(order: TableOrder, buffers: list[bytes], answer: _Answer) -> None:
    if isinstance(order.what, ComparisonTask | DeskTask):
        report = compare(order.what) if isinstance(order.what, ComparisonTask) else _report_desk(order.what)
        answer.frame(HEAD, TableHead().model_dump_json().encode())
        answer.write(report.model_dump_json().encode())
        return
    if isinstance(order.what, FigureTask | SentFigureTask):
        answer.frame(HEAD, TableHead().model_dump_json().encode())
        for piece in drawn(order.what):
            answer.write(piece)
        return
    if isinstance(order.what, FeatureTask | LabelTask):
        _answer_market(order.what, order.format, answer)
        return
    if isinstance(order.what, BodyTask):
        body = read_body(order.what, buffers.pop())
        answer.frame(HEAD, TableHead().model_dump_json().encode())
        answer.write(body)
        return
    if isinstance(order.what, ExplanationTask):
        told = _explained(order.what, buffers.pop())
        answer.frame(HEAD, TableHead().model_dump_json().encode())
        answer.write(told)
        return
    if isinstance(order.what, BatchTask):
        answer.frame(HEAD, TableHead().model_dump_json().encode())
        for piece in answer_batch(order.what, answer):
            answer.write(piece)
        return
    with sound_rows(Path(order.what.path)) if isinstance(order.what, StoredTable) else nullcontext():
        _answer_table(_opened(order.what, buffers), order, answer)


def _explained(task: ExplanationTask, windows: bytes) -> bytes:
    shape = (task.num_windows, task.num_rows, task.num_features)
    rows_NTF = np.frombuffer(windows, "<f4").reshape(shape)
    with _EXPLAINING:
        explainer = _explainer(task.folder, task.digest)
        return np.ascontiguousarray(explainer.contributions(rows_NTF), dtype="<f8").tobytes()


@lru_cache(maxsize=MOST_EXPLAINERS)
def _explainer(folder: str, digest: str) -> "TreeExplainer":
    """Of a version, read from its bundle; lightgbm comes with the first."""
    from ml_workbench_service.learning.networks.boosted_trees.explanations import TreeExplainer

    return TreeExplainer(Path(folder), digest)


def _report_desk(task: DeskTask) -> DeskReport:
    with sound_rows(Path(task.rows_path)):
        return desk_report(task.card, Path(task.rows_path))


def _answer_table(table: Table, order: TableOrder, answer: _Answer) -> None:
    if order.format is TableFormat.JSON:
        page = page_of(table, order.first, order.limit or 1)  # before the head: what is damaged is an error, no answer
        answer.frame(HEAD, table.head.model_dump_json().encode())
        answer.write(page)
        return
    answer.frame(HEAD, table.head.model_dump_json().encode())
    write_table(table, order.format, answer, first=order.first, limit=order.limit)


def _answer_market(task: MarketTask, format: TableFormat, answer: _Answer) -> None:
    from ml_workbench_service.workflows.read_features import read_features  # other tables come without a store
    from ml_workbench_service.workflows.read_labels import label_columns, read_labels

    _CLOCK.set(task.now)
    if isinstance(task, LabelTask):
        labels = read_labels(_feature_store(), task.request)
        plain = labels.model_dump_json().encode() if format is TableFormat.JSON else b""
        columns = sent("label", label_columns(labels), num_rows=len(labels.labels))
    else:
        tables = read_features(_feature_store(), task.request, task.selected)
        plain = json_of(tables, is_batch=task.is_batch) if format is TableFormat.JSON else b""
        columns = sent("feature", columns_of_tables(tables), num_rows=sum(map(len, tables)))
    table = open_sent(columns.table, columns.buffers)
    answer.frame(HEAD, table.head.model_dump_json().encode())
    if format is TableFormat.JSON:
        answer.write(plain)
        return
    write_table(table, format, answer)


def _opened(what: StoredTable | PredictionTable | SentTable, buffers: list[bytes]) -> Table:
    if isinstance(what, StoredTable):
        return open_stored(Path(what.path), what.row, what.part)
    if isinstance(what, SentTable):
        return open_sent(what, buffers)
    return _open_predictions(what)


def _open_predictions(asked: PredictionTable) -> Table:
    """The ledger's rows as of now, newest first; those that arrive while they are read have higher numbers."""
    reader = LedgerReader(Path(asked.path))
    wanted = Wanted(asked.model_id, asked.version, asked.symbol, asked.from_ms, asked.to_ms, asked.is_known)
    schema = schema_of("prediction", [(each.name, each.kind) for each in columns_of(ROWS["prediction"])])

    def batches(first: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        before, left = asked.before, limit
        while left is None or left > 0:
            num = PREDICTIONS_AT_ONCE if left is None else min(left, PREDICTIONS_AT_ONCE)
            found, before = reader.page(wanted, limit=num, before=before)
            if found:
                yield _batch([_flat(each, schema) for each in found], schema)
            if before is None:
                return
            left = None if left is None else left - len(found)

    return Table(schema, batches, None)


def _flat(row: RecordedPrediction, schema: pa.Schema) -> dict[str, object]:
    """By column: nested keys with dots between, lists with commas."""
    found: dict[str, object] = {}
    for name in schema.names:
        value: object = row
        for key in name.split("."):
            value = None if value is None else getattr(value, key)
        found[name] = ",".join(value) if isinstance(value, tuple) else value
    return found


def _batch(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows by column; moments to the millisecond."""
    arrays = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_timestamp(field.type):
            moments = [to_ms(value) if isinstance(value, datetime) else None for value in values]
            arrays.append(pa.array(moments, pa.int64()).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def main() -> int:
    """Serves the service whose socket is the standard input."""
    faulthandler.enable()
    settings = Settings()
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    keep_as_child(settings.STATE_DIR.resolve(), settings.registry_folder)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as control:
        serve(control)
    os._exit(0)  # whatever threads were doing, nobody waits for it


if __name__ == "__main__":
    sys.exit(main())
