"""`Workbench`: the outside things, opened once from Settings and passed as an argument.

Below here nobody knows settings. The service resolves what is unset (a server at the original specification's address,
or the embedded stand-in) and passes the resolved addresses to its child processes, which open theirs with
`open_for_worker`.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from common_lib.deadlines import closed_after
from common_lib.exceptions import DataValidationError, UnavailableError
from common_lib.redaction import redacted
from common_lib.storage import keep_as_child
from ml_workbench_service.access.signing_keys import GivenKeys
from ml_workbench_service.contracts.clock import WALL, Clock
from ml_workbench_service.contracts.market import ColumnWitness, FeatureStore
from ml_workbench_service.contracts.multiple_testing import MultipleTestingLog
from ml_workbench_service.integrations.column_witness import SqliteColumnWitness
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.deployment_stream import DeploymentStream
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.integrations.strategy_engine import StrategyEngine
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.jobs.handed_in import FolderHandIn
from ml_workbench_service.jobs.trial_log import TrialLog
from ml_workbench_service.learning.bundle.signatures import Signatures
from ml_workbench_service.settings import (
    DEFAULT_EXPERIMENT_TRACKING_URI,
    DEFAULT_FEATURE_STORE_URL,
    EMBEDDED,
    JobAddress,
    Settings,
)

if TYPE_CHECKING:
    from ml_workbench_service.elsewhere.connection import JobConnection
    from ml_workbench_service.integrations.object_registry.mirror import Mirror

TrialEngine = Literal["local", "ray"]
PROBE_TIMEOUT_S = 0.3
PINS_FILE = "bar_readings.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where each outside thing is, after looking once."""

    feature_store: str  # EMBEDDED, file://…, http(s)://…
    tracking: str  # a URI for MLflow, EMBEDDED resolved to sqlite, or "disabled"
    tracking_is_embedded: bool
    redis: str | None  # None: there is no Redis to be had, `redis_fault` says why
    redis_is_embedded: bool
    redis_fault: str = ""


@dataclass(frozen=True)
class Workbench:
    """The outside things of one process."""

    addresses: Addresses
    feature_store: FeatureStore
    history: DeploymentHistory
    registry: FolderModelRegistry
    state_dir: Path
    queue: ShardedQueue | None
    deployments: DeploymentStream | None
    strategy_engine: StrategyEngine | None
    multiple_testing: MultipleTestingLog
    enforces_skill: bool = False  # whether only models with proven skill are deployed, unless forced
    accelerator: str | None = None  # the one that ACCELERATOR names; None: the best that is there
    clock: Clock = WALL
    decisions: DecisionStream | None = None
    open_trials: Callable[[Path], TrialLog] = TrialLog  # an experiment's, by its file
    trial_engine: TrialEngine = "local"  # who makes an experiment's trials
    trial_gpus: float = 0.0  # that each trial has on another engine

    def required_queue(self) -> ShardedQueue:
        """The queue; raises UnavailableError where there is no Redis."""
        if self.queue is None:
            raise UnavailableError(
                f"there is no Redis: {self.addresses.redis_fault or 'set REDIS_URL'}", retry_after_s=30
            )
        return self.queue

    def required_decisions(self) -> DecisionStream:
        """What agents decided; raises UnavailableError where there is no Redis."""
        if self.decisions is None:
            raise UnavailableError(
                f"there is no Redis: {self.addresses.redis_fault or 'set REDIS_URL'}", retry_after_s=30
            )
        return self.decisions


def open_workbench(
    settings: Settings, addresses: Addresses, *, clock: Clock = WALL, publishes: bool = True
) -> Workbench:
    """Opens everything at addresses already resolved; nothing is contacted yet.

    Args:
        publishes: whether this process signs and publishes versions itself, as the service does, and programs that
            work without one; else it verifies alone, and hands its versions in.
    """
    history = open_history(settings)
    queue = deployments = decisions = engine = None
    if addresses.redis is not None:
        queue = ShardedQueue(
            addresses.redis,
            capacity=settings.PREDICTION_QUEUE_CAPACITY,
            num_shards=settings.PREDICTION_QUEUE_SHARDS,
            ttl_s=settings.PREDICTION_QUEUE_TTL_S,
        )
        deployments = DeploymentStream(addresses.redis)
        decisions = DecisionStream(addresses.redis)
    if settings.STRATEGY_ENGINE_URL:
        own_url = f"{'http' if settings.TLS_CERT is None else 'https'}://{settings.HOST}:{settings.PORT}"
        engine = StrategyEngine(
            settings.STRATEGY_ENGINE_URL, api_key=_revealed(settings.STRATEGY_ENGINE_API_KEY), own_url=own_url
        )
    return Workbench(
        addresses=addresses,
        feature_store=open_configured_store(settings, address=addresses.feature_store, clock=clock),
        history=history,
        registry=open_registry(settings, history, publishes=publishes),
        state_dir=settings.STATE_DIR.resolve(),
        queue=queue,
        deployments=deployments,
        strategy_engine=engine,
        multiple_testing=SqliteMultipleTestingLog(settings.STATE_DIR.resolve() / "ledgers.db"),
        enforces_skill=settings.SKILL_GATE == "enforce",
        accelerator=settings.ACCELERATOR,
        clock=clock,
        decisions=decisions,
    )


