"""A populated state: two models of two versions, a search, a replay, an agent that has learnt, answers, keys, ends."""

from pathlib import Path
from typing import Any

import httpx

from benchmarks.many_models import SEARCH, TRAIN
from benchmarks.running_service import RunningService, started
from benchmarks.small_training import write_bars
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.contracts.contract import iso

REPLAY = {
    "model_id": "pattern", "symbols": ["EUR/USD"], "start_date": "2024-03-04T00:00:00Z",
    "end_date": "2024-03-09T00:00:00Z",
}  # fmt: skip
NUM_ANSWERS = 40


def variables(folder: Path) -> dict[str, Any]:
    """What tells a service of the folders of a populated state, which has an agent and no page."""
    return {
        "STATE_DIR": str(folder / "state"), "MODEL_REGISTRY_PATH": str(folder / "registry"),
        "LOG_DIR": str(folder / "logs"), "FEATURE_STORE_URL": (folder / "bars").as_uri(), "PAGE": "false",
    }  # fmt: skip


def populate(folder: Path) -> str:
    """Makes the state in a new folder, by a real service; the key that opens it."""
    (folder / "bars").mkdir(parents=True)
    end = {"end_date": iso(write_bars(folder / "bars" / "EURUSD_1h.csv"))}
    with started(folder, **variables(folder)) as service:
        for model_id in ("pattern", "other"):
            for features in (["return_1", "rsi_14"], ["return_1", "sma_20"]):
                service.train({**TRAIN, **end, "model_id": model_id, "features": features})
        service.job("/api/v1/experiments", {**SEARCH, "base": {**SEARCH["base"], **end}, "num_trials": 2})
        _live(service, "pattern", "1.0.0")
        _live(service, "other", "1.0.0")
        _live(service, "pattern", "1.1.0")
        service.job("/api/v1/replays", REPLAY)
        service.call("DELETE", "/api/v1/models/other/versions/1.1.0")
        service.call("POST", "/api/v1/models/other/undeploy")
        ended = service.call("GET", "/api/v1/jobs?limit=200")["jobs"][-1]["id"]
        _removed(service.address, f"/api/v1/jobs/{ended}")
    key, _ = KeyFile(folder / "state" / KEYS_FILE).create("fuzz", [Scope.ADMIN])
    return key


def client_of(address: str, key: str) -> httpx.Client:
    """One connection that holds the key."""
    return httpx.Client(base_url=address, headers={"X-API-Key": key}, timeout=60.0)


def _live(service: RunningService, model_id: str, version: str) -> None:
    service.deploy(model_id, version)
    body: dict[str, Any] = {"symbol": "EUR/USD", "timeframe": "1h"}
    for _ in range(NUM_ANSWERS):
        service.call("POST", f"/api/v1/models/{model_id}/predict", body)


def _removed(address: str, path: str) -> None:
    with httpx.Client(base_url=address, timeout=60.0) as client:
        client.delete(path).raise_for_status()
