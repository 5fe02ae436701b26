"""Keys: digests alone on disk, two live ones a client, and a ring that learns of changes while it runs."""

import json
import stat
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from common_lib.exceptions import ConflictError, DataValidationError, NotFoundError
from ml_workbench_service.access.key_ring import KeyRing
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile, identifier_of
from ml_workbench_service.access.operations import Scope

READ = [Scope.READ]


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / KEYS_FILE)


def ring_of(file: KeyFile, api_key: str | None = None) -> KeyRing:
    ring = KeyRing(file.path, api_key=api_key, uses=file.path.with_name("uses.json"), look_every_s=0.0)
    ring.load()
    return ring


def test_a_key_is_long_random_and_not_on_disk(file: KeyFile) -> None:
    made = {file.create(f"c{number}", READ)[0] for number in range(20)}
    assert len(made) == 20
    on_disk = file.path.read_text()
    for text in made:
        assert len(text.split("_", 2)[2]) >= 32  # 192 bits
        assert text.split("_", 2)[2] not in on_disk
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_the_ring_knows_whose_key_it_is(file: KeyFile) -> None:
    text, record = file.create("engine", [Scope.READ, Scope.PREDICT], rate_per_s=5)
    ring = ring_of(file, api_key="the-master-key-of-tests")
    caller = ring.find(text.encode())
    assert caller is not None
    assert (caller.id, caller.client, caller.scopes) == (record.id, "engine", {Scope.READ, Scope.PREDICT})
    assert caller.may(Scope.READ)
    assert not caller.may(Scope.DEPLOY)
    master = ring.find(b"the-master-key-of-tests")
    assert master is not None
    assert master.may(Scope.DEPLOY)
    for wrong in (text[:-1], text + "x", text[:12], f"mlw_{'0' * 8}_{text[13:]}", "", "the-master-key-of-test", "mlw_"):
        assert ring.find(wrong.encode()) is None
    assert identifier_of(text.encode()) == record.id
    assert identifier_of(b"\xff\xfe") is None


def test_a_client_has_two_live_keys_at_most_and_rotation_hands_over(file: KeyFile) -> None:
    first, old = file.create("engine", READ, rate_per_s=7)
    second, new = file.rotate("engine", overlap=timedelta(hours=1))
    assert (new.scopes, new.rate_per_s) == (old.scopes, old.rate_per_s)
    ring = ring_of(file)
    assert ring.find(first.encode()) is not None
    assert ring.find(second.encode()) is not None
    with pytest.raises(ConflictError, match="two live keys"):
        file.rotate("engine", overlap=timedelta(0))
    with pytest.raises(ConflictError, match="two live keys"):
        file.create("engine", READ)
    file.revoke(old.id)
    assert ring.find(first.encode()) is None, "a ring that runs learns of it"
    third, _ = file.rotate("engine", overlap=timedelta(0))
    assert ring.find(second.encode()) is None
    assert ring.find(third.encode()) is not None
    with pytest.raises(NotFoundError):
        file.revoke("00000000")
    with pytest.raises(NotFoundError):
        file.rotate("nobody", overlap=timedelta(0))


def test_a_key_ends_when_its_time_is_over_though_nobody_changes_the_file(file: KeyFile) -> None:
    text, _ = file.create("brief", READ, lives_for=timedelta(seconds=0.3))
    ring = KeyRing(file.path, api_key=None, uses=file.path.with_name("uses.json"), look_every_s=3600)
    ring.load()
    found = ring.find(text.encode())
    assert found is not None
    assert found.ends_at_s is not None
    while time.time() < found.ends_at_s:
        time.sleep(0.05)
    assert ring.find(text.encode()) is None


def test_a_door_that_had_a_key_stays_closed(file: KeyFile) -> None:
    ring = ring_of(file)
    assert not ring.is_guarded
    text, _ = file.create("engine", READ)
    assert ring.is_guarded
    file.path.unlink()
    assert ring.find(text.encode()) is None
    assert ring.is_guarded


def test_a_damaged_file_stops_a_start_and_leaves_a_running_ring_as_it_was(file: KeyFile) -> None:
    text, _ = file.create("engine", READ)
    ring = ring_of(file)
    file.path.write_text('{"format": 1, "keys": [')
    assert ring.find(text.encode()) is not None
    with pytest.raises(DataValidationError, match="key file"):
        ring_of(file)


@pytest.mark.parametrize("client", ["", "Engine", "a b", "../x"])
def test_a_client_is_named_as_everything_else_is(file: KeyFile, client: str) -> None:
    with pytest.raises(DataValidationError):
        file.create(client, READ)
    assert not file.path.exists()


def test_changes_of_several_commands_take_turns(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.create, args=(f"c{number}", READ)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(file.read()) == 8


def test_last_use_and_the_days_count_outlive_a_restart(file: KeyFile) -> None:
    text, record = file.create("engine", READ, requests_per_day=3)
    ring = ring_of(file)
    for _ in range(2):
        caller = ring.find(text.encode())
        assert caller is not None
        assert caller.allowance.take() == 0
    before = file.path.stat().st_mtime_ns
    ring.keep_uses()
    assert json.loads(file.path.with_name("uses.json").read_text())[record.id]["num_today"] == 2
    assert file.path.stat().st_mtime_ns == before
    again = ring_of(file).find(text.encode())
    assert again is not None
    assert again.allowance.take() == 0
    assert again.allowance.take() > 0
