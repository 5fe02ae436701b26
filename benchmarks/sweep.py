"""A sweep of 27 settings: the tuning workflow, with pruning, beside neuralforecast's `AutoLSTM` with 27 samples.

    python -m benchmarks.sweep

Both try the same grid: an LSTM of one layer over the same windows of 24 daily bars, 3 learning rates x 3 sizes x 3
batch sizes, at most so many passes over the same training rows, early stopping with the same patience on the same
validation rows, and then train the winner. `AutoLSTM` runs without logging, checkpoints and progress bar, with one
thread or two, whichever is faster; its optuna backend does not prune. Ours makes one trial at a time or two, whichever
is faster, and runs as the service does: each trial in the log on disk and in the ledger, and the winner certified
against leaks, evaluated on the test part and exported.

A score is 1 - loss ÷ loss of the forecast zero on the validation rows, the best of a trial's passes. A sweep that is
over sooner and has found less has won nothing: the best scores are compared, the time to the worse of them is shown.
"""

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.training_speed import TORCH, Contestant
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

OURS = "ours"
AT_A_TIME = {1: "ours, one trial at a time", 2: "ours, two at a time"}
PEER = "neuralforecast 3.3 AutoLSTM"
NUM_ROUNDS = 3
NUM_BARS = 8_000
SPLIT = 0.4
"""Stops on a tenth of the bars; the peer gets the rows before the calibration part, validates on the last of them."""
EPOCHS, PATIENCE = 10, 3
SPACE: dict[str, list[Any]] = {
    "learning_rate": [0.0005, 0.002, 0.008],
    "lstm_units": [16, 32, 64],
    "batch_size": [32, 64, 128],
}
FEATURES = ["return_1", "first", "second", "third"]
SHARE = 0.3
"""Of the next return's variance that the first column explains."""
DEVIATION = 0.005
MOST_APART = 0.01
"""Of the two best scores; more means that somebody has learnt something else."""
FASTER = 4.0


def bars(folder: Path) -> tuple[Path, np.ndarray]:
    """A folder of daily bars for ours, and their rows (R, 4) for the peer: return and three columns known by then."""
    chance = np.random.default_rng(27)
    columns = chance.standard_normal((NUM_BARS, 3))
    moves = np.sqrt(1 - SHARE) * chance.standard_normal(NUM_BARS)
    moves[1:] += np.sqrt(SHARE) * columns[:-1, 0]
    close = 1.1 * np.cumprod(1 + DEVIATION * moves)
    days = np.arange(np.datetime64("1985-01-01"), np.datetime64("2026-01-01"))
    days = days[np.is_busday(days)][:NUM_BARS]
    opened = np.concatenate([close[:1], close[:-1]])
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "timestamp": pl.Series(days.astype("datetime64[ms]")).dt.replace_time_zone("UTC"),
            "open": opened,
            "high": np.maximum(opened, close),
            "low": np.minimum(opened, close),
            "close": close,
            **dict(zip(FEATURES[1:], columns.T, strict=True)),
        }
    ).write_parquet(folder / "EURUSD_1d.parquet")
    return folder, np.column_stack([moves, columns]).astype(np.float32)


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    """The same settings, and the same best score but for a little; raises otherwise."""
    settings = [{tuple(each[name] for name in SPACE) for each in side["trials"]} for side in (ours, peer)]
    best = [_best(side) for side in (ours, peer)]
    if settings[0] != settings[1] or abs(best[0] - best[1]) > MOST_APART:
        raise SystemExit(f"the contestants do different work: {len(settings[0] ^ settings[1])} settings, scores {best}")


def main() -> None:
    """Measures, prints the table, keeps the figures."""
    folder, rows_RF = bars(WORKPLACE / "sweep_bars")
    rows = WORKPLACE / "sweep_rows.npy"
    python = python_with("neuralforecast", "neuralforecast==3.3.*", TORCH)
    common = {"space": SPACE, "epochs": EPOCHS, "patience": PATIENCE}
    total, to_target = Rounds(bigger_is_better=False), Rounds(bigger_is_better=False)
    answers: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        our_process = stack.enter_context(closing(Contestant(Path(sys.executable), "our_sweep")))
        their_process = stack.enter_context(closing(Contestant(python, "neuralforecast_sweep")))
        for number in range(NUM_ROUNDS):
            asked = {"bars": str(folder), "features": FEATURES, "split": SPLIT, "seed": number, **common}
            modes = {name: our_process.turn(trials_at_a_time=num, **asked) for num, name in AT_A_TIME.items()}
            ours = min(modes.values(), key=lambda each: float(each["total_s"]))
            np.save(rows, rows_RF[: ours["num_rows"]])  # up to the end of our validation part
            peer = their_process.turn(bars=str(rows), num_val=ours["windows"]["stop"], seed=number, **common)
            compare(ours, peer)
            answers = {**modes, OURS: ours, PEER: peer}
            target = min(_best(each) for each in answers.values())
            for name, each in answers.items():
                total.add(name, each["total_s"])
                to_target.add(name, min(trial["at_s"] for trial in each["trials"] if trial["score"] >= target))
    _tell(total, to_target, answers)


def _best(answer: dict[str, Any]) -> float:
    return float(max(each["score"] for each in answer["trials"]))


def _tell(total: Rounds, to_target: Rounds, answers: dict[str, dict[str, Any]]) -> None:
    table = [
        [
            name,
            f"{total.median(name):.0f} s",
            f"{total.times_better(OURS, name):.1f}",
            f"{to_target.median(name):.1f} s",
            f"{_best(answer):.4f}",
            str(sum(each["checks"] for each in answer["trials"])),
        ]
        for name, answer in answers.items()
        if name != OURS
    ]
    columns = [
        "contestant",
        "27 trials and the winner",
        "our faster is times faster",
        "to the common score",
        "best",
        "passes",
    ]
    show(f"A sweep: {NUM_BARS:,} daily bars, LSTM, T=24, grid of 27", columns, table)
    goals = [Goal("27 trials, times faster than AutoLSTM", total.times_better(OURS, PEER), FASTER)]
    figures = {
        name: {"total_s": total.median(name), "to_common_score_s": to_target.median(name), "best": _best(answer)}
        for name, answer in answers.items()
    }
    conclude("sweep", goals, figures)


if __name__ == "__main__":
    main()
