"""neuralforecast: `AutoLSTM` over the same settings, backend optuna, with early stopping, logging and checkpoints off.

A trial counts with its best validation loss, not with its last, which is what `AutoLSTM` itself would rank it by.
"""

import math
import time
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytorch_lightning as lightning
import torch
from lightning_watch import FASTEST
from neuralforecast import NeuralForecast
from neuralforecast.auto import AutoLSTM
from neuralforecast.losses.pytorch import MSE
from turns import LOOKBACK, play

optuna.logging.set_verbosity(optuna.logging.ERROR)

_validated: list[float] = []


class _Validated(lightning.Callback):
    """Keeps every validation loss of the trial under way."""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """The loss that early stopping sees."""
        if "ptl/val_loss" in trainer.callback_metrics:
            _validated.append(float(trainer.callback_metrics["ptl/val_loss"]))


_threads: list[int] = []


def sweep(
    rows_RF: np.ndarray, space: dict[str, list[Any]], *, epochs: int, patience: int, num_val: int, seed: int
) -> Any:
    """One whole sweep and the fit of its winner; when each trial was finished and its best score."""
    own = [f"f{number}" for number in range(1, rows_RF.shape[1])]
    frame = pd.DataFrame(rows_RF, columns=["y", *own]).assign(unique_id="pair", ds=np.arange(len(rows_RF)))
    finished: list[dict[str, Any]] = []
    variance = float(np.mean(rows_RF[-num_val:, 0] ** 2))

    def config(trial: Any) -> dict[str, Any]:
        drawn = {name: trial.suggest_categorical(name, choices) for name, choices in space.items()}
        units, batch = drawn["lstm_units"], drawn["batch_size"]
        is_asked = isinstance(batch, int)  # else the library asks what the settings look like
        steps = -(-(len(rows_RF) - num_val - LOOKBACK) // batch) if is_asked else 1
        return {
            "input_size": LOOKBACK, "encoder_hidden_size": units, "encoder_n_layers": 1, "encoder_dropout": 0.0,
            "decoder_hidden_size": units, "decoder_layers": 1, "recurrent": False, "hist_exog_list": own,
            "learning_rate": drawn["learning_rate"], "batch_size": 1, "windows_batch_size": batch,
            "inference_windows_batch_size": 4096, "max_steps": steps * epochs, "val_check_steps": steps,
            "early_stop_patience_steps": patience, "scaler_type": "identity", "random_seed": 0,
            "callbacks": [_Validated()], **FASTEST,
        }  # fmt: skip

    def heard(study: Any, trial: Any) -> None:
        score = 1 - min(_validated) / variance
        finished.append(
            {**trial.params, "score": score, "at_s": time.perf_counter() - begun, "checks": len(_validated)}
        )
        _validated.clear()

    num_samples = math.prod(len(choices) for choices in space.values())
    auto = AutoLSTM(
        h=1, loss=MSE(), config=config, search_alg=optuna.samplers.GridSampler(space, seed=seed),
        num_samples=num_samples, backend="optuna", callbacks=[heard],
    )  # fmt: skip
    forecast = NeuralForecast(models=[auto], freq=1)
    _validated.clear()
    begun = time.perf_counter()
    forecast.fit(frame, val_size=num_val)
    return {"total_s": time.perf_counter() - begun, "trials": finished}


def turn(bars: str, space: dict[str, list[Any]], **asked: Any) -> dict[str, Any]:
    """One sweep, with the number of threads that suits it: the faster one on the middle setting."""
    rows_RF = np.load(bars)
    if not _threads:
        middle = {name: [sorted(choices)[len(choices) // 2]] for name, choices in space.items()}
        seconds = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seconds[threads] = sweep(rows_RF, middle, **asked)["total_s"]
        _threads.append(min(seconds, key=lambda threads: seconds[threads]))
    torch.set_num_threads(_threads[0])
    return sweep(rows_RF, space, **asked) | {"threads": _threads[0]}


play(turn)
