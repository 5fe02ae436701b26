"""`/models/{id}/predict` and `/predict/batch`: ask, answer, publish what is live."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import ValidationError
from pydantic_core import to_json

from common_lib.exceptions import NotLiveError, PlatformError
from common_lib.logging import correlation_id
from ml_workbench_service.api.app_state import PredictState, PredictStateDep
from ml_workbench_service.api.errors import of_pydantic
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.contracts.deployment import is_monitored
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.prediction import (
    BatchAnswer,
    PredictBatchRequest,
    PredictionRecord,
    PredictRequest,
)
from ml_workbench_service.contracts.tables import TableFormat
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.predict import Admitted, Prepared, Question, admitted, prepared_together
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of

router = APIRouter(prefix="/models", tags=["models"])
ModelIdPath = Annotated[str, Path(pattern=NAME_PATTERN, description="The model's id, such as lstm_price_predictor.")]
Enqueue = Annotated[
    Literal["best_effort", "guaranteed", "never"],
    Query(
        description="`guaranteed` answers once the record is in the queue, and with 503 where that could not be; "
        "`best_effort` answers at once, and the queue's policy decides; `never` only answers: nothing is published, "
        "counted, monitored or kept, and no live interval learns of it."
    ),
]

_bytes_of = PredictionRecord.__pydantic_serializer__.to_json

ARROW = TableFormat.ARROW.value
BINARY = {"schema": {"type": "string", "format": "binary"}}
SEED_BODY = {
    "symbol": "EUR/USD",
    "timeframe": "1h",
    "features": {
        "sma_20": [1.1012, 1.1015, 1.1020],
        "rsi_14": [45.2, 46.8, 48.3],
        "macd": [0.0012, 0.0015, 0.0018],
        "bb_width": [0.0025, 0.0024, 0.0028],
    },
}
EXAMPLES = {
    "features": {"summary": "Features sent along, oldest first", "value": SEED_BODY},
    "inputs": {
        "summary": "Inputs with context",
        "value": {"inputs": SEED_BODY["features"], "context": {"symbol": "EUR/USD"}},
    },
    "fetched": {"summary": "The service fetches the features", "value": {"symbol": "EUR/USD", "timeframe": "1h"}},
}


@router.post(
    "/{model_id}/predict",
    summary="Predict once",
    response_model=PredictionRecord,
    responses=failures(404, 409, 413, 415, 500, 502, 503, 504),
)
async def predict(
    model_id: ModelIdPath,
    body: Annotated[PredictRequest, Body(openapi_examples=EXAMPLES)],
    service: PredictStateDep,
    enqueue: Enqueue = "best_effort",
) -> Response:
    """One record from the live version (or the one named): forecast, direction, confidence, interval, novelty.

    Abstaining is an answer too: `status: abstain`, with the reasons. Records of the live version enter the queue.
    """
    record = await answer_one(service, model_id, body, enqueue)
    return Response(record.model_dump_json(), media_type="application/json")


async def answer_one(service: PredictState, model_id: str, request: PredictRequest, enqueue: str) -> PredictionRecord:
    """The record, counted, monitored and left for the queue; what both ways into `/predict` do."""
    received_ms = clock_ms(service.workbench.clock)
    chosen = await service.model_server.choose(model_id, request.wanted_version)
    return await answer_chosen(service, chosen, request, enqueue, received_ms=received_ms)


async def answer_chosen(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> PredictionRecord:
    """`answer_one` by a version that was chosen already, so that whoever read the request read it for this one."""
    _check_live(chosen, enqueue)
    question = await _question(chosen, request, service, received_ms=received_ms)
    _check_present(question, enqueue)
    keeps = enqueue != "never"
    record = await service.model_server.answer(chosen, question, correlation_id(), keeps=keeps)
    if keeps:
        _follow_up(service, chosen, record)
        await _publish(service, chosen, record, enqueue)
    return record


@router.post(
    "/{model_id}/predict/batch",
    summary="Predict many",
    response_model=BatchAnswer,
    responses={200: {"description": "The answers.", "content": {ARROW: BINARY}}, **failures(404, 413, 415, 500, 503)},
    openapi_extra={"requestBody": {"content": {ARROW: BINARY}}},
)
async def predict_batch(
    model_id: ModelIdPath,
    body: Annotated[PredictBatchRequest, Body(examples=[{"items": [SEED_BODY, SEED_BODY]}])],
    service: PredictStateDep,
    enqueue: Enqueue = "best_effort",
) -> Response:
    """Records in the order of the items; a bad item fails alone, with the error body in its place.

    Batches run in float32, where sharing a run changes no bit. An item whose record could not be enqueued as it was
    asked for fails alone too. In Arrow a row is a window (features are lists) or a bar (they are numbers, and windows
    are cut from the bars of a symbol, oldest first), beside `symbol`, `timeframe`, `as_of`, `price` and `position`.
    """
    return Response(await answer_items(service, model_id, body.items, enqueue), media_type="application/json")


async def answer_items(service: PredictState, model_id: str, items: Sequence[Any], enqueue: str) -> bytes:
    """A `BatchAnswer` as it is sent; what both ways into `/predict/batch` do. An item may have been read already."""
    received_ms = clock_ms(service.workbench.clock)
    asked: list[Asked] = []
    for number, item in enumerate(items):
        try:
            request = item if isinstance(item, PredictRequest) else _item(item, number)
        except PlatformError as error:
            asked.append(error)
            continue
        try:
            asked.append((await service.model_server.choose(model_id, request.wanted_version), request))
        except PlatformError as error:
            if error.status == 404 and not request.wanted_version:
                raise  # the model itself does not exist: nothing an item could change
            asked.append(error)
    answers = await answer_many(service, asked, enqueue, received_ms=received_ms)
    return _written([each.body(correlation_id()) if isinstance(each, PlatformError) else each for each in answers])


Asked = tuple[Chosen, PredictRequest] | PlatformError
"""A question with the version that shall answer it, or why it cannot be asked."""


async def answer_many(
    service: PredictState, asked: Sequence[Asked], enqueue: str, *, received_ms: int, is_whole: bool = False
) -> list[PredictionRecord | PlatformError]:
    """A record or an error each, in order, in float32; counted, monitored and left for the queue as `answer_one` does.

    Args:
        is_whole: one that cannot be asked is raised, with its number, before any is answered.
    """
    answers: dict[int, PredictionRecord | PlatformError] = {}
    groups: dict[tuple[str, str, bool], tuple[Chosen, list[tuple[int, Admitted]]]] = {}
    for number, each in enumerate(asked):
        try:
            if isinstance(each, PlatformError):
                raise each
            chosen, found = each[0], await _admitted(service, *each, enqueue, received_ms=received_ms)
        except PlatformError as error:
            answers[number] = error
            continue
        key = (chosen.model.card.version, chosen.model.card.digest, chosen.deployment is not None)
        groups.setdefault(key, (chosen, []))[1].append((number, found))
    ready = [(chosen, *_scaled(chosen, members)) for chosen, members in groups.values()]
    for _, _, refused in ready:
        answers |= refused
    if is_whole and answers:
        number, refusal = min(answers.items())
        assert isinstance(refusal, PlatformError), "nothing has been answered yet"
        raise _of_row(refusal, number, len(asked)) from refusal
    for chosen, whole, _ in ready:
        if whole:
            answers |= await _answer_group(service, chosen, whole, enqueue)
    return [answers[number] for number in range(len(asked))]


def _scaled(
    chosen: Chosen, members: Sequence[tuple[int, Admitted]]
) -> tuple[list[tuple[int, Prepared]], dict[int, PlatformError]]:
    """The windows of one version as its network reads them, and those that it cannot read, by their numbers."""
    prepared = prepared_together(chosen.model, [each for _, each in members])
    numbered = [(number, each) for (number, _), each in zip(members, prepared, strict=True)]
    whole = [(number, each) for number, each in numbered if isinstance(each, Prepared)]
    return whole, {number: each for number, each in numbered if isinstance(each, PlatformError)}


async def _admitted(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> Admitted:
    _check_live(chosen, enqueue)
    question = await _question(chosen, request, service, received_ms=received_ms)
    _check_present(question, enqueue)
    return admitted(chosen.model, question)


async def _answer_group(
    service: PredictState, chosen: Chosen, members: Sequence[tuple[int, Prepared]], enqueue: str
) -> dict[int, PredictionRecord | PlatformError]:
    """The answers of one version, by their numbers."""
    keeps = enqueue != "never"
    records = await service.model_server.answer_many(
        chosen, [prepared for _, prepared in members], correlation_id(), keeps=keeps
    )
    answers: dict[int, PredictionRecord | PlatformError] = {
        number: record for (number, _), record in zip(members, records, strict=True)
    }
    if not keeps:
        return answers
    for record in records:
        _follow_up(service, chosen, record)
    published = (_publish(service, chosen, record, enqueue) for record in records)
    outcomes = await asyncio.gather(*published, return_exceptions=True)
    for (number, _), outcome in zip(members, outcomes, strict=True):
        if isinstance(outcome, PlatformError):
            answers[number] = outcome
        elif outcome is not None:
            raise outcome
    return answers


def _of_row(error: PlatformError, number: int, num: int) -> PlatformError:
    """The error with the place of its row, where there are several."""
    message = error.message if num == 1 else f"row {number}: {error.message}"
    return type(error)(message, details=error.details, retry_after_s=error.retry_after_s)


def _written(answers: Sequence[PredictionRecord | dict[str, Any]]) -> bytes:
    """A `BatchAnswer`, each record written once and by itself: asked to write all, pydantic first checks them again."""
    parts = [_bytes_of(each) if isinstance(each, PredictionRecord) else to_json(each) for each in answers]
    return b'{"predictions":[' + b",".join(parts) + b"]}"


def _item(item: Any, number: int) -> PredictRequest:
    try:
        return PredictRequest.model_validate(item)
    except ValidationError as error:
        raise of_pydantic(error, PredictRequest, prefix=f"body.items.{number}") from error


async def _question(chosen: Chosen, request: PredictRequest, service: PredictState, *, received_ms: int) -> Question:
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
        service.workbench.required_queue()
        assert service.publisher is not None, "a queue has a publisher"
        await service.publisher.deliver(record, record.metadata.correlation_id)
    elif service.publisher is not None:
        service.publisher.publish(record, record.metadata.correlation_id)


def _follow_up(service: PredictState, chosen: Chosen, record: PredictionRecord) -> None:
    """Counts the record; one of the live version joins, by its level, the monitoring log."""
    service.metrics.count_prediction(record)
    if chosen.deployment is None:
        return
    if is_monitored(record.prediction_id, chosen.deployment.monitoring_level):
        service.monitoring_log.note(record)
