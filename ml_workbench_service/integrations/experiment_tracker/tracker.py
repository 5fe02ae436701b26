"""MLflow client: what the tracker says to MLflow 3. Each verb may be repeated: sending twice is sending once.

    run                 found by its tag `job_id`, else created; named after the model
    metrics             with the events' own timestamps and steps; the same row sent again stays one row
    nested runs         an experiment's trials, each found by its tag `job_id`: the experiment's id, a slash, its number
    dataset inputs      the parts of the data; the same name and digest is the same dataset
    bundle/             the published version's files as artifacts
    logged model        the version as an MLmodel, found by its run, with parameters and the test part's metrics
    registered model    one MLflow version for each of ours, found by its run; its tag `version` says which it is
    alias `champion`    on the version that is served

MLflow is imported when a tracker is opened (1 to 6 s, 250 MiB), so only the tracker process pays for it.
"""

import json
import math
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common_lib.exceptions import NotFoundError, UnavailableError, UpstreamError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.contracts.jobs import JobEvent

EXPERIMENT = "ml-workbench"
CHAMPION = "champion"
BUNDLE_PATH = "bundle"
FIGURES_PATH = "figures"
PURGED_TAG = "purged_at"
VERSIONS_TAG = "mlflow.modelVersions"
"""Of a logged model, MLflow's own: the registered versions that were made of it."""
METRICS_PER_CALL = 500  # MLflow takes 1000
PARAMS_PER_CALL = 100
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
MAX_KEY_CHARS = 250
MAX_DATASET_CHARS = 500
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default an absent server blocks a call for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}
ARTIFACT_COLUMNS = frozenset({"artifact_location", "artifact_uri", "source", "storage_location"})
"""Of MLflow's own tables, those that hold addresses of artifacts."""
_LASTING = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "INVALID_STATE",
        "ENDPOINT_NOT_FOUND",  # of a server older than MLflow 3
    }
)
_FOREIGN = re.compile(r"[^\w.\-/ ]", re.ASCII)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
TRIAL_STATUS: Mapping[str, RunStatus] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Measurement:
    """One point of one metric; `at_ms` in milliseconds since the epoch."""

    name: str
    value: float
    at_ms: int
    step: int


