"""The control process's own socket: what predict workers pass on is answered as if it had come here directly, and what
they ask for themselves (features for questions that bring none) is answered without a key.

The socket lies in a folder that no other user may enter. A worker puts `PEER` on whatever comes from outside and takes
one off that a client has sent, so that only the workers themselves can ask without it. So the client's own address is
what the door sees here: loopback, proxies and slowed guesses are those of one process.
"""

import asyncio
import json
from contextlib import nullcontext
from typing import Any

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from common_lib.exceptions import PlatformError, RouteNotFoundError, UnavailableError
from common_lib.tracing import is_tracing, span
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.door.traced_requests import carrier_of
from ml_workbench_service.api.errors import render, unexpected
from ml_workbench_service.api.predict_workers.control_proxy import GUESS, PEER
from ml_workbench_service.integrations.replicas.features import FEATURES, NOW, table_to_wire


class ControlDoor:
    """The app, as it stands behind the socket."""

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = next((value for name, value in scope["headers"] if name == PEER), None)
        if peer is None:
            await self._answer_worker(scope, receive, send)
            return
        client, server, scheme = json.loads(peer)
        headers = [(name, value) for name, value in scope["headers"] if name != PEER]
        ends = {"client": client and tuple(client), "server": server and tuple(server), "scheme": scheme}
        await self._app({**scope, **ends, "headers": headers}, receive, send)

    async def _answer_worker(self, scope: Scope, receive: Receive, send: Send) -> None:
        carrier = carrier_of(scope) if is_tracing() else {}
        traced = span("answer predict worker", "server", carrier=carrier) if carrier else nullcontext()
        try:
            with traced:
                body = orjson.dumps(await self._asked(scope["path"], await _body(receive)))
        except PlatformError as error:
            await render(error)(scope, receive, send)
            return
        except Exception as error:
            await unexpected(error)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _asked(self, path: str, body: bytes) -> Any:
        service = getattr(self._state, "service", None)
        if not isinstance(service, AppState):
            raise UnavailableError("the service is starting or stopping; try again in a moment", retry_after_s=1)
        if path == GUESS:
            guessed = orjson.loads(body)
            gate: Gate = self._state.gate
            gate.recognise(guessed["key"].encode("latin-1"), guessed["address"])
            return True
        store = service.workbench.feature_store
        if path == NOW:
            return store.now_ms()
        if path == FEATURES:
            asked = orjson.loads(body)
            symbols, timeframe = asked.pop("symbols"), asked.pop("timeframe")
            tables = await asyncio.to_thread(store.fetch, symbols, timeframe, **asked)
            return [table_to_wire(each) for each in tables]
        raise RouteNotFoundError("predict workers know no such question")


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
