"""What a service says of the state that it finds, in the words of the API, and whether two versions say the same.

`write.py` wrote down with it what version 0.1.0 said; the test asks today's code the same.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from tests.service_process import ServiceProcess

DATA = Path(__file__).parent / "data"
NOWHERE = {"FEATURE_STORE_URL": "http://127.0.0.1:9", "REDIS_URL": "redis://127.0.0.1:9"}
"""Addresses at which nobody answers: what such a service shows comes from its folders, and nothing is settled."""
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
"""Of /proc/cpuinfo, by which onnxruntime chooses its kernels, and so the order in which they add."""
TOLERANCE = 1e-5
"""On another class of processor: the largest difference in units of the label scale."""
VOLATILE = ("prediction_id", "timestamp")
LIMIT_S = 60.0


def processor() -> dict[str, Any]:
    """What the bits of an answer depend on beside the graph."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return {"flags": [flag for flag in FLAGS if flag in words], "onnxruntime": onnxruntime.__version__}


@contextmanager
def service_over_copy(folder: Path, **environment: str) -> Iterator[ServiceProcess]:
    """A service over copies of state and registry."""
    shutil.copytree(DATA / "state", folder / "state")
    shutil.copytree(DATA / "registry", folder / "registry")
    service = ServiceProcess(folder, **environment)
    try:
        yield service.start()
    finally:
        service.close()


def shown(service: ServiceProcess) -> dict[str, Any]:
    """Everything that is listed: models, jobs with the number of their events, experiments, deployments and agents."""

    def get(path: str, **query: Any) -> Any:
        return service.client.get(f"/api/v1/{path}", params=query).raise_for_status().json()

    models = [model["id"] for model in get("models", limit=200)["models"]]
    cards = {model: get(f"models/{model}/versions")["versions"] for model in models}
    jobs = get("jobs", limit=200)["jobs"]
    events = {job["id"]: service.client.get(f"/api/v1/jobs/{job['id']}/events").text for job in jobs}
    experiments = [job["id"] for job in jobs if job["kind"] == "experiment"]
    agents = get("agents", limit=200)["agents"]
    return {
        "versions": {model: {card["version"]: facts_of(card) for card in cards[model]} for model in models},
        "jobs": jobs,
        "num_events": {job: text.count("\nevent: ") + text.startswith("event: ") for job, text in events.items()},
        "experiments": {job: get(f"experiments/{job}") for job in experiments},
        "deployments": get("deployments", limit=200)["deployments"],
        "agents": [{name: value for name, value in agent.items() if name != "status"} for agent in agents],
        "predictions": get("predictions", limit=200)["predictions"],
    }


def facts_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Of a card what its file does not say, or what is worth a second look."""
    names = ("status", "digest", "type", "family", "outputs", "precision", "expires_at", "metrics")
    return {name: card[name] for name in names}


def answer(service: ServiceProcess, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The record about one question, asked at the moment it is about, without what differs each time."""
    service.clock.set(datetime.fromisoformat(asked["body"]["as_of"]))
    path = f"/api/v1/models/{asked['model_id']}/predict"
    record: dict[str, Any] = service.client.post(path, json=asked["body"]).raise_for_status().json()
    record["metadata"].pop("correlation_id")
    return {name: value for name, value in record.items() if name not in VOLATILE}


def accounting_at_rest(service: ServiceProcess) -> dict[str, Any]:
    """`GET /queue` once every group has settled everything, without ages."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        accounting: dict[str, Any] = service.client.get("/api/v1/queue").raise_for_status().json()
        if accounting["groups"] and not any(group["pending"] + group["undelivered"] for group in accounting["groups"]):
            return without_times(accounting)
        time.sleep(0.1)
    raise AssertionError(f"the agents did not come to rest in {LIMIT_S} s: {accounting}")


def without_times(accounting: dict[str, Any]) -> dict[str, Any]:
    """The queue's accounting without what depends on the clock: ages, and latencies of the default group and of all."""
    groups = [{name: each for name, each in group.items() if name != "latency"} for group in accounting["groups"]]
    kept = {name: each for name, each in accounting.items() if name not in ("oldest_age_s", "latency")}
    return kept | {"groups": groups}


def difference(found: Any, recorded: Any, *, exact: bool = True, scale: float = 0.0, at: str = "") -> str:
    """Where the two differ, '' where nowhere; what a later version says beside the recorded keys is no difference.

    Args:
        exact: numbers agree to the bit; otherwise within `TOLERANCE` of themselves or of the scale.
    """
    if isinstance(recorded, dict) and isinstance(found, dict):
        pairs = [(f"{at}.{name}", found.get(name, "nothing"), each) for name, each in recorded.items()]
    elif isinstance(recorded, list) and isinstance(found, list) and len(found) == len(recorded):
        pairs = [(f"{at}[{place}]", *both) for place, both in enumerate(zip(found, recorded, strict=True))]
    elif isinstance(recorded, float) and isinstance(found, float) and not exact:
        is_near = math.isclose(found, recorded, rel_tol=10 * TOLERANCE, abs_tol=TOLERANCE * scale)
        return "" if is_near else f"{at}: {found!r} is not near {recorded!r}"
    else:
        return "" if found == recorded else f"{at}: {str(found)[:200]} was {str(recorded)[:200]}"
    told = (difference(now, then, exact=exact, scale=scale, at=place) for place, now, then in pairs)
    return next((text for text in told if text), "")


def same_numbers(found: np.ndarray, recorded: np.ndarray, *, exact: bool) -> bool:
    """To the bit, or within `TOLERANCE`: outputs of a network are in units of the label scale."""
    if exact:
        return found.dtype == recorded.dtype and found.tobytes() == recorded.tobytes()
    return bool(np.allclose(found, recorded, rtol=TOLERANCE, atol=TOLERANCE))


def load(name: str) -> Any:
    """A JSON file of the data."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def checkpoints(state: Path) -> dict[str, Any]:
    """What each agent knows, without what depends on the clock or on how often its process was started."""
    volatile = ("saved_at", "term", "stream_epoch")
    found = {}
    for folder in sorted((state / "agents").iterdir()):
        checkpoint = Checkpoint.load(folder)
        assert checkpoint is not None, f"agent {folder.name} has no checkpoint"
        plain = checkpoint.model_dump(mode="json")
        found[folder.name] = {name: each for name, each in plain.items() if name not in volatile}
    return found


def num_decisions(state: Path) -> int:
    """Entries of the decisions' stream, by a server over the folder."""
    server = EmbeddedRedis(state)
    stream = DecisionStream(server.start())
    try:
        return len(stream.read())
    finally:
        stream.close()
        server.stop()
