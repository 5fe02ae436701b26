"""Signatures of published versions: who made them, and the service's own record of what they were judged.

    <registry>/<model_id>/<semver>/manifest.sig   {"signatures": {key id: base64}}, beside the manifest; a key each
    <STATE_DIR>/published.jsonl                   append-only: id, version, digest, evaluation, certificate

What is signed names the model and the version, and the manifest's digest, which covers every file: a bundle in another
one's folder does not verify. Only the control plane signs; whoever else reads the registry holds public keys alone.
The record is written before the signature, so that each signed version has one; gates of deployments read it, and not
the card, whose words are as good as whoever wrote into the registry.
"""

import base64
import errno
import os
from pathlib import Path

import orjson
from pydantic import Field

from common_lib.exceptions import BundleTamperedError, BundleUnsignedError
from common_lib.storage import make_folder
from ml_workbench_service.access.signing_keys import SigningKey, TrustedKeys
from ml_workbench_service.contracts.contract import Contract, UtcDatetime, utc_now
from ml_workbench_service.contracts.evaluation import Certificate, Evaluation
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.jobs.durable_files import append_line, is_left_of, write_whole
from ml_workbench_service.jobs.guarded_reading import guarded_line
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, no_follow

RECORD_FILE = "published.jsonl"
PURPOSE = "ml-workbench: published version 1"
"""The first line of what is signed: a signature of another purpose is none of this one."""
MOST_BYTES = 64 * 1024
"""Of a signature file."""


class PublishedVersion(Contract):
    """A line of the record: what the service signed, and what it was judged then."""

    model_id: str
    version: str
    digest: str
    at: UtcDatetime
    by: str = Field(description="`publishing`, `first start`, or `command`.")
    evaluation: Evaluation
    certificate: Certificate | None


class Signatures:
    """Signs versions where it holds the key, verifies them everywhere. For any threads.

    Args:
        state_dir: of the service.
        holds_key: only in the control plane, and in programs that are one themselves.
        trusted: of a predict replica, in place of the file in STATE_DIR.
    """

    def __init__(self, state_dir: Path, *, holds_key: bool = False, trusted: TrustedKeys | None = None) -> None:
        self.trusted = trusted or TrustedKeys(state_dir)
        self._key = SigningKey(state_dir) if holds_key else None
        self._record = _Record(state_dir / RECORD_FILE)
        self._state_dir = state_dir

    @property
    def holds_key(self) -> bool:
        """Whether this process may sign."""
        return self._key is not None

    def sign(self, folder: Path, card: ModelCard, *, by: str = "publishing", begins_to_trust: bool = True) -> None:
        """Records the version, whose card has its digest, then puts the signature into its folder.

        Args:
            begins_to_trust: not while a first start signs, which does so at its end.

        Raises:
            UnavailableError: the disk is full.
        """
        assert self._key is not None, "only the control plane signs"
        line = PublishedVersion(
            model_id=card.id, version=card.version, digest=card.digest, at=utc_now(), by=by,
            evaluation=card.evaluation, certificate=card.certificate,
        )  # fmt: skip
        make_folder(self._state_dir)
        self._record.add(line)
        if begins_to_trust:
            self.begin_to_trust()
        made = base64.b64encode(self._key.sign(_message(card.id, card.version, card.digest))).decode()
        signatures = {**(_read(folder / SIGNATURE_FILE) or {}), self._key.id: made}
        payload = orjson.dumps({"signatures": signatures}, option=orjson.OPT_APPEND_NEWLINE)
        for left in os.listdir(folder):
            if is_left_of(left, SIGNATURE_FILE):
                (folder / left).unlink(missing_ok=True)
        write_whole(folder / SIGNATURE_FILE, payload, durable=True)

    def begin_to_trust(self) -> None:
        """Has every reader verify with the own key, which is made where there is none; nothing where they do."""
        assert self._key is not None, "only the control plane signs"
        if self.trusted.verifies(self._key.id, b"", b"") is None:
            self.trusted.trust(self._key.id, self._key.public)

    def check(self, folder: Path, model_id: str, version: str, digest: str) -> None:
        """Passes over a version that a trusted key has signed as this one.

        Raises:
            BundleTamperedError: a trusted key's signature does not verify.
            BundleUnsignedError: there is none by a trusted key.
        """
        name, found = f"{model_id}/{version}", _read(folder / SIGNATURE_FILE)
        message = _message(model_id, version, digest)
        if found is None:
            raise BundleTamperedError(
                f"the signature of {name} cannot be read, so that it is not served; restore {SIGNATURE_FILE} from a "
                "backup, or train it again"
            )
        verdicts = [self.trusted.verifies(key, _decoded(text), message) for key, text in found.items()]
        if True in verdicts:
            return
        if False in verdicts:
            raise BundleTamperedError(
                f"the signature of {name} does not verify: it is not what this service published, and is not served; "
                "restore it from a backup, or purge it and train it again"
            )
        whose = "by keys that this service does not know" if found else "by nobody"
        raise BundleUnsignedError(
            f"{name} is signed {whose}, so that it is not served; if you know where it comes from: "
            f"ml-workbench sign {model_id} {version}"
        )

    def recorded(self, card: ModelCard) -> PublishedVersion | None:
        """What the service wrote down of this very version, by its digest; None where it has nothing."""
        return self._record.of(card.id, card.version, card.digest)


class _Record:
    """The file of what was published. It is read anew for each question: those who deploy are few, and it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, line: PublishedVersion) -> None:
        append_line(self._path, line.model_dump_json())

    def of(self, model_id: str, version: str, digest: str) -> PublishedVersion | None:
        """The newest line of this version; a line that cannot be read is passed over."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return None
        for line in reversed(lines):
            if digest.encode() not in line:
                continue
            found = guarded_line(self._path, line, PublishedVersion.model_validate_json)
            if found is not None and (found.model_id, found.version, found.digest) == (model_id, version, digest):
                return found
        return None


def _message(model_id: str, version: str, digest: str) -> bytes:
    return "\n".join((PURPOSE, model_id, version, digest)).encode()


def _read(file: Path) -> dict[str, str] | None:
    """Signatures by the ids of their keys, none where there is no file; None where it is damaged, or a link.

    Raises:
        OSError: the system refused for the moment, which says nothing of the file.
    """
    try:
        with open(file, "rb", opener=no_follow) as stream:
            found = orjson.loads(stream.read(MOST_BYTES))["signatures"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        return None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        return None
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
