"""What keys and limits cost `/predict`: its median time with them against without, over HTTP.

    python -m benchmarks.door_overhead

Two services over one registry with the same deployed version: one without any key, which answers loopback alone; one
with a hundred keys, each with a rate and a daily quota, one of which is sent. The audit log is kept by both: it has a
line of what changes something, and none of a prediction, so that all it could cost is being there.

One connection each, back to back and at 200 a second, turns in turn; a ratio is taken of two neighbouring turns'
medians, and its spread over the rounds is shown. Client and services share the machine with whatever else runs.
"""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.predict_overhead import ASK, TRAIN, compare, turn
from benchmarks.running_service import KeptConnection, started
from ml_workbench_service.access.keys import KeyFile
from ml_workbench_service.access.operations import Scope
from tools.interleaved_rounds import Goal, Rounds, conclude, show

OFF, ON = "no key", "100 keys, rates and quotas"
PACES: dict[str, float | None] = {"200/s": 200.0, "back to back": None}
NUM_KEYS = 100
PER_TURN = 300
GOAL = 1.10


def main(*, num_rounds: int = 30, per_turn: int = PER_TURN) -> None:
    """Measures turns of both at every pace and prints the table."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        registry = {"MODEL_REGISTRY_PATH": str(folder / "registry"), "AGENT_AUTOSTART": "false"}
        open_one = stack.enter_context(started(folder / "off", **registry))
        model_id = open_one.train(TRAIN)
        open_one.deploy(model_id)
        keys = KeyFile(folder / "keys.json")
        made = [
            keys.create(f"client_{number}", [Scope.PREDICT], rate_per_s=100_000.0, requests_per_day=10_000_000)[0]
            for number in range(NUM_KEYS)
        ]
        guarded = stack.enter_context(started(folder / "on", KEYS_FILE=str(folder / "keys.json"), **registry))
        path = f"/api/v1/models/{model_id}/predict"
        connections = {
            OFF: KeptConnection(open_one.address, path, ASK),
            ON: KeptConnection(guarded.address, path, ASK, key=made[NUM_KEYS // 2]),
        }
        compare(connections)
        figures = {pace: Rounds(bigger_is_better=False) for pace in PACES}
        for number in range(num_rounds + 1):
            for pace, rate_per_s in PACES.items():
                for name in list(connections)[:: 1 if number % 2 else -1]:
                    median_ms = turn(connections[name], per_turn, rate_per_s)
                    if number:  # the first turns warm up
                        figures[pace].add(name, median_ms)
        for each in connections.values():
            each.close()
    rows, goals = [], []
    for pace, each in figures.items():
        ratios = sorted(on / off for on, off in zip(each.figures[ON], each.figures[OFF], strict=True))
        ratio = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
        rows.append(
            [pace, f"{each.median(OFF):.3f}", f"{each.median(ON):.3f}", f"{ratio:.3f}", f"{low:.3f}-{high:.3f}"]
        )
        goals.append(Goal(f"p50 with keys and limits on over off, {pace}", ratio, GOAL, at_most=True))
    show("/predict, one connection: p50, ms", ["", OFF, ON, "on over off", "middle half of the rounds"], rows)
    conclude("door_overhead", goals, {pace: each.figures for pace, each in figures.items()})


if __name__ == "__main__":
    main()
