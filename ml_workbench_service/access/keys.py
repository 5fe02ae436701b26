"""Keys of clients: a file of their digests, made and ended by `ml-workbench keys`; the key itself is shown once.

    <STATE_DIR>/keys.json     {"format": 1, "keys": [ClientKey …]}, written whole, mode 0600; or where KEYS_FILE says
    mlw_<id>_<secret>         a key: 8 digits of id, by which its line is found, and 192 random bits

Only the SHA-256 of a key is kept. A slow hash such as scrypt protects words that people choose, of which a machine can
try all that are likely; of 192 random bits it can try none, and a slow hash would cost every request milliseconds. For
the same reason no salt is needed. A client has at most two live keys, so that one can follow the other without a gap.
"""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from common_lib.exceptions import ConflictError, DataValidationError, NotFoundError
from common_lib.storage import make_folder
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.contracts.contract import NAME_PATTERN, Contract, Finite, UtcDatetime, utc_now
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.file_lock import locked

KEYS_FILE = "keys.json"
BEGINS = "mlw_"
NUM_ID_DIGITS = 8
NUM_SECRET_BYTES = 24
MOST_LIVE = 2
LOCK_TIMEOUT_S = 10.0


class ClientKey(Contract):
    """What is kept of one key."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    client: Annotated[str, Field(pattern=NAME_PATTERN)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: UtcDatetime
    expires_at: UtcDatetime | None = None
    revoked_at: UtcDatetime | None = None
    rate_per_s: Annotated[Finite, Field(gt=0)] | None = None
    requests_per_day: Annotated[int, Field(ge=1)] | None = None

    def is_live(self, at: datetime) -> bool:
        """Whether it opens anything at that moment."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class _Keys(Contract):
    """The file."""

    format: Literal[1] = 1
    keys: tuple[ClientKey, ...] = ()


def digest_of(key: bytes) -> bytes:
    """What is compared in place of a key."""
    return hashlib.sha256(key).digest()


def identifier_of(key: bytes) -> str | None:
    """The id that a key of ours names; None where it has another form, as API_KEY may have."""
    text = key.decode("latin-1")
    end = len(BEGINS) + NUM_ID_DIGITS
    return text[len(BEGINS) : end] if text.startswith(BEGINS) and text[end : end + 1] == "_" else None


class KeyFile:
    """Reads and changes the file of keys; changes take turns over processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[ClientKey, ...]:
        """All keys, ended ones too; none where there is no file.

        Raises:
            DataValidationError: the file is damaged.
        """
        try:
            return _Keys.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except ValidationError as error:
            raise DataValidationError(
                f"the key file {self.path.name} cannot be read; bring back a copy of it, or remove it and make new "
                "keys: ml-workbench keys create"
            ) from error

    def create(
        self, client: str, scopes: Sequence[Scope], *, rate_per_s: float | None = None,
        requests_per_day: int | None = None, lives_for: timedelta | None = None,
    ) -> tuple[str, ClientKey]:  # fmt: skip
        """A new key of a client, and what is kept of it.

        Raises:
            ConflictError: the client has two live keys.
            DataValidationError: the client's name, or a limit, cannot be used.
        """
        with self._changing() as keys:
            self._check_room(keys, client)
            now = utc_now()
            text, record = _new(
                client=client, scopes=tuple(dict.fromkeys(scopes)), created_at=now, rate_per_s=rate_per_s,
                requests_per_day=requests_per_day, expires_at=None if lives_for is None else now + lives_for,
            )  # fmt: skip
            self._write([*keys, record])
        return text, record

    def rotate(self, client: str, *, overlap: timedelta) -> tuple[str, ClientKey]:
        """A new key with the scopes and limits of the client's newest live one, which ends after the overlap.

        Raises:
            NotFoundError: the client has no live key.
            ConflictError: it has two already.
        """
        with self._changing() as keys:
            live = self._live(keys, client)
            if not live:
                raise NotFoundError(f"{client} has no live key; make one: ml-workbench keys create {client}")
            self._check_room(keys, client)
            old, now = live[-1], utc_now()
            text, record = _new(
                client=client, scopes=old.scopes, created_at=now, rate_per_s=old.rate_per_s,
                requests_per_day=old.requests_per_day,
            )  # fmt: skip
            ends_at = min(filter(None, (old.expires_at, now + overlap)))
            ending = old.model_copy(update={"expires_at": ends_at})
            self._write([*(ending if each.id == old.id else each for each in keys), record])
        return text, record

    def revoke(self, identifier: str) -> ClientKey:
        """Ends one key at once; ending it again is nothing.

        Raises:
            NotFoundError: no key has this id.
        """
        with self._changing() as keys:
            found = next((each for each in keys if each.id == identifier), None)
            if found is None:
                raise NotFoundError(f"no key has the id {identifier}; ml-workbench keys list shows them")
            if found.revoked_at is None:
                found = found.model_copy(update={"revoked_at": utc_now()})
                self._write([found if each.id == identifier else each for each in keys])
        return found

    @contextmanager
    def _changing(self) -> Iterator[tuple[ClientKey, ...]]:
        make_folder(self.path.parent)
        busy = ConflictError("another command changes the keys at the moment; try again")
        lock = self.path.with_name(f".{self.path.name}.lock")
        with locked(lock, timeout_s=LOCK_TIMEOUT_S, otherwise=busy, mode=0o600):
            yield self.read()

    def _check_room(self, keys: Sequence[ClientKey], client: str) -> None:
        live = self._live(keys, client)
        if len(live) >= MOST_LIVE:
            raise ConflictError(
                f"{client} has two live keys, {' and '.join(each.id for each in live)}; revoke the one that is not "
                "used any more: ml-workbench keys revoke ID"
            )

    @staticmethod
    def _live(keys: Sequence[ClientKey], client: str) -> list[ClientKey]:
        now = utc_now()
        return [each for each in keys if each.client == client and each.is_live(now)]

    def _write(self, keys: Sequence[ClientKey]) -> None:
        write_whole(self.path, _Keys(keys=tuple(keys)).model_dump_json(indent=1).encode(), durable=True, mode=0o600)


def _new(**fields: object) -> tuple[str, ClientKey]:
    identifier = secrets.token_hex(NUM_ID_DIGITS // 2)
    text = f"{BEGINS}{identifier}_{secrets.token_urlsafe(NUM_SECRET_BYTES)}"
    try:
        record = ClientKey.model_validate({"id": identifier, "digest": digest_of(text.encode()).hex(), **fields})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise DataValidationError.at(".".join(map(str, first["loc"])), first["msg"]) from error
    return text, record
