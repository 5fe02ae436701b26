"""Signatures: only what the service signed as this version is a version; the rest is set aside, named, and refused."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from common_lib.exceptions import (
    BundleDamagedError,
    BundleTamperedError,
    BundleUnsignedError,
    ConflictError,
    StateDamagedError,
    VersionExistsError,
)
from ml_workbench_service.access.audit_log import AuditLog, Who
from ml_workbench_service.access.audit_log import verify as verify_chain
from ml_workbench_service.access.signing_keys import DAMAGED, PRIVATE_FILE, PUBLIC_FILE
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.handed_in import HandedIn
from ml_workbench_service.learning.bundle import signatures as signatures_module
from ml_workbench_service.learning.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    is_self_contained,
    write_manifest,
)
from ml_workbench_service.learning.bundle.signatures import RECORD_FILE, Signatures
from ml_workbench_service.workflows.publishing.signing import sign_at_first_start, sign_version
from tests.integrations.bundles import flip_a_byte
from tests.integrations.model_cards import model_card

HERE = Who("command_line", client="somebody")


def registry_at(folder: Path, *, holds_key: bool = True) -> FolderModelRegistry:
    """The registry of a service in `folder`, as the control plane has it, or as any other process."""
    signatures = Signatures(folder / "state", holds_key=holds_key)
    return FolderModelRegistry(folder / "registry", live_version=lambda _: None, signatures=signatures)


@pytest.fixture
def registry(tmp_path: Path) -> FolderModelRegistry:
    """The control plane's."""
    return registry_at(tmp_path)


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    """The service's."""
    (tmp_path / "state").mkdir(exist_ok=True)
    return AuditLog(tmp_path / "state" / "audit.jsonl")


def drafted(registry: FolderModelRegistry, job_id: str | None = None) -> Path:
    """A draft of two files."""
    draft = registry.draft(job_id)
    (draft / "weights.safetensors").write_text("w")
    (draft / "recipe.json").write_text('{"costs": {}}')
    return draft


def publish(registry: FolderModelRegistry, model_id: str = "model", version: str = "1.0.0") -> Path:
    """Publishes it, and returns its folder."""
    registry.publish(drafted(registry), model_card(model_id, version))
    return registry.folder(model_id, version)


def change_card(folder: Path, **changes: object) -> None:
    """What a forger does who can write into the registry: another card, and a manifest that lists it."""
    plain = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(plain | changes))
    write_manifest(folder)


def test_only_the_control_plane_holds_the_private_key(registry: FolderModelRegistry, tmp_path: Path) -> None:
    publish(registry)
    private = tmp_path / "state" / PRIVATE_FILE
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    private.unlink()
    reader = registry_at(tmp_path, holds_key=False)
    assert reader.card("model", "1.0.0").digest == reader.verify("model", "1.0.0")
    assert not private.exists(), "a reader makes none"
    with pytest.raises(AssertionError, match="control plane"):
        reader.publish(drafted(reader), model_card("model", "1.1.0"))


def test_a_forged_card_is_tampered_and_never_served(registry: FolderModelRegistry) -> None:
    folder = publish(registry)
    publish(registry, version="0.9.0")
    change_card(folder, name="Better")
    for ask in (registry.card, registry.verify):
        with pytest.raises(BundleTamperedError, match=r"signature of model/1\.0\.0 does not verify"):
            ask("model", "1.0.0")
    assert registry.served_card("model").version == "0.9.0"
    (aside,) = registry.set_aside()
    assert (aside.model_id, aside.version, aside.state) == ("model", "1.0.0", "tampered")


def test_a_card_alone_that_was_changed_is_noticed_at_the_next_look(registry: FolderModelRegistry) -> None:
    """The manifest still verifies: the card is held against it, in a folder that has been quiet, too."""
    folder = publish(registry)
    registry.card("model", "1.0.0")
    for place in (folder, folder.parent, registry.root):
        os.utime(place, (1, 1))
    flip_a_byte(folder / "card.json")
    with pytest.raises(BundleDamagedError, match=r"card\.json of model/1\.0\.0 is not what was published"):
        registry.card("model", "1.0.0")


