"""tritonclient.http as it is: prints what it was answered. Runs in an environment of its own."""

import json
import sys

import numpy as np
import tritonclient.http as triton

asked = json.load(sys.stdin)
client = triton.InferenceServerClient(asked["http"])
headers = {"X-API-Key": asked["key"], "X-Correlation-ID": "the-same"}
window = np.array(asked["windows"], dtype=np.float64)
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("small", headers=headers)
assert client.is_model_ready("small", "1.0.0", headers=headers)
assert not client.is_model_ready("nobody", headers=headers)
assert client.get_server_metadata(headers=headers)["name"] == "ml-workbench"
metadata = client.get_model_metadata("small", headers=headers)
said = {}
for is_binary in (True, False):
    tensor = triton.InferInput("window", list(window.shape), "FP64")
    tensor.set_data_from_numpy(window, binary_data=is_binary)
    symbol = triton.InferInput("symbol", [len(window)], "BYTES")
    symbol.set_data_from_numpy(np.array(asked["symbols"], dtype=object), binary_data=is_binary)
    outputs = [triton.InferRequestedOutput(each["name"], binary_data=is_binary) for each in metadata["outputs"]]
    for wanted in (outputs, None):
        answer = client.infer(
            "small",
            [tensor, symbol],
            outputs=wanted,
            request_id="7",
            headers=dict(headers),
            parameters={"as_of": asked["as_of"]},
        )  # fmt: skip
        assert answer.get_response()["id"] == "7"
        for each in metadata["outputs"]:
            assert answer.as_numpy(each["name"]).shape == tuple(
                len(window) if size == -1 else size for size in each["shape"]
            )
        records = [each if isinstance(each, str) else each.decode() for each in answer.as_numpy("record").tolist()]
        said[f"{is_binary} {wanted is None}"] = records
        assert answer.as_numpy("prediction").tolist() == [json.loads(each)["prediction"] for each in records]
try:
    client.infer("small", [tensor], headers={})
except triton.InferenceServerException as error:
    said["refused"] = [error.message()]
print(json.dumps(said))
