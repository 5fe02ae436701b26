"""Application factory, `create_app(settings)`: the routes, and the life: what opens at start, and closes in reverse.

One service owns a STATE_DIR: an exclusive lock says so. The embedded Redis, the agent and the tracker start and stop
with the service; training workers outlive it and are adopted again.
"""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from common_lib.exceptions import ModelNotFoundError, PlatformError, VersionNotFoundError
from common_lib.log_files import LogRotation
from common_lib.logging import configure_logging
from ml_workbench_service import __version__, accelerators, families
from ml_workbench_service.access.audit_log import AuditLog
from ml_workbench_service.api import (
    agents,
    catalogue,
    deployments,
    errors,
    experiments,
    figures,
    given_figures,
    health,
    jobs,
    ledger,
    market_data,
    models,
    queue,
    resilience,
    series,
)
from ml_workbench_service.api.app_state import AppState, closing_mode
from ml_workbench_service.api.document import pages
from ml_workbench_service.api.document.openapi import name_of
from ml_workbench_service.api.door import audit, probes
from ml_workbench_service.api.door.straight_predictions import StraightPredictions
from ml_workbench_service.api.elsewhere import routes as worker_routes
from ml_workbench_service.api.inference_protocol import transports as inference_protocol
from ml_workbench_service.api.inference_protocol.grpc_settings import GrpcSettings
from ml_workbench_service.api.ledger_metrics import LedgerMetrics
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.api.middleware import checked
from ml_workbench_service.api.predict_workers.layers import put_layers
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.api.queries import KnownQueries
from ml_workbench_service.api.tables import agents as agent_tables
from ml_workbench_service.api.tables import jobs as job_tables
from ml_workbench_service.api.tables import versions as version_tables
from ml_workbench_service.contracts.clock import WALL, Clock
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.extras import is_installed
from ml_workbench_service.contracts.jobs import Job
from ml_workbench_service.contracts.market import Witnessing
from ml_workbench_service.contracts.queue import FullMode, QueuePolicy
from ml_workbench_service.entrance import Entrance
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.kept_folder import LOOK_EVERY_S, KeptFolder
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.object_registry.kept_bucket import KeptBucket
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_ledger.reader import LEDGER_FILE
from ml_workbench_service.integrations.prediction_queue import move_to
from ml_workbench_service.jobs.job import TRACKED_KINDS, JobFolder, JobStore, TrackingRecord
from ml_workbench_service.jobs.private_files import keep_private
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile
from ml_workbench_service.predict_processes import open_predict_workers
from ml_workbench_service.resources import Addresses, Workbench, close_workbench, mirror_of, open_workbench, resolve
from ml_workbench_service.runtime.agent_supervisor import AgentSupervisor
from ml_workbench_service.runtime.child_environment import child_environment, without_store_key
from ml_workbench_service.runtime.child_process import SupervisedProcess
from ml_workbench_service.runtime.engine import TrainingEngine, open_engine
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits
from ml_workbench_service.runtime.page_process import PageProcess
from ml_workbench_service.runtime.predict_workers import MODULE
from ml_workbench_service.runtime.table_process import TableProcess
from ml_workbench_service.sending_traces import traced_until
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import profiles_of
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.publisher import PredictionPublisher
from ml_workbench_service.settings import Settings
from ml_workbench_service.stopping import stopping_event
from ml_workbench_service.workflows.deploy import finish_interrupted
from ml_workbench_service.workflows.housekeeping.keep_house import HouseRules, keep_house
from ml_workbench_service.workflows.publishing.handed_in_versions import publish_handed_in
from ml_workbench_service.workflows.publishing.signing import sign_at_first_start
from ml_workbench_service.workflows.restore_state import own_state
from ml_workbench_service.workflows.settle_outcomes import OutcomeResolver
from ml_workbench_service.workflows.undeploy import send_closing_records
from ml_workbench_service.workflows.watch_columns import ColumnWatch

