"""`POST /resilience` on a running service: a job whose result is the whole proof."""

import pytest

from tests.api.failures import assert_body, assert_failure
from tests.service_process import ServiceProcess


def test_a_flood_ends_with_every_part_of_the_report(service: ServiceProcess) -> None:
    body = {"scenario": "flood", "rate_per_s": 300, "duration_s": 1, "faults": ["redis_paused"], "seed": 5}
    accepted = service.client.post("/api/v1/resilience", json=body)
    assert accepted.status_code == 202, accepted.text
    job_id = accepted.json()["id"]
    assert accepted.headers["Location"] == f"/api/v1/jobs/{job_id}"
    before = service.client.get("/api/v1/queue").json()
    job = service.wait_for_job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["kind"] == "resilience"
    result = job["result"]
    assert result["passed"] is True, result["table"]
    assert {verdict["invariant"] for verdict in result["verdicts"]} == {
        "nothing_lost", "applied_once", "order", "books_balance", "pending_empty", "dead_letters", "outbox",
        "state_exact",
    }  # fmt: skip
    assert result["seed"] == 5
    assert result["num_offered"] == result["num_acknowledged"] == result["accounts"][0]["applied"] == 300
    assert result["throughput"]["applied_per_s"] > 0
    assert result["latency"]["p50_ms"] <= result["latency"]["p999_ms"] <= result["latency"]["max_ms"]
    assert result["depth"]
    assert result["lateness"]["num"] == 300
    assert "nothing_lost" in result["table"]
    assert job["progress"]["total"] == 10
    after = service.client.get("/api/v1/queue").json()
    assert after["enqueued"] == before["enqueued"], "the service's own queue is not touched"
    folder = service.folder / "state" / "jobs" / job_id / "checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.txt"]


def test_the_faults_are_listed_with_a_sentence_each(service: ServiceProcess) -> None:
    faults = service.client.get("/api/v1/resilience/faults").json()["faults"]
    assert {"redis_killed", "agent_killed", "poison", "clock_step"} <= {fault["name"] for fault in faults}
    assert all(fault["summary"] for fault in faults)


def test_an_unknown_fault_is_refused_with_the_known_ones_and_the_nearest(service: ServiceProcess) -> None:
    answer = service.client.post("/api/v1/resilience", json={"faults": ["agent_killed", "redis_kiled"]})
    assert answer.status_code == 422
    assert_body(answer.json(), "DATA_VALIDATION_ERROR")
    (error,) = answer.json()["details"]["errors"]
    assert error["path"] == "body.faults.1"
    assert "did you mean redis_killed?" in error["message"]
    assert "agent_killed, black_hole" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"scenario": "tsunami"},
        {"rate_per_s": 0},
        {"rate_per_s": 10_000, "duration_s": 600},
        {"duration_s": 0.1},
        {"faults": ["poison", "poison"]},
        {"seed": -1},
        {"capacity": 0},
        {"ratio": 3},
    ],
)
def test_a_request_beyond_its_limits_is_refused(service: ServiceProcess, body: dict[str, object]) -> None:
    answer = service.client.post("/api/v1/resilience", json=body)
    assert answer.status_code == 422, answer.text
    assert_body(answer.json(), "DATA_VALIDATION_ERROR")


def test_one_test_runs_at_a_time_and_ends_when_it_is_cancelled(service: ServiceProcess) -> None:
    body = {"rate_per_s": 50, "duration_s": 300}
    job_id = service.client.post("/api/v1/resilience", json=body).json()["id"]
    assert_failure(service.client.post("/api/v1/resilience", json=body), 409, "CONFLICT")
    assert service.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 202
    assert service.wait_for_job(job_id, timeout_s=120)["status"] == "cancelled"
