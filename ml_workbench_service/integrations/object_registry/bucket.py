"""Bucket: one prefix of an S3-compatible object store through obstore, in bounded time, with conditional writes.

    create     If-None-Match: *     of many who create a key one does
    replace    If-Match: <ETag>     of many who replace what they have read one does

Credentials, region and endpoint are the usual AWS_* variables, which obstore reads itself, roles of a machine or a pod
among them. Whatever the store says is told in words of our own: its answers may quote what was sent.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from common_lib.exceptions import BundleDamagedError, UnavailableError

if TYPE_CHECKING:  # its types exist for checkers alone
    from obstore import GetOptions, PutResult
    from obstore.store import LocalStore, MemoryStore

SCHEME = "s3://"
CONNECT_TIMEOUT = timedelta(seconds=2)
REQUEST_TIMEOUT = timedelta(seconds=5)
TRANSFER_TIMEOUT = timedelta(seconds=120)
"""Of one file of a bundle."""
NUM_RETRIES = 2
RETRY_WITHIN = timedelta(seconds=6)
RETRY_AFTER_S = 10
CHUNK_BYTES = 1 << 20
PROBES = "probes/"

_log = logging.getLogger(__name__)


class AlreadyThereError(Exception):
    """Somebody else has created the key."""


class ChangedError(Exception):
    """Somebody else has written the key since it was read."""


@dataclass(frozen=True)
class Held:
    """An object's content and what it is known by; no ETag: there is no such object."""

    content: bytes = b""
    etag: str | None = None


@dataclass(frozen=True)
class Listed:
    """A line of a listing; the ETag is plain (`plain`), since stores list it with quotes or without."""

    key: str
    etag: str
    size: int
    changed_at: datetime