def open_history(settings: Settings) -> DeploymentHistory:
    """Who served when, by the registry's folder or bucket; a bucket's is followed until the history is closed.

    Raises:
        UnavailableError: the bucket cannot be reached, and nothing of it was ever cached here.
    """
    if settings.registry_address is None:
        return DeploymentHistory(settings.registry_folder)
    from ml_workbench_service.integrations.object_registry.bucket import Bucket
    from ml_workbench_service.integrations.object_registry.history import ObjectDeploymentHistory
    from ml_workbench_service.integrations.object_registry.mirror import Mirror

    mirror = Mirror(Bucket(settings.registry_address), settings.registry_folder.parent)
    mirror.open()
    mirror.follow()
    return ObjectDeploymentHistory(mirror)


def open_registry(
    settings: Settings,
    history: DeploymentHistory,
    *,
    publishes: bool = False,
    signatures: Signatures | None = None,
) -> FolderModelRegistry:
    """The registry of a history that `open_history` has opened, which serves what the service of this STATE_DIR has
    signed; `publishes` as for `open_workbench`.

    Args:
        signatures: of a reader without a STATE_DIR of the service.
    """
    state_dir = settings.STATE_DIR.resolve()
    signatures = signatures or Signatures(state_dir, holds_key=publishes)
    hand_in = None if publishes else FolderHandIn(state_dir / "jobs")
    if settings.registry_address is None:
        return FolderModelRegistry(
            settings.registry_folder, live_version=history.live_version, signatures=signatures, hand_in=hand_in
        )
    from ml_workbench_service.integrations.object_registry.registry import ObjectModelRegistry

    mirror = mirror_of(history)
    if publishes and not mirror.fault:
        mirror.bucket.check_conditions()
    return ObjectModelRegistry(
        mirror,
        cache_gb=settings.REGISTRY_CACHE_GB,
        live_version=history.live_version,
        signatures=signatures,
        hand_in=hand_in,
    )


def mirror_of(history: DeploymentHistory) -> "Mirror":
    """Of a history whose registry is a bucket."""
    from ml_workbench_service.integrations.object_registry.history import ObjectDeploymentHistory

    assert isinstance(history, ObjectDeploymentHistory), "the same settings opened both"
    return history.mirror


