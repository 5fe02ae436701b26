"""What is swept: each a state before, work that acknowledges its steps, and what must hold after any kill."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from chaos.kill_sweep.killing import Acknowledge
from common_lib.sqlite_store import Schema, SqliteStore, Table, transaction
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, Who, verify
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.agents.checkpoint import Checkpoint as AgentCheckpoint
from ml_workbench_service.contracts.deployment import DeployRequest
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.integrations.prediction_ledger import rows
from ml_workbench_service.integrations.prediction_ledger.reader import LEDGER_FILE
from ml_workbench_service.integrations.prediction_ledger.writer import LedgerWriter
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint as TrainingCheckpoint
from ml_workbench_service.market.costs import default_costs
from ml_workbench_service.resources import Addresses, Workbench
from ml_workbench_service.workflows import deploy as deploying
from ml_workbench_service.workflows.deploy import Sender, deploy, finish_interrupted
from ml_workbench_service.workflows.undeploy import undeploy

MOMENT = datetime(2025, 3, 3, tzinfo=UTC)
MODEL = "swept"
FILES = ("jobs/durable_files.py", "integrations/model_registry.py", "learning/bundle/manifest.py")
HISTORY = ("jobs/durable_files.py", "integrations/deployment_history.py")
Violations = list[str]


@dataclass(frozen=True)
class Step:
    """One kind of work; the folder is its own.

    Attributes:
        prepare: the state before.
        work: what is killed.
        check: starts anew, as the service does after a kill, and goes on; what is wrong, given what was acknowledged.
        modules: of the package, whose lines are the points.
    """

    prepare: Callable[[Path], None]
    work: Callable[[Path, Acknowledge], None]
    check: Callable[[Path, list[str]], Violations]
    modules: tuple[str, ...]


def registry_of(folder: Path) -> FolderModelRegistry:
    """The registry, with nothing remembered."""
    return FolderModelRegistry(folder / "registry", live_version=DeploymentHistory(folder / "registry").live_version)


def job_of(version: str) -> str:
    """The job that makes it."""
    return f"job-{version.replace('.', '-')}"


def publish(folder: Path, version: str) -> ModelCard:
    """One version, as the worker of a training does it."""
    registry = registry_of(folder)
    draft = registry.draft(job_of(version))
    try:
        (draft / "model.onnx").write_bytes(b"\x08\x01" * 3000)
        (draft / "recipe.json").write_text(json.dumps({"version": version}), encoding="utf-8")
        return registry.publish(draft, card(version))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def card(version: str) -> ModelCard:
    """A small one."""
    return ModelCard.model_validate({
        "id": MODEL, "name": "Swept", "type": "time_series", "version": version, "created_at": MOMENT,
        "metrics": {"mse": 2e-6}, "family": "lstm", "symbols": ("EUR/USD",), "timeframe": "1h", "features": ("macd",),
        "target": "price_change_1h", "horizon": 1, "lookback": 24, "min_window": 3, "outputs": ("price_change_1h",),
        "precision": "fp32", "quantization": {"accepted": False, "reason": "not measured"},
        "evaluation": {
            "test": {"mse": 2e-6}, "baselines": {"random_walk": {"mse": 2e-6}}, "skill": {}, "verdict": "not_judged",
            "reason": "a sweep",
        },
        "split": {"borders": {}, "num_windows": {"test": 100}, "num_purged": 0}, "data_source": "file",
        "calendar": "fx", "fill": "next_open", "expires_at": MOMENT.replace(year=2026), "hyperparameters": {},
        "epochs_run": 1,
        "lineage": {
            "job_id": job_of(version), "data_fingerprint": "sha256:0", "seeds": (0,), "library_versions": {},
        },
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ publish


def _before_publish(folder: Path) -> None:
    publish(folder, "1.0.0")


def _publish(folder: Path, acknowledge: Acknowledge) -> None:
    acknowledge(publish(folder, "1.1.0").digest)


def _after_publish(folder: Path, acknowledged: list[str]) -> Violations:
    registry, wrong = registry_of(folder), []
    registry.finish_purges()
    if "1.0.0" not in registry.versions(MODEL) or not registry.verify(MODEL, "1.0.0"):
        wrong.append("the version before is gone or changed")
    if "1.1.0" in registry.versions(MODEL):
        digest = registry.verify(MODEL, "1.1.0")
        if acknowledged and digest != acknowledged[0]:
            wrong.append("another version than was acknowledged")
        if registry.published_by(job_of("1.1.0"), MODEL, "1.1.0") is None:
            wrong.append("its job does not find it")
    elif acknowledged:
        wrong.append("an acknowledged version is gone")
    else:
        publish(folder, "1.1.0")  # the job is resumed
        registry.verify(MODEL, "1.1.0")
    if (folder / "registry" / ".staging").exists() and any((folder / "registry" / ".staging").iterdir()):
        registry.draft(job_of("1.1.0")).rmdir()  # what a resumed job does first
        wrong += [f"{each.name} is left" for each in (folder / "registry" / ".staging").iterdir()]
    return wrong


def _before_purge(folder: Path) -> None:
    publish(folder, "1.0.0")
    publish(folder, "1.1.0")
    registry_of(folder).archive(MODEL, "1.0.0")


def _purge(folder: Path, acknowledge: Acknowledge) -> None:
    registry_of(folder).purge(MODEL, ["1.0.0"], ever_live=frozenset(), correlation_id="sweep")
    acknowledge("purged")


def _after_purge(folder: Path, acknowledged: list[str]) -> Violations:
    registry, wrong = registry_of(folder), []
    registry.finish_purges()
    registry.verify(MODEL, "1.1.0")
    if registry.is_purged(MODEL, "1.0.0"):
        wrong += ["files of a purged version are left"] if (folder / "registry" / MODEL / "1.0.0").exists() else []
    elif acknowledged:
        wrong.append("an acknowledged purge did not happen")
    elif not registry.verify(MODEL, "1.0.0"):
        wrong.append("a version is half purged")
    return wrong


# ------------------------------------------------------------------------------------------------------------- deploy


def bench_of(folder: Path) -> Workbench:
    """A workbench without servers."""
    history = DeploymentHistory(folder / "registry")
    deploying.run_gates = lambda *_, **__: ()  # they read; what is swept is what is written. In the child alone.
    return Workbench(
        addresses=Addresses("embedded", "disabled", False, None, False), feature_store=None,  # type: ignore[arg-type]
        history=history,
        registry=FolderModelRegistry(folder / "registry", live_version=history.live_version),
        state_dir=folder / "state", queue=None, deployments=None, strategy_engine=None,
        multiple_testing=SqliteMultipleTestingLog(folder / "state" / "ledgers.db"),
    )  # fmt: skip


def go_live(folder: Path, version: str, name: str) -> None:
    """Deploys a version."""
    request = DeployRequest.model_validate({"version": version, "deployment_target": "local"})
    deploy(bench_of(folder), MODEL, request, Sender(name, "sweep"))


def _before_deploy(folder: Path) -> None:
    _before_publish(folder)
    publish(folder, "1.1.0")
    go_live(folder, "1.0.0", "first")


def _deploy(folder: Path, acknowledge: Acknowledge) -> None:
    go_live(folder, "1.1.0", "second")
    acknowledge("second")


def _after_deploy(folder: Path, acknowledged: list[str]) -> Violations:
    bench = bench_of(folder)
    finish_interrupted(bench)
    found = {each.id: each.status for each in bench.history.of(MODEL)}
    live = [name for name, status in found.items() if status == "live"]
    wrong = [] if live in (["first"], ["second"]) else [f"live is {live}"]
    wrong += ["something is pending"] if "pending" in found.values() else []
    if acknowledged and live != ["second"]:
        wrong.append("an acknowledged deployment is not live")
    go_live(folder, "1.1.0", "third")
    if DeploymentHistory(folder / "registry").live_version(MODEL) != "1.1.0":
        wrong.append("the next deployment does not go live")
    return wrong


def _undeploy(folder: Path, acknowledge: Acknowledge) -> None:
    undeploy(bench_of(folder), MODEL, full="wait")
    acknowledge("undeployed")


def _after_undeploy(folder: Path, acknowledged: list[str]) -> Violations:
    bench = bench_of(folder)
    finish_interrupted(bench)
    live = bench.history.live_version(MODEL)
    wrong = ["an acknowledged end did not happen"] if acknowledged and live is not None else []
    wrong += [f"live is {live}"] if live not in (None, "1.0.0") else []
    go_live(folder, "1.1.0", "third")
    return wrong


# ------------------------------------------------------------------------------------------------------------- ledger

NUM_BATCHES, ROWS_OF_A_BATCH = 3, 5
MAKING = Making(target=parse_target("price_change_1h"), horizon=1)


def _row(number: int) -> Any:
    as_of = MOMENT + timedelta(hours=number)
    record = PredictionRecord.model_validate({
        "prediction_id": f"prediction-{number}", "model_id": MODEL, "version": "1.0.0", "version_id": "1.0.0",
        "role": "champion", "symbol": "EUR/USD", "timeframe": "1h", "target": "price_change_1h", "as_of": as_of,
        "valid_until": as_of + timedelta(hours=1), "timestamp": as_of, "price": 1.1, "source": "live",
        "sample": "live", "status": "ok", "prediction": 0.0001, "direction": "buy", "confidence": 0.55,
        "outputs": {"price_change_1h": 0.0001}, "interval": {"level": 0.9, "lower": -0.0016, "upper": 0.0018},
        "novelty": {"score": 0.2},
        "metadata": {
            "precision": "fp32", "data_source": "file", "volatility": 0.001,
            "costs": default_costs("EUR/USD").model_dump(),
        },
    })  # fmt: skip
    answered = Answered(record, np.array([0.5, -1.25], np.float32), 0.001, 1.1)
    asked = rows.asked_of(answered, MAKING, is_sampled=True)
    return rows.series_key(record, MAKING), rows.row_of(answered, asked)


def _ledger(folder: Path, acknowledge: Acknowledge) -> None:
    writer = LedgerWriter(SqliteStore(folder / LEDGER_FILE, rows.SCHEMA, timeout_s=5), max_rows=1000)
    for batch in range(NUM_BATCHES):
        first = batch * ROWS_OF_A_BATCH
        writer.write([_row(number) for number in range(first, first + ROWS_OF_A_BATCH)], [])
        acknowledge(str(batch))
    writer.disconnect()


def _after_ledger(folder: Path, acknowledged: list[str]) -> Violations:
    store = SqliteStore(folder / LEDGER_FILE, rows.SCHEMA, timeout_s=5)
    store.create()
    connection = store.connect()
    found = [each for (each,) in connection.execute("SELECT prediction_id FROM predictions ORDER BY number")]
    (state,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    wrong = [] if state == "ok" else [f"the file is damaged: {state}"]
    whole = [f"prediction-{number}" for number in range(NUM_BATCHES * ROWS_OF_A_BATCH)]
    if len(found) % ROWS_OF_A_BATCH or found != whole[: len(found)]:
        wrong.append(f"a batch is torn: {found}")
    if len(found) < len(acknowledged) * ROWS_OF_A_BATCH:
        wrong.append(f"{len(acknowledged)} batches were acknowledged, {len(found)} rows are there")
    _ledger(folder, lambda _: None)  # sent again: entered once
    connection = store.connect()
    (num,) = connection.execute("SELECT count(*) FROM predictions").fetchone()
    connection.close()
    return [*wrong, *([] if num == len(whole) else [f"{num} rows after all were sent again"])]


# -------------------------------------------------------------------------------------------------------- checkpoints


NUM_STATES = 6
"""Of an agent without edges: the rows of its table."""


def _agent_at(number: int, term: int) -> AgentCheckpoint:
    return AgentCheckpoint(
        agent_id="swept", mode="learn", costs=None, values_SA=[[float(number)] * 3] * NUM_STATES,
        visits_SA=[[number] * 3] * NUM_STATES, lanes={}, positions={},
        last_applied_id=f"{number}-0", term=term, saved_at=MOMENT,
    )  # fmt: skip


def _before_agent(folder: Path) -> None:
    _agent_at(0, 1).save(folder / "agent")


def _agent(folder: Path, acknowledge: Acknowledge) -> None:
    for number, term in ((1, 1), (2, 1), (3, 2)):
        _agent_at(number, term).save(folder / "agent")
        acknowledge(f"{number}-0")


def _after_agent(folder: Path, acknowledged: list[str]) -> Violations:
    found = AgentCheckpoint.load(folder / "agent")
    if found is None or found.last_applied_id is None:
        return ["the agent has forgotten everything"]
    at, least = int(found.last_applied_id.split("-")[0]), len(acknowledged)
    wrong = [] if least <= at <= least + 1 else [f"the checkpoint is of {at}, {least} were acknowledged"]
    wrong += [] if found.values_SA == [[float(at)] * 3] * NUM_STATES else ["table and id are of different checkpoints"]
    _agent_at(9, 3).save(folder / "agent")
    left = [each.name for each in (folder / "agent").iterdir() if each.name.startswith("checkpoint")]
    return [*wrong, *([] if len(left) == 1 else [f"{left} are left"])]


def _training(folder: Path) -> TrainingCheckpoint:
    return TrainingCheckpoint(folder / "checkpoint", fingerprint={"job_id": "swept"})


def _training_at(folder: Path, number: int) -> bool:
    return _training(folder).save({"weights": np.full(500, number, np.float32)}, {"epoch": number})


def _before_training(folder: Path) -> None:
    _training_at(folder, 0)


def _train(folder: Path, acknowledge: Acknowledge) -> None:
    for number in (1, 2):
        if _training_at(folder, number):
            acknowledge(str(number))


def _after_training(folder: Path, acknowledged: list[str]) -> Violations:
    saved = _training(folder).load()
    if saved is None:
        return ["the training begins anew"]
    at, least = saved.state["epoch"], len(acknowledged)
    wrong = [] if least <= at <= least + 1 else [f"the checkpoint is of epoch {at}, {least} were acknowledged"]
    wrong += [] if (saved.arrays["weights"] == at).all() else ["weights and epoch are of different checkpoints"]
    _training_at(folder, 9)
    left = list((folder / "checkpoint").iterdir())
    return [*wrong, *([] if len(left) == 1 else [f"{[each.name for each in left]} are left"])]


# -------------------------------------------------------------------------------------------------- jobs, keys, audit


def _spec(number: int) -> JobSpec:
    return JobSpec(
        id=f"job-{number}", kind=JobKind.TRAIN, request={"name": "x" * 500}, plan={}, created_at=MOMENT,
        correlation_id="sweep",
    )  # fmt: skip


def _job(folder: Path, acknowledge: Acknowledge) -> None:
    job = JobFolder.create(folder / "jobs", _spec(1))
    acknowledge("created")
    job.append("started", pid=1, attempt=1)
    job.append("succeeded", result={"model_id": MODEL})
    acknowledge("succeeded")


def _after_job(folder: Path, acknowledged: list[str]) -> Violations:
    found = list(JobStore(folder / "jobs").folders()) if (folder / "jobs").exists() else []
    if not found:
        JobFolder.create(folder / "jobs", _spec(1))
        return ["an acknowledged job is gone"] if acknowledged else []
    job = found[0].job()
    wrong = [f"{len(found)} jobs"] if len(found) != 1 else []
    if "succeeded" in acknowledged and job.status != "succeeded":
        wrong.append(f"an acknowledged end is {job.status}")
    if not job.status.is_final:
        found[0].append("failed", error_code="WORKER_LOST")
        wrong += [] if JobFolder(found[0].path).job().status == "failed" else ["the log cannot go on"]
    return wrong


def _keys(folder: Path, acknowledge: Acknowledge) -> None:
    for client in ("first", "second"):
        _, record = KeyFile(folder / KEYS_FILE).create(client, [Scope.READ])
        acknowledge(f"made {record.id}")
    _, record = KeyFile(folder / KEYS_FILE).create("third", [Scope.READ])
    KeyFile(folder / KEYS_FILE).revoke(record.id)
    acknowledge(f"revoked {record.id}")


def _after_keys(folder: Path, acknowledged: list[str]) -> Violations:
    found = {each.id: each for each in KeyFile(folder / KEYS_FILE).read()}
    wrong = []
    for each in acknowledged:
        identifier = each.split()[1]
        if identifier not in found:
            wrong.append("an acknowledged key is gone")
        elif each.startswith("revoked") and found[identifier].revoked_at is None:
            wrong.append("a revoked key lives")
    KeyFile(folder / KEYS_FILE).create("fourth", [Scope.READ])
    return wrong


def _audit(folder: Path, acknowledge: Acknowledge) -> None:
    log = AuditLog(folder / AUDIT_FILE)
    for number in range(3):
        head = log.append("noted", f"change {number}", Who("sweep"), after={"text": "x" * 300})
        acknowledge(head.hash)


def _after_audit(folder: Path, acknowledged: list[str]) -> Violations:
    log = AuditLog(folder / AUDIT_FILE)
    there = {each.hash for each in log.newest(num=10)}
    wrong = ["an acknowledged entry is gone"] if not set(acknowledged) <= there else []
    log.append("noted", "after the kill", Who("sweep"))
    return [*wrong, *(each.problem for each in verify(folder / AUDIT_FILE).faults)]


# ---------------------------------------------------------------------------------------------------------- migration

NOTES = Table("notes", {"id": "INTEGER PRIMARY KEY", "text": "TEXT NOT NULL"})
LATER = Table("notes", {**NOTES.columns, "length": "INTEGER", "author": "TEXT"})
FIRST = Schema("sort of notes", (NOTES,))
THIRD = Schema(
    "sort of notes", (LATER,),
    migrations={
        2: ("ALTER TABLE notes ADD COLUMN length INTEGER", "UPDATE notes SET length = length(text)"),
        3: ("ALTER TABLE notes ADD COLUMN author TEXT", "UPDATE notes SET author = 'nobody'"),
    },
)  # fmt: skip


def _before_migration(folder: Path) -> None:
    store = SqliteStore(folder / "notes.db", FIRST, timeout_s=5)
    store.create()
    connection = store.connect()
    with transaction(connection):
        connection.executemany("INSERT INTO notes (text) VALUES (?)", [("x" * number,) for number in range(200)])
    connection.close()


def _migrate(folder: Path, acknowledge: Acknowledge) -> None:
    SqliteStore(folder / "notes.db", THIRD, timeout_s=5).connect().close()
    acknowledge("migrated")


def _after_migration(folder: Path, acknowledged: list[str]) -> Violations:
    connection = SqliteStore(folder / "notes.db", THIRD, timeout_s=5).connect()
    found = connection.execute("SELECT text, length, author FROM notes ORDER BY id").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    expected = [("x" * number, number, "nobody") for number in range(200)]
    wrong = [] if found == expected else ["rows are lost or half migrated"]
    return [*wrong, *([] if version == THIRD.version else [f"the file is of version {version}"])]


def _nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def _below_package(*names: str) -> tuple[str, ...]:
    return tuple(f"ml_workbench_service/{name}" for name in names)


STORE = ("common_lib/sqlite_store.py",)
STEPS: Mapping[str, Step] = {
    "publish": Step(_before_publish, _publish, _after_publish, _below_package(*FILES)),
    "purge": Step(_before_purge, _purge, _after_purge, _below_package(*FILES)),
    "deploy": Step(_before_deploy, _deploy, _after_deploy, _below_package("workflows/deploy.py", *HISTORY)),
    "undeploy": Step(_before_deploy, _undeploy, _after_undeploy, _below_package("workflows/undeploy.py", *HISTORY)),
    "ledger": Step(
        _nothing, _ledger, _after_ledger, STORE + _below_package("integrations/prediction_ledger/writer.py")
    ),
    "agent's checkpoint": Step(_before_agent, _agent, _after_agent, _below_package("agents/checkpoint.py")),
    "training's checkpoint": Step(
        _before_training, _train, _after_training, _below_package("learning/interfaces/checkpoint.py")
    ),
    "job": Step(
        _nothing, _job, _after_job, _below_package("jobs/job.py", "jobs/event_log.py", "jobs/durable_files.py")
    ),
    "keys": Step(_nothing, _keys, _after_keys, _below_package("access/keys.py", "jobs/durable_files.py")),
    "audit log": Step(_nothing, _audit, _after_audit, _below_package("access/audit_log.py", "jobs/durable_files.py")),
    "migration": Step(_before_migration, _migrate, _after_migration, STORE),
}
"""By name, but for the tracker, which needs MLflow (`tracking.py`)."""
