"""Fast path of `/predict/batch`: JSON becomes requests in one step, as `api/predict_door.py` does it for single ones.

The body is read by pydantic-core alone: each item becomes a `PredictRequest` without Python objects in between, and one
that does not validate stays as it was sent, for the route's own words, or those of the process that reads large bodies.
What is no ordinary batch goes on to the route, its body unread or told again; both answer by `answer_items`. Arrow is
answered here alone: its body may be larger than any other, since it is never held whole.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from common_lib.exceptions import DataValidationError, PlatformError, UnavailableError
from common_lib.tracing import span
from ml_workbench_service.access.operations import ARROW
from ml_workbench_service.api.app_state import AppState, PredictState
from ml_workbench_service.api.batches.arrow import ArrowBatch
from ml_workbench_service.api.errors import render
from ml_workbench_service.api.middleware import ROUTE
from ml_workbench_service.api.predict_door import (
    PREFIX,
    QUERIES,
    asked_model,
    body_of,
    length_of,
    read_whole,
    send_json,
    told_again,
)
from ml_workbench_service.api.predictions import answer_items
from ml_workbench_service.api.tables.answering import passed_on
from ml_workbench_service.contracts.bodies import READ_HERE, SHORT
from ml_workbench_service.contracts.prediction import ReadBatch, SoundBatch

SUFFIX = "/predict/batch"
STALLED_S = 60.0
"""A client that sends nothing of its table for so long gives its place up."""
PIECE_BYTES = 1024 * 1024
"""Of a table's body, handed on together: each turn between the two processes costs as much as some rows."""
TEMPLATE = f"{PREFIX}{{model_id}}{SUFFIX}"

_sound_batch_of = SoundBatch.__pydantic_validator__.validate_json
_batch_of = ReadBatch.__pydantic_validator__.validate_json


class BatchDoor:
    """Answers ordinary batches; the app behind it answers everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        model_id = asked_model(scope, SUFFIX)
        service = None if model_id is None else getattr(scope["app"].state, "service", None)
        if model_id is None or not isinstance(service, PredictState):
            await self._app(scope, receive, send)
            return
        num_bytes = length_of(scope["headers"], most_bytes=READ_HERE)
        enqueue = QUERIES.get(scope["query_string"])
        if enqueue is not None and isinstance(service, AppState) and is_arrow(scope["headers"]):
            scope[ROUTE] = TEMPLATE
            answer = await _answer_arrow(service, model_id, enqueue, receive)
            await answer(scope, receive, send)
            return
        if enqueue is None and is_arrow(scope["headers"]) and b"explain" in scope["query_string"]:
            await render(_explained_in_json())(scope, receive, send)
            return
        if enqueue is None or num_bytes is None or num_bytes > READ_HERE:
            await self._app(scope, receive, send)
            return
        try:
            with span("read request"):
                messages = await read_whole(receive)
                items = _items_of(body_of(messages))
        except ValidationError:
            await self._app(scope, told_again(messages, receive), send)
            return
        del messages
        scope[ROUTE] = TEMPLATE
        try:
            body = await answer_items(service, model_id, items, enqueue)
        except PlatformError as error:
            await render(error)(scope, receive, send)
            return
        await send_json(body, send)


def _items_of(body: bytes) -> Sequence[Any]:
    """The items; of a short body one that is not valid as it was sent. Raises ValidationError."""
    try:
        items: Sequence[Any] = _sound_batch_of(body).items
    except ValidationError:
        if len(body) > SHORT:
            raise  # what is wrong takes long to word: another process does it
        items = _batch_of(body).items
    return items


def is_arrow(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the body is a table; predict workers pass it on to the control process, which alone reads them."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return kind.decode("latin-1").partition(";")[0].strip().lower() == ARROW


def _explained_in_json() -> PlatformError:
    return DataValidationError.at(
        "query.explain", "explanations come in JSON; send the rows as JSON, or leave `explain` out"
    )


async def _answer_arrow(service: AppState, model_id: str, enqueue: str, receive: Receive) -> Response:
    """The answers as they come from the table process, which has them all by then; an error in their place."""
    is_over = False

    async def more() -> bytes:
        nonlocal is_over
        parts: list[bytes] = []
        num_bytes = 0
        while not is_over and num_bytes < PIECE_BYTES:
            async with asyncio.timeout(STALLED_S):
                message = await receive()
            if message["type"] != "http.request":
                raise ConnectionError("the client has gone")
            is_over = not message.get("more_body", False)
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
        return b"".join(parts)

    try:
        batch = ArrowBatch(service, await service.model_server.choose(model_id, None), enqueue, more)
        return await passed_on(service.tables.converse(batch.task, batch.more, batch.answered), ARROW)
    except TimeoutError:
        return render(UnavailableError(f"nothing of the body came for {STALLED_S:.0f} s; send it again"))
    except PlatformError as error:
        return render(error)
