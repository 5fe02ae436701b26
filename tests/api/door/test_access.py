"""The door of a running service: scopes, limits, other sites, the audit trail; and that keys come and go without a
restart."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, verify
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import OPERATIONS, Scope
from tests.api.conftest import KEY, Guarded
from tests.api.failures import assert_failure
from tests.service_process import SEED_PREDICT

PATIENCE_S = 30.0
NOTHING = {"version": "9.9.9", "deployment_target": "local"}
Client = Callable[..., httpx.Client]


@pytest.fixture
def state(guarded: Guarded) -> Path:
    return guarded.service.folder / "state"


@pytest.fixture
def file(state: Path) -> KeyFile:
    return KeyFile(state / KEYS_FILE)


@pytest.fixture
def client(guarded: Guarded, file: KeyFile, request: pytest.FixtureRequest) -> Any:
    """A client with a new key of these scopes, once the running service knows it."""
    opened: list[tuple[httpx.Client, str]] = []

    def make(*scopes: Scope, **limits: Any) -> httpx.Client:
        text, record = file.create(f"c{len(file.read())}", scopes, **limits)
        made = httpx.Client(base_url=guarded.service.url, headers={"X-API-Key": text}, timeout=60)
        opened.append((made, record.id))
        _wait_for(lambda: made.get("/api/v1/models").status_code != 401)
        return made

    yield make
    for made, identifier in opened:
        made.close()
        file.revoke(identifier)


def _wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def filled(path: str) -> str:
    """A path of the operation, of things that are not there."""
    for name, value in {"version": "9.9.9", "symbol:path": "EUR/USD", "file:path": "nothing.css"}.items():
        path = path.replace(f"{{{name}}}", value)
    while "{" in path:
        path = path[: path.index("{")] + "absent" + path[path.index("}") + 1 :]
    return path


@pytest.mark.parametrize("scope", [Scope.READ, Scope.PREDICT, Scope.TRAIN, Scope.DEPLOY])
def test_a_key_may_do_what_its_scope_says_and_nothing_else(client: Client, scope: Scope) -> None:
    caller = client(scope)
    num_refused = 0
    for operation in OPERATIONS.values():
        if operation.path == "/":
            continue
        answer = caller.request(operation.method, filled(operation.path))
        is_ours = operation.scope in (None, scope)
        assert (answer.status_code == 403) is not is_ours, f"{operation.name}: {answer.status_code} {answer.text[:300]}"
        if not is_ours and operation.path.startswith("/v2"):
            assert f"`{operation.scope}`" in answer.json()["error"]
        elif not is_ours:
            body = assert_failure(answer, 403, "AUTHORIZATION_ERROR")
            assert body["details"]["needed_scope"] == operation.scope
            assert f"`{operation.scope}`" in body["message"]
            num_refused += 1
    assert num_refused > 20


def test_a_path_that_nobody_answers_needs_a_key_too(guarded: Guarded, client: Client) -> None:
    assert_failure(httpx.get(f"{guarded.service.url}/nowhere", timeout=60), 401, "AUTHENTICATION_ERROR")
    assert_failure(client(Scope.READ).get("/nowhere"), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(
    "override",
    [{"force": True}, {"accepted_verdict": "implausible"}, {"declared_columns": ["x"]}, {"gates": {"skill": False}}],
)
def test_what_passes_a_gate_needs_admin(client: Client, override: dict[str, Any]) -> None:
    route = "/api/v1/models/absent/deploy"
    body = assert_failure(client(Scope.DEPLOY).post(route, json=NOTHING | override), 403, "AUTHORIZATION_ERROR")
    assert next(iter(override)) in body["message"]
    assert client(Scope.ADMIN).post(route, json=NOTHING | override).status_code == 404


def test_an_enforced_gate_may_be_asked_for_by_who_deploys(client: Client) -> None:
    answer = client(Scope.DEPLOY).post("/api/v1/models/absent/deploy", json=NOTHING | {"gates": {"skill": True}})
    assert answer.status_code == 404


def test_a_purge_needs_admin(client: Client) -> None:
    route = "/api/v1/models/absent/versions/1.0.0"
    deploying = client(Scope.DEPLOY)
    assert_failure(deploying.delete(route, params={"purge": "true"}), 403, "AUTHORIZATION_ERROR")
    assert deploying.delete(route).status_code == 404
    assert client(Scope.ADMIN).delete(route, params={"purge": "true"}).status_code == 404


def test_a_rate_is_429_with_the_seconds_to_wait(client: Client) -> None:
    caller = client(Scope.PREDICT, rate_per_s=0.02)
    answers = [caller.post("/api/v1/models/small/predict", json=SEED_PREDICT) for _ in range(3)]
    body = assert_failure(answers[-1], 429, "RATE_LIMIT")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 50
    assert "rate" in body["message"]


def test_a_key_is_rotated_and_revoked_without_a_restart(guarded: Guarded, file: KeyFile) -> None:
    def status(key: str) -> int:
        return httpx.get(f"{guarded.service.url}/api/v1/models", headers={"X-API-Key": key}, timeout=60).status_code

    first, old = file.create("rotating", [Scope.READ])
    _wait_for(lambda: status(first) == 200)
    second, new = file.rotate("rotating", overlap=timedelta(hours=1))
    _wait_for(lambda: status(second) == 200)
    assert status(first) == 200
    file.revoke(old.id)
    _wait_for(lambda: status(first) == 401)
    assert status(second) == 200
    file.revoke(new.id)


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "anything"}, False),
        ({"Origin": "OWN"}, True),
        ({"Origin": "https://pages.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "OWN"}, False),
    ],
)
def test_a_page_of_another_site_changes_nothing(guarded: Guarded, headers: dict[str, str], is_let_in: bool) -> None:
    """With a body or without one, on every route that changes something; reading is left to the browser's own rules."""
    sent = {name: guarded.service.url if value == "OWN" else value for name, value in headers.items()}
    for operation in OPERATIONS.values():
        if operation.method == "GET" or "/resilience" in operation.path:
            continue
        for more in ({}, {"json": {}}):
            answer = guarded.client.request(operation.method, filled(operation.path), headers=sent, **more)
            assert (answer.status_code != 403) is is_let_in, operation.name
            if not is_let_in and operation.path.startswith("/v2"):
                assert "another site" in answer.json()["error"]
            elif not is_let_in:
                assert_failure(answer, 403, "CROSS_SITE")
    assert guarded.client.get("/api/v1/models", headers=sent).status_code == 200


