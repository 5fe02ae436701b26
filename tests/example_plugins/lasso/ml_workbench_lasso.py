"""Lasso: a linear forecast from the newest bar, many of whose weights are exactly zero. Numpy alone."""

from typing import Any

import numpy as np
from pydantic import Field

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import Epochs, Lookback


class LassoHyperparameters(Contract):
    """Every field has a default, bounds and a sentence; `interfaces/hyperparameters.py` has the common ones."""

    epochs: Epochs = 30
    penalty: Finite = Field(default=0.01, ge=0, le=10, description="What a weight has to gain to be other than zero.")
    lookback: Lookback = 24


class Lasso(Family[LassoHyperparameters]):
    """Lasso over the newest bar (Tibshirani, JRSS B 58(1), 1996), by coordinate descent.

    Fails where earlier bars tell of the next one, or anything but a sum does. Costs next to nothing.
    """

    name = "lasso"
    model_type = ModelType.TIME_SERIES
    min_window = 2

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """From the part `train`, on the processor whatever the accelerator."""
        if problem.quantiles:
            raise DataValidationError.at("body.quantiles", "lasso makes point forecasts; leave `quantiles` out")
        hyper = self.hyperparameters
        windows, level_F, checkpoint = problem.windows, problem.windows.scaler.is_level_F, problem.checkpoint
        ends = windows.parts["train"]
        x_NF, y_NK = newest(windows.gather(ends), level_F).astype(np.float64), windows.labels_RK[ends]
        x_mean_F, y_mean_K = x_NF.mean(axis=0), y_NK.mean(axis=0, dtype=np.float64)
        x_NF, y_NK = x_NF - x_mean_F, y_NK - y_mean_K
        gram_FF, target_FK = x_NF.T @ x_NF / len(ends), x_NF.T @ y_NK / len(ends)
        saved = checkpoint.load() if checkpoint else None
        weight_FK = saved.arrays["weight"] if saved else np.zeros(target_FK.shape)
        for epoch in range(saved.state["epoch"] if saved else 0, hyper.epochs):
            report.check()  # raises where somebody cancelled
            for f, variance in enumerate(gram_FF.diagonal()):
                rest_K = target_FK[f] - gram_FF[f] @ weight_FK + variance * weight_FK[f]
                weight_FK[f] = np.sign(rest_K) * np.maximum(np.abs(rest_K) - hyper.penalty, 0) / (variance + 1e-9)
            if checkpoint and checkpoint.due():
                checkpoint.save({"weight": weight_FK}, {"epoch": epoch + 1})
            report(epoch + 1, hyper.epochs, num_weights=float(np.count_nonzero(weight_FK)))
        weights = {"weight": weight_FK.T.astype("f4"), "bias": (y_mean_K - x_mean_F @ weight_FK).astype("f4")}
        return Trained(
            outputs=tuple(target.name for target in problem.targets),
            weights=weights,
            network={"kind": "lasso", "num_features": len(x_mean_F), "num_outputs": len(y_mean_K)},
            graph=lambda: graph(weights, level_F),
            predict=lambda rows_NTF, positions_N=None: answer(weights, newest(rows_NTF, level_F)),
            epochs_run=hyper.epochs,
            best_epoch=hyper.epochs,
            can_quantize=False,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """Every window is gathered once."""
        return 4 * num_rows * num_features * (self.lookback + 8)

    def seconds(self, num_windows: int) -> float:
        """Gathering the windows takes longer than the sweeps."""
        return 1.0 + 1e-6 * num_windows * self.lookback


def newest(rows_NTF: Any, is_level_F: Any) -> Any:
    """(N, F) the last row after the window stage: price levels lose their mean over the window."""
    return rows_NTF[:, -1] - rows_NTF.mean(axis=1) * np.array(is_level_F, np.float32)


def answer(weights: Any, last_NF: Any) -> RawPrediction:
    """Outputs (N, K) in units of the label scale."""
    return RawPrediction(last_NF @ weights["weight"].T + weights["bias"], last_NF)


def graph(weights: Any, is_level_F: Any) -> Any:
    """The same in ONNX; a sum made of a mean, since a matrix product's last bits would depend on the batch."""
    from ml_workbench_service.learning.networks.onnx_builder import Graph  # loads onnx: not with the module

    built, (num_outputs, num_features) = Graph(is_level_F), weights["weight"].shape
    built.add("Unsqueeze", ["last_rows", built.constant("axis", np.array([1]))], ["rows_of_outputs"])
    built.add("Mul", ["rows_of_outputs", built.constant("weight", weights["weight"] * num_features)], ["products"])
    built.add("GlobalAveragePool", ["products"], ["sums"])
    built.add("Flatten", ["sums"], ["flat_sums"])
    built.add("Add", ["flat_sums", built.constant("bias", weights["bias"])], ["outputs"])
    return built.model("lasso", num_outputs=num_outputs)
