"""A family's whole fit of boosted trees beside `lightgbm.train` alone, on the same matrix with the same parameters;
and beside FreqAI's regressor, with FreqAI's.

    python -m benchmarks.boosted_trees

20,000 windows of 24 rows and 4 features, 104 columns, 200 rounds of 15 leaves, bagging and drawn columns, a validation
part that each round is scored on. Plain LightGBM is given the finished matrix and one thread or two; the faster of the
two sets the goal. Ours makes the matrix from the windows, draws each round's seeds, looks for a cancellation, writes
the job's event log and checkpoints to disk, grows the same bits with any number of threads, and hands over the text. A
contestant whose loss does not fall has trained something else.

FreqAI's example configuration leaves LightGBM its own defaults: 100 rounds of 31 leaves, a step of 0.1, all rows and
columns, scored and not stopped. Its own class fits the matrix in an environment of its own (`freqai_lightgbm.py`); ours
does its whole fit with those settings, and once more with its own defaults: what each loses on the test part stands
beside.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from benchmarks.training_speed import Contestant
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.jobs import JobKind, JobSpec, SilentReport
from ml_workbench_service.families.lightgbm import LightGbm
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.learning.data.windows import Windows, build
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.networks.boosted_trees.graph import WindowColumns, columns_graph
from ml_workbench_service.learning.networks.boosted_trees.training import derived
from ml_workbench_service.learning.networks.graph_session import GraphSession
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, problem, symbol_rows
from tools.interleaved_rounds import Goal, Rounds, conclude, show
from tools.peer_environments import python_with

NUM_ROUNDS, NUM_BARS, LOOKBACK, NUM_TREES = 7, 25_000, 24, 200
OURS = "ours, the whole fit"
PLAIN = {1: "lightgbm.train on the matrix, one thread", 2: "lightgbm.train on the matrix, two threads"}
MOST_RATIO = 1.2
MOST_TIMES_FREQAI = 1.2
FREQAI, FREQAIS, DEFAULTS = "FreqAI 2026.9, its example", "ours with FreqAI's settings", "ours with its defaults"
FREQAI_REQUIREMENTS = ("freqtrade==2026.9", "datasieve==0.1.*", "lightgbm==4.*", "xgboost")
FREQAI_SETTINGS: dict[str, Any] = {
    "lookback": LOOKBACK, "num_iterations": 100, "early_stopping_rounds": 100, "learning_rate": 0.1, "num_leaves": 31,
    "min_data_in_leaf": 20, "bagging_fraction": 1.0, "feature_fraction": 1.0, "lambda_l2": 0.0,
}  # fmt: skip
"""LightGBM's own defaults, by name."""
MOST_LOSS = 0.9
"""Of the best constant's."""
SETTINGS: dict[str, Any] = {"lookback": LOOKBACK, "num_iterations": NUM_TREES, "early_stopping_rounds": NUM_TREES}


def windows_of_bars() -> Windows:
    """With an injected signal, and a fourth feature of noise."""
    table = symbol_rows(num=NUM_BARS, r2=0.3)
    noise = np.random.default_rng(4).standard_normal((NUM_BARS, 1))
    table = table.__class__(**{**vars(table), "x_NF": np.hstack([table.x_NF, noise])})
    return build([table], features=[*FEATURES, "more_noise"], is_level=[*IS_LEVEL, False], lookback=LOOKBACK, split=0.2)


def ours(windows: Windows, folder: Path, number: int, settings: Mapping[str, Any] = SETTINGS) -> tuple[float, float]:
    """Seconds, and the loss as a share of the constant's."""
    spec = JobSpec(
        id=f"job-{number}", kind=JobKind.TRAIN, request={}, plan={}, created_at=datetime.now(UTC), correlation_id="b"
    )
    report = EventReport(JobFolder.create(folder, spec))
    checkpoint = Checkpoint(folder / f"checkpoint-{number}", fingerprint={"number": number})
    asked = problem(windows, checkpoint=checkpoint)
    begun = time.perf_counter()
    model = LightGbm(settings).train(asked, accelerator=Cpu(), report=report)
    took_s = time.perf_counter() - begun
    ends = windows.parts["test"]
    outputs_N = model.predict(windows.gather(ends)).outputs_NK[:, 0]
    return took_s, share_of_constant(windows, outputs_N)


