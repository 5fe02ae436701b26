"""From `Trained` to files: the ONNX graph, checked against the network; int8 beside it, kept only if it earns it.

int8 is onnxruntime's dynamic quantisation of the graph. Its activation scale is the batch's, so it runs, calibrates
and is judged at batch 1 only. finance.md's rule decides: at least 1.15 times faster here, mean |difference| at most
5 % of the predictions' standard deviation, and the same direction on at least 98 % of the calibration part.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from common_lib.exceptions import TrainingError
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.bundle.manifest import INT8_FILE, MODEL_FILE, WEIGHTS_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.interfaces.family import Trained

BATCHES = (1, 5, 64)
TOLERANCE = 1e-4
"""Largest |difference| between graph and network, in units of the label scale (outputs) and of one deviation (rows)."""
LEAST_SPEEDUP = 1.15
MOST_MEAN_DELTA = 0.05
LEAST_AGREEMENT = 0.98
NUM_TIMED = 400
MOST_COMPARED = 2000


def export(trained: Trained, draft: Path, *, num_features: int, lengths: Sequence[int], seed: int) -> OnnxNetwork:
    """Writes weights and graph into the draft folder and checks the graph at several batch sizes and lengths.

    Raises:
        TrainingError: the graph's answers are not the network's.
    """
    save_file({name: np.ascontiguousarray(value) for name, value in trained.weights.items()}, str(draft / WEIGHTS_FILE))
    onnx.save(trained.graph(), str(draft / MODEL_FILE))
    network = OnnxNetwork(draft / MODEL_FILE)
    chance = np.random.default_rng(seed)
    for batch in BATCHES:
        for length in lengths:
            rows = chance.standard_normal((batch, length, num_features)).astype(np.float32)
            positions = chance.integers(-1, 2, batch).astype(np.float32)
            _compare(network.predict(rows, positions), trained.predict(rows, positions), batch=batch, length=length)
    return network


def _compare(graph: RawPrediction, network: RawPrediction, *, batch: int, length: int) -> None:
    for found, wanted in ((graph.outputs_NK, network.outputs_NK), (graph.last_rows_NF, network.last_rows_NF)):
        worst = float(np.max(np.abs(found - wanted))) if found.shape == wanted.shape else float("inf")
        if not worst <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise TrainingError(
                f"the exported graph differs from the network by {worst:.2g} at batch {batch}, length {length}; "
                "nothing was published; please report this with the request"
            )


def quantize(draft: Path) -> OnnxNetwork:
    """Writes the int8 graph beside the float32 one."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser advises the root logger about image models
    try:
        quantize_dynamic(str(draft / MODEL_FILE), str(draft / INT8_FILE), weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    return OnnxNetwork(draft / INT8_FILE)


def measure_quantization(
    float32: OnnxNetwork, int8: OnnxNetwork, windows_NTF: Floats32, *, decide: Callable[[Floats], np.ndarray]
) -> Quantization:
    """finance.md's rule on windows of the calibration part, one by one.

    Args:
        float32: the exported network.
        int8: its quantised sibling.
        windows_NTF: scaled windows.
        decide: what outputs (N, K) lead to: a direction, a class.
    """
    exact, rough = (
        np.concatenate([network.predict(window[None]).outputs_NK for window in windows_NTF]).astype(np.float64)
        for network in (float32, int8)
    )
    speedup = _speedup(float32, int8, windows_NTF[:1])
    varies = np.ptp(exact, axis=0) > 0
    if not varies.any():
        return Quantization(
            accepted=False, reason="the predictions do not vary, so nothing can be compared", speedup=speedup
        )
    delta = np.abs(exact - rough)[:, varies] / exact[:, varies].std(axis=0)
    mean_delta = float(delta.mean(axis=0).max())  # of the output that suffers most
    agreement = float(np.mean(decide(exact) == decide(rough)))
    findings = [
        (speedup >= LEAST_SPEEDUP, f"{speedup:.2f} times as fast, needs {LEAST_SPEEDUP}"),
        (
            mean_delta <= MOST_MEAN_DELTA,
            f"mean difference {mean_delta:.1%} of a deviation, at most {MOST_MEAN_DELTA:.0%}",
        ),
        (agreement >= LEAST_AGREEMENT, f"decisions agree on {agreement:.1%}, needs {LEAST_AGREEMENT:.0%}"),
    ]
    failed = [text for passed, text in findings if not passed]
    return Quantization(
        accepted=not failed,
        reason="; ".join(failed or [text for _, text in findings]),
        speedup=speedup,
        max_delta_std=float(delta.max()),
        mean_delta_std=mean_delta,
        direction_agreement=agreement,
    )


def _speedup(float32: OnnxNetwork, int8: OnnxNetwork, window_1TF: Floats32) -> float:
    """Ratio of median times at batch 1, the two interleaved so that a busy machine slows both."""
    times: dict[str, list[float]] = {"float32": [], "int8": []}
    runs: list[tuple[str, Callable[[Floats32], RawPrediction]]] = [("float32", float32.predict), ("int8", int8.predict)]
    for _ in range(NUM_TIMED):
        for name, run in runs:
            begun = time.perf_counter()
            run(window_1TF)
            times[name].append(time.perf_counter() - begun)
    return float(np.median(times["float32"][20:]) / np.median(times["int8"][20:]))
