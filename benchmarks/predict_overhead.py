"""What publishing costs `/predict`: its median time with the queue against without, over HTTP.

    python -m benchmarks.predict_overhead

Two services over one registry with the same deployed version: one as it starts by itself, with its redis-server and its
agent, which apply what is published meanwhile; the other on a machine without a redis-server, where nothing is
published and everything else is the same (a candidate, which is not published either, would also be spared what only a
live version does: its intervals' upkeep and the monitoring log). The first seed's LSTM and its three-row request.

One connection each, at stated rates (a request is sent when it is due, and timed from there) and back to back (the next
request as soon as the answer is read, which is all that one connection can ask). The publisher, the redis-server and
the agent do their work after a response and before the next: at an ordinary rate there is time for it, back to back
there is none, and what they do on the same two cores is seen in full. The goal is of an ordinary rate, 200 a second.

Turns in turn; answers are compared before anything is timed. A ratio is taken of two neighbouring turns' medians.
"""

import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import __file__ as contestants
from benchmarks.rounds import Goal, Rounds, conclude, show
from benchmarks.running_service import KeptConnection, RunningService, started

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
ON, OFF = "publishing on", "publishing off"
PACES: dict[str, float | None] = {"100/s": 100.0, "200/s": 200.0, "400/s": 400.0, "back to back": None}
PACE_OF_GOAL = "200/s"
PER_TURN = 200
GOAL = 1.10
OWN = ("prediction_id", "timestamp", "as_of", "valid_until", "metadata")
WITHOUT_QUEUE = str(Path(contestants).with_name("service_without_queue.py"))


def compare(on: KeptConnection, off: KeptConnection) -> None:
    """Ends the benchmark where the two say different things of the same window."""
    said = [json.loads(each.ask()) for each in (on, off)]
    first, second = ({name: value for name, value in each.items() if name not in OWN} for each in said)
    if first != second or first["role"] != "champion":
        raise SystemExit(f"the services differ: {first} and {second}")


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


def published(service: RunningService) -> int:
    """How many records entered the queue."""
    books = service.call("GET", "/api/v1/queue")
    if books["outbox_dropped"] or any(group["balance"] for group in books["groups"]):
        raise SystemExit(f"the books do not balance: {books}")
    return int(books["groups"][0]["enqueued"])


def main(*, num_rounds: int = 20, per_turn: int = PER_TURN) -> None:
    """Measures turns of both at every pace and prints the table."""
    figures = {pace: Rounds(bigger_is_better=False) for pace in PACES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        registry = {"MODEL_REGISTRY_PATH": str(folder / "registry")}
        with (
            started(folder / "on", **registry) as on,
            started(folder / "off", program=(WITHOUT_QUEUE,), **registry) as off,
        ):
            model_id = on.train(TRAIN)
            on.deploy(model_id)
            path = f"/api/v1/models/{model_id}/predict"
            connections = {ON: KeptConnection(on.address, path, ASK), OFF: KeptConnection(off.address, path, ASK)}
            compare(connections[ON], connections[OFF])
            for number in range(num_rounds + 1):
                order = (ON, OFF) if number % 2 else (OFF, ON)
                for (pace, rate_per_s), name in product(PACES.items(), order):
                    median = turn(connections[name], per_turn, rate_per_s)
                    if number:  # the first turns warm up
                        figures[pace].add(name, median)
                    time.sleep(0.02)  # the agent ends its last batch
            for each in connections.values():
                each.close()
            num_published = published(on)
            if num_published != (num_rounds + 1) * per_turn * len(PACES) + 1:
                raise SystemExit(f"only {num_published} records were published")
    ratios = {pace: 1 / rounds.times_better(ON, OFF) for pace, rounds in figures.items()}
    rows = [
        [pace, f"{rounds.median(ON):.3f}", f"{rounds.median(OFF):.3f}", f"{ratios[pace]:.2f}"]
        for pace, rounds in figures.items()
    ]
    show("/predict, one connection: p50, ms", ["", ON, OFF, "on over off"], rows)
    goals = [Goal(f"p50 with publishing on over off, at {PACE_OF_GOAL}", ratios[PACE_OF_GOAL], GOAL, at_most=True)]
    conclude("predict_overhead", goals, {pace: rounds.figures for pace, rounds in figures.items()})


if __name__ == "__main__":
    main()
