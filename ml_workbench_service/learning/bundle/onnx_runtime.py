"""ONNX Runtime inference: one graph in one session, one thread. Training checks with it, serving answers with it.

Law: float32 on the processor is what a version is judged with and what a replay repeats to the bit; an accelerator's
answers agree with it within the graph's tolerance (`learning.bundle.export.TOLERANCE`), not to the bit.

Legend: N windows, T rows, F features, K outputs.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from common_lib.exceptions import PredictionError
from ml_workbench_service.accelerators import PROCESSOR, Provider
from ml_workbench_service.accelerators.processor import clips_products, processor_features
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction

onnxruntime.set_default_logger_severity(3)

log = logging.getLogger(__name__)


class OnnxNetwork:
    """A `Predictor` over an ONNX file. One thread without spinning: a small network is faster so, and the rest of the
    process keeps its cores; denormals count as zero (they slow a recurrent network some 20-fold).

    Args:
        file: the graph.
        providers: what shall answer, the best first (`accelerators.inference_providers`). int8 graphs belong on the
            processor, which alone has their operators.

    Raises:
        PredictionError: onnxruntime has no such provider here.
    """

    def __init__(self, file: Path, *, providers: Sequence[Provider] = PROCESSOR) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if clips_products(processor_features()):  # int8 graphs of before weights had 7 bits: slower kernels, exact sums
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.enable_cpu_mem_arena = False  # windows are small; the arena would keep the largest batch's memory
        self._session = _session(file, options, providers)
        self._reads_positions = any(each.name == "positions" for each in self._session.get_inputs())
        self.provider = str(self._session.get_providers()[0])
        wanted = _name(providers[0])
        if self.provider != wanted:
            log.warning(
                "%s was asked for and %s answers: onnxruntime could not load it; see docs/integration_notes.md for "
                "what it needs",
                wanted,
                self.provider,
            )

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs and last rows; raises PredictionError where the runtime refuses."""
        inputs = {"rows": rows_NTF}
        if self._reads_positions:
            flat_N = np.zeros(len(rows_NTF), dtype=np.float32)
            inputs["positions"] = (flat_N if positions_N is None else positions_N)[:, None]
        try:
            outputs_NK, last_rows_NF = self._session.run(["outputs", "last_rows"], inputs)
        except Exception as error:
            raise PredictionError(
                "the network could not be run on this input; the service log has the cause"
            ) from error
        return RawPrediction(outputs_NK, last_rows_NF)


def _session(
    file: Path, options: onnxruntime.SessionOptions, providers: Sequence[Provider]
) -> onnxruntime.InferenceSession:
    """The session; one that cannot run as asked is an error, where onnxruntime alone would print and fall back."""
    known = set(onnxruntime.get_available_providers())
    unknown = [name for name in map(_name, providers) if name not in known]
    if unknown:
        raise PredictionError(
            f"onnxruntime has no {unknown[0]} here, only {', '.join(sorted(known))}; install its build for this "
            "hardware (docs/integration_notes.md), or set ACCELERATOR to cpu"
        )
    plain = [each if isinstance(each, str) else (each[0], dict(each[1])) for each in providers]
    return onnxruntime.InferenceSession(str(file), options, providers=plain, enable_fallback=0)


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
