"""Tuning: trials see nothing beyond the validation part, a kill costs only what was under way, the winner is judged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from common_lib.exceptions import DataValidationError, InsufficientMemoryError, JobCancelled, TrainingError
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.experiments import ExperimentRequest, TrialRecord
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from ml_workbench_service.learning.bundle.signatures import Signatures
from ml_workbench_service.resources import Workbench
from ml_workbench_service.search.trial import TrialEnd, TrialMaker, TrialReport
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.workflows import run_experiment as tune
from ml_workbench_service.workflows.plan_experiment import ExperimentPlan, plan_experiment
from ml_workbench_service.workflows.plan_training import plan_training
from ml_workbench_service.workflows.publishing.handed_in_versions import publish_handed_in
from tests.trained_models import InjectedBars, injected_bars, open_bench, train_model

NUM_BARS = 1500
BASE: dict[str, Any] = {
    "name": "Tuned",
    "model_type": "time_series",
    "family": "linear",
    "features": ["signal"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2020-01-01T00:00:00Z",
    "end_date": "2020-06-01T00:00:00Z",
    "hyperparameters": {"epochs": 4, "batch_size": 64, "lookback": 3},
}
RATES = {"low": 1e-4, "high": 1e-1, "log": True}
SHORT = {"end_date": "2020-03-23T00:00:00Z"}
"""Of some 1,050 bars in the training part, a few windows of 1,000 are complete and no hundred; a plan cannot know."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    opened = open_bench(folder)
    injected_bars(NUM_BARS, seed=1, r2=0.2).write(folder / "bars", "EUR/USD")
    return opened


def experiment(bench: Workbench, *, max_workers: int = 1, name: str = "tuned", **body: Any) -> JobSpec:
    """The job that the API would make."""
    base = {**BASE, "model_id": name, **body.pop("base", {})}
    whole = {"name": name, "base": base, "search_space": {"learning_rate": RATES}, "num_trials": 4, **body}
    request = ExperimentRequest.model_validate(whole)
    plan = plan_experiment(
        request,
        bench,
        plan_training=lambda each: plan_training(each, bench, unfinished=[], max_memory_gb=16),
        max_workers=max_workers,
        max_memory_gb=16,
    )
    return JobSpec(
        id=f"job-{name}", kind=JobKind.EXPERIMENT, request=request.model_dump(mode="json", exclude_unset=True),
        plan=plan.to_json(), created_at=utc_now(), correlation_id="test",
    )  # fmt: skip


def run(spec: JobSpec, bench: Workbench, checkpoint: Path, report: Recorder | None = None) -> dict[str, Any]:
    return tune.run(spec, checkpoint=checkpoint, report=report or Recorder(), workbench=bench)


def trials_in(checkpoint: Path) -> list[TrialRecord]:
    return TrialLog(checkpoint / TRIALS_FILE).trials()


def test_the_best_setting_is_trained_judged_and_published(bench: Workbench, tmp_path: Path) -> None:
    spec, report = experiment(bench, search_space={"learning_rate": RATES, "horizon": {"choices": [1, 2]}}), Recorder()
    result = run(spec, bench, tmp_path, report)
    made = trials_in(tmp_path)
    best = max(made, key=lambda each: each.value or -1)
    assert [each.state for each in made] == ["complete"] * 4
    assert (result["best_trial"], result["best_value"], result["best_params"]) == (best.number, best.value, best.params)
    assert result["importance"].keys() == {"learning_rate", "horizon"}

    card = bench.registry.card(result["model_id"], result["version"])
    assert card.lineage.job_id == spec.id
    assert card.hyperparameters["learning_rate"] == best.params["learning_rate"]
    assert card.target == f"price_change_{best.params['horizon']}h"
    recipe = json.loads((bench.registry.folder(card.id, card.version) / "recipe.json").read_text())
    assert recipe["request"]["hyperparameters"]["learning_rate"] == best.params["learning_rate"]
    assert recipe["plan"]["hyperparameters"]["learning_rate"] == best.params["learning_rate"]

    validation = card.evaluation.validation
    assert validation is not None
    assert validation.num_trials == result["validation"]["num_trials"] == 5, "and the winner's own training"
    assert result["test_looks"] == 1, "the test part was read once"

    steps = [step for step, _, _ in report.steps]
    assert steps == sorted(steps)
    assert [metrics["trial"] for _, _, metrics in report.steps[:4]] == [0, 1, 2, 3]
    assert "stop_loss" in report.steps[4][2], "the winner's epochs come after the trials"
    assert [each.curve[-1][0] for each in made] == [4] * 4
    assert all(len(each.curve) == len(each.curve_at_ms) and each.sharpe is not None for each in made)

    again = run(spec, bench, tmp_path)
    assert again == result, "a job that was killed after it had published finds what it published"
    assert trials_in(tmp_path) == made


