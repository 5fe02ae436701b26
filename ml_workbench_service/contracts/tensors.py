"""Tensors of the protocol: a name, a datatype, a shape and values, out of JSON or bytes and into either.

Bytes are little-endian and in row-major order; each element of BYTES has its length, four bytes, before it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.inference_protocol import Datatype
from ml_workbench_service.contracts.market import Floats

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""All but BYTES."""
LENGTH = struct.Struct("<I")
MOST_TEXTS = 1_000
"""Of a tensor of BYTES, which says one thing of each window; each would be an object."""
KINDS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""What stands in JSON for a datatype, by its kind: `true` is no number, and 1 no truth value."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """Values by name: an array of the datatype, or of BYTES the texts in row-major order."""

    name: str
    datatype: Datatype
    shape: Shape
    values: np.ndarray | list[str]

    @property
    def numbers(self) -> Floats:
        """The values in double precision, in their shape.

        Raises:
            DataValidationError: BOOL or BYTES.
        """
        if isinstance(self.values, list) or self.datatype == "BOOL":
            raise refused(self.name, f"{self.name} takes numbers (FP32, FP64 or an integer type), not {self.datatype}")
        return np.asarray(self.values, dtype=np.float64).reshape(self.shape)

    @property
    def texts(self) -> list[str]:
        """The texts of BYTES; raises DataValidationError for any other datatype."""
        if isinstance(self.values, list):
            return self.values
        raise refused(self.name, f"{self.name} takes texts (BYTES), not {self.datatype}")

    def raw(self) -> bytes:
        """The values as bytes."""
        if isinstance(self.values, list):
            encoded = [each.encode() for each in self.values]
            return b"".join(part for each in encoded for part in (LENGTH.pack(len(each)), each))
        return np.ascontiguousarray(self.values, dtype=DTYPES[self.datatype]).tobytes()

    def plain(self) -> list[Any]:
        """The values as JSON has them, flat; a number that is not finite is null."""
        if isinstance(self.values, list):
            return list(self.values)
        flat = self.values.reshape(-1)
        if self.datatype == "FP64" and not np.isfinite(flat).all():
            return [each if np.isfinite(each) else None for each in flat.tolist()]
        return list(flat.tolist())


def refused(name: str, message: str) -> DataValidationError:
    """An error about one tensor or parameter."""
    return DataValidationError.at(f"inputs.{name[:64]}", message)


def of_json(name: str, datatype: Datatype, shape: Sequence[int], data: Sequence[Any]) -> Tensor:
    """A tensor whose values stand in JSON, flat or nested.

    Raises:
        DataValidationError: as `of_values`, or a number that is not finite in the datatype, which JSON cannot write.
    """
    tensor = of_values(name, datatype, shape, data)
    if not isinstance(tensor.values, list) and not np.isfinite(tensor.values).all():
        raise refused(name, f"{name} has values that are not finite in {datatype}; send numbers that it holds")
    return tensor


def of_values(name: str, datatype: Datatype, shape: Sequence[int], data: Sequence[Any]) -> Tensor:
    """A tensor of these values, flat or nested.

    Raises:
        DataValidationError: not so many values as the shape says, nested in another way, or values of another kind.
    """
    if datatype == "BYTES":
        _check_texts(name, shape)
        texts = _as_shaped(name, shape, data)
        if not all(isinstance(each, str) for each in texts):
            raise refused(name, f"{name} is BYTES: each of its values is a string")
        return Tensor(name, datatype, tuple(shape), _counted(name, shape, texts))
    dtype = DTYPES[datatype]
    flat = _counted(name, shape, _as_shaped(name, shape, data))
    if not set(map(type, flat)) <= KINDS[dtype.kind]:
        raise refused(name, f"{name} is {datatype}, and its values are not; send numbers, flat or nested as its shape")
    if dtype.kind in "iu" and flat:
        bounds = np.iinfo(dtype)
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise refused(name, f"{name} is {datatype}, which holds {bounds.min} to {bounds.max}; send FP64")
    try:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as every such value is
            values = np.array(flat, DTYPES["FP64"] if dtype.kind == "f" else dtype).astype(dtype)
    except OverflowError as error:
        raise refused(name, f"{name} has numbers that {datatype} does not hold; send smaller ones") from error
    return Tensor(name, datatype, tuple(shape), values.reshape(tuple(shape)))


def of_bytes(name: str, datatype: Datatype, shape: Sequence[int], data: bytes) -> Tensor:
    """A tensor whose values are bytes.

    Raises:
        DataValidationError: not so many bytes as shape and datatype need, or texts that are not UTF-8.
    """
    if datatype == "BYTES":
        _check_texts(name, shape)
        return Tensor(name, datatype, tuple(shape), _counted(name, shape, _texts(name, data)))
    dtype = DTYPES[datatype]
    if len(data) != prod(shape) * dtype.itemsize:
        raise refused(
            name, f"{name}: {datatype} of shape {list(shape)} has {prod(shape) * dtype.itemsize} bytes, not {len(data)}"
        )
    return Tensor(name, datatype, tuple(shape), np.frombuffer(data, dtype).reshape(tuple(shape)))


def _check_texts(name: str, shape: Sequence[int]) -> None:
    if prod(shape) > MOST_TEXTS:
        raise refused(name, f"{name} has {prod(shape)} texts; a tensor of BYTES has at most {MOST_TEXTS}")


def _texts(name: str, data: bytes) -> list[str]:
    found: list[str] = []
    place = 0
    try:
        while place < len(data) and len(found) <= MOST_TEXTS:
            (length,) = LENGTH.unpack_from(data, place)
            place += LENGTH.size + length
            if place > len(data):
                raise ValueError
            found.append(data[place - length : place].decode())
    except (struct.error, ValueError) as error:
        message = f"{name}: each element of BYTES is its length (four bytes, little-endian) and so many bytes of UTF-8"
        raise refused(name, message) from error
    return found


def _as_shaped(name: str, shape: Sequence[int], data: Sequence[Any]) -> list[Any]:
    """The values in row-major order, of lists nested as the shape says, or of one list. Without recursion, whatever is
    sent.
    """
    level: list[Any] = list(data)
    if not any(isinstance(each, list) for each in level):
        return level
    if len(level) != next(iter(shape), -1):
        raise _misshapen(name, shape)
    for num in shape[1:]:
        if not all(isinstance(each, list) and len(each) == num for each in level):
            raise _misshapen(name, shape)
        level = [one for each in level for one in each]
    return level


def _misshapen(name: str, shape: Sequence[int]) -> DataValidationError:
    return refused(name, f"{name}: its lists are not nested as the shape {list(shape)} says; send them so, or one list")


def _counted(name: str, shape: Sequence[int], values: Any) -> Any:
    if len(values) != prod(shape):
        raise refused(name, f"{name}: a shape of {list(shape)} has {prod(shape)} values, not {len(values)}")
    return values
