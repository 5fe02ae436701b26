"""Append-only file of Redis: the effects that a server wrote there, in order: the history nobody can argue with.

Scripts appear there as what they changed, framed by MULTI and EXEC. Redis 7 keeps the file in pieces in a folder, 6.2
keeps one; neither is rewritten in a run (`auto-aof-rewrite-percentage 0`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Words = tuple[bytes, ...]
NEVER_REWRITTEN = {"auto-aof-rewrite-percentage": "0"}
"""Options of a server whose log is to be read."""
_TRIMMED = {b"MAXLEN", b"MINID"}


@dataclass(frozen=True)
class Added:
    """One XADD: its stream, the id it got, and the fields."""

    stream: str
    entry_id: str
    fields: dict[bytes, bytes]


def blocks(folder: Path) -> Iterator[list[Words]]:
    """What took effect together: the commands of one script, or a single command."""
    together: list[Words] | None = None
    for file in log_files(folder):
        with file.open("rb") as stream:
            for words in _commands(stream):
                verb = words[0].upper()
                if verb == b"MULTI":
                    together = []
                elif verb == b"EXEC":
                    yield together or []
                    together = None
                elif together is not None:
                    together.append(words)
                else:
                    yield [words]


def log_files(folder: Path) -> list[Path]:
    """The pieces of the append-only file below a server's folder, in order."""
    pieces = list(folder.glob("appendonlydir/*.incr.aof"))
    if pieces:
        return sorted(pieces, key=lambda piece: int(re.findall(r"\.(\d+)\.incr", piece.name)[0]))
    return list(folder.glob("appendonly.aof"))


def added(words: Words) -> Added:
    """An XADD command, taken apart."""
    place = 2
    while words[place].upper() in _TRIMMED | {b"NOMKSTREAM", b"LIMIT"}:
        place += 1 if words[place].upper() == b"NOMKSTREAM" else 2
        if words[place - 1] in (b"=", b"~"):
            place += 1
    fields = words[place + 1 :]
    return Added(words[1].decode(), words[place].decode(), dict(zip(fields[::2], fields[1::2], strict=True)))


def _commands(stream: BinaryIO) -> Iterator[Words]:
    while line := stream.readline():
        if line.startswith(b"*"):
            words = _words(stream, int(line[1:]))
            if words is None:
                return  # torn at the end, as a killed server leaves it; the next start cuts it off
            yield words


def _words(stream: BinaryIO, num: int) -> Words | None:
    words: list[bytes] = []
    for _ in range(num):
        head = stream.readline()
        if not head.startswith(b"$") or not head.endswith(b"\n"):
            return None
        size = int(head[1:])
        body = stream.read(size + 2)
        if len(body) < size + 2:
            return None
        words.append(body[:-2])
    return tuple(words)


def ids_of(words: Words, *, after: int) -> Sequence[str]:
    """The entry ids that end a command."""
    return [word.decode() for word in words[after:]]
