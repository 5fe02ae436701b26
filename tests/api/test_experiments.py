"""Experiments over HTTP: accepted, listed, shown with their trials, refused where they cannot work."""

import csv
import io
import json
import time
from typing import Any

import httpx
import pytest

from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess

ROUTE = "/api/v1/experiments"
REQUEST: dict[str, Any] = {
    "name": "Four rates",
    "base": {
        **SMALL_TRAIN,
        "name": "Four rates",
        "model_id": "four_rates",
        "family": "linear",
        "start_date": "2024-11-01T00:00:00Z",
        "hyperparameters": {"epochs": 3, "batch_size": 256},
    },
    "search_space": {
        "learning_rate": {"low": 1e-4, "high": 0.01, "log": True},
        "features": {"choices": [["rsi_14"], ["rsi_14", "macd"]]},
    },
    "num_trials": 4,
    "seed": 1,
}


@pytest.fixture(scope="module")
def accepted(service: ServiceProcess) -> httpx.Response:
    answer = service.client.post(ROUTE, json=REQUEST, headers={"Idempotency-Key": "four rates"})
    assert answer.status_code == 202, answer.text
    return answer


def test_an_experiment_is_accepted_and_is_a_job(service: ServiceProcess, accepted: httpx.Response) -> None:
    body = accepted.json()
    assert body["experiment_id"] == body["job_id"]
    assert body["num_trials"] == 4
    assert accepted.headers["Location"] == f"{ROUTE}/{body['experiment_id']}"
    job = service.client.get(f"/api/v1/jobs/{body['job_id']}").json()
    assert job["kind"] == "experiment"
    again = service.client.post(ROUTE, json=REQUEST, headers={"Idempotency-Key": "four rates"})
    assert (again.status_code, again.json()) == (202, body)
    assert again.headers["Idempotency-Replayed"] == "true"


def test_its_trials_its_best_and_its_model_are_shown(service: ServiceProcess, accepted: httpx.Response) -> None:
    job = service.wait_for_job(accepted.json()["job_id"])
    assert job["status"] == "succeeded", job["error"]
    shown = service.client.get(accepted.headers["Location"]).json()
    trials = shown["trials"]
    assert [each["number"] for each in trials] == [0, 1, 2, 3]
    assert {each["state"] for each in trials} == {"complete"}
    best = max(trials, key=lambda each: each["value"])
    assert shown["best_trial"] == best
    assert [step for step, _ in best["curve"]] == [1, 2, 3]
    assert set(shown["importance"]) <= {"learning_rate", "features"}
    assert shown["num_trials_ever"] >= 5
    assert shown["test_looks"] in (None, *range(1, 100))
    assert shown["status"] == "succeeded"
    assert shown["tracking"]["status"] == "disabled"
    assert "curve_at_ms" not in best
    card = service.client.get(shown["result"]["href"]).json()
    assert card["features"] == best["params"]["features"]
    assert card["hyperparameters"]["learning_rate"] == best["params"]["learning_rate"]
    assert card["lineage"]["job_id"] == shown["id"]

    (line,) = [each for each in service.client.get(ROUTE).json()["experiments"] if each["id"] == shown["id"]]
    assert (line["num_finished"], line["best_value"]) == (4, best["value"])


def test_its_trials_are_a_table(service: ServiceProcess, accepted: httpx.Response) -> None:
    service.wait_for_job(accepted.json()["job_id"])
    trials = service.client.get(accepted.headers["Location"]).json()["trials"]
    page = service.client.get(f"{accepted.headers['Location']}/trials").json()
    assert [row["params.learning_rate"] for row in page["rows"]] == [each["params"]["learning_rate"] for each in trials]
    plain = service.client.get(f"{accepted.headers['Location']}/trials", headers={"Accept": "text/csv"}).text
    rows = list(csv.DictReader(io.StringIO(plain)))
    assert rows, plain
    assert [float(row["value"]) for row in rows] == [each["value"] for each in trials]
    assert [json.loads(row["params.features"]) for row in rows] == [each["params"]["features"] for each in trials]
    assert [row["started_at"] for row in rows] == [row["started_at"] for row in page["rows"]]
    assert [row["started_at"][:19] for row in rows] == [each["started_at"][:19] for each in trials]


