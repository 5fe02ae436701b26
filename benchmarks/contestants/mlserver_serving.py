"""Serving, MLServer: the graph behind its V2 protocol as a runtime of its own, in one process (`parallel_workers` 0).

    python mlserver_serving.py folder port

Its fastest set-up on one core: a worker process would add a hand-over, and its adaptive batching waits.
"""

import json
import os
import socket
import sys
from pathlib import Path

if __name__ != "__main__":
    import numpy as np
    from bare_serving import forecast_of_rows
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse

    class Forecast(MLModel):
        """Rows (1, T, F) in, one forecast out."""

        async def load(self) -> bool:
            """The graph is there with the import."""
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            """One window."""
            rows_1TF = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float64)
            value = np.array([[forecast_of_rows(rows_1TF[0])]])
            return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("prediction", value)])


def free_port() -> int:
    """One of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Writes the settings and becomes the server."""
    home = Path(sys.argv[1]) / "mlserver"
    home.mkdir(exist_ok=True)
    settings = {
        "host": "127.0.0.1", "http_port": int(sys.argv[2]), "grpc_port": free_port(), "metrics_port": free_port(),
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    model = {"name": "served", "implementation": "mlserver_serving.Forecast"}
    (home / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (home / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    environment = {**os.environ, "GIVEN": sys.argv[1], "PYTHONPATH": str(Path(__file__).parent)}
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execve(program, [program, "start", str(home)], environment)


if __name__ == "__main__":
    main()
