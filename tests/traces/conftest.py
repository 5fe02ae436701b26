"""A service that sends its traces to a collector, with a live version of `small` and an agent."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.redis_server import RedisForTests
from tests.service_process import SEED_PREDICT, ServiceProcess
from tests.traces.collector import Collector

ASKED: dict[str, Any] = {**SEED_PREDICT, "price": 1.1021}
PARENT = "00f067aa0ba902b7"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


def caller(number: int, *, sampled: bool = True) -> tuple[str, dict[str, str]]:
    """A caller's trace, and the headers that say so."""
    trace = f"{number:032x}"
    return trace, {"traceparent": f"00-{trace}-{PARENT}-{int(sampled):02x}"}


def with_small(shared: ServiceProcess, folder: Path, **environment: str) -> ServiceProcess:
    """A service of its own over a copy of `small`, not yet started."""
    copy_version(registry_of(shared) / "small" / "1.0.0", folder / "registry", "small", "1.0.0")
    return ServiceProcess(folder, **environment)


def deploy(service: ServiceProcess, *, target: str = "local", **headers: str) -> httpx.Response:
    """Makes it live."""
    body = {"version": "1.0.0", "deployment_target": target}
    answer = service.client.post("/api/v1/models/small/deploy", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def predict(service: ServiceProcess, **headers: str) -> httpx.Response:
    """One prediction by the live version."""
    answer = service.client.post("/api/v1/models/small/predict", json=ASKED, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@dataclass(frozen=True)
class Traced:
    """What stands together."""

    service: ServiceProcess
    collector: Collector
    engine: StrategyEngineServer
    redis: RedisForTests


@pytest.fixture(scope="module")
def traced(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """One for the tests of a file."""
    folder = tmp_path_factory.mktemp("traced")
    redis = RedisForTests(folder / "redis_state")
    with Collector() as collector, StrategyEngineServer() as engine:
        running = with_small(
            service, folder, TRACES="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="bench",
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20collectors-own", REDIS_URL=redis.url,
            STRATEGY_ENGINE_URL=engine.url, **SOON,
        )  # fmt: skip
        try:
            running.start()
            yield Traced(running, collector, engine, redis)
        finally:
            running.close()
            redis.stop()
