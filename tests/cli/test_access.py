"""`keys` and `audit verify`: files of one STATE_DIR, changed and checked without a service."""

import json
import stat
from pathlib import Path

import pytest

from common_lib.command_line import ExitCode
from ml_workbench_service.access.audit_log import AUDIT_FILE
from ml_workbench_service.access.keys import KEYS_FILE
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("API_KEY", "KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_key_is_made_shown_once_listed_rotated_and_revoked(command: Command, state: Path) -> None:
    made = command("keys", "create", "engine", "--scopes", "read, predict", "--rate", "50", "--json").json
    assert made["key"].startswith(f"mlw_{made['id']}_")
    assert (made["client"], made["scopes"], made["limits"]) == ("engine", "read predict", "50/s")
    for path in (state / KEYS_FILE, state / AUDIT_FILE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert made["key"] not in path.read_text()
    following = command("keys", "rotate", "engine", "--overlap-hours", "2", "--json").json
    assert following["limits"] == "50/s"
    states = {each["id"]: each["state"] for each in command("keys", "list", "--json").json["keys"]}
    assert states[made["id"]].startswith("until ")
    assert states[following["id"]] == "live"
    assert command("keys", "revoke", made["id"]).code == 0
    shown = command("keys", "list").out
    assert "revoked" in shown
    assert following["key"] not in shown
    verified = command("audit", "verify", "--json")
    assert (verified.code, verified.json["num_entries"], verified.json["faults"]) == (0, 6, [])
    entries = [json.loads(line) for line in (state / AUDIT_FILE).read_text().splitlines()]
    whats = ("key created", "key rotated", "key revoked")
    assert [(each["what"], each["event"]) for each in entries] == [(w, e) for w in whats for e in ("asked", "done")]
    assert [each["of"] for each in entries[1::2]] == [each["number"] for each in entries[::2]]
    assert [each["after"]["id"] for each in entries[1::2]] == [made["id"], following["id"], made["id"]]
    assert entries[4]["before"]["revoked_at"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("create", "engine", "--scopes", "reed"), ExitCode.USAGE, "read, predict, train, deploy, admin"),
        (("create", "Engine"), ExitCode.REFUSED, "pattern"),
        (("rotate", "nobody"), ExitCode.REFUSED, "keys create nobody"),
        (("revoke", "0123abcd"), ExitCode.REFUSED, "keys list"),
    ],
)
def test_what_cannot_be_is_said(command: Command, arguments: tuple[str, ...], code: ExitCode, words: str) -> None:
    ended = command("keys", *arguments)
    assert (ended.code, words in ended.err) == (code, True), ended.err


def test_a_third_live_key_is_refused(command: Command) -> None:
    for _ in range(2):
        assert command("keys", "create", "engine").code == 0
    ended = command("keys", "create", "engine")
    assert ended.code == ExitCode.REFUSED
    assert "two live keys" in ended.err


def test_a_log_that_was_altered_ends_with_1(command: Command, state: Path) -> None:
    for client in ("a", "b", "c"):
        command("keys", "create", client)
    head = command("audit", "verify", "--json").json["head"]
    kept = f"{head['number']}:{head['hash']}"
    assert command("audit", "verify", "--kept", kept).code == 0
    lines = (state / AUDIT_FILE).read_bytes().splitlines(keepends=True)
    (state / AUDIT_FILE).write_bytes(b"".join(lines[:2]))
    assert command("audit", "verify").code == 0
    assert command("audit", "verify", "--kept", kept).code == ExitCode.FAILED
    (state / AUDIT_FILE).write_bytes(lines[0] + lines[2])
    ended = command("audit", "verify")
    assert ended.code == ExitCode.FAILED
    assert "line 2" in ended.out
    assert command("audit", "verify", "--kept", "nonsense").code == ExitCode.USAGE
