"""Measures a running service of 1,000 models: an answer in a predict worker, agent, lists, loads, memory.

One predict worker, so that worker, control process, redis-server and agent each have a process whose time is read.
A GRU of 64 units is trained once and copied; 100 copies are live. Each load runs in slices, and the least that a slice
took is kept beside the mean: code whose caches were emptied takes several times as long.
"""

import http.client
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import startup
from benchmarks.many_models import FIRST, Places, multiply_trained
from benchmarks.predict_workers import numbered, whole
from benchmarks.running_service import RunningService, started
from benchmarks.serving import TRAIN, pid_of, window
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle.manifest import digest_of
from ml_workbench_service.serving.model import load_model
from studies.scaling.load import Asker, answer_times
from studies.scaling.processor_time import fitted, share_of_a_core, spent
from tools.interleaved_rounds import WORKPLACE

NUM_MODELS, NUM_LIVE = 1_000, 100
SECONDS, NUM_SLICES, NUM_SINGLE = 4.0, 8, 600
LONGEST_START_S = 400.0
FEWEST = 8
"""Answers of a slice that says something."""
PATTERN = "scaled"
RECORDS_A_WRITE = 16
"""Of a busy loop (`serving/publisher.py`, `LINGER_S`), and so in an agent's turn behind it."""
LOADS = (0.3, 0.6)
"""Of what the worker answers when it is always busy, by the clock; held against the model."""


@dataclass(frozen=True)
class Asked:
    """A load that was put on the worker, and what it cost.

    Attributes:
        num: answers.
        worker_s, control_s, redis_s, agent_s: processor time of each process for one answer.
        waited_s: how long the worker waited for a core, for one answer.
        least_s, least_agent_s: of worker and agent, in the slice in which it was least.
        run_size: single questions that shared a run, in the mean.
        share: of a core that a counting loop got beside it.
    """

    name: str
    num_connections: int
    num_models: int
    per_s: float
    num: int
    worker_s: float
    control_s: float
    redis_s: float
    agent_s: float
    waited_s: float
    least_s: float
    least_agent_s: float
    run_size: float
    p50_ms: float
    p99_ms: float
    mean_ms: float
    share: float


