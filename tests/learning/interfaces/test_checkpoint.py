"""A checkpoint is whole and of this very training, or it is none; and whatever happens to it, the training goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint

FACTS = {"data": "sha256:ab", "family": "lstm", "seed": 3, "hyperparameters": {"units": 8, "rate": 0.1}}
ROOT = Path(__file__).parents[3]
SAVES_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]), fingerprint={"seed": 1})
for step in range(1, 10**9):
    checkpoint.save({"weights": np.full(50_000, step), "more": np.full((3, 5), step, np.float32)}, {"step": step})
"""


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(folder: Path, **changes: Any) -> Checkpoint:
    return Checkpoint(folder / "checkpoint", fingerprint=FACTS | changes)


def filled(folder: Path) -> Path:
    """The file of a checkpoint with something in it."""
    assert made(folder).save({"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(0, np.int64)}, {"epoch": 4})
    return folder / "checkpoint" / CHECKPOINT_FILE


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    arrays = {
        "float32": np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32),
        "float64 not finite": np.array([np.nan, np.inf, -0.0, 1e-310]),
        "scalar": np.array(7.5),
        "integers": np.array([2**63 - 1, -1]),
        "bytes": np.frombuffer(b"random state", np.uint8),
        "booleans": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    state = {"epoch": 7, "best": float("inf"), "loss": 0.1 + 0.2, "rng": np.random.default_rng(5).bit_generator.state}
    assert made(tmp_path).save(arrays, state)
    saved = made(tmp_path).load()
    assert saved is not None
    assert saved.state == state
    assert set(saved.arrays) == set(arrays)
    for name, array in arrays.items():
        assert (saved.arrays[name].dtype, saved.arrays[name].shape) == (array.dtype, array.shape)
        assert saved.arrays[name].tobytes() == array.tobytes()


def test_the_newest_counts_and_nothing_else_lies_beside_it(tmp_path: Path) -> None:
    checkpoint = made(tmp_path)
    assert checkpoint.load() is None
    for step in (1, 2):
        checkpoint.save({"w": np.full(step, step)}, {"step": step})
    saved = checkpoint.load()
    assert saved is not None
    assert (saved.state, saved.arrays["w"].tolist()) == ({"step": 2}, [2, 2])
    assert [each.name for each in (tmp_path / "checkpoint").iterdir()] == [CHECKPOINT_FILE]
    checkpoint.clear()
    checkpoint.clear()
    assert checkpoint.load() is None
    assert list((tmp_path / "checkpoint").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data": "sha256:cd"}, "data"),
        ({"seed": 4}, "seed"),
        ({"hyperparameters": {"units": 8, "rate": 0.2}}, "hyperparameters"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_a_checkpoint_of_another_training_is_ignored_and_the_log_says_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], word: str
) -> None:
    file = filled(tmp_path)
    before = file.read_bytes()
    assert made(tmp_path, **changes).load() is None
    assert f"another training ({word})" in caplog.text
    assert file.read_bytes() == before
    assert made(tmp_path).load() is not None


def test_other_library_versions_make_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(
        "ml_workbench_service.learning.interfaces.checkpoint.version", lambda name: f"{name} of tomorrow"
    )
    assert made(tmp_path).load() is None


def test_a_fingerprint_that_json_changes_is_still_its_own(tmp_path: Path) -> None:
    facts = {"lengths": (3, 8), "costs": {1: 2.5}}
    Checkpoint(tmp_path, fingerprint=facts).save({}, {})
    assert Checkpoint(tmp_path, fingerprint=facts).load() is not None


@given(cut=st.floats(0, 1, exclude_max=True), flipped=st.floats(0, 1, exclude_max=True))
def test_a_torn_or_rotten_file_is_ignored_wherever_the_damage_is(
    tmp_path_factory: pytest.TempPathFactory, cut: float, flipped: float
) -> None:
    folder = tmp_path_factory.mktemp("rotten")
    file = filled(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    assert made(folder).load() is None
    place = int(flipped * len(whole))
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    found = made(folder).load()
    if found is not None:  # the damage changed nothing that counts
        assert found.state == {"epoch": 4}
        assert {name: array.tolist() for name, array in found.arrays.items()} == {"w": [[0, 1, 2], [3, 4, 5]], "b": []}
    file.write_bytes(whole)
    assert made(folder).load() is not None


def test_a_foreign_file_is_ignored_and_replaced_by_the_next_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = filled(tmp_path)
    for document in (None, "{", "5", "[]", "{}", json.dumps({"format": 99, "digest": ""})):
        save_file({"w": np.ones(2)}, str(file), metadata=None if document is None else {"document": document})
        caplog.clear()
        assert made(tmp_path).load() is None
        assert "is ignored, the training begins anew" in caplog.text
    file.unlink()
    file.mkdir()
    assert made(tmp_path).load() is None
    file.rmdir()
    filled(tmp_path)
    assert made(tmp_path).load() is not None


def test_a_full_disk_is_said_once_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    heard: list[str] = []
    filled(tmp_path)
    folder = tmp_path / "checkpoint"
    checkpoint = Checkpoint(folder, fingerprint=FACTS, warn=heard.append)
    for _ in range(3):
        (folder / f".{CHECKPOINT_FILE}").symlink_to("/dev/full")
        assert not checkpoint.save({"w": np.ones(100_000)}, {"epoch": 5})
    assert len(heard) == 1
    assert "No space left" in heard[0]
    assert "Free some space under STATE_DIR" in heard[0]
    assert [each.name for each in folder.iterdir()] == [CHECKPOINT_FILE]
    saved = checkpoint.load()
    assert saved is not None
    assert saved.state == {"epoch": 4}
    assert checkpoint.save({}, {"epoch": 6})


def test_a_folder_that_cannot_be_made_costs_only_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint").write_text("a file in the way")
    assert not made(tmp_path).save({}, {})
    assert "cannot be kept on disk" in caplog.text
    assert made(tmp_path).load() is None


def test_a_save_is_due_after_its_period_and_never_costs_more_than_a_hundredth(tmp_path: Path) -> None:
    clock = Clock()
    checkpoint = Checkpoint(tmp_path, fingerprint={}, period_s=5.0, clock=clock)
    assert not checkpoint.due()
    clock.now += 5.0
    assert checkpoint.due()
    checkpoint.save({}, {})
    assert not checkpoint.due()
    clock.now += 4.9
    assert not checkpoint.due()
    clock.now += 0.2
    assert checkpoint.due()

    class Slow(UserDict[str, Any]):
        """A state that takes a second to read."""

        def __iter__(self) -> Iterator[str]:
            clock.now += 1.0
            return super().__iter__()

    checkpoint.save({}, Slow(epoch=1))
    clock.now += 99.0
    assert not checkpoint.due()
    clock.now += 1.1
    assert checkpoint.due()


def test_a_reader_sees_a_whole_checkpoint_at_any_moment_and_so_does_who_comes_after_a_kill(tmp_path: Path) -> None:
    checkpoint, deadline = Checkpoint(tmp_path, fingerprint={"seed": 1}), time.monotonic() + 30
    command = [sys.executable, "-c", SAVES_FOREVER, str(tmp_path)]
    steps = []
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        while not (tmp_path / CHECKPOINT_FILE).exists():
            assert time.monotonic() < deadline, "the process saved nothing"
            time.sleep(0.01)
        while len(set(steps)) <= 10:  # a busy machine may let the process save only rarely
            assert time.monotonic() < deadline, "the process did not save while it was read"
            steps.append(step_of(checkpoint))
        process.send_signal(signal.SIGKILL)
    steps.append(step_of(checkpoint))
    assert steps == sorted(steps)
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == []


def step_of(checkpoint: Checkpoint) -> int:
    """The step that every array and the state agree on."""
    saved = checkpoint.load()
    assert saved is not None
    (step,) = {saved.state["step"], *saved.arrays["weights"].tolist(), *saved.arrays["more"].ravel().tolist()}
    return int(step)