@pytest.mark.parametrize("how", ["taken away", "of nobody known"])
def test_a_version_without_a_signature_is_unsigned_until_a_person_signs_it(
    registry: FolderModelRegistry, audit: AuditLog, tmp_path: Path, how: str
) -> None:
    """Else a forger would need only to leave the signature out."""
    folder = publish(registry)
    if how == "taken away":
        (folder / SIGNATURE_FILE).unlink()
    else:
        other = registry_at(tmp_path / "other")
        shutil.copy(publish(other) / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    with pytest.raises(BundleUnsignedError, match=r"ml-workbench sign model 1\.0\.0"):
        registry.card("model", "1.0.0")
    assert [each.state for each in registry.set_aside("model")] == ["unsigned"]
    signed = sign_version(registry, audit, "model", "1.0.0", who=HERE)
    assert registry.card("model", "1.0.0") == signed
    assert registry.set_aside() == ()
    done, asked = audit.newest(num=5)
    assert (asked.what, asked.on, asked.client) == ("version signed", "model 1.0.0", "somebody")
    assert (done.of, done.after["digest"]) == (asked.number, signed.digest)


def test_a_bundle_in_anothers_folder_is_refused_though_its_signature_is_real(registry: FolderModelRegistry) -> None:
    first = publish(registry)
    second = publish(registry, version="2.0.0")
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(BundleTamperedError, match=r"model/2\.0\.0"):
        registry.card("model", "2.0.0")
    unsigned = FolderModelRegistry(registry.root, live_version=lambda _: None)
    with pytest.raises(BundleTamperedError, match=r"another one's, model 1\.0\.0"):
        unsigned.card("model", "2.0.0")


@pytest.mark.parametrize("what", ["card.json", "recipe.json", "version", "model"])
def test_links_are_refused(registry: FolderModelRegistry, tmp_path: Path, what: str) -> None:
    folder = publish(registry)
    place = {"version": folder, "model": folder.parent}.get(what, folder / what)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleDamagedError):
        registry.verify("model", "1.0.0")
    if what == "recipe.json":
        with pytest.raises(BundleDamagedError, match=r"recipe\.json"):
            registry.recipe("model", "1.0.0")


