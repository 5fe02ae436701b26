"""Kinds of damage to one file, and the file as it was before."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OF_SERVERS = ("redis", "mlartifacts")
"""Folders that another program owns, which has them in memory while it runs; hidden ones are drafts."""
NEVER = frozenset({"service.lock", "signing_key.pem"})
LONGEST_RUN = 64
MOST_BYTES = 8_000_000
"""Larger files are left alone: they would be copied for each case."""

Damage = Callable[[bytes, random.Random], bytes]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    """Some bits are turned."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwritten(content: bytes, chance: random.Random) -> bytes:
    """Random bytes at a random place."""
    begin = chance.randrange(len(content))
    run = chance.randbytes(min(chance.randint(1, LONGEST_RUN), len(content) - begin))
    return content[:begin] + run + content[begin + len(run) :]


def _inserted(content: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(content) + 1)
    return content[:begin] + chance.randbytes(chance.randint(1, LONGEST_RUN)) + content[begin:]


def _removed(content: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(content))
    return content[:begin] + content[begin + chance.randint(1, LONGEST_RUN) :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _zeroed(content: bytes, chance: random.Random) -> bytes:
    """As a file system may leave a page that was never written."""
    begin = chance.randrange(len(content))
    length = min(chance.choice((16, 512, 4096)), len(content) - begin)
    return content[:begin] + bytes(length) + content[begin + length :]


def _digit(content: bytes, chance: random.Random) -> bytes:
    """A digit becomes another sign: still text, often still JSON, and another value."""
    places = [place for place, byte in enumerate(content[:200_000]) if 48 <= byte < 58]
    if not places:
        return _flipped(content, chance)
    place = chance.choice(places)
    return content[:place] + chance.choice((b"9", b"-1", b"1e999", b"null", b'"x"', b"[]", b"")) + content[place + 1 :]


def _doubled(content: bytes, chance: random.Random) -> bytes:
    """A line stands there twice, or away from its place."""
    lines = content.split(b"\n")
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    return b"\n".join(lines)


def _replaced(content: bytes, chance: random.Random) -> bytes:
    """Something whole, and nothing that belongs there."""
    return chance.choice((b"", b"[]", b"{}", b"null", b"0", b'"text"', b"\xff\xfe", b"[" * 5000, content[::-1]))


DAMAGES: Mapping[str, Damage] = {
    each.__name__[1:]: each
    for each in (_flipped, _overwritten, _inserted, _removed, _cut, _zeroed, _digit, _doubled, _replaced)
}


def damageable(*roots: Path) -> list[Path]:
    """Every file of a service that a case may change, in order."""
    found = []
    for root in roots:
        for place, folders, names in os.walk(root):
            folders[:] = [each for each in sorted(folders) if each[0] != "." and each not in OF_SERVERS]
            found += [
                path
                for name in sorted(names)
                if name[0] != "." and name not in NEVER and not name.endswith((".lock", "-wal", "-shm"))
                if 0 < (path := Path(place, name)).stat().st_size <= MOST_BYTES
            ]
    return found


@contextmanager
def damaged(file: Path, damage: Damage, chance: random.Random) -> Iterator[bytes]:
    """The file is damaged within, in place or as another one of its name, and afterwards what it was, which is given.

    What the service wrote into it meanwhile is lost with that, as with any file that is put back from a backup. A
    database stays the same file: the service has it open.
    """
    before, mode = file.read_bytes(), file.stat().st_mode
    is_database = file.suffix == ".db"
    content = damage(before, chance)
    (_put if chance.random() < 0.5 and not is_database else _overwrite)(file, content, mode)
    try:
        yield before
    finally:
        (_overwrite if is_database else _put)(file, before, mode)


def _overwrite(file: Path, content: bytes, _mode: int) -> None:
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def _put(file: Path, content: bytes, mode: int) -> None:
    staged = file.with_name(f".{file.name}.damage")
    staged.write_bytes(content)
    staged.chmod(mode)
    if file.parent.is_dir():
        staged.replace(file)
