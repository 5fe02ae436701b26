"""Serving on one core: requests a second and latency of `/predict`, beside what uvicorn and onnxruntime allow at all.

    python -m benchmarks.serving

The same ONNX graph (a GRU of 64 units) and the same window of 32 rows and 4 features behind each contestant: a bare
ASGI function with orjson, the same behind FastAPI and pydantic, and this service with everything switched on: a key,
validation, novelty, interval, ledger (`monitoring_level` medium), metrics, and publishing to a redis-server with the
agent that applies it. The forecasts are compared before anything is timed.

Servers run on core 0; the load, redis-server and agent on core 1. Closed loop, one and 32 connections, interleaved
rounds; a ratio is taken within its round, and its spread over the rounds is printed. Beside them the peers of
`serving_peers.py`, each with an environment of its own.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.running_service import RunningService, started
from benchmarks.serving_peers import PEERS, Peer
from benchmarks.startup import free_port
from benchmarks.training_speed import Contestant
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

SERVER_CORE, OTHER_CORE = 0, 1
NUM_ROUNDS, SECONDS = 5, 2.0
CONNECTIONS = (1, 32)
LOOKBACK = 32
KEY = "benchmark"
BARE, FASTAPI = "bare ASGI, orjson, onnxruntime", "FastAPI, pydantic, onnxruntime"
OURS, OFF = "ours, everything on", "ours, publishing off"
WITHOUT_QUEUE = ("contestants", "service_without_queue.py")
MOST_DIFFERENCE = 1e-6
"""Of the forecasts, relative: scaling in double precision, the graph in single."""
TRAIN: dict[str, Any] = {
    "name": "Served", "model_type": "time_series", "family": "gru", "target": "price_change_1h",
    "features": ["sma_20", "rsi_14", "macd", "bb_width"], "symbols": ["EUR/USD"],
    "start_date": "2024-06-01T00:00:00Z", "end_date": "2025-03-01T00:00:00Z",
    "hyperparameters": {"gru_units": 64, "epochs": 1, "lookback": LOOKBACK}, "validation_split": 0.2,
}  # fmt: skip
GOALS: dict[str, float] = {BARE: 0.65, FASTAPI: 1.2}
MOST_P50, MOST_PUBLISHING = 1.6, 1.15


@dataclass(frozen=True)
class Served:
    """Where a contestant answers, and what it is asked."""

    pid: int
    port: int
    path: str
    body: str
    key: str = ""
    forecast_of: Callable[[Any], float | None] = lambda answer: answer["prediction"]
    has_children: bool = False  # a peer's workers; the service's own children stand on the other core

    @property
    def processor_s(self) -> float:
        """What the server has worked so far, all its threads."""
        return sum(each.cpu_times().user + each.cpu_times().system for each in self.processes)

    @property
    def processes(self) -> list[psutil.Process]:
        """What answers."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)] if self.has_children else [own]

    @property
    def head(self) -> str:
        """The request up to its length."""
        key = f"X-API-Key: {self.key}\r\n" if self.key else ""
        return f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n{key}"

    def ask(self) -> Any:
        """One answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": self.key} if self.key else {})
        connection.request("POST", self.path, self.body, headers)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{self.path} of port {self.port} answered {answer.status} {said.decode()}")
        return json.loads(said)


def window() -> dict[str, list[float]]:
    """Rows as the model knows them, so that none is novel."""
    steps = range(LOOKBACK)
    return {
        "sma_20": [1.10 + 0.0001 * (step % 7) + 0.00001234567 * step for step in steps],
        "rsi_14": [45.123456 + (step % 11) for step in steps],
        "macd": [0.00012345 - 0.00001 * (step % 13) for step in steps],
        "bb_width": [0.0041234567 + 0.0001 * (step % 5) for step in steps],
    }


def published(folder: Path) -> str:
    """A registry with the trained version, made once; the model's id."""
    done = folder / "model_id"
    if not done.exists():
        with started(folder / "training", MODEL_REGISTRY_PATH=str(folder / "registry"), PAGE="false") as service:
            model_id = service.train(TRAIN)
            body = {"version": "1.0.0", "deployment_target": "local", "monitoring_level": "medium"}
            service.call("POST", f"/api/v1/models/{model_id}/deploy", body)
        done.write_text(model_id, encoding="utf-8")
    return done.read_text(encoding="utf-8")


