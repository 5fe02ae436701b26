"""tritonclient.grpc as it is: prints what it was answered. Runs in an environment of its own."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton

asked = json.load(sys.stdin)
client = triton.InferenceServerClient(asked["grpc"])
headers = {"x-api-key": asked["key"], "x-correlation-id": "the-same"}
window = np.array(asked["windows"], dtype=np.float64)
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("small", headers=headers)
assert client.is_model_ready("small", "1.0.0", headers=headers)
assert not client.is_model_ready("nobody", headers=headers)
assert client.get_server_metadata(headers=headers).name == "ml-workbench"
metadata = client.get_model_metadata("small", headers=headers, as_json=True)
tensor = triton.InferInput("window", list(window.shape), "FP64")
tensor.set_data_from_numpy(window)
symbol = triton.InferInput("symbol", [len(window)], "BYTES")
symbol.set_data_from_numpy(np.array(asked["symbols"], dtype=object))
said = {}
outputs = [triton.InferRequestedOutput(each["name"]) for each in metadata["outputs"]]
for wanted in (outputs, None):
    answer = client.infer(
        "small", [tensor, symbol], outputs=wanted, request_id="7", headers=headers,
        parameters={"as_of": asked["as_of"]},
    )  # fmt: skip
    assert answer.get_response().id == "7"
    said[str(wanted is None)] = [each.decode() for each in answer.as_numpy("record").tolist()]
    for each in metadata["outputs"]:
        assert len(answer.as_numpy(each["name"])) == len(window)
try:
    client.infer("small", [tensor])
except triton.InferenceServerException as error:
    said["refused"] = [error.message()]
print(json.dumps(said))
