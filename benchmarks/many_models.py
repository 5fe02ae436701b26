"""State folders with many models and jobs: one trained, searched and deployed in earnest, copied under other names.

Every copy is a real one: a bundle with a card and manifest of its own, a job folder with its own request, event log and
trials, a line in the multiple-testing log, a deployment in the model's history. Files that no copy changes are links.
"""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.running_service import started
from benchmarks.small_training import write_bars
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, digest_of, write_manifest
from ml_workbench_service.learning.bundle.signatures import Signatures

TRAIN: dict[str, Any] = {
    "name": "Pattern",
    "model_id": "pattern",
    "model_type": "time_series",
    "family": "linear",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2023-01-01T00:00:00Z",
}
SEARCH: dict[str, Any] = {
    "name": "Pattern's search",
    "base": {**TRAIN, "model_id": "searched"},
    "search_space": {"learning_rate": {"choices": [0.001, 0.01, 0.1]}},
    "num_trials": 3,
}
FIRST = datetime(2026, 1, 5, 6, tzinfo=UTC)
EXPERIMENT_EVERY, DEPLOYED_EVERY, NUM_DEPLOYMENTS = 10, 5, 3
"""Every tenth job is an experiment; every fifth model was deployed, three times."""
OWN_FILES = ("card.json", "manifest.json")


@dataclass(frozen=True)
class Places:
    """The folders of one service."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What tells a service of them."""
        return {"STATE_DIR": str(self.folder / "state"), "MODEL_REGISTRY_PATH": str(self.folder / "registry")}

    @property
    def jobs(self) -> Path:
        """All job folders."""
        return self.folder / "state" / "jobs"

    @property
    def models(self) -> Path:
        """The registry."""
        return self.folder / "registry"


def make_pattern(folder: Path) -> Places:
    """Trains one model, searches for another, deploys the first."""
    places = Places(folder)
    bars = folder / "bars"
    bars.mkdir(parents=True)
    end = {"end_date": iso(write_bars(bars / "EURUSD_1h.csv"))}
    store = {"FEATURE_STORE_URL": bars.as_uri()}  # verdicts on the simulated sample are no tests, and never change
    with started(folder, AGENT_AUTOSTART="false", PAGE="false", **store, **places.variables) as service:
        service.train(TRAIN | end)
        service.job("/api/v1/experiments", SEARCH | {"base": SEARCH["base"] | end})
        service.deploy("pattern")
    return places


def multiply(pattern: Places, folder: Path, *, num_models: int, num_jobs: int) -> Places:
    """So many models and jobs (a training for each model among them), newest last."""
    places = Places(folder)
    places.jobs.mkdir(parents=True)
    source = pattern.models / "pattern" / "1.0.0"
    card = json.loads((source / "card.json").read_text(encoding="utf-8"))
    trained = pattern.jobs / card["lineage"]["job_id"]
    (searched,) = [each for each in pattern.jobs.iterdir() if _kind(each) == "experiment"]
    job_ids = [f"{FIRST + timedelta(minutes=5 * number):%Y%m%dT%H%M%S}-{number:08x}" for number in range(num_jobs)]
    trainings = [each for number, each in enumerate(job_ids) if (number + 1) % EXPERIMENT_EVERY]
    for number, job_id in enumerate(job_ids):
        of = trained if (number + 1) % EXPERIMENT_EVERY else searched
        _copy_job(of, places.jobs / job_id, number)
    for number in range(num_models):
        _copy_model(source, places.models / f"model_{number:04}" / "1.0.0", card, trainings[number], number)
        if number % DEPLOYED_EVERY == 0:
            _copy_deployments(pattern.models / "pattern" / "deployments.jsonl", places, f"model_{number:04}")
    shutil.copy(pattern.folder / "state" / "ledgers.db", folder / "state" / "ledgers.db")
    _copy_hypotheses(folder / "state" / "ledgers.db", card["lineage"]["job_id"], trainings[:num_models])
    return places


