"""Reading of large bodies, in the table process: JSON is parsed and checked, and what is left is quick to read."""

import json
import struct
from typing import Any

import numpy as np
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.contracts.batches import packed
from ml_workbench_service.contracts.bodies import BODIES, BodyTask
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.inference_protocol import InferenceRequest
from ml_workbench_service.contracts.prediction import PredictBatchRequest, PredictRequest, ReadBatch
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.tensors import Tensor, of_json
from ml_workbench_service.runtime.table_exchange import ToldError

LENGTH = struct.Struct("!I")
BINARY_SIZE = "binary_data_size"
COLUMNS = ("features", "inputs")


def read_body(task: BodyTask, body: bytes) -> bytes:
    """The body as the service takes it.

    Raises:
        DataValidationError: what is wrong with it.
    """
    contract = BODIES[task.path]
    if contract is PredictRequest:
        return _packed([_valid(PredictRequest, body, prefix="body")])
    if contract is PredictBatchRequest:
        return _packed(_items(body))
    if contract is InferenceRequest:
        return _as_bytes(body, len(body) if task.num_json is None else task.num_json)
    checked: Contract = _valid(contract, body, prefix="body")
    return checked.model_dump_json(exclude_unset=True).encode()


def _valid(contract: type[Contract], data: bytes, *, prefix: str) -> Any:
    try:
        return contract.model_validate_json(data)
    except ValidationError as error:
        raise of_pydantic(error, contract, prefix=prefix) from error


def _items(body: bytes) -> list[PredictRequest | PlatformError]:
    try:
        items = ReadBatch.model_validate_json(body).items
    except ValidationError as error:
        raise of_pydantic(error, PredictBatchRequest, prefix="body") from error
    return [each if isinstance(each, PredictRequest) else _refused(each, number) for number, each in enumerate(items)]


def _refused(item: Any, number: int) -> PlatformError:
    """Why an item is not valid; one that is, read as a plain object, is no item that JSON can say."""
    try:
        PredictRequest.model_validate(item)
    except ValidationError as error:
        return of_pydantic(error, PredictRequest, prefix=f"body.items.{number}")
    return DataValidationError.at(f"body.items.{number}", "this item cannot be read; send it as GET /docs shows it")


def _packed(items: list[PredictRequest | PlatformError]) -> bytes:
    heads: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for each in items:
        if isinstance(each, PlatformError):
            heads.append({"error": ToldError.of(each).model_dump()})
            continue
        about = each.model_dump(mode="json", exclude=set(COLUMNS), exclude_none=True)
        columns = each.columns
        names = None if columns is None else list(columns)
        heads.append({"about": about, "names": names, "place": COLUMNS[each.features is None]})
        buffers += [np.asarray(values, "<f8").tobytes() for values in (columns or {}).values()]
    return packed({"items": heads}, buffers)


def _as_bytes(body: bytes, num_json: int) -> bytes:
    """JSON alone, or JSON with some tensors behind it, as JSON with all tensors behind it."""
    request: InferenceRequest = _valid(InferenceRequest, body[:num_json], prefix="body")
    inputs, behind, place = [], [], num_json
    for each in request.inputs:
        said = each.model_dump(exclude={"data"}, exclude_none=True)
        size = (each.parameters or {}).get(BINARY_SIZE)
        if each.data is not None and size is None:
            tensor: Tensor = of_json(each.name, each.datatype, each.shape, each.data)
            behind.append(tensor.raw())
            said["parameters"] = {**(each.parameters or {}), BINARY_SIZE: len(behind[-1])}
        elif type(size) is int and size >= 0 and each.data is None:
            behind.append(body[place : place + size])
            place += size
        else:
            said["data"] = []  # the route says what is wrong with it
        inputs.append(said)
    plain = json.dumps({**request.model_dump(exclude={"inputs"}, exclude_none=True), "inputs": inputs}).encode()
    return b"".join([LENGTH.pack(len(plain)), plain, *behind, body[place:]])
