"""What `/models/{id}/predict` and its batch do: ask, answer, publish what is live; `predicting/` has their routes."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Path, Query
from pydantic import ValidationError
from pydantic_core import to_json

from common_lib.exceptions import DataValidationError, NotLiveError, PlatformError
from common_lib.logging import correlation_id
from common_lib.tracing import span
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.contracts.deployment import is_monitored
from ml_workbench_service.contracts.market import Bools
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.runs.records import RecordRun, RunRow
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.predict import Admitted, Prepared, Question, admitted, prepared_together
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of
from ml_workbench_service.serving.runs.from_columns import AskedRows, questions_of
from ml_workbench_service.serving.runs.from_requests import columns_of
from ml_workbench_service.serving.runs.questions import QuestionRun

ModelIdPath = Annotated[str, Path(pattern=NAME_PATTERN, description="The model's id, such as lstm_price_predictor.")]
Enqueue = Annotated[
    Literal["best_effort", "guaranteed", "never"],
    Query(
        description="`guaranteed` answers once the record is in the queue, and with 503 where that could not be; "
        "`best_effort` answers at once, and the queue's policy decides; `never` only answers: nothing is published, "
        "counted, monitored or kept, and no live interval learns of it."
    ),
]

AT_ONCE = 32
"""Rows of a batch between two looks at what else waits for the event loop: some milliseconds."""


async def answer_one(service: PredictState, model_id: str, request: PredictRequest, enqueue: str) -> PredictionRecord:
    """The record, counted, monitored and left for the queue; what both ways into `/predict` do."""
    received_ms = clock_ms(service.workbench.clock)
    with span("choose version"):
        chosen = await service.model_server.choose(model_id, request.wanted_version)
    return await answer_chosen(service, chosen, request, enqueue, received_ms=received_ms)


async def answer_chosen(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> PredictionRecord:
    """`answer_one` by a version that was chosen already, so that whoever read the request read it for this one."""
    question = await checked_question(service, chosen, request, enqueue, received_ms=received_ms)
    return await answer_question(service, chosen, question, enqueue)


async def answer_question(service: PredictState, chosen: Chosen, question: Question, enqueue: str) -> PredictionRecord:
    """The record of a question that was checked, counted, monitored and left for the queue."""
    keeps = enqueue != "never"
    record = await service.model_server.answer(chosen, question, correlation_id(), keeps=keeps)
    if keeps:
        _follow_up(service, chosen, record)
        await _publish(service, chosen, record, enqueue)
    return record


async def answer_items(service: PredictState, model_id: str, items: Sequence[Any], enqueue: str) -> bytes:
    """A `BatchAnswer` as it is sent; what both ways into `/predict/batch` do. An item may have been read already."""
    received_ms = clock_ms(service.workbench.clock)
    answers = await answer_many(service, await chosen_for(service, model_id, items), enqueue, received_ms=received_ms)
    return await batch_of([each if isinstance(each, PlatformError) else each.body for each in answers])


async def batch_of(answers: Sequence[bytes | PlatformError]) -> bytes:
    """A `BatchAnswer` of records as they are sent and errors."""
    parts = []
    for number, each in enumerate(answers):
        parts.append(to_json(each.body(correlation_id())) if isinstance(each, PlatformError) else each)
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
    return b'{"predictions":[' + b",".join(parts) + b"]}"


async def chosen_for(service: PredictState, model_id: str, items: Sequence[Any]) -> list["Asked"]:
    """Each item with the version that shall answer it, or why it cannot be asked."""
    asked: list[Asked] = []
    chosen: dict[str | None, Chosen] = {}
    for number, item in enumerate(items):
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
        if isinstance(item, PlatformError):
            asked.append(item)
            continue
        try:
            request = item if isinstance(item, PredictRequest) else _item(item, number)
        except PlatformError as error:
            asked.append(error.kept())
            await asyncio.sleep(0)  # what is wrong takes twenty times as long to say as what is right to read
            continue
        version = request.wanted_version
        try:
            if version not in chosen:
                chosen[version] = await service.model_server.choose(model_id, version)
            asked.append((chosen[version], request))
        except PlatformError as error:
            if error.status == 404 and not version:
                raise  # the model itself does not exist: nothing an item could change
            asked.append(error.kept())
    return asked


Asked = tuple[Chosen, PredictRequest] | PlatformError
"""A question with the version that shall answer it, or why it cannot be asked."""


async def answer_many(
    service: PredictState, asked: Sequence[Asked], enqueue: str, *, received_ms: int, is_whole: bool = False
) -> list[RunRow | PlatformError]:
    """A row or an error each, in order, in float32; counted, monitored and left for the queue as `answer_one` does.

    Args:
        is_whole: one that cannot be asked is raised, with its number, before any is answered.
    """
    read = partial(_together, asked, enqueue, received_ms=received_ms)
    together = await asyncio.to_thread(read) if len(asked) > AT_ONCE else read()
    if together is not None:
        run, failed = await answer_run(service, *together, enqueue)
        return [failed.get(row.number, row) for row in run.rows()]
    answers: dict[int, RunRow | PlatformError] = {}
    groups: dict[tuple[str, str, bool], tuple[Chosen, list[tuple[int, Admitted]]]] = {}
    for number, each in enumerate(asked):
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
        if isinstance(each, PlatformError):
            answers[number] = each
            continue
        try:
            chosen, found = each[0], await read_question(service, *each, enqueue, received_ms=received_ms)
        except PlatformError as error:
            answers[number] = error.kept()
            continue
        key = (chosen.model.card.version, chosen.model.card.digest, chosen.deployment is not None)
        groups.setdefault(key, (chosen, []))[1].append((number, found))
    ready = [(chosen, *await _scaled(chosen, members)) for chosen, members in groups.values()]
    for _, _, refused in ready:
        answers |= refused
    if is_whole and answers:
        number, refusal = min(answers.items())
        assert isinstance(refusal, PlatformError), "nothing has been answered yet"
        raise _of_row(refusal, number, len(asked)) from refusal
    for chosen, whole, _ in ready:
        if whole:
            run, failed = await answer_run(service, chosen, QuestionRun.of([each for _, each in whole]), enqueue)
            rows = [failed.get(row.number, row) for row in run.rows()]
            answers |= {number: row for (number, _), row in zip(whole, rows, strict=True)}
    return [answers[number] for number in range(len(asked))]


def _together(asked: Sequence[Asked], enqueue: str, *, received_ms: int) -> tuple[Chosen, QuestionRun] | None:
    """The questions to one version as columns; None where one has to be read, or refused, alone."""
    pairs = [each for each in asked if not isinstance(each, PlatformError)]
    if len(pairs) < len(asked) or len({id(chosen) for chosen, _ in pairs}) != 1:
        return None
    chosen = pairs[0][0]
    found = columns_of(chosen.model, [request for _, request in pairs], received_ms=received_ms)
    if found is None or not may_be_asked(chosen, found[0], enqueue, received_ms=received_ms).all():
        return None
    try:
        return chosen, questions_of(chosen.model, *found, received_ms=received_ms)
    except DataValidationError:  # of one, whose own words are asked for
        return None


def may_be_asked(chosen: Chosen, asked: AskedRows, enqueue: str, *, received_ms: int) -> Bools:
    """(N,) which rows may be: what must enter the queue is of the live version and about the present."""
    if enqueue != "guaranteed":
        return np.ones(len(asked), dtype=np.bool_)
    return np.asarray(~asked.is_past(chosen.model, received_ms) & (chosen.deployment is not None))


async def _scaled(
    chosen: Chosen, members: Sequence[tuple[int, Admitted]]
) -> tuple[list[tuple[int, Prepared]], dict[int, PlatformError]]:
    """The windows of one version as its network reads them, and those that it cannot read, by their numbers."""
    prepared: list[Prepared | Exception] = []
    for first in range(0, len(members), AT_ONCE):
        prepared += prepared_together(chosen.model, [each for _, each in members[first : first + AT_ONCE]])
        await asyncio.sleep(0)
    numbered = [(number, each) for (number, _), each in zip(members, prepared, strict=True)]
    whole = [(number, each) for number, each in numbered if isinstance(each, Prepared)]
    return whole, {number: each for number, each in numbered if isinstance(each, PlatformError)}


async def read_question(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> Admitted:
    """The question of a body, checked and cut; raises PlatformError for what is wrong with it."""
    return admitted(chosen.model, await checked_question(service, chosen, request, enqueue, received_ms=received_ms))


async def checked_question(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> Question:
    """The question of a body, its features fetched where it brings none; raises PlatformError where it may not be
    asked."""
    _check_live(chosen, enqueue)
    question = await _question(chosen, request, service, received_ms=received_ms)
    _check_present(question, enqueue)
    return question


async def answer_run(
    service: PredictState, chosen: Chosen, questions: QuestionRun, enqueue: str
) -> tuple[RecordRun, dict[int, PlatformError]]:
    """The answers of one version, counted, monitored and left for the queue; why a row is not in it, by its number."""
    keeps = enqueue != "never"
    run = await service.model_server.answer_many(chosen, questions, correlation_id(), keeps=keeps)
    if not keeps:
        return run, {}
    _follow_up_run(service, chosen, run)
    if chosen.deployment is None:
        return run, {}
    rows = run.rows()
    if questions.is_historical_N.any():
        rows = [row for row, is_past in zip(rows, questions.is_historical_N.tolist(), strict=True) if not is_past]
    if enqueue == "guaranteed":
        return run, await _delivered(service, rows)
    if service.publisher is not None and rows:
        service.publisher.publish_run(rows, correlation_id())
    return run, {}


async def _delivered(service: PredictState, rows: Sequence[RunRow]) -> dict[int, PlatformError]:
    """Rows that must be in the queue; why one is not, by its number."""
    outcomes = await asyncio.gather(*(_deliver(service, row, correlation_id()) for row in rows), return_exceptions=True)
    failed: dict[int, PlatformError] = {}
    for row, outcome in zip(rows, outcomes, strict=True):
        if isinstance(outcome, PlatformError):
            failed[row.number] = outcome.kept()
        elif outcome is not None:
            raise outcome
    return failed


async def _deliver(service: PredictState, record: PredictionRecord | RunRow, identifier: str) -> None:
    service.workbench.required_queue()
    assert service.publisher is not None, "a queue has a publisher"
    await service.publisher.deliver(record, identifier)


def _of_row(error: PlatformError, number: int, num: int) -> PlatformError:
    """The error with the place of its row, where there are several."""
    message = error.message if num == 1 else f"row {number}: {error.message}"
    return type(error)(message, details=error.details, retry_after_s=error.retry_after_s)


def _item(item: Any, number: int) -> PredictRequest:
    try:
        return PredictRequest.model_validate(item)
    except ValidationError as error:
        raise of_pydantic(error, PredictRequest, prefix=f"body.items.{number}") from error


async def _question(chosen: Chosen, request: PredictRequest, service: PredictState, *, received_ms: int) -> Question:
    with span("features"):
        question = question_of(chosen.model, request, received_ms=received_ms)
        if question is not None:
            return question
        store = service.workbench.feature_store
        return await asyncio.to_thread(fetch_question, chosen.model, request, store, received_ms=received_ms)


def _check_present(question: Question, enqueue: str) -> None:
    if enqueue == "guaranteed" and question.is_historical:
        raise NotLiveError(
            "`as_of` lies more than two bars back, and answers about the past never enter the queue; leave `as_of` or "
            "`enqueue` out"
        )


def _check_live(chosen: Chosen, enqueue: str) -> None:
    if enqueue == "guaranteed" and chosen.deployment is None:
        card = chosen.model.card
        raise NotLiveError(
            f"version {card.version} of {card.id} is not live, and only the live version's records enter the queue; "
            "deploy it, or leave `enqueue` out"
        )


async def _publish(service: PredictState, chosen: Chosen, record: PredictionRecord, enqueue: str) -> None:
    """A live record joins the queue: for certain, or as it can; one about the past never does."""
    if chosen.deployment is None or record.sample == "historical":
        return
    if enqueue == "guaranteed":
        await _deliver(service, record, record.metadata.correlation_id)
    elif service.publisher is not None:
        service.publisher.publish(record, record.metadata.correlation_id)


def follow_up_together(
    service: PredictState, answered: Sequence[tuple[Chosen, PredictionRecord | RunRow, str]]
) -> None:
    """What `answer_one` does after an answer, of several that were to be kept, in their order.

    Args:
        answered: each with its correlation id. Rows of one run stand together.
    """
    for _, members in groupby(answered, key=lambda each: id(each[1].run) if isinstance(each[1], RunRow) else 0):
        several = list(members)
        chosen, first, _ = several[0]
        if isinstance(first, RunRow) and len(several) == len(first.run):
            _follow_up_run(service, chosen, first.run)
            continue
        for chosen, record, _ in several:
            _follow_up(service, chosen, record.record if isinstance(record, RunRow) else record)
    published = [(record, identifier) for chosen, record, identifier in answered if _is_published(chosen, record)]
    if service.publisher is not None and published:
        service.publisher.publish_together(published)


def _is_published(chosen: Chosen, record: PredictionRecord | RunRow) -> bool:
    sample = record.run.coded("sample").value(record.number) if isinstance(record, RunRow) else record.sample
    return chosen.deployment is not None and sample != "historical"


def _follow_up_run(service: PredictState, chosen: Chosen, run: RecordRun) -> None:
    service.metrics.count_run(run)
    if chosen.deployment is not None:
        service.monitoring_log.note_run(run, run.is_monitored(chosen.deployment.monitoring_level))


def _follow_up(service: PredictState, chosen: Chosen, record: PredictionRecord) -> None:
    """Counts the record; one of the live version joins, by its level, the monitoring log."""
    service.metrics.count_prediction(record)
    if chosen.deployment is None:
        return
    if is_monitored(record.prediction_id, chosen.deployment.monitoring_level):
        service.monitoring_log.note(record)
