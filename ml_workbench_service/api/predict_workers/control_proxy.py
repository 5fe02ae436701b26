"""What is not a predict worker's: passed on to the control process, byte for byte, as it comes, and back the same way.

Pure ASGI over the control process's Unix socket: bodies of any size and open streams take no memory. Keys, correlation
ids, errors and metrics are the control process's own, which is told by `PEER` from where a request really came
(`control_door.py`).
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib.exceptions import UnavailableError
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.api.errors import render
from ml_workbench_service.api.middleware import AtTheDoor
from ml_workbench_service.api.predict_workers.own_operations import is_predict_workers, needs_table_process
from ml_workbench_service.integrations.replicas.features import told

PEER = b"x-ml-workbench-peer"
"""Header of a request that was passed on: the addresses of the two ends of the connection, and the scheme."""
CONNECT_TIMEOUT_S = 2.0
GUESS = "/guess"
"""Asked by a worker itself: whether the right key came from an address."""
GUESS_TIMEOUT_S = 5.0
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"trailers",
    b"transfer-encoding", b"upgrade", b"expect",
}  # fmt: skip
WRITTEN_BY_SERVER = {b"date", b"server"}


class Divided:
    """Predictions here, everything else by way of the proxy."""

    def __init__(self, predicting: ASGIApp, proxy: ASGIApp) -> None:
        self._predicting, self._proxy = predicting, proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        is_ours = scope["type"] != "http" or (
            is_predict_workers(scope["method"], scope["path"]) and not needs_table_process(scope)
        )
        await (self._predicting if is_ours else self._proxy)(scope, receive, send)


class ClientGoneError(Exception):
    """Whoever asked has closed the connection."""


class ControlProxy:
    """An ASGI app that asks the control process.

    Args:
        control: its socket.
        gate: the worker's, for while the control process is away.
    """

    def __init__(self, control: Path, gate: Gate) -> None:
        # A connection a request: one that was kept might be closed at the very moment in which it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._transport = httpx.AsyncHTTPTransport(uds=str(control), limits=limits)
        self._timeout = timeout.as_dict()
        self._away = AtTheDoor(_away, gate=gate)

    async def ask(self, key: bytes, address: str) -> bool:
        """Whether this guessed key of this address is right, as the control process counts guesses; False where it is
        away, and the worker looks itself.

        Raises:
            AuthenticationError: it is wrong.
            RateLimitError: too many wrong ones came from there.
        """
        asked = orjson.dumps({"key": key.decode("latin-1"), "address": address})
        request = httpx.Request(
            "POST", f"http://control{GUESS}", content=asked, headers={"content-type": "application/json"},
            extensions={"timeout": httpx.Timeout(GUESS_TIMEOUT_S).as_dict()},
        )  # fmt: skip
        try:
            answer = await self._transport.handle_async_request(request)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        except httpx.TransportError:
            return False
        if answer.status_code in (401, 429):
            raise told(answer)
        return answer.status_code == 200

    async def close(self) -> None:
        """Closes what is open."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        told = asyncio.Event()
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if not has_body:
            told.set()
        request = self._request(scope, _body(receive, told) if has_body else None)
        relaying = asyncio.create_task(self._relay(request, scope, receive, send))
        watching = asyncio.create_task(_gone(receive, told))
        try:
            await asyncio.wait((relaying, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (relaying, watching):
                each.cancel()
            done = await asyncio.gather(relaying, watching, return_exceptions=True)
        if isinstance(done[0], Exception) and not isinstance(done[0], ClientGoneError):
            raise done[0]

    async def _relay(self, request: httpx.Request, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        try:
            answer = await self._transport.handle_async_request(request)
            try:
                headers = [
                    (name, value) for name, value in answer.headers.raw
                    if name.lower() not in HOP_BY_HOP | WRITTEN_BY_SERVER
                ]  # fmt: skip
                has_begun = True
                await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
                assert isinstance(answer.stream, httpx.AsyncByteStream)
                async for piece in answer.stream:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await answer.aclose()
        except httpx.TransportError:
            if has_begun:
                raise
            await self._away(scope, receive, send)

    def _request(self, scope: Scope, body: AsyncIterator[bytes] | None) -> httpx.Request:
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP and name != PEER]
        peer = [scope.get("client"), scope.get("server"), scope["scheme"]]
        headers.append((PEER, json.dumps(peer).encode("ascii")))
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        return httpx.Request(
            scope["method"], "http://control/", headers=headers, content=body,
            extensions={"target": target, "timeout": self._timeout},
        )  # fmt: skip


async def _body(receive: Receive, told: asyncio.Event) -> AsyncIterator[bytes]:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if body := message.get("body", b""):
            yield body
        if not message.get("more_body", False):
            told.set()
            return


async def _gone(receive: Receive, told: asyncio.Event) -> None:
    """Returns when whoever asked is gone, which can be heard once the body was told."""
    await told.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _away(scope: Scope, receive: Receive, send: Send) -> None:
    error = UnavailableError(
        "the control process is away, which alone does this; predictions go on, try again in a moment", retry_after_s=1
    )
    await render(error)(scope, receive, send)