def test_a_graph_with_external_data_is_refused(registry: FolderModelRegistry, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph)
    whole = model.SerializeToString()
    assert is_self_contained(whole)
    draft = drafted(registry)
    onnx.save(model, str(draft / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = (draft / "model.onnx").read_bytes()
    assert not is_self_contained(content)
    assert not is_self_contained(content.replace(b"\n\x08location", b"\x8a\x00\x88\x80\x00location")), "spelt otherwise"
    registry.publish(draft, model_card())
    with pytest.raises(BundleDamagedError, match=r"model\.onnx"):
        registry.verify("model", "1.0.0")


def test_any_changed_byte_of_the_signature_is_noticed(registry: FolderModelRegistry) -> None:
    folder = publish(registry)
    whole = (folder / SIGNATURE_FILE).read_bytes()
    for place in range(len(whole)):
        (folder / SIGNATURE_FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BundleDamagedError):
            registry.card("model", "1.0.0")
    (folder / SIGNATURE_FILE).write_bytes(whole)
    registry.card("model", "1.0.0")


def test_the_first_start_signs_what_verifies_and_says_so(
    registry: FolderModelRegistry, audit: AuditLog, tmp_path: Path
) -> None:
    earlier = FolderModelRegistry(registry.root, live_version=lambda _: None)
    folders = [publish(earlier, model_id) for model_id in ("good", "changed", "moved")]
    flip_a_byte(folders[1] / "weights.safetensors")
    change_card(folders[2], id="another")
    with pytest.raises(BundleUnsignedError):
        registry.card("good", "1.0.0")
    sign_at_first_start(registry, audit)
    assert registry.card("good", "1.0.0").id == "good"
    registry.look_over()
    assert [(each.model_id, each.state) for each in registry.set_aside()] == [
        ("changed", "unsigned"), ("moved", "unsigned"),
    ]  # fmt: skip
    (entry,) = audit.newest(num=5)
    assert entry.after is not None
    assert entry.after["signed"] == ["good 1.0.0"]
    assert set(entry.after["left"]) == {"changed 1.0.0", "moved 1.0.0"}
    assert verify_chain(audit.path).is_whole
    publish(earlier, "late")
    sign_at_first_start(registry_at(tmp_path), audit)
    with pytest.raises(BundleUnsignedError):
        registry.card("late", "1.0.0")
    assert len(audit.newest(num=5)) == 1, "only the first start signs"


def test_a_first_start_that_is_killed_is_the_first_one_again(
    registry: FolderModelRegistry, audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = FolderModelRegistry(registry.root, live_version=lambda _: None)
    for model_id in ("one", "two"):
        publish(earlier, model_id)
    whole, num = signatures_module.write_whole, iter(range(9))

    def killed(path: Path, *args: object, **more: object) -> None:
        if path.name == SIGNATURE_FILE and next(num) == 1:
            raise KeyboardInterrupt
        whole(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(signatures_module, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        sign_at_first_start(registry, audit)
    assert not registry.bundles.signatures.trusted.is_there  # type: ignore[union-attr]
    sign_at_first_start(registry, audit)
    assert [registry.card(each, "1.0.0").id for each in ("one", "two")] == ["one", "two"]


def test_a_lost_private_key_is_made_anew_and_what_the_old_one_signed_stays_signed(
    registry: FolderModelRegistry, tmp_path: Path
) -> None:
    publish(registry)
    (tmp_path / "state" / PRIVATE_FILE).unlink()
    again = registry_at(tmp_path)
    publish(again, version="1.1.0")
    reader = registry_at(tmp_path, holds_key=False)
    assert [each.version for each in reader.cards("model")] == ["1.1.0", "1.0.0"]
    assert [each.version for each in registry.cards("model")] == ["1.1.0", "1.0.0"], "who knew the keys before, too"


@pytest.mark.parametrize("name", [PUBLIC_FILE, PRIVATE_FILE])
def test_a_damaged_key_file_is_set_aside(
    registry: FolderModelRegistry, audit: AuditLog, tmp_path: Path, name: str
) -> None:
    publish(registry)
    (tmp_path / "state" / name).write_bytes(b"\x00not a key")
    again = registry_at(tmp_path)
    sign_at_first_start(again, audit)
    publish(again, version="1.1.0")
    assert again.card("model", "1.0.0").version == "1.0.0"
    assert (tmp_path / "state" / (name + DAMAGED)).exists()


def test_a_damaged_public_key_stops_nothing_that_was_known(registry: FolderModelRegistry, tmp_path: Path) -> None:
    publish(registry)
    registry.card("model", "1.0.0")
    file = tmp_path / "state" / PUBLIC_FILE
    plain = json.loads(file.read_text())
    ((name, key),) = plain["keys"].items()
    for public in (key["public"][:-5] + "AAAA=", "?", "", key["public"] * 2):
        file.write_text(json.dumps({"keys": {name: {**key, "public": public}}}))
        registry.bundles.forget("model", "1.0.0")
        assert registry.card("model", "1.0.0").version == "1.0.0"
    sign_at_first_start(again := registry_at(tmp_path), AuditLog(tmp_path / "state" / "audit.jsonl"))
    assert again.card("model", "1.0.0").version == "1.0.0", "the own key is written anew"


def test_gates_read_the_services_own_record(registry: FolderModelRegistry, tmp_path: Path) -> None:
    publish(registry)
    card = registry.card("model", "1.0.0")
    forged = card.model_copy(update={"evaluation": card.evaluation.model_copy(update={"verdict": "skill"})})
    assert registry.recorded(forged).evaluation.verdict == card.evaluation.verdict != "skill"
    record = tmp_path / "state" / RECORD_FILE
    record.write_bytes(b"\xff\x00\n" + record.read_bytes() + b'{"model_id": 1')
    assert registry.recorded(card) == card, "lines that make no sense stop nothing"
    record.unlink()
    with pytest.raises(StateDamagedError, match="ml-workbench sign"):
        registry.recorded(card)


def test_what_a_worker_hands_in_is_checked_before_it_is_signed(registry: FolderModelRegistry) -> None:
    def handed(job_id: str, **changes: str) -> HandedIn:
        draft = drafted(registry, job_id)
        card = model_card("model", "1.0.0")
        card = card.model_copy(update={"lineage": card.lineage.model_copy(update={"job_id": job_id})})
        (draft / "card.json").write_text(card.model_dump_json())
        told = {"model_id": "model", "version": "1.0.0", "digest": write_manifest(draft)}
        return HandedIn.model_validate(told | changes)

    for changes in ({"model_id": "another"}, {"version": "7.0.0"}, {"digest": "sha256:other"}):
        with pytest.raises(BundleDamagedError):
            registry.accept("job", handed("job", **changes))
    told = handed("job")
    with pytest.raises(BundleDamagedError):
        registry.accept("another-job", handed("another-job").model_copy(update={"digest": told.digest}))
    flip_a_byte(registry.root / ".staging" / "job" / "weights.safetensors")
    with pytest.raises(BundleDamagedError):
        registry.accept("job", told)
    assert registry.model_ids() == []
    told = handed("job")
    card = registry.accept("job", told)
    assert registry.accept("job", told) == card, "asked again after a kill, it says the same"
    with pytest.raises(VersionExistsError):
        registry.accept("job-2", handed("job-2"))


def test_nothing_is_signed_by_command_before_the_first_start(registry: FolderModelRegistry, audit: AuditLog) -> None:
    publish(FolderModelRegistry(registry.root, live_version=lambda _: None))
    with pytest.raises(ConflictError, match="first start"):
        sign_version(registry, audit, "model", "1.0.0", who=HERE)


def test_a_list_verifies_each_version_once(registry: FolderModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        publish(registry, f"model_{number}")
    reader = FolderModelRegistry(
        registry.root, live_version=lambda _: None, signatures=(kept := Signatures(registry.root.parent / "state"))
    )
    asked = []
    check = kept.check
    monkeypatch.setattr(kept, "check", lambda *about: (asked.append(about), check(*about))[1])
    for _ in range(3):
        assert len([reader.served_card(each) for each in reader.model_ids()]) == 20
        reader.look_over()
    assert len(asked) == 20
    folder = registry.root / "model_3" / "1.0.0"
    content = (folder / MANIFEST_FILE).read_bytes()
    (folder / MANIFEST_FILE).write_bytes(content)
    reader.look_over()
    assert len(asked) == 21, "another identity, another look"


def test_what_the_system_refuses_for_a_moment_is_no_verdict(
    registry: FolderModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry)
    reader = registry_at(tmp_path, holds_key=False)

    def refused(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(signatures_module, "no_follow", refused)
        with pytest.raises(BundleDamagedError):
            reader.card("model", "1.0.0")
    assert reader.card("model", "1.0.0").version == "1.0.0"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        with pytest.raises(OSError, match="too many"):
            Signatures(tmp_path / "state", holds_key=True).trusted.trust("key", b"0" * 32)
    assert not list((tmp_path / "state").glob(f"{PUBLIC_FILE}{DAMAGED}*"))


def test_what_a_killed_signing_left_is_no_part_of_the_bundle_and_the_next_signing_takes_it_away(
    registry: FolderModelRegistry, audit: AuditLog, tmp_path: Path
) -> None:
    folder = publish(FolderModelRegistry(tmp_path / "registry", live_version=lambda _: None))
    left = folder / f".{SIGNATURE_FILE}.4711"
    left.write_text('{"signa')
    sign_at_first_start(registry, audit)
    assert registry_at(tmp_path, holds_key=False).card("model", "1.0.0").digest
    assert not left.exists()
    (folder / f".{SIGNATURE_FILE}.other").write_text("not ours")
    with pytest.raises(BundleDamagedError, match="other"):
        registry.verify("model", "1.0.0")
