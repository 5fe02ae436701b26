"""Audit trail: each request that may change something has two lines in the audit log, around the change.

`asked` is on disk before the route runs, with what stood there before; where it cannot be written, nothing is done
(503). `done` is on disk before the answer leaves, with its status and content. So a change that was answered is in the
log, and one that a kill cut short has its `asked`.
"""

import asyncio
from functools import partial
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_workbench_service.access.audit_log import AuditLog, Who
from ml_workbench_service.access.key_ring import Caller
from ml_workbench_service.access.operations import Operation
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.door.state_before import state_before
from ml_workbench_service.api.middleware import CALLER, OPERATION

MOST_BYTES = 64 * 1024
"""Of an answer that is read for the log."""


class AuditTrail:
    """Writes the two lines around the app."""

    def __init__(self, app: ASGIApp, *, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request that the door let in.

        Raises:
            UnavailableError: the log cannot be written; nothing was changed.
        """
        operation: Operation = scope[OPERATION]
        service = getattr(scope["app"].state, "service", None)
        if not isinstance(service, AppState):  # it starts or stops: the route says so, and changes nothing
            await self._app(scope, receive, send)
            return
        who = _who(scope)
        before = await asyncio.to_thread(state_before, service, operation, scope["path"])
        asked = await asyncio.to_thread(
            partial(self._audit.append, "asked", operation.name, who, on=_asked_for(scope), before=before)
        )
        started: Message | None = None

        async def told(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
                return
            if started is not None:
                status, after = started["status"], _content(started, message)
                finish = partial(self._audit.finish, operation.name, who, asked, status=status, after=after)
                await asyncio.to_thread(finish)
                await send(started)
                started = None
            await send(message)

        await self._app(scope, receive, told)


def _who(scope: Scope) -> Who:
    caller: Caller = scope[CALLER]
    client = scope.get("client")
    return Who(caller.id, caller.client, client[0] if client else "")


def _asked_for(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"{scope['path']}?{query}"[:500] if query else str(scope["path"])[:500]


def _content(started: Message, message: Message) -> Any:
    """The answer's JSON, where it is short and came in one piece."""
    body: bytes = message.get("body", b"")
    is_json = Headers(raw=started["headers"]).get("content-type", "").startswith("application/json")
    if not is_json or not body or message.get("more_body", False) or len(body) > MOST_BYTES:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
