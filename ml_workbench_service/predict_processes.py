"""Predict processes: one process answers everything, or several predict and it does the rest (docs/decisions/0046).

PREDICT_WORKERS=0      clients ─► this process
PREDICT_WORKERS=N      clients ─► listening socket ─► N predict workers ─► Unix socket ─► this process, for the rest
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from fastapi import FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from common_lib.exceptions import UnavailableError
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.runtime.child_environment import predict_worker_environment
from ml_workbench_service.runtime.predict_control import PredictControl, apply_leftovers
from ml_workbench_service.runtime.predict_workers import MODULE, PredictWorkers
from ml_workbench_service.runtime.public_door import PublicDoor, open_public_door
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.apply_handover import HandoverApplier
from ml_workbench_service.workflows.publish_serving_state import ServingStatePublisher


@contextmanager
def behind_predict_workers(app: FastAPI, settings: Settings) -> Iterator[tuple[ASGIApp, Path]]:
    """Binds the port; what the control process serves meanwhile, and the Unix socket on which it does."""
    # With it comes httpx, a twentieth of a start.
    from ml_workbench_service.api.predict_workers.control_door import ControlDoor

    with open_public_door(settings.HOST, settings.PORT, settings.STATE_DIR) as door:
        app.state.public_door = door
        yield ControlDoor(app, app.state), door.control


async def open_predict_workers(
    app: FastAPI, settings: Settings, gate: Gate, stack: AsyncExitStack, *, module: str = MODULE
) -> None:
    """What predict workers left behind is applied; those that there shall be start.

    Raises:
        UnavailableError: there shall be some, and there is no Redis, or the app was not started by `serve`.
    """
    service: AppState = app.state.service
    redis_url = service.workbench.addresses.redis
    intervals = service.model_server.intervals
    if redis_url is not None:
        await asyncio.to_thread(apply_leftovers, redis_url, service.ledger, intervals)
    if not settings.PREDICT_WORKERS:
        return
    door: PublicDoor | None = getattr(app.state, "public_door", None)
    if door is None or redis_url is None:
        raise UnavailableError(
            "PREDICT_WORKERS needs a Redis (set REDIS_URL, or install redis-server), and `make serve` or "
            "`python -m ml_workbench_service.main` to start the service; else set PREDICT_WORKERS=0"
        )
    app.state.gate = gate
    environment = predict_worker_environment(settings, service.workbench.addresses)
    workers = PredictWorkers(settings.PREDICT_WORKERS, door, environment, service.workbench.state_dir, module=module)
    gate.ring.share(workers.counts)
    control = PredictControl(redis_url, service.workbench.history, service.ledger, intervals, workers)
    figures = HandoverFigures(control.applier, control.publisher)
    workers.on_death = service.metrics.watch_workers(workers, figures).buried
    await asyncio.to_thread(control.start)
    stack.push_async_callback(asyncio.to_thread, control.stop)
    await workers.start()
    stack.push_async_callback(workers.stop)
    stack.callback(asyncio.create_task(workers.stop_when(service.stopping)).cancel)
    service.predict_workers = workers


class HandoverFigures(Collector):
    """How far the control process is with what workers handed over, and with what it has them serve."""

    def __init__(self, applier: HandoverApplier, publisher: ServingStatePublisher) -> None:
        self._applier, self._publisher = applier, publisher

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        applied, lost = self._applier.num_applied, self._applier.num_lost
        yield CounterMetricFamily(
            "ml_workbench_handover_applied", "Answers and intervals of workers that were applied.", value=applied
        )
        yield CounterMetricFamily("ml_workbench_handover_lost", "What a worker numbered and never came.", value=lost)
        yield GaugeMetricFamily(
            "ml_workbench_serving_state_published",
            "Number of the news in which everything is that workers are to serve.",
            value=self._publisher.news_number,
        )
