"""Linear policy: a linear forecast of the paid move, and three values that its sign after costs is the best of.

The label of a decision is the move between the prices that it is filled and settled at, in units of the symbol's
typical bar: what the environment pays before costs, known inside the decision's part. A network of the family `linear`
learns it, by its loop. Its graph says, of a forecast f and the round trip c,

    short: -f - c      flat: 0      long: f - c

so the best of the three is the sign of f where |f| > c, and flat elsewhere: what the baseline `linear` of policies
holds, but for its ridge penalty in place of early stopping, and for c: here it is the mean round trip over the training
part, since a graph is told neither the symbol nor its spread.

Legend: N decisions, R rows, T rows of a window, F features.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.objectives import weighted_mean
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks import windowed
from ml_workbench_service.learning.networks.heads import Head
from ml_workbench_service.learning.networks.linear import LinearForecaster, linear_graph
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.reinforcement.policy_family import Market

LONG = 2
SIDES = (-1.0, 0.0, 1.0)


class NetOfCosts(Head):
    """One raw value, the forecast; three outputs, what each position is expected to earn net of a round trip.

    Args:
        names: of the three outputs: short, flat, long.
        round_trip: what opening and closing costs, in the forecast's unit.
    """

    def __init__(self, names: Sequence[str], *, round_trip: float) -> None:
        super().__init__(names, ForecastError(round_trip))
        self.num_raw = 1
        self._sides_A = np.array(SIDES, dtype=np.float32)
        self._costs_A = np.abs(self._sides_A) * np.float32(round_trip)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Forecasts (N, 1) → outputs (N, 3)."""
        sides_A, costs_A = (torch.from_numpy(each).to(raw_NR.device) for each in (self._sides_A, self._costs_A))
        return raw_NR * sides_A - costs_A

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as two nodes."""
        graph.add("Mul", [raw, graph.constant("sides", self._sides_A)], ["gross"])
        graph.add("Sub", ["gross", graph.constant("costs", self._costs_A)], ["outputs"])


class ForecastError:
    """Squared error of the forecast that the outputs were made of; the plainest answer is zero: the random walk."""

    def __init__(self, round_trip: float) -> None:
        self._round_trip = round_trip

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Mean over windows."""
        forecasts_NK = network(rows_TNF)[:, LONG:] + self._round_trip
        if weights_N is None:
            return nn.functional.mse_loss(forecasts_NK, labels_NK)
        return weighted_mean((forecasts_NK - labels_NK).square(), weights_N)

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """The labels' mean square."""
        return float(weighted_mean(labels_NK.square(), weights_N))


def train(
    problem: TrainingProblem,
    hyperparameters: NetworkHyperparameters,
    *,
    outputs: tuple[str, ...],
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Trains a linear policy; the same seed gives the same weights on the same hardware.

    Args:
        outputs: names of the three outputs.

    Raises:
        DataValidationError: no decision of a part can be paid.
        JobCancelled: somebody asked for it, within one batch.
    """
    market = Market.of(problem)
    paid = _labelled(problem.windows, market)
    is_level_F = paid.scaler.is_level_F
    round_trip = round_trip_of(market)
    head = NetOfCosts(outputs, round_trip=round_trip)
    architecture = windowed.Architecture(
        build=lambda: LinearForecaster(is_level_F=is_level_F, lookback=paid.lookback, head=head),
        graph=lambda weights: linear_graph(weights, is_level_F=is_level_F, head=head, has_positions=True),
        head=head,
        description={"kind": "linear_policy", "lookback": paid.lookback, "round_trip": round_trip},
    )
    trained = windowed.train(
        architecture, replace(problem, windows=paid), hyperparameters, accelerator=accelerator, report=report
    )
    return replace(trained, can_quantize=False)


def round_trip_of(market: Market) -> float:
    """What opening and closing costs in the mean over the training part's decisions, in units of a typical bar."""
    entries = market.train + market.series.delay
    return float(np.mean(2.0 * market.series.unit_cost_R[entries] * market.units_R[market.train]))


def _labelled(windows: Windows, market: Market) -> Windows:
    """The windows with the move that each decision of training and validation part is paid by as their label."""
    labels_R1 = np.zeros((market.series.num_rows, 1), dtype=np.float32)
    parts = {**windows.parts, "train": market.train, "validation": market.validation}
    for rows in (market.train, market.validation):
        labels_R1[rows, 0] = market.series.move_R[rows + market.series.delay] * market.units_R[rows]
    return replace(windows, labels_RK=labels_R1, parts=parts)
