"""Backward compatibility: everything that version 0.1.0 wrote opens: bundles, jobs, ledgers, checkpoints and queue.

The data in `tests/previous_version/data` were written by that version itself (`write.py` there says how), with what it
said of them. Copies are opened here.
"""

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.sqlite_store import Schema, SqliteStore
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.multiple_testing import PartRead
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.multiple_testing_log import log as multiple_testing_log
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.integrations.prediction_ledger import rows as ledger_rows
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.serving.model import ServedModel, load_model
from tests.previous_version import reading
from tests.redis_server import RedisForTests, installed_servers
from tests.service_process import ServiceProcess

EXPECTED: dict[str, Any] = reading.load("expected.json")
SAME_PROCESSOR = reading.processor() == EXPECTED["processor"]
"""Whether answers agree to the bit; on another class of processor float32 agrees within a tolerance."""
VERSIONS = [(name, version) for name, versions in EXPECTED["shown"]["versions"].items() for version in versions]
EVERYTHING = {"start_ms": 0, "end_ms": 4_102_444_800_000, "at": datetime(2030, 1, 1, tzinfo=UTC), "id": "asked"}

every_version = pytest.mark.parametrize(("model_id", "version"), VERSIONS, ids=["-".join(each) for each in VERSIONS])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service over a copy, whose agents find no queue and whose outcomes nobody settles."""
    with reading.service_over_copy(tmp_path_factory.mktemp("previous"), **reading.NOWHERE) as running:
        yield running


@pytest.fixture(scope="module")
def shown(started: ServiceProcess) -> dict[str, Any]:
    """What it lists of what it found."""
    return reading.shown(started)


@pytest.fixture(scope="module")
def service(started: ServiceProcess, shown: dict[str, Any]) -> ServiceProcess:
    """The same, to be asked: a live version's answers join the ledger, so that it lists first what it found."""
    return started


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A copy of the state folder."""
    return Path(shutil.copytree(reading.DATA / "state", tmp_path / "state"))


def opened(folder: Path, model_id: str, version: str) -> ServedModel:
    """The version from a copy of the registry, as serving loads it."""
    root = Path(shutil.copytree(reading.DATA / "registry", folder / "registry"))
    registry = FolderModelRegistry(root, live_version=DeploymentHistory(root).live_version)
    registry.verify(model_id, version)
    return load_model(registry.folder(model_id, version), registry.card(model_id, version))


def rows_of(database: str, query: str) -> list[dict[str, Any]]:
    """What the previous version wrote, by its own table's names."""
    with closing(sqlite3.connect(f"file:{reading.DATA / 'state' / database}?mode=ro&immutable=1", uri=True)) as found:
        found.row_factory = sqlite3.Row
        return [dict(row) for row in found.execute(query)]


def test_the_data_hold_every_type_of_model_and_an_accepted_int8_graph() -> None:
    facts = [facts for versions in EXPECTED["shown"]["versions"].values() for facts in versions.values()]
    assert {each["type"] for each in facts} == {
        "time_series", "classification", "anomaly_detection", "feature_engineering", "reinforcement_learning",
    }  # fmt: skip
    assert {each["precision"] for each in facts} == {"fp32", "int8"}
    assert {each["status"] for each in facts} == {"experimental", "deployed", "archived"}
    assert {each["status"] for each in EXPECTED["shown"]["jobs"]} == {"succeeded", "failed", "cancelled"}
    assert {each["status"] for each in EXPECTED["shown"]["deployments"]} == {"live", "superseded"}
    assert {each["outcome"]["source"] for each in EXPECTED["shown"]["predictions"]} >= {None, "stream", "caller"}


@every_version
def test_its_networks_say_what_they_said(model_id: str, version: str, tmp_path: Path) -> None:
    model = opened(tmp_path, model_id, version)
    with np.load(reading.DATA / "arrays.npz") as arrays:
        names = ("rows", "positions", "float32", "single")
        rows, positions, float32, single = (arrays[f"{model_id}/{version}/{name}"] for name in names)
    found = model.float32.predict(rows, positions).outputs_NK
    assert reading.same_numbers(found, float32, exact=SAME_PROCESSOR)
    if model.card.precision == "fp32" or SAME_PROCESSOR:
        each = [model.single.predict(rows[[place]], positions[[place]]).outputs_NK for place in range(len(rows))]
        assert reading.same_numbers(np.concatenate(each), single, exact=SAME_PROCESSOR)


@every_version
def test_it_answers_the_same_questions_with_the_same_records(
    model_id: str, version: str, service: ServiceProcess
) -> None:
    questions = [
        each for each in EXPECTED["records"] if (each["model_id"], each["body"]["version"]) == (model_id, version)
    ]
    assert questions
    for asked in questions:
        recorded = asked["record"]
        if recorded["metadata"]["precision"] == "int8" and not SAME_PROCESSOR:
            continue  # its kernels round otherwise there
        found = reading.answer(service, asked)
        scale = max(abs(each) for each in recorded["outputs"].values())
        assert reading.difference(found, recorded, exact=SAME_PROCESSOR, scale=scale) == ""


@pytest.mark.parametrize("what", EXPECTED["shown"])
def test_the_api_shows_what_it_showed(what: str, shown: dict[str, Any]) -> None:
    assert EXPECTED["shown"][what]
    assert reading.difference(shown[what], EXPECTED["shown"][what], at=what) == ""