"""A reloading predecessor needs a moment to end its children."""
REDIS_WATCH_S = 1.0
LOG_WATCH_S = 5.0
USES_EVERY_S = 60.0
TRACKER_DELAY_S = 2.0
ENDS_EVERY_S = 10.0
HOUSE_EVERY_S = 600.0
REGISTRY_WATCH_S = 15.0
COLLECT_EVERY = 4_000
"""New containers between two collections of the youngest. A prediction leaves no cycle, a route of FastAPI some thirty
objects; at 20,000 of them a collection held everything up for 10 to 20 ms."""
WARM_WATCH_S = 4.0
"""After the start, which has the processor for itself, and after a job's end."""
DESCRIPTION = (
    "Train models on exchange rates, learn honestly whether they have skill, deploy them, and let their live "
    "predictions feed a learning agent. Errors have one shape everywhere; times are ISO 8601 in UTC."
)
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI would look for OpenTelemetry's providers, and through the environment, at every request."""
LICENSE = {"name": "MIT", "identifier": "MIT"}

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, clock: Clock = WALL, predict_worker: str = MODULE) -> FastAPI:
    """The app for these settings; nothing is opened before it starts. Only tests give it another clock, and workers."""
    entrance = Entrance(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keep_private()
        async with AsyncExitStack() as stack:
            await traced_until(stack, settings, "service")
            opened = app.state.service = await _open(settings, clock, stack, entrance)
            stack.callback(opened.queue_threads.close)
            probes.ask_again_and_again(opened, stack)
            stack.push_async_callback(await inference_protocol.listen(opened, entrance.gate, _grpc(settings)))
            await open_predict_workers(app, settings, entrance.gate, stack, module=predict_worker)
            _say_where(settings)
            stack.callback(gc.set_threshold, *gc.get_threshold())
            stack.callback(gc.unfreeze)
            _keep_what_is_loaded()
            yield
            app.state.service.stopping.set()
            app.state.service = None

    app = FastAPI(
        title="ML Workbench Service",
        version=__version__,
        description=DESCRIPTION,
        license_info=LICENSE,
        generate_unique_id_function=name_of,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    errors.install(app)
    pages.install(app)
    app.include_router(health.alive, dependencies=[KnownQueries])
    app.include_router(health.router, dependencies=[KnownQueries])
    app.include_router(health.metrics_router, dependencies=[KnownQueries])
    for resource in (
        models, predict_routes, ledger, catalogue, series, market_data, jobs, experiments, deployments, queue, agents,
        resilience, version_tables, job_tables, agent_tables, figures, given_figures, audit,
        worker_routes,
    ):  # fmt: skip
        # Each by itself: FastAPI builds the routes of a router within a router three times, and once of them at start.
        app.include_router(resource.router, prefix="/api/v1", dependencies=[Depends(checked), KnownQueries])
    put_layers(app, entrance.door, StraightPredictions(app, entrance.gate), traced=settings.TRACES)
    inference_protocol.install(app)
    return app


def _grpc(settings: Settings) -> GrpcSettings:
    certificates = settings.TLS_CERT, settings.TLS_KEY, settings.TLS_CLIENT_CA
    return GrpcSettings(settings.HOST, settings.GRPC_PORT, *certificates)


def _keep_what_is_loaded() -> None:
    """Has the garbage collector pass over everything that a start has loaded.

    Thousands of answers a second set off whole collections, each of which went through hundred thousand classes,
    validators and routes that live as long as the service: 6 % of its time (docs/performance.md).
    """
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 10, 10)


def _rotate_logs(settings: Settings, stack: AsyncExitStack) -> None:
    most_bytes = round(settings.LOG_MAX_MB * 1e6)
    rotation = LogRotation(settings.LOG_DIR, max_bytes=most_bytes, num_kept=settings.LOG_FILES_KEPT)
    _repeat("log rotation", LOG_WATCH_S, rotation.rotate_if_due, stack)


async def _keep_folder(folder: KeptFolder, stack: AsyncExitStack) -> KeptFolder:
    """It is this folder from now on, and found gone within a second or two."""
    await asyncio.to_thread(folder.open)
    stack.callback(folder.close)
    _repeat("look at a folder", LOOK_EVERY_S, folder.look, stack)
    return folder


async def _open(settings: Settings, clock: Clock, stack: AsyncExitStack, entrance: Entrance) -> AppState:
    """Opens everything in order; the stack closes it in reverse."""
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    stack.callback((await asyncio.to_thread(own_state, settings.STATE_DIR.resolve())).release)
    state_folder = await _keep_folder(KeptFolder(settings.STATE_DIR.resolve(), "STATE_DIR"), stack)
    registry_folder: KeptFolder | KeptBucket
    if settings.registry_address is None:
        registry_folder = KeptFolder(settings.registry_folder, "MODEL_REGISTRY_PATH", is_needed=False)
        await _keep_folder(registry_folder, stack)
    await _open_entrance(entrance, stack)
    _rotate_logs(settings, stack)
    redis = EmbeddedRedis(settings.STATE_DIR)
    stack.push_async_callback(asyncio.to_thread, redis.stop)
    addresses = await asyncio.to_thread(resolve, settings, redis)
    if settings.ACCELERATOR:
        accelerators.kind_of(settings.ACCELERATOR)  # a name nobody has is an error now, not at the first training
    workbench = await asyncio.to_thread(open_workbench, settings, addresses, clock=clock)
    stack.callback(close_workbench, workbench)
    if settings.registry_address is not None:
        registry_folder = KeptBucket(mirror_of(workbench.history))
    await _own_registry(workbench, entrance, stack)
    stopping = stopping_event(stack)
    environment = child_environment(settings, addresses)
    intervals = LiveIntervals(settings.STATE_DIR.resolve() / "adaptive")
    live = (each for each in workbench.history.everything() if each.status == "live")
    await asyncio.to_thread(intervals.recall, ((each.model_id, each.version) for each in live))
    metrics = Metrics()
    publisher = await _publisher(workbench, settings.PREDICTION_QUEUE_POLICY, metrics, stack)
    metrics.watch_intervals(intervals)
    metrics.watch_agents(settings.STATE_DIR.resolve())
    predictions_kept = _ledger(settings, workbench, intervals, metrics, stack)
    _watch_columns(workbench, stack)
    model_server = ModelServer(
        workbench.registry, live=workbench.history.live_lately, intervals=intervals, ledger=predictions_kept,
        providers=accelerators.inference_providers(workbench.accelerator),
    )  # fmt: skip
    stack.callback(model_server.close)
    metrics.watch_line(model_server.line)
    store = JobStore(settings.STATE_DIR.resolve() / "jobs")
    await _end_lives(settings, workbench, model_server, store, entrance.audit, stack)
    tracker = await _tracker(settings, addresses, without_store_key(environment), stack)
    publish = partial(publish_handed_in, workbench.registry, audit=entrance.audit)
    engine = open_engine(settings, store, addresses)
    stack.callback(engine.close)
    supervisor = _job_supervisor(settings, store, engine, tracker, metrics, stack, publish=publish)
    agent_supervisor = await _agent_supervisor(settings, workbench, without_store_key(environment), stack)
    await supervisor.start()
    stack.push_async_callback(supervisor.stop)
    if addresses.redis_is_embedded and addresses.redis is not None:
        _repeat("redis watch", REDIS_WATCH_S, partial(_revive, redis, state_folder), stack)
    return AppState(
        workbench=workbench, store=store, supervisor=supervisor, model_server=model_server, ledger=predictions_kept,
        publisher=publisher, metrics=metrics, stopping=stopping,
        tables=_tables(settings, environment, stack),
        max_workers=settings.TRAINING_WORKERS, max_memory_gb=settings.MAX_TRAINING_MEMORY,
        max_job_hours=settings.MAX_JOB_HOURS, needs=engine.needs, audit=entrance.audit,
        state_folder=state_folder, registry_folder=registry_folder, queue_policy=settings.PREDICTION_QUEUE_POLICY,
        agent_supervisor=agent_supervisor, tracker=tracker, cluster=engine.cluster,
        page=_page(settings, without_store_key(environment), stack, needs_key=entrance.gate.is_guarded),
    )  # fmt: skip


def _tables(settings: Settings, environment: dict[str, str], stack: AsyncExitStack) -> TableProcess:
    log_file = settings.STATE_DIR.resolve() / "table_process.log"
    tables = TableProcess(environment, log_file, idle_s=settings.TABLE_IDLE_S)
    stack.push_async_callback(tables.close)
    return tables


async def _open_entrance(entrance: Entrance, stack: AsyncExitStack) -> None:
    await asyncio.to_thread(entrance.open)
    stack.callback(entrance.gate.ring.keep_uses)
    _repeat("last uses of keys", USES_EVERY_S, entrance.gate.ring.keep_uses, stack)


async def _own_registry(workbench: Workbench, entrance: Entrance, stack: AsyncExitStack) -> None:
    """Signs what lay there before there were signatures, ends what was interrupted, and keeps looking."""
    await asyncio.to_thread(sign_at_first_start, workbench.registry, entrance.audit)
    await asyncio.to_thread(finish_interrupted, workbench)
    _repeat("look over the registry", REGISTRY_WATCH_S, workbench.registry.look_over, stack)


def _ledger(
    settings: Settings, workbench: Workbench, intervals: LiveIntervals, metrics: Metrics, stack: AsyncExitStack
) -> PredictionLedger:
    """Where live answers are kept, and who resolves their outcomes; closed after serving."""
    found = PredictionLedger(workbench.state_dir / LEDGER_FILE, max_rows=settings.PREDICTION_LEDGER_ROWS)
    found.start()
    stack.callback(found.close)
    resolver = OutcomeResolver(
        found, workbench.feature_store, intervals, clock=workbench.clock,
        profiles_of=partial(_profiles_of, workbench.registry),
    )  # fmt: skip
    resolver.start()
    stack.callback(resolver.stop)
    metrics.registry.register(LedgerMetrics(workbench, found))
    return found


def _profiles_of(registry: FolderModelRegistry, model_id: str, version: str) -> dict[str, SeasonalProfile] | None:
    """The seasons of a version's volatility; None where it has been removed."""
    try:
        return profiles_of(registry.card(model_id, version), registry.recipe(model_id, version))
    except (ModelNotFoundError, VersionNotFoundError):
        return None


def _job_supervisor(
    settings: Settings,
    store: JobStore,
    engine: TrainingEngine,
    tracker: SupervisedProcess | None,
    metrics: Metrics,
    stack: AsyncExitStack,
    *,
    publish: Callable[[JobFolder], None],
) -> JobSupervisor:
    """Who sees to the jobs; while there are none, a warm worker is kept for the next."""
    supervisor = JobSupervisor(
        store,
        engine.backend,
        _limits(settings),
        on_activity=partial(_tell_tracker, tracker, store),
        on_finished=lambda job: metrics.jobs.labels(job.kind.value, job.status.value).inc(),
        publish=publish,
    )

    def keep_warm() -> None:
        if supervisor.is_idle:
            engine.local.keep_warm()

    if settings.WARM_WORKER:
        _repeat("warm worker", WARM_WATCH_S, keep_warm, stack)
    return supervisor


def _limits(settings: Settings) -> Limits:
    return Limits(
        settings.TRAINING_WORKERS, settings.MAX_TRAINING_MEMORY, max_others=settings.REPLAY_WORKERS,
        max_waiting=settings.MAX_WAITING_JOBS, max_hours=settings.MAX_JOB_HOURS,
    )  # fmt: skip


async def _end_lives(
    settings: Settings, workbench: Workbench, model_server: ModelServer, store: JobStore, audit: AuditLog,
    stack: AsyncExitStack,
) -> None:  # fmt: skip
    """Finishes what a kill has interrupted; then looks again and again for ends that something stood in the way of,
    for those that another process made, and for what has grown too old or too large."""
    await asyncio.to_thread(workbench.registry.finish_purges)
    await asyncio.to_thread(model_server.remove_leftovers)
    await asyncio.to_thread(store.finish_deletions)

    def look() -> None:
        finish_interrupted(workbench)
        model_server.forget_purged()
        send_closing_records(workbench, full=closing_mode(settings.PREDICTION_QUEUE_POLICY))

    _repeat("ends of lives", ENDS_EVERY_S, look, stack)
    keep = partial(keep_house, store, workbench.registry, audit, HouseRules.of(settings))
    _repeat("housekeeping", HOUSE_EVERY_S, lambda: keep(now=utc_now()), stack)


def _watch_columns(workbench: Workbench, stack: AsyncExitStack) -> None:
    """Where users' columns are looked at while they grow; the sample has none."""
    witness = workbench.feature_store.witness if isinstance(workbench.feature_store, Witnessing) else None
    if witness is not None:
        watch = ColumnWatch(workbench.feature_store, witness.watched, clock=workbench.clock)
        watch.start()
        stack.callback(watch.stop)


async def _tracker(
    settings: Settings, addresses: Addresses, environment: dict[str, str], stack: AsyncExitStack
) -> SupervisedProcess | None:
    """The tracker, awake soon for whatever happened while the service was away; None where tracking is off."""
    if addresses.tracking == "disabled":
        return None
    if not is_installed("tracking"):
        log.warning("the extra `tracking` is not installed: MLflow hears nothing; set EXPERIMENT_TRACKING_URI=disabled")
        return None
    command = [sys.executable, "-m", "ml_workbench_service.runtime.tracker_worker"]
    record = settings.STATE_DIR.resolve() / "tracker.json"
    tracker = SupervisedProcess("tracker", command, environment, record, on_demand=True)
    await tracker.start()
    stack.push_async_callback(tracker.stop)
    # A little later, so that start-up has the processor for itself.
    stack.callback(asyncio.get_running_loop().call_later(TRACKER_DELAY_S, tracker.poke).cancel)
    return tracker


def _page(
    settings: Settings, environment: dict[str, str], stack: AsyncExitStack, *, needs_key: bool
) -> PageProcess | None:
    """The web page, in a moment; None where it is off."""
    if not settings.PAGE:
        return None
    if settings.TLS_CERT is not None:
        log.warning(
            "with TLS_CERT there is no page, which has no TLS of its own: set BEHIND_PROXY instead, or PAGE=false"
        )
        return None
    page = PageProcess(
        environment,
        settings.STATE_DIR.resolve() / "page.json",
        host=settings.HOST,
        port=settings.PAGE_PORT,
        usual_port=settings.PORT,
        page_url=settings.PAGE_URL or "",
        needs_key=needs_key,
    )
    page.start()
    stack.push_async_callback(page.stop)
    return page


def _tell_tracker(tracker: SupervisedProcess | None, store: JobStore, job: Job) -> None:
    """A job's news wake the tracker; where tracking is off, the job says so."""
    if tracker is not None:
        tracker.poke()
    elif job.kind in TRACKED_KINDS and job.tracking.status == "pending":
        store.folder(job.id).write_tracking(TrackingRecord(status="disabled", updated_at=utc_now()))


async def _publisher(
    workbench: Workbench, policy: QueuePolicy, metrics: Metrics, stack: AsyncExitStack
) -> PredictionPublisher | None:
    queue, url = workbench.queue, workbench.addresses.redis
    if queue is None or url is None:
        return None
    try:
        await asyncio.to_thread(move_to, queue, url)
    except PlatformError as error:
        log.warning("entries of another number of shards stay where they are until the next start: %s", error.message)
    full: FullMode = "wait" if policy == "block" else policy
    writer = queue.writer(full)
    stack.push_async_callback(writer.close)
    publisher = PredictionPublisher(writer.enqueue, observe=metrics.enqueue.observe)
    metrics.watch_queue(queue, publisher)
    await publisher.start()
    stack.push_async_callback(publisher.stop)
    return publisher


async def _agent_supervisor(
    settings: Settings, workbench: Workbench, environment: dict[str, str], stack: AsyncExitStack
) -> AgentSupervisor | None:
    if workbench.queue is None:
        return None
    agent_supervisor = AgentSupervisor(
        settings.STATE_DIR.resolve(),
        environment,
        num_shards=settings.PREDICTION_QUEUE_SHARDS,
        make_group=workbench.queue.create_group,
        give_up_group=workbench.queue.remove_group,
    )
    stack.push_async_callback(agent_supervisor.stop)
    await agent_supervisor.start(autostart=settings.AGENT_AUTOSTART)
    return agent_supervisor


def _revive(redis: EmbeddedRedis, state_folder: KeptFolder) -> None:
    """Brings the embedded server back when it has ended; not elsewhere, where its data would begin anew."""
    if redis.is_running or state_folder.is_gone:
        return
    log.warning("the embedded redis-server ended; it is started again with its data")
    try:
        redis.stop()
        redis.start()
    except PlatformError as error:
        log.error("the embedded redis-server cannot be started: %s", error.message)


def _repeat(name: str, every_s: float, work: Callable[[], object], stack: AsyncExitStack) -> None:
    """Does work again and again, in a thread, for as long as the service lives; a turn that fails is logged."""

    async def run() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(work)
            except Exception:  # the next turn may go well
                log.exception("a turn of the %s failed; it goes on with the next", name)

    task = asyncio.create_task(run(), name=name)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


def _say_where(settings: Settings) -> None:
    address = f"{'http' if settings.TLS_CERT is None else 'https'}://{settings.HOST}:{settings.PORT}"
    log.info("ML Workbench is ready: %s (API pages: %s/docs)", address, address)
    for name, fault in families.plugins.faults().items():  # found at the import, before there was a log
        log.error("family %s is left out: %s", name, fault)
