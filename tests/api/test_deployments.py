"""`/models/{id}/deploy` and `/deployments`: gates, compare-and-swap, rollback, and swaps under load."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.api.conftest import Clone
from tests.api.deploying import deployed, history, live_version, send
from tests.api.failures import assert_failure
from tests.conftest import registry_of
from tests.integrations.bundles import flip_a_byte
from tests.service_process import SEED_PREDICT, ServiceProcess

DEPLOYMENT_KEYS = [
    "id",
    "model_id",
    "version",
    "deployment_target",
    "status",
    "previous_version",
    "gate_results",
    "warnings",
    "digest",
    "created_at",
    "live_at",
]
SEED_DEPLOY = {
    "version": "2.1.0",
    "deployment_target": "strategy_engine",
    "scaling_factor": 1.0,
    "monitoring_level": "high",
}


def test_the_seeds_body_deploys_as_printed(api: httpx.Client, clone: Clone) -> None:
    clone("price_prediction_lstm_v2", "2.1.0")
    answer = api.post("/api/v1/models/price_prediction_lstm_v2/deploy", json=SEED_DEPLOY)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert list(found)[: len(DEPLOYMENT_KEYS) - 2] == DEPLOYMENT_KEYS[:-2]
    assert set(DEPLOYMENT_KEYS) <= set(found)
    assert (found["status"], found["version"], found["previous_version"]) == ("live", "2.1.0", None)
    assert set(found["warnings"]) == {
        "simulated_data", "verdict_not_applicable", "no_proven_skill", "strategy_engine_not_configured",
    }  # fmt: skip
    gates = {gate["gate"]: gate for gate in found["gate_results"]}
    assert list(gates) == ["digest", "smoke_prediction", "leakage_certificate", "skill"]
    assert all(set(gate) == {"gate", "value", "limit", "passed", "enforced"} for gate in gates.values())
    skill = gates.pop("skill")
    assert (skill["passed"], skill["enforced"]) == (False, False)  # simulated prices show nothing
    assert skill["value"].startswith("not_applicable: ")
    assert all(gate["passed"] and gate["enforced"] for gate in gates.values())
    card = api.get("/api/v1/models/price_prediction_lstm_v2").json()
    assert (card["status"], card["digest"]) == ("deployed", found["digest"])
    assert api.get(f"/api/v1/deployments/{found['id']}").json() == found


def test_predictions_carry_the_deployments_settings(api: httpx.Client, clone: Clone) -> None:
    deployment = deployed(api, clone("scaled"), "1.0.0", scaling_factor=0.25, monitoring_level="high")
    record = api.post("/api/v1/models/scaled/predict", json=SEED_PREDICT).json()
    assert (record["role"], record["version"], record["scaling_factor"]) == ("champion", "1.0.0", 0.25)
    assert record["metadata"]["deployment_id"] == deployment["id"]
    other = api.post("/api/v1/models/scaled/predict", json={**SEED_PREDICT, "version": "1.1.0"}).json()
    assert (other["role"], other["scaling_factor"], other["metadata"]["deployment_id"]) == ("candidate", 1.0, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.0"},
        {"version": "١.0.0"},  # noqa: RUF001 - a digit, but none of ours
        {"deployment_target": "moon"},
        {"scaling_factor": 1.5},
        {"scaling_factor": -0.1},
        {"monitoring_level": "most"},
        {"gates": {"digest": False}},
        {"gates": {"luck": True}},
        {"expected_current": "latest"},
    ],
)
def test_what_cannot_be_deployed_is_refused(api: httpx.Client, changes: dict[str, Any]) -> None:
    body = {"version": "1.0.0", "deployment_target": "local", **changes}
    assert_failure(api.post("/api/v1/models/small/deploy", json=body), 422, "DATA_VALIDATION_ERROR")
    assert live_version(api, "small") is None


def test_an_unknown_model_or_version_is_a_404(api: httpx.Client) -> None:
    assert_failure(send(api, "absent", "1.0.0"), 404, "MODEL_NOT_FOUND")
    assert_failure(send(api, "small", "8.0.0"), 404, "VERSION_NOT_FOUND")


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors", "card.json"])
def test_a_changed_byte_fails_the_digest_gate(
    api: httpx.Client, service: ServiceProcess, clone: Clone, file: str
) -> None:
    model_id = clone(f"gate_{file.partition('.')[0]}")
    deployed(api, model_id, "1.0.0")
    assert api.get(f"/api/v1/models/{model_id}/versions/1.1.0").status_code == 200  # the card is known by now
    flip_a_byte(registry_of(service) / model_id / "1.1.0" / file)
    found = assert_failure(send(api, model_id, "1.1.0", force=True), 409, "GATE_FAILED")
    gates = {gate["gate"]: gate for gate in found["details"]["gates"]}
    assert gates["digest"]["passed"] is False
    assert file in gates["digest"]["value"]
    assert live_version(api, model_id) == "1.0.0"
    assert [each["version"] for each in history(api, model_id=model_id)] == ["1.0.0"]


def test_a_file_more_or_less_fails_the_digest_gate(api: httpx.Client, service: ServiceProcess, clone: Clone) -> None:
    home = registry_of(service) / clone("gate_files")
    (home / "1.0.0" / "extra.py").write_text("print('code')")
    (home / "1.1.0" / "recipe.json").unlink()
    for version in ("1.0.0", "1.1.0"):
        assert_failure(send(api, "gate_files", version), 409, "GATE_FAILED")


def test_expected_current_must_be_live(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("expected")
    found = assert_failure(send(api, model_id, "1.0.0", expected_current="1.1.0"), 409, "CONFLICT")
    assert found["details"] == {"current": None}
    deployed(api, model_id, "1.0.0")
    assert_failure(send(api, model_id, "1.1.0", expected_current="1.1.0"), 409, "CONFLICT")
    assert deployed(api, model_id, "1.1.0", expected_current="1.0.0")["previous_version"] == "1.0.0"


def test_of_many_who_expect_the_same_current_one_wins(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("contested", *(f"1.{number}.0" for number in range(9)))
    deployed(api, model_id, "1.0.0")
    start = threading.Barrier(8)

    def swap(number: int) -> httpx.Response:
        start.wait()
        return send(api, model_id, f"1.{number + 1}.0", expected_current="1.0.0")

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(swap, range(8)))
    won = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    for answer in answers:
        if answer.status_code != 200:
            assert assert_failure(answer, 409, "CONFLICT")["details"]["current"] == won[0]["version"]
    assert [each["status"] for each in history(api, model_id=model_id)] == ["live", "superseded"]


def test_a_key_sent_again_gets_the_first_answer(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("keyed")
    first = send(api, model_id, "1.0.0", key="deploy-1")
    deployed(api, model_id, "1.1.0")
    again = send(api, model_id, "1.0.0", key="deploy-1")
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert live_version(api, model_id) == "1.1.0"  # replayed, not done again
    assert_failure(send(api, model_id, "1.1.0", key="deploy-1"), 422, "IDEMPOTENCY_MISMATCH")
    other = send(api, clone("keyed_too"), "1.0.0", key="deploy-1")  # another route, another thing
    assert other.json()["model_id"] == "keyed_too"
    assert_failure(send(api, model_id, "8.0.0", key="deploy-2"), 404, "VERSION_NOT_FOUND")
    assert "Idempotency-Replayed" not in send(api, model_id, "1.0.0", key="deploy-2").headers


def test_one_key_sent_many_times_at_once_is_one_deployment(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("keyed_race")
    start = threading.Barrier(8)

    def swap(_: int) -> httpx.Response:
        start.wait()
        return send(api, model_id, "1.0.0", key="deploy-race")

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(swap, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert len(history(api, model_id=model_id)) == 1


def test_a_rollback_brings_the_version_before_back_with_its_settings(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("rolled")
    first = deployed(api, model_id, "1.0.0", scaling_factor=0.5, monitoring_level="medium")
    second = deployed(api, model_id, "1.1.0")
    assert_failure(api.post(f"/api/v1/deployments/{first['id']}/rollback"), 409, "CONFLICT")
    answer = api.post(f"/api/v1/deployments/{second['id']}/rollback")
    assert answer.status_code == 200
    back = answer.json()
    assert (back["version"], back["status"], back["previous_version"]) == ("1.0.0", "live", "1.1.0")
    assert (back["scaling_factor"], back["monitoring_level"]) == (0.5, "medium")
    assert live_version(api, model_id) == "1.0.0"
    statuses = {each["id"]: each["status"] for each in history(api, model_id=model_id)}
    assert statuses == {back["id"]: "live", second["id"]: "rolled_back", first["id"]: "superseded"}
    assert_failure(api.post(f"/api/v1/deployments/{second['id']}/rollback"), 409, "CONFLICT")


def test_the_first_deployment_cannot_be_rolled_back(api: httpx.Client, clone: Clone) -> None:
    only = deployed(api, clone("rolled_first"), "1.0.0")
    assert_failure(api.post(f"/api/v1/deployments/{only['id']}/rollback"), 409, "CONFLICT")
    assert live_version(api, "rolled_first") == "1.0.0"


def test_the_history_is_filtered_and_tells_who_served_when(api: httpx.Client, clone: Clone) -> None:
    model_id = clone("told", "1.0.0", "1.1.0", "1.2.0")
    found = [deployed(api, model_id, version) for version in ("1.0.0", "1.1.0", "1.2.0")]
    mine = {"model_id": model_id}
    assert [each["version"] for each in history(api, **mine)] == ["1.2.0", "1.1.0", "1.0.0"]
    assert [each["version"] for each in history(api, **mine, status="superseded")] == ["1.1.0", "1.0.0"]
    assert history(api, **mine, deployment_target="analysis_engine") == []
    for each in found:
        assert [served["id"] for served in history(api, **mine, at=each["live_at"])] == [each["id"]]
    assert history(api, **mine, at="2020-01-01T00:00:00Z") == []
    assert [each["id"] for each in history(api, **mine, at="2099-01-01T00:00:00Z")] == [found[-1]["id"]]
    assert found[-1]["id"] in {each["id"] for each in history(api, status="live")}
    page = api.get("/api/v1/deployments", params={**mine, "limit": 2}).json()
    rest = api.get("/api/v1/deployments", params={**mine, "cursor": page["next_cursor"]}).json()
    assert [each["version"] for each in page["deployments"] + rest["deployments"]] == ["1.2.0", "1.1.0", "1.0.0"]


@pytest.mark.more
def test_two_hundred_swaps_under_four_predicting_clients(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    path = f"/api/v1/models/{clone('swapped')}/predict"
    factors = {"1.0.0": 1.0, "1.1.0": 0.5}
    own = {version: api.post(path, json={**SEED_PREDICT, "version": version}).json()["outputs"] for version in factors}
    assert own["1.0.0"] != own["1.1.0"]
    deployment_versions = {deployed(api, "swapped", "1.0.0")["id"]: "1.0.0"}
    done = threading.Event()

    def predict_until_done() -> list[httpx.Response]:
        answers = []
        with httpx.Client(base_url=service.url, timeout=30) as client:
            while not done.is_set():
                answers.append(client.post(path, json=SEED_PREDICT))
                time.sleep(0.002)  # else four clients leave the service hardly a processor to deploy with
        return answers

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(predict_until_done) for _ in range(4)]
        try:
            for number in range(200):
                version = ("1.1.0", "1.0.0")[number % 2]
                found = deployed(api, "swapped", version, scaling_factor=factors[version])
                deployment_versions[found["id"]] = version
        finally:
            done.set()
        answers = [answer for client in clients for answer in client.result()]
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    records = [answer.json() for answer in answers]
    for record in records:
        version = record["version"]
        assert record["outputs"] == own[version]
        assert (record["role"], record["scaling_factor"]) == ("champion", factors[version])
        assert deployment_versions[record["metadata"]["deployment_id"]] == version
    assert {record["version"] for record in records} == set(factors)
    assert len({record["metadata"]["deployment_id"] for record in records}) > 50
