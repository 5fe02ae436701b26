"""Gate: 401 without the right key, 403 without the scope, 429 over the limits; guesses are slowed by address."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common_lib.exceptions import AuthenticationError, AuthorizationError, RateLimitError
from ml_workbench_service.access import limits
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import ANYBODY, KeyRing
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import OPERATIONS, Scope

READING = OPERATIONS["GET /api/v1/models"]
DEPLOYING = OPERATIONS["POST /api/v1/models/{model_id}/deploy"]
HEALTH = OPERATIONS["GET /health"]
MASTER = "the-master-key-of-tests"


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / KEYS_FILE)


@pytest.fixture
def gate(file: KeyFile) -> Gate:
    return Gate(KeyRing(file.path, api_key=MASTER, uses=file.path.with_name("uses.json"), look_every_s=0.0))


def test_without_any_key_everybody_is_anybody(tmp_path: Path) -> None:
    gate = Gate(KeyRing(tmp_path / KEYS_FILE, api_key=None, uses=tmp_path / "uses.json"))
    assert gate.admit(None, address="127.0.0.1", operation=DEPLOYING) is ANYBODY


def test_what_is_open_needs_no_key_and_the_rest_does(gate: Gate) -> None:
    assert gate.admit(None, address="a", operation=HEALTH) is ANYBODY
    for operation in (READING, None):
        with pytest.raises(AuthenticationError, match="X-API-Key"):
            gate.admit(None, address="a", operation=operation)
        with pytest.raises(AuthenticationError):
            gate.admit(b"wrong", address="a", operation=operation)


def test_a_key_without_the_scope_learns_which_it_lacks(gate: Gate, file: KeyFile) -> None:
    text, record = file.create("viewer", [Scope.READ])
    assert gate.admit(text.encode(), address="a", operation=READING).id == record.id
    with pytest.raises(AuthorizationError, match="`deploy`") as refused:
        gate.admit(text.encode(), address="a", operation=DEPLOYING)
    assert refused.value.details["needed_scope"] == "deploy"
    assert gate.admit(MASTER.encode(), address="a", operation=DEPLOYING).id == "API_KEY"


def test_a_rate_is_kept_and_says_when_to_come_again(gate: Gate, file: KeyFile) -> None:
    text, _ = file.create("busy", [Scope.READ], rate_per_s=0.01)
    gate.admit(text.encode(), address="a", operation=READING)
    with pytest.raises(RateLimitError) as refused:
        gate.admit(text.encode(), address="a", operation=READING)
    assert 1 <= (refused.value.retry_after_s or 0) <= 100
    gate.admit(MASTER.encode(), address="a", operation=READING)  # others have their own


def test_a_quota_is_counted_by_the_day(gate: Gate, file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_900_000_000.0]
    text, _ = file.create("small", [Scope.READ], requests_per_day=2)
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic))
    for _ in range(2):
        gate.admit(text.encode(), address="a", operation=READING)
    with pytest.raises(RateLimitError) as refused:
        gate.admit(text.encode(), address="a", operation=READING)
    assert refused.value.retry_after_s is not None
    now[0] += refused.value.retry_after_s
    gate.admit(text.encode(), address="a", operation=READING)


def test_guesses_are_slowed_by_address_and_random_keys_are_not(
    gate: Gate, file: KeyFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=time.time, monotonic=lambda: now_s[0]))
    text, _ = file.create("engine", [Scope.READ])
    statuses = []
    with caplog.at_level(logging.WARNING):
        for number in range(200):
            now_s[0] += 0.1
            with pytest.raises((AuthenticationError, RateLimitError)) as refused:
                gate.admit(f"guess-{number}".encode(), address="203.0.113.9", operation=READING)
            statuses.append(refused.value.status)
    assert statuses[: limits.NUM_FREE_FAILURES] == [401] * limits.NUM_FREE_FAILURES
    assert statuses.count(401) == pytest.approx(limits.NUM_FREE_FAILURES + 19, abs=2), "one a second after that"
    with pytest.raises(RateLimitError):  # whoever shares the address waits with a key that could be guessed
        gate.admit(MASTER.encode(), address="203.0.113.9", operation=READING)
    gate.admit(text.encode(), address="203.0.113.9", operation=READING)
    gate.admit(MASTER.encode(), address="203.0.113.10", operation=READING)
    now_s[0] += limits.FAILURES_WITHIN_S + 1
    gate.admit(MASTER.encode(), address="203.0.113.9", operation=READING)
    for number in range(50):  # from now on the address is at home
        with pytest.raises(AuthenticationError):
            gate.admit(f"guess-{number}".encode(), address="203.0.113.9", operation=READING)
    gate.admit(MASTER.encode(), address="203.0.113.9", operation=READING)
    assert 1 <= len(caplog.records) < 100
    assert "guess" not in caplog.text


def test_a_refused_key_of_ours_is_logged_by_its_id_alone(
    gate: Gate, file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    text, record = file.create("engine", [Scope.READ])
    file.revoke(record.id)
    with caplog.at_level(logging.WARNING), pytest.raises(AuthenticationError):
        gate.admit(text.encode(), address="203.0.113.9", operation=READING)
    said = str(vars(caplog.records[0]))
    assert f"mlw_{record.id}_…" in said
    assert text[13:] not in said


def test_addresses_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_ADDRESSES", 5)
    failed = limits.FailedKeys()
    for number in range(50):
        failed.note(f"10.0.0.{number}")
    assert len(failed._failures) == 5
