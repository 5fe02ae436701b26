"""Ours: the tuning workflow itself, from bars in a folder to the winner's published card, with everything switched on.

Trials go into the log on disk and the ledger; the winner is trained, certified, evaluated on the test part and
exported. Pruning is what the service offers: the median of the trials before.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from turns import LOOKBACK, play

from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from studies.fits import bench_at, experiment_once

_warm: list[bool] = []


@dataclass(frozen=True)
class SweepRequest:
    """What the benchmark asks for: a grid over a folder of bars, with at most so many epochs a trial."""

    bars: str
    space: dict[str, list[Any]]
    features: list[str]
    epochs: int
    patience: int
    split: float
    seed: int
    trials_at_a_time: int


def sweep(asked: SweepRequest) -> dict[str, Any]:
    """One whole sweep; when each trial had ended, its best score on the validation part, and the parts' sizes."""
    body = {
        "name": "Sweep",
        "base": {
            "name": "Sweep", "model_type": "time_series", "family": "lstm", "target": "price_change_1d",
            "features": asked.features, "symbols": ["EUR/USD"], "start_date": "1980-01-01T00:00:00Z",
            "end_date": "2026-01-01T00:00:00Z", "validation_split": asked.split,
            "hyperparameters": {
                "lookback": LOOKBACK, "epochs": asked.epochs, "patience": asked.patience, "dropout": 0.0,
            },
        },
        "search_space": {name: {"choices": choices} for name, choices in asked.space.items()},
        "sampler": "grid",
        "pruner": "median",
        "seed": asked.seed,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root, bench_at(Path(root), f"file://{asked.bars}") as workbench:
        begun, begun_ms = time.perf_counter(), to_ms(utc_now())
        tuned = experiment_once(workbench, body, max_workers=asked.trials_at_a_time)
        total_s = time.perf_counter() - begun
        available_at_ms = workbench.feature_store.fetch(
            ["EUR/USD"], "1d", start_ms=None, end_ms=None, features=["close"]
        )[0].available_at_ms
        num_rows = int(np.sum(available_at_ms <= to_ms(tuned.card.split.borders["calibrate"])))
        records = TrialLog(tuned.folder / TRIALS_FILE).trials()
    finished = [
        {
            **record.params,
            "score": max((value for _, value in record.curve), default=record.value),
            "at_s": (to_ms(record.finished_at) - begun_ms) / 1000,
            "checks": len(record.curve),
            "state": record.state,
        }
        for record in records
        if record.finished_at is not None
    ]
    windows = {name: tuned.card.split.num_windows[name] for name in ("train", "stop")}
    return {"total_s": total_s, "trials": finished, "windows": windows, "num_rows": num_rows}


def turn(space: dict[str, list[Any]], **asked: Any) -> dict[str, Any]:
    """One sweep; before the first, the middle setting alone, so that libraries are loaded on both sides."""
    if not _warm:
        middle = {name: [sorted(choices)[len(choices) // 2]] for name, choices in space.items()}
        sweep(SweepRequest(space=middle, **asked))
        _warm.append(True)
    return sweep(SweepRequest(space=space, **asked))


if __name__ == "__main__":  # processes of parallel trials import this file
    play(turn)
