"""Predict workers: two of them on two cores beside two bare controls on the same cores; and swaps under load.

    python -m benchmarks.predict_workers                 rounds
    python -m benchmarks.predict_workers --minutes 10    80 % load with a swap every second: no failed request, RSS

The controls, the graph, the window and the load are those of `serving.py`. Worker k and control k are pinned to core k.
The load, the control process, redis-server and the agent have no core of their own and take from both, so the service
pays for its helpers as it would on a machine of two cores; the controls have none.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import serving
from benchmarks.running_service import RunningService, started
from benchmarks.serving import TRAIN, Served, control, given_to_controls, window
from benchmarks.training_speed import Contestant
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show

NUM_WORKERS = 2
NUM_ROUNDS, SECONDS, NUM_CONNECTIONS = 5, 3.0, 32
MODEL_ID = "served_by_several"
LOAD, RAMP_S, SLICE_S = 0.8, 3.0, 10.0
OURS, ONE, BARE = "two predict workers", "one process", "two bare controls"
MOST_SLOPE = 0.5
"""MB a minute, of all processes: what a cache fills in its first minutes is more."""


def published(folder: Path) -> None:
    """A registry with two trained versions, made once."""
    if (folder / "done").exists():
        return
    with started(folder / "training", MODEL_REGISTRY_PATH=str(folder / "registry"), PAGE="false") as service:
        for _ in range(2):
            service.train({**TRAIN, "model_id": MODEL_ID, "force": True})
        deploy(service, "1.0.0")
    (folder / "done").touch()


def deploy(service: RunningService, version: str) -> None:
    """Makes it live, with half of its answers in the ledger."""
    body = {"version": version, "deployment_target": "local", "monitoring_level": "medium"}
    service.call("POST", f"/api/v1/models/{MODEL_ID}/deploy", body)


@contextmanager
def ours(folder: Path, registry: Path, num: int) -> Iterator[tuple[RunningService, list[psutil.Process]]]:
    """The service with so many workers, each on a core; and its processes, the control process first."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"MODEL_REGISTRY_PATH": str(registry), "PAGE": "false", "PREDICT_WORKERS": str(num)}
    with started(folder, **variables) as service:
        process = psutil.Process(serving.pid_of(service))
        if "--number" in process.cmdline():  # the workers hold the same socket
            process = process.parents()[0]
        deadline = time.monotonic() + 60
        while not whole(service, num) and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = numbered(process)
        for number, worker in workers.items():
            serving.pin([worker], number)
        yield service, [process, *workers.values()]


def numbered(process: psutil.Process) -> dict[int, psutil.Process]:
    """The predict workers below a control process."""
    found = {}
    for child in process.children():
        words = child.cmdline()
        if "--number" in words:
            found[int(words[words.index("--number") + 1])] = child
    return found


def whole(service: RunningService, num: int) -> bool:
    """Whether all workers serve."""
    thing = service.call("GET", "/health/ready")["things"].get("predict_workers")
    return num == 0 or (thing is not None and thing["detail"].startswith(f"{num} of {num} serve"))


def served(service: RunningService, pid: int, body: str) -> Served:
    """As the load asks it."""
    port = int(service.address.rpartition(":")[2])
    return Served(pid, port, f"/api/v1/models/{MODEL_ID}/predict", body)