def service(say: Callable[[str], None]) -> tuple[dict[str, float], list[Asked]]:
    """All constants of this file by name, and every load."""
    places = _places(say)
    with tempfile.TemporaryDirectory() as folder:
        here = Places(Path(folder))
        shutil.copytree(places.folder, here.folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        variables = {**here.variables, "PAGE": "false", "PREDICT_WORKERS": "1"}
        startup.MOST_SECONDS = LONGEST_START_S
        begun = time.perf_counter()
        with started(here.folder, **variables) as running:
            start_clock_s = time.perf_counter() - begun
            say(f"  1,000 models, {NUM_LIVE} of them live: ready after {start_clock_s:.0f} s")
            found, loads = _asked(running, say)
        found["process_mb"] = _bare_mb(Path(folder) / "bare")
        found["version_mb"] = (found["resident_mb"] - found["process_mb"]) / (NUM_LIVE + 1)
        return found | {"load_s": _load_s(here), "start_clock_s": start_clock_s}, loads


def _places(say: Callable[[str], None]) -> Places:
    """State and registry with one trained model and its copies, made once."""
    places = Places(WORKPLACE / "scaling")
    if (places.folder / "done").exists():
        return places
    shutil.rmtree(places.folder, ignore_errors=True)
    say("  a model is trained, and copied")
    with started(places.folder, PAGE="false", AGENT_AUTOSTART="false", **places.variables) as running:
        running.train({**TRAIN, "model_id": PATTERN})
        running.deploy(PATTERN)
    multiply_trained(places, PATTERN, num=NUM_MODELS - 1)
    line = json.loads((places.models / PATTERN / "deployments.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    for number in range(NUM_LIVE):
        home = places.models / f"copy_{number:04}"
        deployed = {
            **line, "id": f"copy-{number:04}-0", "model_id": home.name, "digest": digest_of(home / "1.0.0"),
            "created_at": iso(FIRST), "live_at": iso(FIRST), "monitoring_level": "medium",
        }  # fmt: skip
        (home / "deployments.jsonl").write_text(json.dumps(deployed) + "\n", encoding="utf-8")
    (places.folder / "done").touch()
    return places


class _Processes:
    """The four processes of one service."""

    def __init__(self, running: RunningService) -> None:
        process = psutil.Process(pid_of(running))
        if "--number" in process.cmdline():  # the worker holds the same socket
            process = process.parents()[0]
        deadline = time.monotonic() + 120
        while not whole(running, 1) and time.monotonic() < deadline:
            time.sleep(0.1)
        children = {each.pid: " ".join(each.cmdline()) for each in process.children(recursive=True)}
        self.control, self.worker = process.pid, numbered(process)[0].pid
        self.redis = next(pid for pid, line in children.items() if "redis-server" in line)
        self.agent = next((pid for pid, line in children.items() if "agent" in line), 0)

    def spent(self) -> np.ndarray:
        """Processor time of worker, control process, redis-server and agent, and the worker's wait for a core."""
        worker = spent(self.worker)
        others = [spent(pid).run_s if pid else 0.0 for pid in (self.control, self.redis, self.agent)]
        return np.array([worker.run_s, *others, worker.waited_s])


def _asked(running: RunningService, say: Callable[[str], None]) -> tuple[dict[str, float], list[Asked]]:
    first_list_s = _list_s(running, num=1)
    processes = _Processes(running)
    port = int(running.address.rpartition(":")[2])
    requests = [_request(port, f"copy_{number:04}") for number in range(NUM_LIVE)]
    for each in requests:  # every version has been asked
        answer_times(port, [each], num_connections=1, seconds=0.01)
    cases = [(1, requests[:1]), (8, requests[:1]), (32, requests[:1]), (8, requests), (32, requests)]
    loads = [_load(running, processes, asked, num_connections=num, name="as fast as answered") for num, asked in cases]
    for asked, full in ((requests[:1], loads[2]), (requests, loads[4])):
        for share in LOADS:
            per_s = share / (full.worker_s + full.waited_s)
            loads.append(_load(running, processes, asked, num_connections=64, name="Poisson", per_s=per_s))
    for each in loads:
        say(f"  {each}")
    found = {
        **_of_an_answer(loads),
        "answer_cv2": _spread(port, requests[0], processes.worker),
        "first_list_s": first_list_s,
        "list_s": _list_s(running, num=20),
        "route_s": _route_s(running, processes.control),
        "resident_mb": _resident_mb(processes.worker),
    }
    return found, loads


def _of_an_answer(loads: Sequence[Asked]) -> dict[str, float]:
    """What a run and a question cost a worker, a turn and a record an agent."""
    closed = [each for each in loads if each.per_s == 0.0]
    ones = [1.0] * len(closed)
    run_s, question_s = fitted([each.least_s for each in closed], [1 / each.run_size for each in closed], ones)
    turns = [1.0 if each.num_connections == 1 else 1 / RECORDS_A_WRITE for each in closed]
    agent_call_s, agent_record_s = fitted([each.least_agent_s for each in closed], turns, ones)
    return {"run_s": run_s, "question_s": question_s, "agent_call_s": agent_call_s, "agent_record_s": agent_record_s}


def _request(port: int, model_id: str) -> bytes:
    body = json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": window(), "price": 1.1021}).encode()
    head = f"POST /api/v1/models/{model_id}/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _load(
    running: RunningService, processes: _Processes, asked: Sequence[bytes], *, num_connections: int, name: str,
    per_s: float = 0.0,
) -> Asked:  # fmt: skip
    port = int(running.address.rpartition(":")[2])
    sizes, begun, kept, slices = _run_sizes(running), processes.spent(), [], []
    for number in range(NUM_SLICES):
        before = processes.spent()
        seconds = SECONDS / NUM_SLICES
        kept.append(
            answer_times(port, asked, num_connections=num_connections, seconds=seconds, per_s=per_s, seed=number)
        )
        time.sleep(0.1)
        slices.append((processes.spent() - before) / max(len(kept[-1]), 1))
    time.sleep(1.5)  # what was handed over and published is applied, and reported
    took = np.concatenate(kept)
    worker_s, control_s, redis_s, agent_s, waited_s = (processes.spent() - begun) / len(took)
    least = np.min([each for each, answers in zip(slices, kept, strict=True) if len(answers) >= FEWEST], axis=0)
    num_runs, num_together = np.subtract(_run_sizes(running), sizes)
    return Asked(
        name, num_connections, len(asked), per_s, len(took), *map(float, (worker_s, control_s, redis_s, agent_s)),
        float(waited_s), float(least[0]), float(least[3]), float(num_together / max(num_runs, 1)), *_quantiles_ms(took),
        share_of_a_core(),
    )  # fmt: skip


def _quantiles_ms(took: np.ndarray) -> tuple[float, float, float]:
    p50, p99 = np.quantile(took, (0.5, 0.99)) * 1e3
    return float(p50), float(p99), float(took.mean() * 1e3)


def _run_sizes(running: RunningService) -> tuple[float, float]:
    """Runs of networks so far, and questions in them."""
    text = _text(running, "/metrics")
    found = [
        re.search(rf"^ml_workbench_inference_batch_size_{each}\S* (\S+)$", text, re.MULTILINE)
        for each in ("count", "sum")
    ]
    return tuple(0.0 if each is None else float(each[1]) for each in found)  # type: ignore[return-value]


def _spread(port: int, request: bytes, pid: int) -> float:
    """Squared coefficient of variation of one answer's processor time, asked one after the other."""
    costs: list[float] = []
    connection = Asker(port, request)
    for _ in range(NUM_SINGLE):
        before = spent(pid)
        connection.ask()
        while not connection.read():
            pass
        costs.append(spent(pid).since(before).run_s)
    connection.socket.close()
    kept = np.asarray(costs[NUM_SINGLE // 10 :])
    return float(kept.var() / kept.mean() ** 2)


def _list_s(running: RunningService, *, num: int) -> float:
    """Least time by the clock of a page of 50 models."""
    took = []
    for _ in range(num):
        begun = time.perf_counter()
        _text(running, "/api/v1/models?limit=50")
        took.append(time.perf_counter() - begun)
    return min(took)


def _route_s(running: RunningService, pid: int, *, num: int = 150) -> float:
    """Processor time of the control process for a small request of FastAPI's, passed on; the least tenth's."""
    costs = []
    for _ in range(num):
        before = spent(pid)
        _text(running, "/api/v1/jobs?limit=1")
        costs.append(spent(pid).since(before).run_s)
    return float(np.quantile(costs, 0.1))


def _text(running: RunningService, path: str, *, num_tries: int = 6) -> str:
    """What is answered; a 503 of a service that has no core for the moment is asked again."""
    place = running.address.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=120)
    connection.request("GET", path)
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    if answer.status == 503 and num_tries > 1:
        time.sleep(2.0)
        return _text(running, path, num_tries=num_tries - 1)
    if answer.status != 200:
        raise SystemExit(f"{path} answered {answer.status} {said[:300]}")
    return said


def _resident_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 1e6)


def _bare_mb(folder: Path) -> float:
    """A predict worker without any version."""
    with started(folder, PAGE="false", PREDICT_WORKERS="1") as running:
        return _resident_mb(_Processes(running).worker)


def _load_s(places: Places, *, num: int = 60) -> float:
    """Processor time of a bundle that is verified and opened."""
    registry = FolderModelRegistry(places.models, live_version=lambda _: None)
    opened: list[Any] = []
    costs = []
    for number in range(num):
        model_id = f"copy_{number:04}"
        begun = time.process_time()
        card = registry.card(model_id, "1.0.0")
        opened.append(load_model(registry.folder(model_id, "1.0.0"), card))
        costs.append(time.process_time() - begun)
    return float(np.median(costs))
