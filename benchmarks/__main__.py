"""Runs every benchmark, one after the other: `python -m benchmarks [name …]`."""

import sys

from benchmarks import (
    agent_grid,
    environment,
    inference_latency,
    policies,
    predict_overhead,
    publishing,
    q_learning,
    queue_latency,
    startup,
    sweep,
    training_speed,
    year_replay,
)

ALL = {
    "startup": startup.main,
    "inference_latency": inference_latency.main,
    "training_speed": training_speed.main,
    "environment": environment.main,
    "q_learning": q_learning.main,
    "policies": policies.main,
    "agent_grid": agent_grid.main,
    "sweep": sweep.main,
    "publishing": publishing.main,
    "queue_latency": queue_latency.main,
    "predict_overhead": predict_overhead.main,
    "year_replay": year_replay.main,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(ALL)
    unknown = sorted(set(names) - set(ALL))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(ALL)}")
    for each in names:
        ALL[each]()
