"""`sign`, and what `doctor` says of signatures: on the files of one STATE_DIR and its registry, without a service."""

import json
from pathlib import Path

import pytest

from common_lib.command_line import ExitCode
from ml_workbench_service.access.audit_log import AUDIT_FILE
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE
from ml_workbench_service.learning.bundle.signatures import Signatures
from tests.cli.conftest import Command
from tests.integrations.bundles import flip_a_byte
from tests.integrations.model_cards import model_card


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version without a signature, beside one that has one, in a place where a service has been."""
    for name in ("STATE_DIR", "MODEL_REGISTRY_PATH"):
        monkeypatch.setenv(name, str(tmp_path / {"STATE_DIR": "state"}.get(name, "registry")))
    registry = FolderModelRegistry(
        tmp_path / "registry", live_version=lambda _: None, signatures=Signatures(tmp_path / "state", holds_key=True)
    )
    for model_id in ("signed", "copied"):
        draft = registry.draft()
        (draft / "weights.safetensors").write_text("w")
        registry.publish(draft, model_card(model_id))
    (tmp_path / "registry" / "copied" / "1.0.0" / SIGNATURE_FILE).unlink()
    return tmp_path


def finding(command: Command) -> dict[str, str]:
    """What the doctor says of the registry."""
    found = command("doctor", "--json").json["findings"]
    return next(each for each in found if each["name"] == "model registry")


def test_an_unsigned_version_is_found_signed_and_noted(command: Command, folder: Path) -> None:
    before = finding(command)
    assert before["state"] == "broken"
    assert "ml-workbench sign copied 1.0.0" in before["detail"]
    done = command("sign", "copied", "1.0.0", "--json")
    assert done.code == 0, done.err
    assert (done.json["id"], done.json["version"]) == ("copied", "1.0.0")
    assert finding(command)["state"] == "ok"
    asked, ended = [json.loads(line) for line in (folder / "state" / AUDIT_FILE).read_text().splitlines()]
    assert (asked["what"], asked["on"], asked["key"]) == ("version signed", "copied 1.0.0", "command_line")
    assert (ended["of"], ended["after"]["digest"]) == (asked["number"], done.json["digest"])


def test_a_version_whose_files_are_not_as_listed_is_not_signed(command: Command, folder: Path) -> None:
    flip_a_byte(folder / "registry" / "copied" / "1.0.0" / "weights.safetensors")
    ended = command("sign", "copied", "1.0.0")
    assert ended.code == ExitCode.REFUSED
    assert "weights.safetensors" in ended.err
    assert not (folder / "registry" / "copied" / "1.0.0" / SIGNATURE_FILE).exists()
    assert command("sign", "nobody", "1.0.0").code == ExitCode.REFUSED
