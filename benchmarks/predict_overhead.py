"""What publishing costs `/predict`: its median time with the queue against without, over HTTP.

    python -m benchmarks.predict_overhead

Three services over one registry with the same deployed version: one that publishes to its redis-server; one that has
its agent running too, as a service has by itself, so that what is published is applied meanwhile; and one on a machine
without a redis-server, where nothing is published and everything else is the same (a candidate, which is not published
either, would also be spared what only a live version does: its intervals' upkeep and the monitoring log). The original
specification's LSTM and its three-row request.

One connection each, at stated rates (a request is sent when it is due, and timed from there) and back to back (the next
request as soon as the answer is read, which is all that one connection can ask). The publisher and the redis-server
work after a response and before the next request: at an ordinary rate there is time for it, back to back there is none.
The goal is of the ordinary rates, 100 and 200 a second. The client and everybody's processes share two cores; what the
agent does on them is seen apart.

Turns in turn; answers are compared before anything is timed. A ratio is taken of two neighbouring turns' medians.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import __file__ as contestants
from benchmarks.running_service import KeptConnection, RunningService, started
from tools.interleaved_rounds import Goal, Rounds, conclude, show

TRAIN: dict[str, Any] = {
    "name": "LSTM Price Predictor",
    "model_type": "time_series",
    "features": ["sma_20", "rsi_14", "macd", "bb_width"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD", "GBP/USD"],
    "start_date": "2024-06-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 64, "epochs": 1},
    "validation_split": 0.2,
}
ASK: dict[str, Any] = {
    "symbol": "EUR/USD",
    "timeframe": "1h",
    "features": {
        "sma_20": [1.1012, 1.1015, 1.1020],
        "rsi_14": [45.2, 46.8, 48.3],
        "macd": [0.0012, 0.0015, 0.0018],
        "bb_width": [0.0025, 0.0024, 0.0028],
    },
    "price": 1.1021,
}
OFF, ON, WHOLE = "publishing off", "publishing on", "and an agent"
PACES: dict[str, float | None] = {"100/s": 100.0, "200/s": 200.0, "400/s": 400.0, "back to back": None}
ORDINARY = ("100/s", "200/s")
PER_TURN = 200
GOAL = 1.10
OWN = ("prediction_id", "timestamp", "as_of", "valid_until", "metadata")
WITHOUT_QUEUE = str(Path(contestants).with_name("service_without_queue.py"))


def compare(connections: dict[str, KeptConnection]) -> None:
    """Ends the benchmark where they say different things of the same window."""
    said = [json.loads(each.ask()) for each in connections.values()]
    kept = [{name: value for name, value in each.items() if name not in OWN} for each in said]
    if any(each != kept[0] or each["role"] != "champion" for each in kept):
        raise SystemExit(f"the services differ: {kept}")


def turn(connection: KeptConnection, num: int, rate_per_s: float | None) -> float:
    """The median time of a request, in milliseconds."""
    elapsed_s = np.empty(num)
    connection.rest()
    due = time.perf_counter()
    for number in range(num):
        if rate_per_s is not None:
            due += 1 / rate_per_s
            time.sleep(max(0.0, due - time.perf_counter()))
        begun = time.perf_counter()
        connection.ask()
        elapsed_s[number] = time.perf_counter() - begun
    return float(np.median(elapsed_s)) * 1000


def check_published(service: RunningService, expected: int) -> None:
    """Ends the benchmark where a record did not enter the queue; without a group the stream keeps what has room."""
    accounting = service.call("GET", "/api/v1/queue")
    if accounting["outbox"] or accounting["outbox_dropped"] or any(group["balance"] for group in accounting["groups"]):
        raise SystemExit(f"the accounting does not balance: {accounting}")
    num_there = (
        sum(group["enqueued"] for group in accounting["groups"]) if accounting["groups"] else accounting["length"]
    )
    if num_there != (expected if accounting["groups"] else min(expected, accounting["capacity"])):
        raise SystemExit(f"{num_there} records were published, not {expected}")


def measure(connections: dict[str, KeptConnection], *, num_rounds: int, per_turn: int) -> dict[str, Rounds]:
    """Turns of all at every pace, in changing order; figures by pace."""
    figures = {pace: Rounds(bigger_is_better=False) for pace in PACES}
    for number in range(num_rounds + 1):
        names = list(connections)[:: 1 if number % 2 else -1]
        for (pace, rate_per_s), name in product(PACES.items(), names):
            median = turn(connections[name], per_turn, rate_per_s)
            if number:  # the first turns warm up
                figures[pace].add(name, median)
            time.sleep(0.02)  # the agent ends its last batch
    return figures


def main(*, num_rounds: int = 24, per_turn: int = PER_TURN) -> None:
    """Measures turns of all at every pace and prints the table."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        registry = {"MODEL_REGISTRY_PATH": str(folder / "registry")}
        services = {
            OFF: stack.enter_context(started(folder / "off", program=(WITHOUT_QUEUE,), **registry)),
            ON: stack.enter_context(started(folder / "on", AGENT_AUTOSTART="false", **registry)),
            WHOLE: stack.enter_context(started(folder / "whole", **registry)),
        }
        model_id = services[OFF].train(TRAIN)
        services[OFF].deploy(model_id)
        path = f"/api/v1/models/{model_id}/predict"
        connections = {name: KeptConnection(each.address, path, ASK) for name, each in services.items()}
        compare(connections)
        figures = measure(connections, num_rounds=num_rounds, per_turn=per_turn)
        for connection in connections.values():
            connection.close()
        for name in (ON, WHOLE):
            check_published(services[name], (num_rounds + 1) * per_turn * len(PACES) + 1)
    ratios = {pace: {name: 1 / each.times_better(name, OFF) for name in (ON, WHOLE)} for pace, each in figures.items()}
    rows = [
        [pace, *(f"{each.median(name):.3f}" for name in (OFF, ON, WHOLE)), *(f"{r:.2f}" for r in ratios[pace].values())]
        for pace, each in figures.items()
    ]
    columns = ["", OFF, ON, WHOLE, "on over off", "with the agent"]
    show("/predict, one connection: p50, ms", columns, rows)
    goals = [
        Goal(f"p50 with publishing on over off, {pace}", ratios[pace][ON], GOAL, at_most=True) for pace in ORDINARY
    ]
    conclude("predict_overhead", goals, {pace: each.figures for pace, each in figures.items()})


if __name__ == "__main__":
    main()
