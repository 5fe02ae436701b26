"""Predict worker: one of several processes that answer predictions on the service's port.

    python -m ml_workbench_service.predict_worker --number 0 --of 2 --listening 5 --board 6 --counts 7 \
        --control …/control.sock

It writes nothing but log lines: what it answers is handed over through Redis, what is live and how intervals lean it
learns there, everything that is no prediction it passes on to the control process (docs/decisions/0046). It checks keys
by the same gate and file, which it only reads. Its standard
input is its lifeline: when that ends, the control process has ended, and so does it, once its answers are out.
"""

import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from common_lib.logging import configure_logging
from common_lib.storage import keep_as_child
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.shared_counts import SharedCounts
from ml_workbench_service.api import errors, health
from ml_workbench_service.api.door.straight_predictions import StraightPredictions
from ml_workbench_service.api.middleware import AtTheDoor, checked
from ml_workbench_service.api.predict_workers.control_proxy import ControlProxy, Divided
from ml_workbench_service.api.predict_workers.layers import put_layers
from ml_workbench_service.api.predict_workers.metrics import packed
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.api.queries import KnownQueries
from ml_workbench_service.contracts.clock import WALL, Clock
from ml_workbench_service.contracts.replicas import WorkerReport
from ml_workbench_service.entrance import gate_of
from ml_workbench_service.http_server import public
from ml_workbench_service.predict_parts import Parts, open_parts
from ml_workbench_service.resources import open_for_predict_worker
from ml_workbench_service.runtime.predict_workers import LENGTH, LIFELINE
from ml_workbench_service.runtime.public_door import Board, EvenAcceptor
from ml_workbench_service.sending_traces import traced_until
from ml_workbench_service.settings import Settings

ORPHAN_DRAIN_S = 2.0
REPORT_EVERY_S = 1.0
FORGET_EVERY_S = 10.0
COLLECT_EVERY = 4_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handed:
    """What the control process has handed down.

    Attributes:
        number, of: which one it is of how many.
        listening, board, counts: descriptors.
        control: the control process's socket.
    """

    number: int
    of: int
    listening: int
    board: int
    counts: int
    control: Path


def create_app(settings: Settings, handed: Handed, gate: Gate, proxy: ControlProxy, clock: Clock = WALL) -> FastAPI:
    """The predict routes, behind the layers that the service has."""

    def door(app: ASGIApp) -> ASGIApp:
        return AtTheDoor(app, gate=gate, ask=proxy.ask)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            gate.ring.share(SharedCounts(handed.counts, num=handed.of + 1, mine=handed.number))
            app.state.parts = await _open(settings, handed, clock, stack)
            app.state.service = app.state.parts.state
            gc.freeze()
            gc.set_threshold(COLLECT_EVERY, 10, 10)
            yield
            app.state.service = None

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    app.include_router(health.alive, dependencies=[KnownQueries])
    app.include_router(predict_routes.router, prefix="/api/v1", dependencies=[Depends(checked), KnownQueries])
    put_layers(app, door, StraightPredictions(app, gate, looks_alone=False), traced=settings.TRACES)
    return app


async def _open(settings: Settings, handed: Handed, clock: Clock, stack: AsyncExitStack) -> Parts:
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    await traced_until(stack, settings, "predict worker")
    assert settings.REDIS_URL is not None, "the control process has resolved it"
    keep_as_child(settings.STATE_DIR.resolve(), settings.registry_folder)
    workbench = open_for_predict_worker(settings, control=handed.control, clock=clock)
    adaptive = settings.STATE_DIR.resolve() / "adaptive"
    return await open_parts(workbench, settings.PREDICTION_QUEUE_POLICY, stack, adaptive=adaptive)


