"""`trials.jsonl` says what came of every trial, whatever was torn by a kill."""

from pathlib import Path

import pytest

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.jobs.trial_log import TrialLog


def running(number: int) -> TrialRecord:
    return TrialRecord(number=number, state="running", params={"units": number})


def complete(number: int, value: float) -> TrialRecord:
    return running(number).model_copy(update={"state": "complete", "value": value, "curve": ((1, 0.5), (2, value))})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trials.jsonl"


def test_the_last_line_of_a_trial_counts(path: Path) -> None:
    log, reader = TrialLog(path), TrialLog(path)
    assert reader.trials() == []
    log.append(running(0))
    log.append(running(1))
    assert reader.trials() == [running(0), running(1)]
    log.append(complete(1, 0.25))
    log.append(complete(0, 0.1 + 0.2))
    assert reader.trials() == [complete(0, 0.1 + 0.2), complete(1, 0.25)]
    assert TrialLog(path).trials() == reader.trials()


def test_a_torn_line_is_skipped_and_the_next_writer_begins_a_new_one(path: Path) -> None:
    TrialLog(path).append(complete(0, 1.0))
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        reader = TrialLog(path)
        assert reader.trials() == [complete(0, 1.0)]
        TrialLog(path).append(running(2))
        assert [each.number for each in reader.trials()] == [0, 2]
        assert [each.number for each in TrialLog(path).trials()] == [0, 2]
