"""Tracking of experiments: their trials as nested runs, each once, and the winner's model on the parent."""

from datetime import timedelta
from typing import Any

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker
from ml_workbench_service.jobs.job import JobFolder
from tests.integrations.mlflow_server import MlflowServer
from tests.integrations.model_cards import MOMENT
from tests.workflows.test_mirror_to_mlflow import House, runs_of
from tests.workflows.test_mirror_to_mlflow import client as client
from tests.workflows.test_mirror_to_mlflow import house as house
from tests.workflows.test_mirror_to_mlflow import server as server


def finished_trial(number: int, state: str = "complete") -> TrialRecord:
    value = 0.1 * (number + 1) if state == "complete" else None
    return TrialRecord(
        number=number, state=state, params={"learning_rate": 0.01 * (number + 1), "features": ["a", "b"]}, value=value,
        sharpe=1.5, curve=((1, 0.01), (2, 0.02)), curve_at_ms=(to_ms(MOMENT) + 1000, to_ms(MOMENT) + 2000),
        started_at=MOMENT, finished_at=MOMENT + timedelta(seconds=3),
    )  # fmt: skip


def an_experiment(house: House) -> JobFolder:
    folder = house.train(kind=JobKind.EXPERIMENT)
    folder.checkpoint.mkdir()
    folder.append("started", pid=1, attempt=1)
    for number, state in enumerate(("complete", "pruned")):
        folder.trials.append(finished_trial(number, state))
        folder.append("progress", step=number + 1, total=3, metrics={"trial": number, "best_value": 0.1})
    return folder


def nested_runs(client: Any, parent: Any) -> dict[int, Any]:
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len({run.data.tags["trial"] for run in found}) == len(found), "each trial once"
    return {int(run.data.tags["trial"]): run for run in found}


def test_an_experiment_is_a_run_with_its_trials_nested_and_its_winners_model(
    house: House, server: MlflowServer, client: Any
) -> None:
    folder = an_experiment(house)
    projection = house.projection(lambda: ExperimentTracker(server.url))
    assert projection.send_news() is True
    (parent,) = runs_of(client, folder)
    assert parent.info.run_name == "LSTM"
    nested = nested_runs(client, parent)
    assert {number: run.info.status for number, run in nested.items()} == {0: "FINISHED", 1: "KILLED"}
    assert nested[0].data.params == {"learning_rate": "0.01", "features": "a, b"}
    assert nested[0].data.metrics == {"score": 0.02, "value": 0.1, "sharpe": 1.5}
    history = client.get_metric_history(nested[0].info.run_id, "score")
    assert [(each.step, each.timestamp) for each in history] == [
        (1, to_ms(MOMENT) + 1000),
        (2, to_ms(MOMENT) + 2000),
    ]
    assert (nested[0].info.start_time, nested[0].info.end_time) == (to_ms(MOMENT), to_ms(MOMENT) + 3000)

    folder.trials.append(TrialRecord(number=2, state="running", params={"learning_rate": 0.5}, started_at=MOMENT))
    house.publish(folder)
    assert projection.send_news() is False
    nested = nested_runs(client, parent)
    assert nested[2].info.status == "KILLED", "nothing runs on after the job"
    record = folder.tracking()
    assert record.trial_runs == {number: run.info.run_id for number, run in nested.items()}
    assert record.status == "synced"
    (version,) = client.search_model_versions(f"name = '{house.model_id}'")
    assert version.run_id == parent.info.run_id


def test_trials_that_were_sent_before_a_crash_are_not_sent_twice(
    house: House, server: MlflowServer, client: Any
) -> None:
    folder = an_experiment(house)
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    sent = folder.tracking()
    folder.write_tracking(sent.model_copy(update={"trial_runs": {}, "last_seq": 0}))  # as of a crash before the note
    folder.append("failed", error_type="E", error_code="C", message="m", details={})
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False
    (parent,) = runs_of(client, folder)
    assert parent.info.status == "FAILED"
    nested = nested_runs(client, parent)
    assert folder.tracking().trial_runs == sent.trial_runs
    assert len(client.get_metric_history(nested[0].info.run_id, "score")) == 2


def test_an_agent_grid_publishes_no_model_and_its_run_ends_all_the_same(
    house: House, server: MlflowServer, client: Any
) -> None:
    folder = house.train(kind=JobKind.EXPERIMENT, plan={"recorded": {"model_id": "m", "version": "1.0.0"}})
    folder.append("succeeded", result={"best_trial": 0, "best_value": 0.5})
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False
    (run,) = runs_of(client, folder)
    assert run.info.status == "FINISHED"
