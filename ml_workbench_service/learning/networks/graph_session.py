"""`GraphSession`: a graph run in training as serving runs it, for what is grown on derived values.

Legend: N windows, T rows, F features, D derived values.
"""

from onnx import ModelProto
from onnxruntime import InferenceSession, SessionOptions

from ml_workbench_service.contracts.market import Floats32


class GraphSession:
    """`rows` (N, T, F) → `outputs` (N, D) and `last_rows`, with serving's options: others have other last bits."""

    def __init__(self, model: ModelProto) -> None:
        self._session = session(model)

    def __call__(self, rows_NTF: Floats32) -> tuple[Floats32, Floats32]:
        """Derived values (N, D) and last rows (N, F)."""
        derived, last_rows = self._session.run(["outputs", "last_rows"], {"rows": rows_NTF})
        return derived, last_rows


def session(model: ModelProto) -> InferenceSession:
    """With serving's options."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.enable_cpu_mem_arena = False
    return InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
