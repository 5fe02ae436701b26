"""One question in both forms: as a body of `/predict`, and as tensors."""

import struct
from typing import Any

import httpx
import numpy as np
import orjson

from tests.api.predicting.test_predictions import FEATURES, body

HEADER_LENGTH = "Inference-Header-Content-Length"
OF_THE_CALL = {"prediction_id"}


def window_of(request: dict[str, Any]) -> np.ndarray:
    """(T, F) of a body of `/predict`."""
    return np.array([request["features"][name] for name in FEATURES]).T


def parameters_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a body says beside its features."""
    return {name: value for name, value in request.items() if name not in ("features", "version")}


def json_tensor(name: str, values: Any, datatype: str = "FP64") -> dict[str, Any]:
    """A tensor with its values in JSON, flat."""
    array = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}


def asked(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request."""
    return {"inputs": list(tensors), **more}


def with_binary(request: dict[str, Any], *behind: bytes) -> tuple[bytes, dict[str, str]]:
    """A body whose tensors without `data` have their values behind it, and its headers."""
    waiting = iter(behind)
    inputs = []
    for each in request["inputs"]:
        plain = {} if "data" in each else {"parameters": {"binary_data_size": len(next(waiting))}}
        inputs.append({**each, **plain} if plain else each)
    for each, data in zip([one for one in inputs if "data" not in one], behind, strict=True):
        each["parameters"] = {"binary_data_size": len(data)}
    plain = orjson.dumps({**request, "inputs": inputs})
    return plain + b"".join(behind), {HEADER_LENGTH: str(len(plain)), "Content-Type": "application/octet-stream"}


def outputs_of(answer: httpx.Response) -> dict[str, Any]:
    """Each output by name, as values in its shape."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(HEADER_LENGTH, len(answer.content)))
    found, place = {}, length
    for each in orjson.loads(answer.content[:length])["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            values: Any = each["data"]
        else:
            values = _values(each["datatype"], answer.content[place : place + size])
            place += size
        found[each["name"]] = np.array(values, dtype=float if each["datatype"] == "FP64" else object).reshape(
            each["shape"]
        )
    assert place == len(answer.content)
    return found


def _values(datatype: str, data: bytes) -> list[Any]:
    if datatype == "FP64":
        return list(np.frombuffer(data, "<f8"))
    if datatype == "BOOL":
        return list(np.frombuffer(data, "?"))
    assert datatype == "BYTES"
    found, place = [], 0
    while place < len(data):
        (size,) = struct.unpack_from("<I", data, place)
        found.append(data[place + 4 : place + 4 + size].decode())
        place += 4 + size
    return found


def records_of(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The records, without what differs from call to call."""
    return [essence(orjson.loads(each)) for each in outputs["record"]]


def essence(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its own id."""
    return {name: value for name, value in record.items() if name not in OF_THE_CALL}


def plain_records(client: httpx.Client, model: str, *requests: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """The same asked of `/predict`, or of `/predict/batch` where there are several."""
    if len(requests) == 1:
        answer = client.post(f"/api/v1/models/{model}/predict", json=requests[0], headers=headers)
        assert answer.status_code == 200, answer.text
        return [essence(answer.json())]
    answer = client.post(f"/api/v1/models/{model}/predict/batch", json={"items": list(requests)}, headers=headers)
    assert answer.status_code == 200, answer.text
    return [essence(each) for each in answer.json()["predictions"]]


__all__ = ["FEATURES", "body"]
