"""Hyper-parameter search: trials on the validation part, then the best setting trained and measured on the test part.

Law: a trial is in `trials.jsonl` with all that came of it, and in the ledger, before the job's log tells of it; a
worker that follows a killed one repeats none that has ended. Nothing that a trial is given was known after its
validation part. The test part is read once, by the winner's ensemble of seeds.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from common_lib.exceptions import TrainingError, UnavailableError
from ml_workbench_service import accelerators
from ml_workbench_service import families as families  # loading the packages registers every family and task
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.experiments import ExperimentRequest, RecordingRequest, TrialRecord
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import AGENT_TRIAL, PartRead, Trial, subject_of
from ml_workbench_service.contracts.recordings import Recording
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from ml_workbench_service.learning.interfaces.family import family_for
from ml_workbench_service.market.performance import annual, validation_report
from ml_workbench_service.reinforcement.agent_sweep import Q_LEARNING_GRID, GridRow, grid_settings, run_grid
from ml_workbench_service.resources import Workbench, open_for_worker
from ml_workbench_service.search.space import dimensions, trial_request
from ml_workbench_service.search.study import Search, SearchStrategy
from ml_workbench_service.search.trial import TrialMaker
from ml_workbench_service.search.trial_runner import TrialRunner, in_pool, in_turn, side_by_side
from ml_workbench_service.search.worker_pool import OpenMaker
from ml_workbench_service.settings import Settings
from ml_workbench_service.training import tasks as tasks
from ml_workbench_service.training.pipeline import TrainingDependencies, produce
from ml_workbench_service.training.primaries import opened_primary

BYTES_PER_GB = 1_000_000_000


def run(
    spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench, open_maker: OpenMaker | None = None
) -> dict[str, Any]:
    """Searches, then trains, measures and publishes the winner; the job's result.

    Args:
        spec: the job's.
        checkpoint: its folder.
        report: hears how it goes.
        workbench: what it works with.
        open_maker: how processes of parallel trials open the same; None: by the addresses in the environment.

    Raises:
        DataValidationError: the data are too short or unusable.
        TrainingError: no trial came to an end, or the winner's training went wrong.
        JobCancelled: somebody asked for it.
    """
    request = ExperimentRequest.model_validate(spec.request)
    log = workbench.open_trials(checkpoint / TRIALS_FILE)
    if isinstance(request.base, RecordingRequest):
        return _agent_grid(spec, request, request.base, log=log, report=report, workbench=workbench)
    base = request.base
    family = family_for(base.model_type, base.family)
    strategy = SearchStrategy(
        num_trials=int(spec.plan["num_trials"]),
        sampler=request.sampler,
        pruner=request.pruner,
        seed=request.seed,
        most_steps=int(spec.plan.get("most_steps", 100)),
        num_parallel=int(spec.plan.get("max_parallel", 1)),
    )
    varied = dimensions(request.search_space, base, family.Hyperparameters)
    search = Search(varied, strategy, before=log.trials())
    runner = TrialRunner(
        search,
        note=log.append,
        sketch=log.sketch,
        multiple_testing=workbench.multiple_testing,
        report=report,
        timeout_s=request.timeout_s,
    )
    report.say("searching")
    maker = _maker(spec, base, workbench)
    open_maker = open_maker or OpenMaker(f"{__name__}:opened", spec.model_dump(mode="json"))
    if workbench.trial_engine == "ray":
        _on_ray(spec, runner, open_maker, workbench)
    elif strategy.num_parallel > 1:
        side_by_side(runner, open_maker)
    else:
        in_turn(runner, maker)
    best = search.best
    if best is None:
        raise _nothing_worked(search)
    published = workbench.registry.published_by(spec.id, spec.plan["model_id"], spec.plan["version"])
    card = published or _winner(spec, base, best, maker, checkpoint, report, workbench)
    return _result(spec, search, best, card)


def _on_ray(spec: JobSpec, runner: TrialRunner, open_maker: OpenMaker, workbench: Workbench) -> None:
    """Every trial a task of the cluster; each has the CPUs of this worker, and its own memory by the estimate."""
    try:
        from ml_workbench_service.search.ray_pool import RayPool, TrialResources
    except ImportError as error:
        if error.name != "ray":
            raise
        raise UnavailableError(
            "this worker has no ray, by which its trials are made: install the extra `ray` "
            "(pip install 'ml-workbench-service[ray]') in the environment of the cluster's nodes"
        ) from error
    import torch

    told = {name: os.environ[name] for name in (TOKEN_VARIABLE,) if name in os.environ}  # this attempt's, exchanged
    memory_gb = float(spec.plan.get("estimate", {}).get("memory_gb", 0.0))
    resources = TrialResources(torch.get_num_threads(), workbench.trial_gpus, int(memory_gb * BYTES_PER_GB))
    num_parallel = runner.search.strategy.num_parallel
    with RayPool(num_parallel, open_maker, resources, environment=told, warn=runner.report.warn) as pool:
        in_pool(runner, pool)


class LaterReport:
    """The winner's training as the last steps of the experiment."""

    def __init__(self, report: Report, *, offset: int) -> None:
        self._report = report
        self._offset = offset
        self.say, self.warn, self.check = report.say, report.warn, report.check

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Records a step after all the trials'."""
        self._report(self._offset + step, self._offset + total, **metrics)