@dataclass(frozen=True)
class TrackedDataset:
    """A part of the data as MLflow's dataset inputs show it.

    Attributes:
        digest: 36 characters at most; the same name and digest is the same dataset.
        context: what a run used it for: `training`, `validation`, `calibration`, `test`.
        source: where it comes from, in words.
    """

    name: str
    digest: str
    context: str
    source: Mapping[str, str]
    columns: tuple[str, ...]
    num_windows: int


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow knows it; `url` only where a server shows it."""

    id: str
    url: str | None
    is_deleted: bool  # somebody threw it away; it takes nothing more


class ExperimentTracker:
    """One MLflow server or store.

    Args:
        uri: `http(s)://…` of a server, or `sqlite:///…` of a store.
        artifacts: folder of the artifacts, for a store without a server; a server knows its own.

    Raises (here and in every method):
        UnavailableError: it does not answer, or not now; try again later.
        UpstreamError: it refuses this; trying again will not help.
        NotFoundError: it has forgotten what it knew (a run or model that was there is gone).
    """

    def __init__(self, uri: str, *, artifacts: Path | None = None) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._artifacts = artifacts
        with _translated():
            self._experiment_id = self._experiment()

    def open_run(
        self, job_id: str, *, name: str, started_ms: int, tags: Mapping[str, str], params: Mapping[str, object]
    ) -> TrackedRun:
        """The job's run: found by its tag, else created; then its parameters."""
        with _translated():
            run = self._find(job_id)
            if run is None:
                self._experiment_id = self._experiment()  # somebody may have deleted it since
                marks = _clean_tags({**tags, "job_id": job_id})
                run = self._client.create_run(self._experiment_id, start_time=started_ms, tags=marks, run_name=name)
            run_id = _named(run.info.run_id)
            tracked = TrackedRun(run_id, self._url(run_id), run.info.lifecycle_stage == "deleted")
            if not tracked.is_deleted:
                self._log_params(tracked.id, params)
            return tracked

    def send_trial(self, trial: TrialRecord, *, job_id: str, parent: str, name: str) -> str:
        """A trial as a run below its experiment's (`parent`), with its curve at its own times; the run's id."""
        begun_ms = to_ms(trial.started_at) if trial.started_at is not None else 0
        ended_ms = to_ms(trial.finished_at) if trial.finished_at is not None else begun_ms
        tags = {"mlflow.parentRunId": parent, "trial": str(trial.number), "state": trial.state}
        if trial.message:
            tags["message"] = trial.message
        run = self.open_run(
            f"{job_id}/{trial.number}", name=f"{name}/{trial.number}", started_ms=begun_ms, tags=tags,
            params=flat_params(trial.params),
        )  # fmt: skip
        if run.is_deleted:
            return run.id
        points = [
            Measurement("score", value, at_ms, step)
            for (step, value), at_ms in zip(trial.curve, trial.curve_at_ms, strict=False)
        ]
        finals = {"value": trial.value, "spread": trial.spread, "sharpe": trial.sharpe}
        points += [Measurement(key, value, ended_ms, 0) for key, value in finals.items() if value is not None]
        self.log(run.id, points)
        self.finish(run.id, TRIAL_STATUS.get(trial.state, "KILLED"), ended_ms=ended_ms)
        return run.id

    def log(
        self,
        run_id: str,
        measurements: Sequence[Measurement],
        *,
        of_model: str | None = None,
        on: TrackedDataset | None = None,
    ) -> None:
        """Sends points in batches; those of a logged model stand on its page too, beside the data they are about."""
        from mlflow.entities import Metric

        name, digest = (None, None) if on is None or of_model is None else (_dataset_name(on), on.digest)
        points = [
            Metric(_clean_key(each.name), each.value, each.at_ms, each.step, of_model, name, digest)
            for each in measurements
        ]
        with _translated():
            for start in range(0, len(points), METRICS_PER_CALL):
                self._client.log_batch(run_id, metrics=points[start : start + METRICS_PER_CALL])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags; an older value gives way."""
        from mlflow.entities import RunTag

        with _translated():
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _clean_tags(tags).items()])

    def finish(self, run_id: str, status: RunStatus, *, ended_ms: int) -> None:
        """Closes the run with the job's own end."""
        with _translated():
            self._client.set_terminated(run_id, status=status, end_time=ended_ms)

    def attach(self, run_id: str, bundle: Path) -> None:
        """Uploads the bundle's files below `bundle/`."""
        with _translated():
            self._client.log_artifacts(run_id, str(bundle), BUNDLE_PATH)

    def attach_figures(self, run_id: str, folder: Path) -> None:
        """Uploads the report and the figures of what the run published, below `figures/`."""
        with _translated():
            self._client.log_artifacts(run_id, str(folder), FIGURES_PATH)

    def log_inputs(self, run_id: str, datasets: Sequence[TrackedDataset]) -> None:
        """Names the data that the run read; a dataset that is there already is not added again."""
        with _translated():
            self._client.log_inputs(run_id, [_dataset_input(each) for each in datasets])

    def open_model(self, run_id: str, *, name: str, model_type: str, tags: Mapping[str, str]) -> str:
        """The logged model of a run: found by it, else created with the run's parameters; its id."""
        from mlflow.entities import LoggedModelOutput

        with _translated():
            run = self._client.get_run(run_id)
            experiment_id = run.info.experiment_id
            found = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
            model = (
                found[0]
                if found
                else self._client.create_logged_model(
                    experiment_id,
                    name=name,
                    source_run_id=run_id,
                    tags=_clean_tags(tags),
                    params=dict(run.data.params),
                    model_type=model_type,
                )
            )
            there = run.outputs.model_outputs if run.outputs is not None else []
            if model.model_id not in {each.model_id for each in there}:
                self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
            return str(model.model_id)

    def close_model(self, logged_model: str, folder: Path) -> None:
        """Uploads an MLmodel's folder and calls the logged model ready."""
        from mlflow.entities import LoggedModelStatus

        with _translated():
            self._client.log_model_artifacts(logged_model, str(folder))
            self._client.finalize_logged_model(logged_model, LoggedModelStatus.READY)

    def register(
        self, model_id: str, version: str, *, run_id: str, tags: Mapping[str, str], logged_model: str | None = None
    ) -> str:
        """The MLflow version of ours: found by its run, else created from the logged model, or the run's bundle."""
        with _translated():
            self._ensure_model(model_id)
            found = self._client.search_model_versions(f"name = '{model_id}' and run_id = '{run_id}'")
            if found:
                return self._linked(logged_model, model_id, str(found[0].version))
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{BUNDLE_PATH}"
            if logged_model is not None:
                # its place, not `models:/<id>`: a store without a server looks that up in MLflow's global address
                source = self._client.get_logged_model(logged_model).artifact_location
            made = self._client.create_model_version(
                model_id,
                source,
                run_id=run_id,
                tags=_clean_tags({**tags, "version": version}),
                model_id=logged_model,
            )
            return self._linked(logged_model, model_id, str(made.version))

    def set_champion(self, model_id: str, version: str | None) -> bool:
        """Puts the alias on our `version`, or takes it away; False where MLflow does not know that version."""
        with _translated():
            if version is None:
                if CHAMPION in self._aliases(model_id):
                    self._client.delete_registered_model_alias(model_id, CHAMPION)
                return True
            found = self._client.search_model_versions(f"name = '{model_id}' and tags.version = '{version}'")
            if not found:
                return False
            number = str(max(int(each.version) for each in found))
            if str(self._aliases(model_id).get(CHAMPION)) != number:
                self._client.set_registered_model_alias(model_id, CHAMPION, number)
            return True

    def mark_purged(self, model_id: str, version: str, at: str) -> None:
        """Tags our `version` as purged, and so its run; what MLflow keeps of it is MLflow's to delete."""
        with _translated():
            for found in self._client.search_model_versions(f"name = '{model_id}' and tags.version = '{version}'"):
                self._client.set_model_version_tag(model_id, str(found.version), PURGED_TAG, at)
                if found.run_id:
                    self._client.set_tag(found.run_id, PURGED_TAG, at)

    def _experiment(self) -> str:
        """Ours, made or restored where it is not there."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            location = self._artifacts.resolve().as_uri() if self._artifacts is not None else None
            return _named(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return _named(found.experiment_id)

    def _linked(self, logged_model: str | None, model_id: str, number: str) -> str:
        """The version's number, once the logged model's page leads to it; a server sees to that by itself."""
        if logged_model is not None and VERSIONS_TAG not in self._client.get_logged_model(logged_model).tags:
            link = json.dumps([{"name": model_id, "version": int(number)}])
            self._client.set_logged_model_tags(logged_model, {VERSIONS_TAG: link})
        return number

    def _find(self, job_id: str) -> Any:
        from mlflow.entities import ViewType

        wanted = f"tags.job_id = '{job_id}'"
        runs = self._client.search_runs([self._experiment_id], wanted, run_view_type=ViewType.ALL, max_results=1)
        return runs[0] if runs else None

    def _log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        plain = [Param(_clean_key(key), _cut(str(value), MAX_PARAM_CHARS)) for key, value in params.items()]
        for start in range(0, len(plain), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=plain[start : start + PARAMS_PER_CALL])

    def _ensure_model(self, model_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self, model_id: str) -> dict[str, Any]:
        return dict(self._client.get_registered_model(model_id).aliases)

    def _url(self, run_id: str) -> str | None:
        if not self._uri.startswith(("http://", "https://")):
            return None
        address = re.sub(r"//[^/@]*@", "//", self._uri.rstrip("/"))  # never the password
        return f"{address}/#/experiments/{self._experiment_id}/runs/{run_id}"


def move_artifacts(database: Path, before: str, after: str) -> None:
    """Tells an embedded store whose artifacts lie elsewhere by now: MLflow keeps their absolute addresses.

    Args:
        before, after: addresses of the artifacts' folders, `file:///…`.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in sorted(columns & ARTIFACT_COLUMNS):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before), before),
                )


