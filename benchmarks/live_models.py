"""Memory of a service with twenty live models: what the API process weighs with all of them loaded and asked.

    python -m benchmarks.live_models

One GRU of 64 units, trained in earnest and copied under other names (`many_models.py`); each is deployed, which loads
it before it is live, and answers once. Memory is the resident set of the API process alone, before the first model and
after the last; and what the copies asked again add, which is nothing where every one stayed.
"""

import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.many_models import Places, multiply_trained
from benchmarks.running_service import RunningService, started
from benchmarks.serving import TRAIN, pid_of, window
from benchmarks.startup import SETTLED_S, resident_mib
from tools.interleaved_rounds import Goal, conclude, show

NUM_MODELS = 20
GOAL_MIB = 250.0


def ask(service: RunningService, model_id: str) -> float:
    """One answer; the milliseconds until it was there."""
    body = {"symbol": "EUR/USD", "timeframe": "1h", "features": window(), "price": 1.1021}
    begun = time.perf_counter()
    service.call("POST", f"/api/v1/models/{model_id}/predict", body)
    return (time.perf_counter() - begun) * 1000


def main(*, num_models: int = NUM_MODELS) -> None:
    """Deploys and asks them all, and prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        places = Places(folder)
        alone = {"AGENT_AUTOSTART": "false", "PAGE": "false", **places.variables}
        with started(folder, **alone) as service:
            model_id = service.train(TRAIN)
        multiply_trained(places, model_id, num=num_models)
        with started(folder, **alone) as service:
            pid = pid_of(service)
            time.sleep(SETTLED_S)
            before = resident_mib(pid)
            copies = [f"copy_{number:04}" for number in range(num_models)]
            for copy in copies:
                service.deploy(copy)
            first_ms = [ask(service, copy) for copy in copies]
            after = resident_mib(pid)
            again_ms = [ask(service, copy) for copy in copies]
            later = resident_mib(pid)
            children = sum(each.memory_info().rss for each in psutil.Process(pid).children(recursive=True)) / 2**20
    rows = [
        ["before the first model", f"{before:.0f}", ""],
        [f"with {num_models} live", f"{after:.0f}", f"{max(first_ms):.1f}"],
        ["asked again", f"{later:.0f}", f"{max(again_ms):.1f}"],
        ["its children", f"{children:.0f}", ""],
    ]
    show("API process: resident, MiB", ["", "MiB", "slowest answer, ms"], rows)
    goals = [Goal(f"resident with {num_models} live models, MiB", later, GOAL_MIB, at_most=True)]
    conclude("live_models", goals, {"before_mib": before, "after_mib": after, "later_mib": later})


if __name__ == "__main__":
    main()
