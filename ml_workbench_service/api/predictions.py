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
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.predict import Prepared, Question, prepare
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
    responses=failures(404, 413, 415, 500),
)
async def predict_batch(
    model_id: ModelIdPath,
    body: Annotated[PredictBatchRequest, Body(examples=[{"items": [SEED_BODY, SEED_BODY]}])],
    service: PredictStateDep,
    enqueue: Enqueue = "best_effort",
) -> Response:
    """Records in the order of the items; a bad item fails alone, with the error body in its place.

    Batches run in float32, where sharing a run changes no bit. An item whose record could not be enqueued as it was
    asked for fails alone too.
    """
    received_ms = clock_ms(service.workbench.clock)
    answers: dict[int, PredictionRecord | dict[str, Any]] = {}
    groups: dict[str, tuple[Chosen, list[tuple[int, Prepared]]]] = {}
    for number, item in enumerate(body.items):
        try:
            request = _item(item, number)
            chosen = await service.model_server.choose(model_id, request.wanted_version)
            _check_live(chosen, enqueue)
            question = await _question(chosen, request, service, received_ms=received_ms)
            _check_present(question, enqueue)
            prepared = prepare(chosen.model, question)
        except PlatformError as error:
            if error.status == 404 and not item.get("version") and not item.get("version_id"):
                raise  # the model itself does not exist: nothing an item could change
            answers[number] = error.body(correlation_id())
            continue
        groups.setdefault(chosen.model.card.version, (chosen, []))[1].append((number, prepared))
    keeps = enqueue != "never"
    for chosen, members in groups.values():
        records = await service.model_server.answer_many(
            chosen, [prepared for _, prepared in members], correlation_id(), keeps=keeps
        )
        answers |= {number: record for (number, _), record in zip(members, records, strict=True)}
        if not keeps:
            continue
        for record in records:
            _follow_up(service, chosen, record)
        published = (_publish(service, chosen, record, enqueue) for record in records)
        outcomes = await asyncio.gather(*published, return_exceptions=True)
        for (number, _), outcome in zip(members, outcomes, strict=True):
            if isinstance(outcome, PlatformError):
                answers[number] = outcome.body(correlation_id())
            elif outcome is not None:
                raise outcome
    return Response(_written([answers[number] for number in range(len(body.items))]), media_type="application/json")


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
