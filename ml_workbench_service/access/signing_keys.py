"""Signing keys: the private one that the control plane alone reads, and the public ones that this service trusts.

    <STATE_DIR>/signing_key.pem       Ed25519 (RFC 8032), PKCS #8, mode 0600; made at the first start; in no backup
    <STATE_DIR>/signing_keys.json     public keys by their ids; whoever reads the registry verifies with them

A predict replica has no STATE_DIR: it is given the public keys (`GivenKeys`), by its setting or, where that names none,
by the control plane through Redis.

A private key that is gone (a restored backup has none) is made anew at the next start, and its public half joins the
others: what an earlier key signed stays signed. `cryptography` is loaded at the first signature, not before.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, UtcDatetime, utc_now
from ml_workbench_service.jobs.durable_files import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE_FILE = "signing_key.pem"
PUBLIC_FILE = "signing_keys.json"
DAMAGED = ".damaged"
"""The end of a file's name that was set aside because it could not be read."""
NUM_ID_DIGITS = 16

log = logging.getLogger(__name__)


def id_of(public: bytes) -> str:
    """The first digits of a public key's SHA-256."""
    return hashlib.sha256(public).hexdigest()[:NUM_ID_DIGITS]


class PublicKey(Contract):
    """One key that is trusted."""

    public: str = Field(description="Its 32 bytes in base64.")
    since: UtcDatetime

    @property
    def raw(self) -> bytes:
        """The bytes; none where the text is damaged."""
        try:
            return base64.b64decode(self.public, validate=True)
        except ValueError:
            return b""

    @property
    def id(self) -> str:
        """What it is called: a damaged one has another name."""
        return id_of(self.raw)


class _PublicKeys(Contract):
    """The file."""

    keys: dict[str, PublicKey]


class TrustedKeys:
    """The public keys of one service; read again where the file has changed. For any threads and processes."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / PUBLIC_FILE
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, bytes] = {}

    @property
    def is_there(self) -> bool:
        """Whether a first start has come to its end."""
        return self.path.exists()

    @property
    def is_whole(self) -> bool:
        """Whether all of them can be read."""
        return self._read()[1] == ""

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """Another one where the keys may have changed."""
        try:
            found = self.path.stat()
        except OSError:  # gone, or out of reach for the moment: what is known stays
            return self._stamp
        return found.st_ino, found.st_size, found.st_mtime_ns

    def verifies(self, key: str, signature: bytes, message: bytes) -> bool | None:
        """Whether that key made this signature; None where it is not trusted."""
        public = self._known().get(key)
        if public is None:
            return None
        return _is_signed(public, signature, message)

    def payload(self) -> bytes:
        """The keys that are whole, as `GivenKeys.take` reads them."""
        return _PublicKeys(keys=self._read()[0]).model_dump_json().encode()

    def trust(self, key: str, public: bytes) -> None:
        """Adds a key, on disk when this returns; a damaged file is set aside, and what is whole of it goes on."""
        keys, fault = self._read()
        if fault:
            log.error(
                "%s is damaged (%s) and is set aside as %s: versions that only its lost keys have signed are refused "
                "until it is brought back from a backup", PUBLIC_FILE, fault, PUBLIC_FILE + DAMAGED,
            )  # fmt: skip
            _set_aside(self.path)
        keys[key] = PublicKey(public=base64.b64encode(public).decode(), since=utc_now())
        write_whole(self.path, _PublicKeys(keys=keys).model_dump_json(indent=1).encode(), durable=True, mode=0o600)

    def _read(self) -> tuple[dict[str, PublicKey], str]:
        """The keys that are whole, each by what its id says of it, and what is wrong with the others or the file.

        Raises:
            OSError: the system refused for the moment: no key is thrown away for that.
        """
        try:
            found = _PublicKeys.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return {}, ""
        except ValueError as error:
            return {}, type(error).__name__
        whole = {name: each for name, each in found.items() if each.id == name}
        return whole, "" if len(whole) == len(found) else "a key is not the one that its id names"

    def _known(self) -> dict[str, bytes]:
        """As the file is now; where it is damaged, those that were known go on."""
        stamp = self.stamp
        if stamp != self._stamp:
            found, fault = self._read()
            if fault:
                log.error("%s is damaged (%s); the keys known before go on", PUBLIC_FILE, fault)
            keys = {name: each.raw for name, each in found.items()}
            self._keys = self._keys | keys if fault else keys
            self._stamp = stamp
        return self._keys


class GivenKeys(TrustedKeys):
    """Public keys that a predict replica was given; it reads no file of a service. For any threads.

    Args:
        pinned: the 32 bytes of each, which alone are trusted; none: those that the control plane names.
    """

    def __init__(self, pinned: Iterable[bytes] = ()) -> None:
        super().__init__(Path(os.devnull))
        self._keys = {id_of(each): each for each in pinned}
        self.is_pinned = bool(self._keys)
        """Whether somebody at this machine has named them."""
        self._num_taken = 0

    @property
    def ids(self) -> list[str]:
        """Of those that are trusted."""
        return sorted(self._keys)

    @property
    def is_there(self) -> bool:
        """Whether there are any."""
        return bool(self._keys)

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Another one where the keys have changed."""
        return self._num_taken, 0, 0

    def take(self, payload: bytes) -> None:
        """What the control plane names, in place of what it named before; nothing where keys are pinned, or where it
        cannot be read."""
        if self.is_pinned:
            return
        try:
            found = _PublicKeys.model_validate_json(payload).keys
        except ValueError as error:
            log.error("the control plane's public keys cannot be read (%s); those before go on", type(error).__name__)
            return
        keys = {name: each.raw for name, each in found.items() if each.id == name}
        if keys != self._keys:
            log.info("bundles are verified with the public keys %s, which Redis names", ", ".join(sorted(keys)))
            self._keys, self._num_taken = keys, self._num_taken + 1

    def _known(self) -> dict[str, bytes]:
        return self._keys


def _is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: bytes of another length
        return False
    return True


class SigningKey:
    """The private key of one service; only the control plane may hold it. Nothing is read before it is used."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / PRIVATE_FILE

    @cached_property
    def id(self) -> str:
        """Of its public half."""
        return id_of(self.public)

    @cached_property
    def public(self) -> bytes:
        """Its public half, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)

    @cached_property
    def _key(self) -> "Ed25519PrivateKey":
        """Read; made where there is none, or where it is damaged.

        Raises:
            UnavailableError: the disk is full.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )

        try:
            found = load_pem_private_key(self.path.read_bytes(), password=None)
            if isinstance(found, Ed25519PrivateKey):
                return found
            fault = "another kind of key"
        except FileNotFoundError:
            fault = ""
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            fault = type(error).__name__
        if fault:
            log.error("%s cannot be used (%s); it is set aside, and a new key is made", PRIVATE_FILE, fault)
            _set_aside(self.path)
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_whole(self.path, pem, durable=True, mode=0o600)
        return made


def _set_aside(path: Path) -> None:
    path.replace(path.with_name(path.name + DAMAGED))