class WorkerServer(uvicorn.Server):
    """uvicorn, which is given connections by an `EvenAcceptor` and ends with its lifeline."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, handed: Handed) -> None:
        super().__init__(config)
        self._app, self._handed = app, handed
        self._acceptor: EvenAcceptor | None = None
        self._lifeline: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens everything, and accepts."""
        lifeline = socket.socket(fileno=os.dup(LIFELINE))
        reader, writer = await asyncio.open_connection(sock=lifeline)
        self._lifeline = asyncio.create_task(self._follow(reader, writer), name="lifeline")
        await super().startup(sockets=[])
        self._chores.add(asyncio.create_task(self._report_again(writer), name="reports"))
        self._chores.add(asyncio.create_task(self._forget(), name="ends of lives"))
        self._acceptor = EvenAcceptor(
            socket.socket(fileno=self._handed.listening),
            Board(self._handed.board, self._handed.of),
            self._handed.number,
            num_connections=lambda: len(self.server_state.connections),
            welcome=self._welcome,
            tls=self.config.ssl,
        )
        self._acceptor.start()
        if self._parts is not None:
            loop = asyncio.get_running_loop()
            self._parts.follower.on_news = lambda: _told(loop, self._report, writer)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more, lets the answers out, closes everything."""
        if self._acceptor is not None:
            self._acceptor.stop()
            await self._acceptor.taken()
        for chore in self._chores:
            chore.cancel()
        await super().shutdown()

    def _welcome(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    @property
    def _parts(self) -> Parts | None:
        parts: Parts | None = getattr(self._app.state, "parts", None)
        return parts

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reports when it is asked; ends the worker with the control process."""
        try:
            while await reader.read(64):
                self._report(writer)
        except ConnectionError:
            pass
        log.warning("the control process has ended, and so does predict worker %d", self._handed.number)
        self.should_exit = True
        if self._acceptor is not None:
            self._acceptor.stop()
        asyncio.get_running_loop().call_later(ORPHAN_DRAIN_S, os._exit, 1)

    async def _report_again(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._report(writer)
            await asyncio.sleep(REPORT_EVERY_S)

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            if self._parts is not None:
                await asyncio.to_thread(self._parts.state.model_server.forget_purged)

    def _report(self, writer: asyncio.StreamWriter) -> None:
        parts = self._parts
        if parts is None or not self.started:
            return
        report = report_of(parts, self._handed.number, len(self.server_state.connections))
        payload = report.model_dump_json().encode()
        writer.write(LENGTH.pack(len(payload)) + payload)


def _told(
    loop: asyncio.AbstractEventLoop, report: Callable[[asyncio.StreamWriter], None], writer: asyncio.StreamWriter
) -> None:
    """From another thread: a report is due."""
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(report, writer)


def report_of(parts: Parts, number: int, num_connections: int) -> WorkerReport:
    """What the worker says of itself."""
    state, server = parts.state, parts.state.model_server
    state.metrics.loaded_models.set(server.num_loaded)
    reasons, warnings = server.precision_notes
    publisher = state.publisher
    assert publisher is not None
    return WorkerReport(
        number=number,
        pid=os.getpid(),
        follows=parts.follower.follows,
        num_connections=num_connections,
        num_waiting=server.line.num_waiting,
        num_loaded=server.num_loaded,
        num_unhanded=parts.outbox.num_waiting,
        num_dropped=parts.outbox.num_dropped,
        outbox=publisher.outbox,
        outbox_dropped_by_symbol=dict(publisher.outbox_dropped_by_symbol),
        news_number=parts.follower.news_number,
        delay_s=parts.follower.delay_s,
        precision_reasons=reasons,
        precision_warnings=warnings,
        metrics=packed(state.metrics.registry),
    )


def _handed() -> Handed:
    parser = argparse.ArgumentParser()
    for name in ("number", "of", "listening", "board", "counts"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--control", type=Path, required=True)
    return Handed(**vars(parser.parse_args()))


def main(*, clock: Clock = WALL) -> None:
    """Serves until SIGTERM, or until the control process ends."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the control process, which ends us
    settings, handed = Settings(), _handed()
    gate = gate_of(settings)
    proxy = ControlProxy(handed.control, gate)
    app = create_app(settings, handed, gate, proxy, clock)
    config = uvicorn.Config(Divided(app, proxy), lifespan="on", **public(app, settings))
    WorkerServer(config, app, handed).run()


if __name__ == "__main__":
    main()
