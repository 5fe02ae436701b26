"""Mirror: a registry's small files on this disk, kept in step with the bucket; every read is a local one.

    <cache>/registry/<model_id>/<semver>/    card.json · manifest.json · manifest.sig · recipe.json · .etag
    <cache>/registry/<model_id>/             deployments.jsonl · archived.jsonl · tombstones.jsonl
    <cache>/logs/<model_id>                  the ETag of the model's log, and that log
    <cache>/synced                           its time says when both last were one, its content how often one looks

It is a registry in a folder to whoever reads it, so that lists cost a `stat` a model, and predictions never wait for
the store. One process a machine follows the bucket (`follow`): a listing, and what has another ETag. Whoever writes
looks first. All is fetched and laid down under the model's lock, so that nothing older comes after something newer.
"""

import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common_lib.exceptions import ConflictError, UnavailableError
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.integrations.object_registry.bucket import (
    AlreadyThereError,
    Bucket,
    ChangedError,
    Held,
    plain,
)
from ml_workbench_service.integrations.object_registry.model_log import files_of, is_foreign, lines_for
from ml_workbench_service.integrations.object_registry.version_head import HEAD_FILES, PURGED, VersionHead
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.file_lock import locked
from ml_workbench_service.learning.bundle.listing import CARD_FILE

FOLLOW_EVERY_S = 0.5
FRESH_S = 2.0
SHARE_OF_TIME = 0.1
"""Of following: a listing that takes two seconds is made every twenty."""
MOST_TRIES = 50
LOCK_TIMEOUT_S = 15.0
NUM_THREADS = 8
STATE = "state/"
LOG_NAME = "log.jsonl"
ETAG_FILE = ".etag"
SYNCED_FILE = "synced"

_log = logging.getLogger(__name__)


