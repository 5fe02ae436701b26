"""The one torch loop: windows gathered by index on the device, Adam, gradient clipping, early stopping.

No DataLoader (it costs up to 300 times the slicing), nothing materialised per window. A share of the batches is cut
to a random shorter length, so that the network has met short windows before a request brings one.

Legend: N windows of a batch, T rows, F features, K outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import backward

from common_lib.exceptions import TrainingError
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.optimizer import ClippedAdam
from ml_workbench_service.learning.pace import Pace
from ml_workbench_service.learning.windows import Windows

SHORT_SHARE = 0.2
"""Share of the batches that train on a shorter window."""
SCORING_BATCH = 4096


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
    """Epochs run, the epoch whose weights were kept, and its loss on the stopping part."""

    epochs_run: int
    best_epoch: int
    stop_loss: float


class _OnDevice:
    """The rows and labels of all windows on the training device."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self.rows_RF = torch.from_numpy(windows.rows_RF).to(device)
        self.labels_R = torch.from_numpy(windows.labels_R).to(device)
        self.ends = {part: torch.from_numpy(windows.parts[part]).to(device) for part in ("train", "stop")}
        self.offsets_T1 = torch.arange(1 - windows.lookback, 1, device=device)[:, None]

    def batch(self, ends_N: Tensor, length: int) -> Tensor:
        """Time-major windows (T, N, F) of this length that end at these rows."""
        rows_TN = ends_N + self.offsets_T1[-length:]
        return self.rows_RF.index_select(0, rows_TN.reshape(-1)).view(length, len(ends_N), -1)


def fit(network: nn.Module, windows: Windows, schedule: Schedule, *, device: torch.device, report: Report) -> Outcome:
    """Fits `network` in place and leaves it with the best epoch's weights.

    Raises:
        TrainingError: the loss is no longer a number.
        JobCancelled: somebody asked for it, within one batch.
    """
    data = _OnDevice(windows, device)
    optimizer = ClippedAdam(network, learning_rate=schedule.learning_rate)
    chance = torch.Generator().manual_seed(schedule.seed)
    pace = Pace(_usable_threads(network, data, schedule, report=report)) if device.type == "cpu" else None
    best, best_epoch, epoch = float("inf"), 0, 0
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    zero_loss = float(data.labels_R[data.ends["stop"]].square().mean())
    for epoch in range(1, schedule.epochs + 1):
        train_loss = _epoch(network, data, schedule, optimizer=optimizer, pace=pace, chance=chance, report=report)
        stop_loss = score(network, data)
        if not (train_loss < float("inf") and stop_loss < float("inf")):
            raise TrainingError(
                f"the loss of epoch {epoch} is not a number; "
                "lower `learning_rate` or look for absurd values among the features"
            )
        report(
            epoch,
            schedule.epochs,
            train_loss=train_loss,
            stop_loss=stop_loss,
            stop_skill=1 - stop_loss / zero_loss if zero_loss else 0.0,
        )
        if stop_loss < best:
            best, best_epoch = stop_loss, epoch
            kept = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= schedule.patience:
            break
    network.load_state_dict(kept)
    return Outcome(epoch, best_epoch, best)


def _usable_threads(network: nn.Module, data: _OnDevice, schedule: Schedule, *, report: Report) -> int:
    """All threads, where they give one thread's gradients to the bit on batches of this training's shapes; else one.

    Some of oneDNN's and MKL's kernels add up in another order with more threads (an LSTM over a single feature does);
    since the pace depends on the clock, the weights would then too.
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
            loss = nn.functional.mse_loss(network(data.batch(ends[:num], length))[:, 0], data.labels_R[ends[:num]])
        return torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, parameters)])

    if most > 1 and all(
        torch.equal(gradients(1, *each), gradients(most, *each)) for each in [(rest, lookback), *shapes]
    ):
        return most
    return 1


def _epoch(
    network: nn.Module,
    data: _OnDevice,
    schedule: Schedule,
    *,
    optimizer: ClippedAdam,
    pace: Pace | None,
    chance: torch.Generator,
    report: Report,
) -> float:
    """One pass over the training part in random order; the mean squared error."""
    network.train()
    ends = data.ends["train"]
    order = ends[torch.randperm(len(ends), generator=chance).to(ends.device)]
    batches = torch.split(order, schedule.batch_size)
    lengths = _lengths(len(batches), len(data.offsets_T1), shortest=schedule.shortest_window, chance=chance)
    total = torch.zeros((), device=ends.device)
    for ends_N, length in zip(batches, lengths, strict=True):
        report.check()
        if pace is not None:
            pace.next_batch()
        optimizer.zero_grad()
        answers_N = network(data.batch(ends_N, length))[:, 0]
        loss = nn.functional.mse_loss(answers_N, data.labels_R[ends_N])
        backward(loss)
        optimizer.step()
        total += loss.detach() * len(ends_N)
    return float(total) / len(ends)


def _lengths(num: int, lookback: int, *, shortest: int, chance: torch.Generator) -> list[int]:
    """The windows' length for each batch of an epoch: mostly the whole lookback, sometimes less."""
    is_short = torch.rand(num, generator=chance) < SHORT_SHARE
    shorter = torch.randint(shortest, lookback + 1, (num,), generator=chance)
    lengths: list[int] = torch.where(is_short, shorter, lookback).tolist()
    return lengths


@torch.no_grad()
def score(network: nn.Module, data: _OnDevice) -> float:
    """Mean squared error on the stopping part, over whole windows."""
    network.eval()
    ends, lookback = data.ends["stop"], len(data.offsets_T1)
    total = 0.0
    for ends_N in torch.split(ends, SCORING_BATCH):
        answers_N = network(data.batch(ends_N, lookback))[:, 0]
        total += float((answers_N - data.labels_R[ends_N]).square().sum())
    return total / len(ends)
