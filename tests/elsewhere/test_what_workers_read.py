"""Bars, columns' witnesses and the multiple-testing log over HTTP: the same answers as beside the control plane."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.elsewhere.log_questions import answered
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import recomputing
from ml_workbench_service.contracts.multiple_testing import EvaluationResult, PartRead, Trial
from ml_workbench_service.contracts.work_elsewhere import LogQuestion
from ml_workbench_service.elsewhere.bars_wire import bars_of_arrow, bars_to_arrow
from ml_workbench_service.elsewhere.connection import JobConnection, connected
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE, URL_VARIABLE, attempt_environment
from ml_workbench_service.elsewhere.market import open_store
from ml_workbench_service.elsewhere.multiple_testing import MultipleTestingElsewhere
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint
from ml_workbench_service.resources import open_feature_store
from tests.elsewhere.control_plane import ControlPlane
from tests.jobs.conftest import make_spec as make_spec

ASKED: dict[str, Any] = {
    "symbols": ["EUR/USD", "USD/JPY"], "timeframe": "1d", "start_ms": None, "end_ms": None,
    "features": ["close", "rsi_14", "bb_width", "zscore(close, 50)"],
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> SqliteMultipleTestingLog:
    return SqliteMultipleTestingLog(tmp_path / "ledgers.db")


@pytest.fixture
def connection(tmp_path: Path, make_spec: Any, log: SqliteMultipleTestingLog) -> Iterator[JobConnection]:
    store = JobStore(tmp_path / "jobs")
    folder = store.create(make_spec())
    workbench = SimpleNamespace(feature_store=open_feature_store("embedded"), multiple_testing=log)
    with ControlPlane(store, workbench) as control:
        given = attempt_environment(folder, control_url=control.url)
        with connected(given[URL_VARIABLE], given[TOKEN_VARIABLE]) as opened:
            yield opened


def test_bars_come_over_the_wire_to_the_bit() -> None:
    bars = SampleRates().bars("EUR/USD", "1h")
    again = bars_of_arrow(bars_to_arrow(bars))
    for each in fields(bars):
        one, other = getattr(bars, each.name), getattr(again, each.name)
        if each.name == "extra":
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
        elif isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), each.name
            assert one.dtype == other.dtype
        else:
            assert one == other, each.name


def test_features_are_made_there_from_the_same_bars(connection: JobConnection) -> None:
    here, there = open_feature_store("embedded"), open_store(connection)
    assert recomputing(there) is not None, "a certificate makes them again"
    assert there.now_ms() == here.now_ms()
    for one, other in zip(here.fetch(**ASKED), there.fetch(**ASKED), strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name in one.columns:
            assert np.array_equal(one.columns[name], other.columns[name], equal_nan=True), name
        assert (one.symbol, one.calendar, one.fill, one.data_source) == (
            other.symbol, other.calendar, other.fill, other.data_source,
        )  # fmt: skip
    with pytest.raises(DataValidationError) as refused:
        there.fetch(**{**ASKED, "symbols": ["EUR/XXX"]})
    with pytest.raises(DataValidationError) as as_here:
        here.fetch(**{**ASKED, "symbols": ["EUR/XXX"]})
    assert refused.value.message == as_here.value.message


def test_evaluations_and_trials_are_the_control_planes(
    connection: JobConnection, log: SqliteMultipleTestingLog
) -> None:
    there, job_id = MultipleTestingElsewhere(connection), connection.job_id
    read = PartRead(id=job_id, subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=10, at=utc_now(), model_id="m")
    times = np.arange(400, dtype=np.int64) * 86_400_000 + 1
    series = [ReturnFingerprint.of("EUR/USD", times, 1 + 0.1 * np.sin(np.arange(400.0)))]
    assert there.record_evaluation(read, recipe="r", series=series) == 1
    assert there.record_evaluation(read, recipe="r", series=series) == 1, "said twice is said once"
    result = EvaluationResult(1 / 3, 0, 10, "own", bytes(range(256)))
    there.record_result(job_id, result)
    assert list(there.results("r")) == list(log.results("r")) == [result]
    other = read.model_copy(update={"id": "another"})
    log.record_evaluation(other, recipe="q", series=series)
    assert list(there.other_p_values(job_id)) == list(log.other_p_values(job_id)) == [None]
    assert there.num_evaluations(read) == log.num_evaluations(read) == 2
    trial = Trial(
        read=read.model_copy(update={"id": f"{job_id}/trial-1"}), sharpe=0.1 + 0.2, daily_returns={"2024-01-01": 1 / 7}
    )
    there.record_trial(trial)
    assert list(there.trials(read)) == list(log.trials(read))
    assert there.trials(read)[0].daily_returns == {"2024-01-01": 1 / 7}
    with pytest.raises(DataValidationError, match="not of job"):
        there.record_evaluation(other)


@pytest.mark.parametrize("other", ["another-job", "another-job/1", ""])
def test_a_token_notes_nothing_in_another_jobs_name(log: SqliteMultipleTestingLog, other: str) -> None:
    """Not beside a trial of its own, either."""
    own, foreign = (
        PartRead(id=each, subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=10, at=utc_now())
        for each in ("job", other)
    )
    for question in (
        LogQuestion(method="record_evaluation", read=foreign),
        LogQuestion(method="record_evaluation", read=foreign, trial=Trial(read=own)),
        LogQuestion(method="record_trial", trial=Trial(read=foreign)),
        LogQuestion(method="record_trial", read=own, trial=Trial(read=foreign)),
    ):
        with pytest.raises(DataValidationError, match="not of job"):
            answered(question, log, "job")
    assert log.num_evaluations(own) == 0