def given_to_controls(folder: Path, model_id: str) -> Path:
    """The graph and the scaler, as the controls read them."""
    version, given = folder / "registry" / model_id / "1.0.0", folder / "given"
    given.mkdir(exist_ok=True)
    recipe = json.loads((version / "recipe.json").read_text(encoding="utf-8"))
    scaler, scale = recipe["scaler"], recipe["scaler"]["symbols"]["EUR/USD"]
    kept = {
        "features": scaler["features"], "is_level": scaler["is_level"], "center": scale["center"],
        "scale": scale["scale"], "label_scale": scale["label_scale"][0],
    }  # fmt: skip
    (given / "scaler.json").write_text(json.dumps(kept), encoding="utf-8")
    (given / "model.onnx").write_bytes((version / "model.onnx").read_bytes())
    return given


@contextmanager
def control(script: str, given: Path, body: str, *, python: Path, path: str, **more: Any) -> Iterator[Served]:
    """A control or a peer on the servers' core."""
    port, log = free_port(), WORKPLACE / f"{script}.log"
    program = Path(__file__).parent / "contestants" / f"{script}.py"
    with log.open("wb") as errors:
        process = subprocess.Popen([str(python), str(program), str(given), str(port)], stdout=errors, stderr=errors)
    try:
        _wait_for(process, port)
        found = Served(process.pid, port, path, body, **more)
        pin(found.processes, SERVER_CORE)
        yield found
    finally:
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            own = psutil.Process(process.pid)
            every = [*own.children(recursive=True), own]
            process.terminate()
            for each in psutil.wait_procs(every, timeout=20)[1]:
                each.kill()
        process.wait()


@contextmanager
def ours(folder: Path, registry: Path, model_id: str, body: str, *program: str) -> Iterator[Served]:
    """The service on the servers' core, its redis-server and agent on the other."""
    folder.mkdir(parents=True, exist_ok=True)
    extra: dict[str, Any] = {"program": (str(Path(__file__).parent.joinpath(*program)),)} if program else {}
    variables = {"MODEL_REGISTRY_PATH": str(registry), "API_KEY": KEY, "PAGE": "false"}
    with started(folder, **variables, **extra) as service:
        process = psutil.Process(pid_of(service))
        pin([process], SERVER_CORE)
        _wait_for_children(process, 0 if program else 2)
        pin(process.children(recursive=True), OTHER_CORE)
        yield Served(
            process.pid, int(service.address.rpartition(":")[2]), f"/api/v1/models/{model_id}/predict", body, KEY
        )


def pid_of(service: RunningService) -> int:
    port = int(service.address.rpartition(":")[2])
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return next(each.pid for each in listening if each.laddr.port == port and each.pid is not None)


def _wait_for_children(process: psutil.Process, num: int) -> None:
    deadline = time.monotonic() + 20
    while len(process.children()) < num and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0 if num else 0.0)


def pin(processes: list[psutil.Process], core: int) -> None:
    if (os.cpu_count() or 1) < 2:
        return
    for process in processes:
        for thread in process.threads():
            with suppress(ProcessLookupError):  # it has ended meanwhile; later ones follow those that made them
                os.sched_setaffinity(thread.id, {core})


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"a contestant ended with {process.returncode}; see {WORKPLACE}")
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
                return
            except OSError:
                time.sleep(0.05)
    raise SystemExit("a contestant was not ready in two minutes")


