"""Dead letters and guaranteed enqueueing over HTTP, and the queue's figures in `/metrics`."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ml_workbench_service.api.pages import cursor_of
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.api.conftest import KEY, Guarded
from tests.api.failures import assert_failure, paths
from tests.api.test_queue import deploy
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests
from tests.service_process import SEED_PREDICT, ServiceProcess

LETTERS = "/api/v1/queue/dead-letters"
FORECAST = "/api/v1/models/small/predict"


@pytest.fixture
def queue(guarded: Guarded) -> Iterator[RedisPredictionQueue]:
    """The guarded service's stream, emptied, with one group that reads it."""
    client = guarded.redis.client()
    client.flushall()
    client.close()
    opened = RedisPredictionQueue(guarded.redis.url, capacity=100)
    opened.create_group("reader")
    yield opened
    opened.close()


def give_up(queue: RedisPredictionQueue, *numbers: int) -> None:
    """So many records, each a dead letter."""
    queue.publish([prediction_record(number) for number in numbers])
    for delivery in queue.consume("reader", "test", block_ms=0):
        queue.dead_letter("reader", delivery, f"no costs for {delivery.entry_id}")


def test_dead_letters_are_shown_paged_requeued_and_thrown_away(guarded: Guarded, queue: RedisPredictionQueue) -> None:
    give_up(queue, 1, 2, 3)
    first = guarded.client.get(LETTERS, params={"limit": 2}).json()
    rest = guarded.client.get(LETTERS, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    letters = first["dead_letters"] + rest["dead_letters"]
    assert [letter["prediction_id"] for letter in letters] == ["EUR/USD-1", "EUR/USD-2", "EUR/USD-3"]
    assert rest["next_cursor"] is None
    assert letters[0]["reason"] == f"no costs for {letters[0]['entry_id']}"
    assert (letters[0]["group"], letters[0]["fields"]["symbol"]) == ("reader", "EUR/USD")

    back = guarded.client.post(f"{LETTERS}/{letters[1]['id']}/requeue")
    assert (back.status_code, back.json()["group"]) == (200, "reader")
    (delivery,) = queue.consume("reader", "test", block_ms=0)
    assert (delivery.entry_id, delivery.record and delivery.record.prediction_id) == (
        back.json()["entry_id"],
        "EUR/USD-2",
    )
    assert guarded.client.delete(f"{LETTERS}/{letters[0]['id']}").status_code == 204
    assert [each["id"] for each in guarded.client.get(LETTERS).json()["dead_letters"]] == [letters[2]["id"]]
    accounting = guarded.client.get("/api/v1/queue").json()
    assert accounting["dead_letters"] == 1
    (group,) = accounting["groups"]
    assert (group["dead_lettered"], group["balance"]) == (3, 0)
    assert group["by_symbol"] == {"EUR/USD": {"dropped_oldest": 0, "expired": 0, "dead_lettered": 3}}


def test_letters_that_are_not_there_are_not_found(guarded: Guarded, queue: RedisPredictionQueue) -> None:
    assert_failure(guarded.client.post(f"{LETTERS}/1-0/requeue"), 404, "DEAD_LETTER_NOT_FOUND")
    assert_failure(guarded.client.delete(f"{LETTERS}/1-0"), 404, "DEAD_LETTER_NOT_FOUND")
    assert_failure(guarded.client.delete(f"{LETTERS}/first"), 422, "DATA_VALIDATION_ERROR")
    assert_failure(guarded.client.delete(f"{LETTERS}/\u0661-\u0661"), 422, "DATA_VALIDATION_ERROR")
    for cursor in ("???", cursor_of("nonsense"), cursor_of("\u0661-\u0661"), cursor_of("7.1-0")):
        answer = guarded.client.get(LETTERS, params={"cursor": cursor})
        assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == ["query.cursor"]


def test_a_redis_that_hangs_holds_up_whoever_asks_for_it_and_nobody_else(
    guarded: Guarded, queue: RedisPredictionQueue
) -> None:
    url = guarded.client.base_url
    request = (
        f"GET /api/v1/queue HTTP/1.1\r\nHost: {url.netloc.decode()}\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
    )
    assert guarded.redis.embedded.pid is not None
    os.kill(guarded.redis.embedded.pid, signal.SIGSTOP)
    try:
        asking = [socket.create_connection((url.host, url.port or 80)) for _ in range(30)]
        for each in asking:
            each.sendall(request.encode())
        for _ in range(50):  # answered by the loop itself, which has come to the requests above by then
            guarded.client.get("/health").raise_for_status()
        began = time.monotonic()
        guarded.client.get("/api/v1/models").raise_for_status()
        waited_s = time.monotonic() - began
    finally:
        os.kill(guarded.redis.embedded.pid, signal.SIGCONT)
    assert waited_s < 4.0, "it waited for threads that wait for Redis"
    for each in asking:
        each.settimeout(30)
        assert each.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
        each.close()


def test_a_guaranteed_record_is_in_the_stream_when_the_answer_comes(
    guarded: Guarded, queue: RedisPredictionQueue
) -> None:
    deploy(guarded.client, "small")
    record = guarded.client.post(FORECAST, params={"enqueue": "guaranteed"}, json=SEED_PREDICT).json()
    (delivery,) = queue.consume("reader", "test", block_ms=0)
    assert delivery.record is not None
    assert delivery.record.prediction_id == record["prediction_id"]
    answer = guarded.client.post(f"{FORECAST}/batch", params={"enqueue": "guaranteed"}, json={"items": [SEED_PREDICT]})
    (delivery,) = queue.consume("reader", "test", block_ms=0)
    assert delivery.record is not None
    assert answer.json()["predictions"][0]["prediction_id"] == delivery.record.prediction_id


def test_a_candidates_record_cannot_be_guaranteed(guarded: Guarded, queue: RedisPredictionQueue) -> None:
    deploy(guarded.client, "small")
    body = {**SEED_PREDICT, "version": "1.1.0"}
    refused = assert_failure(
        guarded.client.post(FORECAST, params={"enqueue": "guaranteed"}, json=body), 409, "NOT_LIVE"
    )
    assert "deploy" in refused["message"]
    assert_failure(
        guarded.client.post(FORECAST, params={"enqueue": "perhaps"}, json=SEED_PREDICT), 422, "DATA_VALIDATION_ERROR"
    )
    items = {"items": [SEED_PREDICT, body]}
    answers = guarded.client.post(f"{FORECAST}/batch", params={"enqueue": "guaranteed"}, json=items).json()
    assert [each.get("error_code") for each in answers["predictions"]] == [None, "NOT_LIVE"]


@pytest.fixture(scope="module")
def small_queue(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A service whose queue takes two records, refuses more, and has nobody to read them."""
    folder: Path = tmp_path_factory.mktemp("small_queue")
    for version in ("1.0.0", "1.1.0"):
        copy_version(registry_of(service) / "small" / version, folder / "registry", "small", version)
    redis = RedisForTests(folder / "redis_state")
    running = ServiceProcess(
        folder,
        REDIS_URL=redis.url,
        AGENT_AUTOSTART="false",
        PREDICTION_QUEUE_CAPACITY="2",
        PREDICTION_QUEUE_POLICY="reject",
        PREDICTION_QUEUE_SHARDS="2",
    )
    try:
        running.start()
        yield Guarded(running, None, redis, 0)  # type: ignore[arg-type]
    finally:
        running.close()
        redis.stop()


def test_at_capacity_reject_answers_503_to_whoever_must_know_and_200_to_others(small_queue: Guarded) -> None:
    client: httpx.Client = small_queue.client
    deploy(client, "small")
    for _ in range(2):
        client.post(FORECAST, params={"enqueue": "guaranteed"}, json=SEED_PREDICT).raise_for_status()
    answer = client.post(FORECAST, params={"enqueue": "guaranteed"}, json=SEED_PREDICT)
    assert "GET /api/v1/queue" in assert_failure(answer, 503, "QUEUE_FULL")["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    client.post(FORECAST, json=SEED_PREDICT).raise_for_status()
    client.post(FORECAST, params={"enqueue": "guaranteed"}, json=SEED_PREDICT)  # behind the one before it
    accounting = client.get("/api/v1/queue").json()
    assert (accounting["policy"], accounting["capacity"], accounting["num_shards"], accounting["length"]) == (
        "reject",
        2,
        2,
        2,
    )
    assert (accounting["refused"], accounting["refused_by_symbol"]) == (3, {"EUR/USD": 3})
    assert [shard["length"] for shard in accounting["shards"]] in ([2, 0], [0, 2])

    text = client.get("/metrics").text
    assert re.search(r'^ml_workbench_queue_refused_total\{symbol="EUR/USD"\} 3\.0$', text, re.M)
    assert re.search(r'^ml_workbench_queue_length\{stream="ml_workbench:predictions:shard\dof2"\} 2\.0$', text, re.M)
    assert re.search(r"^ml_workbench_queue_enqueue_seconds_count [45]\.0$", text, re.M)
    assert "ml_workbench_queue_up 1.0" in text
