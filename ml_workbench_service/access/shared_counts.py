"""Shared counts: what keys have used, over all processes that answer for one service, in memory that they share.

    1 byte      whether a key was ever seen, so that a process that is started later does not open the service (8 bytes)
    a key       when its bucket is full again (`limits`), then an entry for each process, which it alone writes:
                requests of the day, when it was used last, the day, the key's id

A key's place is its place in the file of keys, from 1; API_KEY has 0. Nothing waits for a lock: two processes that
count one key in the same microsecond may let a request too many through, and a process that stands still holds up
nobody. The memory is a file without a name; it ends with its last holder.
"""

import mmap
import struct
import tempfile
from typing import IO

MOST_KEYS = 16_384
"""Later ones are counted by each process alone."""
_HEAD_BYTES = 8
_FULL_AT = struct.Struct("@d")  # native: written as a whole, not byte by byte
_ENTRY = struct.Struct("@QdII")


class SharedCounts:
    """All keys' counts.

    Args:
        descriptor: of what `made` made.
        num: processes.
        mine: which of them this is, from 0.
    """

    def __init__(self, descriptor: int, *, num: int, mine: int) -> None:
        self._memory = mmap.mmap(descriptor, _num_bytes(num))
        self._num, self._mine = num, mine

    @staticmethod
    def made(num: int) -> IO[bytes]:
        """The file behind new counts of so many processes; it takes room only for keys that are used."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.truncate(_num_bytes(num))
        return file

    @property
    def has_seen_keys(self) -> bool:
        """Whether any of the processes ever knew a key."""
        return self._memory[0] != 0

    def see_keys(self) -> None:
        """From now on a key is needed, whatever becomes of the file of keys."""
        self._memory[0] = 1

    def of(self, place: int, identifier: str) -> "SharedCount | None":
        """One key's; None where there is no place left."""
        if place >= MOST_KEYS:
            return None
        return SharedCount(
            self._memory, _HEAD_BYTES + place * _key_bytes(self._num), int(identifier or "0", 16), self._num, self._mine
        )


class SharedCount:
    """One key's counts, as one of the processes sees and writes them."""

    def __init__(self, memory: mmap.mmap, offset: int, identifier: int, num: int, mine: int) -> None:
        self._memory, self._offset, self._identifier = memory, offset, identifier
        entries = [offset + _FULL_AT.size + number * _ENTRY.size for number in range(num)]
        self._own = entries.pop(mine)
        self._others = entries

    @property
    def full_at_s(self) -> float:
        """When its bucket is full again, on the clock that all processes of a machine have (`time.monotonic`)."""
        found: float = _FULL_AT.unpack_from(self._memory, self._offset)[0]
        return found

    @full_at_s.setter
    def full_at_s(self, moment_s: float) -> None:
        _FULL_AT.pack_into(self._memory, self._offset, moment_s)

    def others(self, day: int) -> int:
        """Requests of that day that the other processes have counted."""
        total = 0
        for offset in self._others:
            num, _, of_day, identifier = _ENTRY.unpack_from(self._memory, offset)
            if of_day == day and identifier == self._identifier:
                total += num
        return total

    def newest_day(self) -> int:
        """Of which another process has a count; 0: none has."""
        found = (_ENTRY.unpack_from(self._memory, offset) for offset in self._others)
        return max((day for _, _, day, identifier in found if identifier == self._identifier), default=0)

    def own(self) -> tuple[int, int]:
        """The day and its requests that this process, or the one before it in its place, has counted."""
        num, _, day, identifier = _ENTRY.unpack_from(self._memory, self._own)
        return (day, num) if identifier == self._identifier else (0, 0)

    def tell(self, day: int, num: int, used_at_s: float) -> None:
        """Writes this process's own count."""
        _ENTRY.pack_into(self._memory, self._own, num, used_at_s, day, self._identifier)

    def used_at_s(self) -> float:
        """When any of the processes has let it in last; 0.0: none did."""
        found = (_ENTRY.unpack_from(self._memory, offset) for offset in (self._own, *self._others))
        return max((used for _, used, _, identifier in found if identifier == self._identifier), default=0.0)


def _key_bytes(num: int) -> int:
    return _FULL_AT.size + num * _ENTRY.size


def _num_bytes(num: int) -> int:
    return _HEAD_BYTES + MOST_KEYS * _key_bytes(num)
