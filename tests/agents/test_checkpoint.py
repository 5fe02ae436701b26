"""Checkpoints: continued to the bit, checked where they are read, those of the first format too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.checkpoint import FORMAT, Checkpoint
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import Decision
from tests.agents.weeks import applied, series, week_of_hours
from tests.prediction_records import prediction_record


def test_a_checkpoint_of_the_first_format_goes_on(tmp_path: Path) -> None:
    records = series(week_of_hours(), seed=8)
    agent, whole = QLearningAgent("a"), QLearningAgent("a")
    applied(agent, records[:50])
    plain = json.loads(agent.checkpoint().model_dump_json())
    for name in ("family", "model_id", "reward"):
        del plain[name]
    for name in ("num_repeated", "num_out_of_order"):
        del plain["counters"][name]
    (tmp_path / "checkpoint.json").write_text(json.dumps(plain | {"format": 1}))
    loaded = Checkpoint.load(tmp_path)
    assert loaded is not None
    continued = QLearningAgent.restored(loaded)
    assert applied(continued, records[50:], first_id=51) == applied(whole, records)[50:]
    continued.checkpoint(term=1).save(tmp_path)
    kept = tmp_path / "checkpoint.json.bak"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "checkpoint.1.json", kept]
    assert json.loads(kept.read_text())["format"] == 1, "as it was before the first write of the new form"
    continued.checkpoint(term=2).save(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "checkpoint.2.json", kept], "of the present form nothing is kept"


def test_a_checkpoint_of_a_newer_format_is_refused_with_a_sentence_and_never_called_damaged(tmp_path: Path) -> None:
    plain = json.loads(QLearningAgent("a").checkpoint().model_dump_json())
    (tmp_path / "checkpoint.7.json").write_text(json.dumps({**plain, "format": FORMAT + 1, "mode": "dreaming"}))
    with pytest.raises(DataValidationError) as caught:
        Checkpoint.load(tmp_path)
    said = caught.value.message
    assert f"is of format {FORMAT + 1}, written by a newer version" in said
    assert f"reads up to {FORMAT}; upgrade the service, or restore a backup" in said
    assert "cannot be read" not in said


def test_keys_that_nobody_knows_are_left_out_and_their_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = QLearningAgent("a")
    applied(agent, [prediction_record(0)])
    plain = json.loads(agent.checkpoint().model_dump_json())
    changed = json.loads(json.dumps(plain))
    changed["mood"] = "calm"
    changed["counters"]["num_sighs"] = 3
    next(iter(changed["lanes"].values()))["steps"][0]["slippage"] = 0.1
    text = json.dumps(changed)
    (tmp_path / "checkpoint.3.json").write_text(text)
    loaded = Checkpoint.load(tmp_path)
    assert loaded is not None
    assert json.loads(loaded.model_dump_json()) == plain
    assert "steps.0.slippage, counters.num_sighs, mood" in caplog.text
    QLearningAgent.restored(loaded).checkpoint(term=4).save(tmp_path)
    assert (tmp_path / "checkpoint.3.json.bak").read_text() == text


def test_a_checkpoint_is_checked_when_it_is_read(tmp_path: Path) -> None:
    agent = QLearningAgent("a")
    applied(agent, [prediction_record(0)])
    plain = json.loads(agent.checkpoint().model_dump_json())
    lane = next(iter(plain["lanes"].values()))
    for broken in ({"steps": [{**lane["steps"][0], "exposure": "much"}]}, {"position": None}):
        changed = {**plain, "lanes": {"live|model|EUR/USD|1h": {**lane, **broken}}}
        (tmp_path / "checkpoint.json").write_text(json.dumps(changed))
        with pytest.raises(DataValidationError, match=r"\d faults"):
            Checkpoint.load(tmp_path)


def test_a_checkpoint_continues_to_the_bit(tmp_path: Path) -> None:
    records = series(week_of_hours(), seed=6) + series(week_of_hours(), seed=7, symbol="GBP/USD")
    whole = QLearningAgent("a")
    expected = applied(whole, records)
    broken = QLearningAgent("a")
    decisions: list[Decision] = []
    for start in range(0, len(records), 37):
        decisions += applied(broken, records[start : start + 37], first_id=1 + start)
        broken.checkpoint().save(tmp_path)
        loaded = Checkpoint.load(tmp_path)
        assert loaded is not None
        broken = QLearningAgent.restored(loaded)
    assert decisions == expected
    assert broken.checkpoint().model_copy(update={"saved_at": None}) == whole.checkpoint().model_copy(
        update={"saved_at": None}
    )


def test_an_unreadable_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path) is None
    for text in ('{"format": 2}', '{"format": 0}', '{"format": "two"}', "[]", "torn{", ""):
        (tmp_path / "checkpoint.json").write_text(text)
        with pytest.raises(DataValidationError, match=r"cannot be read.*move"):
            Checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["values_SA", "visits_SA"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table[:-1],
        lambda table: [[1, 2], *table[1:]],
        lambda table: table[:1],
        lambda table: [],
        lambda table: [[None, 0, 0], *table[1:]],
    ],
)
def test_a_table_that_does_not_fit_its_bins_is_no_checkpoint(
    tmp_path: Path, name: str, spoil: Callable[[list[Any]], list[Any]]
) -> None:
    plain = json.loads(QLearningAgent("a").checkpoint().model_dump_json())
    (tmp_path / "checkpoint.1.json").write_text(json.dumps({**plain, name: spoil(plain[name])}))
    with pytest.raises(DataValidationError, match=r"cannot be read.*move"):
        Checkpoint.load(tmp_path)
