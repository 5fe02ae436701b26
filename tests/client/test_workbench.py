"""A quant's day with the client, on a real service: train, look, predict, deploy, lists, errors, both ways."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from common_lib.exceptions import (
    ConflictError,
    DataValidationError,
    JobNotFoundError,
    ModelNotFoundError,
    PlatformError,
    UnavailableError,
)
from ml_workbench_client import AsyncWorkbench, Job, Patience, Workbench
from ml_workbench_client.plans import Sync
from ml_workbench_service.contracts.jobs import JobStatus
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from tests.service_process import ServiceProcess, free_port

MODEL = "client_linear"
FEATURES = ["return_1", "rsi_14"]
LINEAR: dict[str, Any] = {
    "name": "Linear by the client",
    "model_id": MODEL,
    "model_type": "time_series",
    "family": "linear",
    "features": FEATURES,
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2024-09-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
}
WEEK: dict[str, Any] = {"start_date": "2025-02-03T00:00:00Z", "end_date": "2025-02-08T00:00:00Z"}


@pytest.fixture(scope="module")
def wb(service: ServiceProcess) -> Iterator[Workbench]:
    with Workbench(service.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def job(wb: Workbench) -> Job[Sync]:
    """A training that has ended, asked for with keyword arguments."""
    started = wb.train(**LINEAR)
    assert started.wait().status is JobStatus.SUCCEEDED
    return started


def test_a_training_goes_from_keyword_arguments_to_a_model_with_a_verdict(job: Job[Sync]) -> None:
    assert job.accepted["estimate"]["num_windows"] > 0
    assert job.result() == {"model_id": MODEL, "version": "1.0.0", "href": f"/api/v1/models/{MODEL}/versions/1.0.0"}
    assert (job.model.id, job.model.version) == (MODEL, "1.0.0")
    card = job.model.card
    assert (card.family, card.features) == ("linear", tuple(FEATURES))
    assert card.evaluation.verdict
    assert job.model.certificate == card.certificate


def test_the_contract_object_is_as_good_as_keyword_arguments(wb: Workbench, job: Job[Sync]) -> None:
    request = TrainRequest(**{**LINEAR, "model_type": ModelType.TIME_SERIES})
    with pytest.raises(DataValidationError, match="force"):
        wb.train(request)  # the same again: the service knows it as that
    other = wb.train(request, seeds=[3], name="Another seed")
    assert other.result()["version"] == "1.1.0"
    assert [card.version for card in wb.model(MODEL).versions] == ["1.1.0", "1.0.0"]


def test_events_come_each_once_and_from_any_number_on(wb: Workbench, job: Job[Sync]) -> None:
    events = list(job.events())
    assert [each.seq for each in events] == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("queued", "succeeded")
    assert list(wb.job(job.id).events(after=events[-2].seq)) == events[-1:]


def test_progress_is_shown_in_a_terminal_and_ends_with_the_job(
    job: Job[Sync], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.progress().status is JobStatus.SUCCEEDED
    assert f"{MODEL} 1.0.0 succeeded" in " ".join(capsys.readouterr().out.split())


def test_predictions_from_columns_frames_and_moments_are_the_same(wb: Workbench, job: Job[Sync]) -> None:
    model = wb.model(MODEL, "1.0.0")
    table = wb.features("EUR/USD", FEATURES, timeframe="1h", **WEEK)
    by_frame = model.predict(table.to_polars(), enqueue=None)
    assert by_frame.prediction is not None
    assert math.isfinite(by_frame.prediction)
    assert model.predict(table.to_pandas()).prediction == by_frame.prediction
    assert model.predict(table.to_arrow()).prediction == by_frame.prediction
    columns = {name: table.to_polars()[name].to_list() for name in FEATURES}
    assert model.predict(columns, symbol="EUR/USD").prediction == by_frame.prediction
    fetched = model.predict(as_of="2025-02-05T12:00:00Z")
    assert (fetched.symbol, fetched.timeframe, fetched.version) == ("EUR/USD", "1h", "1.0.0")


def test_a_bad_item_of_a_batch_fails_alone(wb: Workbench, job: Job[Sync]) -> None:
    good: dict[str, list[float]] = {name: [0.5] * 30 for name in FEATURES}
    answers = wb.model(MODEL).predict_batch([good, {"unknown": [1.0]}, {"inputs": good}])
    assert isinstance(answers[0], PredictionRecord)
    assert isinstance(answers[1], DataValidationError)
    assert isinstance(answers[2], PredictionRecord)


def test_a_version_is_deployed_listed_and_rolled_back(wb: Workbench, job: Job[Sync]) -> None:
    deployment = wb.model(MODEL, "1.0.0").deploy(reason="by the client", monitoring_level="high")
    assert (deployment.status, deployment.version, deployment.deployment_target) == ("live", "1.0.0", "local")
    assert wb.model(MODEL).predict(as_of="2025-02-05T12:00:00Z").role == "champion"
    assert [each.id for each in wb.deployments(model_id=MODEL, status="live")] == [deployment.id]
    assert wb.deployment(deployment.id).state == deployment
    assert MODEL in [each.id for each in wb.models(status="deployed", model_type="time_series")]
    with pytest.raises(ConflictError):
        wb.model(MODEL, "1.0.0").archive()
    with pytest.raises(ConflictError):
        wb.model(MODEL, "1.0.0").deploy(expected_current="9.9.9")
    assert wb.model(MODEL).monitoring().model_id == MODEL


def test_lists_are_followed_over_their_pages(wb: Workbench, job: Job[Sync]) -> None:
    every = wb.jobs().all()
    assert len(every) >= 3
    assert [each.id for each in wb.jobs(limit=2)] == [each.id for each in every[:2]]
    assert wb.jobs().first(1) == every[:1]
    listing = wb.jobs()
    one_by_one = [page for cursor in [None] for page in listing._carrier.run(listing._page(cursor, 1))]
    assert len(one_by_one[0]) == 1
    assert one_by_one[1]
    assert every.to_polars().shape[0] == len(every)


def test_the_service_shows_everything_else(wb: Workbench, job: Job[Sync]) -> None:
    assert wb.health == {"status": "healthy", "version": wb.live["version"]}
    assert set(wb.ready["things"]) >= {"feature_store", "redis", "agent"}
    assert "ml_workbench_" in wb.metrics
    assert wb.queue.balance == 0
    assert "default" in [each.id for each in wb.agents()]
    assert wb.agent().state.family == "q_learning"
    assert wb.data.series
    assert {each.model_type for each in wb.model_types.model_types} == {each.value for each in ModelType}
    assert "rsi_{period}" in {each.name for each in wb.feature_names}
    assert wb.faults.faults
    assert list(wb.dead_letters()) == []
    assert {each.kind.value for each in [*wb.replays(), *wb.resilience()]} <= {"replay", "resilience"}
    assert all(each.num_trials for each in wb.experiments())
    labels = wb.labels("EUR/USD", "price_change_1h", **WEEK)
    assert len(labels.labels) == len(labels.timestamps) > 0
    both = wb.features(["EUR/USD", "GBP/USD"], timeframe="1h", **WEEK).to_polars()
    assert set(both["symbol"].unique()) == {"EUR/USD", "GBP/USD"}


def test_a_replay_is_a_job_whose_result_counts(wb: Workbench, job: Job[Sync]) -> None:
    result = wb.replay(model_id=MODEL, symbols=["EUR/USD"], **WEEK).result()
    assert result["num_published"] == result["num_bars"] > 0
    agent = wb.agent()
    decided = agent.decisions(symbol="EUR/USD", from_=WEEK["start_date"]).to_polars()
    assert {MODEL} <= set(decided["model_id"])
    assert len(agent.decisions(limit=3).to_polars()) == 3
    table = agent.q_table().to_polars()
    assert table["visits"].sum() == agent.state.num_settled
    assert {each["name"] for each in agent.figures()["figures"]} == {"agent_reward", "q_table"}
    assert "Q table" in repr(agent.figure("q_table"))


def test_errors_are_the_services_own_with_details_and_correlation_id(wb: Workbench) -> None:
    with pytest.raises(ModelNotFoundError) as missing:
        _ = wb.model("no_such_model").card
    assert missing.value.correlation_id
    assert missing.value.correlation_id in missing.value.__notes__[0]
    with pytest.raises(JobNotFoundError):
        list(wb.job("no_such_job").events())
    with pytest.raises(DataValidationError) as misspelt:
        wb.train(**{**LINEAR, "featurs": FEATURES})
    assert any("did you mean features" in each["message"] for each in misspelt.value.details["errors"])
    with pytest.raises(DataValidationError, match="finite"):
        wb.model(MODEL).predict({"return_1": [math.nan]})
    with pytest.raises(DataValidationError, match="name it"):
        wb.model(MODEL).archive()


def test_a_failed_job_raises_the_workers_error(wb: Workbench, job: Job[Sync]) -> None:
    cancelled = wb.train(**{**LINEAR, "model_id": "client_cancelled", "seeds": list(range(20))})
    cancelled.cancel()
    cancelled.cancel()
    state = cancelled.wait(timeout_s=120)
    assert state.status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED)
    if state.status is JobStatus.CANCELLED:
        with pytest.raises(PlatformError, match="cancelled"):
            cancelled.result()


def test_nobody_at_the_address_is_an_error_that_names_the_next_step() -> None:
    alone = Workbench(f"http://127.0.0.1:{free_port()}", patience=Patience(num_retries=1, first_s=0.01))
    with pytest.raises(UnavailableError, match="make serve"):
        _ = alone.health


async def test_the_async_client_is_the_same_awaited(service: ServiceProcess, job: Job[Sync]) -> None:
    async with AsyncWorkbench(service.url) as awb:
        assert (await awb.health)["status"] == "healthy"
        same = awb.job(job.id)
        assert [each.seq async for each in same.events()] == [each.seq for each in job.events()]
        assert (await same.result()) == job.result()
        model = await same.model
        assert (await model.card).digest == job.model.card.digest
        assert MODEL in [each.id async for each in awb.models()]
        record = await model.predict(as_of="2025-02-05T12:00:00Z")
        assert record.prediction == job.model.predict(as_of="2025-02-05T12:00:00Z").prediction
        with pytest.raises(ModelNotFoundError):
            await awb.model("no_such_model").card
        with pytest.raises(TypeError, match="async for"):
            list(awb.models())