def test_answers_carry_what_keeps_browsers_and_caches_in_order(guarded: Guarded) -> None:
    for path in ("/health", "/docs", "/api/v1/models", "/api/v1/models/absent", "/nowhere"):
        headers = guarded.client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "server" not in headers
    assert guarded.client.get("/api/v1/models").headers["Cache-Control"] == "private, no-cache"
    assert "Cache-Control" not in guarded.client.get("/health").headers


def test_a_change_has_two_lines_in_the_log_with_who_what_before_and_after(
    guarded: Guarded, client: Client, state: Path
) -> None:
    deployer = client(Scope.DEPLOY)
    before = guarded.client.get("/api/v1/audit?limit=1").json()["head"]["number"]
    body = {"version": "1.0.0", "deployment_target": "local"}
    identifier = "audited-1"
    answer = deployer.post("/api/v1/models/small/deploy", json=body, headers={"X-Correlation-ID": identifier})
    assert answer.status_code == 200
    guarded.client.post("/api/v1/models/small/undeploy")
    found = list(reversed(guarded.client.get("/api/v1/audit").json()["audit"]))
    asked, done, asked_again, done_again = [each for each in found if each["number"] > before]
    assert (asked["event"], asked["what"]) == ("asked", "POST /api/v1/models/{model_id}/deploy")
    assert asked["on"] == "/api/v1/models/small/deploy"
    assert asked["before"] == {"live": None}
    assert asked["correlation_id"] == done["correlation_id"] == identifier
    assert asked["key"] == deployer.headers["X-API-Key"][4:12]
    assert asked["address"] == "127.0.0.1"
    assert (done["event"], done["of"], done["status"]) == ("done", asked["number"], 200)
    assert done["after"]["id"] == answer.json()["id"]
    assert (asked_again["key"], asked_again["before"]["live"]) == ("API_KEY", "1.0.0")
    assert done_again["status"] == 200
    assert verify(state / AUDIT_FILE).is_whole
    assert deployer.headers["X-API-Key"] not in (state / AUDIT_FILE).read_text()
    assert KEY not in (state / AUDIT_FILE).read_text()


def test_what_was_refused_is_in_the_log_and_reading_is_not(guarded: Guarded, state: Path) -> None:
    log = AuditLog(state / AUDIT_FILE)
    before = log.head().number
    for path in ("/api/v1/models", "/api/v1/audit", "/api/v1/queue"):
        guarded.client.get(path)
    guarded.client.post("/api/v1/models/small/predict?enqueue=never", json=SEED_PREDICT)
    assert log.head().number == before
    guarded.client.post("/api/v1/models/small/deploy", json={"version": "77.0.0", "deployment_target": "local"})
    done, asked = log.newest(num=2)
    assert (asked.event, done.event, done.status) == ("asked", "done", 404)
    assert done.after["error_code"] == "VERSION_NOT_FOUND"


def test_nothing_is_done_that_cannot_be_written_down(guarded: Guarded, state: Path) -> None:
    path = state / AUDIT_FILE
    aside = path.with_name("audit.aside")
    path.rename(aside)
    path.mkdir()
    try:
        before = guarded.client.get("/api/v1/deployments").json()
        answer = guarded.client.post(
            "/api/v1/models/small/deploy", json={"version": "1.0.0", "deployment_target": "local"}
        )
        assert_failure(answer, 503, "UNAVAILABLE")
        assert guarded.client.get("/api/v1/deployments").json() == before
        assert guarded.client.get("/health").status_code == 200
    finally:
        path.rmdir()
        aside.rename(path)
    assert guarded.client.get("/api/v1/audit").status_code == 200


def test_the_audit_log_is_paged_and_for_admins(guarded: Guarded, client: Client) -> None:
    assert_failure(client(Scope.READ).get("/api/v1/audit"), 403, "AUTHORIZATION_ERROR")
    first = guarded.client.get("/api/v1/audit?limit=2").json()
    second = guarded.client.get("/api/v1/audit", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    numbers = [each["number"] for each in (*first["audit"], *second["audit"])]
    assert numbers == list(range(numbers[0], numbers[0] - 4, -1))
    assert first["head"] == {"number": numbers[0], "hash": first["audit"][0]["hash"]}
    assert_failure(guarded.client.get("/api/v1/audit?cursor=eA=="), 422, "DATA_VALIDATION_ERROR")