def multiply_trained(places: Places, model_id: str, *, num: int) -> None:
    """So many copies of a model and its training, in the folders where it was trained."""
    source = places.models / model_id / "1.0.0"
    card = json.loads((source / "card.json").read_text(encoding="utf-8"))
    trained = places.jobs / card["lineage"]["job_id"]
    for number in range(num):
        job_id = f"{FIRST + timedelta(minutes=5 * number):%Y%m%dT%H%M%S}-{number:08x}"
        _copy_job(trained, places.jobs / job_id, number)
        _copy_model(source, places.models / f"copy_{number:04}" / "1.0.0", card, job_id, number)


def _kind(folder: Path) -> str:
    request = folder / "request.json"
    return str(json.loads(request.read_text(encoding="utf-8"))["kind"]) if request.is_file() else ""


def _copy_job(source: Path, target: Path, number: int) -> None:
    shutil.copytree(source, target, copy_function=os.link)
    spec = json.loads((target / "request.json").read_text(encoding="utf-8"))
    spec |= {"id": target.name, "created_at": iso(FIRST + timedelta(minutes=5 * number)), "idempotency_key": None}
    spec["request"]["name"] = f"Copy {number}"
    _replace(target / "request.json", json.dumps(spec))


def _copy_model(source: Path, target: Path, card: dict[str, Any], job_id: str, number: int) -> None:
    shutil.copytree(source, target, copy_function=os.link)
    plain = {
        **card,
        "id": target.parent.name,
        "name": f"Copy {number}",
        "created_at": iso(FIRST + timedelta(minutes=5 * number)),
        "lineage": {**card["lineage"], "job_id": job_id},
    }
    for name in OWN_FILES:
        (target / name).unlink()
    (target / "card.json").write_text(json.dumps(plain), encoding="utf-8")
    (target / SIGNATURE_FILE).unlink(missing_ok=True)  # the source's: a link to it must stay as it is
    signed = ModelCard.model_validate({**plain, "digest": write_manifest(target)})
    Signatures(target.parents[2] / "state", holds_key=True).sign(target, signed)


def _copy_deployments(source: Path, places: Places, model_id: str) -> None:
    line = json.loads(source.read_text(encoding="utf-8").splitlines()[-1])
    home = places.models / model_id
    lines = [
        json.dumps(
            {
                **line,
                "id": f"{model_id.replace('_', '-')}-{turn}",
                "model_id": model_id,
                "digest": digest_of(home / "1.0.0"),
                "created_at": iso(FIRST + timedelta(days=turn)),
                "live_at": iso(FIRST + timedelta(days=turn, seconds=1)),
            }
        )
        for turn in range(NUM_DEPLOYMENTS)
    ]
    (home / "deployments.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _copy_hypotheses(file: Path, job_id: str, copies: list[str]) -> None:
    """What the pattern's evaluation told, once for each copy and under a recipe of its own."""
    with closing(sqlite3.connect(file)) as connection, connection:
        (number,) = connection.execute(
            "SELECT number FROM readings WHERE kind = 'look' AND id = ?", (job_id,)
        ).fetchone()
        for copy in copies:
            connection.execute(
                "INSERT INTO readings (kind, id, subject, start_ms, end_ms, at, model_id, sharpe, daily) "
                "SELECT kind, ?, subject, start_ms, end_ms, at, model_id, sharpe, daily FROM readings WHERE number = ?",
                (copy, number),
            )
            (new,) = connection.execute("SELECT number FROM readings WHERE id = ?", (copy,)).fetchone()
            connection.execute(
                "INSERT INTO reading_symbols SELECT symbol, ? FROM reading_symbols WHERE number = ?", (new, number)
            )
            connection.execute("INSERT INTO hypotheses VALUES (?, ?)", (new, f"recipe of {copy}"))
            connection.execute(
                "INSERT INTO hypothesis_series SELECT ?, digest FROM hypothesis_series WHERE number = ?", (new, number)
            )
            connection.execute(
                "INSERT INTO results (number, p_value, from_ms, until_ms, own_columns, differentials) "
                "SELECT ?, p_value, from_ms, until_ms, own_columns, differentials FROM results WHERE number = ?",
                (new, number),
            )


def _replace(file: Path, text: str) -> None:
    """Instead of the link."""
    file.unlink()
    file.write_text(text, encoding="utf-8")
