"""Experiments whose trials follow a primary, and estimates of trainings that do."""

import json
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.experiments import ExperimentRequest
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.training import TrainingEstimate, TrainRequest
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from ml_workbench_service.resources import Workbench
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.workflows import run_experiment
from ml_workbench_service.workflows.plan_experiment import plan_experiment
from ml_workbench_service.workflows.plan_training import plan_training
from tests.meta_labelling.followed_bars import FOLLOW, bench_with_primary, train_follower

TREES = {**FOLLOW, "hyperparameters": {"lookback": 3, "num_iterations": 30}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """With a primary whose side pays in one regime."""
    return bench_with_primary(tmp_path_factory.mktemp("searched"), seed=3, is_planted=True)


def experiment(bench: Workbench, **space: Any) -> JobSpec:
    """The job that the API would make."""
    request = ExperimentRequest.model_validate(
        {"name": "Search", "base": {**TREES, "model_id": "searched"}, "search_space": space, "sampler": "grid"}
    )
    plan = plan_experiment(
        request, bench, max_memory_gb=16,
        plan_training=lambda each: plan_training(each, bench, unfinished=[], max_memory_gb=16),
    )  # fmt: skip
    return JobSpec(
        id="job-search", kind=JobKind.EXPERIMENT, request=request.model_dump(mode="json", exclude_unset=True),
        plan=plan.to_json(), created_at=utc_now(), correlation_id="test",
    )  # fmt: skip


def estimate(bench: Workbench, **changes: Any) -> TrainingEstimate:
    """Of a follower with these changes."""
    request = TrainRequest.model_validate({**TREES, **changes})
    return plan_training(request, bench, unfinished=[], max_memory_gb=1000).estimate


def test_trials_follow_and_the_column_that_tells_when_wins(bench: Workbench, tmp_path: Path) -> None:
    spec = experiment(bench, features={"choices": [["signal"], ["regime"]]})
    assert spec.plan["primary"]["model_id"] == "primary"
    made = run_experiment.run(spec, checkpoint=tmp_path, report=Recorder(), workbench=bench)
    trials = TrialLog(tmp_path / TRIALS_FILE).trials()
    assert [each.state for each in trials] == ["complete"] * 2, [each.message for each in trials]
    assert made["best_params"] == {"features": ["regime"]}
    assert (trials[1].value or 0) > (trials[0].value or 0) + 0.01
    card = bench.registry.card("searched", made["version"])
    assert card.primary is not None
    assert (card.primary.reads, card.target) == (("regime",), "follow_1h")
    assert (card.evaluation.skill["net_over_thinned"] or 0) > 0
    recipe = json.loads((bench.registry.folder(card.id, card.version) / "recipe.json").read_text())
    assert recipe["request"]["meta"] == FOLLOW["meta"]
    assert tuple(recipe["plan"]["primary"]["reads"]) == card.primary.reads


def test_the_winner_is_what_a_training_of_its_setting_is(bench: Workbench, tmp_path: Path) -> None:
    spec = experiment(bench, num_leaves={"choices": [4, 8]})
    made = run_experiment.run(spec, checkpoint=tmp_path, report=Recorder(), workbench=bench)
    settings = {**TREES["hyperparameters"], **made["best_params"]}
    alone = train_follower(bench, tmp_path, "alone", hyperparameters=settings)
    found = bench.registry.card("searched", made["version"])
    assert found.evaluation.test == alone.evaluation.test


def test_estimates_count_the_primarys_windows(bench: Workbench) -> None:
    """Each row of a window is asked about by a window of the primary's own."""
    plain = {**TREES, "meta": None, "target": "direction_1h", "features": ["regime", "signal"]}
    alone = plan_training(TrainRequest.model_validate(plain), bench, unfinished=[], max_memory_gb=16).estimate
    short, long = (estimate(bench, hyperparameters={"lookback": each, "num_iterations": 30}) for each in (3, 300))
    assert short.memory_gb >= alone.memory_gb - 0.01
    assert short.duration_s >= alone.duration_s
    assert long.memory_gb > short.memory_gb
    assert long.duration_s > short.duration_s
