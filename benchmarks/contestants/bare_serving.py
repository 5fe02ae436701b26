"""Serving, the bare control: an ASGI function, orjson and onnxruntime, and nothing of what a service must do besides.

    python bare_serving.py folder port

`folder` has `model.onnx` and `scaler.json`. No key, no checks of any value, no interval, novelty, ledger, metrics or
queue: what uvicorn and the graph allow at all.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

FOLDER = Path(os.environ.get("GIVEN") or sys.argv[1])  # peers are started by programs of their own
SCALER = json.loads((FOLDER / "scaler.json").read_text(encoding="utf-8"))
NAMES, LEVELS = SCALER["features"], np.flatnonzero(SCALER["is_level"])
CENTER, SCALE = np.array(SCALER["center"]), np.array(SCALER["scale"])


def session() -> onnxruntime.InferenceSession:
    """One thread without spinning, as the service runs its networks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"])


SESSION = session()


def forecast(features: dict[str, list[float]]) -> float:
    """The network's word on one window, in the target's unit."""
    return forecast_of_rows(np.array([features[name] for name in NAMES]).T)


def forecast_of_rows(x_TF: Any) -> float:
    """The same of (T, F) in the model's order, which is changed."""
    x_TF[:, LEVELS] = np.log(x_TF[:, LEVELS])
    rows_1TF = ((x_TF - CENTER) / SCALE).astype(np.float32)[None]
    outputs_1K = SESSION.run(["outputs"], {"rows": rows_1TF})[0]
    return float(outputs_1K[0, 0]) * float(SCALER["label_scale"])


HEADERS = [(b"content-type", b"application/json")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Whatever is posted is a window."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = orjson.dumps({"prediction": forecast(orjson.loads(body)["features"])}) if body else b"{}"
    headers = [*HEADERS, (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
