"""HTTP bodies of the protocol: JSON alone, or JSON followed by tensors as bytes (the binary tensor data extension).

The header `Inference-Header-Content-Length` says where the JSON ends; each tensor behind it has its length in the
parameter `binary_data_size`, and they follow one another in the order in which the JSON names them.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.inference_protocol.inference import Inferred, Wanted
from ml_workbench_service.contracts.inference_protocol import InferenceRequest, InputTensor
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.strict_numbers import whole_number
from ml_workbench_service.contracts.tensors import Tensor, of_bytes, of_json, refused

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE, BINARY_WANTED, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"

_request_of = InferenceRequest.__pydantic_validator__.validate_json


def read_body(body: bytes, header_length: str | None) -> tuple[InferenceRequest, bytes]:
    """The JSON, and what stands behind it.

    Raises:
        DataValidationError: not the protocol's JSON, or a length that is none.
    """
    length = len(body) if header_length is None else whole_number(header_length)
    if length is None or length > len(body):
        raise DataValidationError.at(
            f"header.{HEADER_LENGTH}",
            f"{HEADER_LENGTH} is how many bytes of the body are JSON; the body has {len(body)}",
        )
    try:
        return _request_of(body[:length]), body[length:]
    except ValidationError as error:
        raise of_pydantic(error, InferenceRequest, prefix="body") from error


def wanted_of(model: str, version: str | None, request: InferenceRequest, behind: bytes) -> Wanted:
    """A request with its tensors decoded.

    Raises:
        DataValidationError: values that do not fit their shape, or bytes that are too many or too few.
    """
    tensors, place = [], 0
    for each in request.inputs:
        size = (each.parameters or {}).get(BINARY_SIZE)
        if size is None:
            tensors.append(_of_json(each))
            continue
        if type(size) is not int or not 0 <= size <= len(behind) - place:
            raise refused(each.name, f"{each.name}: {BINARY_SIZE} is how many of the bytes behind the JSON are its own")
        if each.data is not None:
            raise refused(each.name, f"{each.name} has `data` and `{BINARY_SIZE}`; send one of them")
        tensors.append(of_bytes(each.name, each.datatype, each.shape, behind[place : place + size]))
        place += size
    if place != len(behind):
        raise DataValidationError.at("body", f"{len(behind) - place} bytes behind the JSON belong to no tensor")
    outputs = [each.name for each in request.outputs or ()]
    return Wanted(model, version, tensors, request.parameters or {}, outputs)


def _of_json(each: InputTensor) -> Tensor:
    if each.data is None:
        raise refused(each.name, f"{each.name} has no values: send `data`, or bytes behind the JSON ({BINARY_SIZE})")
    return of_json(each.name, each.datatype, each.shape, each.data)


def write_body(inferred: Inferred, request: InferenceRequest) -> tuple[bytes, int | None]:
    """The answer, and how many of its bytes are JSON; None where all are."""
    are_binary = _are_binary(request, len(inferred.outputs))
    outputs, behind = [], []
    for tensor, is_binary in zip(inferred.outputs, are_binary, strict=True):
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if is_binary:
            behind.append(tensor.raw())
            said["parameters"] = {BINARY_SIZE: len(behind[-1])}
        else:
            said["data"] = tensor.plain()
        outputs.append(said)
    answer: dict[str, Any] = {"model_name": inferred.model, "model_version": inferred.version}
    if request.id is not None:
        answer["id"] = request.id
    plain = orjson.dumps(answer | {"outputs": outputs})
    return b"".join([plain, *behind]), len(plain) if behind else None


def _are_binary(request: InferenceRequest, num: int) -> Sequence[bool]:
    """For each output whether it comes as bytes: as it says, else as the request says of all."""
    of_all = (request.parameters or {}).get(ALL_BINARY) is True
    if not request.outputs:
        return [of_all] * num
    said = [(each.parameters or {}).get(BINARY_WANTED) for each in request.outputs]
    return [of_all if each is None else each is True for each in said]
