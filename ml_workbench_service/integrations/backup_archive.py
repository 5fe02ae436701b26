"""Backup archive: one tar file with a manifest of every file's size and SHA-256, verified once it is written.

    state/…       files of a STATE_DIR
    registry/…    files of a model registry
    backup.json   the manifest, last: an archive that was cut off has none

It is written beside its place and renamed, so a file of that name is whole. A name that ends in `gz` is compressed.
"""

import hashlib
import io
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Literal

from pydantic import ValidationError

from common_lib.exceptions import ConflictError, DataValidationError, StorageFullError, UnavailableError
from common_lib.storage import is_full
from ml_workbench_service.contracts.contract import Contract, UtcDatetime
from ml_workbench_service.jobs.durable_files import sync_folder
from ml_workbench_service.jobs.guarded_reading import json_object

FORMAT = 1
MANIFEST = "backup.json"
CHUNK_BYTES = 1 << 20


class BackupFile(Contract):
    """One file of the archive."""

    path: str
    size: int
    sha256: str


ABOUT_THE_QUEUE = {
    "included": "the prediction queue is included",
    "none": "there was no prediction queue",
    "external": "the prediction queue is NOT included: it lies on the server that REDIS_URL names; back that up too",
}


class BackupManifest(Contract):
    """What an archive holds; `queue` says whether the prediction queue is in it.

    A Redis server that REDIS_URL names is not the service's to back up (`external`); `none`: there was no queue.
    """

    format: int = FORMAT
    service_version: str
    created_at: UtcDatetime
    state_dir: str
    queue: Literal["included", "external", "none"]
    damaged: tuple[str, ...] = ()  # versions that were not what was published when they were copied
    files: tuple[BackupFile, ...] = ()

    @property
    def about_the_queue(self) -> str:
        """Whether the prediction queue is in it, in words."""
        return ABOUT_THE_QUEUE[self.queue]


class ArchiveWriter:
    """Writes one archive; use it in a `with`, which leaves nothing behind where it fails.

    Args:
        target: the archive's path.

    Raises:
        ConflictError: there is such a file.
        UnavailableError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, target: Path) -> None:
        if target.exists():
            raise ConflictError(f"{target} exists already; name another file, or move that one away")
        self._target = target
        self._staged = target.with_name(f".{target.name}.partial")
        self._files: list[BackupFile] = []
        with _clear_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            mode: Literal["w:gz", "w"] = "w:gz" if target.name.endswith("gz") else "w"
            self._tar = tarfile.open(self._staged, mode)  # noqa: SIM115 (closed by `finish` or `__exit__`)

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # a full disk, which was said
            self._tar.close()
        self._staged.unlink(missing_ok=True)

    def add(self, path: str, stream: IO[bytes], size: int) -> str:
        """The first `size` bytes of the stream, under this path; their SHA-256."""
        info = tarfile.TarInfo(path)
        info.size, info.mtime = size, int(time.time())
        hashed = _Hashed(stream)
        with _clear_errors(self._target):
            self._tar.addfile(info, hashed)
        self._files.append(BackupFile(path=path, size=size, sha256=hashed.digest.hexdigest()))
        return self._files[-1].sha256

    def finish(self, manifest: BackupManifest) -> BackupManifest:
        """Adds the manifest of what was added, verifies the archive as it is on disk, and puts it in its place."""
        manifest = manifest.model_copy(update={"files": tuple(self._files)})
        payload = manifest.model_dump_json(indent=1).encode()
        self.add(MANIFEST, io.BytesIO(payload), len(payload))
        with _clear_errors(self._target):
            self._tar.close()
            with self._staged.open("rb") as written:
                os.fsync(written.fileno())
            verified(self._staged)
            self._staged.replace(self._target)
            sync_folder(self._target.parent)
        return manifest


class _Hashed(io.RawIOBase):
    """A stream whose bytes are hashed as they are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        chunk = self._stream.read(size)
        self.digest.update(chunk)
        return chunk


def verified(archive: Path) -> BackupManifest:
    """Reads the whole archive and compares every file with the manifest, which it returns.

    Raises:
        DataValidationError: it is damaged, or no backup.
        UnavailableError: a newer version of the service made it, or it cannot be read.
    """
    found: dict[str, tuple[int, str]] = {}
    document = b""
    with _opened(archive) as members:
        for info, stream in members:
            digest = hashlib.sha256()
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                document += chunk if info.name == MANIFEST else b""
            found[info.name] = (info.size, digest.hexdigest())
    manifest = _manifest(archive, document)
    del found[MANIFEST]
    listed = {each.path: (each.size, each.sha256) for each in manifest.files}
    if found != listed:
        wrong = sorted(path for path in {*found, *listed} if found.get(path) != listed.get(path))
        raise _damaged(archive, f"not as they were written: {', '.join(wrong[:5])}")
    return manifest


def extract(archive: Path, places: dict[str, Path]) -> None:
    """Writes every file of a verified archive, each on disk when this returns.

    Args:
        places: the folder of each first part of a path: `state`, `registry`.
    """
    with _opened(archive) as members:
        for info, stream in members:
            if info.name != MANIFEST:
                _write(stream, _place(archive, info.name, places))


def _place(archive: Path, name: str, places: dict[str, Path]) -> Path:
    first, *rest = PurePosixPath(name).parts
    if first not in places or not rest or ".." in rest:
        raise _damaged(archive, f"{name} has no place")
    return places[first].joinpath(*rest)


def _write(stream: IO[bytes], file: Path) -> None:
    with _clear_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as written:
            while chunk := stream.read(CHUNK_BYTES):
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    """Every file of the archive, in order, to be read before the next."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            yield _members(tar, archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(archive, str(error)) from error
    except OSError as error:
        if error.errno is None:  # gzip's
            raise _damaged(archive, str(error)) from error
        raise UnavailableError(f"{archive} cannot be read ({error.strerror}); name an archive that is there") from error


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for info in tar:
        stream = tar.extractfile(info) if info.isfile() else None
        if stream is None:
            raise _damaged(archive, f"{info.name} is no file")
        yield info, stream


def _manifest(archive: Path, document: bytes) -> BackupManifest:
    if not document:
        raise _damaged(archive, f"it holds no {MANIFEST}, so it was cut off or is something else")
    try:
        plain = json_object(document)
        if int(plain["format"]) > FORMAT:
            raise UnavailableError(
                f"{archive} is a backup of format {plain['format']}, made by a newer version of this service "
                f"({plain.get('service_version')}); this one reads up to {FORMAT}. Upgrade the service, then restore."
            )
        return BackupManifest.model_validate(plain)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        faults = f"{error.error_count()} faults" if isinstance(error, ValidationError) else repr(error)
        raise _damaged(archive, f"its {MANIFEST} cannot be read: {faults}") from error


def _damaged(archive: Path, why: str) -> DataValidationError:
    return DataValidationError.at("archive", f"{archive} is damaged or no backup ({why}); restore another one.")


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence with the next step."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageFullError(
                f"The disk is full: {path} could not be written. Free some space there, then try again."
            ) from error
        if error.errno is None:
            raise
        raise UnavailableError(
            f"{path} cannot be written ({error.strerror}); check the folder and its rights"
        ) from error
