"""Runs every benchmark, one after the other: `python -m benchmarks [name …]`."""

import sys
from importlib import import_module

ALL = (
    "startup", "inference_latency", "training_speed", "boosted_trees", "environment", "q_learning", "policies",
    "agent_grid", "sweep", "publishing", "queue_latency", "predict_overhead", "door_overhead", "traces", "serving",
    "predict_workers", "replicas", "batches", "live_models", "year_replay", "small_training", "expressions", "lists",
    "page_views", "estimates",
)  # fmt: skip

if __name__ == "__main__":
    names = sys.argv[1:] or ALL
    unknown = sorted(set(names) - set(ALL))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(ALL)}")
    for each in names:
        import_module(f"benchmarks.{each}").main()
