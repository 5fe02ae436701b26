"""Predict replicas: swaps seen by three of them, their throughput on two cores beside one, start and memory.

    python -m benchmarks.replicas                 all of it
    python -m benchmarks.replicas --peers         MLServer beside them, in an environment of its own

A swap is measured by its asker: from sending the deployment to the first moment at which each replica, asked again and
again, answers with that version; a load on all of them checks that every answer is one version's or the other's, whole.
Control plane, redis-server and load have no core of their own.
"""

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil

from benchmarks import serving
from benchmarks.predict_workers import MODEL_ID, body_of, deploy, published, served
from benchmarks.running_service import KeptConnection, RunningService, started
from benchmarks.serving import control, given_to_controls, window
from benchmarks.serving_peers import PEERS
from benchmarks.startup import MOST_SECONDS, SETTLED_S, resident_mib, service
from benchmarks.training_speed import Contestant
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

NUM_REPLICAS, NUM_SWAPS, NUM_ROUNDS, SECONDS, NUM_CONNECTIONS = 3, 200, 5, 3.0, 24
NUM_STARTS = 3
PATH = f"/api/v1/models/{MODEL_ID}/predict"
ONE, ALL = "one replica", f"{NUM_REPLICAS} replicas, two cores"
PAUSE_S = 0.02