def _agent_grid(
    spec: JobSpec,
    request: ExperimentRequest,
    base: RecordingRequest,
    *,
    log: TrialLog,
    report: Report,
    workbench: Workbench,
) -> dict[str, Any]:
    """Records the past of one version, then runs every setting of the agent over it; a trial is a setting.

    A trial's value is its mean over the seeds and its spread their standard deviation.
    """
    from ml_workbench_service.agents.q_table import StateBins
    from ml_workbench_service.serving.backfill import fetch_past, record
    from ml_workbench_service.serving.model import load_model

    model_id, version = spec.plan["recorded"]["model_id"], spec.plan["recorded"]["version"]
    card = workbench.registry.card(model_id, version)
    model = load_model(workbench.registry.folder(model_id, version), card)
    start_ms, end_ms = to_ms(base.start_date), to_ms(base.end_date)
    report.say("fetching features")
    tables = fetch_past(model, workbench.feature_store, symbols=base.symbols, start_ms=start_ms, end_ms=end_ms)
    report.say("recording predictions")
    recording = record(model, tables, start_ms=start_ms, allow_in_sample=base.allow_in_sample, report=report)
    choices = {name: each.choices or [] for name, each in request.search_space.items()} or Q_LEARNING_GRID
    report.say("running the grid")
    begun = utc_now()
    outcome = run_grid(
        recording,
        grid_settings(choices, fixed=base.hyperparameters),
        seeds=base.seeds,
        bins=StateBins(),
        costs=base.costs,
        report=report,
    )
    workbench.multiple_testing.record_evaluation(
        _read(spec.id, recording)
    )  # what models of these symbols are judged on is read here too
    for row in sorted(outcome.ranking, key=lambda row: row.number):
        workbench.multiple_testing.record_trial(_setting_tried(spec, row, recording))
        log.append(_setting(row, begun))
    best = outcome.best
    own = _setting_tried(spec, best, recording)
    validation = validation_report(workbench.multiple_testing.trials(own.read), own.read.id)
    return {
        "recorded": {"model_id": model_id, "version": version, "num_records": outcome.num_records,
                     "num_by_sample": dict(outcome.num_by_sample)},
        "best_trial": best.number,
        "best_value": best.net,
        "best_spread": best.spread,
        "best_params": dict(best.params),
        "num_trials": len(outcome.ranking),
        "ranking": [_ranked(row) for row in outcome.ranking],
        "importance": {},
        "validation": validation.model_dump(mode="json"),
    }  # fmt: skip


def _setting(row: GridRow, begun: datetime) -> TrialRecord:
    return TrialRecord(
        number=row.number, state="complete", params=dict(row.params), value=row.net, spread=row.spread,
        sharpe=annual(row.sharpe), started_at=begun, finished_at=utc_now(),
    )  # fmt: skip


