"""The tracker's step: a finished training, projected into MLflow's own store; killed at every line of ours."""

import os
from pathlib import Path

from chaos.kill_sweep.killing import Acknowledge
from chaos.kill_sweep.steps import MODEL, MOMENT, Step, Violations, publish, registry_of
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.workflows.mirror_to_mlflow import Projection

NUM_EPOCHS = 5
LOOKS = 20


def _projection(folder: Path) -> Projection:
    history = DeploymentHistory(folder / "registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return Projection(
        JobStore(folder / "jobs"),
        lambda: ExperimentTracker(uri, artifacts=folder / "mlartifacts"),
        registry=registry_of(folder),
        live_version=history.live_version,
        champions=folder / "champions.json",
        draw_figures=lambda *_: None,
    )


def _before(folder: Path) -> None:
    """The store with its tables, which take seconds to make, and a training that has just ended."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    _projection(folder).send_news()
    card = publish(folder, "1.0.0")
    request = {"name": "Swept", "model_type": "time_series", "features": ["macd"], "hyperparameters": {"units": 4}}
    plan = {"model_id": MODEL, "version": "1.0.0", "family": "lstm", "hyperparameters": {"units": 4}}
    spec = JobSpec(
        id="job-1-0-0", kind=JobKind.TRAIN, request=request, plan=plan, created_at=MOMENT, correlation_id="sweep"
    )
    job = JobFolder.create(folder / "jobs", spec)
    job.append("started", pid=1, attempt=1)
    for epoch in range(1, NUM_EPOCHS + 1):
        job.append("progress", step=epoch, total=NUM_EPOCHS, metrics={"loss": 1.0 / epoch})
    job.append("succeeded", result={"model_id": MODEL, "version": "1.0.0", "digest": card.digest})


def _send(folder: Path, acknowledge: Acknowledge) -> None:
    _look_till_quiet(folder)
    acknowledge("sent")


def _look_till_quiet(folder: Path) -> None:
    projection = _projection(folder)
    for _ in range(LOOKS):
        if not projection.send_news():
            return


def _after(folder: Path, acknowledged: list[str]) -> Violations:
    from mlflow import MlflowClient

    _look_till_quiet(folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)  # unsaid, the registry is the process's, not the store's
    places = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(places, filter_string="tags.job_id = 'job-1-0-0'")
    if len(runs) != 1:
        return [f"{len(runs)} runs of one job"]
    wrong = [] if runs[0].info.status == "FINISHED" else [f"the run is {runs[0].info.status}"]
    for name in [each for each in runs[0].data.metrics if "loss" in each]:
        steps = [each.step for each in client.get_metric_history(runs[0].info.run_id, name)]
        wrong += [] if sorted(steps) == sorted(set(steps)) and len(steps) == NUM_EPOCHS else [f"{name} has {steps}"]
    versions = client.search_model_versions(f"name = '{MODEL}'")
    said = {name: value for name, value in runs[0].data.tags.items() if name in ("bundle", "network", "error")}
    wrong += [] if len(versions) == 1 else [f"{len(versions)} registered versions of one; the run says {said}"]
    tracked = JobFolder(folder / "jobs" / "job-1-0-0").tracking().status
    return [*wrong, *([] if tracked == "synced" else [f"the job says {tracked}"])]


TRACKER = Step(
    _before, _send, _after,
    ("ml_workbench_service/workflows/mirror_to_mlflow.py",
     "ml_workbench_service/integrations/experiment_tracker/tracker.py"),
)  # fmt: skip
