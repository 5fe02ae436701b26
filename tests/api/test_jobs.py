"""`/jobs`: a document, a stream of events, cancelling, and the three ways in which a job ends without a result."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil

from tests.api.failures import assert_failure
from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess

TRAIN = "/api/v1/models/train"
LONG = {
    **SMALL_TRAIN,
    "model_id": "followed",
    "symbols": ["EUR/USD"],
    "start_date": "2024-12-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 4, "batch_size": 256, "epochs": 10_000, "patience": 10_000},
}
JOB_KEYS = [
    "id",
    "kind",
    "status",
    "progress",
    "request",
    "result",
    "error",
    "attempt",
    "created_at",
    "started_at",
    "finished_at",
    "tracking",
    "correlation_id",
]


def begin(api: httpx.Client, **changes: Any) -> str:
    """The id of a long training."""
    answer = api.post(TRAIN, json={**LONG, **changes})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def events(api: httpx.Client, job_id: str, last_event_id: str | None = None) -> Iterator[dict[str, Any]]:
    """The stream's events as `{id, event, data}`, up to the stream's end."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with api.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers, timeout=60) as stream:
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        for line in stream.iter_lines():
            if not line:
                if "event" in event:
                    yield {**event, "data": json.loads(event["data"])}
                event = {}
                continue
            name, _, value = line.partition(": ")
            if name:  # else a comment that keeps the connection open
                event[name] = value


