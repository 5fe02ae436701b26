"""Fast path of `/predict`: single predictions as one ASGI function, without FastAPI's generic machinery.

The outermost layer has checked the key (`middleware`); the bytes become a `PredictRequest` in one step, and the record
becomes bytes in one step. Whatever is not an ordinary request (another route, a query it does not know, a chunked or
large body, one that is not valid) goes on, its body unread or told again, to the layer of large bodies and the route
(`api/predicting/routes.py`). So that route is the one place that words such errors and the document's one source; a
request that both understand gets the same answer from either (tests/api/predicting/test_predict_door.py).
"""

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib.exceptions import PlatformError
from common_lib.tracing import span
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.api.errors import render
from ml_workbench_service.api.middleware import ROUTE
from ml_workbench_service.api.predictions import answer_one
from ml_workbench_service.contracts.bodies import READ_HERE
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest

Enqueue = Literal["best_effort", "guaranteed", "never"]
PREFIX, SUFFIX = "/api/v1/models/", "/predict"
TEMPLATE = f"{PREFIX}{{model_id}}{SUFFIX}"
MODEL_ID = re.compile(NAME_PATTERN)
QUERIES: dict[bytes, Enqueue] = {
    b"": "best_effort",
    b"enqueue=best_effort": "best_effort",
    b"enqueue=guaranteed": "guaranteed",
    b"enqueue=never": "never",
}

NOT_VALID = "ml_workbench.not_valid"
"""In the scope where the body has been read already, and is no request: that takes long enough once."""

request_of = PredictRequest.__pydantic_validator__.validate_json
bytes_of = PredictionRecord.__pydantic_serializer__.to_json


class PredictDoor:
    """Answers ordinary single predictions; the app behind it answers everything else."""

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
        if enqueue is None or num_bytes is None or num_bytes > READ_HERE or NOT_VALID in scope:
            await self._app(scope, receive, send)
            return
        try:
            with span("read request"):
                messages = await read_whole(receive)
                request = request_of(body_of(messages))
        except ValidationError:
            await self._app(scope, told_again(messages, receive), send)
            return
        scope[ROUTE] = TEMPLATE
        try:
            record = await answer_one(service, model_id, request, enqueue)
        except PlatformError as error:
            await render(error)(scope, receive, send)
            return
        await send_json(bytes_of(record), send)


async def read_whole(receive: Receive) -> list[Message]:
    """The body's messages, up to its last or the client's leaving."""
    messages = [message := await receive()]
    while message["type"] == "http.request" and message.get("more_body", False):
        messages.append(message := await receive())
    return messages


async def send_json(body: bytes, send: Send) -> None:
    """An answer of 200."""
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def asked_model(scope: Scope, suffix: str) -> str | None:
    """The model of a request to a path that ends so; None for any other request."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not (path.endswith(suffix) and path.startswith(PREFIX)):
        return None
    model_id = path[len(PREFIX) : -len(suffix)]
    return model_id if MODEL_ID.fullmatch(model_id) and ".." not in model_id else None


def length_of(headers: Iterable[tuple[bytes, bytes]], *, most_bytes: int) -> int | None:
    """How many bytes the body has; None, or more than it may, where the headers do not say it plainly."""
    num_bytes: int | None = None
    for name, value in headers:
        if name == b"content-length":
            num_bytes = int(value) if value.isdigit() and num_bytes is None else most_bytes + 1
        elif name == b"transfer-encoding":
            return None
    return num_bytes


def body_of(messages: list[Message]) -> bytes:
    """The whole body."""
    if len(messages) == 1:
        body: bytes = messages[0].get("body", b"")
        return body
    return b"".join(message.get("body", b"") for message in messages)


def told_again(messages: list[Message], receive: Receive) -> Receive:
    """What was read already, then what comes."""
    left = iter(messages)

    async def again() -> Message:
        for message in left:
            return message
        return await receive()

    return again
