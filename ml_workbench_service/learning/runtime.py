"""`OnnxNetwork`: one graph in one onnxruntime session, one thread. Training checks with it, serving answers with it.

Legend: N windows, T rows, F features, K outputs.
"""

from pathlib import Path

import onnxruntime

from common_lib.exceptions import PredictionError
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction

onnxruntime.set_default_logger_severity(3)


class OnnxNetwork:
    """A `Predictor` over an ONNX file. One thread without spinning: a small network is faster so, and the rest of the
    process keeps its cores; denormals count as zero (they slow a recurrent network some 20-fold)."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.enable_cpu_mem_arena = False  # windows are small; the arena would keep the largest batch's memory
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def predict(self, rows_NTF: Floats32) -> RawPrediction:
        """Outputs and last rows; raises PredictionError where the runtime refuses."""
        try:
            outputs_NK, last_rows_NF = self._session.run(["outputs", "last_rows"], {"rows": rows_NTF})
        except Exception as error:
            raise PredictionError(
                "the network could not be run on this input; the service log has the cause"
            ) from error
        return RawPrediction(outputs_NK, last_rows_NF)
