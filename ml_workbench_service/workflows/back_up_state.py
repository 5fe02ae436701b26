"""Backup of a running service: its STATE_DIR and its model registry as one consistent archive. Nothing is stopped.

Each file is read as it stood at one moment: databases by SQLite's backup, append-only files up to their length,
replaced files as they were when they were opened, published versions never change. What belongs to processes (records,
beats, locks, sockets, drafts) stays behind: a restored service must neither adopt nor end processes of another place.

Whatever one part says of another must be there after a restore, so what names others is copied first:

    queue             before the agents' checkpoints. An entry is acknowledged, and leaves the queue, only once a saved
                      checkpoint holds it; so what this copy holds as acknowledged is in the checkpoints copied later,
                      and what they hold beyond it is applied no second time. The other way round, what was acknowledged
                      in between would be in neither.
    checkpoints, predictions, live intervals, jobs       name versions. Outcomes in the ledger before the intervals that
                      learnt from them: an interval takes an outcome once, whoever tells it again
    archive marks, then deployments                      name versions; no archived version is deployed any more
    published versions
    multiple-testing log                                 every evaluation that a job or a card counts was noted before
    MLflow's store                                       holds whatever a job's `tracking.json` says was sent
"""

import io
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from common_lib import sqlite_store
from common_lib.exceptions import UnavailableError
from ml_workbench_service import __version__
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.integrations.backup_archive import ArchiveWriter, BackupManifest
from ml_workbench_service.integrations.deployment_history import HISTORY_FILE
from ml_workbench_service.integrations.embedded_redis import open_log
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.bounded_log import first_kept
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.jobs.job import DELETED_FILE, WORKER_LOG, WorkerRecord
from ml_workbench_service.jobs.trial_log import TRIALS_FILE
from ml_workbench_service.learning.bundle.endings import ARCHIVED_FILE, TOMBSTONES_FILE
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE, NOT_LISTED
from ml_workbench_service.settings import Settings

OF_PROCESSES = re.compile(r"\..*|.*\.lock|.*-(wal|shm)|beat|(process|attendant|tracker|page)\.json|signing_key\.pem")
"""Files that are left out: staged ones, locks, and what says which process is alive. Hidden folders too.
And the private key: whoever has an archive could sign with it. A restored service makes another one, and trusts what
this one has signed."""
BY_THEMSELVES = ("redis", "agents")
NAMING = ("predictions.db", "adaptive", "jobs", "champions.json", "purged_in_mlflow.json")
NAMED = ("ledgers.db", "witnesses.db", "mlflow.db", "mlartifacts")
LAST_OF_A_JOB = ("tracking.json", "events.jsonl", TRIALS_FILE)
"""In this order: what MLflow was sent is in the log, and a trial that an event tells of is in the trials."""
NOBODY = {"pid": 2**31 - 1, "started_at": 0.0, "boot_id": "another place"}
MOST_TRIES = 20
WHOLE_BYTES = 1 << 20
"""Smaller files are read at once, since some are written in place."""
BUSY_TIMEOUT_S = 60.0


@contextmanager
def registry_in_archives(settings: Settings) -> Iterator[Path]:
    """The registry's folder; an empty one where it is a bucket, whose own versions and replication keep it."""
    if settings.registry_address is None:
        yield settings.registry_folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        (empty := Path(scratch) / "registry").mkdir()
        yield empty


def back_up(state_dir: Path, registry: Path, target: Path, *, redis_is_external: bool = False) -> BackupManifest:
    """Writes the archive, verifies it, and returns what it holds.

    Args:
        state_dir, registry: of the service, running or not.
        target: the archive; compressed where its name ends in `gz`.
        redis_is_external: the queue lies on a server of its own, and is not included.

    Raises:
        ConflictError: there is a file at `target`.
        UnavailableError: the disk is full, or a database of the service is damaged.
    """
    if not state_dir.is_dir():
        raise UnavailableError(f"{state_dir} is no STATE_DIR; set STATE_DIR to the one of the service")
    with ArchiveWriter(target) as archive, tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as scratch:
        copy = _Copy(archive, state_dir, registry, Path(scratch))
        queue = "external" if redis_is_external else copy.queue()
        copy.agents()
        rest = {each.name for each in state_dir.iterdir()} - {*BY_THEMSELVES, *NAMING, *NAMED}
        for name in (*NAMING, *sorted(rest)):
            copy.entry(state_dir / name)
        damaged = copy.models()
        for name in NAMED:
            copy.entry(state_dir / name)
        manifest = BackupManifest(
            service_version=__version__, created_at=utc_now(), state_dir=str(state_dir.resolve()), queue=queue,
            damaged=damaged,
        )  # fmt: skip
        return archive.finish(manifest)


