"""Training workflow on bars of our own, as the service runs it: plan, workflow, published card; no short cut.

Each series has a folder of its own with bars, registry and state, so that its ledgers know one test-set evaluation
and nobody else's trials.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.experiments import ExperimentRequest
from ml_workbench_service.contracts.jobs import JobKind, JobSpec, Report, SilentReport
from ml_workbench_service.contracts.market import Witnessing
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars, folder_of_url
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.resources import Addresses, Workbench, close_workbench, open_workbench
from ml_workbench_service.search.trial import TrialMaker
from ml_workbench_service.search.worker_pool import OpenMaker
from ml_workbench_service.settings import EMBEDDED, Settings
from ml_workbench_service.workflows import run_experiment as tune
from ml_workbench_service.workflows import train
from ml_workbench_service.workflows.plan_experiment import plan_experiment
from ml_workbench_service.workflows.plan_training import TrainingPlan, plan_training
from studies.series import SYMBOL

MEMORY_GB = 16.0


class Notes(SilentReport):
    """A `Report` that keeps the best of each figure it hears; nobody cancels."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}
        self.warnings: list[str] = []
        super().__init__(warn=self.warnings.append)

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Keeps what is larger than before."""
        for name, value in metrics.items():
            self.best[name] = max(value, self.best.get(name, value))


@dataclass(frozen=True)
class Tuned:
    """What a search came to: the winner's card, the job's result, and the folder with the trials' log."""

    card: ModelCard
    result: dict[str, Any]
    folder: Path


def training_request(name: str, features: Sequence[str], **more: Any) -> dict[str, Any]:
    """The body of a training on simulated hours: one hour ahead by `linear`, unless `more` says else.

    A key that is None is left out.
    """
    body = {
        "name": name,
        "model_type": "time_series",
        "family": "linear",
        "target": "price_change_1h",
        "features": list(features),
        "symbols": [SYMBOL],
        "start_date": "2012-01-01T00:00:00Z",
        "end_date": "2016-01-01T00:00:00Z",
        "validation_split": 0.4,
        **more,
    }
    return {key: value for key, value in body.items() if value is not None}


@contextmanager
def bench_on(write: Callable[[Path], None] | None) -> Iterator[Workbench]:
    """A workbench whose state is new and goes away.

    Args:
        write: puts bars into the folder that it gets; None: the embedded sample.
    """
    root = Path(tempfile.mkdtemp(prefix="evaluate-"))
    try:
        if write is not None:
            write(root / "bars")
        with bench_at(root, EMBEDDED if write is None else f"file://{root / 'bars'}") as workbench:
            yield workbench
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def bench_at(root: Path, store: str) -> Iterator[Workbench]:
    """A workbench without Redis and tracking, on the processor, whose registry and state lie in `root`.

    Args:
        store: as FEATURE_STORE_URL names it.
    """
    settings = Settings(
        MODEL_REGISTRY_PATH=root / "registry", STATE_DIR=root / "state", ACCELERATOR="cpu", STRATEGY_ENGINE_URL=None
    )
    addresses = Addresses(
        feature_store=store, tracking="disabled", tracking_is_embedded=False, redis=None, redis_is_embedded=False
    )
    workbench = open_workbench(settings, addresses)
    try:
        yield workbench if store == EMBEDDED else replace(workbench, feature_store=_made_up(workbench, store))
    finally:
        close_workbench(workbench)


def _made_up(workbench: Workbench, store: str) -> LocalFeatureStore:
    """The folder's bars, held against no fixings: these prices are nobody's."""
    opened = workbench.feature_store
    witness = opened.witness if isinstance(opened, Witnessing) else None
    return LocalFeatureStore(FolderBars(folder_of_url(store), fixings=no_fixings), witness=witness)


def train_once(workbench: Workbench, body: dict[str, Any], *, report: Report | None = None) -> ModelCard:
    """Runs the training workflow as a job's worker does; the published card.

    Raises:
        DataValidationError, TrainingError: as the workflow does.
    """
    plan = _plan(TrainRequest.model_validate(body), workbench)
    spec = _spec(JobKind.TRAIN, body, plan.to_json())
    train.run(spec, checkpoint=_folder(workbench, spec), report=report or Notes(), workbench=workbench)
    return workbench.registry.card(plan.model_id, plan.version)


def experiment_once(workbench: Workbench, body: dict[str, Any], *, max_workers: int = 1) -> Tuned:
    """Runs the tuning workflow as a job's worker does.

    Args:
        max_workers: trials at a time; more than one are made by processes that open the same bars in the same way.

    Raises:
        DataValidationError, TrainingError: as the workflow does.
    """
    plan = plan_experiment(
        ExperimentRequest.model_validate(body),
        workbench,
        plan_training=partial(_plan, workbench=workbench),
        max_workers=max_workers,
        max_memory_gb=MEMORY_GB,
    )
    spec = _spec(JobKind.EXPERIMENT, body, plan.to_json())
    folder = _folder(workbench, spec)
    where = {"root": str(workbench.state_dir.parent), "store": workbench.addresses.feature_store}
    result = tune.run(
        spec, checkpoint=folder, report=Notes(), workbench=workbench,
        open_maker=OpenMaker(f"{__name__}:opened", {"spec": spec.model_dump(mode="json"), **where}),
    )  # fmt: skip
    return Tuned(workbench.registry.card(result["model_id"], result["version"]), result, folder)


@contextmanager
def opened(about: Mapping[str, Any]) -> Iterator[TrialMaker]:
    """What a process of parallel trials works with: the same bars, made up or not, opened as here."""
    with bench_at(Path(about["root"]), about["store"]) as workbench:
        yield tune.trial_maker(JobSpec.model_validate(about["spec"]), workbench)


def _plan(request: TrainRequest, workbench: Workbench) -> TrainingPlan:
    return plan_training(request, workbench, unfinished=[], max_memory_gb=MEMORY_GB)


def _spec(kind: JobKind, body: dict[str, Any], plan: dict[str, Any]) -> JobSpec:
    name = f"job-{plan['model_id']}-{plan['version']}"
    return JobSpec(id=name, kind=kind, request=body, plan=plan, created_at=utc_now(), correlation_id="evaluate")


def _folder(workbench: Workbench, spec: JobSpec) -> Path:
    folder = workbench.state_dir / "checkpoints" / spec.id
    folder.mkdir(parents=True)
    return folder
