"""The protocol over gRPC: the answers of `/predict` to the bit, its own status codes, and a port that is off."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import orjson
import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import KeyRing
from ml_workbench_service.api.inference_protocol.grpc_settings import GrpcSettings
from ml_workbench_service.api.inference_protocol.messages import METHODS, SERVICE, messages
from ml_workbench_service.api.inference_protocol.transports import listen
from ml_workbench_service.api.metrics import Metrics
from tests.api.conftest import KEY, Guarded
from tests.api.inference_protocol.asking import body, essence, parameters_of, plain_records, window_of
from tests.service_process import ServiceProcess, free_port

METADATA = (("x-api-key-bin", KEY.encode()), ("x-correlation-id", "the-same"))


class Caller:
    """Calls by name."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.kinds = messages()

    def __call__(self, method: str, metadata: Any = METADATA, **fields: Any) -> Any:
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=getattr(self.kinds, f"{method}Request").SerializeToString,
            response_deserializer=getattr(self.kinds, f"{method}Response").FromString,
        )
        return call(getattr(self.kinds, f"{method}Request")(**fields), metadata=metadata, timeout=120)


@pytest.fixture(scope="module")
def call(guarded: Guarded) -> Iterator[Caller]:
    caller = Caller(guarded.grpc_port)
    yield caller
    caller.channel.close()


def parameters(**values: Any) -> dict[str, Any]:
    """As messages have them."""
    kinds = {str: "string_param", float: "double_param", int: "int64_param", bool: "bool_param"}
    return {name: messages().InferParameter(**{kinds[type(value)]: value}) for name, value in values.items()}