def test_every_evaluation_and_every_trial_is_still_counted(state: Path) -> None:
    log = SqliteMultipleTestingLog(state / "ledgers.db")
    symbols: dict[int, list[str]] = {}
    for row in rows_of("ledgers.db", "SELECT * FROM reading_symbols ORDER BY symbol"):
        symbols.setdefault(row["number"], []).append(row["symbol"])
    rows = rows_of("ledgers.db", "SELECT * FROM readings ORDER BY number")
    assert {row["kind"] for row in rows} == {"look", "trial"}
    for subject in {row["subject"] for row in rows}:
        part = PartRead(subject=subject, symbols=("EUR/USD", "USD/JPY"), **EVERYTHING)  # type: ignore[arg-type]
        evaluations, trials = (
            [row for row in rows if (row["kind"], row["subject"]) == (kind, subject)] for kind in ("look", "trial")
        )
        assert (log.num_evaluations(part), log.num_trials(part)) == (len(evaluations), len(trials))
        for found, row in zip(log.trials(part), trials, strict=True):
            read = found.read
            assert (read.id, read.start_ms, read.end_ms, read.model_id, found.sharpe) == (
                row["id"], row["start_ms"], row["end_ms"], row["model_id"], row["sharpe"],
            )  # fmt: skip
            assert (list(read.symbols), read.at) == (symbols[row["number"]], datetime.fromisoformat(row["at"]))
            assert found.daily_returns == (json.loads(zlib.decompress(row["daily"])) if row["daily"] else {})


@pytest.mark.parametrize(
    ("file", "schema"), [("predictions.db", ledger_rows.SCHEMA), ("ledgers.db", multiple_testing_log.SCHEMA)]
)
def test_an_earlier_ledger_has_todays_columns_once_it_is_opened(state: Path, file: str, schema: Schema) -> None:
    """Else a column was added without its migration: the file is read, and no row enters it any more."""
    with closing(SqliteStore(state / file, schema, timeout_s=10.0).connect()) as connection:
        schema.check(connection)


def test_the_prediction_ledger_keeps_every_row_with_its_inputs(state: Path) -> None:
    rows = rows_of("predictions.db", "SELECT p.*, s.model_id FROM predictions p JOIN series s ON s.id = p.series")
    ledger = PredictionLedger(state / "predictions.db")
    ledger.start()
    try:
        assert ledger.flush(30.0)
        assert ledger.num_by_state() == {
            name: sum(row["state"] == number for row in rows)
            for number, name in enumerate(("open", "known", "unavailable", "none"))
        }
        for row in rows:
            found = ledger.get(row["prediction_id"])
            kept = (found.model_id, found.price, found.prediction, found.confidence, found.outcome.realised)
            assert kept == tuple(row[name] for name in ("model_id", "price", "prediction", "confidence", "realised"))
        live = ledger.live_rows("price_lstm", "1.1.0", limit=1000)
    finally:
        ledger.close()
    inputs = [row["inputs"] for row in rows if row["model_id"] == "price_lstm"]
    assert sorted(each.tobytes() for each in live.inputs_MF) == sorted(inputs)


@pytest.mark.parametrize("agent_id", EXPECTED["drained"]["agents"])
def test_a_checkpoint_keeps_all_that_the_agent_had_learnt(agent_id: str, state: Path) -> None:
    folder = state / "agents" / agent_id
    (file,) = folder.glob("checkpoint.*.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    found = Checkpoint.load(folder)
    assert found is not None
    assert file.name == f"checkpoint.{found.term}.json"
    assert reading.difference(json.loads(found.model_dump_json()), written) == ""
    assert found.counters.num_applied > 0


@pytest.mark.parametrize("folder", installed_servers().values(), ids=list(installed_servers()))
def test_the_queues_accounting_balances_over_its_append_only_file(
    folder: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    server = RedisForTests(state)
    queue = RedisPredictionQueue(server.url, capacity=100)
    try:
        accounting = queue.accounting()
    finally:
        queue.close()
        server.stop()
    recorded = EXPECTED["queue"]
    assert (accounting.length, accounting.num_dead_letters) == (recorded["length"], 1)
    groups = [json.loads(each.model_dump_json()) for each in accounting.groups]
    assert reading.difference(groups, recorded["groups"]) == ""
    assert all(group.balance == 0 and group.undelivered > 0 for group in accounting.groups)
    assert any(group.pending > 0 and group.dead_lettered > 0 for group in accounting.groups)


def test_its_agents_go_on_and_end_as_they_ended_there(tmp_path: Path) -> None:
    recorded = EXPECTED["drained"]
    with reading.service_over_copy(tmp_path) as service:
        accounting = reading.accounting_at_rest(service)
        letters = service.client.get("/api/v1/queue/dead-letters").json()["dead_letters"]
    assert reading.difference(accounting, recorded["queue"]) == ""
    assert reading.difference(letters, recorded["dead_letters"]) == ""
    assert reading.difference(reading.checkpoints(tmp_path / "state"), recorded["agents"]) == ""
    assert reading.num_decisions(tmp_path / "state") == recorded["num_decisions"]
