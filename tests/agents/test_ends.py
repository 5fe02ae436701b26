"""Ends of agents on disk: begun anew or removed, whole or not at all; what the queue counts goes on."""

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest

from common_lib.exceptions import ConflictError, UnavailableError
from ml_workbench_service.agents import ends
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.definition import open_agent, write_definition
from ml_workbench_service.agents.ends import check_unled, finish_ends, finish_reset, remove_files, reset
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import PROCESS_FILE, agent_folder, agent_folders, read_agent
from ml_workbench_service.contracts.agents import AgentDefinition, Beginning, QLearningHyperparameters
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.jobs.process_record import ProcessRecord
from tests.prediction_records import prediction_record


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An agent with a table of its own to begin with, thirty entries and two shards later."""
    home = agent_folder(tmp_path, "mine")
    settings = QLearningHyperparameters(learning_rate=0.3, seed=4)
    definition = AgentDefinition(id="mine", hyperparameters=settings, created_at=utc_now())
    template = QLearningAgent("mine", hyperparameters=settings)
    template.table.values_SA[:] = 0.25
    template.table.visits_SA[:] = 1
    plain = template.checkpoint()
    beginning = Beginning(
        strength_edges=plain.strength_edges, width_edges=plain.width_edges, values_SA=plain.values_SA,
        visits_SA=plain.visits_SA,
    )  # fmt: skip
    write_definition(home, definition, beginning)
    for shard, symbol in enumerate(("EUR/USD", "USD/JPY")):
        folder = home / f"shard{shard}of2"
        agent = open_agent(folder, "mine")
        for number in range(15):
            agent.apply(f"{number + 1}-0", prediction_record(number, symbol=symbol, price=1.1 + number / 1000))
        agent.checkpoint(term=3, given_up={"16-0": "why"}, stream_epoch="e").save(folder)
    return home


def test_everything_begins_anew_but_what_the_queue_has_counted(home: Path) -> None:
    before = read_agent(home)
    old = [Checkpoint.load(home / f"shard{shard}of2") for shard in range(2)]
    reset(home, utc_now())
    after = read_agent(home)
    assert (before.num_actions, before.num_settled, bool(before.positions)) == (30, 28, True)
    assert (after.num_applied, after.num_before_reset, after.last_applied_id) == (30, 30, before.last_applied_id)
    assert (after.num_actions, after.num_settled, after.cumulative_reward, after.positions) == (0, 0, 0.0, {})
    assert after.exploration_rate == 1.0
    for shard in range(2):
        folder = home / f"shard{shard}of2"
        fresh = Checkpoint.load(folder)
        assert fresh is not None
        assert (fresh.term, fresh.given_up, fresh.stream_epoch, fresh.lanes) == (4, {"16-0": "why"}, "e", {})
        assert {value for row in fresh.values_SA for value in row} == {0.25}, (
            "it begins with the table that it was made with"
        )
        (aside,) = folder.glob("before_reset.*.json")
        assert Checkpoint.model_validate_json(aside.read_bytes()) == old[shard]
        agent = open_agent(folder, "mine")
        assert agent.has_applied("15-0")
        assert not agent.has_applied("16-0")
        agent.apply("16-0", prediction_record(16))
        assert (agent.counters.num_applied, agent.counters.num_actions) == (16, 1)


def test_a_reset_agent_decides_as_a_new_one_does(tmp_path: Path) -> None:
    home = agent_folder(tmp_path, "default")
    agent = open_agent(home, "default")
    records = [prediction_record(number, price=1.1 + number % 7 / 1000) for number in range(40)]
    for number, record in enumerate(records[:20]):
        agent.apply(f"{number + 1}-0", record)
    agent.checkpoint().save(home)
    reset(home, utc_now())
    again, new = open_agent(home, "default"), QLearningAgent("default")
    for number, record in enumerate(records[20:]):
        assert again.apply(f"{number + 21}-0", record) == new.apply(f"{number + 21}-0", record)
    assert again.counters.num_applied == 40


@pytest.mark.parametrize("num_saves", [0, 1, 2])
def test_a_kill_between_any_two_steps_is_finished_by_the_next_start(
    home: Path, monkeypatch: pytest.MonkeyPatch, num_saves: int
) -> None:
    save, calls = Checkpoint.save, iter(range(10))

    def killed_at(checkpoint: Checkpoint, folder: Path) -> None:
        if next(calls) == num_saves:
            raise Killed
        save(checkpoint, folder)

    monkeypatch.setattr(Checkpoint, "save", killed_at)
    if num_saves == 2:
        monkeypatch.setattr(ends, "sync_folder", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        reset(home, utc_now())
    monkeypatch.undo()
    finish_ends(home.parent.parent)
    finish_reset(home)
    after = read_agent(home)
    assert (after.num_applied, after.num_before_reset, after.num_actions) == (30, 30, 0)
    assert {Checkpoint.load(home / f"shard{shard}of2").term for shard in range(2)} == {4}  # type: ignore[union-attr]
    assert not list(home.glob("reset.json"))


def test_a_full_disk_leaves_the_agent_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_agent(home)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def full_later(checkpoint: Checkpoint, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    for patched in ((os, "fsync", full), (Checkpoint, "save", full_later)):
        monkeypatch.setattr(*patched)
        with pytest.raises(UnavailableError):
            reset(home, utc_now())
        monkeypatch.undo()
        assert read_agent(home) == before
        finish_ends(home.parent.parent)
        assert read_agent(home) == before, "not at the next start either"


def test_a_second_reset_counts_all_that_was_before_it(home: Path) -> None:
    reset(home, utc_now())
    folder = home / "shard0of2"
    agent = open_agent(folder, "mine")
    agent.apply("16-0", prediction_record(16))
    agent.checkpoint(term=5).save(folder)
    reset(home, utc_now() + timedelta(seconds=1))
    after = read_agent(home)
    assert (after.num_applied, after.num_before_reset) == (31, 31)
    assert len(list(folder.glob("before_reset.*.json"))) == 2


def test_a_removed_agent_is_gone_in_one_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(ends.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        remove_files(home)
    monkeypatch.undo()
    assert agent_folders(home.parent.parent) == []
    assert len(list(home.parent.iterdir())) == 1
    finish_ends(home.parent.parent)
    assert list(home.parent.iterdir()) == []


def test_an_agent_that_somebody_leads_is_left_alone(home: Path) -> None:
    ProcessRecord.of(os.getpid()).write(home / "shard1of2" / PROCESS_FILE)
    with pytest.raises(ConflictError, match=f"process {os.getpid()} still works"):
        check_unled(home)