def rounds(*, num_rounds: int = NUM_ROUNDS, seconds: float = SECONDS) -> None:
    """Measures in turns, and prints the table."""
    folder = WORKPLACE / "predict_workers"
    folder.mkdir(parents=True, exist_ok=True)
    published(folder)
    given, body = given_to_controls(folder, MODEL_ID), body_of()
    per_s, p99 = Rounds(bigger_is_better=True), Rounds(bigger_is_better=False)
    with ExitStack() as stack:
        bare = [
            stack.enter_context(control("bare_serving", given, body, python=Path(sys.executable), path="/predict"))
            for _ in range(NUM_WORKERS)
        ]
        for number, each in enumerate(bare):
            serving.pin([psutil.Process(each.pid)], number)
        asked: dict[str, tuple[Served, list[int]]] = {BARE: (bare[0], [each.port for each in bare])}
        for name, num in ((OURS, NUM_WORKERS), (ONE, 0)):
            service, processes = stack.enter_context(ours(folder / str(num), folder / "registry", num))
            one = served(service, processes[0].pid, body)
            asked[name] = (one, [one.port])
        serving.compare({serving.BARE: bare[0], OURS: asked[OURS][0], ONE: asked[ONE][0]})
        load = stack.enter_context(closing(Contestant(Path(sys.executable), "closed_loop_load")))
        for number in range(num_rounds + 1):
            for name in list(asked)[:: 1 if number % 2 else -1]:
                each, ports = asked[name]
                turn = {"port": each.port, "head": each.head, "body": each.body, "num_connections": NUM_CONNECTIONS}
                told = load.turn(**turn, ports=ports, seconds=seconds if number else 1.0)
                if number:  # the first round warms up
                    per_s.add(name, told["per_s"])
                    p99.add(name, told["p99"])
    rows = [
        [name, f"{per_s.median(name):,.0f}", f"{p99.median(name):.1f}", serving.spread(per_s, name, BARE)]
        for name in asked
    ]
    show(f"{NUM_CONNECTIONS} connections, two cores", ["contestant", "/s", "p99, ms", "of two controls"], rows)
    goals = [
        Goal("two workers, of two bare controls", per_s.times_better(OURS, BARE), 0.9),
        Goal("two workers, times one process", per_s.times_better(OURS, ONE), 1.3),
    ]
    conclude("predict_workers", goals, {"per_s": per_s.figures, "p99": p99.figures})


def body_of() -> str:
    """One window, as `serving.py` sends it."""
    return json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": window(), "price": 1.1021})


def swaps(minutes: float) -> None:
    """80 % load with a swap every second, for so long."""
    folder = WORKPLACE / "predict_workers"
    folder.mkdir(parents=True, exist_ok=True)
    published(folder)
    sizes: list[tuple[float, float]] = []
    with (
        ours(folder / "swaps", folder / "registry", NUM_WORKERS) as (service, processes),
        closing(Contestant(Path(sys.executable), "closed_loop_load")) as load,
    ):
        one = served(service, processes[0].pid, body_of())
        turn: dict[str, Any] = {
            "port": one.port,
            "head": one.head,
            "body": one.body,
            "num_connections": NUM_CONNECTIONS,
        }
        most = load.turn(**turn, seconds=RAMP_S)["per_s"]
        swapping = Swaps(service)
        begun, slices = time.perf_counter(), []
        while time.perf_counter() - begun < minutes * 60:
            slices.append(load.turn(**turn, seconds=SLICE_S, per_s=LOAD * most))  # an answer that is no 200 ends it
            rss_mb = sum(each.memory_info().rss for each in processes) / 1e6
            sizes.append(((time.perf_counter() - begun) / 60, rss_mb))
            at_min, told = sizes[-1][0], slices[-1]
            print(f"  {at_min:6.1f} min  {told['per_s']:6.0f}/s  p99 {told['p99']:7.1f} ms  {rss_mb:7.1f} MB")
        swapping.stop()
    num = sum(each["num"] for each in slices)
    half = sizes[len(sizes) // 2 :]
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 1 else 0.0
    print(f"  {num:,} answers at {LOAD:.0%} of {most:,.0f}/s, none failed, {swapping.num} swaps")
    print(f"  a swap was in force everywhere after {swapping.p99_ms:.0f} ms (p99)")
    goals = [
        Goal("RSS of all processes in the second half, MB a minute", slope, MOST_SLOPE, at_most=True),
        Goal("a swap in force everywhere, p99, ms", swapping.p99_ms, 1000, at_most=True),
    ]
    conclude("predict_workers_swaps", goals, {"rss": sizes, "slices": slices, "swap_ms": swapping.took_ms})


class Swaps:
    """A deployment a second, of one version and the other, each answered once it is in force everywhere."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self._stopping = threading.Event()
        self.took_ms: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def num(self) -> int:
        """How many there were."""
        return len(self.took_ms)

    @property
    def p99_ms(self) -> float:
        """How long nearly all took, the gates of the deployment included."""
        return sorted(self.took_ms)[int(0.99 * (self.num - 1))] if self.took_ms else 0.0

    def stop(self) -> None:
        """Ends them."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(1.0):
            begun = time.perf_counter()
            deploy(self._service, f"1.{(self.num + 1) % 2}.0")
            self.took_ms.append((time.perf_counter() - begun) * 1000)


def main() -> None:
    """The rounds, or the swaps where `--minutes` says how long."""
    if "--minutes" in sys.argv:
        swaps(float(sys.argv[sys.argv.index("--minutes") + 1]))
        return
    rounds()


if __name__ == "__main__":
    main()
