"""`/predict/batch` in Arrow: rows of windows, or of bars that windows are cut from, answered a chunk at a time.

    lists    a feature's column holds a list in each row: the row is a window
    values   it holds a number: the row is a bar; its window is it and those of its symbol before it, in their order

The table process reads and writes Arrow; here are plain columns, from the questions to the answers. Each row is
answered as an item of a JSON batch, and a bad one fails alone: `error` and `error_code` say why. One version answers
all rows.

Legend: N rows of a chunk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.batches.rows import Bars, Chunk, readable
from ml_workbench_service.api.predictions import AT_ONCE, Asked, answer_many, answer_run, may_be_asked, read_question
from ml_workbench_service.contracts.batches import NO_TIME, AnswerKind, BatchTask, packed, unpacked
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.runs.columns import ABSENT, Coded, Column, Numbers, Words, moments_ms
from ml_workbench_service.contracts.runs.records import RecordRun, RunRow
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.record_columns import record_columns, text_of
from ml_workbench_service.serving.runs.from_columns import Windows, questions_of

ERRORS: tuple[tuple[str, AnswerKind], ...] = (("error", "text"), ("error_code", "text"))
_NO_POSITIONS = (np.nan,) * 3


class ArrowBatch:
    """One request, as `contracts.runners.TableReader.converse` carries it.

    Args:
        version: the one that answers every row.
        body: some of the body, nothing at its end.
    """

    def __init__(self, service: AppState, chosen: Chosen, enqueue: str, body: Callable[[], Awaitable[bytes]]) -> None:
        self._service, self._model, self._enqueue = service, chosen.model, enqueue
        self._bars = Bars(chosen.model)
        self.more = body
        self._columns = record_columns(tuple(chosen.model.card.outputs))

    @property
    def task(self) -> BatchTask:
        """What the table process must know."""
        columns: list[tuple[str, AnswerKind]] = [(each.name, each.kind) for each in self._columns]
        return BatchTask(features=readable(self._model), columns=(*columns, *ERRORS))

    async def answered(self, data: bytes) -> bytes:
        """The answers to a chunk."""
        service, card = self._service, self._model.card
        received_ms = clock_ms(service.workbench.clock)
        chosen = await service.model_server.choose(card.id, card.version)  # which may be live no longer
        head, buffers = unpacked(data)
        chunk = Chunk(self._model, head, buffers, self._bars)
        answers = await self._by_columns(chosen, chunk, received_ms)
        if answers is None:
            answers = await self._by_rows(chosen, chunk, received_ms)
        return self._packed(answers, chunk.num)

    async def _by_columns(self, chosen: Chosen, chunk: Chunk, received_ms: int) -> "_Answers | None":
        """The answers of a chunk whose rows are right as columns, or wrong; None where one is neither."""
        is_plain_N = chunk.plain(received_ms)
        places = np.flatnonzero(is_plain_N)
        is_plain_N[places] = may_be_asked(
            chosen, chunk.asked().taken(places), self._enqueue, received_ms=received_ms
        )  # fmt: skip
        if not is_plain_N.any():
            return None
        failed: dict[int, PlatformError] = {}
        for number, row in enumerate(np.flatnonzero(~is_plain_N).tolist()):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            request = chunk.request(row)
            if isinstance(request, PlatformError):
                failed[row] = request
                continue
            try:
                await read_question(self._service, chosen, request, self._enqueue, received_ms=received_ms)
            except PlatformError as error:
                failed[row] = error.kept()
            else:
                return None
        places, windows = np.flatnonzero(is_plain_N), chunk.windows
        assert isinstance(windows, Windows), "else no row is right as columns"
        try:
            asked = chunk.asked().taken(places)
            questions = questions_of(chosen.model, asked, windows.taken(places), received_ms=received_ms)
        except DataValidationError:  # of a row, whose own words are asked for
            return None
        run, undelivered = await answer_run(self._service, chosen, questions, self._enqueue)
        return _Answers(run, places, failed | {int(places[row]): error for row, error in undelivered.items()})

    async def _by_rows(self, chosen: Chosen, chunk: Chunk, received_ms: int) -> "_Answers":
        """Every row by the body of `/predict` that it is."""
        asked: list[Asked] = []
        for row in range(chunk.num):
            if row % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            request = chunk.request(row)
            asked.append(request if isinstance(request, PlatformError) else (chosen, request))
        answers = await answer_many(self._service, asked, self._enqueue, received_ms=received_ms)
        rows = {place: each for place, each in enumerate(answers) if isinstance(each, RunRow)}
        failed = {place: each for place, each in enumerate(answers) if isinstance(each, PlatformError)}
        if not rows:
            return _Answers(None, np.zeros(0, dtype=np.int64), failed)
        run = next(iter(rows.values())).run  # one version answers, hence one run
        return _Answers(run.taken(np.array([each.number for each in rows.values()])), np.array(list(rows)), failed)

    def _packed(self, answers: "_Answers", num: int) -> bytes:
        """Columns of the answers; those of a row that failed are empty but for the error."""
        row_N = np.full(num, ABSENT)
        row_N[answers.places] = np.arange(len(answers.places))
        row_N[list(answers.failed)] = ABSENT
        texts: dict[str, list[str | None]] = {}
        coded: dict[str, list[str | None]] = {}
        buffers = []
        for each in self._columns:
            column = None if answers.run is None else answers.run.column(each.name)
            if each.kind != "text":
                buffers.append(_plain(column, each.kind, row_N))
            elif isinstance(column, Words):
                texts[each.name] = [None if row < 0 else column.words[row] for row in row_N.tolist()]
            else:
                found = Coded.same(None, num) if column is None else _coded(column).taken(row_N)
                coded[each.name] = [None if value is None else text_of(value) or None for value in found.choices]
                buffers.append(found.codes_N.astype("<i4").tobytes())
        failed = [answers.failed.get(row) for row in range(num)] if answers.failed else [None] * num
        texts["error"] = [None if each is None else each.message for each in failed]
        texts["error_code"] = [None if each is None else each.error_code for each in failed]
        return packed({"texts": texts, "coded": coded}, buffers)


@dataclass(frozen=True)
class _Answers:
    """Of a chunk: the records of its rows at these places, and the errors of the others by their number."""

    run: RecordRun | None
    places: Ints
    failed: Mapping[int, PlatformError]


def _coded(column: Column) -> Coded:
    return column if isinstance(column, Coded) else Coded.of(column.values())


def _plain(column: Column | None, kind: AnswerKind, row_N: Ints) -> bytes:
    """A column of numbers or moments, at the places of its rows."""
    values: Any
    missing: Any = np.nan
    if kind == "time":
        missing = NO_TIME
        values = np.zeros(0, dtype="<i8") if column is None else moments_ms(column)
    elif kind == "positions":
        values = np.array([each or _NO_POSITIONS for each in ([] if column is None else column.values())], dtype="<f8")
        values = values.reshape(-1, 3)
    else:
        values = np.zeros(0) if column is None else _numbers(column)
    if not len(values):
        values = np.full((1, *values.shape[1:]), missing, dtype=values.dtype)
    is_there_N = row_N >= 0
    found = values[np.where(is_there_N, row_N, 0)]
    if not is_there_N.all():
        found[~is_there_N] = missing
    return bytes(np.ascontiguousarray(found).tobytes())


def _numbers(column: Column) -> Floats:
    if isinstance(column, Numbers):
        return column.values_N
    return _coded(column).numbers()