def _setting_tried(spec: JobSpec, row: GridRow, recording: Recording) -> Trial:
    """A setting was tried on this segment of time like any other bet on it."""
    read = _read(f"{spec.id}{AGENT_TRIAL}{row.number}", recording)
    return Trial(read=read, sharpe=row.sharpe, daily_returns=dict(row.daily_returns))


def _read(name: str, recording: Recording) -> PartRead:
    start_ms, end_ms = recording.span_ms
    return PartRead(
        id=name, subject=subject_of((), is_simulated=recording.data_source == "simulated"),
        symbols=tuple(sorted(recording.symbols)), start_ms=start_ms, end_ms=end_ms, at=utc_now(),
        model_id=recording.model_id,
    )  # fmt: skip


def _ranked(row: GridRow) -> dict[str, Any]:
    """A line of the ranking without its days."""
    figures = ("number", "net", "spread", "late_net", "late_spread", "gross", "turnover", "share_in_market",
               "exploration_rate", "net_by_seed")  # fmt: skip
    return {"params": dict(row.params), **{name: getattr(row, name) for name in figures}}


def _maker(spec: JobSpec, base: TrainRequest, workbench: Workbench) -> TrialMaker:
    return TrialMaker(
        base,
        spec.plan,
        job_id=spec.id,
        store=workbench.feature_store,
        accelerator=accelerators.choose(workbench.accelerator),
        open_primary=lambda plan: opened_primary(plan, workbench.registry),
    )


@contextmanager
def opened(about: Mapping[str, Any]) -> Iterator[TrialMaker]:
    """What a process of the pool works with, from the job's spec; the environment names every address."""
    with open_for_worker(Settings()) as workbench:
        yield trial_maker(JobSpec.model_validate(about), workbench)


def trial_maker(spec: JobSpec, workbench: Workbench) -> TrialMaker:
    """What makes the trials of a search among trainings."""
    request = ExperimentRequest.model_validate(spec.request)
    assert isinstance(request.base, TrainRequest), "an agent's grid has no trials of its own"
    return _maker(spec, request.base, workbench)


def _winner(
    spec: JobSpec,
    base: TrainRequest,
    best: TrialRecord,
    maker: TrialMaker,
    checkpoint: Path,
    report: Report,
    workbench: Workbench,
) -> ModelCard:
    """Trains the best setting with every seed, measures the ensemble on the test part, publishes it."""
    report.say(f"training the best setting, trial {best.number}")
    order = maker.order(best.params)
    request = trial_request(base, best.params)
    # What is published says how this very version was made, as if it had been asked for.
    own = spec.model_copy(
        update={
            "request": request.model_dump(mode="json", exclude_unset=True),
            "plan": maker.plan(best.params) | {"hyperparameters": order.family.hyperparameters.model_dump()},
        }
    )
    folder = checkpoint / "winner"
    folder.mkdir(exist_ok=True)
    dependencies = TrainingDependencies(
        store=workbench.feature_store,
        registry=workbench.registry,
        multiple_testing=workbench.multiple_testing,
        accelerator=accelerators.choose(workbench.accelerator),
        checkpoint=folder,
        report=LaterReport(report, offset=int(spec.plan["num_trials"])),
    )
    return produce(order, maker.data(order), own, dependencies)


def _result(spec: JobSpec, search: Search, best: TrialRecord, card: ModelCard) -> dict[str, Any]:
    evaluation = card.evaluation
    validation = evaluation.validation
    return {
        "model_id": card.id,
        "version": card.version,
        "href": f"/api/v1/models/{card.id}/versions/{card.version}",
        "verdict": evaluation.verdict,
        "best_trial": best.number,
        "best_value": best.value,
        "best_params": best.params,
        "num_trials": len(search.finished),
        "importance": search.importance(),
        "validation": None if validation is None else validation.model_dump(mode="json"),
        "test_looks": None if evaluation.significance is None else evaluation.significance.looks,
    }


def _nothing_worked(search: Search) -> TrainingError:
    reasons = Counter(each.message for each in search.finished.values())
    message, count = reasons.most_common(1)[0] if reasons else ("no trial began before timeout_s was over", 0)
    return TrainingError(
        f"none of {len(search.finished)} trials came to an end; most often ({count}): {message}",
        details={"reasons": dict(reasons.most_common(5))},
    )
