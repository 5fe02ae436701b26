"""`/agents`: start agents of each kind, stop them, start them again; what cannot work is refused with the next step."""

import shutil
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.contract import iso
from tests.api.conftest import Clone
from tests.api.failures import assert_failure, paths
from tests.api.test_queue import applied, deploy
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, WEDNESDAY, ServiceProcess


def become(client: httpx.Client, agent_id: str, **wanted: Any) -> dict[str, Any]:
    """The agent once it has these values."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        agent: dict[str, Any] = client.get(f"/api/v1/agents/{agent_id}").json()
        if wanted.items() <= agent.items():
            return agent
        time.sleep(0.05)
    raise AssertionError(f"{agent_id} did not become {wanted}: {agent}")


def predict(service: ServiceProcess, model_id: str, hours: range) -> None:
    """Live predictions of these hours of a Wednesday, each with its bar's price."""
    for hour in hours:
        moment = datetime(2025, 1, 8, hour, tzinfo=UTC)
        service.clock.set(moment)
        known = {"as_of": iso(moment), "price": 1.1 + hour / 1000}
        service.client.post(f"/api/v1/models/{model_id}/predict", json=SEED_PREDICT | known).raise_for_status()
    service.clock.set(WEDNESDAY)


def worked_off(api: httpx.Client) -> None:
    """Returns once nothing is left in the queue."""
    deadline = time.monotonic() + 60
    while api.get("/api/v1/queue").json()["length"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_agent_begins_learns_is_stopped_and_goes_on(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    deploy(api, clone("for_agents"))
    before = applied(api, 0)["num_applied"]
    worked_off(api)  # what still waits for another agent would be the new one's too
    body = {
        "id": "mine",
        "model_id": "for_agents",
        "hyperparameters": {"learning_rate": 0.3, "exploration_rate": 0.9, "discount_factor": 0.9},
        "reward": {"risk_aversion": 500},
        "costs": {"spread_pips": 0.1},
    }
    answer = api.post("/api/v1/agents", json=body)
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/api/v1/agents/mine"
    agent = answer.json()
    assert (agent["id"], agent["family"], agent["mode"], agent["model_id"]) == (
        "mine",
        "q_learning",
        "learn",
        "for_agents",
    )
    assert (agent["wanted"], agent["status"], agent["num_applied"]) == ("running", "starting", 0)
    assert agent["hyperparameters"]["exploration_rate"] == 0.9 == agent["exploration_rate"]
    assert (agent["reward"]["risk_aversion"], agent["costs"]["spread_pips"]) == (500, 0.1)
    predict(service, "for_agents", range(12))
    agent = become(api, "mine", status="running", num_applied=12)
    assert (agent["num_actions"], agent["num_settled"]) == (12, 10)  # filled a bar later, paid a bar after that
    assert agent["exploration_rate"] < 0.9
    assert (agent["num_late"], agent["num_repeated"], agent["num_out_of_order"]) == (0, 0, 0)
    assert applied(api, before + 12)["num_applied"] == before + 12, "the default agent has a group of its own"
    assert api.get("/health/ready").json()["things"]["agent"]["detail"] == "2 running"

    for _ in range(2):
        stopped = api.post("/api/v1/agents/mine/stop")
        assert stopped.status_code == 200
        assert (stopped.json()["status"], stopped.json()["wanted"]) == ("stopped", "stopped")
    assert "agent:mine" not in [each["group"] for each in api.get("/api/v1/queue").json()["groups"]]
    predict(service, "for_agents", range(12, 15))
    applied(api, before + 15)
    worked_off(api)
    for _ in range(2):
        started = api.post("/api/v1/agents/mine/start")
        assert (started.status_code, started.json()["wanted"]) == (200, "running")
    predict(service, "for_agents", range(15, 17))
    again = become(api, "mine", status="running", num_applied=14)
    assert again["num_settled"] == 12, "what came while it was stopped is not its own; what it held is realised"
    copied = api.post("/api/v1/agents", json={"mode": "frozen", "copy_of": "mine", "model_id": "for_agents"})
    assert copied.status_code == 201, copied.text
    frozen = copied.json()
    assert frozen["id"] == "q_learning-for_agents"
    assert (frozen["mode"], frozen["copy_of"], frozen["exploration_rate"]) == ("frozen", "mine", 0.0)
    assert frozen["hyperparameters"]["learning_rate"] == 0.3
    for agent_id in ("mine", frozen["id"]):
        api.post(f"/api/v1/agents/{agent_id}/stop").raise_for_status()
    listed = {each["id"]: each for each in api.get("/api/v1/agents").json()["agents"]}
    assert {"default", "mine", frozen["id"]} <= set(listed)
    assert_failure(api.post("/api/v1/agents", json={"id": "mine"}), 409, "CONFLICT")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"id": "Mine"}, "body.id"),
        ({"id": "a..b"}, "body.id"),
        ({"family": "sarsa"}, "body.family"),
        ({"family": "dqn"}, "body.model_id"),
        ({"family": "dqn", "model_id": "small", "mode": "learn"}, "body.mode"),
        ({"family": "dqn", "model_id": "small"}, "body.model_id"),
        ({"family": "signal"}, "body.model_id"),
        ({"family": "signal", "model_id": "small", "mode": "learn"}, "body.mode"),
        ({"mode": "frozen"}, "body.copy_of"),
        ({"hyperparameters": {"learning_rat": 0.1}}, "body.hyperparameters.learning_rat"),
        ({"hyperparameters": {"exploration_rate": 2}}, "body.hyperparameters.exploration_rate"),
        ({"reward": {"risk_aversion": -1}}, "body.reward.risk_aversion"),
        ({"costs": {"spread_pips": -1}}, "body.costs.spread_pips"),
    ],
)
def test_what_cannot_be_an_agent_is_refused(api: httpx.Client, body: dict[str, Any], place: str) -> None:
    failure = assert_failure(api.post("/api/v1/agents", json=body), 422, "DATA_VALIDATION_ERROR")
    assert place in paths(failure)