class Fleet:
    """A control plane, Redis and replicas, all on this machine."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.registry = folder / "registry"
        redis = EmbeddedRedis(folder / "redis_state")
        self.redis_url = redis.start()
        stack.callback(redis.stop)
        shared = {"REDIS_URL": self.redis_url, "MODEL_REGISTRY_PATH": str(self.registry), "PAGE": "false"}
        self.of_control = {**shared, "ROLE": "control", "AGENT_AUTOSTART": "false", "STATE_DIR": str(folder / "state")}
        self.of_replica = {**shared, "ROLE": "predict", "FEATURE_STORE_URL": ""}
        self.control = stack.enter_context(started(folder / "control", **self.of_control))
        deploy(self.control, "1.0.0")

    @contextmanager
    def replica(self, number: int) -> Iterator[tuple[RunningService, psutil.Process, float]]:
        """A replica that is ready, its process, and after how many seconds it was."""
        errors = self.folder / f"replica{number}.log"
        with service(errors=errors, **self.of_replica) as (process, address, begun):
            while not _is_ready(address):
                if process.poll() is not None or time.perf_counter() - begun > MOST_SECONDS:
                    raise SystemExit(f"a replica did not become ready; see {errors}")
                time.sleep(0.005)
            yield RunningService(address), psutil.Process(process.pid), time.perf_counter() - begun


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (HTTPError, OSError):
        return False


class Watch:
    """Asks one replica again and again, and keeps what each version has answered."""

    def __init__(self, address: str) -> None:
        self._connection = KeptConnection(address, PATH, json.loads(body_of()))
        self._stopping = threading.Event()
        self.version = ""
        self.num = 0
        self.said: dict[str, set[float]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE_S / 10):
            answer = json.loads(self._connection.ask())
            self.num += 1
            self.said.setdefault(answer["version"], set()).add(answer["prediction"])
            self.version = answer["version"]

    def stop(self) -> None:
        """Ends it."""
        self._stopping.set()
        self._thread.join()
        self._connection.close()


def swaps(fleet: Fleet, replicas: list[RunningService], num: int) -> tuple[list[float], list[float]]:
    """Milliseconds from sending a deployment to its being seen by all, and of those after it was answered."""
    watches = [Watch(each.address) for each in replicas]
    took_ms, after_ms = [], []
    for number in range(num):
        version, begun = f"1.{(number + 1) % 2}.0", time.perf_counter()
        deploy(fleet.control, version)
        answered = time.perf_counter()
        while any(each.version != version for each in watches):
            time.sleep(0.0005)
        took_ms.append((time.perf_counter() - begun) * 1000)
        after_ms.append((time.perf_counter() - answered) * 1000)
        time.sleep(PAUSE_S)
    for each in watches:
        each.stop()
    mixed = [version for each in watches for version, said in each.said.items() if len(said) > 1]
    if mixed:
        raise SystemExit(f"answers of {mixed} differ from each other")
    print(f"  {num} swaps, {sum(each.num for each in watches):,} answers meanwhile, none failed, none mixed")
    return took_ms, after_ms


def throughput(replicas: list[RunningService], processes: list[psutil.Process], *, rounds: int) -> Rounds:
    """Answers a second of one replica on a core, and of three on two."""
    per_s = Rounds(bigger_is_better=True)
    for number, each in enumerate(processes):
        serving.pin([each], number % 2)
    ports = [int(each.address.rpartition(":")[2]) for each in replicas]
    one = served(replicas[0], processes[0].pid, body_of())
    with closing(Contestant(Path(sys.executable), "closed_loop_load")) as load:
        for number in range(rounds + 1):
            for name, asked in ((ONE, ports[:1]), (ALL, ports))[:: 1 if number % 2 else -1]:
                told = load.turn(
                    port=one.port, head=one.head, body=one.body, num_connections=NUM_CONNECTIONS, ports=asked,
                    seconds=SECONDS if number else 1.0,
                )  # fmt: skip
                if number:  # the first round warms up
                    per_s.add(name, told["per_s"])
    return per_s


def starts(fleet: Fleet, *, with_peers: bool) -> list[list[str]]:
    """Rows of a table: ready after seconds, resident MiB with one model answered from, MB of packages on disk."""
    seconds, memory = Rounds(bigger_is_better=False), Rounds(bigger_is_better=False)
    environments = {"a replica": Path(sys.prefix)}
    mlserver = next(each for each in PEERS if each.name == "MLServer")
    for number in range(NUM_STARTS):
        with fleet.replica(100 + number) as (replica, process, taken):
            replica.call("POST", PATH, json.loads(body_of()))
            time.sleep(SETTLED_S)
            seconds.add("a replica", taken)
            memory.add("a replica", resident_mib(process.pid))
        if with_peers:
            python = python_with(mlserver.script, *mlserver.requirements)
            environments["MLServer"] = python.parents[1]
            given, body, begun = (
                given_to_controls(fleet.folder, MODEL_ID),
                mlserver.body_of(window()),
                time.perf_counter(),
            )
            with control(mlserver.script, given, body, python=python, path=mlserver.path, has_children=True) as peer:
                seconds.add("MLServer", time.perf_counter() - begun)
                time.sleep(SETTLED_S)
                memory.add("MLServer", sum(resident_mib(each.pid) for each in peer.processes))
    return [
        [name, f"{seconds.median(name):.2f}", f"{memory.median(name):.0f}", f"{_megabytes(folder):,.0f}"]
        for name, folder in environments.items()
    ]


def _megabytes(folder: Path) -> float:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and not each.is_symlink()) / 1e6


def run(*, num_swaps: int = NUM_SWAPS, num_rounds: int = NUM_ROUNDS, with_peers: bool = False) -> None:
    """Measures everything, and prints it."""
    source = WORKPLACE / "predict_workers"
    source.mkdir(parents=True, exist_ok=True)
    published(source)
    folder = WORKPLACE / "replicas"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source / "registry", folder / "registry")
    with ExitStack() as stack:
        fleet = Fleet(folder, stack)
        rows = starts(fleet, with_peers=with_peers)
        show("start to ready, memory, packages", ["contestant", "s", "MiB", "MB on disk"], rows)
        running = [stack.enter_context(fleet.replica(number)) for number in range(NUM_REPLICAS)]
        replicas = [each for each, _, _ in running]
        took_ms, after_ms = swaps(fleet, replicas, num_swaps)
        per_s = throughput(replicas, [each for _, each, _ in running], rounds=num_rounds)
    p99 = sorted(took_ms)[int(0.99 * (len(took_ms) - 1))]
    print(f"  seen by all after {_median(took_ms):.0f} ms (median), {p99:.0f} ms (p99), {max(took_ms):.0f} ms (worst)")
    print(
        f"  of it after the deployment was answered: {_median(after_ms):.1f} ms (median), {max(after_ms):.1f} (worst)"
    )
    spread = serving.spread(per_s, ALL, ONE)
    show("throughput", ["contestant", "/s"], [[name, f"{per_s.median(name):,.0f}"] for name in (ONE, ALL)])
    print(f"  three on two cores, times one: {spread}")
    goals = [
        Goal("a deployment seen by all replicas, p99, ms", p99, 1000, at_most=True),
        Goal("three replicas on two cores, times one", per_s.times_better(ALL, ONE), 1.3),
    ]
    conclude("replicas", goals, {"took_ms": took_ms, "after_ms": after_ms, "per_s": per_s.figures})


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    """All of it."""
    run(with_peers="--peers" in sys.argv)


if __name__ == "__main__":
    main()
