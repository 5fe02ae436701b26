"""What traces cost `/predict`: its median time with them against without, over HTTP.

    python -m benchmarks.traces [folder of another checkout]

Services over one registry with the same deployed version: one without traces, as a service is by itself; one that sends
every request's spans to a collector in a process of its own; one that samples a hundredth of them. With another
checkout, such as that of the version before traces, a fourth one runs from there: what being able to trace costs those
who do not.

One connection each, back to back and at 200 a second, turns in turn; a ratio is taken of two neighbouring turns'
medians, and its spread over the rounds is shown. Client, collector and services share the machine with whatever else
runs. Traced requests are answered by the app, not straight by the server (docs/decisions/0065), and that is part of the
figure, of those that are not sampled too.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import __file__ as contestants
from benchmarks.predict_overhead import ASK, TRAIN, compare, turn
from benchmarks.running_service import KeptConnection, started
from benchmarks.startup import free_port
from tools.interleaved_rounds import Goal, Rounds, conclude, show

BEFORE, OFF, ON, SAMPLED = "the other checkout", "off", "every request", "a hundredth"
PACES: dict[str, float | None] = {"200/s": 200.0, "back to back": None}
PER_TURN = 300
GOAL_OFF = 1.02


def main(other: Path | None = None, *, num_rounds: int = 30, per_turn: int = PER_TURN) -> None:
    """Measures turns of all at every pace and prints the table."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, port = Path(temporary), free_port()
        sink = [sys.executable, str(Path(contestants).with_name("span_sink.py")), str(port)]
        stack.callback(stack.enter_context(subprocess.Popen(sink)).kill)
        common = {"MODEL_REGISTRY_PATH": str(folder / "registry"), "AGENT_AUTOSTART": "false"}
        traced = {"TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        a_hundredth = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
        services = {OFF: stack.enter_context(started(folder / "off", **common, STATE_DIR=str(folder / OFF)))}
        model_id = services[OFF].train(TRAIN)
        services[OFF].deploy(model_id)
        variables = {ON: traced, SAMPLED: traced | a_hundredth}
        if other is not None:
            variables[BEFORE] = {"PYTHONPATH": str(other)}
        for name, more in variables.items():
            state = with_keys_of(folder / OFF, folder / name)
            services[name] = stack.enter_context(started(folder / f"{name} log", **common, **more, STATE_DIR=state))
        path = f"/api/v1/models/{model_id}/predict"
        connections = {name: KeptConnection(each.address, path, ASK) for name, each in services.items()}
        compare(connections)
        figures = measure(connections, num_rounds=num_rounds, per_turn=per_turn)
        for each in connections.values():
            each.close()
    report(figures)


def measure(connections: dict[str, KeptConnection], *, num_rounds: int, per_turn: int) -> dict[str, Rounds]:
    """Turns of all at every pace, in changing order; figures by pace."""
    figures = {pace: Rounds(bigger_is_better=False) for pace in PACES}
    for number in range(num_rounds + 1):
        for pace, rate_per_s in PACES.items():
            for name in list(connections)[:: 1 if number % 2 else -1]:
                median_ms = turn(connections[name], per_turn, rate_per_s)
                if number:  # the first turns warm up
                    figures[pace].add(name, median_ms)
    return figures


def with_keys_of(signer: Path, state: Path) -> str:
    """A new state of a service that knows what another one has signed."""
    state.mkdir()
    for file in signer.glob("signing_key*"):
        shutil.copy2(file, state)
    return str(state)


def report(figures: dict[str, Rounds]) -> None:
    """The table: each contestant's median beside that of a service without traces."""
    rows, goals = [], []
    for pace, each in figures.items():
        for name in each.figures:
            if name == OFF:
                continue
            above, below = (OFF, name) if name == BEFORE else (name, OFF)
            ratios = sorted(one / other for one, other in zip(each.figures[above], each.figures[below], strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
            ratio = statistics.median(ratios)
            medians = [f"{each.median(above):.3f}", f"{each.median(below):.3f}"]
            rows.append([pace, f"{above} over {below}", *medians, f"{ratio:.3f}", f"{low:.3f}-{high:.3f}"])
            if name == BEFORE:
                goals.append(Goal(f"p50 of off over {BEFORE}, {pace}", ratio, GOAL_OFF, at_most=True))
    show("/predict, one connection: p50, ms", ["", "", "of the first", "second", "ratio", "middle half"], rows)
    conclude("traces", goals, {pace: each.figures for pace, each in figures.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
