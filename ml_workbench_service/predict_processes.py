"""Predict processes: one process answers everything, or several predict and it does the rest (docs/decisions/0046).

PREDICT_WORKERS=0      clients ─► this process
PREDICT_WORKERS=N      clients ─► listening socket ─► N predict workers ─► Unix socket ─► this process, for the rest
ROLE=control           clients ─► replicas anywhere (`predict_replica`) ─► Redis ─► this process, which answers the rest
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from fastapi import FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from common_lib.exceptions import PlatformError, UnavailableError
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.runtime.child_environment import predict_worker_environment
from ml_workbench_service.runtime.predict_control import PredictControl, apply_leftovers
from ml_workbench_service.runtime.predict_workers import MODULE, PredictWorkers
from ml_workbench_service.runtime.public_door import PublicDoor, open_public_door
from ml_workbench_service.settings import Settings


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
    """What predict workers and replicas left behind is applied; workers that there shall be start.

    Raises:
        UnavailableError: there shall be some, and there is no Redis, or the app was not started by `serve`.
    """
    service: AppState = app.state.service
    redis_url = service.workbench.addresses.redis
    intervals = service.model_server.intervals
    if redis_url is not None:
        await asyncio.to_thread(apply_leftovers, redis_url, service.ledger, intervals)
    if not settings.PREDICT_WORKERS and settings.ROLE != "control":
        return
    door: PublicDoor | None = getattr(app.state, "public_door", None)
    if redis_url is None or (settings.PREDICT_WORKERS and door is None):
        raise UnavailableError(
            "PREDICT_WORKERS needs a Redis (set REDIS_URL, or install redis-server), and `make serve` or "
            "`python -m ml_workbench_service.main` to start the service; else set PREDICT_WORKERS=0"
        )
    workers = None
    if door is not None:
        app.state.gate = gate
        environment = predict_worker_environment(settings, service.workbench.addresses)
        folder = service.workbench.state_dir
        workers = PredictWorkers(settings.PREDICT_WORKERS, door, environment, folder, module=module)
        gate.ring.share(workers.counts)
    control = _control(service, redis_url, workers)
    if settings.ROLE == "control":
        service.replicas = control.replicas
    figures = HandoverFigures(control)
    if workers is None:
        service.metrics.registry.register(figures)
    else:
        workers.on_death = service.metrics.watch_workers(workers, figures).buried
    await asyncio.to_thread(control.start)
    stack.push_async_callback(asyncio.to_thread, control.stop)
    if workers is not None:
        await workers.start()
        stack.push_async_callback(workers.stop)
        stack.callback(asyncio.create_task(workers.stop_when(service.stopping)).cancel)
        service.predict_workers = workers


def _control(service: AppState, redis_url: str, workers: PredictWorkers | None) -> PredictControl:
    workbench = service.workbench
    signatures = workbench.registry.bundles.signatures
    assert signatures is not None, "the service signs what it serves"
    return PredictControl(
        redis_url, workbench.history, service.ledger, service.model_server.intervals,
        keys=signatures.trusted.payload, workers=workers,
    )  # fmt: skip


class HandoverFigures(Collector):
    """How far the control process is with what was handed over, and with what it has others serve; and the replicas."""

    def __init__(self, control: PredictControl) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        yield from self._replicas()
        applied, lost = self._control.applier.num_applied, self._control.applier.num_lost
        yield CounterMetricFamily(
            "ml_workbench_handover_applied", "Answers and intervals of workers that were applied.", value=applied
        )
        yield CounterMetricFamily("ml_workbench_handover_lost", "What a worker numbered and never came.", value=lost)
        yield GaugeMetricFamily(
            "ml_workbench_serving_state_published",
            "Number of the news in which everything is that workers are to serve.",
            value=self._control.publisher.news_number,
        )

    def _replicas(self) -> Iterator[Metric]:
        try:
            reports = self._control.replicas()
        except PlatformError:
            return
        by_state = GaugeMetricFamily("ml_workbench_replicas", "Predict replicas that report.", labels=["state"])
        num_ready = sum(each.is_ready for each in reports)
        by_state.add_metric(["ready"], num_ready)
        by_state.add_metric(["not ready"], len(reports) - num_ready)
        yield by_state
