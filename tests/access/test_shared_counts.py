"""Shared counts: a key's rate and quota hold over all processes, through deaths of some and changes of the file."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ml_workbench_service.access import limits, shared_counts
from ml_workbench_service.access.key_ring import Caller, KeyRing, read_uses
from ml_workbench_service.access.keys import KeyFile
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.access.shared_counts import SharedCounts

NUM = 3
Opened = Callable[[int], KeyRing]


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def opened(tmp_path: Path, file: KeyFile) -> Iterator[Opened]:
    """The ring of one of three processes; the last is the one that writes."""
    with SharedCounts.made(NUM) as memory:

        def ring(number: int) -> KeyRing:
            made = KeyRing(file.path, api_key=None, uses=tmp_path / "uses.json", look_every_s=0.0)
            if number == NUM - 1:
                made.load()
            made.share(SharedCounts(memory.fileno(), num=NUM, mine=number))
            return made

        yield ring


def caller(ring: KeyRing, text: str) -> Caller:
    found = ring.find(text.encode())
    assert found is not None
    return found


def test_a_quota_holds_over_all_processes_and_outlives_one(opened: Opened, file: KeyFile, tmp_path: Path) -> None:
    text, record = file.create("c", [Scope.PREDICT], requests_per_day=5)
    rings = [opened(number) for number in range(NUM)]
    assert [caller(ring, text).allowance.take() for ring in (*rings, rings[0], rings[0])] == [0] * 5
    assert all(caller(ring, text).allowance.take() > 0 for ring in rings)
    again = opened(0)
    assert caller(again, text).allowance.take() > 0, "one that is started again knows what was used"
    rings[-1].keep_uses()
    assert read_uses(tmp_path / "uses.json")[record.id]["num_today"] == 5
    file.create("d", [Scope.PREDICT], requests_per_day=5)
    assert caller(again, text).allowance.take() > 0, "another key changes nothing"


def test_what_was_used_before_the_start_counts_everywhere(opened: Opened, file: KeyFile, tmp_path: Path) -> None:
    text, _ = file.create("c", [Scope.PREDICT], requests_per_day=3)
    alone = KeyRing(file.path, api_key=None, uses=tmp_path / "uses.json")
    alone.load()
    assert [caller(alone, text).allowance.take() for _ in range(2)] == [0, 0]
    alone.keep_uses()
    rings = [opened(number) for number in reversed(range(NUM))]
    assert caller(rings[-1], text).allowance.take() == 0
    assert all(caller(ring, text).allowance.take() > 0 for ring in rings)


def test_a_rate_is_one_bucket(opened: Opened, file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [time.monotonic()]
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=time.time, monotonic=lambda: now_s[0]))
    text, _ = file.create("c", [Scope.PREDICT], rate_per_s=10.0)
    rings = [opened(number) for number in range(NUM)]

    def num_let_in() -> int:
        return sum(caller(rings[turn % NUM], text).allowance.take() == 0 for turn in range(40))

    assert num_let_in() == 10, "the burst of a second"
    now_s[0] += 0.55
    assert num_let_in() == 5
    now_s[0] += 100.0
    assert num_let_in() == 10


def test_a_key_was_seen_by_all_once_one_has_seen_it(opened: Opened, file: KeyFile) -> None:
    rings = [opened(NUM - 1)]
    assert not opened(0).is_guarded
    file.create("c", [Scope.READ])
    assert rings[0].is_guarded
    file.path.unlink()
    assert opened(0).is_guarded, "a worker that starts when the file is gone opens nothing"
    file.path.write_text("{")
    assert opened(1).is_guarded


def test_a_place_of_another_key_counts_nothing(opened: Opened, file: KeyFile) -> None:
    text, _ = file.create("c", [Scope.PREDICT], requests_per_day=1)
    rings = [opened(number) for number in range(NUM)]
    assert caller(rings[0], text).allowance.take() == 0
    file.path.unlink()
    other, _ = file.create("c", [Scope.PREDICT], requests_per_day=2)
    assert [caller(ring, other).allowance.take() for ring in rings[:2]] == [0, 0]
    assert caller(rings[2], other).allowance.take() > 0


def test_keys_beyond_the_places_are_counted_by_each_alone(
    opened: Opened, file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_counts, "MOST_KEYS", 1)
    text, _ = file.create("c", [Scope.PREDICT], requests_per_day=1)
    assert [caller(opened(number), text).allowance.take() for number in range(NUM)] == [0] * NUM