def _altered(bars: InjectedBars, *, from_ms: int) -> InjectedBars:
    """Other prices and other signals in all bars that are known after that moment."""
    later = bars.opened_ms + 3_600_000 > from_ms
    chance = np.random.default_rng(9)
    close, signal = bars.close.copy(), bars.signal.copy()
    close[later] = 2.0 * np.exp(np.cumsum(chance.normal(0, 0.01, later.sum())))
    signal[later] = chance.normal(0, 3, later.sum())
    return InjectedBars(bars.opened_ms, close, signal, bars.r2)


@pytest.mark.parametrize(
    ("base", "params"),
    [
        ({}, {"learning_rate": 0.01, "lookback": 5}),
        ({"target": "volatility_3h", "features": ["signal", "return_1", "close"]}, {"learning_rate": 0.02}),
        ({"model_type": "classification", "family": "gru_classifier", "target": "market_regime",
          "hyperparameters": {"gru_units": 4, "epochs": 2, "lookback": 3}}, {"learning_rate": 0.01}),
        ({"model_type": "reinforcement_learning", "family": "q_learning", "target": None,
          "hyperparameters": {"epochs": 3, "lookback": 3}}, {"learning_rate": 0.1}),
    ],
    ids=["numbers", "volatility", "regimes", "policy"],
)  # fmt: skip
def test_no_trial_can_tell_what_came_after_its_stopping_part(
    base: dict[str, Any], params: dict[str, Any], tmp_path: Path
) -> None:
    bars = injected_bars(NUM_BARS, seed=2, r2=0.2)

    def made(name: str, each: InjectedBars) -> tuple[TrialEnd, int]:
        opened = open_bench(tmp_path / name)
        each.write(tmp_path / name / "bars", "EUR/USD")
        spec = experiment(
            opened, base=base, search_space={name: {"choices": [value]} for name, value in params.items()}
        )
        request = TrainRequest.model_validate(spec.request["base"])
        maker = TrialMaker(
            request, spec.plan, job_id="job", store=opened.feature_store, accelerator=Cpu(),
            open_primary=lambda plan: None,
        )  # fmt: skip
        end = maker.make(0, params, TrialReport(lambda: None, lambda step, value: ""))
        border_ms = maker.data(maker.order(params)).windows.borders_ms["calibration"]
        at = end.noted and end.noted.read.at
        return TrialEnd(end.state, end.value, end.message, end.curve, (), end.noted and end.noted.model_copy(
            update={"read": end.noted.read.model_copy(update={"at": at and at.replace(year=2020)})}
        )), border_ms  # fmt: skip

    plain, border_ms = made("plain", bars)
    assert plain.state == "complete", plain.message
    blind, _ = made("altered", _altered(bars, from_ms=border_ms))
    assert (blind.value, blind.curve) == (plain.value, plain.curve)
    assert plain.noted is not None
    assert blind.noted is not None
    assert blind.noted.daily_returns == plain.noted.daily_returns
    earlier, _ = made("earlier", _altered(bars, from_ms=border_ms - 20 * 3_600_000))
    assert earlier.value != plain.value, "and they do look at the validation part"


def test_a_trial_that_fails_is_told_and_the_search_goes_on(bench: Workbench, tmp_path: Path) -> None:
    spec = experiment(
        bench, name="partly", base=SHORT, sampler="grid", num_trials=None,
        search_space={"lookback": {"choices": [3, 1000]}},
    )  # fmt: skip
    result = run(spec, bench, tmp_path)
    states = {each.params["lookback"]: (each.state, each.message) for each in trials_in(tmp_path)}
    assert states[3][0] == "complete"
    assert states[1000][0] == "failed"
    assert "complete windows of 1000 bars" in states[1000][1]
    assert result["num_trials"] == 2


def test_an_experiment_of_failures_fails_with_the_commonest_reason(bench: Workbench, tmp_path: Path) -> None:
    spec = experiment(bench, name="hopeless", base=SHORT, num_trials=2, search_space={"lookback": {"choices": [1000]}})
    with pytest.raises(TrainingError, match=r"none of 2 trials .* complete windows of 1000 bars"):
        run(spec, bench, tmp_path)
    assert bench.registry.versions("hopeless") == []


