"""`/v2`: the routes of the Open Inference Protocol. Health and readiness need no key, as elsewhere."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from common_lib.exceptions import ModelNotFoundError, UnsupportedMediaTypeError
from ml_workbench_service.api.app_state import AppStateDep
from ml_workbench_service.api.inference_protocol.http_bodies import HEADER_LENGTH, read_body, wanted_of, write_body
from ml_workbench_service.api.inference_protocol.inference import (
    Wanted,
    infer,
    is_ready,
    model_metadata,
    server_metadata,
)
from ml_workbench_service.api.middleware import checked
from ml_workbench_service.api.queries import KnownQueries
from ml_workbench_service.contracts.bodies import READ_HERE
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.inference_protocol import (
    InferenceError,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

TAG = "open inference protocol"
BINARY = "application/octet-stream"
ModelName = Annotated[str, Path(pattern=NAME_PATTERN, description="The model's id.")]
ModelVersion = Annotated[str, Path(pattern=VERSION_PATTERN, description="Such as 1.0.0.")]
EXAMPLE = {
    "id": "42",
    "parameters": {"symbol": "EUR/USD"},
    "inputs": [
        {"name": "sma_20", "datatype": "FP64", "shape": [1, 3], "data": [1.1012, 1.1015, 1.1020]},
        {"name": "rsi_14", "datatype": "FP64", "shape": [1, 3], "data": [45.2, 46.8, 48.3]},
        {"name": "macd", "datatype": "FP64", "shape": [1, 3], "data": [0.0012, 0.0015, 0.0018]},
        {"name": "bb_width", "datatype": "FP64", "shape": [1, 3], "data": [0.0025, 0.0024, 0.0028]},
    ],
    "outputs": [{"name": "prediction"}, {"name": "direction"}, {"name": "abstain_reasons"}],
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}, "example": EXAMPLE},
            BINARY: {"schema": {"type": "string", "format": "binary", "description": "JSON, then tensors as bytes."}},
        },
    }
}


BINARY_ANSWER: dict[str, Any] = {
    "description": "The outputs; as bytes behind the JSON where they were wanted so.",
    "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
}


def failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`failures`, in the protocol's own shape."""
    return {status: {**each, "model": InferenceError} for status, each in failures(*statuses).items()}


OF_INFERENCE: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": {200: BINARY_ANSWER, **failing(404, 409, 413, 415, 500, 502, 503, 504)},
    "openapi_extra": INFER_BODY,
}


probes_router = APIRouter(prefix="/v2/health", tags=[TAG], dependencies=[KnownQueries])
router = APIRouter(prefix="/v2", tags=[TAG], dependencies=[Depends(checked), KnownQueries], responses=failing())


@probes_router.get("/live", summary="Is the server alive?", responses={422: failing()[422]})
async def check_server_live() -> ServerLive:
    """`{"live": true}`."""
    return ServerLive()


@probes_router.get("/ready", summary="Is the server ready?", responses={key: failing(503)[key] for key in (422, 503)})
async def check_server_ready(service: AppStateDep) -> ServerReady:
    """`{"ready": true}` once it takes requests, 503 while it starts or stops."""
    return ServerReady()


@router.get("", summary="Who answers?")
async def show_server() -> ServerMetadata:
    """Name, version and the extensions of the protocol that are spoken."""
    return server_metadata()


@router.get("/models/{model_id}", summary="What does a model take and say?", responses=failing(404, 409, 500, 503))
async def show_model_tensors(model_id: ModelName, service: AppStateDep) -> ModelMetadata:
    """Inputs and outputs of the live version, or the newest where none is live.

    Of the inputs a request needs `window`, or instead of it one tensor for each feature; the rest may be said, as a
    tensor or as a parameter.
    """
    return await model_metadata(service, model_id, None)


@router.get(
    "/models/{model_id}/versions/{version}", summary="What does a version take and say?",
    responses=failing(404, 409, 500, 503),
)  # fmt: skip
async def show_version_tensors(model_id: ModelName, version: ModelVersion, service: AppStateDep) -> ModelMetadata:
    """The same of one version."""
    return await model_metadata(service, model_id, version)


@router.get("/models/{model_id}/ready", summary="Does a model answer?", responses=failing(404, 409, 500, 503))
async def check_model_ready(model_id: ModelName, service: AppStateDep) -> ModelReady:
    """Loads it, so that the next request finds it in memory; 404 where it does not exist."""
    return await _ready(service, model_id, None)


@router.get(
    "/models/{model_id}/versions/{version}/ready", summary="Does a version answer?",
    responses=failing(404, 409, 500, 503),
)  # fmt: skip
async def check_version_ready(model_id: ModelName, version: ModelVersion, service: AppStateDep) -> ModelReady:
    """The same of one version."""
    return await _ready(service, model_id, version)


@router.post("/models/{model_id}/infer", summary="Predict", **OF_INFERENCE)
async def infer_model(model_id: ModelName, request: Request, service: AppStateDep) -> Response:
    """One window or several, by the live version, or the newest where none is live; as `/predict` answers them.

    Parameters: `symbol`, `timeframe`, `as_of`, `price`, `position`, and `enqueue` as the query of `/predict`.
    """
    return await _infer(service, model_id, None, request)


@router.post("/models/{model_id}/versions/{version}/infer", summary="Predict by a version", **OF_INFERENCE)
async def infer_version(model_id: ModelName, version: ModelVersion, request: Request, service: AppStateDep) -> Response:
    """The same by one version."""
    return await _infer(service, model_id, version, request)


async def _ready(service: AppStateDep, model_id: str, version: str | None) -> ModelReady:
    if not await is_ready(service, model_id, version):
        raise ModelNotFoundError(
            f"there is no {model_id}{'' if version is None else f' {version}'}; GET /api/v1/models lists what there is"
        )
    return ModelReady(name=model_id)


async def _infer(service: AppStateDep, model_id: str, version: str | None, request: Request) -> Response:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaTypeError("bodies are read as they are; send yours without Content-Encoding")
    body = await request.body()

    def read() -> tuple[InferenceRequest, Wanted]:
        asked, behind = read_body(body, request.headers.get(HEADER_LENGTH))
        return asked, wanted_of(model_id, version, asked, behind)

    # The JSON of a large body is short by now (`api/door/large_bodies.py`); its tensors are looked through, in
    # which numpy lets others run.
    asked, wanted = read() if len(body) <= READ_HERE else await asyncio.to_thread(read)
    inferred = await infer(service, wanted)
    body, length = write_body(inferred, asked)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type=BINARY, headers={HEADER_LENGTH: str(length)})
