"""Secrets: in no line, answer, event or file, though every setting that takes one has one."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from common_lib.exceptions import UpstreamError
from common_lib.logging import ConsoleFormatter, JsonFormatter
from common_lib.redaction import keep_address_secret, keep_secret, redacted, redacted_tree
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.jobs.event_log import encode
from ml_workbench_service.settings import Settings
from tests.conftest import SMALL_TRAIN
from tests.service_process import SEED_PREDICT, ServiceProcess, free_port

CANARIES = {name: f"canary-of-{name}-7f3a" for name in ("key", "store", "tracking", "redis", "engine", "page")}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://quant:s3cr3t@127.0.0.1:18106", "http://***@127.0.0.1:18106"),
        ("to http://quant:s3cr3t@127.0.0.1:181... failed", "to http://***@127.0.0.1:181... failed"),
        ("redis://:p%40ss@host:6379/0 and rediss://token@other", "redis://***@host:6379/0 and rediss://***@other"),
        ("postgresql+psycopg2://u:a@b@host/db?x=1", "postgresql+psycopg2://***@host/db?x=1"),
        ("http://host/path@2 and mail a@b.c", "http://host/path@2 and mail a@b.c"),
        ("models:/small@champion", "models:/small@champion"),
    ],
)
def test_what_stands_before_an_addresss_at_is_taken_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_kept_value_is_taken_out_wherever_it_turns_up() -> None:
    keep_secret("short", "hunter22", "hunter22-longer")
    keep_address_secret("http://quant:p%40ssword@host")
    told = "short hunter22-longer hunter22 p%40ssword p@ssword quant"
    assert redacted(told) == "short *** *** *** *** quant"
    assert redacted_tree({"hunter22": [("x", "hunter22"), 1.5, None]}) == {"***": [["x", "***"], 1.5, None]}


def test_a_secret_that_json_or_an_address_spells_otherwise_is_known_there_too() -> None:
    secret = 'pass "w\\örd/@'
    keep_secret(secret)
    record = logging.LogRecord("here", logging.INFO, "", 0, f"with {secret}", (), None)
    record.value = secret
    for said in (JsonFormatter().format(record), ConsoleFormatter().format(record)):
        assert "rd/@" not in said
        assert said.count("***") == 2
    assert redacted(f"?token={quote(secret, safe='')}") == "?token=***"


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    for long in ("a" * 2_000_000, "://" * 700_000, "://a" * 500_000):
        assert redacted(f"{long} x@y") == f"{long} x@y"


def test_every_place_that_says_something_redacts_it() -> None:
    Settings(API_KEY="hunter22-key", REDIS_URL="redis://:hunter22-redis@host:1")
    text = "hunter22-key, hunter22-redis, http://u:pw@host"
    try:
        raise ValueError(text)
    except ValueError as error:
        failure = (ValueError, error, None)
        record = logging.LogRecord("here", logging.INFO, "", 0, text, (), failure)
        record.address = text
    said = [
        JsonFormatter().format(record),
        ConsoleFormatter().format(record),
        str(UpstreamError(text, details={"url": [text]}).body("id")),
        encode(1, "warning", {"message": text, text: [text]}).decode(),
        OutsideThing(mode="remote", state="down", detail=text).detail,
    ]
    for each in said:
        assert "hunter22" not in each
        assert "pw" not in each
        assert "***, ***, http://***@host" in each


@pytest.fixture(params=["a store that does not answer", "embedded data"])
def locked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service with a secret in every setting that takes one; nobody answers at its addresses."""
    addresses = {
        name: f"http://quant:{CANARIES[name]}@127.0.0.1:{free_port()}"
        for name in ("store", "tracking", "engine", "page")
    }
    running = ServiceProcess(
        tmp_path,
        API_KEY=CANARIES["key"],
        FEATURE_STORE_URL=addresses["store"] if "store" in request.param else "embedded",
        EXPERIMENT_TRACKING_URI=addresses["tracking"],
        REDIS_URL=f"redis://quant:{CANARIES['redis']}@127.0.0.1:{free_port()}/0",
        STRATEGY_ENGINE_URL=addresses["engine"],
        PAGE_URL=addresses["page"],
        LOG_LEVEL="DEBUG",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        TABLE_IDLE_S="30",
    )
    running.client.headers["X-API-Key"] = CANARIES["key"]
    yield running.start()
    running.close()


@pytest.mark.more
def test_no_secret_is_in_any_answer_or_file(locked: ServiceProcess) -> None:
    answers = list(_asked(locked.client, locked))
    assert {200, 404, 503} & {each.status_code for each in answers}
    locked.stop()
    for answer in answers:
        assert not _found(answer.content), (answer.request.url, answer.text)
    files = [path for path in locked.folder.rglob("*") if path.is_file()]
    assert any(path.name == "service.log" and path.stat().st_size > 1000 for path in files)
    for path in files:
        assert not _found(path.read_bytes()), path


def _asked(client: httpx.Client, service: ServiceProcess) -> Iterator[httpx.Response]:
    """Answers of routes that speak of outside things, with a training in between."""
    trained = client.post("/api/v1/models/train", json=SMALL_TRAIN)
    yield trained
    if trained.status_code == 202:
        job_id = trained.json()["job_id"]
        service.wait_for_job(job_id)
        yield client.get(f"/api/v1/jobs/{job_id}")
        yield client.get(f"/api/v1/jobs/{job_id}/events")
    deploy: dict[str, Any] = {"version": "1.0.0", "deployment_target": "strategy_engine"}
    yield client.post("/api/v1/models/small/deploy", json=deploy)
    yield client.post("/api/v1/models/small/predict", json=SEED_PREDICT)
    for path in (
        "/health/ready", "/metrics", "/openapi.json", "/api/v1/features", "/api/v1/series", "/api/v1/queue",
        "/api/v1/agents", "/api/v1/models/small", "/api/v1/deployments", "/api/v1/features/EURUSD?timeframe=1h",
        "/api/v1/labels/EURUSD?timeframe=1h&target=price_change_1h",
    ):  # fmt: skip
        yield client.get(path)


def _found(content: bytes) -> list[str]:
    return [name for name, value in CANARIES.items() if value.encode() in content]


def test_a_test_that_searches_finds(tmp_path: Path) -> None:
    assert _found(os.fsencode(f"…{CANARIES['redis']}…")) == ["redis"]
