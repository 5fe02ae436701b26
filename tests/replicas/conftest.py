"""A control plane, replicas that share nothing with it but Redis and the registry, and clients of all of them."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clocked_service import CLOCK_FILE
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.predict_workers.conftest import Load, deploy, figure, in_the_ledger, wait_until
from tests.redis_server import RedisForTests
from tests.service_process import ServiceProcess

NUM_REPLICAS = 3
PREDICT = "/api/v1/models/small/predict"
REPLICA = [sys.executable, "-m", "tests.replicas.clocked_replica"]
BOTH = ("1.0.0", "1.1.0")


def replica_of(control: ServiceProcess, folder: Path, redis_url: str, **environment: str) -> ServiceProcess:
    """A replica, not started; it has a folder of its own, and reads the control plane's registry and clock."""
    variables = {
        "ROLE": "predict", "REDIS_URL": redis_url, "MODEL_REGISTRY_PATH": str(control.folder / "registry"),
        "FEATURE_STORE_URL": "", "CONTROL_URL": control.url, CLOCK_FILE: str(control.folder / "clock"), **environment,
    }  # fmt: skip
    return ServiceProcess(folder, **variables)


def is_ready(replica: ServiceProcess) -> bool:
    """Whether /health/ready says so."""
    with suppress(httpx.TransportError):
        return replica.client.get("/health/ready").status_code == 200
    return False


@dataclass
class Fleet:
    """A control plane and its replicas."""

    control: ServiceProcess
    replicas: list[ServiceProcess]
    redis: RedisForTests
    folder: Path

    def wait_until_ready(self) -> None:
        """Until each of them is."""
        wait_until(lambda: all(map(is_ready, self.replicas)))

    def things(self, number: int = 0) -> dict[str, Any]:
        """What a replica's readiness says of what it lives by."""
        answer = self.replicas[number].client.get("/health/ready").json()
        return dict(answer.get("things") or answer["details"]["things"])

    def ask(self, number: int, body: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A prediction of one replica."""
        answer = self.replicas[number].client.post(PREDICT, json=body, **more)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def is_level(self) -> bool:
        """Whether the replicas know all that the control plane has learnt of what they handed over."""
        self.control.client.get("/api/v1/predictions", params={"limit": 1})  # applies it
        published = figure(self.control, "ml_workbench_serving_state_published")
        return all(figure(each, "ml_workbench_serving_state_news") >= published for each in self.replicas)

    def lost_to_the_ledger(self, load: "FleetLoad") -> set[str]:
        """What was answered and gets no row, once all that was handed over is applied."""
        asked = {record["prediction_id"] for record in load.answers}
        lost: set[str] = set()

        def is_complete() -> bool:
            nonlocal lost
            lost = asked - in_the_ledger(self.control).keys()
            return not lost or not self.is_quiet()

        wait_until(is_complete)
        return lost

    def is_quiet(self) -> bool:
        """Whether nothing is on its way to the ledger any more."""
        client = self.redis.client()
        try:
            waiting = sum(figure(each, "ml_workbench_handover_waiting") for each in self.replicas if each.process)
            return waiting == 0 and client.xlen("ml_workbench:handover") == 0
        finally:
            client.close()


class FleetLoad:
    """Clients of several replicas; what `Load` says of one, of all. They leave the processors time for whoever starts
    again meanwhile."""

    def __init__(self, urls: list[str], num_each: int = 1, *, pause_s: float = 0.02) -> None:
        self.loads = [Load(url, num_each, pause_s=pause_s) for url in urls]

    @property
    def answers(self) -> list[dict[str, Any]]:
        """All of them."""
        return [record for each in self.loads for record in each.answers]

    @property
    def failed(self) -> list[object]:
        """What was no answer of 200."""
        return [fault for each in self.loads for fault in (*each.broken, *each.refused)]

    def wait_for(self, num: int) -> None:
        """Until each replica has answered so many more."""
        wanted = [len(each.answers) + num for each in self.loads]
        wait_until(lambda: all(len(each.answers) >= num for each, num in zip(self.loads, wanted, strict=True)))

    def stop(self) -> None:
        """Ends it."""
        for each in self.loads:
            each.stop()


def start_fleet(service: ServiceProcess, folder: Path, stack: ExitStack, num: int = NUM_REPLICAS) -> Fleet:
    """A control plane with both versions of `small`, of which 1.0.0 is live, and replicas that are ready."""
    redis = RedisForTests(folder / "redis_state")
    stack.callback(redis.stop)
    home = folder / "control"
    for version in BOTH:
        copy_version(registry_of(service) / "small" / version, home / "registry", "small", version)
    control = ServiceProcess(home, ROLE="control", REDIS_URL=redis.url, AGENT_AUTOSTART="false")
    stack.callback(control.close)
    replicas = [replica_of(control, folder / f"replica{number}", redis.url) for number in range(num)]
    for each in replicas:
        stack.callback(each.close)
    control.start()
    deploy(control, "1.0.0")
    with ThreadPoolExecutor(num) as pool:
        list(pool.map(lambda each: each.start(REPLICA), replicas))
    fleet = Fleet(control, replicas, redis, folder)
    fleet.wait_until_ready()
    return fleet


@pytest.fixture(scope="module")
def fleet(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for the tests of a file, each of which leaves it whole."""
    with ExitStack() as stack:
        yield start_fleet(service, tmp_path_factory.mktemp("fleet"), stack)
