"""`/queue`, `/replays` and `/agents`: live records and the past reach the agent, and the accounting balance."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.contract import iso, utc_now
from tests.api.conftest import Clone, Guarded
from tests.api.failures import assert_failure, paths
from tests.service_process import SEED_PREDICT, ServiceProcess

STREAM = "ml_workbench:predictions"
WEDNESDAY = {"start_date": "2025-01-08T00:00:00Z", "end_date": "2025-01-09T00:00:00Z"}
ACCOUNTING = ("acked", "pending", "undelivered", "dropped_oldest", "expired", "dead_lettered")


def deploy(client: httpx.Client, model_id: str) -> None:
    """Makes version 1.0.0 live."""
    body = {"version": "1.0.0", "deployment_target": "local", "monitoring_level": "high"}
    client.post(f"/api/v1/models/{model_id}/deploy", json=body).raise_for_status()


def applied(client: httpx.Client, num_applied: int) -> dict[str, Any]:
    """The default agent once it has applied so many entries."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = client.get("/api/v1/agents/default")  # 404 until its process has begun
        agent: dict[str, Any] = answer.json()
        if answer.status_code == 200 and agent["status"] == "running" and agent["num_applied"] >= num_applied:
            return agent
        time.sleep(0.05)
    raise AssertionError(f"the agent did not come to {num_applied}: {agent}")


