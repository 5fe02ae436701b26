"""The page's process beside a real service: started once it serves, ended with it, and no burden where it cannot be."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.page.conftest import answers, page_address, wait_until
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more
Serve = Callable[..., ServiceProcess]
MOST_MIB = 120
NOT_LOADED = ("pandas", "polars", "matplotlib", "torch", "mlflow", "scipy", "pyarrow", "talib", "onnxruntime")


def pid_of(service: ServiceProcess) -> int:
    """The page's process."""
    return int(json.loads((service.folder / "state" / "page.json").read_text())["pid"])


def loaded(pid: int) -> str:
    """Files that the process has mapped: native libraries among them."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_page_lives_and_ends_with_its_service_and_knows_no_key(serve: Serve) -> None:
    service = serve(PAGE="true", API_KEY="open sesame").start()
    url = page_address(service)
    assert url == f"http://127.0.0.1:{service.port + 1}"
    pid = pid_of(service)
    assert b"sesame" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert psutil.Process(pid).memory_info().rss < MOST_MIB * 2**20
    assert not [name for name in NOT_LOADED if f"/{name}/" in loaded(pid)]
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/models").status_code == 303
        assert client.post("/login", data={"key": "guess"}).status_code == 401
        entered = client.post("/login?next=/models", data={"key": "open sesame"})
        assert (entered.status_code, entered.headers["Location"]) == (303, "/models")
        assert "sesame" not in entered.headers["Set-Cookie"]
        shown = client.get("/models")
        assert shown.status_code == 200
        assert "sesame" not in shown.text
    service.stop()
    wait_until(lambda: not answers(url))


def test_a_killed_service_takes_its_page_along_and_the_next_one_has_its_own(serve: Serve) -> None:
    service = serve(PAGE="true").start()
    url, first = page_address(service), pid_of(service)
    service.kill()
    wait_until(lambda: not answers(url))
    service.start()
    assert page_address(service) == url
    assert pid_of(service) != first
    os.kill(pid_of(service), signal.SIGKILL)  # a page that dies alone is started again
    wait_until(lambda: (service.folder / "state" / "page.json").exists() and answers(url))


def test_a_taken_port_is_said_and_harms_nothing(serve: Serve) -> None:
    service = serve(PAGE="true")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", service.port + 1))
        taken.listen()
        service.start()
        wait_until(lambda: f"port {service.port + 1} is taken" in service.output.read_text())
        assert service.client.get("/health").status_code == 200
        answer = service.client.get("/")
        assert (answer.status_code, answer.headers["Location"]) == (307, "/docs")


def test_without_a_page_the_start_address_leads_to_the_api_s_own(serve: Serve) -> None:
    service = serve().start()
    answer = service.client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (307, "/docs")
    assert not (service.folder / "state" / "page.json").exists()