def test_a_pruned_trial_is_finished_and_counts(bench: Workbench, tmp_path: Path) -> None:
    base = {"hyperparameters": {"epochs": 8, "batch_size": 64, "lookback": 3}}
    spec = experiment(bench, name="pruned", base=base, num_trials=10, pruner="median")
    result = run(spec, bench, tmp_path)
    made = trials_in(tmp_path)
    pruned = [each for each in made if each.state == "pruned"]
    assert pruned
    assert all(each.value is None and 3 <= len(each.curve) < 8 and "pruned" in each.message for each in pruned)
    assert result["num_trials"] == 10
    read = next(each.read for each in bench.multiple_testing.trials(_read_of(bench, spec)) if each.read.id == spec.id)
    ids = {each.read.id for each in bench.multiple_testing.trials(read)}
    assert {f"{spec.id}/{number}" for number in range(10)} <= ids


def _read_of(bench: Workbench, spec: JobSpec) -> Any:
    from ml_workbench_service.contracts.multiple_testing import PartRead

    return PartRead(id="anybody", subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=2**52, at=utc_now())


def test_time_that_is_over_ends_the_search_with_what_there_is(bench: Workbench, tmp_path: Path) -> None:
    result = run(experiment(bench, name="hasty", num_trials=50, timeout_s=1e-3), bench, tmp_path)
    assert result["num_trials"] == 1, "the first trial is waited for"


