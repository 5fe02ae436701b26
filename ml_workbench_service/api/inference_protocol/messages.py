"""Messages of the protocol over gRPC, made from a table of their fields: names, numbers and types as it fixes them.

No generated code lies in the tree, which would belong to one version of protobuf; `tests/api/inference_protocol` holds
the table to the messages that tritonclient and MLServer bring. protobuf is loaded with the first message.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
MESSAGES: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 bool ready",
    "ModelReadyRequest": "1 string name, 2 string version",
    "ModelReadyResponse": "1 bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 string name, 2 string version, 3 string* extensions",
    "ModelMetadataRequest": "1 string name, 2 string version",
    "ModelMetadataResponse.TensorMetadata": "1 string name, 2 string datatype, 3 int64* shape",
    "ModelMetadataResponse": "1 string name, 2 string* versions, 3 string platform, 4 TensorMetadata* inputs, "
    "5 TensorMetadata* outputs",
    "ModelInferRequest.InferInputTensor": "1 string name, 2 string datatype, 3 int64* shape, "
    "4 {} parameters, 5 InferTensorContents contents",
    "ModelInferRequest.InferRequestedOutputTensor": "1 string name, 2 {} parameters",
    "ModelInferRequest": "1 string model_name, 2 string model_version, 3 string id, 4 {} parameters, "
    "5 InferInputTensor* inputs, 6 InferRequestedOutputTensor* outputs, 7 bytes* raw_input_contents",
    "ModelInferResponse.InferOutputTensor": "1 string name, 2 string datatype, 3 int64* shape, "
    "4 {} parameters, 5 InferTensorContents contents",
    "ModelInferResponse": "1 string model_name, 2 string model_version, 3 string id, 4 {} parameters, "
    "5 InferOutputTensor* outputs, 6 bytes* raw_output_contents",
    "InferParameter": "1 bool bool_param, 2 int64 int64_param, 3 string string_param, 4 double double_param, "
    "5 uint64 uint64_param",
    "InferTensorContents": "1 bool* bool_contents, 2 int32* int_contents, 3 int64* int64_contents, "
    "4 uint32* uint_contents, 5 uint64* uint64_contents, 6 float* fp32_contents, 7 double* fp64_contents, "
    "8 bytes* bytes_contents",
}
"""By message: number, type (`*`: repeated; `{}`: a map from names to InferParameter) and name of each field."""
ONE_OF = {"InferParameter": "parameter_choice"}
"""Of whose fields one alone is set."""


@lru_cache(maxsize=1)
def messages() -> Any:
    """The classes, by their names; in a pool of their own, since other libraries of a process may know them too."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_of_messages())
    outer = [name for name in MESSAGES if "." not in name]
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in outer}
    return SimpleNamespace(**{name: message_factory.GetMessageClass(each) for name, each in found.items()})


def file_of_messages() -> Any:
    """The table as protobuf's own description of a file."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(
        name="ml_workbench/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    made: dict[str, Any] = {}
    for name in sorted(MESSAGES, key=lambda name: "." in name):  # what holds others comes first
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
    for name, text in MESSAGES.items():
        _fill(made[name], name, text)
    return file


def _fill(message: Any, name: str, text: str) -> None:
    if name in ONE_OF:
        message.oneof_decl.add(name=ONE_OF[name])
    for number, kind, field_name in _fields(text):
        field = message.field.add(name=field_name, number=number)
        is_map = kind == "{}"
        field.label = field.LABEL_REPEATED if is_map or kind.endswith("*") else field.LABEL_OPTIONAL
        if is_map:
            kind = _add_map(message, name, field_name)
        plain = kind.rstrip("*")
        scalar = getattr(type(field), f"TYPE_{plain.upper()}", None)
        field.type = field.TYPE_MESSAGE if scalar is None else scalar
        if scalar is None:
            scope = f"{name}." if f"{name}.{plain}" in MESSAGES or is_map else ""
            field.type_name = f".{PACKAGE}.{scope}{plain}"
        if name in ONE_OF:
            field.oneof_index = 0


def _add_map(message: Any, name: str, field_name: str) -> str:
    """The message that stands for an entry of a map; its name."""
    entry = message.nested_type.add(name=f"{field_name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    key = entry.field.add(name="key", number=1)
    key.type, key.label = key.TYPE_STRING, key.LABEL_OPTIONAL
    value = entry.field.add(name="value", number=2, type_name=f".{PACKAGE}.InferParameter")
    value.type, value.label = value.TYPE_MESSAGE, value.LABEL_OPTIONAL
    return str(entry.name)


def _fields(text: str) -> Iterator[tuple[int, str, str]]:
    for each in filter(None, text.split(", ")):
        number, kind, name = each.split(" ")
        yield int(number), kind, name
