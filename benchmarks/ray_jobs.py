"""Jobs on a Ray cluster beside jobs of this machine: what one costs more, and what a second worker brings.

    python -m benchmarks.ray_jobs

A cluster on the loopback, a head and a node of one CPU each. A linear model is trained here, in a worker without
libraries loaded, and there: seconds from the request to the published version. Then an experiment of 27 LSTMs, one
thread each, is worked off by one process of this machine and by two, by one task of the cluster at a time and by two;
the time counts from the first trial's beginning to the last one's end. What two tasks gain over one is held against
what two processes gain over one in the same round: on processors that others use too, that is all there is to gain.

Every round compares the trials' scores, which must be the same to the bit wherever they were made.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.running_service import RunningService, started
from tests.on_ray.ray_cluster import RayCluster
from tools.interleaved_rounds import Goal, Rounds, conclude, show

NUM_ROUNDS = 3
EPOCHS = 12
LOCAL, ON_RAY = "local", "ray"
BASE: dict[str, Any] = {
    "model_type": "time_series",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2024-01-01T00:00:00Z",
}
SPACE = {
    "learning_rate": {"choices": [0.0005, 0.002, 0.008]},
    "lstm_units": {"choices": [16, 24, 32]},
    "batch_size": {"choices": [32, 64, 128]},
}
SHARE = 0.85


def seconds_between(begun: str, ended: str) -> float:
    """Of two moments in ISO 8601."""
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def trained(service: RunningService, number: int) -> float:
    """Seconds from the request for a linear model until its version is published."""
    name = f"linear-{number}"
    settings = {"epochs": 4, "batch_size": 64, "lookback": 3}
    job = service.job("/api/v1/models/train", {**BASE, "name": name, "family": "linear", "hyperparameters": settings})
    return seconds_between(job["created_at"], job["finished_at"])


def searched(service: RunningService, name: str, *, epochs: int) -> tuple[float, dict[int, float]]:
    """Seconds that 27 trials took together, and their scores."""
    base = {**BASE, "name": name, "hyperparameters": {"lookback": 12, "epochs": epochs, "patience": epochs}}
    job = service.job(
        "/api/v1/experiments", {"name": name, "base": base, "search_space": SPACE, "sampler": "grid", "pruner": "none"}
    )
    rows = service.call("GET", f"/api/v1/experiments/{job['id']}/trials?limit=100")["rows"]
    begun, ended = min(each["started_at"] for each in rows), max(each["finished_at"] for each in rows)
    return seconds_between(begun, ended), {each["number"]: each["value"] for each in rows}


@contextmanager
def of_one_thread(folder: Path, **variables: str) -> Iterator[RunningService]:
    """A service that found one processor at its start, and so gives a training one thread; it runs on all of them."""
    found = os.sched_getaffinity(0)
    before = {each.pid for each in psutil.Process().children()}
    os.sched_setaffinity(0, {min(found)})
    with ExitStack() as stack:
        try:
            service = stack.enter_context(started(folder, **variables))
        finally:
            os.sched_setaffinity(0, found)
        for each in psutil.Process().children():
            if each.pid not in before:
                each.cpu_affinity(sorted(found))
        yield service


def main(*, num_rounds: int = NUM_ROUNDS, epochs: int = EPOCHS) -> None:
    """Measures, prints the tables, keeps the figures."""
    jobs, searches = Rounds(bigger_is_better=False), Rounds(bigger_is_better=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = RayCluster()
        stack.callback(cluster.stop)
        cluster.add_node()
        there = {"TRAINING_BACKEND": "ray", "RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": cluster.token}
        common = {"FEATURE_STORE_URL": "embedded", "AGENT_AUTOSTART": "false", "PAGE": "false"}
        services = {
            (LOCAL, 1): stack.enter_context(of_one_thread(folder / "l1", **common)),
            (LOCAL, 2): stack.enter_context(started(folder / "l2", **common, TRAINING_WORKERS="2")),
            (ON_RAY, 1): stack.enter_context(started(folder / "r1", **common, **there)),
            (ON_RAY, 2): stack.enter_context(started(folder / "r2", **common, **there, TRAINING_WORKERS="2")),
        }
        for number in range(num_rounds):
            for place in (LOCAL, ON_RAY):
                jobs.add(place, trained(services[place, 1], number))
            scores = []
            for (place, num), service in services.items():
                elapsed_s, values = searched(service, f"search-{number}", epochs=epochs)
                searches.add(f"{place}, {num} at a time", elapsed_s)
                scores.append(values)
            if any(each != scores[0] for each in scores):
                raise SystemExit("the trials' scores differ by the place where they were made")
    _tell(jobs, searches)


def _tell(jobs: Rounds, searches: Rounds) -> None:
    overheads = [there - here for here, there in zip(jobs.figures[LOCAL], jobs.figures[ON_RAY], strict=True)]
    overhead_s = sorted(overheads)[len(overheads) // 2]
    show(
        "One linear model, from request to version",
        ["", "seconds"],
        [[place, f"{jobs.median(place):.1f}"] for place in (LOCAL, ON_RAY)] + [["more", f"{overhead_s:.1f}"]],
    )
    gains = {
        place: [one / two for one, two in zip(*(searches.figures[f"{place}, {num} at a time"] for num in (1, 2)),
                                              strict=True)]
        for place in (LOCAL, ON_RAY)
    }  # fmt: skip
    shares = sorted(there / here for here, there in zip(gains[LOCAL], gains[ON_RAY], strict=True))
    rows = [[name, f"{elapsed_s:.1f}"] for name, elapsed_s in searches.medians().items()]
    show("27 LSTM trials, one thread each", ["", "seconds"], rows)
    goals = [Goal("two tasks over one, as share of two processes over one", shares[len(shares) // 2], SHARE)]
    figures = {"job_s": jobs.figures, "overhead_s": overheads, "trials_s": searches.figures, "gains": gains}
    conclude("ray_jobs", goals, figures)


if __name__ == "__main__":
    if sys.argv[1:] == ["--short"]:
        main(num_rounds=1, epochs=2)
    else:
        main()
