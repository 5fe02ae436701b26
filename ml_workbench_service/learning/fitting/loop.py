"""The one torch loop: windows gathered by index on the device, Adam, gradient clipping, early stopping.

No DataLoader (it costs up to 300 times the slicing), nothing materialised per window. A share of the batches is cut
to a random shorter length, so that the network has met short windows before a request brings one. After an epoch
everything that decides the rest goes into the checkpoint; a training that begins with one ends with the same weights.

Legend: N windows of a batch, T rows, F features, K labels.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import backward

from common_lib.exceptions import TrainingError
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.data.windows import SCORING_ROWS, Windows
from ml_workbench_service.learning.fitting.objectives import Objective
from ml_workbench_service.learning.fitting.optimizer import ClippedAdam
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint

SHORT_SHARE = 0.2
"""Share of the batches that train on a shorter window."""
PROBE = 6
"""Batches with one thread that set the standard."""
PATIENCE = 10
"""How far several threads may fall behind one, in batches of time, before they are given up."""
SHORTEST, LONGEST = 250, 4000
"""Batches from one probe to the next; doubled whenever several threads fell behind."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    learning_rate: float
    batch_size: int
    epochs: int
    patience: int
    shortest_window: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Epochs run, the epoch whose weights were kept, and its loss on the validation part."""

    epochs_run: int
    best_epoch: int
    stop_loss: float


class _OnDevice:
    """The rows and labels of all windows on the training device.

    Args:
        by_window: gather each window's rows together; a network that joins them wants them so, others by time.
    """

    def __init__(self, windows: Windows, device: torch.device, *, by_window: bool = False) -> None:
        self._by_window = by_window
        self.rows_RF = torch.from_numpy(windows.rows_RF).to(device)
        self.labels_RK = torch.from_numpy(windows.labels_RK).to(device)
        weights_R = windows.weights_R
        self._weights_R = None if weights_R is None else torch.from_numpy(weights_R).to(device)
        self.ends = {part: torch.from_numpy(windows.parts[part]).to(device) for part in ("train", "validation")}
        self.offsets_T1 = torch.arange(1 - windows.lookback, 1, device=device)[:, None]

    def weights(self, ends_N: Tensor) -> Tensor | None:
        """(N,) what these windows' losses count; None: each as much as any other."""
        return None if self._weights_R is None else self._weights_R.index_select(0, ends_N)

    def batch(self, ends_N: Tensor, length: int) -> Tensor:
        """Time-major windows (T, N, F) of this length that end at these rows."""
        if self._by_window:
            num_rows, num_features = self.rows_RF.shape
            windows = self.rows_RF.as_strided((num_rows - length + 1, length * num_features), (num_features, 1))
            return windows.index_select(0, ends_N - (length - 1)).view(len(ends_N), length, -1).transpose(0, 1)
        rows_TN = ends_N + self.offsets_T1[-length:]
        return self.rows_RF.index_select(0, rows_TN.reshape(-1)).view(length, len(ends_N), -1)