class Bucket:
    """One prefix of a bucket. For any threads.

    Args:
        address: `s3://bucket` or `s3://bucket/prefix`.
        store: in memory or on this disk, instead of the one at the address.

    Raises:
        UnavailableError: of every method: the store does not answer in time, or refuses.
    """

    def __init__(self, address: str, *, store: "MemoryStore | LocalStore | None" = None) -> None:
        self.address = address
        self._name, _, prefix = address.removeprefix(SCHEME).strip("/").partition("/")
        self._prefix = prefix or None
        self._requests = store or self._store(REQUEST_TIMEOUT)
        self._transfers = store or self._store(TRANSFER_TIMEOUT)
        self.took_s = 0.0
        """How long the last request took that went well."""

    def read(self, key: str, *, unless: str | None = None) -> Held | None:
        """An object; None where it still is the one of the ETag `unless`. A missing one is `Held()`."""
        options: GetOptions = {} if unless is None else {"if_none_match": unless}
        with self._bounded():
            try:
                found = obstore.get(self._requests, key, options=options)
                return Held(bytes(found.bytes()), found.meta["e_tag"])
            except FileNotFoundError:
                return Held()
            except NotModifiedError:
                return None

    def create(self, key: str, payload: bytes) -> str:
        """Writes a new object; its ETag. Raises AlreadyThereError where there is one, unless it is this very one."""
        with self._bounded():
            try:
                return _etag_of(obstore.put(self._requests, key, payload, mode="create"))
            except (AlreadyExistsError, PreconditionError):
                pass  # it may be ours: the first answer was lost, and the request was sent once more
        found = self.read(key)
        if found is None or found.etag is None or found.content != payload:
            raise AlreadyThereError(key)
        return found.etag

    def replace(self, key: str, payload: bytes, *, etag: str) -> str:
        """Writes over the object of this ETag; the new one's. Raises ChangedError where it is another by now."""
        with self._bounded():
            try:
                return _etag_of(obstore.put(self._requests, key, payload, mode={"e_tag": etag}))
            except (PreconditionError, AlreadyExistsError, FileNotFoundError) as error:
                raise ChangedError(key) from error

    def upload(self, key: str, file: Path) -> None:
        """Writes a file to a key that nobody else has."""
        with self._bounded():
            obstore.put(self._transfers, key, file)

    def download(self, key: str, target: Path, *, size: int) -> None:
        """Reads an object into a new file.

        Raises:
            BundleDamagedError: it is not there, or not of this many bytes.
        """
        with self._bounded():
            try:
                found = obstore.get(self._transfers, key)
            except FileNotFoundError as error:
                raise _missing(key) from error
            if found.meta["size"] != size:
                raise _missing(key)
            with target.open("xb") as file:
                for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                    file.write(chunk)

    def listed(self, prefix: str) -> list[Listed]:
        """Every object whose key begins with this prefix, which ends with a slash."""
        with self._bounded():
            return [
                Listed(each["path"], plain(each["e_tag"] or ""), each["size"], each["last_modified"])
                for batch in obstore.list(self._requests, prefix)
                for each in batch
            ]

    def check_conditions(self) -> None:
        """Tries whether the store keeps the conditions of writes, on a key of its own; some take no notice of them.

        Raises:
            UnavailableError: it does not, so that two writers would lose each other's lines.
        """
        key = f"{PROBES}{uuid.uuid4().hex}"
        etag = self.create(key, b"first")
        try:
            self.create(key, b"second")
        except AlreadyThereError:
            pass
        else:
            raise self._careless()
        self.replace(key, b"third", etag=etag)
        try:
            self.replace(key, b"fourth", etag=etag)
        except ChangedError:
            return
        finally:
            self.remove([key])
        raise self._careless()

    def _careless(self) -> UnavailableError:
        return UnavailableError(
            f"the object store of {self.address} takes no notice of If-None-Match and If-Match, so that two writers "
            "would overwrite each other; use one that does, such as Amazon S3, or a folder",
            retry_after_s=RETRY_AFTER_S,
        )

    def remove(self, keys: Sequence[str]) -> None:
        """Removes objects; those that are gone already are none."""
        for key in keys:
            with self._bounded():
                try:
                    obstore.delete(self._requests, key)
                except FileNotFoundError:
                    continue

    def _store(self, timeout: timedelta) -> S3Store:
        return S3Store(
            self._name,
            prefix=self._prefix,
            client_options={"timeout": timeout, "connect_timeout": CONNECT_TIMEOUT, "allow_http": is_http_allowed()},
            retry_config={"max_retries": NUM_RETRIES, "retry_timeout": RETRY_WITHIN},
        )

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Says what the store says in words of ours, and notes how long it took."""
        begun_s = time.monotonic()
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._away("refuses the credentials; see to AWS_ACCESS_KEY_ID, and what it may do") from error
        except FileNotFoundError as error:
            raise self._away("has no such bucket; make it, or correct MODEL_REGISTRY_PATH") from error
        except NotImplementedError as error:
            raise self._careless() from error
        except (BaseError, TimeoutError, ConnectionError) as error:
            _log.debug("%s failed", self.address, exc_info=error)
            raise self._away("does not answer; see to the object store, AWS_ENDPOINT_URL and the network") from error
        self.took_s = time.monotonic() - begun_s

    def _away(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"the model registry in {self.address} {why}. What is cached here is served, and nothing is published, "
            "deployed or purged until it is back; try again then",
            retry_after_s=RETRY_AFTER_S,
        )


def is_http_allowed() -> bool:
    """Whether AWS_ALLOW_HTTP says that an endpoint may be plain HTTP; obstore forgets it beside options of ours."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")


def plain(etag: str) -> str:
    """An ETag without its quotes."""
    return etag.strip('"')


def _etag_of(result: "PutResult") -> str:
    etag = result["e_tag"]
    if etag is None:
        raise UnavailableError("the object store names no ETag for what it was given; it cannot hold a registry")
    return etag


def _missing(key: str) -> BundleDamagedError:
    return BundleDamagedError(
        f"{key} is not in the bucket as it was published; restore it from the bucket's own versions, or train it again"
    )
