"""Training workflow: fetch → label → split → certify → train → measure → publish. One straight line, in a job's
worker."""

from pathlib import Path
from typing import Any

from ml_workbench_service import accelerators
from ml_workbench_service import families as families  # loading the packages registers every family and task
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.interfaces.dataset import TrainingOrder, assemble, fetch
from ml_workbench_service.resources import Workbench
from ml_workbench_service.training import tasks as tasks
from ml_workbench_service.training.pipeline import TrainingDependencies, produce
from ml_workbench_service.training.primaries import opened_primary


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """Trains and publishes the version that the API reserved in `spec.plan`; the job's result.

    Raises:
        DataValidationError: the data are too short or unusable.
        TrainingError: the training went wrong.
        JobCancelled: somebody asked for it.
    """
    model_id, version = spec.plan["model_id"], spec.plan["version"]
    result = {"model_id": model_id, "version": version, "href": f"/api/v1/models/{model_id}/versions/{version}"}
    if workbench.registry.published_by(spec.id, model_id, version) is not None:
        return result
    store = workbench.feature_store
    order = TrainingOrder.of(
        TrainRequest.model_validate(spec.request), spec.plan, job_id=spec.id, store=store,
        primary=opened_primary(spec.plan, workbench.registry),
    )  # fmt: skip
    report.say("fetching features")
    tables = fetch(order, store)
    report.say("cutting windows")
    data = assemble(order, tables, kind_of=store.kind_of)
    dependencies = TrainingDependencies(
        store=store,
        registry=workbench.registry,
        multiple_testing=workbench.multiple_testing,
        accelerator=accelerators.choose(workbench.accelerator),
        checkpoint=checkpoint,
        report=report,
    )
    produce(order, data, spec, dependencies)
    return result
