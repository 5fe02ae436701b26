"""Published versions: whatever happens to a file of one, it is what was published, or it is set aside with a sentence.

Manifest, signature, card and every listed file are damaged, and so are the service's own keys and record.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from chaos.damage.damages import DAMAGES
from chaos.kill_sweep.steps import MODEL, card
from chaos.parsers.promise import promise
from common_lib.exceptions import BundleDamagedError, StateDamagedError
from ml_workbench_service.access.signing_keys import PUBLIC_FILE
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, listed_in
from ml_workbench_service.learning.bundle.signatures import RECORD_FILE, Signatures

VERSION = "1.0.0"
HOME = f"registry/{MODEL}/{VERSION}"
BUNDLE = ("card.json", "model.onnx", "recipe.json", MANIFEST_FILE, SIGNATURE_FILE)
FILES = (*(f"{HOME}/{name}" for name in BUNDLE), f"state/{PUBLIC_FILE}", f"state/{RECORD_FILE}")
MADE = (
    "", "{", "[" * 5000, '{"a":' * 5000, "null", "[]", '{"files": {}}', '{"signatures": {}}',
    '{"files": {"../card.json": {"size": 1, "sha256": ""}}}', '{"signatures": {"\\ud800": "é"}}', '{"keys": null}',
    "\0",
)  # fmt: skip
"""Contents that somebody may have written."""
OF_A_CARD = ("card.json", MANIFEST_FILE)


def _registry(folder: Path, *, holds_key: bool = False) -> FolderModelRegistry:
    signatures = Signatures(folder / "state", holds_key=holds_key)
    return FolderModelRegistry(folder / "registry", live_version=lambda _: None, signatures=signatures)


@lru_cache(maxsize=1)
def _published() -> tuple[ModelCard, Mapping[str, bytes]]:
    """A version that the service has signed: its card, and every file by its path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry = _registry(folder, holds_key=True)
        draft = registry.draft("job")
        (draft / "model.onnx").write_bytes(b"\x08\x01" * 300)
        (draft / "recipe.json").write_text('{"costs": {}}', encoding="utf-8")
        registry.publish(draft, card(VERSION))
        return registry.card(MODEL, VERSION), {each: (folder / each).read_bytes() for each in FILES}


CHANGES = st.tuples(st.sampled_from([*DAMAGES, "made"]), st.integers(0, 2**32 - 1))


@promise("bundles", st.lists(st.tuples(st.sampled_from(FILES), CHANGES), min_size=1, max_size=2))
def changed_files(case: list[tuple[str, tuple[str, int]]]) -> None:
    """The card as it was published, with every listed file as it was; or the error of a version that is set aside."""
    wanted, files = _published()
    changed = dict(files)
    for file, (kind, seed) in case:
        content = changed[file]
        chance = Random(seed)
        changed[file] = (
            chance.choice(MADE).encode() if kind == "made" or not content else DAMAGES[kind](content, chance)
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in changed.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        _look(
            _registry(folder), wanted, {each for each in BUNDLE if changed[f"{HOME}/{each}"] == files[f"{HOME}/{each}"]}
        )


def _look(registry: FolderModelRegistry, wanted: ModelCard, whole: set[str]) -> None:
    asked: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
        "card": (lambda: registry.card(MODEL, VERSION), OF_A_CARD),
        "served": (lambda: registry.served_card(MODEL), OF_A_CARD),
        "verify": (lambda: registry.verify(MODEL, VERSION), BUNDLE[:4]),
        "recipe": (lambda: registry.recipe(MODEL, VERSION), ()),
        "recorded": (lambda: registry.recorded(wanted), ()),
    }
    for name, (ask, needed) in asked.items():
        try:
            found = ask()
        except (BundleDamagedError, StateDamagedError) as error:
            assert MODEL in error.message
            continue
        assert whole.issuperset(needed), f"{name} is answered over a file that was changed"
        assert not needed or found in (wanted, wanted.digest)
    registry.set_aside()
    registry.look_over()
    assert registry.model_ids() == [MODEL]


PLAIN = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "sha256", "size"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@promise(
    "manifests",
    st.binary(max_size=100)
    | st.sampled_from(MADE).map(str.encode)
    | PLAIN.map(lambda plain: json.dumps(plain).encode()),
)
def any_manifest(content: bytes) -> None:
    """Files with their sizes and digests, or ValueError."""
    try:
        found = listed_in(content)
    except ValueError:
        return
    assert all(isinstance(each["sha256"], str) and isinstance(each["size"], int) for each in found.values())