def test_a_cancelled_experiment_shows_what_it_had(service: ServiceProcess) -> None:
    base = {**REQUEST["base"], "model_id": "given_up", "hyperparameters": {"epochs": 5000, "patience": 5000}}
    body = {**REQUEST, "base": base, "num_trials": 50}
    job_id = service.client.post(ROUTE, json=body).json()["job_id"]
    lengths: set[int] = set()
    for _ in range(600):
        trials = service.client.get(f"{ROUTE}/{job_id}").json()["trials"]
        lengths |= {len(each["curve"]) for each in trials if each["state"] == "running"}
        if len(lengths) >= 3:
            break
        time.sleep(0.1)
    assert len(lengths) >= 3, "the curve of the trial under way grows"
    service.client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert service.wait_for_job(job_id)["status"] == "cancelled"
    shown = service.client.get(f"{ROUTE}/{job_id}").json()
    assert shown["trials"][-1]["state"] == "failed"
    assert shown["trials"][-1]["message"] == "the experiment ended before this trial did"
    assert shown["result"] is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"search_space": {"lerning_rate": {"low": 1e-4, "high": 0.01}}}, "body.search_space.lerning_rate"),
        ({"search_space": {"features": {"choices": [["rsi_14"], ["nix"]]}}}, "body.search_space.features.choices.1"),
        ({"base": {**REQUEST["base"], "featurs": []}}, "body.base.featurs"),
        ({"base": {**REQUEST["base"], "symbols": ["EUR"]}}, "body.base.symbols.0"),
        ({"preset": "q_learning_grid"}, "body"),
        ({"sampler": "grid"}, "body.search_space.learning_rate"),
        ({"base": "x"}, "body.base"),
        ({"base": {**REQUEST["base"], "hyperparameters": {"learning_rate": "x"}}},
         "body.base.hyperparameters.learning_rate"),
        ({"search_space": {"batch_size": {"choices": [32, {"a": 1}]}}}, "body.search_space.batch_size.choices.1"),
        ({"search_space": {"batch_size": {"choices": [[1]]}}}, "body.search_space.batch_size.choices.0"),
        ({"search_space": {"batch_size": {"choices": [32, 32.0]}}}, "body.search_space.batch_size"),
        ({"search_space": {"horizon": {"choices": [1, True]}}}, "body.search_space.horizon"),
        ({"search_space": {"epochs": {"low": 1, "high": 20_000}}}, "body.search_space.epochs"),
        ({"base": {"model_id": "nobody", "symbols": ["EUR/USD"], "start_date": "2024-01-01T00:00:00Z",
                   "end_date": "2024-02-01T00:00:00Z"}, "search_space": {}, "preset": "q_learning_grid",
          "num_trials": None}, "body"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_its_path(api: httpx.Client, change: dict[str, Any], path: str) -> None:
    answer = api.post(ROUTE, json={**REQUEST, **change})
    assert answer.status_code == 422, answer.text
    assert [each["path"] for each in answer.json()["details"]["errors"]] == [path]


@pytest.mark.parametrize(
    ("base", "body", "path"),
    [
        ({"model_id": "nobody"}, {}, "body.base.model_id"),
        ({"version": "9.9.9"}, {}, "body.base.version"),
        ({"symbols": ["USD/JPY"]}, {}, "body.base.symbols.0"),
        ({"symbols": ["EUR/USD", "EURUSD"]}, {}, "body.base.symbols"),
        ({"seeds": [1, 1]}, {}, "body.base.seeds"),
        ({"costs": {"spread_pips": -1}}, {}, "body.base.costs.spread_pips"),
        ({"start_date": "2090-01-01T00:00:00Z", "end_date": "2091-01-01T00:00:00Z"}, {}, "body.base.start_date"),
        ({}, {"timeout_s": 60}, "body"),
        ({}, {"seed": 3}, "body"),
        ({}, {"preset": None, "search_space": {"learning_rate": {"choices": [0.1, 0.1]}}}, "body.search_space"),
        ({}, {"preset": None, "search_space": {"lerning_rate": {"choices": [0.1]}}}, "body.search_space.lerning_rate"),
    ],
)
def test_a_recording_that_cannot_be_made_is_refused_by_its_path(
    api: httpx.Client, base: dict[str, Any], body: dict[str, Any], path: str
) -> None:
    dates = {"start_date": "2024-01-01T00:00:00Z", "end_date": "2024-02-01T00:00:00Z"}
    whole = {"model_id": "small", "symbols": ["EUR/USD"], **dates, **base}
    answer = api.post(ROUTE, json={"name": "x", "preset": "q_learning_grid", "base": whole, **body})
    assert answer.status_code == 422, answer.text
    assert [each["path"] for each in answer.json()["details"]["errors"]] == [path]


def test_a_space_too_large_for_the_machine_is_refused_and_the_log_stays_quiet(service: ServiceProcess) -> None:
    large = {"lookback": {"low": 3, "high": 1024}, "batch_size": {"choices": [65536]}}
    base = {**REQUEST["base"], "family": "transformer", "start_date": "2000-01-01T00:00:00Z", "hyperparameters": {}}
    answer = service.client.post(ROUTE, json={**REQUEST, "base": base, "search_space": large})
    assert (answer.status_code, answer.json()["error_code"]) == (507, "INSUFFICIENT_MEMORY")
    assert answer.json()["details"]["estimate"]["memory_gb"] > 16
    assert answer.json()["correlation_id"] not in service.output.read_text()


def test_a_job_that_is_no_experiment_is_not_shown_as_one(api: httpx.Client) -> None:
    training = api.get("/api/v1/jobs", params={"kind": "train"}).json()["jobs"][0]["id"]
    assert api.get(f"{ROUTE}/{training}").status_code == 404
    assert api.get(f"{ROUTE}/nobody").status_code == 404


def test_a_search_around_what_is_trained_already_is_no_repetition(service: ServiceProcess) -> None:
    base = service.client.get("/api/v1/models/small").json()
    job = service.client.get(f"/api/v1/jobs/{base['lineage']['job_id']}")
    request = {**(job.json()["request"] if job.status_code == 200 else SMALL_TRAIN), "model_id": "small"}
    request.pop("version", None)
    again = service.client.post("/api/v1/models/train", json=request)
    assert again.status_code == 422, again.text
    assert again.json()["details"]["errors"][0]["code"] == "nothing_new"
    around = {"name": "around", "base": request, "search_space": {"lookback": {"choices": [24, 12]}}, "num_trials": 2}
    answer = service.client.post(ROUTE, json=around)
    assert answer.status_code == 202, answer.text
    service.client.post(f"/api/v1/jobs/{answer.json()['job_id']}/cancel")
