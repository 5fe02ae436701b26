"""The model registry's promise: a version appears whole or not at all, and never changes after that."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from common_lib.exceptions import (
    BundleDamagedError,
    ConflictError,
    ModelNotFoundError,
    VersionExistsError,
    VersionNotFoundError,
)
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.integrations import model_registry
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle import checked_bundles
from ml_workbench_service.learning.bundle.listing import next_version
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE, digest_of, write_manifest
from tests.integrations.bundles import flip_a_byte
from tests.integrations.model_cards import model_card
from tests.integrations.registry_places import REGISTRIES, OpenPlace, opened_again
from tests.quiet_folders import make_quiet

NUMBERS = st.integers(0, 999_999)
VERSIONS = st.builds(lambda *parts: ".".join(map(str, parts)), NUMBERS, NUMBERS, NUMBERS)


@pytest.fixture
def live() -> dict[str, str]:
    """Which version of each model is deployed."""
    return {}


@pytest.fixture
def registry(
    request: pytest.FixtureRequest, tmp_path: Path, live: dict[str, str], registry_places: OpenPlace
) -> FolderModelRegistry:
    """An empty registry, in a folder unless a test runs over all kinds (`over_all`)."""
    return registry_places(getattr(request, "param", "folder"), tmp_path).registry(live_version=live.get)


over_all = pytest.mark.parametrize("registry", REGISTRIES, indirect=True)
"""Laws that every registry keeps, wherever it lies."""


def publish(
    registry: FolderModelRegistry, model_id: str = "model", version: str = "1.0.0", *, weights: str = "w"
) -> None:
    """Publishes a bundle of two files and the card."""
    draft = registry.draft()
    (draft / "weights.safetensors").write_text(weights)
    (draft / "model.onnx").write_bytes(bytes(range(200)))
    registry.publish(draft, model_card(model_id, version))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@over_all
def test_a_published_version_is_there_with_digest_and_size(registry: FolderModelRegistry) -> None:
    publish(registry)
    card = registry.card("model", "1.0.0")
    folder = registry.folder("model", "1.0.0")
    assert (card.status, card.digest) == ("experimental", digest_of(folder))
    assert card.digest == registry.verify("model", "1.0.0")
    assert card.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert registry.model_ids() == ["model"]
    assert registry.versions("model") == ["1.0.0"]
    stored = json.loads((folder / "card.json").read_text())
    assert (stored["digest"], stored["status"]) == ("", "experimental")  # neither is the bundle's to say
    assert not list((registry.root / ".staging").iterdir())


@over_all
def test_a_published_version_never_changes(registry: FolderModelRegistry) -> None:
    publish(registry, weights="first")
    before = content(registry.folder("model", "1.0.0"))
    with pytest.raises(VersionExistsError, match="leave `version` out"):
        publish(registry, weights="second")
    assert content(registry.folder("model", "1.0.0")) == before
    registry.verify("model", "1.0.0")


@over_all
def test_of_many_who_publish_one_version_at_once_one_does(registry: FolderModelRegistry) -> None:
    def attempt(number: int) -> bool:
        try:
            publish(registry, weights=str(number))
        except VersionExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(16))) == 1
    registry.verify("model", "1.0.0")


def test_publishing_many_versions_at_once_disturbs_none(registry: FolderModelRegistry) -> None:
    def several(first: int) -> None:
        for number in range(first, first + 25):
            publish(registry, version=f"1.{number}.0")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(several, range(0, 200, 25)))
    assert len(registry.versions("model")) == 200
    assert not list((registry.root / ".staging").iterdir())


@pytest.mark.parametrize("step", ["write_manifest", "os.rename"])
def test_a_failure_before_the_rename_leaves_nothing_visible(
    registry: FolderModelRegistry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(f"{model_registry.__name__}.{step}", full)
    with pytest.raises(OSError, match="no space"):
        publish(registry)
    assert registry.model_ids() == []
    with pytest.raises(ModelNotFoundError):
        registry.card("model", "1.0.0")


KILLED = """
import os, signal, sys
from pathlib import Path
from ml_workbench_service.integrations import model_registry
from tests.integrations.model_cards import model_card
from tests.quiet_folders import make_quiet
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr(model_registry.os if sys.argv[2] == "rename" else model_registry, sys.argv[2], killed)
registry = model_registry.FolderModelRegistry(Path(sys.argv[1]), live_version=lambda _: None)
draft = registry.draft()
(draft / "weights.safetensors").write_text("w")
registry.publish(draft, model_card())
"""


@pytest.mark.parametrize(("step", "is_there"), [("rename", False), ("sync", True)])
def test_a_kill_leaves_a_whole_version_or_none(registry: FolderModelRegistry, step: str, is_there: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(registry.root), step], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert registry.versions("model") == (["1.0.0"] if is_there else [])
    if is_there:
        registry.verify("model", "1.0.0")
        return
    publish(registry)  # nothing stands in the way of the next try
    registry.verify("model", "1.0.0")


def test_a_manifest_vouches_for_every_file(registry: FolderModelRegistry) -> None:
    publish(registry)
    files = sorted(set(content(registry.folder("model", "1.0.0"))) - {MANIFEST_FILE})
    assert len(files) == 3
    for number, name in enumerate(files):
        version = f"2.{number}.0"
        publish(registry, version=version)
        flip_a_byte(registry.folder("model", version) / name)
        with pytest.raises(BundleDamagedError, match=rf"{name}; restore it from a backup"):
            registry.verify("model", version)


def test_the_digest_vouches_for_the_manifest(registry: FolderModelRegistry) -> None:
    publish(registry)
    digest = registry.verify("model", "1.0.0")
    manifest = registry.folder("model", "1.0.0") / MANIFEST_FILE
    manifest.write_text(manifest.read_text() + "\n")
    assert registry.verify("model", "1.0.0") != digest


@pytest.mark.parametrize("damage", ["missing", "added", "renamed", "truncated", "no manifest", "manifest is a list"])
def test_a_damaged_bundle_does_not_verify(registry: FolderModelRegistry, damage: str) -> None:
    publish(registry)
    folder = registry.folder("model", "1.0.0")
    if damage == "missing":
        (folder / "model.onnx").unlink()
    elif damage == "added":
        (folder / "model.pkl").write_text("surprise")
    elif damage == "renamed":
        (folder / "model.onnx").rename(folder / "model2.onnx")
    elif damage == "truncated":
        os.truncate(folder / "model.onnx", 10)
    elif damage == "no manifest":
        (folder / MANIFEST_FILE).unlink()
    else:
        (folder / MANIFEST_FILE).write_text("[]")
    with pytest.raises(BundleDamagedError, match=r"model/1\.0\.0"):
        registry.verify("model", "1.0.0")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions=st.lists(VERSIONS, min_size=1, max_size=6, unique=True))
def test_versions_are_ordered_as_numbers_and_the_next_one_is_above_them_all(
    tmp_path_factory: pytest.TempPathFactory, versions: list[str]
) -> None:
    registry = FolderModelRegistry(tmp_path_factory.mktemp("registry"), live_version=lambda _: None)
    for version in versions:
        publish(registry, version=version)
    found = registry.versions("model")
    assert found == sorted(versions, key=Version, reverse=True)
    assert [card.version for card in registry.cards("model")] == found
    assert registry.served_card("model").version == found[0]
    if max(map(Version, versions)) >= Version("999999.999999.0"):
        with pytest.raises(ConflictError, match="no version follows"):
            next_version(versions)
        return
    following = next_version(versions)
    assert re.fullmatch(VERSION_PATTERN, following)
    assert Version(following) > Version(found[0])


@pytest.mark.parametrize(
    ("taken", "following"),
    [
        ([], "1.0.0"),
        (["1.0.0"], "1.1.0"),
        (["1.9.0", "1.10.3"], "1.11.0"),
        (["0.0.1"], "0.1.0"),
        (["1.999999.0"], "2.0.0"),
    ],
)
def test_the_next_version_is_the_next_minor_one(taken: list[str], following: str) -> None:
    assert next_version(taken) == following


def test_after_the_last_version_none_follows() -> None:
    with pytest.raises(ConflictError, match="send a `version`"):
        next_version(["999999.999999.0"])


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../model", "model/..", "/etc", "a/b", ".staging", "Model", "a\x00b", "x" * 65, "model\n", "ä"],
)
@over_all
def test_a_name_that_is_none_reaches_no_path(registry: FolderModelRegistry, name: str) -> None:
    publish(registry)
    publish(registry, "other")
    (registry.root / "Model").mkdir()
    assert not re.fullmatch(NAME_PATTERN, name)
    assert registry.versions(name) == []
    for ask in (registry.cards, registry.served_card):
        with pytest.raises(ModelNotFoundError):
            ask(name)
    with pytest.raises(ModelNotFoundError):
        registry.folder(name, "1.0.0")
    assert registry.model_ids() == ["model", "other"]


@pytest.mark.parametrize("version", ["..", "../1.0.0", "1.0", "01.0.0", "1.0.0.0", "1.0.0\n", "latest", "١.0.0"])  # noqa: RUF001
@over_all
def test_a_version_that_is_none_reaches_no_path(registry: FolderModelRegistry, version: str) -> None:
    publish(registry)
    (registry.root / "model" / "latest").mkdir()
    (registry.root / "model" / "9.9.9").mkdir()  # a folder without a card is no version
    with pytest.raises(VersionNotFoundError, match="/api/v1/models/model/versions"):
        registry.card("model", version)
    assert registry.versions("model") == ["1.0.0"]


@over_all
def test_the_status_follows_deployment_and_archive(registry: FolderModelRegistry, live: dict[str, str]) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(registry, version=version)
    live["model"] = "1.0.0"
    registry.archive("model", "1.2.0")
    assert [(card.version, card.status) for card in registry.cards("model")] == [
        ("1.2.0", "archived"),
        ("1.1.0", "experimental"),
        ("1.0.0", "deployed"),
    ]
    assert registry.served_card("model").version == "1.0.0"
    with pytest.raises(ConflictError, match="deploy another one first"):
        registry.archive("model", "1.0.0")
    live.clear()
    assert registry.served_card("model").version == "1.1.0"
    registry.archive("model", "1.1.0")
    registry.archive("model", "1.0.0")
    assert registry.served_card("model").version == "1.2.0"  # nothing else is left to show


def test_archiving_survives_a_torn_line_and_a_restart(registry: FolderModelRegistry, live: dict[str, str]) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(registry, version=version)
    registry.archive("model", "1.0.0")
    file = registry.root / "model" / "archived.jsonl"
    with file.open("a") as stream:
        stream.write('{"version": "1.1')  # a kill in the middle of a write
    assert registry.card("model", "1.1.0").status == "experimental"
    registry.archive("model", "1.2.0")
    again = FolderModelRegistry(registry.root, live_version=live.get)
    for each in (registry, again):
        assert {card.version: card.status for card in each.cards("model")} == {
            "1.2.0": "archived",
            "1.1.0": "experimental",
            "1.0.0": "archived",
        }
    registry.archive("model", "1.2.0")
    assert file.read_text().count("1.2.0") == 1  # archiving again changes nothing


def test_an_unreadable_version_is_left_out_of_lists(registry: FolderModelRegistry) -> None:
    publish(registry)
    publish(registry, version="1.1.0")
    (registry.folder("model", "1.1.0") / "card.json").write_text("{")
    reader = FolderModelRegistry(registry.root, live_version=lambda _: None)
    assert [card.version for card in reader.cards("model")] == ["1.0.0"]
    with pytest.raises(BundleDamagedError, match="restore it from a backup"):
        reader.card("model", "1.1.0")
    (reader.folder("model", "1.0.0") / MANIFEST_FILE).unlink()
    with pytest.raises(BundleDamagedError):
        FolderModelRegistry(registry.root, live_version=lambda _: None).cards("model")


@over_all
def test_a_job_that_was_killed_while_it_wrote_gets_its_draft_again_empty(registry: FolderModelRegistry) -> None:
    killed, other = registry.draft("job-1"), registry.draft("job-2")
    (killed / "model.onnx").write_bytes(b"torn")
    again = registry.draft("job-1")
    assert not list(again.iterdir())
    registry.publish(again, model_card())
    assert list((registry.root / ".staging").iterdir()) == [other]


def seen_by(other: FolderModelRegistry) -> dict[str, tuple[list[str], str, str]]:
    """What a process lists that kept its listings: each model's versions, the served one and its status."""
    found = {}
    for model_id in other.model_ids():
        card = other.served_card(model_id)
        facts, status = other.served_facts(model_id) or pytest.fail("no facts")
        assert (facts.version, facts.type, facts.symbols, status) == (
            card.version, card.type, card.symbols, card.status
        )  # fmt: skip
        found[model_id] = (other.versions(model_id), card.version, card.status)
    make_quiet(other.root, *(other.root / each for each in other.listing.names()))
    return found