@dataclass
class _TrainingState:
    """Where a training stands between two epochs."""

    network: nn.Module
    optimizer: ClippedAdam
    chance: torch.Generator
    kept: dict[str, Tensor]  # the best epoch's weights
    best: float = float("inf")
    best_epoch: int = 0
    epoch: int = 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Everything that decides the rest, the random states included."""
        arrays = {f"network.{name}": _array(value) for name, value in self.network.state_dict().items()}
        arrays |= {f"kept.{name}": _array(value) for name, value in self.kept.items()}
        arrays |= {f"optimizer.{name}": _array(value) for name, value in self.optimizer.state().items()}
        arrays |= {"random.order": _array(self.chance.get_state()), "random.torch": _array(torch.get_rng_state())}
        if torch.cuda.is_available():
            arrays["random.cuda"] = _array(torch.cuda.get_rng_state())
        checkpoint.save(arrays, {"epoch": self.epoch, "best": self.best, "best_epoch": self.best_epoch})

    def restore(self, checkpoint: Checkpoint) -> bool:
        """Goes on where a checkpoint was left; False where there is none."""
        saved = checkpoint.load()
        if saved is None:
            return False
        arrays, state = saved
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        for name, value in self.network.state_dict().items():  # in place: the parameters are views of one vector
            value.copy_(tensors[f"network.{name}"])
        self.kept = {name: tensors[f"kept.{name}"].to(value.device) for name, value in self.kept.items()}
        prefix = "optimizer."
        self.optimizer.restore(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
        self.chance.set_state(tensors["random.order"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        self.epoch, self.best, self.best_epoch = int(state["epoch"]), float(state["best"]), int(state["best_epoch"])
        return True


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().copy()


def fit(
    network: nn.Module,
    windows: Windows,
    schedule: Schedule,
    *,
    device: torch.device,
    report: Report,
    objective: Objective,
    checkpoint: Checkpoint | None = None,
) -> Outcome:
    """Fits `network` in place and leaves it with the best epoch's weights.

    Raises:
        TrainingError: the loss is no longer a number.
        JobCancelled: somebody asked for it, within one batch.
    """
    data = _OnDevice(windows, device, by_window=getattr(network, "joins_rows", False))
    chance = torch.Generator().manual_seed(schedule.seed)
    state = _TrainingState(
        network, ClippedAdam(network, learning_rate=schedule.learning_rate), chance, _copied(network)
    )
    threads = _usable_threads(network, data, schedule, objective=objective, report=report)
    tuner = ThreadTuner(threads) if device.type == "cpu" else None
    if checkpoint is not None and state.restore(checkpoint):
        report.say(f"going on after epoch {state.epoch}")
    stops = data.ends["validation"]
    baseline = objective.baseline(data.labels_RK[stops], data.weights(stops))
    while state.epoch < schedule.epochs and state.epoch - state.best_epoch < schedule.patience:
        train_loss = _epoch(state, data, schedule, objective=objective, tuner=tuner, report=report)
        stop_loss = score(network, data, objective)
        state.epoch += 1
        if not (train_loss < float("inf") and stop_loss < float("inf")):
            raise TrainingError(
                f"the loss of epoch {state.epoch} is not a number; "
                "lower `learning_rate` or look for absurd values among the features"
            )
        if stop_loss < state.best:
            state.best, state.best_epoch, state.kept = stop_loss, state.epoch, _copied(network)
        if checkpoint is not None and checkpoint.due():
            state.save(checkpoint)
        report(
            state.epoch,
            schedule.epochs,
            train_loss=train_loss,
            stop_loss=stop_loss,
            stop_skill=1 - stop_loss / baseline if baseline else 0.0,
            learning_rate=schedule.learning_rate,
        )
    network.load_state_dict(state.kept)
    return Outcome(state.epoch, state.best_epoch, state.best)


class ThreadTuner:
    """One thread or several for a training loop, whichever is faster just now.

    On a quiet machine two threads train a batch of 128 windows half as fast again; beside a busy process they wait
    for each other at every operation and are 5 to 100 times slower. So the loop measures: a few batches with one
    thread, then several threads until they fall behind that. The caller makes sure that the number of threads changes
    no bit on its shapes (`_usable_threads` compares the gradients): otherwise the weights would depend on the clock.

    Call `next_batch` before every batch; it costs a microsecond.

    Args:
        most_threads: several.
        use: takes the number; torch's own unless another library trains.
    """

    def __init__(self, most_threads: int, *, use: Callable[[int], None] = torch.set_num_threads) -> None:
        self._most = most_threads
        self._use = use
        self._place, self._period = 0, SHORTEST
        self._last = 0.0
        self._alone: list[float] = []
        self._standard_s = 0.0
        self._behind_s = 0.0
        self._is_several = False
        self._use_several(False)

    def next_batch(self) -> None:
        """Notes how long the last batch took, and changes the number of threads where that tells."""
        if self._most == 1:
            return
        now = time.perf_counter()
        took_s, self._last = now - self._last, now
        if self._place in range(1, PROBE + 1):
            self._alone.append(took_s)
            if self._place == PROBE:
                self._standard_s, self._behind_s, self._alone = statistics.median(self._alone), 0.0, []
                self._use_several(True)
        elif self._is_several:
            self._behind_s = max(0.0, self._behind_s + took_s - self._standard_s)
            if self._behind_s > PATIENCE * self._standard_s:
                self._use_several(False)
        self._place += 1
        if self._place >= self._period:
            self._period = SHORTEST if self._is_several else min(self._period * 2, LONGEST)
            self._place = 0
            self._use_several(False)

    def _use_several(self, several: bool) -> None:
        self._is_several = several
        self._use(self._most if several else 1)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _usable_threads(
    network: nn.Module, data: _OnDevice, schedule: Schedule, *, objective: Objective, report: Report
) -> int:
    """All threads, where they give one thread's gradients to the bit on batches of this training's shapes; else one.

    Some of oneDNN's and MKL's kernels add up in another order with more threads (an LSTM over a single feature does);
    since the tuner depends on the clock, the weights would then too.
    """
    most, ends, lookback = torch.get_num_threads(), data.ends["train"], len(data.offsets_T1)
    rest = len(ends) % schedule.batch_size or schedule.batch_size
    shapes = [(schedule.batch_size, length) for length in sorted({schedule.shortest_window, lookback // 2, lookback})]
    parameters = list(network.parameters())
    network.train()

    def gradients(threads: int, num: int, length: int) -> Tensor:
        report.check()
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            some = ends[:num]
            loss = objective.loss(network, data.batch(some, length), data.labels_RK[some], data.weights(some))
        return torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, parameters)])

    if most > 1 and all(
        torch.equal(gradients(1, *each), gradients(most, *each)) for each in [(rest, lookback), *shapes]
    ):
        return most
    return 1


def _epoch(
    state: _TrainingState,
    data: _OnDevice,
    schedule: Schedule,
    *,
    objective: Objective,
    tuner: ThreadTuner | None,
    report: Report,
) -> float:
    """One pass over the training part in random order; the mean loss."""
    state.network.train()
    ends = data.ends["train"]
    order = ends[torch.randperm(len(ends), generator=state.chance).to(ends.device)]
    batches = torch.split(order, schedule.batch_size)
    lengths = _lengths(len(batches), len(data.offsets_T1), shortest=schedule.shortest_window, chance=state.chance)
    labels = torch.split(data.labels_RK.index_select(0, order), schedule.batch_size)
    total, one = torch.zeros((), device=ends.device), torch.ones((), device=ends.device)
    for ends_N, labels_NK, length in zip(batches, labels, lengths, strict=True):
        report.check()
        if tuner is not None:
            tuner.next_batch()
        state.optimizer.zero_grad()
        loss = objective.loss(state.network, data.batch(ends_N, length), labels_NK, data.weights(ends_N))
        backward(loss, one)
        state.optimizer.step()
        total += loss.detach() * len(ends_N)
    return float(total) / len(ends)


def _lengths(num: int, lookback: int, *, shortest: int, chance: torch.Generator) -> list[int]:
    """The windows' length for each batch of an epoch: mostly the whole lookback, sometimes less."""
    is_short = torch.rand(num, generator=chance) < SHORT_SHARE
    shorter = torch.randint(shortest, lookback + 1, (num,), generator=chance)
    lengths: list[int] = torch.where(is_short, shorter, lookback).tolist()
    return lengths


@torch.no_grad()
def score(network: nn.Module, data: _OnDevice, objective: Objective) -> float:
    """Mean loss on the validation part, over whole windows."""
    network.eval()
    ends, lookback = data.ends["validation"], len(data.offsets_T1)
    total = 0.0
    for ends_N in torch.split(ends, max(1, SCORING_ROWS // lookback)):
        loss = objective.loss(network, data.batch(ends_N, lookback), data.labels_RK[ends_N], data.weights(ends_N))
        total += float(loss) * len(ends_N)
    return total / len(ends)
