"""Batches, the control: onnxruntime alone on windows that lie scaled in memory; one JSON line in for each turn.

Nothing is read, checked, scaled, decoded or written: what the network itself takes.
"""

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.contestants.turns import play


@cache
def session(path: str) -> onnxruntime.InferenceSession:
    """One thread without spinning, as the service runs its networks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def turn(folder: str, rows: list[list[float]], num_rows: int, seconds: float) -> dict[str, Any]:
    """Rows a second, `num_rows` a run."""
    rows_NTF = np.repeat(np.array(rows, dtype=np.float32)[None], num_rows, axis=0)
    network, num, begun = session(str(Path(folder) / "model.onnx")), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        outputs = network.run(["outputs"], {"rows": rows_NTF})[0]
        num += len(outputs)
    return {"per_s": num / elapsed}


if __name__ == "__main__":
    play(turn)