def _dataset_name(dataset: TrackedDataset) -> str:
    return _cut(dataset.name, MAX_DATASET_CHARS)


def _dataset_input(dataset: TrackedDataset) -> Any:
    """As MLflow takes it. Its source is of MLflow's type `code`, words under tags: no address leads to the bars."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types.schema import ColSpec, DataType, Schema

    schema = Schema([ColSpec(DataType.double, name) for name in dataset.columns])
    described = Dataset(
        name=_dataset_name(dataset),
        digest=dataset.digest,
        source_type="code",
        source=json.dumps({"tags": dict(dataset.source)}),
        schema=json.dumps({"mlflow_colspec": schema.to_dict()}),
        profile=json.dumps({"num_windows": dataset.num_windows}),
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", dataset.context)])


def keep_artifacts_at(database: Path, artifacts: Path) -> None:
    """Corrects the addresses of an embedded store whose folder was moved or copied since it was last open."""
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'experiments'").fetchone():
            return
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, (EXPERIMENT,)).fetchone()
    after = artifacts.resolve().as_uri()
    if found is not None and found[0] != after and found[0].startswith("file:"):
        move_artifacts(database, found[0], after)


def flat_params(request: dict[str, Any]) -> dict[str, object]:
    """Flat parameters: hyper-parameters under their own names, nested fields joined by dots, lists by commas."""
    hyperparameters = request.get("hyperparameters")
    flat = dict(_flattened("", {name: value for name, value in request.items() if name != "hyperparameters"}))
    for name, value in _flattened("", hyperparameters if isinstance(hyperparameters, dict) else {}):
        flat[name if name not in flat else f"hyperparameters.{name}"] = value
    return flat


def points_of(event: JobEvent) -> list[Measurement]:
    """A progress event's metrics at the event's own time; missing ones are left out, never made up."""
    metrics = event.data.get("metrics")
    if event.type != "progress" or not isinstance(metrics, dict):
        return []
    at_ms, step = to_ms(event.at), int(event.data.get("step", 0))
    return [
        Measurement(name, float(value), at_ms, step)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _flattened(prefix: str, nested: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flattened(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{name}", value


@contextmanager
def _translated() -> Iterator[None]:
    """MLflow's errors as ours; what is not known to last counts as passing."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"MLflow does not know it any more: {_first_line(error)}") from error
        if error.error_code in _LASTING:
            raise UpstreamError(f"MLflow refuses this, look at its own log: {_first_line(error)}") from error
        raise UnavailableError(f"MLflow does not answer, it is tried again: {_first_line(error)}") from error
    except (RequestException, OSError) as error:
        raise UnavailableError(f"MLflow does not answer, it is tried again: {_first_line(error)}") from error


def _named(identifier: str) -> str:
    """An id that MLflow gave; of an answer that was cut off in its headers its client makes one without any."""
    if not identifier:
        raise UnavailableError("MLflow's answer was cut off, it is tried again")
    return str(identifier)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _clean_key(name: str) -> str:
    return _FOREIGN.sub("_", name)[:MAX_KEY_CHARS]


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_clean_key(key): _cut(value, MAX_TAG_CHARS) for key, value in tags.items()}


def _cut(text: str, num_chars: int) -> str:
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
