"""Bundle cache: whole bundles of a bucket on this disk, each fetched, verified and only then renamed into place.

    <cache>/bundles/<model_id>/<semver>/    as it was published; its manifest's digest is the one that was signed

What lies there is verified once a process, and again whenever a file is another; what is damaged is fetched anew. The
least recently used go where there is no room, none of those used within the last minute: whoever opens one has its
files open by then.
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common_lib.exceptions import BundleDamagedError, UnavailableError
from ml_workbench_service.integrations.object_registry.bucket import Bucket
from ml_workbench_service.integrations.object_registry.version_head import VersionHead
from ml_workbench_service.jobs.file_lock import locked
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, verify

IN_USE_S = 60.0
FETCH_TIMEOUT_S = 150.0
"""That one process waits for another one to fetch the same bundle."""
BUNDLES = "bundles/"
BYTES_PER_GB = 1_000_000_000

Identities = tuple[tuple[str, int, int, int, int], ...]

_log = logging.getLogger(__name__)


class BundleCache:
    """Bundles on this disk. For any threads, and any processes on one folder.

    Args:
        most_gb: of all bundles together; the one that is asked for is kept even where it alone is larger.
    """

    def __init__(self, bucket: Bucket, cache: Path, *, most_gb: float) -> None:
        self._bucket = bucket
        self._cache = cache
        self.root = cache / "bundles"
        self._most_bytes = most_gb * BYTES_PER_GB
        self._verified: dict[tuple[str, str], Identities] = {}

    def folder(self, model_id: str, version: str, head: VersionHead, digest: str, *, looks_anew: bool = False) -> Path:
        """Where the bundle of this digest lies, fetched where it does not.

        Args:
            head: which upload it is.
            looks_anew: verifies every file, whether or not this process did.

        Raises:
            BundleDamagedError: what lies in the bucket is not what was published.
            UnavailableError: it is not here, and the store is away.
        """
        place = self.root / model_id / version
        if not looks_anew and self._is_known(place):
            os.utime(place)
            return place
        with self._locked(model_id, version):
            if place.exists() and not self._is_sound(place, digest):
                _log.warning("%s %s is damaged in the cache, and is fetched anew", model_id, version)
                self._drop(place)
            if not place.exists():
                self._fetch(place, head, digest)
            os.utime(place)
            self._verified[model_id, version] = _identities(place)
        return place

    def put(self, model_id: str, version: str, draft: Path) -> None:
        """Takes a draft that was just published, so that nobody has to fetch it."""
        place = self.root / model_id / version
        with self._locked(model_id, version):
            self._drop(place)
            self._make_room(sum(each.stat().st_size for each in draft.iterdir()))
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(place)
            self._verified[model_id, version] = _identities(place)

    def forget(self, model_id: str, version: str) -> None:
        """Removes a version that was purged."""
        self._verified.pop((model_id, version), None)
        self._drop(self.root / model_id / version)

    def num_bytes(self) -> int:
        """Of all bundles that lie here."""
        return sum(size for _, size, _ in self._places())

    def _fetch(self, place: Path, head: VersionHead, digest: str) -> None:
        model_id, version = place.parent.name, place.name
        arriving = self._cache / "arriving" / uuid.uuid4().hex
        try:
            sizes = head.sizes()
            folder = arriving / model_id / version  # named so in what is said of it
            folder.mkdir(parents=True)
            self._make_room(sum(sizes.values()))
            for name, size in sizes.items():
                self._bucket.download(f"{BUNDLES}{model_id}/{version}/{head.upload}/{name}", folder / name, size=size)
            if SIGNATURE_FILE in head.files:
                (folder / SIGNATURE_FILE).write_bytes(head.files[SIGNATURE_FILE])
            if verify(folder) != digest:
                raise _other(model_id, version)
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
        except ValueError as error:
            raise _other(model_id, version) from error
        finally:
            shutil.rmtree(arriving, ignore_errors=True)

    def _is_known(self, place: Path) -> bool:
        known = self._verified.get((place.parent.name, place.name))
        return known is not None and known == _identities(place)

    def _is_sound(self, place: Path, digest: str) -> bool:
        with suppress(BundleDamagedError):
            return verify(place) == digest
        return False

    def _make_room(self, num_bytes: int) -> None:
        """Removes the least recently used until there is room for so many more."""
        places = sorted(self._places())
        too_many = sum(size for _, size, _ in places) + num_bytes - self._most_bytes
        for used_s, size, place in places:
            if too_many <= 0 or time.time() - used_s < IN_USE_S:
                return
            _log.info("%s/%s leaves the cache", place.parent.name, place.name)
            self._drop(place)
            too_many -= size

    def _places(self) -> Iterator[tuple[float, int, Path]]:
        """When each was last used, and how large it is; largest numbers are the newest."""
        for place in self.root.glob("*/*"):
            with suppress(FileNotFoundError):  # it leaves just now
                yield place.stat().st_mtime, sum(each.stat().st_size for each in place.iterdir()), place

    def _drop(self, place: Path) -> None:
        leaving = self._cache / "arriving" / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            place.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)

    @contextmanager
    def _locked(self, model_id: str, version: str) -> Iterator[None]:
        busy = UnavailableError(f"{model_id} {version} is still being fetched; try again in a moment", retry_after_s=10)
        lock = self._cache / "locks" / f"{model_id}@{version}.lock"
        with locked(lock, timeout_s=FETCH_TIMEOUT_S, otherwise=busy):
            yield


def _identities(folder: Path) -> Identities:
    try:
        with os.scandir(folder) as entries:
            found = [(each.name, each.stat(follow_symlinks=False)) for each in entries]
    except OSError:
        return ()
    return tuple(
        (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        for name, stat in sorted(found, key=lambda each: each[0])
    )


def _other(model_id: str, version: str) -> BundleDamagedError:
    return BundleDamagedError(
        f"the bundle {model_id}/{version} in the bucket is not what was published; restore it from the bucket's own "
        "versions, or train it again"
    )
