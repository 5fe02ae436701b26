"""LSTM autoencoder in torch: a window is told back from a few numbers; the reconstruction error is the anomaly.

An LSTM reads the window, a narrow layer keeps a few numbers of it, a second LSTM tells the rows back from these,
newest first (Malhotra et al., 2016, arXiv:1607.00148). Measured on 15,000 training windows of real 4-hour bars of
EUR/USD with injected anomalies and 1 % false alarms, four things decide what it finds:

- beside every feature it reads its *activity*, the size of its last changes: a price that stands still is the easiest
  window of all to tell back, and only the activity says that it should not stand still (stale prices found: 1 % → all);
- errors are weighted by recency, halved every two rows: the question is whether now is strange, and an equal weight
  both dilutes a bad tick among 24 rows and alarms for 23 rows after it;
- errors are seen against each other: `error_<feature>` is the squared distance of the feature's residual from what
  the other features' residuals let expect, in its own deviations (broken correlations found: a tenth → a third);
- 64 units and a bottleneck of 16 rather than 32 and 8: what is told back better stands out more when it is wrong
  (a third → two fifths).

It fails where features have nothing to do with each other or with their past: then there is nothing to tell back.

Legend: N windows, T rows, F features, C = 2F channels (rows, then activity), H units, B numbers of the bottleneck.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.objectives import weighted_mean
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks.autoencoder_graph import (
    ACTIVITY_FLOOR,
    ACTIVITY_ROOTS,
    ACTIVITY_ROWS,
    autoencoder_graph,
    recency,
)
from ml_workbench_service.learning.networks.windowed import WindowedNetwork, fit_network

MOST_WINDOWS = 20_000
"""Training windows from which the activity's scale and the residuals' covariance are estimated."""
BATCH = 256
RIDGE = 0.1
"""Share of each channel's variance added to itself: the difference of two features that are nearly one stays small."""
SMALLEST_VARIANCE = 1e-4
"""Residuals under a hundredth of a deviation are no yardstick: a constant that moves would count without bound."""
SMALLEST_SCALE = 1e-4
"""An activity that varies less than this does not vary."""


class Autoencoder(WindowedNetwork):
    """Window stage, activity, LSTM, bottleneck, LSTM backwards; its answer is the error of its reconstruction."""

    def __init__(self, *, is_level_F: tuple[bool, ...], units: int, bottleneck: int) -> None:
        super().__init__(is_level_F)
        num_features, num_channels = len(is_level_F), 2 * len(is_level_F)
        self.encoder = nn.LSTM(num_channels, units)
        self.narrow = nn.Linear(units, bottleneck)
        self.decoder = nn.LSTM(bottleneck, units)
        self.head = nn.Linear(units, num_channels)
        self.activity_center_F: Tensor
        self.activity_scale_F: Tensor
        self.whitening_CC: Tensor
        self.register_buffer("activity_center_F", torch.zeros(num_features))
        self.register_buffer("activity_scale_F", torch.ones(num_features))
        self.register_buffer("whitening_CC", torch.eye(num_channels))

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows → (N, 1 + F): the window's error, and each feature's; the first is the mean of the others."""
        error_TNC = (self.residuals(rows_TNF) @ self.whitening_CC).square()
        weight_T = torch.from_numpy(recency(len(rows_TNF))).to(error_TNC)
        error_NC = (error_TNC * weight_T[:, None, None]).sum(dim=0)
        own, activity = error_NC.chunk(2, dim=1)
        error_NF = (own + activity) * 0.5
        return torch.cat([error_NF.mean(dim=1, keepdim=True), error_NF], dim=1)

    def residuals(self, rows_TNF: Tensor) -> Tensor:
        """Channels less what is told back of them (T, N, C)."""
        channels_TNC = self.channels(rows_TNF)
        _, (state_1NH, _) = self.encoder(channels_TNC)
        told_NB = self.narrow(state_1NH[0])
        states_TNH, _ = self.decoder(told_NB.expand(len(rows_TNF), *told_NB.shape))
        back_TNC: Tensor = self.head(states_TNH).flip(0)
        return channels_TNC - back_TNC

    def channels(self, rows_TNF: Tensor) -> Tensor:
        """Rows after the window stage, and the scaled activity."""
        activity = (self.activity(rows_TNF) - self.activity_center_F) / self.activity_scale_F
        return torch.cat([self.window_stage(rows_TNF), activity], dim=2)

    def activity(self, rows_TNF: Tensor) -> Tensor:
        """A root of the mean square of each row's last changes; before the first change, as at the first change."""
        square_TNF = (rows_TNF[1:] - rows_TNF[:-1]).square()
        padded = torch.cat([square_TNF[:1]] * ACTIVITY_ROWS + [square_TNF])
        mean_TNF = padded[: len(rows_TNF)]
        for offset in range(1, ACTIVITY_ROWS):
            mean_TNF = mean_TNF + padded[offset : offset + len(rows_TNF)]
        activity = mean_TNF * (1 / ACTIVITY_ROWS) + ACTIVITY_FLOOR
        for _ in range(ACTIVITY_ROOTS):
            activity = activity.sqrt()
        return activity


