"""One prediction of the network alone: batch 1, one thread, the same weights for everyone.

    python -m benchmarks.inference_latency

Ours is what a deployed model answers with: the graph that training exports, in onnxruntime, as float32 and as int8. The
peers are torch itself, the dynamic quantisation of `Linear` that is usually copied into projects like this one, and the
dynamic quantisation of the recurrent layer too. Denormals count as zero for all of them. Before anything is timed, the
answers are compared: float32 must agree, int8 must correlate.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.bundle.export import quantize
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.networks.heads import forecast_head
from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster, recurrent_graph
from tools.interleaved_rounds import Goal, Rounds, conclude, show

NUM_FEATURES, UNITS = 4, 64
LENGTHS = (60, 24)
NUM_ROUNDS, CALLS_PER_ROUND = 15, 60
NUM_COMPARED = 100
OURS, OURS_INT8 = "ours: onnxruntime fp32", "ours: onnxruntime int8"
EAGER, LITERAL, FULL = "torch eager fp32", "torch int8 of Linear", "torch int8 of RNN and Linear"

Call = Callable[[np.ndarray], np.ndarray]
HEAD = forecast_head([parse_target("price_change_1h")], ())


def contestants(cell: str, folder: Path) -> dict[str, Call]:
    """Every way to run one network: (T, F) in, outputs (K,) out; torch gets its tensor without a copy."""
    torch.manual_seed(0)
    network = RecurrentForecaster(
        cell, is_level_F=(False,) * NUM_FEATURES, units=UNITS, layers=1, head=HEAD, dropout=0.2
    ).eval()
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    onnx.save(
        recurrent_graph(weights, cell=cell, num_layers=1, is_level_F=(False,) * NUM_FEATURES, head=HEAD),
        folder / "model.onnx",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.quantization announces its end
        literal = torch.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
        full = torch.quantization.quantize_dynamic(network, {getattr(nn, cell), nn.Linear}, dtype=torch.qint8)
    calls = {OURS: _onnx(OnnxNetwork(folder / "model.onnx"))}
    if cell == "LSTM":  # onnxruntime quantises no GRU
        calls[OURS_INT8] = _onnx(quantize(folder))
    return calls | {EAGER: _torch(network), LITERAL: _torch(literal), FULL: _torch(full)}


def _onnx(network: OnnxNetwork) -> Call:
    return lambda rows_TF: network.predict(rows_TF[None]).outputs_NK[0]


def _torch(network: Any) -> Call:
    def call(rows_TF: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = network(torch.from_numpy(rows_TF)[:, None]).numpy()[0]
        return answer

    return call


def compare(calls: dict[str, Call], length: int) -> dict[str, float]:
    """Each contestant's correlation with torch's float32 answers; raises where somebody computes something else."""
    chance = np.random.default_rng(1)
    windows = chance.standard_normal((NUM_COMPARED, length, NUM_FEATURES)).astype(np.float32)
    answers = {name: np.array([call(window)[0] for window in windows]) for name, call in calls.items()}
    correlations = {name: float(np.corrcoef(each, answers[EAGER])[0, 1]) for name, each in answers.items()}
    worst = float(np.abs(answers[OURS] - answers[EAGER]).max())
    if worst > 1e-5 or min(correlations.values()) < 0.98:
        raise SystemExit(f"the contestants disagree: fp32 by {worst:.2g}, correlations {correlations}")
    return correlations


def measure(calls: dict[str, Call], length: int) -> Rounds:
    """Median microseconds of a call, for each round."""
    window = np.random.default_rng(2).standard_normal((length, NUM_FEATURES)).astype(np.float32)
    rounds = Rounds(bigger_is_better=False)
    for number in range(NUM_ROUNDS + 1):
        for name, call in calls.items():
            taken = []
            for _ in range(CALLS_PER_ROUND):
                begun = time.perf_counter_ns()
                call(window)
                taken.append(time.perf_counter_ns() - begun)
            if number:  # the first round warms up
                rounds.add(name, float(np.median(taken)) / 1000)
    return rounds


def main() -> None:
    """Measures LSTM and GRU at both lengths and prints the tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    goals, figures = [], {}
    for cell in ("LSTM", "GRU"):
        with tempfile.TemporaryDirectory() as folder:
            calls = contestants(cell, Path(folder))
            best = OURS_INT8 if cell == "LSTM" else OURS
            for length in LENGTHS:
                correlations = compare(calls, length)
                rounds = measure(calls, length)
                table = [[*rounds.row(best, name, of_ratio=2), f"{correlations[name]:.4f}"] for name in calls]
                title = f"{cell}, T={length}, {NUM_FEATURES} features, {UNITS} units, batch 1, one thread"
                show(title, ["contestant", "µs", f"{best} is times faster", "correlation with fp32"], table)
                figures[f"{cell} T={length}"] = rounds.medians()
                if length == LENGTHS[0]:
                    goals += _goals(cell, rounds, best)
    conclude("inference_latency", goals, figures)


def _goals(cell: str, rounds: Rounds, best: str) -> list[Goal]:
    if cell == "GRU":
        return [Goal("GRU against torch eager, times faster", rounds.times_better(best, EAGER), 8)]
    return [
        Goal("LSTM against torch int8 of Linear, times faster", rounds.times_better(best, LITERAL), 3),
        Goal("LSTM against torch int8 of RNN and Linear, times faster", rounds.times_better(best, FULL), 8),
    ]


if __name__ == "__main__":
    main()
