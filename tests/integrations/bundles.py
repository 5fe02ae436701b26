"""Published versions for tests without training one each: a trained bundle, copied under another id or version."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.listing import CARD_FILE
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, write_manifest
from ml_workbench_service.learning.bundle.signatures import Signatures


def copy_version(source: Path, root: Path, model_id: str, version: str, **card: Any) -> Path:
    """Publishes a copy of the bundle `source` as `model_id` `version` in the registry `root`; returns its folder.

    Args:
        card: keys of `card.json` to replace.
    """
    home = root / model_id
    home.mkdir(parents=True, exist_ok=True)
    draft = home / f".{uuid.uuid4().hex}"
    shutil.copytree(source, draft)
    plain = json.loads((draft / "card.json").read_text(encoding="utf-8"))
    plain |= {"id": model_id, "version": version, **card}
    (draft / "card.json").write_text(json.dumps(plain), encoding="utf-8")
    publish_anew(draft, root)
    draft.rename(home / version)
    return home / version


def publish_anew(folder: Path, root: Path | None = None) -> None:
    """What publishing does with a bundle that a test has made or changed: manifest, record and signature.

    The STATE_DIR is the registry's neighbour `state`, as everywhere in the tests.
    """
    digest = write_manifest(folder)
    root = folder.parents[1] if root is None else root
    plain = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    card = ModelCard.model_validate({**plain, "digest": digest})
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    Signatures(root.parent / "state", holds_key=True).sign(folder, card)


def flip_a_byte(file: Path) -> None:
    """Changes one byte in the middle of a file; its size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