class ReconstructionError:
    """An `Objective`: the mean error over a batch's windows, labels or no labels."""

    def __init__(self, plainest: float) -> None:
        self._plainest = plainest

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Mean over windows."""
        return weighted_mean(network(rows_TNF)[:, 0], weights_N)

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """The error of telling every window back as the average row."""
        return self._plainest


def train_autoencoder(
    problem: TrainingProblem,
    hyperparameters: NetworkHyperparameters,
    *,
    units: int,
    bottleneck: int,
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Fits activity, network and whitening, in this order, on the training and validation parts alone.

    A bottleneck as wide as the window can copy it, faults included: the warning `bottleneck_too_wide`.
    """
    windows, is_level_F = problem.windows, problem.windows.scaler.is_level_F
    torch.manual_seed(problem.seed)
    network = Autoencoder(is_level_F=is_level_F, units=units, bottleneck=bottleneck)
    fit_activity(network, windows)
    objective = ReconstructionError(plainest_error(network, windows))
    outcome = fit_network(
        network, problem, hyperparameters, objective=objective, accelerator=accelerator, report=report
    )
    fit_whitening(network, windows, report=report)
    weights, outputs = network.weights(), ("anomaly_error", *(f"error_{feature}" for feature in windows.features))
    return Trained(
        outputs=outputs,
        weights=weights,
        network={
            "kind": "autoencoder",
            "units": units,
            "bottleneck": bottleneck,
            "num_features": len(is_level_F),
            "num_outputs": len(outputs),
        },
        graph=lambda: autoencoder_graph(weights, is_level_F=is_level_F),
        predict=network.answer,
        epochs_run=outcome.epochs_run,
        best_epoch=outcome.best_epoch,
        warnings=("bottleneck_too_wide",) if bottleneck >= windows.lookback * len(is_level_F) else (),
        can_quantize=False,  # an error is a small difference of large numbers
    )


@torch.no_grad()
def fit_activity(network: Autoencoder, windows: Windows) -> None:
    """Centre and scale of the activity over the training windows."""
    values = torch.cat([network.activity(batch)[-1] for batch in _batches(windows, windows.parts["train"])]).double()
    scale = values.std(dim=0, correction=0)
    network.activity_center_F.copy_(values.mean(dim=0))
    network.activity_scale_F.copy_(torch.where(scale > SMALLEST_SCALE, scale, torch.ones(())))


@torch.no_grad()
def plainest_error(network: Autoencoder, windows: Windows) -> float:
    """The validation part's error if nothing but zeros were told back."""
    weight_T1 = torch.from_numpy(recency(windows.lookback))[:, None]
    errors = [
        (network.channels(batch).square().mean(dim=2) * weight_T1).sum(dim=0)
        for batch in _batches(windows, windows.parts["validation"])
    ]
    return float(torch.cat(errors).mean())


@torch.no_grad()
def fit_whitening(network: Autoencoder, windows: Windows, *, report: Report) -> None:
    """The matrix that turns residuals into each channel's distance from what the others let expect.

    With the precision P of the residuals, e P / √diag(P) is each channel's residual less its regression on the others,
    in deviations of what then remains (Lauritzen, "Graphical Models", 1996, section 5.1).
    """
    weight_T = torch.from_numpy(recency(windows.lookback)).double()
    second, first, num = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for batch in _batches(windows, windows.parts["train"]):
        report.check()
        residual_TNC = network.residuals(batch).double()
        second = second + torch.einsum("t,tnc,tnd->cd", weight_T, residual_TNC, residual_TNC)
        first = first + torch.einsum("t,tnc->c", weight_T, residual_TNC)
        num += batch.shape[1]
    mean = first / num
    covariance = second / num - torch.outer(mean, mean)
    variance = covariance.diagonal()
    precision = torch.linalg.inv(covariance + torch.diag(RIDGE * variance + SMALLEST_VARIANCE))
    network.whitening_CC.copy_(precision / precision.diagonal().sqrt())


def _batches(windows: Windows, ends: Ints) -> Iterator[Tensor]:
    """Time-major windows, evenly at most `MOST_WINDOWS` of them."""
    chosen = ends[:: max(1, -(-len(ends) // MOST_WINDOWS))]
    for begin in range(0, len(chosen), BATCH):
        yield torch.from_numpy(np.ascontiguousarray(windows.gather(chosen[begin : begin + BATCH]).transpose(1, 0, 2)))
