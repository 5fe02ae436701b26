"""`uvicorn ml_workbench_service.main:app --reload`: the API restarts, trainings go on, open streams do not hold it."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

PAGE_MODULE = "ml_workbench_client.page"


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that can be reloaded, without its page."""
    yield from reloaded_service(tmp_path)


@pytest.fixture
def reloading_with_page(tmp_path: Path) -> Iterator[ServiceProcess]:
    """The same with its page."""
    yield from reloaded_service(tmp_path, PAGE="true", PAGE_PORT=str(port_of_no_client()))


def port_of_no_client() -> int:
    """A free port that no outgoing connection is given, so that nobody takes it while the page is between two lives."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def reloaded_service(tmp_path: Path, **environment: str) -> Iterator[ServiceProcess]:
    """The seed's development command, watching a folder of its own so that the test can touch a file in it."""
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "touched.py").write_text("")
    service = ServiceProcess(tmp_path, AGENT_AUTOSTART="false", **environment)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "ml_workbench_service.main:app",
        "--reload",
        "--reload-dir",
        str(watched),
    ]
    yield service.start([*command, "--port", str(service.port)])
    service.close()


def test_a_training_and_an_open_stream_survive_a_reload(reloading: ServiceProcess, tmp_path: Path) -> None:
    hyperparameters = {"lstm_units": 4, "epochs": 2000, "batch_size": 512, "patience": 2000}
    accepted = reloading.client.post("/api/v1/models/train", json={**SMALL_TRAIN, "hyperparameters": hyperparameters})
    job_id = accepted.json()["job_id"]
    wait_until(lambda: reloading.client.get(f"/api/v1/jobs/{job_id}").json()["progress"]["step"] >= 2)
    following = threading.Event()
    follower = threading.Thread(target=follow, args=(reloading.url, job_id, following), daemon=True)
    follower.start()
    before = api_process(reloading)
    wait_until(following.is_set)  # else it may reach the next process, and follow that one to the training's end
    (tmp_path / "watched" / "touched.py").write_text("# changed\n")
    wait_until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
    follower.join(timeout=120)
    assert not follower.is_alive(), "the stream ended with the old API process"
    wait_until(lambda: is_up(reloading))
    step = reloading.client.get(f"/api/v1/jobs/{job_id}").json()["progress"]["step"]
    wait_until(lambda: reloading.client.get(f"/api/v1/jobs/{job_id}").json()["progress"]["step"] > step)
    assert reloading.client.get(f"/api/v1/jobs/{job_id}").json()["attempt"] == 1
    reloading.client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert reloading.wait_for_job(job_id, timeout_s=120)["status"] == "cancelled"


def test_after_a_reload_there_is_one_page_at_the_same_address(
    reloading_with_page: ServiceProcess, tmp_path: Path
) -> None:
    """The old page ends with the old API process, the new one gets its port, and none is left when the service ends."""
    service = reloading_with_page
    assert service.process is not None
    reloader = psutil.Process(service.process.pid)
    wait_until(lambda: page_address(service))
    address, (page,) = page_address(service), pages_below(reloader)
    assert httpx.get(address, timeout=30).status_code == 200
    for change in ("# once\n", "# twice\n"):
        before = api_process(service)
        (tmp_path / "watched" / "touched.py").write_text(change)
        wait_until(lambda gone=before: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE)
        wait_until(lambda: is_up(service) and page_address(service))
        assert page_address(service) == address
        assert not page.is_running(), "the page before"
        (page,) = pages_below(reloader)
        wait_until(lambda: httpx.get(address, timeout=30).status_code == 200)
    assert "is taken" not in service.output.read_text()
    service.stop()
    wait_until(lambda: not page.is_running())


def page_address(service: ServiceProcess) -> str:
    """Where the service's start address leads; empty until it leads to its page."""
    answer = service.client.get("/")
    return answer.headers["Location"] if answer.status_code == 307 else ""


def pages_below(process: psutil.Process) -> list[psutil.Process]:
    """Every page's process that belongs to it, whichever API process started it."""
    return [
        each
        for each in process.children(recursive=True)
        if each.status() != psutil.STATUS_ZOMBIE and PAGE_MODULE in each.cmdline()
    ]


def follow(url: str, job_id: str, following: threading.Event) -> None:
    """Reads the job's events until the server ends the stream; says when the first has come."""
    try:
        with httpx.stream("GET", f"{url}/api/v1/jobs/{job_id}/events", timeout=60) as answer:
            for _ in answer.iter_lines():
                following.set()
    except httpx.TransportError:
        return


def api_process(service: ServiceProcess) -> psutil.Process:
    """The reloader's child that serves."""
    assert service.process is not None
    children = psutil.Process(service.process.pid).children()
    return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))


def is_up(service: ServiceProcess) -> bool:
    """Whether the API answers."""
    try:
        return service.client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition, *, limit_s: float = 200.0) -> None:  # type: ignore[no-untyped-def]
    """Waits for a condition."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
