"""MLflow tracking: the job folders, projected. The event logs are the truth; MLflow may be slow, down or restarted.

One look sends, for every training and experiment: the run with its parameters, each progress event's metrics with the
event's own time, an experiment's trials as nested runs as they end, and at the end the test part's metrics, the data,
the bundle, the network as an MLmodel and the registered version; then, for every model that MLflow knows, the alias
`champion` on the version that is served, and a mark on versions that were purged.
What was sent is noted in `tracking.json` afterwards, so that a crash in between sends again what then changes nothing.
"""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common_lib.exceptions import (
    BundleDamagedError,
    ModelNotFoundError,
    NotFoundError,
    PlatformError,
    PredictionError,
    UnavailableError,
    UpstreamError,
    VersionNotFoundError,
)
from ml_workbench_service.contracts.contract import iso, to_ms, utc_now
from ml_workbench_service.contracts.desk_report import DESK_FILE
from ml_workbench_service.contracts.jobs import Job, JobKind, JobStatus
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.experiment_tracker.mlflow_model import MlflowModel, why_no_network
from ml_workbench_service.integrations.experiment_tracker.tracker import (
    ExperimentTracker,
    Measurement,
    RunStatus,
    flat_params,
    points_of,
)
from ml_workbench_service.integrations.experiment_tracker.version_summary import (
    STEP,
    datasets_of,
    desk_figures_of,
    figures_of,
    legal_name,
    tags_of,
)
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.guarded_reading import guarded, json_object
from ml_workbench_service.jobs.job import TRACKED_KINDS, JobFolder, JobStore, TrackingRecord

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
MAX_REFUSALS = 5
RESOLVED = ("family", "timeframe", "hyperparameters", "model_id", "version")
PURGED_FILE = "purged_in_mlflow.json"
"""Which purged versions MLflow was told of, by model; beside the champions."""
TRIALS_A_NOTE = 20
"""Trials that are sent before what was sent is noted; a crash in between sends so many again."""
RUN_STATUS: dict[JobStatus, RunStatus] = {
    JobStatus.SUCCEEDED: "FINISHED",
    JobStatus.FAILED: "FAILED",
    JobStatus.CANCELLED: "KILLED",
}

DrawFigures = Callable[[JobFolder, ModelCard, Path, Path], None]
"""Writes what is to be looked at into an empty folder: of the job's folder, its card and bundle."""

log = logging.getLogger(__name__)


def mirror_to_mlflow(
    projection: "Projection",
    *,
    stopping: threading.Event,
    idle_s: float = 5.0,
    poll_s: float = 0.5,
    is_orphan: Callable[[], bool] = lambda: False,
) -> None:
    """Looks again and again until there has been nothing to do for `idle_s`, or until `stopping`.

    An unreachable MLflow is tried again after pauses that double up to half a minute. While a training runs there is
    something to do, unless the service itself is gone (`is_orphan`): its next life starts a tracker that catches up.
    """
    idle_since = time.monotonic()
    pause_s = FIRST_PAUSE_S
    while not stopping.is_set():
        wait_s = poll_s
        try:
            is_busy = projection.send_news()
            pause_s = FIRST_PAUSE_S
        except UnavailableError as error:
            log.warning("%s (next try in %.1f s)", error.message, pause_s)
            is_busy, wait_s, pause_s = True, pause_s, min(pause_s * 2, LONGEST_PAUSE_S)
        if is_busy and not is_orphan():
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= idle_s:
            return
        stopping.wait(wait_s)


def disable(store: JobStore) -> None:
    """Notes on every training and experiment that was not sent that tracking is switched off."""
    for folder in store.folders():
        if folder.spec.kind in TRACKED_KINDS and folder.tracking().status == "pending":
            folder.write_tracking(TrackingRecord(status="disabled", updated_at=utc_now()))


