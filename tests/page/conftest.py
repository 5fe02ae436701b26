"""A service with its page, a browser beside it, and proof that no request leaves the machine."""

import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, WebSocket, expect, sync_playwright

from tests.figures.browser import chromium
from tests.service_process import ServiceProcess

PAGE_TIMEOUT_S = 120.0
OWN_HOSTS = ("127.0.0.1", "localhost")
LINEAR: dict[str, Any] = {
    "name": "Hourly <b>linear</b> ${7*7} `x`",
    "model_id": "hourly",
    "model_type": "time_series",
    "family": "linear",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2024-09-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
}
"""Its name is what nobody may run: it must be read on the page as it is written."""


def wait_until(what: Callable[[], Any], *, timeout_s: float = PAGE_TIMEOUT_S) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"it did not come true within {timeout_s} s")


def page_address(service: ServiceProcess) -> str:
    """Where the service's start address leads, once it leads there."""

    def led() -> str:
        answer = service.client.get("/")
        return answer.headers["Location"] if answer.status_code == 307 else ""

    found: str = wait_until(led)
    return found.rstrip("/")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Makes services over one folder, by what their environment says; they are closed at the end."""
    made: list[ServiceProcess] = []

    def make(**environment: str) -> ServiceProcess:
        made.append(ServiceProcess(tmp_path, **environment))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with its page and one trained model."""
    running = ServiceProcess(tmp_path_factory.mktemp("paged"), PAGE="true").start()
    running.train(LINEAR)
    yield running
    running.close()


@pytest.fixture(scope="module")
def page_url(paged: ServiceProcess) -> str:
    """The page's address."""
    return page_address(paged)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])


class Looking:
    """One page of a browser, with everything that it asked for and everything that it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.abroad: list[str] = []
        self.complaints: list[str] = []
        page.context.route("**/*", self._route)
        page.on("websocket", self._websocket)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(PAGE_TIMEOUT_S * 1000)
        expect.set_options(timeout=PAGE_TIMEOUT_S * 1000)

    def _route(self, route: Route) -> None:
        if urlsplit(route.request.url).hostname in OWN_HOSTS:
            route.continue_()
            return
        self.abroad.append(route.request.url)
        route.abort()

    def _websocket(self, opened: WebSocket) -> None:
        if urlsplit(opened.url).hostname not in OWN_HOSTS:
            self.abroad.append(opened.url)


@pytest.fixture
def looking(browser: Browser) -> Iterator[Looking]:
    """A page that is checked at its end: nothing was asked of another machine, and no script failed."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    found = Looking(context.new_page())
    yield found
    context.close()
    assert found.abroad == []
    assert found.complaints == []


def axe_source() -> str:
    """axe-core's script, from the registry where it can be had, once."""
    folder = Path(__file__).resolve().parents[2] / ".bench" / "axe"
    script = folder / "package" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core comes by npm, which is not installed here")
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([npm, "pack", "axe-core@4"], cwd=folder, capture_output=True, text=True, timeout=120)
        archives = sorted(folder.glob("axe-core-*.tgz"))
        if packed.returncode or not archives:
            pytest.skip("axe-core could not be had from the registry")
        with tarfile.open(archives[-1]) as archive:
            archive.extract("package/axe.min.js", folder, filter="data")
    return script.read_text(encoding="utf-8")


def answers(url: str) -> bool:
    """Whether anybody listens there."""
    try:
        httpx.get(url, timeout=2.0)
    except httpx.TransportError:
        return False
    return True
