"""Version head: the one object whose creation publishes a version, and the small files that lists and gates read.

    <prefix>/state/<model_id>/versions/<semver>.json    {"upload": "<32 hex>", "files": {name: text}}
    <prefix>/bundles/<model_id>/<semver>/<upload>/…     every file of the bundle, uploaded before

It is created with `If-None-Match: *`, which stands for the rename of a folder, and replaced for another signature
alone. Of a purged version `{"purged": true}` stays in its place for ever: nobody creates that key again.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ml_workbench_service.learning.bundle.listing import CARD_FILE
from ml_workbench_service.learning.bundle.manifest import (
    MANIFEST_FILE,
    RECIPE_FILE,
    SIGNATURE_FILE,
    listed_in,
    read_plain,
)

HEAD_FILES = (CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE, RECIPE_FILE)
PURGED = b'{"purged":true}\n'
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class VersionHead:
    """What a version's object says; `files` by name, of those in HEAD_FILES."""

    upload: str
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, draft: Path, upload: str) -> "VersionHead":
        """Of a signed draft whose files were uploaded."""
        there = {each.name for each in draft.iterdir()}
        return cls(upload, {name: read_plain(draft / name) for name in HEAD_FILES if name in there})

    @classmethod
    def parse(cls, content: bytes) -> "VersionHead":
        """Raises ValueError where it makes no sense."""
        found: Any = orjson.loads(content)
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
            raise ValueError("no version")
        upload, files = found.get("upload"), found["files"]
        if not isinstance(upload, str) or not _UPLOAD.fullmatch(upload):
            raise ValueError("no upload")
        if not set(files) <= set(HEAD_FILES) or not all(isinstance(each, str) for each in files.values()):
            raise ValueError("other files than a head has")
        return cls(upload, {name: text.encode() for name, text in files.items()})

    def payload(self) -> bytes:
        """As it lies in the bucket."""
        files = {name: content.decode() for name, content in self.files.items()}
        return orjson.dumps({"upload": self.upload, "files": files}, option=orjson.OPT_APPEND_NEWLINE)

    def digest(self) -> str:
        """Of the manifest, as `learning.bundle.manifest` counts it. Raises ValueError where there is none."""
        if MANIFEST_FILE not in self.files:
            raise ValueError("no manifest")
        return "sha256:" + hashlib.sha256(self.files[MANIFEST_FILE]).hexdigest()

    def sizes(self) -> dict[str, int]:
        """Bytes of every file of the bundle that was uploaded, by name. Raises ValueError where it makes no sense."""
        manifest = self.files.get(MANIFEST_FILE, b"")
        listed = {name: int(each["size"]) for name, each in listed_in(manifest).items()}
        if not all(map(_NAME.fullmatch, listed)):
            raise ValueError("names that are none of files")
        return {**listed, MANIFEST_FILE: len(manifest)}