class _Copy:
    """One archive in the making."""

    def __init__(self, archive: ArchiveWriter, state_dir: Path, registry: Path, scratch: Path) -> None:
        self._archive = archive
        self._roots = {"state": state_dir, "registry": registry}
        self._scratch = scratch

    def queue(self) -> Literal["included", "none"]:
        """The embedded server's append-only files."""
        with open_log(self._roots["state"]) as files:
            for path, stream, size in files:
                self._archive.add(self._name(path), stream, size)
            return "included" if files else "none"

    def agents(self) -> None:
        """Agent by agent: definition, checkpoints of every shard, attempts."""
        for folder in _folders(self._roots["state"] / "agents"):
            for path, stream in _at_once(folder):
                self._add(path, stream)

    def entry(self, path: Path) -> None:
        """A file, a database or a folder of STATE_DIR."""
        if path.name == "jobs":
            for folder in _folders(path):
                self._job(folder)
            self._file(path / DELETED_FILE)  # last: a job that is deleted meanwhile is finished off at the next start
        elif path.suffix == ".db" and path.is_file():
            self._database(path)
        else:
            for file in _files(path):
                self._file(file)

    def models(self) -> tuple[str, ...]:
        """Histories, then versions; which of these are not what was published.

        Tombstones come last: a version that is purged meanwhile is finished off at the next start.
        """
        models = _folders(self._roots["registry"])
        for name in (ARCHIVED_FILE, HISTORY_FILE):
            for model in models:
                self._file(model / name)
        damaged = []
        for model in models:
            for version in _folders(model):
                found = {file.name: self._file(file) for file in _files(version)}
                if not _is_published(version, found):
                    damaged.append(f"{model.name}/{version.name}")
        registry = FolderModelRegistry(self._roots["registry"], live_version=lambda _: None)
        gone = {f"{model.name}/{version}" for model in models for version in registry.tombstones(model.name)}
        for model in models:
            self._file(model / TOMBSTONES_FILE)
        return tuple(each for each in damaged if each not in gone)

    def _job(self, folder: Path) -> None:
        for file in sorted(_files(folder), key=lambda file: (_turn(file.name), file)):
            worker = WorkerRecord.read(file) if file == folder / "worker.json" else None
            if file == folder / WORKER_LOG:
                self._log(file)
            elif worker is None:
                self._file(file)
            else:  # it counts how often the job was begun, and names nobody who could be adopted or ended
                payload = worker.model_copy(update=NOBODY).model_dump_json().encode()
                self._archive.add(self._name(file), io.BytesIO(payload), len(payload))

    def _log(self, path: Path) -> None:
        """A worker's log without the hole before what is kept of it, which would be read as zeros."""
        with suppress(FileNotFoundError), _opened(path) as stream:
            stream.seek(first_kept(stream.fileno()))
            self._add(path, stream)

    def _database(self, path: Path) -> None:
        copied = self._scratch / path.name
        try:
            address = f"{path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
                sqlite_store.copy(connection, copied)
            with closing(sqlite3.connect(copied)) as connection:
                faults = [line for (line,) in connection.execute("PRAGMA integrity_check(1)")]
            if faults != ["ok"]:
                raise sqlite3.DatabaseError(faults[0])
        except sqlite3.Error as error:
            raise UnavailableError(
                f"{path.name} in STATE_DIR cannot be copied ({error}); restore it or move it away, then back up again"
            ) from error
        with copied.open("rb") as stream:
            self._add(path, stream)
        copied.unlink()

    def _file(self, path: Path) -> str | None:
        """One file up to its present length; its SHA-256, or None where it is gone."""
        try:
            stream = _opened(path)
        except FileNotFoundError:
            return None
        with stream:
            return self._add(path, stream)

    def _add(self, path: Path, stream: IO[bytes]) -> str:
        size = os.fstat(stream.fileno()).st_size - stream.tell()
        if size > WHOLE_BYTES:
            return self._archive.add(self._name(path), stream, size)
        payload = stream.read(size)
        return self._archive.add(self._name(path), io.BytesIO(payload), len(payload))

    def _name(self, path: Path) -> str:
        """The path in the archive."""
        first, root = next((name, root) for name, root in self._roots.items() if path.is_relative_to(root))
        return f"{first}/{path.relative_to(root).as_posix()}"


def _at_once(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The folder's files of one moment: a term's checkpoint may take another one's place while they are listed."""
    for _ in range(MOST_TRIES):
        with ExitStack() as stack:
            try:
                opened = [(file, stack.enter_context(_opened(file))) for file in _files(folder)]
            except FileNotFoundError:
                continue
            yield from opened
            return
    raise UnavailableError(f"the files of {folder.name} change too fast to be copied; try again", retry_after_s=5)


def _opened(path: Path) -> IO[bytes]:
    """Raises FileNotFoundError where it is gone, UnavailableError where it cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read ({error.strerror}); back up as the service's user") from error


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, in order, but for hidden ones."""
    return [each for each in sorted(path.iterdir()) if each.is_dir() and each.name[0] != "."] if path.is_dir() else []


def _files(path: Path) -> Iterator[Path]:
    """The file, or every file below the folder, in order."""
    if not path.is_dir():
        if path.exists() and not OF_PROCESSES.fullmatch(path.name):
            yield path
    elif path.name[0] != ".":
        for each in sorted(path.iterdir()):
            yield from _files(each)


def _turn(name: str) -> int:
    return LAST_OF_A_JOB.index(name) if name in LAST_OF_A_JOB else -1


def _is_published(version: Path, found: dict[str, str | None]) -> bool:
    """Whether the files as they were copied are those of the version's manifest."""
    try:
        listed = json_object((version / MANIFEST_FILE).read_bytes())["files"]
        return {name: each["sha256"] for name, each in listed.items()} == {
            name: digest for name, digest in found.items() if name not in NOT_LISTED
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