class Mirror:
    """The mirror of one bucket. For any threads, and any processes on one folder.

    Args:
        cache: the folder; it is the mirror's alone.
    """

    def __init__(self, bucket: Bucket, cache: Path) -> None:
        self.bucket = bucket
        self.cache = cache
        self.root = cache / "registry"
        self.fault = ""
        """Why the last look at the bucket failed; empty where it did not."""
        self._pause_s = FOLLOW_EVERY_S  # between two looks
        self._etags: dict[str, str] = {}
        self._sections: dict[str, list[int]] = {}
        self._own: dict[str, set[bytes]] = {}
        self._purged: set[tuple[str, str]] = set()
        self._stopping = threading.Event()
        self._follower: threading.Thread | None = None

    def open(self) -> None:
        """Makes the folder, and looks once.

        Raises:
            UnavailableError: the store is away, and nothing was ever cached here.
        """
        for each in (self.root, self.cache / "logs", self.cache / "locks", self.cache / "arriving"):
            each.mkdir(parents=True, exist_ok=True)
        try:
            self.refresh()
        except UnavailableError as error:
            if self.synced_s is None:
                raise
            _log.warning("%s; what was cached before is served", error.message)

    @property
    def synced_s(self) -> float | None:
        """Seconds since the bucket and this folder were one; None: never."""
        with suppress(FileNotFoundError):
            return max(time.time() - (self.cache / SYNCED_FILE).stat().st_mtime, 0.0)
        return None

    @property
    def pause_s(self) -> float:
        """Between two looks of whichever process follows the bucket."""
        with suppress(OSError, ValueError):
            return float((self.cache / SYNCED_FILE).read_text())
        return FOLLOW_EVERY_S

    def may_be_behind(self) -> bool:
        """Whether the last look is so long ago that what is missing here may be in the bucket."""
        return self.synced_s is None or self.synced_s > FRESH_S

    def follow(self) -> None:
        """Keeps looking, in a thread of its own; of several processes on this folder one does at a time."""
        self._follower = threading.Thread(target=self._follow, name="registry follower", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Ends the following."""
        self._stopping.set()
        if self._follower is not None:
            self._follower.join(timeout=LOCK_TIMEOUT_S)

    def refresh(self) -> None:
        """Brings everything in step: one listing, and what has changed by it.

        Raises:
            UnavailableError: the store is away.
        """
        try:
            if self.synced_s is None:
                self._etags = {}  # a cache that somebody has emptied
            listed = {each.key: each.etag for each in self.bucket.listed(STATE)}
            changed = {_model_of(key) for key, etag in listed.items() if self._etags.get(key) != etag}
            changed |= {_model_of(key) for key in self._etags.keys() - listed.keys()}
            if not self._etags:
                changed |= {each.name for each in self.root.iterdir() if each.is_dir()}
            wanted = sorted(each for each in changed if re.fullmatch(NAME_PATTERN, each))
            with ThreadPoolExecutor(NUM_THREADS) as threads:
                list(threads.map(self.sync, wanted))
            self._etags = listed
        except UnavailableError as error:
            self.fault = error.message
            raise
        self.fault = ""
        (self.cache / SYNCED_FILE).write_text(str(self._pause_s))

    def sync(self, model_id: str) -> None:
        """Brings one model in step.

        Raises:
            UnavailableError: the store is away.
        """
        if not re.fullmatch(NAME_PATTERN, model_id):
            return
        with self._locked(model_id):
            self._sync(model_id)

    def append(self, model_id: str, file_name: str, text: str) -> None:
        """Appends lines to a model's log, by compare and swap: two who append at once lose nothing.

        Raises:
            ConflictError: within `section`, somebody else has appended in between.
            UnavailableError: the store is away; the lines may be there all the same, which the next look says.
        """
        added = lines_for(file_name, text)
        with self._locked(model_id):
            self._own.setdefault(model_id, set()).update(added.splitlines())
            held = self._known_log(model_id)
            for _ in range(MOST_TRIES):
                self._check_section(model_id, held.content)
                wanted = held.content + added
                try:
                    held = Held(wanted, self._swap(model_id, wanted, held))
                except (ChangedError, AlreadyThereError):
                    held = self.bucket.read(_log_key(model_id)) or held
                    if not held.content.startswith(wanted):
                        continue
                self._lay_log(model_id, held)
                return
        raise ConflictError(f"others write about {model_id} all the time; try again in a moment")

    def take_back(self, model_id: str, file_name: str, text: str) -> bool:
        """Removes the newest lines of a model's log where they are these; whether they were."""
        lines = lines_for(file_name, text)
        with self._locked(model_id):
            held = self.bucket.read(_log_key(model_id)) or Held()
            if held.etag is None or not held.content.endswith(lines):
                return False
            left = held.content.removesuffix(lines)
            try:
                self._lay_log(model_id, Held(left, self._swap(model_id, left, held)))
            except ChangedError:
                return False
        return True

    @contextmanager
    def section(self, model_id: str) -> Iterator[None]:
        """What is appended within relies on what was there at its beginning: others' lines in between end it.

        Raises:
            UnavailableError: the store is away.
        """
        self.sync(model_id)
        begin = len(self._known_log(model_id).content)
        begins = self._sections.setdefault(model_id, [])
        begins.append(begin)
        try:
            yield
        finally:
            begins.remove(begin)

    def create_version(self, model_id: str, version: str, head: VersionHead) -> None:
        """Publishes a version whose files were uploaded. Raises AlreadyThereError where there is one, or was."""
        payload = head.payload()
        with self._locked(model_id):
            etag = self.bucket.create(_version_key(model_id, version), payload)
            self._lay_head(model_id, version, Held(payload, etag))

    def read_version(self, model_id: str, version: str) -> Held:
        """A version's object as it is in the bucket now."""
        return self.bucket.read(_version_key(model_id, version)) or Held()

    def replace_version(self, model_id: str, version: str, payload: bytes) -> None:
        """Writes a version's object over: signed by one more key, or purged. Nothing where there is none.

        Raises:
            ConflictError: somebody else does the same.
        """
        key = _version_key(model_id, version)
        with self._locked(model_id):
            held = self.bucket.read(key) or Held()
            if held.etag is None:
                return
            try:
                etag = self.bucket.replace(key, payload, etag=held.etag)
            except ChangedError as error:
                raise ConflictError(f"{model_id} {version} is just being signed or purged; try again") from error
            if payload == PURGED:
                self._drop_head(model_id, version)
            else:
                self._lay_head(model_id, version, Held(payload, etag))

    def mend(self, model_id: str, version: str) -> bool:
        """Lays a version's small files down anew, where they are not as they are in the bucket; whether they were not.

        Raises:
            UnavailableError: the store is away.
        """
        with self._locked(model_id):
            before = self._content(model_id, version)
            (self.root / model_id / version / ETAG_FILE).unlink(missing_ok=True)
            self._sync(model_id)
            return self._content(model_id, version) != before

    def head(self, model_id: str, version: str) -> VersionHead:
        """A version's small files as they are here. Raises ValueError, OSError where they make no sense."""
        home = self.root / model_id / version
        upload = (home / ETAG_FILE).read_text().splitlines()[1]
        return VersionHead(upload, {name: (home / name).read_bytes() for name in HEAD_FILES if (home / name).exists()})

    def _content(self, model_id: str, version: str) -> dict[str, bytes]:
        try:
            return dict(self.head(model_id, version).files)
        except (OSError, ValueError, IndexError):
            return {}

    def _sync(self, model_id: str) -> None:
        log = self.bucket.read(_log_key(model_id), unless=self._known_log(model_id).etag)
        gone = self._versions_here(model_id)
        for each in self.bucket.listed(f"{STATE}{model_id}/versions/"):  # after the log: what that names is among them
            version = each.key.rpartition("/")[2].removesuffix(".json")
            if (each.key, each.etag) in self._purged or not re.fullmatch(VERSION_PATTERN, version):
                continue
            if self._etag_here(model_id, version) != each.etag:
                held = self.bucket.read(each.key) or Held()
                if held.etag is None or held.content == PURGED:
                    self._purged.add((each.key, each.etag))
                    continue
                self._lay_head(model_id, version, held)
            gone.discard(version)
        if log is not None:
            self._lay_log(model_id, log)
        for version in gone:  # after the log, which says that they were purged
            self._drop_head(model_id, version)

    def _swap(self, model_id: str, wanted: bytes, held: Held) -> str:
        key = _log_key(model_id)
        if held.etag is None:
            return self.bucket.create(key, wanted)
        return self.bucket.replace(key, wanted, etag=held.etag)

    def _check_section(self, model_id: str, content: bytes) -> None:
        begin = min(self._sections.get(model_id, []), default=len(content))
        if len(content) < begin or is_foreign(content[begin:], self._own.get(model_id, ())):
            raise ConflictError(f"another service has changed {model_id} meanwhile; look at it, then try again")

    def _known_log(self, model_id: str) -> Held:
        try:
            etag, _, content = (self.cache / "logs" / model_id).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return Held()
        return Held(content, etag.decode() or None)

    def _lay_log(self, model_id: str, held: Held) -> None:
        """The log, and the files of a folder that it says."""
        home = self.root / model_id
        if held.etag is None and not home.exists():
            return
        home.mkdir(exist_ok=True)
        for name, content in files_of(held.content).items():
            self._lay_file(home / name, content)
        kept = self.cache / "logs" / model_id
        if held.etag is None:
            kept.unlink(missing_ok=True)
        else:
            write_whole(kept, held.etag.encode() + b"\n" + held.content)

    def _lay_file(self, path: Path, content: bytes) -> None:
        """Grows a file by what is new; another one takes its place where it says something else."""
        try:
            before = path.read_bytes()
        except FileNotFoundError:
            if not content:
                return
            before = b""
            path.touch()
            os.utime(self.root)  # as `DeploymentHistory.append` does it: whoever looks after it finds the file
        if not content:
            path.unlink()
        elif not content.startswith(before):
            write_whole(path, content)
        elif content != before:
            with path.open("ab") as file:
                file.write(content[len(before) :])

    def _lay_head(self, model_id: str, version: str, held: Held) -> None:
        """A version's small files: its folder appears whole, and changes file by file, the ETag last."""
        home = self.root / model_id / version
        try:
            head = VersionHead.parse(held.content)
        except ValueError:
            _log.error("the object of %s %s makes no sense", model_id, version)
            head = VersionHead("", {CARD_FILE: held.content})  # which is set aside as damaged
        files = {**head.files, ETAG_FILE: f"{held.etag}\n{head.upload}\n".encode()}
        if home.is_dir():
            for name in HEAD_FILES:
                if name not in files:
                    (home / name).unlink(missing_ok=True)
            for name, content in files.items():
                if not (home / name).is_file() or (home / name).read_bytes() != content:
                    write_whole(home / name, content)
            return
        arriving = self.cache / "arriving" / uuid.uuid4().hex
        arriving.mkdir()
        for name, content in files.items():
            (arriving / name).write_bytes(content)
        home.parent.mkdir(exist_ok=True)
        arriving.rename(home)

    def _drop_head(self, model_id: str, version: str) -> None:
        leaving = self.cache / "arriving" / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            (self.root / model_id / version).rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)

    def _versions_here(self, model_id: str) -> set[str]:
        with suppress(FileNotFoundError):
            return {name for name in os.listdir(self.root / model_id) if re.fullmatch(VERSION_PATTERN, name)}
        return set()

    def _etag_here(self, model_id: str, version: str) -> str:
        with suppress(OSError, ValueError):
            return plain((self.root / model_id / version / ETAG_FILE).read_text().partition("\n")[0])
        return ""

    @contextmanager
    def _locked(self, model_id: str) -> Iterator[None]:
        busy = ConflictError(f"{model_id} is just being looked at or written; try again in a moment")
        with locked(self.cache / "locks" / f"{model_id}.lock", timeout_s=LOCK_TIMEOUT_S, otherwise=busy):
            yield

    def _follow(self) -> None:
        lock = FileLock(self.cache / "following.lock", thread_local=False)
        while not self._stopping.wait(self._pause_s):
            self._pause_s = FOLLOW_EVERY_S
            try:
                if not lock.is_locked:
                    lock.acquire(timeout=0)
                begun_s = time.monotonic()
                self.refresh()
                self._pause_s = max(FOLLOW_EVERY_S, (time.monotonic() - begun_s) / SHARE_OF_TIME)
            except Timeout:  # another process follows
                continue
            except UnavailableError:  # `fault` says it
                continue
            except Exception:  # a full disk, another one's lock: the next look may go well
                _log.exception("the registry's mirror could not be brought in step")
        lock.release(force=True)


def _model_of(key: str) -> str:
    return key.removeprefix(STATE).partition("/")[0]


def _log_key(model_id: str) -> str:
    return f"{STATE}{model_id}/{LOG_NAME}"


def _version_key(model_id: str, version: str) -> str:
    return f"{STATE}{model_id}/versions/{version}.json"