@over_all
def test_another_process_sees_whatever_becomes_of_a_version(
    registry: FolderModelRegistry, live: dict[str, str]
) -> None:
    registry.root.mkdir(exist_ok=True)
    other = opened_again(registry)
    assert seen_by(other) == {}
    publish(registry)
    assert seen_by(other) == {"model": (["1.0.0"], "1.0.0", "experimental")}
    publish(registry, version="1.1.0")
    assert seen_by(other) == {"model": (["1.1.0", "1.0.0"], "1.1.0", "experimental")}
    live["model"] = "1.0.0"
    assert seen_by(other)["model"][1:] == ("1.0.0", "deployed")
    registry.archive("model", "1.1.0")
    del live["model"]
    assert seen_by(other)["model"][1:] == ("1.0.0", "experimental")
    registry.archive("model", "1.0.0")
    assert seen_by(other)["model"][1:] == ("1.1.0", "archived")
    registry.purge("model", ["1.1.0"], ever_live=frozenset(), correlation_id="test")
    assert seen_by(other) == {"model": (["1.0.0"], "1.0.0", "archived")}
    registry.restore("model", "1.0.0")
    assert seen_by(other)["model"][1:] == ("1.0.0", "experimental")


def test_another_process_sees_that_somebody_has_removed_a_model(registry: FolderModelRegistry) -> None:
    publish(registry)
    other = opened_again(registry)
    assert list(seen_by(other)) == ["model"]
    shutil.rmtree(registry.root / "model")
    assert seen_by(other) == {}


