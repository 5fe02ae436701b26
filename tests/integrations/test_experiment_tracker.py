"""MLflow as the tracker sees it: a real sqlite store and a real server pass the same checks, every verb said twice."""

import json
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import NotFoundError, UnavailableError, UpstreamError
from ml_workbench_service.integrations.experiment_tracker.tracker import (
    METRICS_PER_CALL,
    ExperimentTracker,
    Measurement,
    flat_params,
)
from ml_workbench_service.runtime.tracker_worker import open_tracker
from tests.integrations.mlflow_server import shared_server

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated"
)  # MLflow on SQLAlchemy 2.1
STARTED_MS = 1_767_323_045_000


@pytest.fixture(scope="module", autouse=True)
def launcher() -> None:
    """Begins to import MLflow's server while the store's tests run."""
    shared_server()


@pytest.fixture(scope="module")
def database(launcher: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: that takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module", params=["store", "server"])
def uri(request: pytest.FixtureRequest, database: Path) -> str:
    if request.param == "store":
        return f"sqlite:///{shutil.copy(database, database.with_name('store.db'))}"
    shared_server().start(database=database)
    return shared_server().url


@pytest.fixture(scope="module")
def tracker(uri: str, tmp_path_factory: pytest.TempPathFactory) -> ExperimentTracker:
    artifacts = tmp_path_factory.mktemp("artifacts") if uri.startswith("sqlite") else None
    return ExperimentTracker(uri, artifacts=artifacts)


@pytest.fixture(scope="module")
def client(uri: str, tracker: ExperimentTracker) -> Any:
    """MLflow's own client, to see what a user would see."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def open_run(tracker: ExperimentTracker, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Opens the run of the test's own job."""
    job_id = f"job-{request.node.originalname}"[:60].replace("[", "-")

    def open_it(**params: object) -> str:
        run = tracker.open_run(job_id, name="lstm", started_ms=STARTED_MS, tags={"version": "1.0.0"}, params=params)
        return run.id

    return open_it


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    (folder / "card.json").write_text('{"id": "lstm"}')
    (folder / "model.onnx").write_bytes(b"\x08\x01" * 1000)
    return folder


def test_a_run_is_made_once_and_found_again(tracker: ExperimentTracker, client: Any, open_run: Any, uri: str) -> None:
    first, again = open_run(lstm_units=64), open_run(lstm_units=64)
    assert first == again
    run = client.get_run(first)
    assert (run.info.run_name, run.info.start_time, run.info.status) == ("lstm", STARTED_MS, "RUNNING")
    assert run.data.params == {"lstm_units": "64"}
    assert run.data.tags["job_id"] == "job-test_a_run_is_made_once_and_found_again"
    assert run.data.tags["version"] == "1.0.0"
    tracked = tracker.open_run(run.data.tags["job_id"], name="x", started_ms=1, tags={}, params={})
    experiment = run.info.experiment_id
    expected = f"{uri}/#/experiments/{experiment}/runs/{first}" if uri.startswith("http") else None
    assert tracked.url == expected


def test_the_same_points_sent_twice_are_there_once(tracker: ExperimentTracker, client: Any, open_run: Any) -> None:
    run_id = open_run()
    points = [Measurement("loss", 1 / step, STARTED_MS + step, step) for step in range(1, METRICS_PER_CALL + 51)]
    tracker.log(run_id, points[:100])
    tracker.log(run_id, points)
    history = client.get_metric_history(run_id, "loss")
    assert sorted((each.step, each.value, each.timestamp) for each in history) == [
        (point.step, point.value, point.at_ms) for point in points
    ]


def test_names_and_long_values_fit_into_mlflow(tracker: ExperimentTracker, client: Any, open_run: Any) -> None:
    many = {f"param_{number}": number for number in range(150)}
    run_id = open_run(**many, **{"weird(name)%": "x" * 7000})
    tracker.log(run_id, [Measurement("mae@test", 0.5, STARTED_MS, 1)])
    tracker.tag(run_id, {"error": "y" * 9000})
    data = client.get_run(run_id).data
    assert len(data.params) == 151
    assert len(data.params["weird_name__"]) == 6000
    assert data.metrics == {"mae_test": 0.5}
    assert len(data.tags["error"]) == 5000


def test_a_bundle_is_registered_once_and_crowned(
    tracker: ExperimentTracker, client: Any, open_run: Any, bundle: Path
) -> None:
    run_id = open_run()
    for _ in "12":
        tracker.attach(run_id, bundle)
        number = tracker.register("crowned", "1.0.0", run_id=run_id, tags={"digest": "sha256:abc"})
        assert number == "1"
    assert sorted(file.path for file in client.list_artifacts(run_id, "bundle")) == [
        "bundle/card.json",
        "bundle/model.onnx",
    ]
    (version,) = client.search_model_versions("name = 'crowned'")
    assert (version.run_id, version.tags) == (run_id, {"digest": "sha256:abc", "version": "1.0.0"})
    assert version.source.endswith("/bundle")
    assert tracker.set_champion("crowned", "9.9.9") is False
    assert tracker.set_champion("crowned", "1.0.0") is True
    assert tracker.set_champion("crowned", "1.0.0") is True
    assert str(client.get_model_version_by_alias("crowned", "champion").version) == "1"
    assert tracker.set_champion("crowned", None) is True
    assert tracker.set_champion("crowned", None) is True
    assert client.get_registered_model("crowned").aliases == {}


def test_a_logged_model_is_made_once_with_all_parameters_and_registered(
    tracker: ExperimentTracker, client: Any, open_run: Any, bundle: Path
) -> None:
    run_id = open_run(**{f"param_{number}": number for number in range(150)}, features="x" * 7000)
    for _ in "12":
        logged = tracker.open_model(run_id, name="lstm", model_type="time_series", tags={"reason": "y" * 9000})
        tracker.log(run_id, [Measurement("sharpe", 0.5, STARTED_MS, 0)], of_model=logged)
        tracker.close_model(logged, bundle)
        assert tracker.register("logged", "1.0.0", run_id=run_id, tags={}, logged_model=logged) == "1"
    run = client.get_run(run_id)
    assert [each.model_id for each in run.outputs.model_outputs] == [logged]
    assert run.data.metrics == {"sharpe": 0.5}
    model = client.get_logged_model(logged)
    assert (model.params, str(model.status)) == (run.data.params, "READY")
    assert len(model.params) == 151
    assert [(each.key, each.value) for each in model.metrics] == [("sharpe", 0.5)]
    assert json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "logged"
    (version,) = client.search_model_versions("name = 'logged'")
    assert version.source == model.artifact_location


def test_a_run_ends_when_the_job_ended(tracker: ExperimentTracker, client: Any, open_run: Any) -> None:
    run_id = open_run()
    for _ in "12":
        tracker.finish(run_id, "KILLED", ended_ms=STARTED_MS + 5000)
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == ("KILLED", STARTED_MS + 5000)


def test_a_run_that_somebody_deleted_is_not_made_again(tracker: ExperimentTracker, client: Any, open_run: Any) -> None:
    run_id = open_run()
    client.delete_run(run_id)
    job_id = client.get_run(run_id).data.tags["job_id"]
    run = tracker.open_run(job_id, name="x", started_ms=1, tags={}, params={"new": 1})
    assert (run.id, run.is_deleted) == (run_id, True)


def test_an_experiment_deleted_under_a_living_tracker_is_restored(
    tracker: ExperimentTracker, client: Any, open_run: Any
) -> None:
    experiment = client.get_experiment_by_name("ml-workbench")
    client.delete_experiment(experiment.experiment_id)
    run = client.get_run(open_run())
    assert (run.info.experiment_id, run.info.lifecycle_stage) == (experiment.experiment_id, "active")
    client.set_terminated(run.info.run_id)


def test_what_mlflow_has_forgotten_and_what_it_refuses_are_told_apart(
    tracker: ExperimentTracker, open_run: Any
) -> None:
    with pytest.raises(NotFoundError):
        tracker.log("0" * 32, [Measurement("loss", 1.0, STARTED_MS, 1)])
    open_run(lstm_units=64)
    with pytest.raises(UpstreamError):
        open_run(lstm_units=65)


def test_the_embedded_store_keeps_its_artifacts_beside_itself(database: Path, bundle: Path, tmp_path: Path) -> None:
    shutil.copy(database, tmp_path / "mlflow.db")
    tracker = open_tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    run = tracker.open_run("job", name="lstm", started_ms=STARTED_MS, tags={}, params={})
    tracker.attach(run.id, bundle)
    assert (tmp_path / "mlartifacts" / run.id / "artifacts" / "bundle" / "card.json").exists()


def test_a_state_folder_that_was_moved_keeps_its_artifacts(database: Path, bundle: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copy(database, before / "mlflow.db")
    tracker = open_tracker(f"sqlite:///{before / 'mlflow.db'}", before)
    old = tracker.open_run("old", name="lstm", started_ms=STARTED_MS, tags={}, params={})
    tracker.attach(old.id, bundle)
    before.rename(after)
    tracker = open_tracker(f"sqlite:///{after / 'mlflow.db'}", after)
    new = tracker.open_run("new", name="lstm", started_ms=STARTED_MS, tags={}, params={})
    tracker.attach(new.id, bundle)
    for run_id in (old.id, new.id):
        copied = after / "mlartifacts" / run_id / "artifacts"
        assert MlflowClient(f"sqlite:///{after / 'mlflow.db'}").get_run(run_id).info.artifact_uri == copied.as_uri()
        assert (copied / "bundle" / "card.json").exists()


def test_an_absent_server_is_unavailable_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(UnavailableError):
            ExperimentTracker(f"http://127.0.0.1:{port}")


def test_an_answer_cut_off_in_its_headers_names_nothing_and_is_asked_again() -> None:
    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nserv")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(UnavailableError, match="tried again"):
            ExperimentTracker(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_request_becomes_flat_parameters() -> None:
    request = {
        "features": ["sma_20", "rsi_14"],
        "hyperparameters": {"lstm_units": 64, "target": "clash"},
        "target": "price_change_1h",
        "costs": {"spread_pips": 0.5, "deep": {"er": 1}},
        "notes": None,
    }
    assert flat_params(request) == {
        "features": "sma_20, rsi_14",
        "lstm_units": 64,
        "hyperparameters.target": "clash",
        "target": "price_change_1h",
        "costs.spread_pips": 0.5,
        "costs.deep.er": 1,
    }
