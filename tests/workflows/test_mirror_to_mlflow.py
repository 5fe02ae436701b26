"""Tracking: what the job folders say is in MLflow, once, whatever happened to MLflow in between."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import UpstreamError
from ml_workbench_service.contracts.contract import iso, to_ms
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.tracker_worker import draw_figures
from ml_workbench_service.workflows.mirror_to_mlflow import DrawFigures, Projection, disable, mirror_to_mlflow
from tests.integrations.mlflow_server import MlflowServer, shared_server
from tests.integrations.model_cards import MOMENT, model_card

PATIENCE_S = 200.0


@dataclass
class House:
    """A service's folders and the jobs of one model in them."""

    root: Path
    model_id: str

    def __post_init__(self) -> None:
        self.store = JobStore(self.root / "jobs")
        self.history = DeploymentHistory(self.root / "registry")
        self.registry = FolderModelRegistry(self.root / "registry", live_version=self.history.live_version)

    def train(
        self, version: str = "1.0.0", kind: JobKind = JobKind.TRAIN, plan: dict[str, Any] | None = None
    ) -> JobFolder:
        request = {
            "name": "LSTM",
            "model_type": "time_series",
            "features": ["sma_20", "rsi_14"],
            "hyperparameters": {"lstm_units": 64},
            "notes": "first try",
        }
        plan = plan or {
            "model_id": self.model_id,
            "version": version,
            "family": "lstm",
            "hyperparameters": {"lstm_units": 64, "lookback": 24},
        }
        number = sum(1 for _ in self.store.folders())
        spec = JobSpec(
            id=f"{self.model_id}-{number}",
            kind=kind,
            request=request,
            plan=plan,
            created_at=MOMENT,
            correlation_id=f"corr-{number}",
        )
        return self.store.create(spec)

    def publish(
        self,
        folder: JobFolder,
        version: str = "1.0.0",
        write: Callable[[Path], object] = lambda draft: (draft / "model.onnx").write_bytes(b"\x08\x01" * 50),
        **card_fields: Any,
    ) -> ModelCard:
        """What `write` puts into the bundle (no graph that could be read, unless given), with a card, as the result."""
        draft = self.registry.draft()
        write(draft)
        fields = {"metrics": {"mae": 0.0012, "loss": 0.5, "skill": None}, **card_fields}
        card = model_card(self.model_id, version, **fields)
        published = self.registry.publish(draft, card)
        folder.append("succeeded", result={"model_id": self.model_id, "version": version, "href": "/"})
        return published

    def deploy(self, version: str, status: str = "live") -> None:
        self.history.append(
            Deployment(
                id=f"d-{version}",
                model_id=self.model_id,
                version=version,
                deployment_target="local",
                status=status,
                previous_version=None,
                created_at=MOMENT,
            )
        )

    def projection(self, open_tracker: Callable[[], ExperimentTracker], draw: DrawFigures | None = None) -> Projection:
        return Projection(
            self.store,
            open_tracker,
            registry=self.registry,
            live_version=self.history.live_version,
            champions=self.root / "champions.json",
            draw_figures=draw,
        )


@pytest.fixture(scope="module")
def server() -> MlflowServer:
    shared_server().start()
    return shared_server()


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> House:
    return House(tmp_path, request.node.name.removeprefix("test_")[:40])


