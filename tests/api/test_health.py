"""`/health…` and `/metrics`: cheap for probes, honest about what is away, and countable."""

import re
import shutil
import subprocess
import time

import httpx
import pytest

from tests.api.conftest import Guarded
from tests.api.failures import assert_failure
from tests.service_process import SEED_PREDICT


def samples(client: httpx.Client) -> dict[str, float]:
    """Every sample of `/metrics` by name and labels."""
    text = client.get("/metrics").text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_metrics_count_by_route_and_never_by_what_a_caller_makes_up(api: httpx.Client) -> None:
    before = samples(api)
    for name in ("one", "two"):
        api.get(f"/api/v1/models/unheard_{name}")
        api.get(f"/made-up/{name}")
    api.post("/api/v1/models/small/predict", json=SEED_PREDICT).raise_for_status()
    after = samples(api)
    assert api.get("/metrics").headers["Content-Type"].startswith("text/plain")
    assert all(name.startswith(("ml_workbench_", "process_")) for name in after)
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= after.keys()
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    requests = 'ml_workbench_http_requests_total{method="%s",route="%s",status="%s"}'
    assert grown[requests % ("GET", "/api/v1/models/{model_id}", 404)] == 2
    assert grown[requests % ("GET", "unmatched", 404)] == 2
    assert grown[requests % ("POST", "/api/v1/models/{model_id}/predict", 200)] == 1
    assert grown['ml_workbench_http_request_seconds_count{route="/api/v1/models/{model_id}/predict"}'] == 1
    answered = [name for name in grown if name.startswith("ml_workbench_predictions_total{")]
    assert len(answered) == 1
    assert 'model_id="small"' in answered[0]
    assert not re.search("unheard|made-up", str(after))


def test_promtool_finds_nothing_in_the_metrics(guarded: Guarded) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine: apt-get install prometheus")
    guarded.client.get("/api/v1/models").raise_for_status()
    text = guarded.client.get("/metrics").text
    assert "ml_workbench_queue_enqueue_seconds_bucket" in text
    found = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_while_redis_is_away_predictions_answer_and_nothing_is_lost(guarded: Guarded) -> None:
    client = guarded.client
    body = {"version": "1.0.0", "deployment_target": "local"}
    client.post("/api/v1/models/small/deploy", json=body).raise_for_status()
    assert client.get("/health/ready").json()["status"] == "ready"
    guarded.redis.stop()
    try:
        record = client.post("/api/v1/models/small/predict", json=SEED_PREDICT).json()
        assert record["role"] == "champion"
        answer = client.get("/api/v1/queue")
        assert_failure(answer, 503, "UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) >= 1
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["things"]["redis"]["state"] == "down"
        assert client.get("/health").json()["status"] == "healthy"
        assert client.post("/api/v1/models/small/deploy", json={**body, "version": "1.1.0"}).status_code == 200
    finally:
        guarded.redis.start()
    stream = guarded.redis.client()
    deadline = time.monotonic() + 60
    found: list[bytes] = []
    while record["prediction_id"].encode() not in found and time.monotonic() < deadline:
        found = [fields[b"prediction_id"] for _, fields in stream.xrange("ml_workbench:predictions")]
        time.sleep(0.05)
    stream.close()
    assert found.count(record["prediction_id"].encode()) == 1
    assert client.get("/health/ready").json()["status"] == "ready"
