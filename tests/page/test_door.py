"""The page's door, over HTTP and websocket: whom it lets in, whom the service has never heard of and it neither."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from ml_workbench_client.page import login
from ml_workbench_client.page.door import POLICY_VIOLATION, Door
from ml_workbench_client.page.options import Options
from ml_workbench_client.page.sessions import COOKIE, NUM_ATTEMPTS, Sessions
from tests.service_process import ServiceProcess, free_port

OPEN = Options(service_url="http://127.0.0.1:1", port=8006)
LOCKED = Options(service_url="http://127.0.0.1:1", port=8006, needs_key=True)
PROXIED = Options(service_url="http://127.0.0.1:1", needs_key=True, page_url="https://quant.example.org")


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """What lies behind the door."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    await PlainTextResponse("in")(scope, receive, send)


def door(options: Options) -> Door:
    return Door(inside, options, Sessions(options.service_url))


async def ask(app: Any, path: str = "/", *, base: str = "http://127.0.0.1:8006", **sent: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=base, timeout=60) as client:
        return await client.request(sent.pop("method", "GET"), path, **sent)


async def knock(app: Any, **headers: str) -> dict[str, Any]:
    """The first answer to a websocket's handshake."""
    answers: list[dict[str, Any]] = []
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "headers": named, "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        answers.append(message)

    await app(scope, receive, send)
    return answers[0]


@pytest.mark.parametrize("host", ["127.0.0.1:8006", "localhost:8006", "[::1]:8006", "workbench.localhost"])
async def test_this_machine_s_own_names_are_let_in(host: str) -> None:
    assert (await ask(door(OPEN), headers={"Host": host})).text == "in"
    assert (await knock(door(OPEN), host=host, origin=f"http://{host}"))["type"] == "websocket.accept"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.5:8006", "", "quant.example.org"])
async def test_another_name_bound_to_this_machine_is_sent_away_without_a_key(host: str) -> None:
    answer = await ask(door(OPEN), headers={"Host": host})
    assert answer.status_code == 421
    assert "PAGE_URL" in answer.text
    closed = await knock(door(OPEN), host=host, origin=f"http://{host}")
    assert closed == {"type": "websocket.close", "code": POLICY_VIOLATION}


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "https://127.0.0.1.evil.example"]
)
async def test_another_page_s_requests_and_sockets_are_sent_away(origin: str) -> None:
    assert (await ask(door(OPEN), headers={"Origin": origin})).status_code == 403
    closed = await knock(door(OPEN), host="127.0.0.1:8006", origin=origin)
    assert closed["type"] == "websocket.close"


async def test_a_socket_without_an_origin_is_sent_away() -> None:
    assert (await knock(door(OPEN), host="127.0.0.1:8006"))["type"] == "websocket.close"


async def test_with_a_key_nobody_passes_without_a_session_and_pages_lead_to_the_login() -> None:
    answer = await ask(door(LOCKED), "/models", params={"verdict": "skill"})
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?next=%2Fmodels%3Fverdict%3Dskill"
    assert (await ask(door(LOCKED), "/_nicegui_ws/socket.io/")).status_code == 401
    assert (await ask(door(LOCKED), "/models", method="POST")).status_code == 401
    assert (await knock(door(LOCKED), host="127.0.0.1:8006", origin="http://127.0.0.1:8006"))["type"] == (
        "websocket.close"
    )
    assert (await knock(door(LOCKED), host="127.0.0.1", origin="http://127.0.0.1", cookie=f"{COOKIE}=guessed"))[
        "type"
    ] == "websocket.close"


async def test_behind_a_proxy_its_name_and_origin_are_those_of_page_url() -> None:
    app = door(PROXIED)
    assert (await ask(app, "/login", headers={"Host": "quant.example.org"})).text == "in"
    assert (await ask(app, "/login", headers={"Origin": "https://quant.example.org"})).text == "in"
    assert (await ask(app, "/login", headers={"Host": "other.example.org"})).status_code == 421
    assert (await ask(app, "/login", headers={"Origin": "https://other.example.org"})).status_code == 403


async def test_every_answer_forbids_the_browser_to_ask_anybody_else() -> None:
    policy = (await ask(door(OPEN))).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_without_a_key_the_page_listens_on_the_loopback_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_HOST", "0.0.0.0")
    assert Options.of_environment().host == "127.0.0.1"
    monkeypatch.setenv("PAGE_NEEDS_KEY", "true")
    assert Options.of_environment().host == "0.0.0.0"


# ---- the login, against a real service


def locked_page(service_url: str) -> tuple[Door, Sessions]:
    options = Options(service_url=service_url, needs_key=True)
    sessions = Sessions(service_url)
    app = FastAPI()
    app.include_router(login.router(options, sessions))
    app.add_api_route("/models", lambda: PlainTextResponse("models"))
    return Door(app, options, sessions), sessions


async def test_who_shows_the_key_gets_a_session_whose_cookie_is_no_key(service: ServiceProcess) -> None:
    app, sessions = locked_page(service.url)  # this service has no key, and takes any
    answer = await ask(app, "/login?next=/models", method="POST", data={"key": "open sesame"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/models")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "sesame" not in cookie
    token = answer.cookies[COOKIE]
    assert sessions.find(token) is not None
    assert (await ask(app, "/models", headers={"Cookie": f"{COOKIE}={token}"})).text == "models"
    await ask(app, "/logout", method="POST", headers={"Cookie": f"{COOKIE}={token}"})
    assert (await ask(app, "/models", headers={"Cookie": f"{COOKIE}={token}"})).status_code == 303


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "/login"])
async def test_the_login_leads_to_this_page_and_nowhere_else(service: ServiceProcess, target: str) -> None:
    app, sessions = locked_page(service.url)
    answer = await ask(app, "/login", method="POST", params={"next": target}, data={"key": "any"})
    assert answer.headers["Location"] == "/"
    await sessions.end(answer.cookies[COOKIE])


async def test_attempts_are_few_and_then_wait() -> None:
    app, _ = locked_page(f"http://127.0.0.1:{free_port()}")
    for _ in range(NUM_ATTEMPTS):
        answer = await ask(app, "/login", method="POST", data={"key": "guess"})
        assert answer.status_code == 503  # nobody answers there; an attempt all the same
    answer = await ask(app, "/login", method="POST", data={"key": "guess"})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert "Too many attempts" in answer.text


async def test_what_is_asked_for_is_shown_as_text() -> None:
    app, _ = locked_page("http://127.0.0.1:1")
    answer = await ask(app, "/login", params={"next": '/"><script>alert(1)</script>'})
    assert "<script>" not in answer.text
