"""Traces off, which is the default, and a collector that is away."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisForTests
from tests.service_process import ServiceProcess, free_port
from tests.test_story import DUMPING_MODULES
from tests.traces.collector import Collector
from tests.traces.conftest import SOON, caller, deploy, predict, with_small

PREDICTIONS = "ml_workbench:predictions"
OURS = (
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter",
    "ml_workbench_service.integrations.span_export",
    "requests",
)

pytestmark = pytest.mark.more  # real services


@pytest.fixture
def redis_of_test(tmp_path: Path) -> Iterator[RedisForTests]:
    """A queue to look into."""
    server = RedisForTests(tmp_path / "redis_state")
    yield server
    server.stop()


def entries(server: RedisForTests, num: int) -> list[dict[bytes, bytes]]:
    """The stream's entries, once there are so many."""
    client = server.client()
    deadline = time.monotonic() + 20
    while client.xlen(PREDICTIONS) < num:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = [fields for _, fields in client.xrange(PREDICTIONS)]
    client.close()
    return found


def test_off_nothing_is_imported_and_no_entry_has_a_traceparent(
    service: ServiceProcess, tmp_path: Path, redis_of_test: RedisForTests
) -> None:
    modules = tmp_path / "modules.json"
    running = with_small(
        service, tmp_path / "off", REDIS_URL=redis_of_test.url, AGENT_AUTOSTART="false", MODULES_FILE=str(modules)
    )
    try:
        running.start([sys.executable, "-c", DUMPING_MODULES])
        _, headers = caller(1)
        deploy(running, **headers)
        predict(running, **headers)
        (entry,) = entries(redis_of_test, 1)
        assert b"correlation_id" in entry
        assert b"traceparent" not in entry
        assert "spans_dropped" not in running.client.get("/metrics").text
        assert running.process is not None
        running.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not modules.exists() or not modules.read_text().endswith("]"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        loaded = json.loads(modules.read_text())
        assert not {name for name in loaded if name.startswith(OURS)}, "what sends spans is loaded"
    finally:
        running.close()


def test_with_a_collector_that_is_away_answers_go_on_and_drops_are_counted_and_said_once(
    service: ServiceProcess, tmp_path: Path, redis_of_test: RedisForTests
) -> None:
    running = with_small(
        service, tmp_path / "away", REDIS_URL=redis_of_test.url, AGENT_AUTOSTART="false", TRACES="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_BSP_MAX_QUEUE_SIZE="20", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10", **SOON,
    )  # fmt: skip
    try:
        running.start()
        deploy(running)
        for _ in range(100):
            predict(running)
        assert len(entries(redis_of_test, 100)) >= 100
        counted = [line for line in running.client.get("/metrics").text.splitlines() if "spans_dropped_total" in line]
        assert float(counted[-1].rpartition(" ")[2]) > 0
        begun_s = time.monotonic()
        assert running.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - begun_s < 10
    finally:
        running.close()
    log = (running.folder / "logs" / "service.log").read_text(encoding="utf-8")
    assert log.count("does not take spans") == 1
    assert "opentelemetry" not in log


def test_without_a_part_of_requests_by_the_standard_sampler(
    service: ServiceProcess, tmp_path: Path, redis_of_test: RedisForTests
) -> None:
    with Collector() as collector:
        running = with_small(
            service, tmp_path / "sampled", REDIS_URL=redis_of_test.url, AGENT_AUTOSTART="false", TRACES="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0", **SOON,
        )  # fmt: skip
        try:
            running.start()
            deploy(running)
            predict(running)
            trace, headers = caller(8)
            predict(running, **headers)
            collector.named("publish predictions", trace)
            assert {each.trace for each in collector.spans} == {trace}
        finally:
            running.close()