@pytest.fixture
def client(server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    server.start()
    return MlflowClient(tracking_uri=server.url, registry_uri=server.url)


@contextmanager
def tracking(projection: Projection, **options: Any) -> Iterator[threading.Thread]:
    """The tracker's loop in a thread."""
    stopping = threading.Event()
    settings = {"idle_s": 0.2, "poll_s": 0.02, **options}
    thread = threading.Thread(target=mirror_to_mlflow, args=(projection,), kwargs={"stopping": stopping, **settings})
    thread.start()
    try:
        yield thread
    finally:
        stopping.set()
        thread.join(PATIENCE_S)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def runs_of(client: Any, folder: JobFolder) -> list[Any]:
    experiment = client.get_experiment_by_name("ml-workbench")
    return list(client.search_runs([experiment.experiment_id], f"tags.job_id = '{folder.id}'"))


def test_mlflow_killed_in_the_middle_of_a_run_has_everything_once(
    house: House, server: MlflowServer, client: Any
) -> None:
    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    epochs = range(1, 121)

    def train(steps: Any) -> None:
        for step in steps:
            folder.append("progress", step=step, total=120, metrics={"loss": 1 / step, "odd": None})
            time.sleep(0.002)

    with tracking(house.projection(lambda: ExperimentTracker(server.url))) as thread:
        train(epochs[:40])
        until(lambda: folder.tracking().last_seq > 5)
        writing = threading.Thread(target=train, args=(epochs[40:80],))
        writing.start()
        server.kill()
        writing.join()
        train(epochs[80:])
        house.publish(folder)
        assert folder.job().tracking.status == "pending"
        server.start()
        until(lambda: folder.job().tracking.status == "synced")
        thread.join(PATIENCE_S)
        assert not thread.is_alive()  # idle: it ended by itself
    (run,) = runs_of(client, folder)
    events = [event for event in folder.events() if event.type == "progress"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((each.step, each.value, each.timestamp) for each in history) == [
        (event.data["step"], event.data["metrics"]["loss"], to_ms(event.at)) for event in events
    ]
    assert len(events) == 120
    assert run.info.status == "FINISHED"
    assert folder.job().tracking.run_id == run.info.run_id
    assert folder.job().tracking.url == f"{server.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def test_a_version_has_its_report_and_figures_beside_its_bundle(
    house: House, server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    for step in (1, 2, 3):
        folder.append("progress", step=step, total=3, metrics={"train_loss": 1 / step, "stop_loss": 2 / step})
    card = house.publish(folder)
    assert house.projection(lambda: ExperimentTracker(server.url), draw_figures).send_news() is False
    (run,) = runs_of(client, folder)
    found = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert found == {"figures/report.html", "figures/learning_curve.json"}
    copied = Path(client.download_artifacts(run.info.run_id, "figures", str(tmp_path)))
    assert card.digest in (copied / "report.html").read_text(encoding="utf-8")
    curve = json.loads((copied / "learning_curve.json").read_bytes())
    assert {each["name"] for each in curve["data"]} == {"training", "validation", "epoch kept"}


def test_a_version_that_cannot_be_drawn_is_tracked_without(house: House, server: MlflowServer, client: Any) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no picture of this")

    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    house.publish(folder)
    assert house.projection(lambda: ExperimentTracker(server.url), fail).send_news() is False
    (run,) = runs_of(client, folder)
    assert run.info.status == "FINISHED"
    assert client.list_artifacts(run.info.run_id, "figures") == []


def test_a_finished_training_is_there_with_all_its_parts(house: House, server: MlflowServer, client: Any) -> None:
    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    folder.append("progress", step=3, total=3, metrics={"loss": 0.25})
    card = house.publish(folder)
    house.deploy("1.0.0")
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False
    (run,) = runs_of(client, folder)
    job = folder.job()
    assert (run.info.run_name, run.info.status) == (house.model_id, "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (to_ms(job.started_at), to_ms(job.finished_at))
    assert run.data.metrics == {"loss": 0.25, "final_loss": 0.5, "mae": 0.0012, "epochs_run": 1.0}
    assert run.data.params["lookback"] == "24"
    assert run.data.params["lstm_units"] == "64"
    assert run.data.params["features"] == "sma_20, rsi_14"
    expected = {
        "job_id": job.id,
        "correlation_id": "corr-0",
        "model_id": house.model_id,
        "version": "1.0.0",
        "family": "lstm",
        "status": "succeeded",
        "digest": card.digest,
        "mlflow.note.content": "first try",
    }
    assert expected.items() <= run.data.tags.items()
    assert "bundle/card.json" in [file.path for file in client.list_artifacts(run.info.run_id, "bundle")]
    champion = client.get_model_version_by_alias(house.model_id, "champion")
    assert (champion.run_id, champion.tags["version"], champion.tags["digest"]) == (
        run.info.run_id,
        "1.0.0",
        card.digest,
    )


def test_the_alias_follows_the_deployments_across_processes(house: House, server: MlflowServer, client: Any) -> None:
    for version in ("1.0.0", "1.1.0"):
        house.publish(house.train(version), version)
    before = house.projection(lambda: ExperimentTracker(server.url))
    before.send_news()
    assert client.get_registered_model(house.model_id).aliases == {}
    house.deploy("1.0.0")
    before.send_news()
    assert client.get_model_version_by_alias(house.model_id, "champion").tags["version"] == "1.0.0"
    house.deploy("1.0.0", "superseded")
    house.deploy("1.1.0")
    after = house.projection(lambda: ExperimentTracker(server.url))
    after.send_news()
    assert client.get_model_version_by_alias(house.model_id, "champion").tags["version"] == "1.1.0"
    house.deploy("1.1.0", "rolled_back")
    after.send_news()
    assert client.get_registered_model(house.model_id).aliases == {}
    opened: list[int] = []
    house.projection(lambda: opened.append(1)).send_news()
    assert opened == []  # nothing to send: MLflow is not even opened


def test_a_purged_version_is_marked_in_mlflow_once_and_a_refusal_is_tried_at_the_next_start(
    house: House, server: MlflowServer, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = house.train("1.0.0")
    house.publish(folder, "1.0.0")
    house.publish(house.train("1.1.0"), "1.1.0")
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    house.registry.purge(house.model_id, ["1.0.0"], ever_live=frozenset(), correlation_id="c")

    class Refusing:
        def mark_purged(self, *_: Any) -> None:
            raise UpstreamError("not today")

    refused = house.projection(Refusing)  # type: ignore[arg-type]
    refused.send_news()
    refused.send_news()
    assert sum("cannot be marked" in message for message in caplog.messages) == 1
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    tags = {
        each.tags["version"]: each.tags.get("purged_at")
        for each in client.search_model_versions(f"name = '{house.model_id}'")
    }
    assert tags == {"1.0.0": iso(house.registry.tombstones(house.model_id)["1.0.0"].purged_at), "1.1.0": None}
    (run,) = runs_of(client, folder)
    assert run.data.tags["purged_at"] == tags["1.0.0"]
    opened: list[int] = []
    house.projection(lambda: opened.append(1)).send_news()
    assert opened == []


def test_failed_and_cancelled_trainings_say_why(house: House, server: MlflowServer, client: Any) -> None:
    failed, cancelled, waiting, replay = house.train(), house.train(), house.train(), house.train(kind=JobKind.REPLAY)
    failed.append("started", pid=1, attempt=1)
    failed.append("failed", error_type="TrainingError", error_code="WORKER_LOST", message="gone", details={})
    cancelled.append("cancelled")
    projection = house.projection(lambda: ExperimentTracker(server.url))
    assert projection.send_news() is True  # one is still waiting
    (run,) = runs_of(client, failed)
    assert run.info.status == "FAILED"
    assert (run.data.tags["error_code"], run.data.tags["error"]) == ("WORKER_LOST", "gone")
    assert runs_of(client, cancelled)[0].info.status == "KILLED"
    assert runs_of(client, waiting) == []
    assert runs_of(client, replay) == []
    waiting.append("cancelled")
    assert projection.send_news() is False
    assert waiting.job().tracking.status == "synced"


def test_a_run_that_mlflow_lost_is_sent_again_from_the_start(house: House, server: MlflowServer, client: Any) -> None:
    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    folder.append("progress", step=1, total=2, metrics={"loss": 1.0})
    projection = house.projection(lambda: ExperimentTracker(server.url))
    projection.send_news()
    folder.write_tracking(folder.tracking().model_copy(update={"run_id": "0" * 32}))  # as of a server that is no more
    folder.append("progress", step=2, total=2, metrics={"loss": 0.5})
    folder.append("failed", error_type="E", error_code="C", message="m", details={})
    with tracking(projection):
        until(lambda: folder.job().tracking.status == "synced")
    (run,) = runs_of(client, folder)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2


def test_a_bundle_that_is_gone_does_not_keep_its_run_open(house: House, server: MlflowServer, client: Any) -> None:
    folder = house.train()
    folder.append("succeeded", result={"model_id": "nobody", "version": "1.0.0", "href": "/"})
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False
    (run,) = runs_of(client, folder)
    assert (run.info.status, run.data.tags["bundle"]) == ("FINISHED", "gone")


def test_one_broken_job_does_not_keep_the_others_away(house: House, server: MlflowServer, client: Any) -> None:
    broken, sound = house.train("2.0.0"), house.train()
    broken.append("succeeded", result={"unexpected": True})
    sound.append("failed", error_type="E", error_code="C", message="m", details={})
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is True
    assert sound.job().tracking.status == "synced"
    assert broken.tracking().problem != ""


def test_an_unreachable_server_keeps_the_tracker_at_it_until_the_service_goes(house: House) -> None:
    folder = house.train()
    folder.append("started", pid=1, attempt=1)
    orphaned = threading.Event()
    projection = house.projection(lambda: ExperimentTracker("http://127.0.0.1:1"))
    with tracking(projection, idle_s=0.1, is_orphan=orphaned.is_set) as thread:
        time.sleep(1.0)
        assert thread.is_alive()
        orphaned.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert folder.job().tracking.status == "pending"


def test_switched_off_tracking_is_said_on_each_training(house: House) -> None:
    folder, replay = house.train(), house.train(kind=JobKind.REPLAY)
    disable(house.store)
    assert folder.job().tracking.status == "disabled"
    assert not (replay.path / "tracking.json").exists()


def test_the_process_ends_at_once_where_tracking_is_off(house: House, tmp_path: Path) -> None:
    folder = house.train()
    environment = {
        **os.environ,
        "STATE_DIR": str(tmp_path),
        "LOG_DIR": str(tmp_path / "logs"),
        "EXPERIMENT_TRACKING_URI": "disabled",
    }
    command = [sys.executable, "-m", "ml_workbench_service.runtime.tracker_worker"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert folder.job().tracking.status == "disabled"
    assert "tracker ends" in (tmp_path / "logs" / "service.log").read_text()
