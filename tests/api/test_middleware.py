"""Who may enter: the key where there is one, else this machine alone, by the address that a request reached."""

import ipaddress
import re
import socket
from functools import lru_cache
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI

from ml_workbench_service.app import create_app
from ml_workbench_service.settings import Settings
from tests.api.conftest import KEY, Guarded
from tests.api.failures import assert_failure
from tests.service_process import ServiceProcess

OPEN = ("/health", "/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json", "/docs-assets/swagger-ui.css")
CLOSED = (
    ("GET", "/metrics"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/models/small"),
    ("GET", "/api/v1/queue"),
    ("GET", "/api/v1/jobs/any/events"),
    ("POST", "/api/v1/models/small/predict"),
    ("POST", "/api/v1/models/train"),
    ("DELETE", "/api/v1/models/small/versions/1.0.0"),
)
AMONG_US = "203.0.113.7"  # an address of documentation, only ever written into a scope


@pytest.mark.parametrize("path", OPEN)
def test_pages_and_probes_need_no_key(guarded: Guarded, path: str) -> None:
    assert httpx.get(guarded.service.url + path, timeout=60).status_code == 200


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("key", [None, "wrong", KEY + "x", KEY[:-1], KEY.upper(), ""])
def test_everything_else_needs_the_right_key(guarded: Guarded, method: str, path: str, key: str | None) -> None:
    headers = {} if key is None else {"X-API-Key": key.encode()}
    from_ = f"127.0.1.{CLOSED.index((method, path)) + 1}"  # an address that guesses more is slowed
    with httpx.Client(transport=httpx.HTTPTransport(local_address=from_), timeout=60) as caller:
        answer = caller.request(method, guarded.service.url + path, headers=headers)
    body = assert_failure(answer, 401, "AUTHENTICATION_ERROR")
    assert "X-API-Key" in body["message"]
    assert KEY not in str(body)


def test_the_right_key_opens(guarded: Guarded) -> None:
    assert guarded.client.get("/api/v1/models").status_code == 200
    assert "ml_workbench_http_requests_total" in guarded.client.get("/metrics").text


def test_a_scraper_may_send_the_key_as_a_bearer_token(guarded: Guarded) -> None:
    def status(path: str = "/metrics", **headers: str) -> int:
        named = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
        return httpx.get(guarded.service.url + path, headers=named, timeout=60).status_code

    assert status(Authorization=f"Bearer {KEY}") == 200
    assert status(Authorization=f"Bearer {KEY}", X_API_Key=KEY) == 200
    assert status(Authorization=f"Bearer {KEY}", X_API_Key="wrong") == 401
    for wrong in ("Bearer wrong", "Bearer", f"Basic {KEY}", KEY):
        assert status(Authorization=wrong) == 401
    assert status("/api/v1/models", Authorization=f"Bearer {KEY}") == 401


def test_a_request_without_a_key_changes_nothing(guarded: Guarded) -> None:
    before = guarded.client.get("/api/v1/deployments").json()
    body = {"version": "1.0.0", "deployment_target": "local"}
    answer = httpx.post(f"{guarded.service.url}/api/v1/models/small/deploy", json=body, timeout=60)
    assert_failure(answer, 401, "AUTHENTICATION_ERROR")
    assert guarded.client.get("/api/v1/deployments").json() == before


def test_the_key_is_in_no_log(guarded: Guarded) -> None:
    guarded.client.get("/api/v1/models")
    said = guarded.service.output.read_text(encoding="utf-8", errors="replace")
    assert said
    assert re.search("s3cret", said) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
async def test_without_a_key_loopback_is_answered(address: str) -> None:
    assert (await reached(server=address, client=address)).status_code == 200


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (AMONG_US, AMONG_US),
        (AMONG_US, "127.0.0.1"),
        ("127.0.0.1", AMONG_US),  # what a proxy on this machine says of a stranger
        ("0.0.0.0", "10.0.0.8"),
        ("::ffff:203.0.113.7", "::1"),
        ("localhost.example.org", "127.0.0.1"),
        ("127.0.0.1.example.org", "127.0.0.1"),
    ],
)
async def test_without_a_key_any_other_address_is_refused(server: str, client: str) -> None:
    for path in ("/health", "/api/v1/models", "/docs", "/nowhere"):
        answer = await reached(server=server, client=client, path=path)
        assert "API_KEY" in assert_failure(answer, 401, "AUTHENTICATION_ERROR")["message"]


async def test_with_a_key_any_address_is_answered() -> None:
    assert (await reached(server=AMONG_US, client=AMONG_US, api_key=KEY)).status_code == 200


@lru_cache
def app_behind(api_key: str | None) -> FastAPI:
    """The app, never started: whoever is let in finds it closed, but for the probes."""
    return create_app(Settings(API_KEY=api_key))


async def reached(*, server: str, client: str, path: str = "/health", api_key: str | None = None) -> httpx.Response:
    """The answer of the app itself, told that the request reached `server` from `client`."""
    transport = httpx.ASGITransport(app_behind(api_key), client=(client, 50_000))
    host = f"[{server}]" if ":" in server else server
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", timeout=60) as caller:
        return await caller.get(path)


def own_address() -> str | None:
    """An address of this machine that is not loopback, where it has one."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family is socket.AF_INET and not ipaddress.ip_address(each.address).is_loopback:
                return str(each.address)
    return None


def test_a_service_on_all_addresses_without_a_key_answers_loopback_alone(tmp_path: Path) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    service = ServiceProcess(tmp_path, HOST="0.0.0.0", AGENT_AUTOSTART="false")
    try:
        service.start()
        assert service.client.get("/health").status_code == 200
        assert_failure(httpx.get(f"http://{address}:{service.port}/health", timeout=60), 401, "AUTHENTICATION_ERROR")
    finally:
        service.close()


@pytest.mark.parametrize(("host", "status"), [("localhost:8005", 200), ("rebound.example", 401), ("10.0.0.7", 401)])
async def test_without_a_key_a_name_bound_to_loopback_by_a_page_of_the_web_is_refused(host: str, status: int) -> None:
    transport = httpx.ASGITransport(app_behind(None), client=("127.0.0.1", 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as caller:
        assert (await caller.get("/health", headers={"Host": host})).status_code == status
