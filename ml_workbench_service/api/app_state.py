"""Application state: what the routes work with, opened by the app's lifespan; `service` hands it to a route."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Depends, Header, Request

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.access.audit_log import AuditLog
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.contracts.queue import FullMode, QueuePolicy
from ml_workbench_service.contracts.replicas import ReplicaReport
from ml_workbench_service.contracts.runners import (
    AgentRunner,
    Cluster,
    JobRunner,
    OnDemandProcess,
    PredictProcesses,
    TableReader,
    WebPage,
)
from ml_workbench_service.integrations.kept_folder import KeptFolder
from ml_workbench_service.integrations.object_registry.kept_bucket import KeptBucket
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.monitoring_log import MonitoringLog
from ml_workbench_service.serving.publisher import PredictionPublisher

NUM_QUEUE_THREADS = 2
QUEUE_PATIENCE_S = 10.0
"""For a whole answer, however slowly it drips; each piece of it has the connection's own time-out."""
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class QueueThreads:
    """Threads of their own for whatever waits for the queue, so that a server that hangs holds up nothing else.

    The loop's own threads read files, load models and fetch features; there are only a few of them.
    """

    def __init__(self, num: int = NUM_QUEUE_THREADS, *, patience_s: float = QUEUE_PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="queue-asker")

    async def run(self, work: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """Like `asyncio.to_thread`, there.

        Raises:
            UnavailableError: it took too long; the thread goes on until its connection's time-out, or longer.
        """
        loop, context = asyncio.get_running_loop(), copy_context()
        begun = loop.run_in_executor(self._threads, lambda: context.run(work, *args, **kwargs))
        try:
            async with asyncio.timeout(self._patience_s) as limit:
                return await begun
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise UnavailableError(
                f"the prediction queue did not answer within {self._patience_s:g} s; check REDIS_URL and that the "
                "Redis server runs",
                retry_after_s=2,
            ) from error

    def close(self) -> None:
        """Ends them; who still waits in line gets no answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class LastGood:
    """When each thing was last found well."""

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._moments: dict[str, datetime] = {}

    def noted(self, things: Mapping[str, OutsideThing]) -> dict[str, OutsideThing]:
        """The things with their moments; those that know their own keep it."""
        now = self._now()
        for name, thing in things.items():
            if thing.state == "ok":
                self._moments[name] = now
        return {name: self._dated(name, thing) for name, thing in things.items()}

    def _dated(self, name: str, thing: OutsideThing) -> OutsideThing:
        if thing.last_ok_at is not None or thing.state == "disabled":
            return thing
        return thing.model_copy(update={"last_ok_at": self._moments.get(name)})


@dataclass(kw_only=True)
class PredictState:
    """What answers predictions: all that a predict worker has."""

    workbench: Workbench
    model_server: ModelServer
    publisher: PredictionPublisher | None
    metrics: Metrics
    stopping: asyncio.Event
    monitoring_log: MonitoringLog = field(default_factory=MonitoringLog)


@dataclass(kw_only=True)
class AppState(PredictState):
    """The running service's parts."""

    store: JobStore
    supervisor: JobRunner
    ledger: PredictionLedger
    tables: TableReader
    max_workers: int
    max_memory_gb: float
    max_job_hours: float | None = None  # None: a job may last as long as it takes
    needs: Mapping[JobKind, str] = field(default_factory=dict)  # extras of this installation; of a job elsewhere: none
    audit: AuditLog
    state_folder: KeptFolder
    registry_folder: KeptFolder | KeptBucket
    queue_policy: QueuePolicy = "drop_oldest"
    agent_supervisor: AgentRunner | None = None  # None: there is no Redis
    tracker: OnDemandProcess | None = None
    page: WebPage | None = None  # None: PAGE=false
    cluster: Cluster | None = None  # None: jobs run on this machine
    predict_workers: PredictProcesses | None = None  # None: this process answers
    replicas: Callable[[], Sequence[ReplicaReport]] | None = None  # None: not ROLE=control
    queue_threads: QueueThreads = field(default_factory=QueueThreads)
    last_good: LastGood = field(default_factory=LastGood)
    planning: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def full_mode(self) -> FullMode:
        """What records that must not be lost do at capacity: they evict where that is the policy, else they wait."""
        return closing_mode(self.queue_policy)


def closing_mode(policy: QueuePolicy) -> FullMode:
    """How closing records enter the queue under a policy; `reject` would leave agents holding positions for ever."""
    return "drop_oldest" if policy == "drop_oldest" else "wait"


async def service(request: Request) -> AppState:
    """The running service; 503 while it starts or stops. (A plain function would cost every request a thread.)"""
    running = getattr(request.app.state, "service", None)
    if not isinstance(running, AppState):
        raise _not_now()
    return running


async def answering(request: Request) -> PredictState:
    """What answers predictions, here or in a predict worker; 503 while it starts or stops."""
    running = getattr(request.app.state, "service", None)
    if not isinstance(running, PredictState):
        raise _not_now()
    return running


def _not_now() -> UnavailableError:
    return UnavailableError("the service is starting or stopping; try again in a moment", retry_after_s=1)


PredictStateDep = Annotated[PredictState, Depends(answering)]
AppStateDep = Annotated[AppState, Depends(service)]


@dataclass(frozen=True)
class Idempotency:
    """An Idempotency-Key with the digest of the body it came with; ids of new things derive from key and route."""

    key: str
    body_digest: str
    route: str

    def identifier(self, generation: int = 0) -> str:
        """The id of the thing that this key makes; a later generation once the key's day has passed."""
        text = f"{self.route}|{self.key}|{generation}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]


async def idempotency(
    request: Request, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
) -> Idempotency | None:
    """The request's Idempotency-Key, if it has one."""
    if idempotency_key is None:
        return None
    if not idempotency_key.strip() or not idempotency_key.isprintable():
        raise DataValidationError.at("header.Idempotency-Key", "an Idempotency-Key is 1 to 255 printable characters")
    digest = hashlib.sha256(await request.body()).hexdigest()
    return Idempotency(idempotency_key, digest, request.url.path)


IdempotencyDep = Annotated[Idempotency | None, Depends(idempotency)]