def test_a_replay_sends_every_bar_once_and_the_agent_applies_each(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    deploy(api, clone("replayed"))
    before = applied(api, 0)
    body = {"model_id": "replayed", "symbols": ["EURUSD", "GBP_USD"], **WEDNESDAY}
    answer = api.post("/api/v1/replays", json=body, headers={"X-Correlation-ID": "replay-corr"})
    assert answer.status_code == 202
    accepted = answer.json()
    place = f"/api/v1/jobs/{accepted['job_id']}"
    assert (accepted["id"], accepted["href"], accepted["kind"]) == (accepted["job_id"], place, "replay")
    assert answer.headers["Location"] == place
    assert int(answer.headers["Retry-After"]) >= 1
    job = api.get(place).json()
    assert (job["kind"], job["correlation_id"], job["tracking"]["status"]) == ("replay", "replay-corr", "disabled")
    assert job["request"]["symbols"] == ["EUR/USD", "GBP/USD"]
    done = service.wait_for_job(job["id"])
    assert done["status"] == "succeeded", done["error"]
    result = done["result"]
    assert (result["num_bars"], result["num_published"], result["version"]) == (48, 48, "1.0.0")
    assert result["num_abstained"] < 48
    assert result["duration_s"] > 0
    agent = applied(api, before["num_applied"] + 48)
    assert agent["num_applied"] == before["num_applied"] + 48
    assert agent["num_actions"] > before["num_actions"]
    assert set(agent["positions"]) >= {"EUR/USD", "GBP/USD"}
    assert set(agent["positions"].values()) <= {-1, 0, 1}


def test_the_books_balance_and_show_the_default_agents_group_on_top(api: httpx.Client, clone: Clone) -> None:
    deploy(api, clone("booked"))
    before = api.get("/api/v1/queue").json()
    for _ in range(5):
        api.post("/api/v1/models/booked/predict", json=SEED_PREDICT).raise_for_status()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # other agents' groups may take a moment longer
        accounting = api.get("/api/v1/queue").json()
        if accounting["acked"] >= before["acked"] + 5 and accounting["length"] == 0:
            break
        time.sleep(0.05)
    assert accounting["enqueued"] == before["enqueued"] + 5
    assert (accounting["capacity"], accounting["policy"], accounting["outbox"], accounting["outbox_dropped"]) == (
        100,
        "drop_oldest",
        0,
        0,
    )
    group = next(each for each in accounting["groups"] if each["group"] == "agent:default")
    assert group.items() <= accounting.items()
    for each in accounting["groups"]:
        assert each["enqueued"] == sum(each[name] for name in ACCOUNTING) + each["balance"]
        assert each["balance"] == 0
    assert accounting["length"] == 0


def test_the_agents_figures_and_latencies_are_scraped(api: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while api.get("/api/v1/queue").json()["length"] and time.monotonic() < deadline:
        time.sleep(0.05)  # what is saved is acknowledged a moment later
    agent = api.get("/api/v1/agents/default").json()
    text = api.get("/metrics").text
    figures = dict(re.findall(r'^ml_workbench_(\w+)\{(?:agent="default"|group="agent:default")\} (\S+)$', text, re.M))
    assert float(figures["agent_up"]) == 1
    assert float(figures["agent_applied_total"]) >= agent["num_applied"] > 0
    assert float(figures["queue_applied_seconds_count"]) >= agent["num_applied"]
    assert float(figures["queue_balance"]) == 0
    assert {"agent_cumulative_reward", "agent_exploration_rate", "agent_out_of_order_total"} <= set(figures)


def test_agents_are_listed(api: httpx.Client) -> None:
    listed = api.get("/api/v1/agents").json()
    assert "default" in [agent["id"] for agent in listed["agents"]]
    agent = api.get("/api/v1/agents/default").json()
    assert (agent["family"], agent["mode"], agent["status"]) == ("q_learning", "learn", "running")
    assert {"learning_rate", "exploration_rate", "exploration_decay", "discount_factor"} <= set(
        agent["hyperparameters"]
    )
    assert 0 < agent["exploration_rate"] <= 1


def test_a_live_record_is_one_flat_entry_with_its_correlation_id_everywhere(guarded: Guarded) -> None:
    deploy(guarded.client, "small")
    stream = guarded.redis.client()
    last = (stream.xrevrange(STREAM, count=1) or [(b"0-0", {})])[0][0]
    headers = {"X-Correlation-ID": "in-the-stream"}
    began = iso(utc_now())
    record = guarded.client.post("/api/v1/models/small/predict", json=SEED_PREDICT, headers=headers).json()
    guarded.client.post("/api/v1/models/small/predict", json={**SEED_PREDICT, "version": "1.1.0"}).raise_for_status()
    deadline = time.monotonic() + 60
    while not (entries := stream.xrange(STREAM, min=b"(" + last)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # would the candidate's record come too?
    entries = stream.xrange(STREAM, min=b"(" + last)
    stream.close()
    assert len(entries) == 1
    entry_id, fields = entries[0][0].decode(), {key.decode(): value.decode() for key, value in entries[0][1].items()}
    assert fields["prediction_id"] == record["prediction_id"]
    assert fields["correlation_id"] == "in-the-stream" == record["metadata"]["correlation_id"]
    assert (fields["model_id"], fields["version"], fields["symbol"]) == ("small", "1.0.0", "EUR/USD")
    assert float(fields["prediction"]) == record["prediction"]
    assert fields["timestamp"] == record["timestamp"]
    assert fields["enqueued_at"] >= began

    logged = lines(guarded.service.folder / "logs" / "queue_processing.log", "in-the-stream")
    assert [(each["message"], each["entry_id"], each["prediction_id"]) for each in logged] == [
        ("enqueue", entry_id, record["prediction_id"])
    ]
    assert logged[0]["latency_ms"] >= 0
    monitored = lines(guarded.service.folder / "logs" / "service.log", "in-the-stream")
    assert record["prediction_id"] in {each.get("prediction_id") for each in monitored}


def lines(file: Path, correlation_id: str) -> list[dict[str, Any]]:
    """The JSON lines of a log that carry a correlation id."""
    parsed = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [each for each in parsed if each.get("correlation_id") == correlation_id]


def test_without_an_agent_a_replay_is_refused(guarded: Guarded) -> None:
    answer = guarded.client.post("/api/v1/replays", json={"model_id": "small", "symbols": ["EUR/USD"], **WEDNESDAY})
    assert "agent" in assert_failure(answer, 409, "NO_CONSUMER")["message"]
    assert guarded.client.get("/api/v1/agents").json() == {"agents": [], "next_cursor": None}
    assert_failure(guarded.client.get("/api/v1/agents/default"), 404, "AGENT_NOT_FOUND")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"symbols": []}, "body.symbols"),
        ({"symbols": ["USD/JPY"]}, "body.symbols.0"),
        ({"symbols": ["EUR/USD", "EURUSD"]}, "body.symbols"),
        ({"symbols": ["euro"]}, "body.symbols.0"),
        ({"end_date": WEDNESDAY["start_date"]}, "body.end_date"),
        ({"start_date": "1950-01-01T00:00:00Z"}, "body.start_date"),
        ({"speed": 0}, "body.speed"),
        ({"model_id": "../small"}, "body.model_id"),
        ({"version": "1.0"}, "body.version"),
        ({"pace": 1}, "body.pace"),
    ],
)
def test_what_cannot_be_replayed_is_refused(api: httpx.Client, changes: dict[str, Any], place: str) -> None:
    answer = api.post("/api/v1/replays", json={"model_id": "small", "symbols": ["EUR/USD"], **WEDNESDAY, **changes})
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == [place]


def test_a_replay_of_an_unknown_model_or_version_is_a_404(api: httpx.Client) -> None:
    body = {"model_id": "absent", "symbols": ["EUR/USD"], **WEDNESDAY}
    assert_failure(api.post("/api/v1/replays", json=body), 404, "MODEL_NOT_FOUND")
    answer = api.post("/api/v1/replays", json={**body, "model_id": "small", "version": "9.0.0"})
    assert_failure(answer, 404, "VERSION_NOT_FOUND")


def test_a_slow_replay_is_cancelled_between_two_bars(api: httpx.Client, service: ServiceProcess) -> None:
    body = {"model_id": "small", "symbols": ["EUR/USD"], **WEDNESDAY, "speed": 0.5}
    job_id = api.post("/api/v1/replays", json=body).json()["id"]
    deadline = time.monotonic() + 60
    while api.get(f"/api/v1/jobs/{job_id}").json()["status"] != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    api.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
    assert service.wait_for_job(job_id, timeout_s=120)["status"] == "cancelled"
