"""Large bodies: read by the table process, so that no input stops the event loop for longer than a small one.

A body of over `SHORT` bytes goes there and comes back checked and short; of predictions one of over `READ_HERE`, or one
of over `SHORT` that is not valid, since it is errors that take long. The routes then see a body as small ones are, and
word their errors by the same functions (`contracts.rejections`). A body of over `FEW_MISTAKES` bytes that has more of
them than an answer names is refused here, since FastAPI would put every one into words. Where a caller sent an
Idempotency-Key, what counts as the same body is the checked one.
"""

import asyncio
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib import exceptions
from common_lib.exceptions import PlatformError, UnsupportedMediaTypeError
from ml_workbench_service.access.operations import Operation
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.errors import render, too_large
from ml_workbench_service.api.middleware import OPERATION
from ml_workbench_service.api.predict_door import QUERIES, SUFFIX, asked_model, send_json, told_again
from ml_workbench_service.api.predicting.explained_answers import explain_items, explain_one
from ml_workbench_service.api.predictions import AT_ONCE, answer_items, answer_one
from ml_workbench_service.contracts.batches import unpacked
from ml_workbench_service.contracts.bodies import BODIES, FEW_MISTAKES, SHORT, BodyTask
from ml_workbench_service.contracts.contract import Contract, constructed
from ml_workbench_service.contracts.inference_protocol import InferenceRequest
from ml_workbench_service.contracts.prediction import (
    PredictBatchRequest,
    PredictionContext,
    PredictionRecord,
    PredictRequest,
)
from ml_workbench_service.contracts.rejections import MOST_ERRORS, of_pydantic
from ml_workbench_service.contracts.strict_numbers import whole_number

HEADER_LENGTH = b"inference-header-content-length"
LENGTH = struct.Struct("!I")
BATCH = "/predict/batch"
Parts = Sequence[bytes]
"""A body as it came: to join what may be megabytes would take milliseconds."""
NOTHING: dict[str, Any] = dict.fromkeys(PredictRequest.model_fields)

_bytes_of = PredictionRecord.__pydantic_serializer__.to_json


