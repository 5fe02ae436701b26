"""Routes of `/models/{id}/predict` and its batch: for what the fast paths leave over, and for the document."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from ml_workbench_service.api.app_state import PredictStateDep
from ml_workbench_service.api.predicting.explained_answers import explain_items, explain_one
from ml_workbench_service.api.predictions import Enqueue, ModelIdPath, answer_items, answer_one
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.explanations import BatchAnswer, ExplainedRecord
from ml_workbench_service.contracts.prediction import PredictBatchRequest, PredictRequest
from ml_workbench_service.contracts.tables import TableFormat

router = APIRouter(prefix="/models", tags=["models"])
Explain = Annotated[
    bool,
    Query(
        description="Also say what each feature added to the answer (TreeSHAP): of families that can, which are "
        "`lightgbm` and `lightgbm_classifier`. The record in the queue stays as it is."
    ),
]
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
    response_model=ExplainedRecord,
    responses=failures(404, 409, 413, 415, 500, 502, 503, 504),
)
async def predict(
    model_id: ModelIdPath,
    body: Annotated[PredictRequest, Body(openapi_examples=EXAMPLES)],
    service: PredictStateDep,
    enqueue: Enqueue = "best_effort",
    explain: Explain = False,
) -> Response:
    """One record from the live version (or the one named): forecast, direction, confidence, interval, novelty.

    Abstaining is an answer too: `status: abstain`, with the reasons. Records of the live version enter the queue. With
    `explain=true` boosted trees say beside it what each feature added.
    """
    if explain:
        return Response(await explain_one(service, model_id, body, enqueue), media_type="application/json")
    record = await answer_one(service, model_id, body, enqueue)
    return Response(record.model_dump_json(), media_type="application/json")


@router.post(
    "/{model_id}/predict/batch",
    summary="Predict many",
    response_model=BatchAnswer,
    responses={
        200: {"description": "The answers.", "content": {ARROW: BINARY}},
        **failures(404, 409, 413, 415, 500, 503),
    },
    openapi_extra={"requestBody": {"content": {ARROW: BINARY}}},
)
async def predict_batch(
    model_id: ModelIdPath,
    body: Annotated[PredictBatchRequest, Body(examples=[{"items": [SEED_BODY, SEED_BODY]}])],
    service: PredictStateDep,
    enqueue: Enqueue = "best_effort",
    explain: Explain = False,
) -> Response:
    """Records in the order of the items; a bad item fails alone, with the error body in its place.

    Batches run in float32, where sharing a run changes no bit. An item whose record could not be enqueued as it was
    asked for fails alone too. In Arrow a row is a window (features are lists) or a bar (they are numbers, and windows
    are cut from the bars of a symbol, oldest first), beside `symbol`, `timeframe`, `as_of`, `price` and `position`.
    Explanations (`explain=true`) come in JSON alone.
    """
    if explain:
        return Response(await explain_items(service, model_id, body.items, enqueue), media_type="application/json")
    return Response(await answer_items(service, model_id, body.items, enqueue), media_type="application/json")
