"""`/experiments`: searches over settings, their trials, and what came of them. An experiment is a job of that kind."""

import asyncio
from functools import partial
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Body, Response

from common_lib.exceptions import JobNotFoundError
from ml_workbench_service.api.app_state import AppState, AppStateDep, IdempotencyDep
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.pages import Cursor, Limit
from ml_workbench_service.api.submission import accepted_once, submit_once
from ml_workbench_service.api.tables.answering import AskedTable, answer_rows, table_of
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.experiments import (
    Experiment,
    ExperimentList,
    ExperimentRequest,
    ExperimentSummary,
    ExperimentTrial,
    TrialRecord,
)
from ml_workbench_service.contracts.jobs import Job, JobAccepted, JobKind
from ml_workbench_service.contracts.series import TrialTable, columns_of
from ml_workbench_service.contracts.tables import ROWS
from ml_workbench_service.contracts.training import SEED_EXAMPLE
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.workflows.plan_experiment import ExperimentPlan, plan_experiment
from ml_workbench_service.workflows.plan_training import check_length, plan_training

router = APIRouter(prefix="/experiments", tags=["experiments"])
_told_before: WeakKeyDictionary[JobFolder, tuple[Job, ExperimentSummary]] = WeakKeyDictionary()
EXAMPLE: dict[str, Any] = {
    "name": "LSTM, units and learning rate",
    "base": SEED_EXAMPLE,
    "search_space": {
        "lstm_units": {"choices": [16, 32, 64]},
        "learning_rate": {"low": 0.0003, "high": 0.01, "log": True},
        "lookback": {"low": 8, "high": 48, "step": 8},
    },
    "num_trials": 27,
    "pruner": "median",
}
CUT_SHORT = "the experiment ended before this trial did"


@router.post(
    "",
    status_code=202,
    summary="Start an experiment",
    responses=failures(409, 413, 415, 503, 507),
    response_model_exclude_unset=True,
)
async def start_experiment(
    body: Annotated[ExperimentRequest, Body(examples=[EXAMPLE])],
    service: AppStateDep,
    response: Response,
    key: IdempotencyDep,
    caller: CallerDep,
) -> JobAccepted:
    """Accepts a search and answers at once. Trials are scored on the validation part; the winner is evaluated on the
    test part, once, and published."""
    spec = await submit_once(JobKind.EXPERIMENT, partial(_plan, body, service), service, response, caller.client, key)
    told = {"experiment_id": spec.id, "num_trials": spec.plan["num_trials"]}
    return accepted_once(spec, response, location=f"/api/v1/experiments/{spec.id}", **told)


@router.get("", summary="List the experiments", responses=failures())
async def list_experiments(service: AppStateDep, limit: Limit = 50, cursor: Cursor = None) -> ExperimentList:
    """Newest first."""
    return await asyncio.to_thread(_list, service, limit, cursor)


@router.get("/{experiment_id}", summary="Show an experiment", responses=failures(404))
async def show_experiment(experiment_id: JobIdPath, service: AppStateDep) -> Experiment:
    """Every trial with its parameters, score and curve; what mattered; the winner's model once it is evaluated."""
    return await asyncio.to_thread(experiment_shown, service, experiment_id)


@router.get(
    "/{experiment_id}/trials",
    summary="Read an experiment's trials",
    response_class=Response,
    responses={**table_of(TrialTable), **failures(404, 406, 503)},
)
async def read_trials(experiment_id: JobIdPath, service: AppStateDep, asked: AskedTable) -> Response:
    """Every trial so far as a row: its parameters in columns `params.<name>`, score, Sharpe ratio, times and run."""
    found = await asyncio.to_thread(experiment_shown, service, experiment_id)
    rows = [trial_row(each) for each in found.trials]
    about = {"experiment_id": experiment_id, "warnings": []}
    return await answer_rows(service.tables, "trial", rows, asked, about=about, name=f"{experiment_id}-trials")


def trial_row(trial: ExperimentTrial) -> dict[str, Any]:
    """Its columns, a hyper-parameter as `params.<name>`."""
    plain = {each.name: getattr(trial, each.name) for each in columns_of(ROWS["trial"])}
    return plain | {f"params.{name}": value for name, value in trial.params.items()}


