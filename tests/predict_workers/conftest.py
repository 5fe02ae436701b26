"""A service with two predict workers, and the load that real clients put on it."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, ServiceProcess

NUM_WORKERS = 2
PATIENCE_S = 60.0
ASKED = {**SEED_PREDICT, "price": 1.1021}


def start(service: ServiceProcess, folder: Path, **environment: str) -> ServiceProcess:
    """A service behind two workers, with both versions of `small`, of which 1.0.0 is live."""
    for version in ("1.0.0", "1.1.0"):
        copy_version(registry_of(service) / "small" / version, folder / "registry", "small", version)
    variables = {"PREDICT_WORKERS": str(NUM_WORKERS), "AGENT_AUTOSTART": "false", **environment}
    running = ServiceProcess(folder, **variables)
    if "API_KEY" in variables:
        running.client.headers["X-API-Key"] = variables["API_KEY"]
    running.start()
    wait_until(lambda: len(workers_of(running)) == NUM_WORKERS and is_whole(running))
    deploy(running, "1.0.0")
    return running


@pytest.fixture(scope="module")
def several(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One for the tests of a file, which may kill its workers and leave it whole."""
    running = start(service, tmp_path_factory.mktemp("several"))
    yield running
    running.close()


def deploy(service: ServiceProcess, version: str) -> None:
    """Makes a version live, with every answer in the ledger."""
    body = {"version": version, "deployment_target": "local", "monitoring_level": "high"}
    answer = service.client.post("/api/v1/models/small/deploy", json=body)
    assert answer.status_code == 200, answer.text


def wait_until(holds: Callable[[], bool]) -> None:
    """Looks again and again; a machine that is busy may take its time."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def workers_of(service: ServiceProcess) -> dict[int, psutil.Process]:
    """The workers that live, by number."""
    assert service.process is not None
    return workers_below(service.process.pid)


def workers_below(pid: int) -> dict[int, psutil.Process]:
    """The same, of the control process with this pid."""
    found = {}
    for child in psutil.Process(pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "--number" in words and child.status() != psutil.STATUS_ZOMBIE:
            found[int(words[words.index("--number") + 1])] = child
    return found


def readiness(service: ServiceProcess) -> dict[str, Any]:
    """What /health/ready says of the workers."""
    thing: dict[str, Any] = service.client.get("/health/ready").json()["things"]["predict_workers"]
    return thing


def is_whole(service: ServiceProcess) -> bool:
    """Whether all workers serve."""
    try:
        return readiness(service)["detail"].startswith(f"{NUM_WORKERS} of {NUM_WORKERS} serve")
    except httpx.TransportError:
        return False


def figure(service: ServiceProcess, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    total = 0.0
    for line in service.client.get("/metrics").text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(
            f'{key}="{each}"' in line for key, each in labels.items()
        ):
            total += float(line.rpartition(" ")[2])
    return total


def is_in_force(service: ServiceProcess) -> bool:
    """Whether every worker knows all that the control process has learnt of what they handed over."""
    service.client.get("/api/v1/predictions", params={"limit": 1})  # applies it
    published = figure(service, "ml_workbench_serving_state_published")
    return all(
        figure(service, "ml_workbench_serving_state_news", worker=str(number)) >= published
        for number in range(NUM_WORKERS)
    )


def in_the_ledger(service: ServiceProcess) -> dict[str, dict[str, Any]]:
    """All rows, by prediction."""
    found: dict[str, dict[str, Any]] = {}
    cursor = None
    while True:
        params = {"limit": 200} | ({"cursor": cursor} if cursor else {})
        answer = service.client.get("/api/v1/predictions", params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found |= {row["prediction_id"]: row for row in page["predictions"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found


class Load:
    """Clients that ask one question after the other, each over a connection of its own, and rest for `pause_s`."""

    def __init__(self, url: str, num: int = 6, *, body: dict[str, Any] = ASKED, pause_s: float = 0.0) -> None:
        self._url, self._body, self._pause_s = url, body, pause_s
        self._stopping = threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.broken: list[Exception] = []
        """Connections that broke with a question on them, or could not be made."""
        self.refused: list[str] = []
        """Answers that were no 200."""
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(num)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stopping.is_set():
            with httpx.Client(base_url=self._url, timeout=60.0) as client:
                try:
                    while not self._stopping.is_set():
                        answer = client.post("/api/v1/models/small/predict", json=self._body)
                        if answer.status_code == 200:
                            self.answers.append(answer.json())
                        else:
                            self.refused.append(answer.text)
                        if self._pause_s:
                            self._stopping.wait(self._pause_s)
                except httpx.TransportError as error:
                    self.broken.append(error)
                    self._stopping.wait(0.02)

    def wait_for(self, num: int) -> None:
        """Until so many more were answered."""
        wanted = len(self.answers) + num
        wait_until(lambda: len(self.answers) >= wanted)

    def stop(self) -> None:
        """Ends it."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE_S)


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what names this one answer."""
    plain = {name: value for name, value in record.items() if name != "prediction_id"}
    plain["metadata"] = {
        name: value for name, value in record["metadata"].items() if not re.search("correlation|deployment", name)
    }
    return plain
