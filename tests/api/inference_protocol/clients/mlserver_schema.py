"""MLServer's schema, codecs and gRPC stub as they are: prints what they read. Runs in an environment of its own."""

import json
import sys
import urllib.request

import grpc
import numpy as np
from mlserver import types
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import converters, dataplane_pb2_grpc

asked = json.load(sys.stdin)
request = types.InferenceRequest(
    id="7",
    parameters=types.Parameters(as_of=asked["as_of"]),
    inputs=[
        NumpyCodec.encode_input("window", np.array(asked["windows"], dtype=np.float64)),
        StringCodec.encode_input("symbol", asked["symbols"]),
    ],
)


def send(path, body=None, key=asked["key"]):
    headers = {"X-API-Key": key, "X-Correlation-ID": "the-same", "Content-Type": "application/json"}
    place = f"http://{asked['http']}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(place, body, headers)) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


types.MetadataServerResponse.model_validate_json(send("/v2"))
metadata = types.MetadataModelResponse.model_validate_json(send("/v2/models/small"))
answer = types.InferenceResponse.model_validate_json(
    send("/v2/models/small/infer", request.model_dump_json(exclude_none=True).encode())
)
assert [each.name for each in answer.outputs] == [each.name for each in metadata.outputs]
by_name = {each.name: each for each in answer.outputs}
said = {"http": StringCodec.decode_output(by_name["record"])}
assert np.isfinite(NumpyCodec.decode_output(by_name["prediction"]).astype(float)).all()
refused = types.InferenceErrorResponse.model_validate_json(send("/v2/models/small/infer", b"{}", "wrong"))
said["refused"] = [refused.error]

stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(asked["grpc"]))
metadata = (("x-api-key", asked["key"]), ("x-correlation-id", "the-same"))
for use_raw in (False, True):  # the second takes the values out of the request
    message = converters.ModelInferRequestConverter.from_types(request, model_name="small", use_raw=use_raw)
    answer = converters.ModelInferResponseConverter.to_types(stub.ModelInfer(message, metadata=metadata))
    by_name = {each.name: each for each in answer.outputs}
    said[f"grpc {use_raw}"] = StringCodec.decode_output(by_name["record"])
print(json.dumps(said))