class LargeBodies:
    """Has large bodies read elsewhere, and shows the app behind it what came of them.

    Ordinary predictions have been answered by their own layers; others are answered here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        operation = scope.get(OPERATION)
        service = getattr(scope["app"].state, "service", None) if scope["type"] == "http" else None
        if not isinstance(operation, Operation) or operation.method != "POST" or not isinstance(service, AppState):
            await self._app(scope, receive, send)
            return
        contract = BODIES.get(operation.path)
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if contract is None or _has_few_mistakes(headers):
            await self._app(scope, receive, send)
            return
        try:
            messages, parts = await _read(receive, operation.most_bytes)
            if parts is None or _length(parts) <= SHORT:
                _refuse_many_mistakes(contract, b"".join(parts or ()))
                await self._app(scope, told_again(messages, receive), send)
                return
            if contract is InferenceRequest:
                if headers.get(b"content-encoding", b"identity") != b"identity":
                    raise UnsupportedMediaTypeError("bodies are read as they are; send yours without Content-Encoding")
                scope, body = await _tensors(service, operation, scope, headers, parts)
            elif contract in (PredictRequest, PredictBatchRequest):
                answer = await _predicted(service, operation, scope, parts)
                if answer is not None:
                    await send_json(answer, send)
                    return
                body = b"{}"  # the route says what is wrong with path or query
            else:
                body = await service.tables.read_body(BodyTask(path=operation.path), parts)
                scope = {**scope, "headers": [*_without(scope, b"content-length"), _length_header(body)]}
        except PlatformError as error:
            await render(error)(scope, receive, send)
            return
        await self._app(scope, told_again([{"type": "http.request", "body": body, "more_body": False}], receive), send)


async def _predicted(service: AppState, operation: Operation, scope: Scope, parts: Parts) -> bytes | None:
    """The answer to `/predict` or its batch; None where path or query are not as they should be."""
    is_batch = operation.path.endswith(BATCH)
    model_id = asked_model(scope, BATCH if is_batch else SUFFIX)
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    asked, explains = query.pop("enqueue", ["best_effort"]), query.pop("explain", ["false"])
    if model_id is None or query or len(asked) != 1 or asked[0] not in QUERIES.values() or len(explains) != 1:
        return None
    if explains[0] not in ("true", "false"):
        return None
    explain = explains[0] == "true"
    requests = await read_requests(service, operation.path, parts)
    if is_batch and explain:
        return await explain_items(service, model_id, requests, asked[0])
    if is_batch:
        return await answer_items(service, model_id, requests, asked[0])
    if isinstance(requests[0], PlatformError):
        raise requests[0]
    if explain:
        return await explain_one(service, model_id, requests[0], asked[0])
    return _bytes_of(await answer_one(service, model_id, requests[0], asked[0]))


async def read_requests(service: AppState, path: str, parts: Parts) -> list[PredictRequest | PlatformError]:
    """The items of a large batch, or the one of `/predict`, each a request or why it is none.

    Raises:
        DataValidationError: there are no items.
    """
    head, buffers = unpacked(await service.tables.read_body(BodyTask(path=path), parts))
    waiting = iter(buffers)
    requests = []
    for number, each in enumerate(head["items"]):
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
        requests.append(_item(each, waiting))
    return requests


def _item(said: Mapping[str, Any], buffers: Any) -> PredictRequest | PlatformError:
    if "error" in said:
        told = said["error"]
        kind = getattr(exceptions, told["name"])
        error: PlatformError = kind(told["message"], details=told["details"])
        return error
    values = {**NOTHING, **said["about"]}
    if values["as_of"] is not None:
        values["as_of"] = datetime.fromisoformat(values["as_of"])
    if values["context"] is not None:
        values["context"] = PredictionContext.model_validate(values["context"])
    if said["names"] is not None:
        values[said["place"]] = {name: np.frombuffer(next(buffers), "<f8") for name in said["names"]}
    return constructed(PredictRequest, values)


async def _tensors(
    service: AppState, operation: Operation, scope: Scope, headers: Mapping[bytes, bytes], parts: Parts
) -> tuple[Scope, bytes]:
    """The request with all its tensors as bytes; one whose JSON is short is as it should be."""
    stated = headers.get(HEADER_LENGTH)
    num = _length(parts)
    num_json = num if stated is None else whole_number(stated)
    if num_json is None or num_json > num or (stated is not None and num_json <= SHORT):
        return scope, b"".join(parts)  # the route says what is wrong with it
    found = await service.tables.read_body(BodyTask(path=operation.path, num_json=num_json), parts)
    (length,) = LENGTH.unpack_from(found)
    body = found[LENGTH.size :]
    others = _without(scope, b"content-length", HEADER_LENGTH)
    return {**scope, "headers": [*others, _length_header(body), (HEADER_LENGTH, b"%d" % length)]}, body


def _has_few_mistakes(headers: Mapping[bytes, bytes]) -> bool:
    length = headers.get(b"content-length")
    num_bytes = None if length is None else whole_number(length)
    return num_bytes is not None and num_bytes <= FEW_MISTAKES


def _refuse_many_mistakes(contract: type[Contract], body: bytes) -> None:
    """Raises DataValidationError where a short body has more mistakes than are named; of fewer the route tells."""
    if contract is InferenceRequest or len(body) <= FEW_MISTAKES:  # its route counts them itself
        return
    try:
        contract.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        if error.error_count() > MOST_ERRORS:
            raise of_pydantic(error, contract, prefix="body") from error


async def _read(receive: Receive, most_bytes: int) -> tuple[list[Message], Parts | None]:
    """The body's messages and the body; None where the client has gone. Raises PayloadTooLargeError."""
    messages, num = [], 0
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        num += len(message.get("body", b""))
        if num > most_bytes:
            raise too_large(most_bytes)
        if not message.get("more_body", False):
            return messages, [each.get("body", b"") for each in messages]


def _length(parts: Parts) -> int:
    return sum(map(len, parts))


def _without(scope: Scope, *names: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in scope["headers"] if name not in (*names, b"transfer-encoding")]


def _length_header(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)
