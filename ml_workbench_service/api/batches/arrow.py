"""`/predict/batch` in Arrow: rows of windows, or of bars that windows are cut from, answered a chunk at a time.

    lists    a feature's column holds a list in each row: the row is a window
    values   it holds a number: the row is a bar; its window is it and those of its symbol before it, in their order

The table process reads and writes Arrow; here are plain columns. Each row is answered as an item of a JSON batch, by
`answer_many`, and a bad one fails alone: `error` and `error_code` say why. One version answers all rows.

Legend: T rows of a window.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.errors import of_pydantic
from ml_workbench_service.api.predictions import answer_many
from ml_workbench_service.contracts.batches import NO_TIME, AnswerKind, BatchTask, moments_of, packed, unpacked
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import normal_symbol, to_ms
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.record_columns import RecordColumn, record_columns

LARGEST = 1e15
MOST_SYMBOLS = 1_000
ERRORS: tuple[tuple[str, AnswerKind], ...] = (("error", "text"), ("error_code", "text"))


class ArrowBatch:
    """One request, as `contracts.runners.TableReader.converse` carries it.

    Args:
        version: the one that answers every row.
        body: some of the body, nothing at its end.
    """

    def __init__(self, service: AppState, chosen: Chosen, enqueue: str, body: Callable[[], Awaitable[bytes]]) -> None:
        self._service, self._model, self._enqueue = service, chosen.model, enqueue
        self._bars = _Bars(chosen.model)
        self.more = body
        self._columns = record_columns(tuple(chosen.model.card.outputs))

    @property
    def task(self) -> BatchTask:
        """What the table process must know."""
        columns: list[tuple[str, AnswerKind]] = [(each.name, each.kind) for each in self._columns]
        return BatchTask(features=_readable(self._model), columns=(*columns, *ERRORS))

    async def answered(self, chunk: bytes) -> bytes:
        """The answers to a chunk."""
        service, card = self._service, self._model.card
        received_ms = clock_ms(service.workbench.clock)
        chosen = await service.model_server.choose(card.id, card.version)  # which may be live no longer
        head, buffers = unpacked(chunk)
        asked = [each if isinstance(each, PlatformError) else (chosen, each) for each in self._requests(head, buffers)]
        answers = await answer_many(service, asked, self._enqueue, received_ms=received_ms)
        return self._packed(answers)

    def _requests(self, head: Mapping[str, Any], buffers: Sequence[memoryview]) -> list[PredictRequest | PlatformError]:
        """The bodies of `/predict` that the rows are."""
        waiting, num = iter(buffers), head["num"]
        about: dict[str, Sequence[Any]] = dict(head["texts"])
        for name in head["numbers"]:
            plain = np.frombuffer(next(waiting), "<f8")
            about[name] = [None if each != each else each for each in plain.tolist()]
        if head["has_as_of"]:
            about["as_of"] = [
                None if each is None else datetime.fromtimestamp(each / 1000, tz=UTC)
                for each in moments_of(next(waiting))
            ]
        requests = [self._request(about, row) for row in range(num)]
        kinds = {kind for _, kind in head["features"]}
        if len(kinds) > 1:
            raise DataValidationError.at("body", "features come as lists, a window a row, or as numbers, a bar a row")
        if kinds == {"values"}:
            columns = {name: np.frombuffer(next(waiting), "<f8") for name, _ in head["features"]}
            return self._bars.windows(requests, self._symbols(about, num), columns)
        lists = {name: _Lists(next(waiting), next(waiting)) for name, _ in head["features"]}
        are_sound = all(of.are_sound for of in lists.values())
        return [
            _with_columns(each, {name: of[row] for name, of in lists.items()}, are_sound=are_sound)
            for row, each in enumerate(requests)
        ]

    def _symbols(self, about: Mapping[str, Sequence[Any]], num: int) -> list[str | None]:
        """Whose bar each row is, also where it cannot be answered for another reason."""
        known = self._model.card.symbols
        unsaid = known[0] if len(known) == 1 else None
        return [_symbol(each or unsaid) for each in about.get("symbol", [None] * num)]

    def _request(self, about: Mapping[str, Sequence[Any]], row: int) -> PredictRequest | PlatformError:
        card = self._model.card
        body = {"timeframe": card.timeframe, "version": card.version}
        if len(card.symbols) == 1:
            body["symbol"] = card.symbols[0]
        body |= {name: value for name, values in about.items() if (value := values[row]) is not None}
        if "symbol" not in body:
            return DataValidationError.at(
                "symbol", f"{card.id} knows {', '.join(card.symbols)}; say which with `symbol`"
            )
        try:
            return PredictRequest.model_validate(body)
        except ValidationError as error:
            return of_pydantic(error, PredictRequest, prefix="row")

    def _packed(self, answers: Sequence[PredictionRecord | PlatformError]) -> bytes:
        """Columns of the answers; those of a row that failed are empty but for the error."""
        places = [row for row, each in enumerate(answers) if isinstance(each, PredictionRecord)]
        records = [each for each in answers if isinstance(each, PredictionRecord)]
        texts: dict[str, list[str | None]] = {}
        buffers = []
        for column in self._columns:
            if column.kind == "text":
                said = _at(places, column.texts(records), len(answers))
                texts[column.name] = [each or None for each in said]
            else:
                buffers.append(_spread(column, records, places, len(answers)))
        failed = [each if isinstance(each, PlatformError) else None for each in answers]
        texts["error"] = [None if each is None else each.message for each in failed]
        texts["error_code"] = [None if each is None else each.error_code for each in failed]
        return packed({"texts": texts}, buffers)


class _Lists:
    """A column of lists: the window of each row."""

    def __init__(self, lengths: memoryview, values: memoryview) -> None:
        lengths_N = np.frombuffer(lengths, "<i4")
        self._ends = np.cumsum(lengths_N, dtype=np.int64).tolist()
        self._values = np.frombuffer(values, "<f8")
        self.are_sound = bool((lengths_N > 0).all()) and _is_sound(self._values)

    def __getitem__(self, row: int) -> Floats:
        return self._values[self._ends[row - 1] if row else 0 : self._ends[row]]


class _Bars:
    """The newest bars of each symbol, over the chunks of a request."""

    def __init__(self, model: ServedModel) -> None:
        reach = model.card.lookback + model.derivation.history
        self._reach = max(reach, EWMA_BARS + 1) if "close" in _readable(model) else reach
        self._kept: dict[str, dict[str, Floats]] = {}

    def windows(
        self,
        requests: Sequence[PredictRequest | PlatformError],
        symbols: Sequence[str | None],
        columns: Mapping[str, Floats],
    ) -> list[PredictRequest | PlatformError]:
        """The requests with the window that ends with each row's bar."""
        by_symbol: dict[str, list[int]] = {}
        for row, each in enumerate(symbols):
            if each is not None:
                by_symbol.setdefault(each, []).append(row)
        found = list(requests)
        for symbol, rows in by_symbol.items():
            if symbol not in self._kept and len(self._kept) >= MOST_SYMBOLS:
                raise DataValidationError.at("body.symbol", f"a request has at most {MOST_SYMBOLS} symbols")
            kept = self._kept.get(symbol)
            whole = {name: values[rows] for name, values in columns.items()}
            num_kept = 0
            if kept is not None:
                num_kept = len(next(iter(kept.values())))
                whole = {name: np.concatenate([kept[name], values]) for name, values in whole.items()}
            are_sound = all(map(_is_sound, whole.values()))
            for place, row in enumerate(rows, num_kept + 1):
                window = {name: each[max(place - self._reach, 0) : place] for name, each in whole.items()}
                found[row] = _with_columns(found[row], window, are_sound=are_sound)
            self._kept[symbol] = {name: each[-self._reach :].copy() for name, each in whole.items()}
        return found


