"""What both Lightning peers share: the settings that cost them least, and a stopwatch over the batches."""

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from turns import BATCH, WARM_UP_BATCHES, play

torch.set_flush_denormal(True)
warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

FASTEST: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Watch(lightning.Callback):
    """Times the batches after the warm-up, and keeps the mean loss of the last fifty."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0
        self.num_timed = 0
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """The stopwatch starts after the warm-up."""
        if trainer.global_step == WARM_UP_BATCHES:
            self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch; reading the loss happens on a CPU and costs nothing."""
        if trainer.global_step > WARM_UP_BATCHES:
            self.ended = time.perf_counter()
            self.num_timed += 1
            self.losses.append(float(outputs["loss"]))

    def figures(self, module: Any) -> dict[str, Any]:
        """The answer of a turn."""
        last = self.losses[-50:]
        return {
            "windows_per_s": self.num_timed * BATCH / (self.ended - self.begun),
            "loss": sum(last) / len(last),
            "num_parameters": sum(each.numel() for each in module.parameters()),
        }


def play_trainings(fit: Callable[..., dict[str, Any]]) -> None:
    """Answers each request with one training by one thread or two, whichever serves the peer better in that cell."""
    chosen: dict[str, int] = {}

    def turn(cell: str, **request: Any) -> dict[str, Any]:
        if cell not in chosen:
            speeds = {}
            for threads in (1, 2):
                torch.set_num_threads(threads)
                speeds[threads] = fit(cell, **request)["windows_per_s"]
            chosen[cell] = max(speeds, key=lambda threads: speeds[threads])
            torch.set_num_threads(chosen[cell])
        return fit(cell, **request) | {"threads": chosen[cell]}

    play(turn)