def _wait_for_answers(served: Served) -> None:
    """A peer's port may answer before its worker does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            served.ask()
        except (OSError, SystemExit):
            time.sleep(0.5)
        else:
            pin(served.processes, SERVER_CORE)
            return
    raise SystemExit(f"{served.path} did not answer in two minutes; see {WORKPLACE}")


def compare(served: Mapping[str, Served]) -> None:
    """Ends the benchmark where contestants forecast different things, or ours abstains for anything but the clock."""
    said = {name: each.ask() for name, each in served.items()}
    wanted = said[BARE]["prediction"]
    for name, answer in said.items():
        found = served[name].forecast_of(answer)
        if found is None and set(answer["abstain_reasons"]) <= {"market_closed"}:
            continue  # on a Saturday
        if found is None or abs(found - wanted) > MOST_DIFFERENCE * abs(wanted):
            raise SystemExit(f"{name} says {answer}, the bare control {wanted}")


def measure(served: Mapping[str, Served], *, num_rounds: int, seconds: float) -> dict[str, dict[int, Rounds]]:
    """Turns of all in changing order; rates and median latencies by the number of connections."""
    found = {
        "per_s": {num: Rounds(bigger_is_better=True) for num in CONNECTIONS},
        "p50": {num: Rounds(bigger_is_better=False) for num in CONNECTIONS},
        "p99": {num: Rounds(bigger_is_better=False) for num in CONNECTIONS},
        "processor_us": {num: Rounds(bigger_is_better=False) for num in CONNECTIONS},
    }
    with closing(Contestant(Path(sys.executable), "closed_loop_load")) as load:
        pin([psutil.Process(load.pid)], OTHER_CORE)
        for number in range(num_rounds + 1):
            for num in CONNECTIONS:
                for name in list(served)[:: 1 if number % 2 else -1]:
                    each = served[name]
                    asked = {"port": each.port, "head": each.head, "body": each.body, "num_connections": num}
                    before_s = each.processor_s
                    told = load.turn(**asked, seconds=seconds if number else min(seconds, 1.0))
                    told["processor_us"] = (each.processor_s - before_s) * 1e6 / told["num"]
                    for figure, rounds in found.items() if number else ():  # the first round warms up
                        rounds[num].add(name, told[figure])
    return found


def main(*, num_rounds: int = NUM_ROUNDS, seconds: float = SECONDS, peers: tuple[Peer, ...] = PEERS) -> None:
    """Measures the rounds and prints the table."""
    folder = WORKPLACE / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    model_id = published(folder)
    given = given_to_controls(folder, model_id)
    features = window()
    plain = {"symbol": "EUR/USD", "timeframe": "1h", "features": features, "price": 1.1021}
    body, this = json.dumps(plain), Path(sys.executable)
    with ExitStack() as stack:
        served = {
            BARE: stack.enter_context(control("bare_serving", given, body, python=this, path="/predict")),
            FASTAPI: stack.enter_context(control("fastapi_serving", given, body, python=this, path="/predict")),
            OURS: stack.enter_context(ours(folder / "on", folder / "registry", model_id, body)),
            OFF: stack.enter_context(ours(folder / "off", folder / "registry", model_id, body, *WITHOUT_QUEUE)),
        }
        for peer in peers:
            python = python_with(peer.script, *peer.requirements) if peer.requirements else this
            asked = {"path": peer.path, "forecast_of": peer.forecast_of, "has_children": True}
            running = control(peer.script, given, peer.body_of(features), python=python, **asked)
            served[peer.name] = stack.enter_context(running)
            _wait_for_answers(served[peer.name])
        compare(served)
        found = measure(served, num_rounds=num_rounds, seconds=seconds)
    report(found, peers)


def report(found: dict[str, dict[int, Rounds]], peers: tuple[Peer, ...]) -> None:
    """The table, the goals, the file."""
    rows = []
    for name in found["per_s"][1].figures:
        cells = [name]
        for num in CONNECTIONS:
            rate, p50, p99, spent = (found[figure][num] for figure in ("per_s", "p50", "p99", "processor_us"))
            cells += [f"{rate.median(name):,.0f}", f"{p50.median(name):.2f}", f"{p99.median(name):.2f}"]
            cells += [spread(rate, name, BARE), f"{spent.median(name):.0f}"]
        rows.append(cells)
    figures = ("/s", "p50", "p99", "of bare", "µs")
    columns = ["contestant", *(f"{each} ({num})" for num in CONNECTIONS for each in figures)]
    show("Requests a second on one core, by connections; latency in ms", columns, rows)
    print("  µs: the server's processor time for a request, which a busy machine does not stretch")
    most = found["per_s"][CONNECTIONS[-1]]
    wanted = {**GOALS, **{peer.name: peer.goal for peer in peers if peer.goal is not None}}
    goals = [Goal(f"32 connections, of {name}", most.times_better(OURS, name), goal) for name, goal in wanted.items()]
    p50 = found["p50"][1]
    goals.append(
        Goal("one connection, p50 of the bare control's", p50.times_better(BARE, OURS), MOST_P50, at_most=True)
    )
    goals.append(
        Goal("publishing on over off, one connection", p50.times_better(OFF, OURS), MOST_PUBLISHING, at_most=True)
    )
    conclude(
        "serving", goals, {figure: {num: each.figures for num, each in by.items()} for figure, by in found.items()}
    )


def spread(rounds: Rounds, name: str, control: str) -> str:
    """The median of the rounds' ratios, and the least and the most."""
    ratios = sorted(a / b for a, b in zip(rounds.figures[name], rounds.figures[control], strict=True))
    return f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
