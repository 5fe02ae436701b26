"""JSON of the Open Inference Protocol, version 2 (`/v2`): the names and shapes are the protocol's, not ours."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Parameters = dict[str, bool | int | float | str | dict[str, Any] | None]
Dimension = Annotated[int, Field(ge=1, le=2**53)]
MOST_TENSORS = 1_000
MOST_DIMENSIONS = 8


class InputTensor(Asked):
    """One tensor that is sent: values in row-major order, flat or nested, or behind the JSON (`binary_data_size`)."""

    name: str = Field(max_length=256)
    datatype: Datatype
    shape: Annotated[list[Dimension], Field(max_length=MOST_DIMENSIONS)]
    parameters: Parameters | None = None
    data: list[Any] | None = None


class WantedOutput(Asked):
    """One tensor that is wanted; `binary_data` wants it behind the JSON."""

    name: str
    parameters: Parameters | None = None


class InferenceRequest(Asked):
    """Windows, or a column for each feature, and what else a question may say."""

    id: str | None = Field(default=None, max_length=1024)
    parameters: Parameters | None = None
    inputs: Annotated[list[InputTensor], Field(max_length=MOST_TENSORS)]
    outputs: Annotated[list[WantedOutput], Field(max_length=MOST_TENSORS)] | None = None


class OutputTensor(Contract):
    """One tensor of the answer; its values stand behind the JSON where `binary_data_size` says so."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[bool | float | str | None] | None = None


class InferenceResponse(Contract):
    """The tensors that were wanted; unless any were named, all."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(Contract):
    """A tensor of a model; -1 is a dimension of any length."""

    name: str
    datatype: Datatype
    shape: list[int]


class ServerMetadata(Contract):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(Contract):
    """`GET /v2/models/{name}`: what a request must bring, and what an answer holds."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(Contract):
    """`GET /v2/health/live`."""

    live: bool = True


class ServerReady(Contract):
    """`GET /v2/health/ready`."""

    ready: bool = True


class ModelReady(Contract):
    """`GET /v2/models/{name}/ready`."""

    name: str
    ready: bool = True


class InferenceError(Contract):
    """The body of every failure below `/v2`."""

    error: str = Field(examples=["no model of this id; none is trained yet: POST /api/v1/models/train"])