def open_configured_store(settings: Settings, *, address: str = "", clock: Clock = WALL) -> FeatureStore:
    """The store as the settings have it; in a child its address is resolved."""
    return open_feature_store(
        address or settings.FEATURE_STORE_URL or EMBEDDED,
        bars_timezone=settings.BARS_TIMEZONE,
        api_key=_revealed(settings.FEATURE_STORE_API_KEY),
        pins=settings.STATE_DIR.resolve() / PINS_FILE,
        witness=SqliteColumnWitness(settings.STATE_DIR.resolve() / "witnesses.db"),
        clock=clock,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


@contextmanager
def open_for_worker(settings: Settings) -> Iterator[Workbench]:
    """A child's workbench: the service has resolved every address into the child's environment.

    In a child of a worker elsewhere it is that worker's own, by its token.
    """
    address = JobAddress()
    if address.ML_WORKBENCH_JOB_URL is not None and address.ML_WORKBENCH_JOB_TOKEN is not None:
        from ml_workbench_service.elsewhere.connection import connected

        token = address.ML_WORKBENCH_JOB_TOKEN.get_secret_value()
        with (
            tempfile.TemporaryDirectory(prefix="ml-workbench-trials-") as work,
            connected(address.ML_WORKBENCH_JOB_URL, token) as connection,
            open_elsewhere(settings, connection, Path(work)) as workbench,
        ):
            yield workbench
        return
    addresses = Addresses(
        feature_store=settings.FEATURE_STORE_URL or EMBEDDED,
        tracking=settings.EXPERIMENT_TRACKING_URI or "disabled",
        tracking_is_embedded=False,
        redis=settings.REDIS_URL,
        redis_is_embedded=False,
    )
    keep_as_child(settings.STATE_DIR.resolve(), settings.registry_folder)
    workbench = open_workbench(settings, addresses, publishes=False)
    try:
        yield workbench
    finally:
        close_workbench(workbench)


@contextmanager
def open_elsewhere(
    settings: Settings, connection: "JobConnection", work: Path, *, trial_engine: TrialEngine = "local"
) -> Iterator[Workbench]:
    """The workbench of a worker on another machine: the control plane's things, by way of its job.

    Args:
        work: a folder of this machine.
        trial_engine: who makes an experiment's trials.
    """
    from ml_workbench_service.elsewhere.market import open_store
    from ml_workbench_service.elsewhere.multiple_testing import MultipleTestingElsewhere
    from ml_workbench_service.elsewhere.registry import RegistryElsewhere
    from ml_workbench_service.elsewhere.trial_log import TrialLogElsewhere

    addresses = Addresses(
        feature_store=connection.url, tracking="disabled", tracking_is_embedded=False, redis=None,
        redis_is_embedded=False, redis_fault="a worker elsewhere has no queue",
    )  # fmt: skip
    yield Workbench(
        addresses=addresses,
        feature_store=open_store(connection),
        history=DeploymentHistory(work / "registry"),
        registry=RegistryElsewhere(connection, work / "registry"),
        state_dir=work,
        queue=None,
        deployments=None,
        strategy_engine=None,
        multiple_testing=MultipleTestingElsewhere(connection),
        accelerator=settings.ACCELERATOR,
        open_trials=partial(TrialLogElsewhere, connection),
        trial_engine=trial_engine,
        trial_gpus=settings.RAY_GPUS,
    )


def open_for_predict_worker(settings: Settings, *, control: Path, clock: Clock = WALL) -> Workbench:
    """A predict worker's: it reads the registry, publishes to the queue, and has the control process fetch features."""
    from ml_workbench_service.integrations.replicas.features import ControlFeatureStore

    addresses = Addresses(
        feature_store=EMBEDDED,
        tracking="disabled",
        tracking_is_embedded=False,
        redis=settings.REDIS_URL,
        redis_is_embedded=False,
    )
    return replace(
        open_workbench(settings, addresses, clock=clock, publishes=False),
        feature_store=ControlFeatureStore(control),
        strategy_engine=None,
    )


def open_for_predict_replica(settings: Settings, trusted: GivenKeys, *, clock: Clock = WALL) -> Workbench:
    """A predict replica's: it reads the registry, verified with public keys that it was given, publishes to the queue,
    and has a feature store where one is named. Nothing of STATE_DIR is read or written."""
    from ml_workbench_service.integrations.replicas.absent_features import AbsentFeatureStore

    named = settings.FEATURE_STORE_URL
    addresses = Addresses(
        feature_store=named or "off",
        tracking="disabled",
        tracking_is_embedded=False,
        redis=settings.REDIS_URL,
        redis_is_embedded=False,
    )
    assert addresses.redis is not None, "the settings have seen to it"
    history = open_history(settings)
    nowhere = Path(os.devnull)
    store: FeatureStore = AbsentFeatureStore(settings.CONTROL_URL or "the control plane")
    if named is not None:
        store = open_feature_store(
            named, bars_timezone=settings.BARS_TIMEZONE, api_key=_revealed(settings.FEATURE_STORE_API_KEY), clock=clock
        )
    return Workbench(
        addresses=addresses,
        feature_store=store,
        history=history,
        registry=open_registry(settings, history, signatures=Signatures(nowhere, trusted=trusted)),
        state_dir=nowhere,
        queue=ShardedQueue(
            addresses.redis,
            capacity=settings.PREDICTION_QUEUE_CAPACITY,
            num_shards=settings.PREDICTION_QUEUE_SHARDS,
            ttl_s=settings.PREDICTION_QUEUE_TTL_S,
        ),
        deployments=None,
        strategy_engine=None,
        multiple_testing=SqliteMultipleTestingLog(nowhere),
        accelerator=settings.ACCELERATOR,
        clock=clock,
    )


def close_workbench(workbench: Workbench) -> None:
    """Gives the connections back."""
    workbench.history.close()
    if workbench.queue is not None:
        workbench.queue.close()
    if workbench.deployments is not None:
        workbench.deployments.close()
    if workbench.decisions is not None:
        workbench.decisions.close()


def resolve(settings: Settings, embedded_redis: EmbeddedRedis) -> Addresses:
    """Looks once: what is set is used and nothing else; what is unset is probed, then embedded; one line says which."""
    state_dir = settings.STATE_DIR.resolve()
    feature_store = settings.FEATURE_STORE_URL or (
        DEFAULT_FEATURE_STORE_URL if _is_feature_store(DEFAULT_FEATURE_STORE_URL) else EMBEDDED
    )
    tracking = settings.EXPERIMENT_TRACKING_URI or (
        DEFAULT_EXPERIMENT_TRACKING_URI if _is_mlflow(DEFAULT_EXPERIMENT_TRACKING_URI) else EMBEDDED
    )
    redis_url, redis_fault = settings.REDIS_URL, ""
    if redis_url is None:
        try:
            redis_url = embedded_redis.start()
        except UnavailableError as error:
            redis_fault = error.message
    for thing, address, asked in (
        ("feature store", feature_store, settings.FEATURE_STORE_URL),
        ("experiment tracking", tracking, settings.EXPERIMENT_TRACKING_URI),
        ("redis", redis_url or redis_fault, settings.REDIS_URL),
    ):
        _log.info(thing, extra={"address": redacted(address), "is_set": asked is not None})
    return Addresses(
        feature_store=feature_store,
        tracking=embedded_tracking_uri(state_dir) if tracking == EMBEDDED else tracking,
        tracking_is_embedded=tracking == EMBEDDED,
        redis=redis_url,
        redis_is_embedded=settings.REDIS_URL is None,
        redis_fault=redis_fault,
    )


def embedded_tracking_uri(state_dir: Path) -> str:
    """MLflow's own default kind of store, below the state folder."""
    return f"sqlite:///{state_dir / 'mlflow.db'}"


def open_feature_store(
    address: str,
    *,
    bars_timezone: str | None = None,
    api_key: str | None = None,
    pins: Path | None = None,
    witness: ColumnWitness | None = None,
    clock: Clock = WALL,
) -> FeatureStore:
    """The store behind an address, with expressions: `embedded`, `file://folder` or `http(s)://…`.

    Args:
        pins: the file that keeps what was decided about the clocks of a folder's files.
        witness: sees ready-made columns.

    Raises:
        DataValidationError: another kind of address, or a folder that is not there.
    """
    from ml_workbench_service.market.features.expression_store import ExpressionStore

    return ExpressionStore(
        _open_columns(address, bars_timezone=bars_timezone, api_key=api_key, pins=pins, witness=witness, clock=clock)
    )


def _open_columns(
    address: str,
    *,
    bars_timezone: str | None,
    api_key: str | None,
    pins: Path | None,
    witness: ColumnWitness | None,
    clock: Clock,
) -> FeatureStore:
    """The store that serves columns by name."""
    from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore

    if address == EMBEDDED:
        from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates

        return LocalFeatureStore(SampleRates(), clock=clock)
    parts = urlsplit(address)
    if parts.scheme == "file":
        from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars, folder_of_url

        bars = FolderBars(folder_of_url(address), bars_timezone=bars_timezone, pins=pins)
        return LocalFeatureStore(bars, clock=clock, witness=witness)
    if parts.scheme in ("http", "https"):
        from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore

        return RemoteFeatureStore(address, api_key=api_key, witness=witness, clock=clock)
    raise DataValidationError.at(
        "FEATURE_STORE_URL", "FEATURE_STORE_URL must be `embedded`, file:///folder/of/bars, or an http(s) address"
    )


def _is_feature_store(address: str) -> bool:
    try:
        answer = json_object(_get(address, "/health"))
    except (OSError, HTTPException, ValueError):
        return False
    return bool(answer.get("service") == "feature-store")


def _is_mlflow(address: str) -> bool:
    try:
        text = _get(address, "/version").decode()
    except (OSError, HTTPException, ValueError):
        return False
    return len(text) < 40 and text[:1].isdigit()


def _get(address: str, path: str) -> bytes:
    """The body of a 200, with the probe's short patience; anything else is an OSError."""
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "localhost", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        with closed_after(connection, 2 * PROBE_TIMEOUT_S):
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ConnectionRefusedError(f"status {answer.status}")
            return answer.read(4096)
    finally:
        connection.close()
