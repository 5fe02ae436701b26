"""Training windows per second: ours with everything switched on, beside darts and neuralforecast at their fastest.

    python -m benchmarks.training_speed

The same bars, the same network (4 features, 64 units, one linear output: the number of weights is compared), the same
windows of 24 rows, the same batch size of 32, Adam with the same step. Each contestant is a process of its own; they
take turns. Peers run without logging, checkpoints, progress bar, validation and worker processes, with one thread or
two, whichever is faster for them, timed over batches alone. Ours runs the family's own `train`: dropout, gradient
clipping, short windows, scoring of the validation part, cancellation checks and the job's event log on disk.

The bars carry an injected signal (R² 64 %); a contestant whose loss does not fall has trained something else.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from tools.interleaved_rounds import ROOT, WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

NUM_BATCHES = 160
NUM_ROUNDS = 5
MOST_LOSS = 0.8
"""The label's variance is 1, the noise's 0.36."""
TORCH = "torch==2.13.0"
OURS, DARTS, NEURALFORECAST = "ours", "darts 0.48", "neuralforecast 3.3"
GOALS = {DARTS: 1.8, NEURALFORECAST: 2.7}


class Contestant:
    """A process that trains when it is asked to."""

    def __init__(self, python: Path, script: str) -> None:
        folder = Path(__file__).parent / "contestants"
        WORKPLACE.mkdir(parents=True, exist_ok=True)
        self._errors = WORKPLACE / f"{script}.log"
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(python), str(folder / f"{script}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=WORKPLACE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def turn(self, **request: Any) -> dict[str, Any]:
        """One round; ends the benchmark where the contestant has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant died; {self._errors} says why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process: with its input, else by force."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def bars(folder: Path) -> Path:
    """Rows (R, 4) of standard normal noise; the next row's first column is 0.8 times the second column, plus noise."""
    chance = np.random.default_rng(20)
    rows_RF = chance.standard_normal((20_000, 4)).astype(np.float32)
    rows_RF[1:, 0] = 0.8 * rows_RF[:-1, 1] + 0.6 * rows_RF[1:, 0]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "bars.npy", rows_RF)
    return folder / "bars.npy"


def compare(cell: str, answers: dict[str, dict[str, Any]]) -> None:
    """The same network, and everybody learns; raises otherwise."""
    sizes = {name: answer["num_parameters"] for name, answer in answers.items()}
    losses = {name: round(answer["loss"], 3) for name, answer in answers.items()}
    if len(set(sizes.values())) != 1 or max(losses.values()) > MOST_LOSS:
        raise SystemExit(f"{cell}: the contestants do different work: weights {sizes}, losses {losses}")


def main() -> None:
    """Measures both cells and prints the tables."""
    request = {"bars": str(bars(WORKPLACE)), "num_batches": NUM_BATCHES}
    scripts = {
        OURS: (Path(sys.executable), "our_training"),
        DARTS: (python_with("darts", "darts[torch]==0.48.*", TORCH), "darts_training"),
        NEURALFORECAST: (python_with("neuralforecast", "neuralforecast==3.3.*", TORCH), "neuralforecast_training"),
    }
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(closing(Contestant(*each))) for name, each in scripts.items()}
        goals, figures = _measured(contestants, request)
    conclude("training_speed", goals, figures)


def _measured(contestants: dict[str, Contestant], request: dict[str, Any]) -> tuple[list[Goal], dict[str, Any]]:
    goals, figures = [], {}
    for cell in ("LSTM", "GRU"):
        answers = {name: each.turn(cell=cell, **request) for name, each in contestants.items()}
        compare(cell, answers)
        rounds = Rounds(bigger_is_better=True)
        for _ in range(NUM_ROUNDS):
            for name, each in contestants.items():
                rounds.add(name, each.turn(cell=cell, **request)["windows_per_s"])
        table = [
            [*rounds.row(OURS, name, of_ratio=2), f"{answer['loss']:.2f}", str(answer["threads"])]
            for name, answer in answers.items()
        ]
        title = f"{cell} 4 → 64 → 1, T=24, batch 32, {answers[OURS]['num_parameters']:,} weights each"
        show(title, ["contestant", "windows/s", "ours is times faster", "loss", "threads"], table)
        figures[cell] = rounds.medians()
        goals += [
            Goal(f"{cell} against {name}, times faster", rounds.times_better(OURS, name), wanted)
            for name, wanted in GOALS.items()
        ]
    return goals, figures


if __name__ == "__main__":
    main()