class Plain:
    """The matrix, made before anything is timed."""

    def __init__(self, windows: Windows) -> None:
        layout = WindowColumns(windows.features, windows.scaler.is_level_F, LOOKBACK, "window_and_summary")
        derive, report = GraphSession(columns_graph(layout)), SilentReport(lambda: None)
        self._windows = windows
        self._matrices = {
            part: derived(derive, windows, windows.parts[part], report=report)
            for part in ("train", "validation", "test")
        }
        hyper = LightGbm(SETTINGS).hyperparameters
        self._params = {
            name: getattr(hyper, name)
            for name in ("learning_rate", "num_leaves", "min_data_in_leaf", "bagging_fraction", "feature_fraction")
        } | {"objective": "regression", "bagging_freq": 1, "lambda_l2": hyper.lambda_l2, "verbosity": -1}

    def write(self, folder: Path) -> None:
        """For a contestant in a process of its own: each part's matrix and labels."""
        folder.mkdir(parents=True, exist_ok=True)
        for part, matrix_ND in self._matrices.items():
            np.save(folder / f"{part}.npy", matrix_ND)
            np.save(folder / f"{part}_labels.npy", self._windows.labels_RK[self._windows.parts[part], 0])

    def fit(self, threads: int) -> tuple[float, float]:
        """Seconds, and the loss as a share of the constant's."""
        labels_R, parts = self._windows.labels_RK[:, 0], self._windows.parts
        params = {**self._params, "num_threads": threads}
        begun = time.perf_counter()
        train = lightgbm.Dataset(self._matrices["train"], labels_R[parts["train"]])
        validation = train.create_valid(self._matrices["validation"], labels_R[parts["validation"]])
        stopping = lightgbm.early_stopping(NUM_TREES, verbose=False)
        booster = lightgbm.train(params, train, NUM_TREES, valid_sets=[validation], callbacks=[stopping])
        took_s = time.perf_counter() - begun
        return took_s, share_of_constant(self._windows, np.asarray(booster.predict(self._matrices["test"])))


def share_of_constant(windows: Windows, outputs_N: np.ndarray) -> float:
    """The squared error on the test part, beside the training part's mean's."""
    labels_N = windows.labels_RK[windows.parts["test"], 0]
    mean = windows.labels_RK[windows.parts["train"], 0].mean()
    return float(np.mean((labels_N - outputs_N) ** 2) / np.mean((labels_N - mean) ** 2))


def _beside_freqai(windows: Windows, plain: Plain, folder: Path, seconds: Rounds, losses: dict[str, float]) -> None:
    """Rounds of FreqAI's own regressor, of ours with its settings, and of ours as it comes."""
    plain.write(folder / "matrices")
    ours_settings = {FREQAIS: FREQAI_SETTINGS, DEFAULTS: {"lookback": LOOKBACK}}
    with closing(Contestant(python_with("freqai", *FREQAI_REQUIREMENTS), "freqai_lightgbm")) as peer:
        peer.turn(folder=str(folder / "matrices"))
        for number in range(1, NUM_ROUNDS + 1):
            answer = peer.turn(folder=str(folder / "matrices"))
            seconds.add(FREQAI, answer["seconds"])
            losses[FREQAI] = share_of_constant(windows, np.load(answer["outputs"]))
            for place, (name, settings) in enumerate(ours_settings.items(), 1):
                took_s, losses[name] = ours(windows, folder, 1000 * place + number, settings)
                seconds.add(name, took_s)


def main() -> None:
    """Measures the rounds and prints the table."""
    windows = windows_of_bars()
    plain = Plain(windows)
    seconds, losses = Rounds(bigger_is_better=False), {}
    with tempfile.TemporaryDirectory() as folder:
        ours(windows, Path(folder), 0)  # the libraries' imports are no part of it
        for number in range(1, NUM_ROUNDS + 1):
            took_s, losses[OURS] = ours(windows, Path(folder), number)
            seconds.add(OURS, took_s)
            for threads in PLAIN:
                took_s, losses[PLAIN[threads]] = plain.fit(threads)
                seconds.add(PLAIN[threads], took_s)
        _beside_freqai(windows, plain, Path(folder), seconds, losses)
    if max(losses.values()) > MOST_LOSS:
        raise SystemExit(f"a contestant has learnt nothing: {losses}")
    faster = min(PLAIN.values(), key=seconds.median)
    ratio, times_freqai = 1 / seconds.times_better(OURS, faster), 1 / seconds.times_better(FREQAIS, FREQAI)
    show(
        f"{len(windows.parts['train']):,} windows, {NUM_TREES} rounds",
        ["contestant", "seconds", "loss beside a constant's"],
        [[name, f"{seconds.median(name):.2f}", f"{losses[name]:.3f}"] for name in seconds.figures],
    )
    conclude(
        "boosted_trees",
        [
            Goal(f"our fit, times {faster}'s", ratio, MOST_RATIO, at_most=True),
            Goal(f"{FREQAIS}, times {FREQAI}'s", times_freqai, MOST_TIMES_FREQAI, at_most=True),
        ],
        {"seconds": seconds.medians(), "ratio": ratio, "times_freqai": times_freqai, "losses": losses},
    )


if __name__ == "__main__":
    main()
