"""ASGI door of `/v2`: whatever failed, and whoever said so, the body is the protocol's `{"error": …}`.

Errors keep their one author; this only rewrites what leaves. It stands outside the door of all routes, which refuses a
wrong key or media type before any route is found.
"""

from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/v2"


class ProtocolErrors:
    """Failures below `/v2` in the protocol's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PATH}/"):
            await self._app(scope, receive, send)
            return
        begun: Message | None = None
        parts: list[bytes] = []

        async def reworded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and message["status"] >= 400:
                begun = message
            elif begun is None:
                await send(message)
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = _reworded(b"".join(parts))
                    MutableHeaders(raw=begun["headers"])["content-length"] = str(len(body))
                    await send(begun)
                    await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, reworded)


def _reworded(body: bytes) -> bytes:
    found: Any = orjson.loads(body)  # every failure is JSON, by the door that this stands before
    return orjson.dumps({"error": found["message"]})