def _plan(body: ExperimentRequest, service: AppState) -> ExperimentPlan:
    unfinished = [folder.spec for folder in service.store.unfinished()]
    plan = plan_experiment(
        body,
        service.workbench,
        plan_training=lambda request: plan_training(  # a search on the same bars is no repetition
            request.model_copy(update={"force": True}),
            service.workbench,
            unfinished=unfinished,
            max_memory_gb=service.max_memory_gb,
        ),
        max_workers=service.max_workers,
        max_memory_gb=service.max_memory_gb,
    )
    check_length(plan.duration_s, max_hours=service.max_job_hours)
    return plan


def _list(service: AppState, limit: int, cursor: str | None) -> ExperimentList:
    jobs = service.store.page(kind=JobKind.EXPERIMENT, limit=limit, cursor=cursor)
    lines = [_summary(service.store.listed(job.id), job) for job in jobs.jobs]
    return ExperimentList(experiments=tuple(lines), next_cursor=jobs.next_cursor)


def _summary(folder: JobFolder, job: Job) -> ExperimentSummary:
    """Its line; of one that has ended the same until its job says something new, which trials no longer do."""
    told = _told_before.get(folder)
    if told is not None and told[0] is job:
        return told[1]
    line = _line(folder, job)
    if job.status.is_final:
        _told_before[folder] = job, line
    return line


def _line(folder: JobFolder, job: Job) -> ExperimentSummary:
    trials = folder.trials.trials()
    best = _best(trials, job)
    return ExperimentSummary(
        id=job.id,
        name=str(job.request["name"]),
        status=job.status,
        created_at=job.created_at,
        num_trials=folder.spec.plan["num_trials"],
        num_finished=sum(each.is_finished for each in trials),
        best_value=None if best is None else best.value,
        result=_told(job),
    )


def experiment_shown(service: AppState, experiment_id: str) -> Experiment:
    """As `GET /experiments/{id}` answers; raises JobNotFoundError."""
    folder = service.store.folder(experiment_id)
    if folder.spec.kind is not JobKind.EXPERIMENT:
        raise JobNotFoundError(f"{experiment_id} is no experiment; list them at /api/v1/experiments")
    job, runs = folder.job(), folder.tracking().trial_runs
    records = folder.trials.trials()
    shown = partial(_trial, job=job, runs=runs)
    best = _best(records, job)
    result = job.result or {}
    validation = result.get("validation") or {}
    return Experiment(
        id=job.id,
        name=str(job.request["name"]),
        status=job.status,
        job_href=f"/api/v1/jobs/{job.id}",
        created_at=job.created_at,
        finished_at=job.finished_at,
        sampler=job.request.get("sampler", "grid" if "recorded" in folder.spec.plan else "tpe"),
        num_trials=folder.spec.plan["num_trials"],
        objective=folder.spec.plan["objective"],
        trials=tuple(map(shown, records)),
        best_trial=None if best is None else shown(best),
        importance=result.get("importance", {}),
        num_trials_ever=validation.get("num_trials"),
        deflated_sharpe=validation.get("deflated_sharpe"),
        probability_of_backtest_overfitting=validation.get("probability_of_backtest_overfitting"),
        test_looks=result.get("test_looks"),
        result=_told(job),
        error=job.error,
        tracking=job.tracking,
    )


def _trial(record: TrialRecord, *, job: Job, runs: dict[int, str]) -> ExperimentTrial:
    """As it is listed; nothing runs any more once the job has ended."""
    if not record.is_finished and job.status.is_final:
        record = record.model_copy(update={"state": "failed", "message": CUT_SHORT, "finished_at": job.finished_at})
    return record.shown(run_id=runs.get(record.number))


def _best(records: list[TrialRecord], job: Job) -> TrialRecord | None:
    """The winner once there is one, till then the best so far."""
    chosen = (job.result or {}).get("best_trial")
    if chosen is not None:
        return next((each for each in records if each.number == chosen), None)
    complete = [each for each in records if each.state == "complete" and each.value is not None]
    return max(complete, key=lambda each: (each.value or 0.0, -each.number), default=None)


def _told(job: Job) -> dict[str, Any] | None:
    """The result without what stands beside it."""
    if job.result is None:
        return None
    return {name: value for name, value in job.result.items() if name not in ("importance", "validation")}