class Projection:
    """What one tracker process remembers between looks.

    Args:
        open_tracker: opens MLflow; called at the first look that has something to send.
        live_version: the served version of a model, if any.
        champions: JSON file of what the alias `champion` was last set to, by model.
        draw_figures: what is attached beside a bundle; None: nothing.
    """

    def __init__(
        self,
        store: JobStore,
        open_tracker: Callable[[], ExperimentTracker],
        *,
        registry: FolderModelRegistry,
        live_version: Callable[[str], str | None],
        champions: Path,
        draw_figures: DrawFigures | None = None,
    ) -> None:
        self._store = store
        self._open_tracker = open_tracker
        self._registry = registry
        self._live_version = live_version
        self._champions = champions
        self._purged = champions.with_name(PURGED_FILE)
        self._unmarked: set[str] = set()  # models that MLflow refused to mark versions of, until the next start
        self._draw_figures = draw_figures
        self._tracker: ExperimentTracker | None = None
        self._settled: set[str] = set()  # jobs with nothing more to send, or given up until the next start
        self._models: set[str] = set(self._read_champions())  # models that MLflow knows
        self._sent: dict[str, int] = {}  # size of the event log when all of it had been sent
        self._refusals: dict[str, _Refusals] = {}

    def send_news(self) -> bool:
        """Sends what is new; whether a training is still under way or something is still to be sent.

        Raises:
            UnavailableError: MLflow does not answer; nothing is lost.
        """
        is_busy = False
        for folder in self._unsettled():
            refusals = self._refusals.get(folder.id)
            try:
                if (refusals is None or time.monotonic() >= refusals.retry_at) and self._project(folder):
                    self._settled.add(folder.id)
                else:
                    is_busy = True
            except UnavailableError:
                raise
            except Exception as error:  # one broken job must not keep the others from being tracked
                if not folder.path.is_dir():  # deleted meanwhile: nothing is left to be sent
                    self._settled.add(folder.id)
                    continue
                is_busy = True
                self._refused(folder, error)
        self._crown()
        self._mark_purged()
        return is_busy

    def _unsettled(self) -> Iterator[JobFolder]:
        for folder in self._store.folders():
            if folder.id in self._settled:
                continue
            if folder.spec.kind not in TRACKED_KINDS:
                self._settled.add(folder.id)
                continue
            yield folder

    def _project(self, folder: JobFolder) -> bool:
        """Brings one job up to date; True when nothing can follow."""
        record = folder.tracking()
        if record.status != "pending":
            self._remember(folder, record)
            return True
        size = folder.num_log_bytes
        job = folder.job()
        if job.status is JobStatus.QUEUED or self._sent.get(folder.id) == size:
            return False
        if record.run_id is None:
            record = self._open_run(folder, job)
        events = [] if record.status == "synced" else folder.events(record.last_seq)
        assert record.run_id is not None
        if events:
            self._mlflow.log(record.run_id, [point for event in events for point in points_of(event)])
            record = record.model_copy(update={"last_seq": events[-1].seq})
        if record.status == "pending":
            record = self._send_trials(folder, job, record)
        if job.status.is_final and record.status == "pending":
            record = self._close(folder, job, record)
        folder.write_tracking(record.model_copy(update={"updated_at": utc_now()}))
        self._sent[folder.id] = size
        self._remember(folder, record)
        return record.status == "synced"

    @property
    def _mlflow(self) -> ExperimentTracker:
        if self._tracker is None:
            self._tracker = self._open_tracker()
        return self._tracker

    def _open_run(self, folder: JobFolder, job: Job) -> TrackingRecord:
        plan = folder.spec.plan
        run = self._mlflow.open_run(
            job.id,
            name=_name(folder, job),
            started_ms=to_ms(job.started_at or job.created_at),
            tags=_tags(folder, job),
            params=flat_params({**job.request, **_resolved(plan)}),
        )
        status = "synced" if run.is_deleted else "pending"
        record = TrackingRecord(status=status, run_id=run.id, url=run.url, updated_at=utc_now())
        folder.write_tracking(record)
        return record

    def _send_trials(self, folder: JobFolder, job: Job, record: TrackingRecord) -> TrackingRecord:
        """The trials that have ended since the last look, as nested runs; with the job, all of them."""
        if folder.spec.kind is not JobKind.EXPERIMENT:
            return record
        assert record.run_id is not None
        fresh = [
            each if each.is_finished else each.model_copy(update={"finished_at": job.finished_at})
            for each in folder.trials.trials()
            if each.number not in record.trial_runs and (each.is_finished or job.status.is_final)
        ]
        for begin in range(0, len(fresh), TRIALS_A_NOTE):
            sent = {
                each.number: self._mlflow.send_trial(each, job_id=job.id, parent=record.run_id, name=_name(folder, job))
                for each in fresh[begin : begin + TRIALS_A_NOTE]
            }
            record = record.model_copy(update={"trial_runs": {**record.trial_runs, **sent}, "updated_at": utc_now()})
            folder.write_tracking(record)
        return record

    def _close(self, folder: JobFolder, job: Job, record: TrackingRecord) -> TrackingRecord:
        """The end of a run: what came of it, then MLflow's own closing."""
        assert record.run_id is not None
        assert job.finished_at is not None
        tags = {"status": job.status.value}
        number = None
        if job.error is not None:
            tags |= {"error_code": job.error.error_code, "error": job.error.message}
        if job.status is JobStatus.SUCCEEDED and "recorded" not in folder.spec.plan:  # a grid publishes no model
            try:
                number, about = self._hand_over(folder, job, record.run_id)
                tags |= about
            except (ModelNotFoundError, VersionNotFoundError) as error:
                log.warning("the bundle of job %s is gone and cannot be tracked: %s", job.id, error.message)
                tags["bundle"] = "gone"
            except BundleDamagedError as error:
                log.warning("the bundle of job %s cannot be tracked: %s", job.id, error.message)
                tags["bundle"] = error.state
        self._mlflow.tag(record.run_id, tags)
        self._mlflow.finish(record.run_id, RUN_STATUS[job.status], ended_ms=to_ms(job.finished_at))
        return record.model_copy(update={"status": "synced", "model_version": number})

    def _hand_over(self, folder: JobFolder, job: Job, run_id: str) -> tuple[str, dict[str, str]]:
        """Final metrics, files and the registered version of what the job published."""
        assert job.result is not None
        assert job.finished_at is not None
        model_id, version = str(job.result["model_id"]), str(job.result["version"])
        card = self._registry.card(model_id, version)
        self._registry.verify(model_id, version)
        bundle = self._registry.folder(model_id, version)
        about = tags_of(card)
        datasets = datasets_of(card, self._registry.recipe(model_id, version))
        self._mlflow.log_inputs(run_id, datasets)
        logged_model, network = self._hand_over_network(card, bundle, run_id)
        taken = {legal_name(name) for name in job.progress.metrics}
        at_ms = to_ms(job.finished_at)
        finals = [
            Measurement(f"final_{name}" if name in taken else name, value, at_ms, STEP)
            for name, value in figures_of(card).items()
        ]
        tested_on = next((each for each in datasets if each.context == "test"), None)
        self._mlflow.log(run_id, finals, of_model=logged_model, on=tested_on)
        self._mlflow.attach(run_id, bundle)
        self._attach_figures(folder, card, run_id, at_ms=at_ms)
        about["network"] = network
        number = self._mlflow.register(
            model_id, version, run_id=run_id, tags={**about, "job_id": job.id}, logged_model=logged_model
        )
        return number, about

    def _hand_over_network(self, card: ModelCard, bundle: Path, run_id: str) -> tuple[str | None, str]:
        """The version as an MLmodel, and a sentence; a version that has no network is registered by its bundle."""
        reason = why_no_network(bundle)
        if reason is not None:
            return None, f"none: {reason}"
        try:
            model = MlflowModel.of(bundle, card)
            tags = tags_of(card) | {"version": card.version}
            logged_model = self._mlflow.open_model(run_id, name=card.id, model_type=card.type, tags=tags)
        except (PredictionError, UpstreamError) as error:
            # metrics, bundle and version matter more than it
            log.warning("version %s of %s is no MLmodel: %s", card.version, card.id, error.message)
            return None, f"none: {error.message}"
        with tempfile.TemporaryDirectory(prefix="mlmodel-") as place:
            model.write(Path(place) / "model", run_id=run_id, model_id=logged_model)
            self._mlflow.close_model(logged_model, Path(place) / "model")
        return logged_model, "MLmodel: mlflow.pyfunc.load_model answers as the float32 network does"

    def _attach_figures(self, folder: JobFolder, card: ModelCard, run_id: str, *, at_ms: int) -> None:
        """The report with the desk's, and the figures; a version that cannot be drawn is tracked without."""
        if self._draw_figures is None:
            return
        with tempfile.TemporaryDirectory(prefix="figures-") as drawn:
            try:
                self._draw_figures(folder, card, self._registry.folder(card.id, card.version), Path(drawn))
            except (ArithmeticError, LookupError, TypeError, ValueError, PlatformError) as error:
                # a picture is an extra: metrics, bundle and version matter more than it
                log.warning("version %s of %s cannot be drawn: %r", card.version, card.id, error)
                return
            self._mlflow.attach_figures(run_id, Path(drawn))
            desk = desk_figures_of(Path(drawn) / DESK_FILE, without=figures_of(card))
            if desk:
                self._mlflow.log(run_id, [Measurement(name, value, at_ms, STEP) for name, value in desk.items()])

    def _remember(self, folder: JobFolder, record: TrackingRecord) -> None:
        result = folder.job().result
        if record.model_version is not None and result is not None:
            self._models.add(str(result["model_id"]))

    def _refused(self, folder: JobFolder, error: Exception) -> None:
        """Begins anew where MLflow lost the run; gives a job up for this process's life after some refusals."""
        log.warning("job %s cannot be tracked: %s", folder.id, error)
        update: dict[str, Any] = {"problem": str(error), "updated_at": utc_now()}
        if isinstance(error, NotFoundError):
            update |= {"run_id": None, "url": None, "last_seq": 0, "trial_runs": {}}
            self._tracker = None
        folder.write_tracking(folder.tracking().model_copy(update=update))
        refusals = self._refusals.setdefault(folder.id, _Refusals())
        refusals.count += 1
        refusals.retry_at = time.monotonic() + FIRST_PAUSE_S * 2**refusals.count
        if refusals.count >= MAX_REFUSALS:
            log.error("job %s is given up until the tracker starts again", folder.id)
            self._settled.add(folder.id)

    def _crown(self) -> None:
        """Sets the alias wherever the served version changed since it was last set."""
        known = self._read_champions()
        for model_id in sorted(self._models):
            version = self._live_version(model_id)
            if known.get(model_id) == version:
                continue
            try:
                is_set = self._mlflow.set_champion(model_id, version)
            except (NotFoundError, UpstreamError) as error:
                log.warning("the champion of %s cannot be set: %s", model_id, error.message)
                self._models.discard(model_id)
                continue
            if is_set:
                known[model_id] = version
                write_whole(self._champions, json.dumps(known, indent=1).encode())
            else:
                self._models.discard(model_id)  # a version that MLflow never got; the next start asks again

    def _mark_purged(self) -> None:
        """Marks versions that were purged here since they were last marked; what fails is tried at the next start."""
        marked = _read_object(self._purged)
        for model_id in sorted(self._models - self._unmarked):
            tombstones = self._registry.tombstones(model_id)
            new = [version for version in tombstones if version not in marked.get(model_id, ())]
            if not new:
                continue
            try:
                for version in new:
                    self._mlflow.mark_purged(model_id, version, iso(tombstones[version].purged_at))
            except (NotFoundError, UpstreamError) as error:
                log.warning("purged versions of %s cannot be marked in MLflow: %s", model_id, error.message)
                self._unmarked.add(model_id)
                continue
            marked[model_id] = sorted(tombstones)
            write_whole(self._purged, json.dumps(marked, indent=1).encode())

    def _read_champions(self) -> dict[str, str | None]:
        return _read_object(self._champions)


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or it cannot be read."""
    return guarded(file, json_object) or {}


@dataclass
class _Refusals:
    count: int = 0
    retry_at: float = 0.0  # time.monotonic()


def _name(folder: JobFolder, job: Job) -> str:
    """Trainings are called after their model, experiments by their own name."""
    if folder.spec.kind is JobKind.EXPERIMENT:
        return str(job.request.get("name", job.id))
    return str(folder.spec.plan.get("model_id", job.id))


def _tags(folder: JobFolder, job: Job) -> dict[str, str]:
    plan, request = folder.spec.plan, job.request
    asked = {name: plan.get(name) or request.get(name) for name in ("model_id", "version", "family", "model_type")}
    tags = {name: str(value) for name, value in asked.items() if value is not None}
    tags |= {
        "kind": folder.spec.kind.value,
        "correlation_id": job.correlation_id,
        "status": job.status.value,
        "mlflow.source.type": "JOB",
    }
    if request.get("notes"):
        tags["mlflow.note.content"] = str(request["notes"])
    return tags


def _resolved(plan: dict[str, Any]) -> dict[str, Any]:
    """What the service filled in where the request was silent."""
    return {name: plan[name] for name in RESOLVED if plan.get(name) is not None}
