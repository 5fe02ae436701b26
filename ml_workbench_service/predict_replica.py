"""Predict replica, `ROLE=predict`: a process anywhere that answers predictions and writes nothing but log lines.

    clients ─► replica ─┬─► Redis    what is live and how intervals lean, in; records and the ledger's rows, out
                        └─► registry   read, each version verified by its digests and signature

Nothing is inherited from a control plane, which may be away, as Redis may: answers go on, and readiness says what
waits. Redis and the registry are all that both share (docs/replicas.md, docs/decisions/0071).
"""

import asyncio
import base64
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from common_lib.exceptions import PlatformError
from common_lib.log_files import LogRotation
from common_lib.logging import configure_logging
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.signing_keys import GivenKeys
from ml_workbench_service.api import errors, health
from ml_workbench_service.api.door.straight_predictions import StraightPredictions
from ml_workbench_service.api.middleware import AtTheDoor, checked
from ml_workbench_service.api.predict_workers import replica_routes
from ml_workbench_service.api.predict_workers.layers import put_layers
from ml_workbench_service.api.predict_workers.replica_routes import HereOrAtControl, ReplicaFigures, ReplicaState
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.api.queries import KnownQueries
from ml_workbench_service.contracts.clock import WALL, Clock
from ml_workbench_service.contracts.replicas import ReplicaReport
from ml_workbench_service.entrance import gate_of, warnings_of
from ml_workbench_service.integrations.object_registry.kept_bucket import KeptBucket
from ml_workbench_service.integrations.replicas.presence import Presence
from ml_workbench_service.predict_parts import Bounds, Parts, open_parts
from ml_workbench_service.resources import mirror_of, open_for_predict_replica
from ml_workbench_service.sending_traces import traced_until
from ml_workbench_service.settings import Settings
from ml_workbench_service.stopping import STOP_SIGNALS
from ml_workbench_service.workflows.announce_replica import ReplicaAnnouncer

KNOWN_POLL_S = 0.02
CHORES_EVERY_S = 5.0
COLLECT_EVERY = 4_000
MOST_ITEMS = 50_000
"""For the ledger, in memory while Redis is away; an answer is one, and its interval another."""
MOST_ENTRIES = 16_384
"""For the ledger, in Redis while the control plane is away, of all replicas; an entry is a run's answers: one where
questions come singly, some ten under load."""

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, clock: Clock = WALL) -> FastAPI:
    """The replica for these settings; nothing is opened before it starts. Only tests give it another clock."""
    gate = gate_of(settings)

    def door(app: ASGIApp) -> ASGIApp:
        return AtTheDoor(HereOrAtControl(app, settings.CONTROL_URL), gate=gate)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.replica = await _open(settings, clock, gate, stack)
            answering = asyncio.create_task(_answer_once_known(app, app.state.replica), name="until known")
            gc.freeze()
            gc.set_threshold(COLLECT_EVERY, 10, 10)
            yield
            answering.cancel()
            app.state.service = app.state.replica = None

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    app.include_router(health.alive, dependencies=[KnownQueries])
    app.include_router(replica_routes.router, dependencies=[KnownQueries])
    app.include_router(predict_routes.router, prefix="/api/v1", dependencies=[Depends(checked), KnownQueries])
    put_layers(app, door, StraightPredictions(app, gate), traced=settings.TRACES)
    return app


async def _answer_once_known(app: FastAPI, replica: ReplicaState) -> None:
    """Until it is known what is live, nothing is answered: it might be another version than the live one."""
    while not replica.follower.is_known:
        await asyncio.sleep(KNOWN_POLL_S)
    app.state.service = replica.predict


async def _open(settings: Settings, clock: Clock, gate: Gate, stack: AsyncExitStack) -> ReplicaState:
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    await traced_until(stack, settings, "predict replica")
    await asyncio.to_thread(gate.ring.load)
    for warning in warnings_of(settings, is_guarded=gate.is_guarded):
        log.warning(warning)
    named = (settings.SIGNING_KEYS or "").split(",")
    keys = GivenKeys(base64.b64decode(each) for each in named if each.strip())
    workbench = await asyncio.to_thread(open_for_predict_replica, settings, keys, clock=clock)
    bounds = Bounds(MOST_ITEMS, MOST_ENTRIES)
    policy = settings.PREDICTION_QUEUE_POLICY
    parts = await open_parts(workbench, policy, stack, trust=keys.take, stops_at=STOP_SIGNALS, bounds=bounds)
    assert settings.REDIS_URL is not None
    name = f"{socket.gethostname()}-{os.getpid()}"
    announcer = ReplicaAnnouncer(Presence(settings.REDIS_URL), lambda behind_s: _report(name, parts, behind_s))
    announcer.start()
    stack.push_async_callback(asyncio.to_thread, announcer.stop, name)
    parts.follower.on_news = announcer.news
    bucket = None if settings.registry_address is None else KeptBucket(mirror_of(workbench.history))
    replica = ReplicaState(parts.state, parts.follower, parts.outbox, announcer, keys, bucket)
    parts.state.metrics.registry.register(ReplicaFigures(replica))
    chores = asyncio.create_task(_chores(settings, replica), name="chores")
    stack.callback(chores.cancel)
    return replica


def _report(name: str, parts: Parts, behind_s: float) -> ReplicaReport:
    follower, publisher = parts.follower, parts.state.publisher
    return ReplicaReport(
        name=name,
        epoch=follower.epoch,
        news_number=follower.news_number,
        is_ready=follower.is_known and not follower.cold,
        cold=follower.cold,
        num_loaded=parts.state.model_server.num_loaded,
        outbox=0 if publisher is None else publisher.outbox,
        num_unhanded=parts.outbox.num_waiting,
        num_dropped=parts.outbox.num_dropped,
        delay_s=follower.delay_s,
        behind_s=behind_s,
    )


async def _chores(settings: Settings, replica: ReplicaState) -> None:
    """Log files are renamed once they are full; what was purged leaves memory."""
    most_bytes = round(settings.LOG_MAX_MB * 1e6)
    rotation = LogRotation(settings.LOG_DIR, max_bytes=most_bytes, num_kept=settings.LOG_FILES_KEPT)
    while True:
        await asyncio.sleep(CHORES_EVERY_S)
        with suppress(OSError, PlatformError):  # the registry, or the log's disk, is away: the next turn may go well
            await asyncio.to_thread(rotation.rotate_if_due)
            await asyncio.to_thread(replica.predict.model_server.forget_purged)