def test_a_cancellation_is_heard_within_a_trial(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(JobCancelled):
        run(experiment(bench, name="stopped"), bench, tmp_path, Recorder(cancel_at_check=20))
    (only,) = trials_in(tmp_path)
    assert only.state == "running"


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({"search_space": {"learning_rate": {"low": 0.1, "high": 5.0}}}, "search_space.learning_rate", "less than"),
        ({"search_space": {"features": {"choices": [["signal"], ["nix"]]}}}, "search_space.features.choices.1", ""),
        ({"search_space": {"lookback": {"choices": [3, 1024]}}, "base": {"end_date": "2020-02-01T00:00:00Z"}},
         "search_space.lookback.choices.1", "windows of 1024"),
        ({"base": {"family": "lineer"}}, "base.family", "did you mean linear"),
        ({"base": {"target": "price_change_0h"}}, "base.target", "one bar ahead"),
        ({"sampler": "grid"}, "search_space.learning_rate", "a grid needs"),
        ({"search_space": {"horizon": {"choices": [1, 9999]}}}, "search_space.horizon.choices.1",
         "look at most 60 bars ahead"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_starts(
    bench: Workbench, body: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(DataValidationError) as refused:
        experiment(bench, **body)
    (error,) = refused.value.details["errors"]
    assert error["path"] == f"body.{path}"
    assert words in error["message"]


def test_a_space_whose_costly_end_does_not_fit_is_refused_and_a_smaller_one_runs_side_by_side(bench: Workbench) -> None:
    request = ExperimentRequest.model_validate(
        {
            "name": "x",
            "base": {**BASE, "family": "lstm", "hyperparameters": {}},
            "search_space": {"lstm_units": {"low": 8, "high": 512}, "batch_size": {"choices": [32, 4096]}},
        }
    )

    def planned(max_memory_gb: float) -> dict[str, Any]:
        return plan_experiment(
            request, bench, max_memory_gb=max_memory_gb, max_workers=8,
            plan_training=lambda each: plan_training(each, bench, unfinished=[], max_memory_gb=max_memory_gb),
        ).to_json()  # fmt: skip

    needs_gb = planned(200)["estimate"]["memory_gb"]
    with pytest.raises(InsufficientMemoryError, match="narrow the space"):
        planned(needs_gb - 0.1)
    assert planned(needs_gb + 1)["max_parallel"] == 1
    assert planned(needs_gb * 3 + 1)["max_parallel"] == 3
    assert planned(1000)["max_parallel"] == 8
    assert planned(1000)["num_trials"] == 20


def test_trials_are_estimated_without_the_winners_folds_and_seeds(bench: Workbench) -> None:
    """A trial trains once; folds and seeds are the winner's alone."""
    plain = {"name": "x", "base": BASE, "search_space": {"learning_rate": RATES}, "num_trials": 6}
    whole = {**plain, "base": {**BASE, "seeds": [0, 1, 2], "cv": {"scheme": "walk_forward", "folds": 4}}}

    def planned(body: dict[str, Any], max_workers: int = 1) -> ExperimentPlan:
        return plan_experiment(
            ExperimentRequest.model_validate(body), bench, max_memory_gb=16, max_workers=max_workers,
            plan_training=lambda each: plan_training(each, bench, unfinished=[], max_memory_gb=16),
        )  # fmt: skip

    once, often = planned(plain), planned(whole)
    trial_s = once.details["trial_s"]
    assert often.details["trial_s"] == trial_s == once.details["estimate"]["duration_s"]
    alone_s = often.details["estimate"]["duration_s"]
    assert alone_s == pytest.approx(trial_s * (3 + 0.75 * 4), abs=0.5)
    assert often.duration_s == pytest.approx(6 * trial_s + alone_s)
    side_by_side = planned(whole, max_workers=4)
    assert side_by_side.duration_s == pytest.approx(2 * trial_s + alone_s), "four at a time, then two"
    assert planned({**whole, "timeout_s": 60.0}).duration_s <= 60.0 + alone_s


@pytest.mark.more
def test_a_killed_worker_takes_its_trials_along_and_the_next_repeats_none_that_had_ended(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    injected_bars(NUM_BARS, seed=1, r2=0.2).write(tmp_path / "bars", "EUR/USD")
    base = {"hyperparameters": {"epochs": 8, "patience": 8, "batch_size": 16, "lookback": 3}}
    spec = experiment(bench, name="killed", max_workers=2, num_trials=6, base=base)
    assert spec.plan["max_parallel"] == 2
    folder = JobStore(tmp_path / "state" / "jobs").create(spec)
    worker = _start_worker(folder, tmp_path)
    _until(lambda: sum(each.is_finished for each in folder.trials.trials()) >= 2)
    family = psutil.Process(worker.pid).children(recursive=True)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(60)
    before = folder.trials.trials()
    assert 2 <= len(before) < 6 or any(not each.is_finished for each in before)
    _until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family))

    assert _publishing_for(_start_worker(folder, tmp_path), folder, bench) == 0
    after = folder.trials.trials()
    assert [each.state for each in after] == ["complete"] * 6
    ended = [each for each in before if each.is_finished]
    assert [after[each.number] for each in ended] == ended
    assert [after[each.number].params for each in before] == [each.params for each in before]
    lines = [json.loads(line) for line in (folder.checkpoint / TRIALS_FILE).read_text().splitlines()]
    begun = [line["number"] for line in lines if line["state"] == "running"]
    assert sorted(begun) == sorted([*range(6), *(each.number for each in before if not each.is_finished)])
    result = folder.job().result
    assert result is not None
    assert bench.registry.card("killed", result["version"]).evaluation.verdict != "not_judged"


def _start_worker(folder: JobFolder, home: Path) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "FEATURE_STORE_URL": f"file://{home / 'bars'}",
        "MODEL_REGISTRY_PATH": str(home / "registry"),
        "STATE_DIR": str(home / "state"),
        "LOG_DIR": str(home / "logs"),
        "EXPERIMENT_TRACKING_URI": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    with folder.worker_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ml_workbench_service.runtime.job_worker", str(folder.path)],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _publishing_for(worker: "subprocess.Popen[bytes]", folder: JobFolder, bench: Workbench) -> int:
    """What the worker ends with while a service looks for what it hands in: alone it would wait for one."""
    service = FolderModelRegistry(
        bench.registry.root, live_version=lambda _: None, signatures=Signatures(bench.state_dir, holds_key=True)
    )

    def ended() -> bool:
        publish_handed_in(service, folder)
        return worker.poll() is not None

    _until(ended, 250)
    return worker.wait()


def _until(condition: Any, patience_s: float = 200.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_an_agent_grid_runs_every_setting_over_a_recording_and_ranks_by_mean_and_spread(
    bench: Workbench, tmp_path: Path
) -> None:
    card = train_model(bench, "recorded", checkpoint=tmp_path, **{**BASE, "name": "recorded"})
    body = {
        "name": "grid",
        "base": {
            "model_id": "recorded", "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z",
            "end_date": "2020-06-01T00:00:00Z", "seeds": [0, 1, 2],
        },
        "preset": "q_learning_grid",
    }  # fmt: skip
    request = ExperimentRequest.model_validate(body)
    plan = plan_experiment(request, bench, plan_training=None, max_memory_gb=1)  # type: ignore[arg-type]
    assert plan.num_trials == 27
    spec = JobSpec(
        id="job-grid", kind=JobKind.EXPERIMENT, request=body, plan=plan.to_json(), created_at=utc_now(),
        correlation_id="test",
    )  # fmt: skip
    result, made = run(spec, bench, tmp_path), trials_in(tmp_path)
    assert result["recorded"]["version"] == card.version
    assert set(result["recorded"]["num_by_sample"]) <= {"test", "live"}, "what taught the model is left out"
    assert len(made) == len(result["ranking"]) == 27
    assert len({repr(each.params) for each in made}) == 27
    assert result["best_value"] == max(each.value or -9 for each in made)
    assert all(each.spread is not None for each in made)
    for line in result["ranking"]:
        assert line["net"] == pytest.approx(np.mean(line["net_by_seed"]))
        assert line["spread"] == pytest.approx(np.std(line["net_by_seed"], ddof=1))
    assert result["validation"]["num_trials"] >= 27
    assert run(spec, bench, tmp_path)["ranking"] == result["ranking"]
