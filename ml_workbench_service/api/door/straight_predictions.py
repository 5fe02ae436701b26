"""Straight predictions: ordinary requests of `/predict`, from bytes to bytes, without a task, a scope or a coroutine.

    head ─► the door's own checks ─► body ─► line before the networks ─► bytes ─► what follows, once for a whole turn

The server (`http_protocol`) asks here when it has read a request's head, and again with its body. Whatever is not
ordinary (another route, a query it does not know, a body that is not valid, a version that is not loaded, an answer
that must be in the queue) is passed on to the app together with what the door has decided, and answered there; so the
app words every error. A request that both understand gets the same bytes from either
(tests/http_server/test_straight_predictions.py).
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import Scope

from common_lib.exceptions import PlatformError
from common_lib.logging import correlated, new_correlation_id
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import Caller
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.api.middleware import (
    CALLER,
    CORRELATION_KEY,
    DECIDED,
    OPERATION,
    ROUTE,
    SECURITY_HEADERS,
    Decided,
    Knock,
    knock_of,
    let_in,
    note_answer,
)
from ml_workbench_service.api.predict_door import (
    NOT_VALID,
    QUERIES,
    SUFFIX,
    TEMPLATE,
    asked_model,
    bytes_of,
    length_of,
    request_of,
)
from ml_workbench_service.api.predictions import follow_up_together
from ml_workbench_service.contracts.bodies import READ_HERE
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runs.records import RunRow
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.request_to_windows import question_of

BY_PROXIES = b"x-forwarded-"
"""Headers that change who asks: the layer that believes them stands before the app."""
_HEADERS = b"".join(
    b"%b: %b\r\n" % header
    for header in (
        (b"content-length", b"%d"), (b"content-type", b"application/json"), *SECURITY_HEADERS, (CORRELATION_KEY, b"%b"),
    )
)  # fmt: skip
"""Of every answer; its length and its correlation id are to be filled in."""


class Reply(Protocol):
    """Where one answer goes."""

    def send(self, headers: bytes, body: bytes) -> None:
        """An answer of 200: its headers as they are written, each with its line's end."""
        ...

    def pass_on(self, told: Mapping[str, Any]) -> None:
        """The app is to answer; `told` joins its scope."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's head asks for.

    Attributes:
        keeps: whether the answer is published, counted and kept: not with `enqueue=never`.
        knock: what the door looks at.
    """

    model_id: str
    keeps: bool
    knock: Knock


@dataclass(frozen=True, slots=True)
class Met:
    """A request that the door has looked at: who asks, or why it is refused."""

    asked: Asked
    identifier: str
    begun_s: float
    caller: Caller | None
    refusal: PlatformError | None = None

    def told(self, refusal: Exception | None = None) -> dict[str, Any]:
        """What the app needs not look at again."""
        decided = Decided(self.identifier, self.begun_s, refusal or self.refusal)
        route = {} if refusal is None else {ROUTE: TEMPLATE}
        return {DECIDED: decided, OPERATION: self.asked.knock.operation, CALLER: self.caller, **route}


class StraightPredictions:
    """Answers ordinary predictions of one process; call it in the event loop.

    Args:
        app: whose running service answers.
        gate: who may do what.
        looks_alone: whether this process alone judges guessed keys (a predict worker does not).
    """

    most_bytes = READ_HERE
    """Of a body."""

    def __init__(self, app: FastAPI, gate: Gate, *, looks_alone: bool = True) -> None:
        self._app, self._gate, self._looks_alone = app, gate, looks_alone
        self._answered: list[tuple[Chosen, PredictionRecord | RunRow, str]] = []

    def asked(self, scope: Scope) -> Asked | None:
        """What a head asks for, of which `scope` tells all but the body; None for what is not ordinary."""
        model_id = asked_model(scope, SUFFIX)
        enqueue = QUERIES.get(scope["query_string"])
        if model_id is None or enqueue is None or enqueue == "guaranteed":
            return None
        headers = scope["headers"]
        num_bytes = length_of(headers, most_bytes=READ_HERE)
        if num_bytes is None or num_bytes > READ_HERE or any(name.startswith(BY_PROXIES) for name, _ in headers):
            return None
        knock = knock_of(scope)
        return None if knock is None else Asked(model_id, enqueue != "never", knock)

    def met(self, asked: Asked) -> Met | None:
        """Whom the door has let in or refused; None where another process has to look at the key."""
        knock, begun_s = asked.knock, time.perf_counter()
        if not self._looks_alone and self._gate.is_guess(knock.key, address=knock.address, operation=knock.operation):
            return None
        identifier = knock.identifier or new_correlation_id()
        try:
            with correlated(identifier):
                return Met(asked, identifier, begun_s, let_in(self._gate, knock))
        except PlatformError as refusal:
            return Met(asked, identifier, begun_s, None, refusal)

    def answer(self, met: Met, body: bytes, reply: Reply) -> dict[str, Any] | None:
        """Has the body answered through `reply`, now or once its turn has come; else what the app, which is to do it,
        is told."""
        service = getattr(self._app.state, "service", None)
        if not isinstance(service, PredictState):
            return met.told()
        asked = met.asked
        try:
            request = request_of(body)
            received_ms = clock_ms(service.workbench.clock)
            chosen = service.model_server.chosen_at_once(asked.model_id, request.wanted_version)
            question = None if chosen is None else question_of(chosen.model, request, received_ms=received_ms)
            if chosen is None or question is None:
                return met.told()

            def told(found: PredictionRecord | RunRow | Exception) -> None:
                self._told(service, chosen, met, found, reply)

            service.model_server.join(chosen, question, met.identifier, keeps=asked.keeps, told=told)
        except ValidationError:
            return met.told() | {NOT_VALID: True}
        except Exception:  # the app finds the same, logs it where it is ours, and says it
            return met.told()
        return None

    def _told(
        self,
        service: PredictState,
        chosen: Chosen,
        met: Met,
        found: PredictionRecord | RunRow | Exception,
        reply: Reply,
    ) -> None:
        if isinstance(found, Exception):
            reply.pass_on(met.told(found))
            return
        try:
            body = found.body if isinstance(found, RunRow) else bytes_of(found)
        except Exception as error:
            reply.pass_on(met.told(error))
            return
        elapsed_s = time.perf_counter() - met.begun_s
        note_answer(service.metrics, "POST", TEMPLATE, 200, elapsed_s, met.identifier)
        reply.send(_HEADERS % (len(body), met.identifier.encode()), body)
        if met.asked.keeps:
            if not self._answered:
                asyncio.get_running_loop().call_soon(self._follow_up, service)
            self._answered.append((chosen, found, met.identifier))

    def _follow_up(self, service: PredictState) -> None:
        """Of all that a turn has answered, once their bytes are out."""
        answered, self._answered = self._answered, []
        follow_up_together(service, answered)