def _symbol(text: str | None) -> str | None:
    try:
        return normal_symbol(text)
    except ValueError:
        return None


def _is_sound(values: Floats) -> bool:
    return bool((np.abs(values) <= LARGEST).all())  # NaN is not


def _with_columns(
    request: PredictRequest | PlatformError, columns: Mapping[str, Floats], *, are_sound: bool
) -> PredictRequest | PlatformError:
    """The request with its columns; without any the service fetches them.

    Args:
        are_sound: whether each value of the whole chunk was found to be; else this row's are looked at.
    """
    if isinstance(request, PlatformError) or not columns:
        return request
    for name, values in () if are_sound else columns.items():
        if not len(values) or not _is_sound(values):
            return DataValidationError.at(
                f"row.{name}", f"{name} has no values, or some that are missing, not finite, or beyond {LARGEST:.0e}"
            )
    return request.model_copy(update={"features": columns})


def _readable(model: ServedModel) -> tuple[str, ...]:
    """Features, and the columns that they can be derived from."""
    return tuple(dict.fromkeys([*model.card.features, *model.derivation.base_columns]))


def _at(places: Sequence[int], values: Sequence[str], num: int) -> list[str | None]:
    if len(places) == num:
        return list(values)
    found: list[str | None] = [None] * num
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def _spread(column: RecordColumn, records: Sequence[PredictionRecord], places: Sequence[int], num: int) -> bytes:
    """A column of numbers or moments, at the places of its records."""
    if column.kind == "time":
        moments = [column.value_of(each) for each in records]
        values = np.array([NO_TIME if each is None else to_ms(each) for each in moments], dtype="<i8")
        missing: Any = NO_TIME
    else:
        values, missing = column.numbers(records).astype("<f8"), np.nan
    if len(places) == num:
        return values.tobytes()
    spread = np.full((num, *values.shape[1:]), missing, dtype=values.dtype)
    spread[list(places)] = values
    return spread.tobytes()
