"""Keys before two workers: each checks them as one process would, and together they count as one."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_workbench_service.access.key_ring import USES_FILE, read_uses
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.limits import NUM_FREE_FAILURES
from ml_workbench_service.access.operations import Scope
from tests.api.failures import assert_failure
from tests.predict_workers.conftest import ASKED, NUM_WORKERS, start, wait_until, workers_of
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

PREDICT = "/api/v1/models/small/predict"
OUTCOME = "/api/v1/predictions/absent/outcome"
API_KEY = "a-key-of-tests-only"
OTHER_ADDRESS = "127.0.0.2"
Clients = Callable[..., list[httpx.Client]]


@pytest.fixture(scope="module")
def locked(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Behind an API_KEY."""
    running = start(service, tmp_path_factory.mktemp("locked"), API_KEY=API_KEY, REQUEST_HEADERS_S="3")
    yield running
    running.close()


@pytest.fixture
def file(locked: ServiceProcess) -> KeyFile:
    return KeyFile(locked.folder / "state" / KEYS_FILE)


@pytest.fixture
def clients(locked: ServiceProcess) -> Iterator[Clients]:
    """A connection to each worker, with a key: they are dealt out evenly."""
    with ExitStack() as stack:

        def connect(key: str, *, address: str = "127.0.0.1") -> list[httpx.Client]:
            found: dict[str, httpx.Client] = {}

            def has_all() -> bool:
                made = stack.enter_context(
                    httpx.Client(
                        base_url=locked.url, headers={"X-API-Key": key}, timeout=60.0,
                        transport=httpx.HTTPTransport(local_address=address),
                    )
                )  # fmt: skip
                assert made.get("/health").status_code == 200
                found[_worker_of(locked, made)] = made
                return len(found) == NUM_WORKERS

            wait_until(has_all)
            return list(found.values())

        yield connect


def _worker_of(service: ServiceProcess, client: httpx.Client) -> str:
    """Which worker holds the newest of this client's connections."""
    stream = client._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
    ours = stream.get_extra_info("client_addr")
    for number, worker in workers_of(service).items():
        if any(each.raddr and tuple(each.raddr) == tuple(ours) for each in worker.net_connections("tcp")):
            return str(number)
    raise AssertionError("no worker holds it")


def ask(client: httpx.Client, path: str = PREDICT, body: dict[str, Any] = ASKED) -> httpx.Response:
    return client.post(path, json=body)


def test_a_key_opens_what_its_scope_says_at_every_worker_until_it_is_revoked(clients: Clients, file: KeyFile) -> None:
    right, record = file.create("predicts", [Scope.PREDICT])
    wrong, _ = file.create("reads", [Scope.READ])
    readers = clients(wrong)
    predictors = clients(right)
    for client in predictors:
        wait_until(lambda client=client: ask(client).status_code == 200)  # type: ignore[misc]
        assert_failure(client.get("/api/v1/models"), 403, "AUTHORIZATION_ERROR")  # passed on
    for client in readers:
        assert_failure(ask(client), 403, "AUTHORIZATION_ERROR")
        assert client.get("/api/v1/models").status_code == 200
    for client in clients("mlw_01234567_nothing"):
        assert_failure(ask(client), 401, "AUTHENTICATION_ERROR")
    file.revoke(record.id)
    time.sleep(1.0)
    for client in predictors:
        assert_failure(ask(client), 401, "AUTHENTICATION_ERROR")


def test_a_quota_holds_over_workers_and_what_they_pass_on(clients: Clients, file: KeyFile) -> None:
    key, record = file.create("has_seven", [Scope.PREDICT], requests_per_day=7)
    asking = clients(key)
    for client in asking:
        wait_until(lambda client=client: ask(client).status_code == 200)  # type: ignore[misc]
    statuses = [ask(client).status_code for client in asking]
    statuses += [ask(client, OUTCOME, {"value": 0.0}).status_code for client in asking]
    assert 429 not in statuses
    assert [ask(asking[0]).status_code, ask(asking[1]).status_code] == [200, 429]
    assert ask(asking[0]).status_code == 429
    refused = ask(asking[1], OUTCOME, {"value": 0.0})
    assert refused.status_code == 429
    assert refused.json()["details"]["key"] == record.id


def test_guesses_are_counted_once_by_the_address_that_they_came_from(locked: ServiceProcess, clients: Clients) -> None:
    begun = time.monotonic()
    guessing = clients("wrong-key", address=OTHER_ADDRESS)
    statuses = [ask(guessing[turn % NUM_WORKERS]).status_code for turn in range(4 * NUM_FREE_FAILURES)]
    most = NUM_FREE_FAILURES + 1 + (time.monotonic() - begun)
    assert statuses[:NUM_FREE_FAILURES] == [401] * NUM_FREE_FAILURES
    assert statuses.count(401) <= most
    assert set(statuses) == {401, 429}
    for client in clients(API_KEY):
        assert ask(client).status_code == 200, "another address is not slowed"
    answer = locked.client.post("/api/v1/models/small/undeploy", headers={"Origin": "http://elsewhere"})
    assert_failure(answer, 403, "CROSS_SITE")


def test_changes_are_audited_with_the_address_of_who_asked(locked: ServiceProcess) -> None:
    with httpx.Client(
        transport=httpx.HTTPTransport(local_address="127.0.0.3"), base_url=locked.url, timeout=60.0
    ) as client:
        path = "/api/v1/models/absent/undeploy"
        answer = client.post(
            path, headers={"X-API-Key": API_KEY, "x-ml-workbench-peer": '[["10.0.0.1",1],null,"http"]'}
        )
        assert answer.status_code == 404
    entries = locked.client.get("/api/v1/audit").json()["audit"]
    assert [each["address"] for each in entries if each["on"] == path] == ["127.0.0.3"]  # of the line `asked`


def test_a_half_sent_request_is_ended_by_its_worker(locked: ServiceProcess) -> None:
    with socket.create_connection(("127.0.0.1", locked.port)) as half:
        half.settimeout(60.0)
        half.sendall(b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: ")
        assert half.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_the_control_process_alone_keeps_last_uses(locked: ServiceProcess, clients: Clients, file: KeyFile) -> None:
    key, record = file.create("is_kept", [Scope.PREDICT])
    for client in clients(key):
        wait_until(lambda client=client: ask(client).status_code == 200)  # type: ignore[misc]
    uses: Path = locked.folder / "state" / USES_FILE
    locked.stop()
    kept = read_uses(uses)[record.id]
    assert kept["num_today"] == NUM_WORKERS
    assert kept["used_at_s"] > 0
