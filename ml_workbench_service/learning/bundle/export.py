"""ONNX export: from `Trained` to files, the graph checked against the network, and its dynamic quantisation to int8."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from common_lib.exceptions import TrainingError
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.bundle.manifest import INT8_FILE, MODEL_FILE, WEIGHTS_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.interfaces.family import Trained

BATCHES = (1, 5, 64)
TOLERANCE = 1e-4
"""Largest |difference| between graph and network, in units of the label scale (outputs) and of one deviation (rows)."""
REDUCED_RANGE = True
"""Weights of 7 bits, whatever the processor: without VNNI the sum of two products of 8 bits (255 x 127 x 2) is clipped
at 2^15, of 7 bits (255 x 64 x 2) it fits. LSTM of 64 units, mean |difference| in deviations and times faster than
float32: 0.49 % and 1.14 with VNNI, 0.49 % and 1.30 with AVX2 alone; weights of 8 bits 0.45 % and 1.15, but 8.65 % and
1.30, or 0.45 % and 1.11 by kernels that clip nothing (docs/decisions/0023-int8-belongs-to-a-processor.md).
"""


def export(trained: Trained, draft: Path, *, num_features: int, lengths: Sequence[int], seed: int) -> OnnxNetwork:
    """Writes weights and graph into the draft folder and checks the graph at several batch sizes and lengths.

    Raises:
        TrainingError: the graph's answers are not the network's.
    """
    import onnx  # the API process reaches this module too, and never writes a graph

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
        quantize_dynamic(
            str(draft / MODEL_FILE), str(draft / INT8_FILE), weight_type=QuantType.QInt8, reduce_range=REDUCED_RANGE
        )
    finally:
        logger.setLevel(level)
    return OnnxNetwork(draft / INT8_FILE)