def until(api: httpx.Client, job_id: str, condition: Any, *, timeout_s: float = 200) -> dict[str, Any]:
    """The job once a condition holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        job: dict[str, Any] = api.get(f"/api/v1/jobs/{job_id}").json()
        if condition(job):
            return job
        time.sleep(0.05)
    raise AssertionError(f"it did not come to that within {timeout_s} s: {job}")


def test_the_finished_trainings_are_jobs_with_results(api: httpx.Client) -> None:
    card = api.get("/api/v1/models/small/versions/1.0.0").json()
    job_id = card["lineage"]["job_id"]
    job = api.get(f"/api/v1/jobs/{job_id}").json()
    assert set(JOB_KEYS) <= set(job)
    assert (job["kind"], job["status"], job["error"]) == ("train", "succeeded", None)
    assert job["result"] == {
        "model_id": "small",
        "version": "1.0.0",
        "href": "/api/v1/models/small/versions/1.0.0",
    }
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["progress"]["metrics"]
    told = list(events(api, job_id))
    assert [told[0]["event"], told[1]["event"], told[-1]["event"]] == ["queued", "started", "succeeded"]
    assert told[-1]["data"]["result"] == job["result"]


def test_a_job_is_followed_while_it_runs_and_cancelled(api: httpx.Client) -> None:
    job_id = begin(api)
    seen = []
    for event in events(api, job_id):
        seen.append(event)
        if sum(each["event"] == "progress" and each["data"].get("total") == 10_000 for each in seen) == 3:
            answer = api.post(f"/api/v1/jobs/{job_id}/cancel")
            assert answer.status_code == 202
            assert answer.json()["status"] in ("cancelling", "cancelled")
    assert [int(each["id"]) for each in seen] == list(range(1, len(seen) + 1))
    assert [seen[0]["event"], seen[1]["event"], seen[-1]["event"]] == ["queued", "started", "cancelled"]
    job = api.get(f"/api/v1/jobs/{job_id}").json()
    assert (job["status"], job["result"], job["error"], job["attempt"]) == ("cancelled", None, None, 1)
    assert job["progress"]["step"] >= 1
    assert job["finished_at"]
    again = api.post(f"/api/v1/jobs/{job_id}/cancel")
    place = f"/api/v1/jobs/{job_id}"
    assert again.status_code == 202
    assert again.json() == {
        "job_id": job_id, "id": job_id, "kind": "train", "status": "cancelled", "href": place, "model_id": "followed",
    }  # fmt: skip
    assert (again.headers["Location"], again.headers["Retry-After"]) == (place, "1")
    assert api.get(place).json() == job
    assert_failure(api.get("/api/v1/models/followed"), 404, "MODEL_NOT_FOUND")

    middle = seen[len(seen) // 2]["id"]
    assert list(events(api, job_id, middle)) == seen[int(middle) :]
    assert list(events(api, job_id, seen[-1]["id"])) == []
    for nonsense in ("", "x", "-1", "9" * 40):
        assert list(events(api, job_id, nonsense)) == seen


def test_a_queued_job_is_cancelled_at_once(api: httpx.Client) -> None:
    first, second = begin(api), begin(api)
    assert api.post(f"/api/v1/jobs/{second}/cancel").json()["status"] == "cancelled"
    job = api.get(f"/api/v1/jobs/{second}").json()
    assert (job["status"], job["attempt"], job["started_at"]) == ("cancelled", 0, None)
    assert [each["event"] for each in events(api, second)] == ["queued", "cancelled"]
    api.post(f"/api/v1/jobs/{first}/cancel")
    until(api, first, lambda job: job["status"] == "cancelled")


def test_a_failed_job_is_a_200_with_its_reason(api: httpx.Client) -> None:
    job_id = begin(api, start_date="2024-06-03T00:00:00Z", end_date="2024-06-13T00:00:00Z")
    job = until(api, job_id, lambda job: job["status"] == "failed")
    assert job["result"] is None
    assert set(job["error"]) == {"error_type", "error_code", "message", "details"}
    assert job["error"]["error_code"] == "DATA_VALIDATION_ERROR"
    assert "lookback" in job["error"]["message"] or "longer" in job["error"]["message"]
    assert list(events(api, job_id))[-1]["event"] == "failed"
    assert job_id in {each["id"] for each in api.get("/api/v1/jobs?status=failed&kind=train").json()["jobs"]}


def test_a_worker_that_is_killed_is_replaced_and_the_third_is_the_last(
    api: httpx.Client, service: ServiceProcess
) -> None:
    job_id = begin(api)
    pids = set()
    for attempt in (1, 2, 3):
        job = until(api, job_id, lambda job, attempt=attempt: (job["status"], job["attempt"]) == ("running", attempt))
        assert len(job["warnings"]) == attempt - 1
        record = json.loads((service.folder / "state" / "jobs" / job_id / "worker.json").read_text())
        assert record["attempt"] == attempt
        assert psutil.Process(record["pid"]).is_running()
        pids.add(record["pid"])
        os.kill(record["pid"], signal.SIGKILL)
    job = until(api, job_id, lambda job: job["status"] not in ("running", "queued"))
    assert (job["status"], job["error"]["error_code"], job["attempt"]) == ("failed", "WORKER_LOST", 3)
    assert "SIGKILL" in job["error"]["message"]
    assert len(pids) == 3
    assert list(events(api, job_id))[-1]["event"] == "failed"


def test_the_list_is_newest_first_in_pages(api: httpx.Client) -> None:
    whole = api.get("/api/v1/jobs", params={"limit": 200}).json()["jobs"]
    moments = [job["created_at"] for job in whole]
    assert len(whole) >= 3
    assert moments == sorted(moments, reverse=True)
    found, cursor = [], None
    while True:
        page = api.get("/api/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [job["id"] for job in page["jobs"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == [job["id"] for job in whole]
    kinds = {job["kind"] for job in api.get("/api/v1/jobs", params={"kind": "replay"}).json()["jobs"]}
    assert kinds <= {"replay"}
    for query in ("kind=tuning", "status=lost"):
        assert_failure(api.get(f"/api/v1/jobs?{query}"), 422, "DATA_VALIDATION_ERROR")


def test_the_workers_log_is_served_by_its_last_lines(api: httpx.Client, service: ServiceProcess) -> None:
    job_id = api.get("/api/v1/models/small/versions/1.0.0").json()["lineage"]["job_id"]
    written = (service.folder / "state" / "jobs" / job_id / "worker.log").read_text()
    answer = api.get(f"/api/v1/jobs/{job_id}/log")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text == "".join(written.splitlines(keepends=True)[-200:])
    assert len(api.get(f"/api/v1/jobs/{job_id}/log", params={"tail": 1}).text.splitlines()) == min(
        1, len(written.splitlines())
    )
    assert_failure(api.get(f"/api/v1/jobs/{job_id}/log", params={"tail": 0}), 422, "DATA_VALIDATION_ERROR")
    assert_failure(api.get("/api/v1/jobs/nobody/log"), 404, "JOB_NOT_FOUND")


def test_a_job_that_no_worker_has_begun_says_why_it_has_no_log(api: httpx.Client) -> None:
    first, waiting = begin(api), begin(api, model_id="waiting")
    answer = api.get(f"/api/v1/jobs/{waiting}/log")
    assert_failure(answer, 404, "LOG_NOT_FOUND")
    assert "no worker has begun with it" in answer.json()["message"]
    for each in (waiting, first):
        api.post(f"/api/v1/jobs/{each}/cancel").raise_for_status()
        until(api, each, lambda job: job["status"] == "cancelled")
    assert "never had a worker" in api.get(f"/api/v1/jobs/{waiting}/log").json()["message"]
