"""What becomes of an attempt's words while the control plane is away, slow, or has given the job to somebody else."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from common_lib.exceptions import DataValidationError
from common_lib.storage import keep, let_go
from ml_workbench_service.api import errors
from ml_workbench_service.contracts.jobs import JobSpec, JobStatus
from ml_workbench_service.elsewhere import event_sender
from ml_workbench_service.elsewhere.connection import JobConnection, check_address, connected
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE, URL_VARIABLE, attempt_environment
from ml_workbench_service.elsewhere.job_folder import JobFolderElsewhere
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.workers_folder import AttemptLostError
from ml_workbench_service.search.worker_pool import error_of
from tests.elsewhere.control_plane import ControlPlane
from tests.jobs.conftest import make_spec as make_spec

SECRET = "mlj1_a-token-that-nobody-gave"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def control(store: JobStore) -> Iterator[ControlPlane]:
    with ControlPlane(store) as running:
        yield running


@pytest.fixture
def folder(store: JobStore, make_spec: Any) -> JobFolder:
    spec: JobSpec = make_spec(do="count")
    return store.create(spec)


@contextmanager
def worker(folder: JobFolder, control: ControlPlane, work: Path, **more: Any) -> Iterator[JobFolderElsewhere]:
    given = attempt_environment(folder, control_url=control.url)
    connection = JobConnection(given[URL_VARIABLE], given[TOKEN_VARIABLE], **more)
    try:
        connection.begin()
        opened = JobFolderElsewhere(connection, work)
        with opened.at_work():
            yield opened
    finally:
        connection.close()


def seqs(folder: JobFolder) -> list[int]:
    return [event.seq for event in folder.events()]


def test_events_of_an_outage_are_there_after_it_in_order(
    folder: JobFolder, control: ControlPlane, tmp_path: Path
) -> None:
    with worker(folder, control, tmp_path / "w") as opened:
        opened.append("started", attempt=1)
        control.stop()
        began_s = time.monotonic()
        for step in range(1, 2000):
            opened.append("progress", step=step)
        (opened.checkpoint / "state").write_text("1999")
        assert time.monotonic() - began_s < 5, "an outage holds up no training"
        assert seqs(folder) == [1, 2]
        control.start()
        opened.leave()
        assert (folder.checkpoint / "state").read_text() == "1999"
        assert folder.job().progress.step == 1999, "a checkpoint is left after the events before it"
        opened.append("succeeded", result={})
    assert seqs(folder) == list(range(1, 2003))
    assert [event.data["step"] for event in folder.events()[2:-1]] == list(range(1, 2000))


def test_a_post_whose_answer_was_lost_counts_once(folder: JobFolder, control: ControlPlane, tmp_path: Path) -> None:
    with worker(folder, control, tmp_path / "w") as opened:
        control.lose_answers = 4
        for step in range(1, 50):
            opened.append("progress", step=step)
        opened.append("succeeded", result={})
        assert control.lose_answers == 0
    assert seqs(folder) == list(range(1, 52))


def test_who_has_said_too_much_waits(
    folder: JobFolder, control: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_sender, "MOST_WAITING", 20)
    with worker(folder, control, tmp_path / "w") as opened:
        control.stop()
        said: list[int] = []
        thread = threading.Thread(target=lambda: said.extend(opened.append("progress", step=n) for n in range(100)))
        thread.start()
        thread.join(timeout=1.0)
        assert thread.is_alive()
        assert len(said) <= 20
        control.start()
        thread.join(timeout=30)
        opened.append("succeeded", result={})
    assert seqs(folder) == list(range(1, 103))


def test_an_outage_without_end_ends_the_attempt(folder: JobFolder, control: ControlPlane, tmp_path: Path) -> None:
    with worker(folder, control, tmp_path / "w", patience_s=0.5) as opened:
        control.stop()
        opened.append("progress", step=1)
        with pytest.raises(AttemptLostError, match="was away"):
            opened.append("succeeded", result={})
        with pytest.raises(AttemptLostError):
            _ = opened.cancel_requested
    assert folder.job().status is JobStatus.QUEUED


def test_an_attempt_that_was_followed_says_and_leaves_nothing(
    folder: JobFolder, control: ControlPlane, tmp_path: Path
) -> None:
    with worker(folder, control, tmp_path / "a") as first, worker(folder, control, tmp_path / "b") as second:
        second.append("started", attempt=2)
        with pytest.raises(AttemptLostError):
            first.append("succeeded", result={"by": "a ghost"})
        (first.checkpoint / "ghost").write_text("boo")
        with pytest.raises(AttemptLostError):
            first.leave()
        with pytest.raises(AttemptLostError):
            first.connection.put_file("bundle/model.onnx", first.checkpoint / "ghost")
        second.append("succeeded", result={"by": "the second"})
    assert folder.job().result == {"by": "the second"}
    assert not (folder.checkpoint / "ghost").exists()
    assert not list(folder.path.glob("bundle.*"))


def test_nothing_follows_a_final_event(folder: JobFolder, control: ControlPlane, tmp_path: Path) -> None:
    with worker(folder, control, tmp_path / "w") as opened:
        folder.append("cancelled")
        with pytest.raises(AttemptLostError):
            opened.append("succeeded", result={})
    assert folder.job().status is JobStatus.CANCELLED


def test_a_one_time_token_is_good_once_and_its_answer_may_be_lost(folder: JobFolder, control: ControlPlane) -> None:
    given = attempt_environment(folder, control_url=control.url)
    url = f"{given[URL_VARIABLE]}/worker/token"

    def exchange(token: str, nonce: str) -> httpx.Response:
        body = {"nonce": nonce, "pid": 1, "started_at": 1.0}
        return httpx.put(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    first = exchange(given[TOKEN_VARIABLE], "a" * 64)
    assert first.json() == exchange(given[TOKEN_VARIABLE], "a" * 64).json()
    assert exchange(given[TOKEN_VARIABLE], "b" * 64).status_code == 401
    assert exchange(SECRET, "a" * 64).status_code == 401
    assert exchange(first.json()["token"], "a" * 64).status_code == 401
    kept = (folder.path / "worker_grant.json").read_text()
    assert given[TOKEN_VARIABLE] not in kept
    assert first.json()["token"] not in kept
    again = attempt_environment(folder, control_url=control.url)
    assert exchange(given[TOKEN_VARIABLE], "a" * 64).status_code == 401, "another attempt was granted"
    assert exchange(again[TOKEN_VARIABLE], "a" * 64).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("checkpoint/../request.json", 404), ("checkpoint/%2e%2e/request.json", 422), ("checkpoint/.hidden", 422),
     ("bundle/a/b", 422), ("checkpoint/a%00b", 422), ("checkpoint/a/b/c/d/e/f", 422)],
)  # fmt: skip
def test_a_file_lies_below_its_folder(folder: JobFolder, control: ControlPlane, path: str, status: int) -> None:
    given = attempt_environment(folder, control_url=control.url)
    with connected(given[URL_VARIABLE], given[TOKEN_VARIABLE]) as connection:
        headers = {"Authorization": f"Bearer {connection.token}"}
        answer = httpx.put(f"{given[URL_VARIABLE]}/worker/{path}", content=b"x", headers=headers, timeout=60)
    assert answer.status_code in (status, 404, 405), answer.text
    assert not answer.is_success
    assert folder.spec.request == {"do": "count"}


@pytest.mark.parametrize("url", ["http://control:8005", "http://10.0.0.5", "ftp://localhost", "control:8005", ""])
def test_a_token_never_travels_in_the_clear(folder: JobFolder, url: str) -> None:
    with pytest.raises(DataValidationError, match="https"):
        attempt_environment(folder, control_url=url)
    for fine in ("https://control:8005", "http://localhost:8005", "http://127.0.0.1:8005", "http://[::1]:8005"):
        check_address(f"{fine}/api/v1/jobs/x")


def test_a_body_that_stalled_is_sent_again(folder: JobFolder, control: ControlPlane, tmp_path: Path) -> None:
    with worker(folder, control, tmp_path / "w") as opened:
        control.lose_answers, control.lost_status = 2, 408
        opened.append("progress", step=1)
        opened.append("succeeded", result={})
    assert seqs(folder) == [1, 2, 3]


def test_a_state_dir_that_is_away_ends_no_attempt(folder: JobFolder, control: ControlPlane, store: JobStore) -> None:
    given = attempt_environment(folder, control_url=control.url)
    keep(store.root)
    try:
        with connected(given[URL_VARIABLE], given[TOKEN_VARIABLE]) as connection:
            headers = {"Authorization": f"Bearer {connection.token}"}
            away = store.root.with_name("away")
            store.root.rename(away)
            store.root.mkdir()
            answer = httpx.put(f"{given[URL_VARIABLE]}/worker/beat", headers=headers, timeout=60)
            assert answer.status_code == 503, answer.text
            store.root.rmdir()
            away.rename(store.root)
            assert httpx.put(f"{given[URL_VARIABLE]}/worker/beat", headers=headers, timeout=60).is_success
    finally:
        let_go(store.root)


async def test_who_leaves_in_the_middle_of_a_body_is_no_fault_of_the_service() -> None:
    app = FastAPI()
    errors.install(app)

    @app.put("/")
    async def take(request: Request) -> None:
        await request.body()

    sent: list[Any] = []
    said = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(said)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1"}
    await app(scope, receive, send)  # what it raises the server logs with a traceback
    assert sent[0]["status"] == 400


def test_a_new_attempt_finds_nothing_that_came_halfway(
    folder: JobFolder, control: ControlPlane, tmp_path: Path
) -> None:
    for left in ("bundle.1/model.onnx", "checkpoint/.coming.network.0f", "checkpoint/network"):
        (folder.path / left).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / left).write_bytes(b"left")
    with worker(folder, control, tmp_path / "w") as opened:
        assert [each.name for each in opened.checkpoint.iterdir()] == ["network"]
    assert not list(folder.path.glob("bundle.*"))
    assert [each.name for each in folder.checkpoint.iterdir()] == ["network"]


def test_a_trial_that_lost_the_control_plane_ends_the_attempt_and_not_the_job() -> None:
    body = AttemptLostError("the control plane was away").body("")
    assert isinstance(error_of(body), AttemptLostError)
