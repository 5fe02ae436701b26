"""Unfolding: how large an Arrow message is once it is decompressed, told by its metadata before anything is.

A message is a flatbuffer and a body of buffers; each compressed buffer begins with its own length, unfolded. So a few
kilobytes that would become gigabytes are refused as they come. Only what is asked here is read of the flatbuffer
(https://arrow.apache.org/docs/format/Columnar.html, Message.fbs); pyarrow reads the rest.
"""

import struct

KIND_FIELD, HEADER_FIELD = 1, 2
BATCH, DICTIONARY = 3, 2
LENGTH_FIELD, BUFFERS_FIELD, COMPRESSION_FIELD = 0, 2, 3
DATA_FIELD = 1
NOT_COMPRESSED = -1
_BUFFER = struct.Struct("<qq")
_LENGTH = struct.Struct("<q")


def unfolded_size(metadata: bytes, body: bytes | memoryview) -> tuple[int, int]:
    """Bytes and rows of a record batch or a dictionary; no rows of any other message.

    Raises:
        ValueError: the metadata cannot be read.
    """
    try:
        message = _Table.root(metadata)
        kind, header = message.byte(KIND_FIELD), message.table(HEADER_FIELD)
        if header is None or kind not in (BATCH, DICTIONARY):
            return len(body), 0
        batch = header if kind == BATCH else header.table(DATA_FIELD)
        if batch is None:
            return len(body), 0
        buffers = batch.structs(BUFFERS_FIELD)
        num_bytes = sum(length for _, length in buffers)
        if batch.table(COMPRESSION_FIELD) is not None:
            num_bytes = sum(_unfolded(body, offset, length) for offset, length in buffers)
        return num_bytes, batch.long(LENGTH_FIELD)
    except (struct.error, IndexError) as error:
        raise ValueError("the metadata of a message cannot be read") from error


def _unfolded(body: bytes | memoryview, offset: int, length: int) -> int:
    if length < _LENGTH.size:
        return 0
    (said,) = _LENGTH.unpack_from(body, offset)
    return length if said == NOT_COMPRESSED else max(int(said), 0)


class _Table:
    """A table of a flatbuffer, at a place of it."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - struct.unpack_from("<i", data, place)[0]
        (self._num_bytes,) = struct.unpack_from("<H", data, self._fields)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        """The whole."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _at(self, field: int) -> int | None:
        """Where a field stands; None where it is left out."""
        entry = 4 + 2 * field
        if entry >= self._num_bytes:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._fields + entry)
        return self._place + offset if offset else None

    def byte(self, field: int) -> int:
        """A small number; 0 where it is left out."""
        place = self._at(field)
        return 0 if place is None else self._data[place]

    def long(self, field: int) -> int:
        """A number of eight bytes."""
        place = self._at(field)
        return 0 if place is None else int(struct.unpack_from("<q", self._data, place)[0])

    def table(self, field: int) -> "_Table | None":
        """A table within."""
        place = self._at(field)
        return None if place is None else _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def structs(self, field: int) -> list[tuple[int, int]]:
        """A vector of pairs of numbers."""
        place = self._at(field)
        if place is None:
            return []
        place += struct.unpack_from("<I", self._data, place)[0]
        (num,) = struct.unpack_from("<I", self._data, place)
        return [_BUFFER.unpack_from(self._data, place + 4 + _BUFFER.size * number) for number in range(num)]
