"""`trials.jsonl` says what came of every trial, whatever was torn by a kill."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.jobs.trial_log import UNDER_WAY_FILE, TrialLog


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


def test_what_is_under_way_shows_its_curve_until_it_has_ended_or_begun_again(path: Path) -> None:
    log, reader = TrialLog(path), TrialLog(path)
    begun = running(1).model_copy(update={"started_at": datetime(2026, 1, 1, tzinfo=UTC)})
    log.append(complete(0, 0.5))
    log.append(begun)
    for curve in (((1, 0.1),), ((1, 0.1), (2, 0.2))):
        log.sketch([begun.model_copy(update={"curve": curve})])
        assert [each.curve for each in reader.trials()] == [complete(0, 0.5).curve, curve]
    again = begun.model_copy(update={"started_at": datetime(2026, 1, 2, tzinfo=UTC)})
    log.append(again)
    assert reader.trials()[1] == again, "a trial that was killed begins anew"
    log.sketch([again.model_copy(update={"curve": ((1, 0.3),)})])
    log.append(complete(1, 0.7))
    assert reader.trials()[1] == complete(1, 0.7)


def test_a_disk_that_takes_no_sketch_costs_the_view_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = TrialLog(path)
    log.append(running(0))
    path.with_name(f".{UNDER_WAY_FILE}").mkdir()
    log.sketch([running(0)])
    assert "were not written" in caplog.text
    assert log.trials() == [running(0)]