def typed(name: str, datatype: str, values: np.ndarray) -> dict[str, Any]:
    """An input with its values by type."""
    field = {"FP64": "fp64_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}[datatype]
    return {"name": name, "datatype": datatype, "shape": values.shape, "contents": {field: values.reshape(-1).tolist()}}


def records_of(answer: Any) -> list[dict[str, Any]]:
    """The output `record`, which comes as the request's values did."""
    names = [each.name for each in answer.outputs]
    place = names.index("record")
    if not answer.raw_output_contents:
        found = list(answer.outputs[place].contents.bytes_contents)
    else:
        raw, found = answer.raw_output_contents[place], []
        while raw:
            size = int.from_bytes(raw[:4], "little")
            found.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
    return [essence(orjson.loads(each)) for each in found]


def test_a_window_is_answered_as_by_predict_to_the_bit(call: Caller, guarded: Guarded) -> None:
    request = body(price=1.1)
    expected = plain_records(guarded.client, "small", request, **{"X-Correlation-ID": "the-same"})
    rows = window_of(request)[None]
    about = parameters(**parameters_of(request))
    raw = {"name": "window", "datatype": "FP64", "shape": rows.shape}
    for inputs in (
        {"inputs": [typed("window", "FP64", rows)]},
        {"inputs": [raw], "raw_input_contents": [rows.tobytes()]},
    ):
        answer = call("ModelInfer", model_name="small", id="7", parameters=about, **inputs)
        assert (answer.model_name, answer.model_version, answer.id) == ("small", "1.1.0", "7")
        assert records_of(answer) == expected
        assert bool(answer.raw_output_contents) == ("raw_input_contents" in inputs)


def test_many_windows_are_answered_as_by_a_batch(call: Caller, guarded: Guarded) -> None:
    requests = [body("EUR/USD"), body("GBP/USD"), body("EUR/USD", last=12)]
    requests[2]["features"] = {name: [*values, *values] for name, values in requests[2]["features"].items()}
    expected = plain_records(guarded.client, "small", *requests, **{"X-Correlation-ID": "the-same"})
    symbols = np.array([each["symbol"].encode() for each in requests])
    answer = call(
        "ModelInfer", model_name="small", parameters=parameters(as_of=requests[0]["as_of"]),
        inputs=[
            typed("window", "FP64", np.stack([window_of(each) for each in requests])),
            typed("symbol", "BYTES", symbols),
        ],
        outputs=[{"name": "record"}, {"name": "prediction"}],
    )  # fmt: skip
    assert records_of(answer) == expected
    assert list(answer.outputs[1].contents.fp64_contents) == [each["prediction"] for each in expected]


def test_it_says_who_it_is_and_that_it_is_there(call: Caller) -> None:
    assert call("ServerLive", metadata=()).live
    assert call("ServerReady", metadata=()).ready
    assert call("ModelReady", name="small").ready
    assert call("ModelReady", name="small", version="1.0.0").ready
    assert not call("ModelReady", name="nobody").ready
    assert not call("ModelReady", name="small", version="9.9.9").ready
    assert call("ServerMetadata").name == "ml-workbench"
    found = call("ModelMetadata", name="small")
    assert list(found.versions) == ["1.1.0", "1.0.0"]
    assert (found.inputs[0].name, list(found.inputs[0].shape)) == ("window", [-1, -1, 4])


ROWS = np.ones((1, 24, 4))
WINDOW = typed("window", "FP64", ROWS)
CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("method", "fields", "code", "words"),
    [
        ("ModelInfer", {"model_name": "nobody", "inputs": [WINDOW]}, CODE.NOT_FOUND, "no model of this id"),
        ("ModelInfer", {"model_name": "../small", "inputs": [WINDOW]}, CODE.INVALID_ARGUMENT, "its id"),
        ("ModelMetadata", {"name": "small", "version": "../1.0.0"}, CODE.INVALID_ARGUMENT, "three numbers"),
        ("ModelInfer", {"model_name": "small", "inputs": [WINDOW]}, CODE.INVALID_ARGUMENT, "say which with `symbol`"),
        (
            "ModelInfer",
            {"model_name": "small", "inputs": [{**WINDOW, "datatype": "BF16"}]},
            CODE.INVALID_ARGUMENT,
            "a datatype is",
        ),
        (
            "ModelInfer",
            {"model_name": "small", "inputs": [{**WINDOW, "shape": [-1, 24, 4]}]},
            CODE.INVALID_ARGUMENT,
            "each 1 or more",
        ),
        (
            "ModelInfer",
            {"model_name": "small", "inputs": [WINDOW], "raw_input_contents": [ROWS.tobytes()]},
            CODE.INVALID_ARGUMENT,
            "raw contents",
        ),
        (
            "ModelInfer",
            {"model_name": "small", "inputs": [typed("symbol", "BYTES", np.array([b"\xff"]))]},
            CODE.INVALID_ARGUMENT,
            "UTF-8",
        ),
        (
            "ModelInfer",
            {
                "model_name": "small",
                "inputs": [WINDOW],
                "parameters": parameters(symbol="EUR/USD", enqueue="guaranteed"),
            },
            CODE.FAILED_PRECONDITION,
            "is not live",
        ),
    ],
)
def test_failures_have_the_codes_of_grpc(
    call: Caller, method: str, fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(method, **fields)
    assert raised.value.code() is code
    assert words in raised.value.details()
    assert dict(raised.value.trailing_metadata())["x-correlation-id"] == "the-same"


def test_all_but_health_needs_the_key(call: Caller, guarded: Guarded) -> None:
    for method in METHODS[2:]:
        for metadata in ((), (("x-api-key", "wrong"),)):
            with pytest.raises(grpc.RpcError) as raised:
                call(method, metadata=metadata)
            assert raised.value.code() is CODE.UNAUTHENTICATED
    line = f'ml_workbench_http_requests_total{{method="GRPC",route="/{SERVICE}/ModelInfer",status="401"}} 2.0'
    assert line in guarded.client.get("/metrics").text


def test_a_message_over_the_limit_is_refused(call: Caller) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call("ModelInfer", model_name="small", raw_input_contents=[bytes(16 * 1024 * 1024 + 1)])
    assert raised.value.code() is CODE.RESOURCE_EXHAUSTED


def test_a_port_that_is_taken_is_an_error_with_the_next_step(service: ServiceProcess, tmp_path: Path) -> None:
    async def try_it() -> None:
        gate = Gate(KeyRing(tmp_path / "keys.json", api_key="key", uses=tmp_path / "uses.json"))
        await listen(object(), gate, GrpcSettings("127.0.0.1", service.port))  # type: ignore[arg-type]

    with pytest.raises(UnavailableError, match="set GRPC_PORT to another"):
        asyncio.run(try_it())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate; there is none here")
async def test_with_the_certificate_of_http_it_speaks_tls_alone(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    about = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    made = ["openssl", *about.split(), "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True, timeout=120)
    gate = Gate(KeyRing(tmp_path / "keys.json", api_key="a-key-of-tests-only", uses=tmp_path / "uses.json"))
    service: Any = SimpleNamespace(metrics=Metrics(), stopping=asyncio.Event())
    port = free_port()
    end = await listen(service, gate, GrpcSettings("127.0.0.1", port, cert, key))
    trusted = grpc.ssl_channel_credentials(cert.read_bytes())
    try:
        async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/ServerReady",
                request_serializer=messages().ServerReadyRequest.SerializeToString,
                response_deserializer=messages().ServerReadyResponse.FromString,
            )
            assert (await call(messages().ServerReadyRequest(), timeout=120)).ready
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            plain = channel.unary_unary(f"/{SERVICE}/ServerReady")
            with pytest.raises(grpc.RpcError):
                await plain(b"", timeout=60)
    finally:
        await end()