def test_an_agent_that_cannot_be_read_is_a_422_and_hides_no_other(api: httpx.Client, service: ServiceProcess) -> None:
    broken = service.folder / "state" / "agents" / "broken"
    broken.mkdir()
    try:
        for file, text in (("checkpoint.1.json", '{"format": 3}'), ("agent.json", "")):
            (broken / file).write_text(text)
            answer = api.get("/api/v1/agents/broken")
            assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == [f"agents/broken/{file}"]
            assert "STATE_DIR" in answer.json()["message"]
            (broken / file).rename(broken / f"{file}.away")
        (broken / "agent.json").touch()
        listed = [agent["id"] for agent in api.get("/api/v1/agents").raise_for_status().json()["agents"]]
        assert "default" in listed
        assert "broken" not in listed
        assert_failure(api.post("/api/v1/agents", json={"id": "broken"}), 409, "CONFLICT")
        assert 'ml_workbench_agent_up{agent="broken"} 0.0' in api.get("/metrics").raise_for_status().text
        assert "broken" not in api.get("/health/ready").json()["things"]["agent"]["detail"]
    finally:
        shutil.rmtree(broken)


def test_what_does_not_exist_is_a_404(api: httpx.Client) -> None:
    assert_failure(api.post("/api/v1/agents", json={"model_id": "absent"}), 404, "MODEL_NOT_FOUND")
    assert_failure(api.post("/api/v1/agents", json={"copy_of": "absent"}), 404, "AGENT_NOT_FOUND")
    for change in ("start", "stop"):
        assert_failure(api.post(f"/api/v1/agents/absent/{change}"), 404, "AGENT_NOT_FOUND")


def test_a_policy_must_be_live_before_an_agent_executes_it(api: httpx.Client, service: ServiceProcess) -> None:
    small = registry_of(service) / "small" / "1.0.0"
    copy_version(small, registry_of(service), "policy", "1.0.0", type="reinforcement_learning", family="dqn")
    body = {"id": "hand", "family": "dqn", "model_id": "policy"}
    failure = assert_failure(api.post("/api/v1/agents", json=body), 409, "CONFLICT")
    assert "/api/v1/models/policy/deploy" in failure["message"]
    deploy(api, "policy")
    agent = api.post("/api/v1/agents", json=body).json()
    assert (agent["family"], agent["mode"], agent["hyperparameters"]) == ("dqn", "shadow", None)
    api.post("/api/v1/agents/hand/stop").raise_for_status()


def test_a_signal_agent_takes_the_positions_of_what_a_position_earns(
    api: httpx.Client, service: ServiceProcess
) -> None:
    small = registry_of(service) / "small" / "1.0.0"
    copy_version(small, registry_of(service), "storms", "1.0.0", target="volatility_4h", targets=["volatility_4h"])
    copy_version(small, registry_of(service), "moves", "1.0.0")
    failure = assert_failure(
        api.post("/api/v1/agents", json={"family": "signal", "model_id": "storms"}), 422, "DATA_VALIDATION_ERROR"
    )
    assert paths(failure) == ["body.model_id"]
    body = {"id": "sized", "family": "signal", "model_id": "moves"}
    assert_failure(api.post("/api/v1/agents", json=body), 409, "CONFLICT")
    deploy(api, "moves")
    agent = api.post("/api/v1/agents", json=body).json()
    assert (agent["family"], agent["mode"], agent["positions"]) == ("signal", "shadow", {})
    api.post("/api/v1/agents/sized/stop").raise_for_status()