def test_a_version_that_is_copied_in_place_is_seen_once_its_card_is_there(registry: FolderModelRegistry) -> None:
    publish(registry)
    other = FolderModelRegistry(registry.root, live_version={}.get)
    target = registry.root / "model" / "2.0.0"
    target.mkdir()
    make_quiet(registry.root, registry.root / "model")
    assert other.versions("model") == ["1.0.0"]
    for file in (registry.root / "model" / "1.0.0").iterdir():
        shutil.copy(file, target)
    make_quiet(registry.root / "model")
    assert other.versions("model") == ["2.0.0", "1.0.0"]


def test_a_bundle_that_is_restored_from_elsewhere_is_read_again(registry: FolderModelRegistry) -> None:
    publish(registry)
    assert registry.card("model", "1.0.0").name == "A model"
    make_quiet(registry.root / "model")
    assert registry.served_facts("model") is not None
    folder = registry.root / "model" / "1.0.0"
    folder.rename(registry.root / "model" / "aside")
    shutil.copytree(registry.root / "model" / "aside", folder)
    plain = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(plain | {"name": "Another", "symbols": ["GBP/USD"]}))
    write_manifest(folder)
    assert registry.card("model", "1.0.0").name == "Another"
    assert (registry.served_facts("model") or pytest.fail("no facts"))[0].symbols == ("GBP/USD",)


def test_no_more_cards_are_kept_than_are_asked_for_again(
    registry: FolderModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_bundles, "MOST_CARDS", 3)
    for number in range(5):
        publish(registry, f"model_{number}")
    assert [registry.served_card(each).id for each in registry.model_ids()] == registry.model_ids()
    assert len(registry.bundles._cards) == 3
