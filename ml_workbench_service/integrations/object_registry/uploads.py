"""Uploads: a draft's files to a place of their own in the bucket, read back and held against the manifest.

    <prefix>/bundles/<model_id>/<semver>/<upload>/<file>

Nobody sees an upload until its version's object names it; one that no object names is swept away once it is old.
"""

import logging
import re
import tempfile
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path

from common_lib.exceptions import BundleDamagedError, UnavailableError
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.object_registry.bucket import Bucket
from ml_workbench_service.integrations.object_registry.bundle_cache import BUNDLES
from ml_workbench_service.integrations.object_registry.mirror import Mirror
from ml_workbench_service.integrations.object_registry.version_head import VersionHead
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, verify
from ml_workbench_service.learning.bundle.signatures import Signatures

MOST_TIME_S = 1_800.0
"""From its first byte to its version's object."""
SWEPT_AFTER = timedelta(hours=2)
"""At least: no publisher is still at it."""

_log = logging.getLogger(__name__)


class Upload:
    """One draft on its way."""

    def __init__(self, bucket: Bucket, card: ModelCard) -> None:
        self.id = uuid.uuid4().hex
        self._bucket = bucket
        self._card = card
        self._prefix = f"{BUNDLES}{card.id}/{card.version}/{self.id}/"
        self._begun_s = time.monotonic()

    def send(self, draft: Path, signatures: Signatures | None) -> VersionHead:
        """Uploads the draft, reads it back and verifies sizes, digests and signature; what is to name it.

        Raises:
            BundleDamagedError: the store does not give back what it was given.
            UnavailableError: the store is away, or so slow that the upload might be swept before it is named.
        """
        head = VersionHead.of(draft, self.id)
        for name in head.sizes():
            self._bucket.upload(self._prefix + name, draft / name)
        with tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
            back = Path(scratch) / self._card.id / self._card.version
            back.mkdir(parents=True)
            for name, size in head.sizes().items():
                self._bucket.download(self._prefix + name, back / name, size=size)
            (back / SIGNATURE_FILE).write_bytes(head.files.get(SIGNATURE_FILE, b""))
            if verify(back) != self._card.digest:
                raise BundleDamagedError(f"{self._card.id} {self._card.version} did not arrive whole; publish it again")
            if signatures is not None:
                signatures.check(back, self._card.id, self._card.version, self._card.digest)
        if time.monotonic() - self._begun_s > MOST_TIME_S:
            raise UnavailableError(
                f"the upload of {self._card.id} {self._card.version} took too long; see to the network, then publish "
                "it again",
                retry_after_s=60,
            )
        return head

    def discard(self) -> None:
        """Removes what was sent; what cannot be removed now is swept away later."""
        remove_under(self._bucket, self._prefix)


def remove_under(bucket: Bucket, prefix: str) -> None:
    """Removes every object below a prefix, as far as the store lets us."""
    try:
        bucket.remove([each.key for each in bucket.listed(prefix)])
    except UnavailableError as error:
        _log.warning("what lies in %s stays for now: %s", prefix, error.message)


def sweep(mirror: Mirror, *, untouched_since: datetime, now: datetime) -> list[str]:
    """Removes uploads that no version's object names; their prefixes.

    Raises:
        UnavailableError: the store is away.
    """
    newest: dict[str, datetime] = {}
    for each in mirror.bucket.listed(BUNDLES):
        prefix = each.key.rpartition("/")[0] + "/"
        newest[prefix] = max(each.changed_at, newest.get(prefix, each.changed_at))
    removed = []
    for prefix, changed_at in newest.items():
        parts = prefix.removeprefix(BUNDLES).split("/")
        is_ours = len(parts) == 4 and re.fullmatch(NAME_PATTERN, parts[0]) and re.fullmatch(VERSION_PATTERN, parts[1])
        if not is_ours or changed_at >= min(untouched_since, now - SWEPT_AFTER):
            continue
        if _is_named(mirror, *parts[:3]):
            continue
        remove_under(mirror.bucket, prefix)
        _log.info("an upload of %s %s is removed: nobody finishes it", *parts[:2])
        removed.append(prefix)
    return removed


def _is_named(mirror: Mirror, model_id: str, version: str, upload: str) -> bool:
    held = mirror.read_version(model_id, version)
    try:
        return held.etag is not None and VersionHead.parse(held.content).upload == upload
    except ValueError:
        return b"purged" not in held.content  # what makes no sense may yet be mended by hand
