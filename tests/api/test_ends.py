"""Ends over HTTP: undeploy, archive, restore, purge; delete jobs; reset and remove agents. Nothing live gets lost."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import Clone, Guarded
from tests.api.deploying import deployed, history, live_version, send
from tests.api.failures import assert_failure, paths
from tests.api.test_agents import become, predict
from tests.conftest import registry_of
from tests.service_process import SEED_PREDICT, SEED_TRAIN, ServiceProcess


def ids(api: httpx.Client, **params: Any) -> list[str]:
    answer = api.get("/api/v1/models", params={"limit": 200, **params})
    assert answer.status_code == 200
    return [f"{each['id']} {each['version']}" for each in answer.json()["models"]]


def end(api: httpx.Client, path: str, **params: Any) -> httpx.Response:
    return api.delete(f"/api/v1/models/{path}", params=params)


def test_after_undeploying_the_model_answers_as_a_candidate_and_agents_are_flat(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    model_id = clone("undeployed")
    path = f"/api/v1/models/{model_id}/undeploy"
    none = api.post(path)
    assert (none.status_code, none.json()) == (200, {"model_id": model_id, "deployment": None, "warnings": []})
    deployed(api, model_id, "1.0.0")
    api.post("/api/v1/agents", json={"id": "flat", "model_id": model_id}).raise_for_status()
    predict(service, model_id, range(10))
    before = become(api, "flat", status="running", num_actions=10)
    assert before["num_settled"] == 8
    answer = api.post(path)
    assert answer.status_code == 200, answer.text
    ended = answer.json()["deployment"]
    assert (ended["status"], ended["version"], ended["closing_sent"]) == ("undeployed", "1.0.0", True)
    assert "idempotency_key" not in ended
    assert api.post(path).json() == answer.json()
    after = become(api, "flat", num_actions=11)
    assert (after["num_settled"], after["positions"]) == (11, {"EUR/USD": 0})
    groups = {each["group"]: each for each in api.get("/api/v1/queue").json()["groups"]}
    assert groups["agent:flat"]["balance"] == 0
    assert live_version(api, model_id) is None
    assert api.post(f"/api/v1/models/{model_id}/predict", json=SEED_PREDICT).json()["role"] == "candidate"
    assert [each["id"] for each in history(api, model_id=model_id, status="undeployed")] == [ended["id"]]
    assert_failure(api.post(f"/api/v1/deployments/{ended['id']}/rollback"), 409, "CONFLICT")
    assert deployed(api, model_id, "1.1.0")["previous_version"] is None
    assert live_version(api, model_id) == "1.1.0"
    assert_failure(api.post("/api/v1/models/nobody/undeploy"), 404, "MODEL_NOT_FOUND")
    api.post("/api/v1/agents/flat/stop").raise_for_status()
    api.post(path).raise_for_status()


def test_the_engine_is_told_and_its_refusal_keeps_the_model_live(guarded: Guarded) -> None:
    client, engine = guarded.client, guarded.engine
    live = deployed(client, "engine_model", "1.0.0", deployment_target="strategy_engine")
    path = "/api/v1/models/engine_model/undeploy"
    engine.mood = "refuse"
    assert_failure(client.post(path), 502, "UPSTREAM_ERROR")
    assert live_version(client, "engine_model") == "1.0.0"
    engine.mood = "accept"
    assert client.post(path).status_code == 200
    headers, body = engine.unregistered[-1]
    assert headers["idempotency-key"] == f"undeploy-{live['id']}"
    assert body["parameters"]["model_id"] == "engine_model"
    assert live_version(client, "engine_model") is None


def test_a_version_is_archived_listed_restored_and_purged(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    clone("ending", "1.0.0", "1.1.0", "1.2.0")
    digest = api.get("/api/v1/models/ending/versions/1.0.0").headers["ETag"]
    assert end(api, "ending/versions/1.2.0").json()["status"] == "archived"
    assert "ending 1.1.0" in ids(api)
    assert "ending 1.2.0" in ids(api, status="archived")
    assert api.post("/api/v1/models/ending/versions/1.2.0/restore").json()["status"] == "experimental"
    assert "ending 1.2.0" in ids(api)
    assert "ending 1.2.0" not in ids(api, status="archived")

    assert_failure(end(api, "ending/versions/1.0.0", purge=True), 409, "CONFLICT")
    assert paths(assert_failure(end(api, "ending/versions/1.0.0", confirm="ending"), 422, "DATA_VALIDATION_ERROR"))
    body = {**SEED_PREDICT, "version": "1.0.0"}
    assert api.post("/api/v1/models/ending/predict", json=body).status_code == 200, "it is in the memory"
    end(api, "ending/versions/1.0.0").raise_for_status()
    intervals = service.folder / "state" / "adaptive" / "ending" / "1.0.0.json"
    intervals.parent.mkdir(parents=True)
    intervals.write_text("{}", encoding="utf-8")
    for _ in range(2):
        purged = end(api, "ending/versions/1.0.0", purge=True)
        assert purged.status_code == 200, purged.text
        assert f'"{purged.json()["digest"]}"' == digest
    assert not (registry_of(service) / "ending" / "1.0.0").exists()
    assert not intervals.exists(), "what its intervals learnt is about nothing any more"
    gone = assert_failure(api.post("/api/v1/models/ending/predict", json=body), 404, "VERSION_NOT_FOUND")
    assert f'"{gone["details"]["tombstone"]["digest"]}"' == digest
    for failing in (
        api.get("/api/v1/models/ending/versions/1.0.0", headers={"If-None-Match": digest}),
        api.post("/api/v1/models/ending/versions/1.0.0/restore"),
        end(api, "ending/versions/1.0.0"),
        send(api, "ending", "1.0.0"),
    ):
        assert_failure(failing, 404, "VERSION_NOT_FOUND")
    listed = api.get("/api/v1/models/ending/versions").json()
    assert [each["version"] for each in listed["versions"]] == ["1.2.0", "1.1.0"]
    assert [each["version"] for each in listed["purged"]] == ["1.0.0"]
    again = {**SEED_TRAIN, "model_id": "ending", "version": "1.0.0"}
    assert_failure(api.post("/api/v1/models/train", json=again), 409, "VERSION_EXISTS")


def test_a_model_of_archived_versions_leaves_the_list(api: httpx.Client, clone: Clone) -> None:
    clone("laid_aside", "1.0.0", "1.1.0")
    for version in ("1.0.0", "1.1.0"):
        end(api, f"laid_aside/versions/{version}").raise_for_status()
    assert not [each for each in ids(api) if each.startswith("laid_aside ")]
    assert {"laid_aside 1.0.0", "laid_aside 1.1.0"} <= set(ids(api, status="archived"))
    first = api.get("/api/v1/models", params={"status": "archived", "limit": 1}).json()
    rest = ids(api, status="archived", cursor=first["next_cursor"])
    assert len(rest) + 1 == len(ids(api, status="archived"))
    assert api.get("/api/v1/models/laid_aside").json()["version"] == "1.1.0"


def test_a_whole_model_is_purged_once_nothing_of_it_is_live(api: httpx.Client, clone: Clone) -> None:
    clone("purged")
    deployed(api, "purged", "1.0.0")
    assert_failure(end(api, "purged", confirm="purged"), 409, "CONFLICT")
    assert_failure(end(api, "purged/versions/1.0.0"), 409, "CONFLICT")
    api.post("/api/v1/models/purged/undeploy").raise_for_status()
    for confirm in ({}, {"confirm": "other"}):
        failure = assert_failure(end(api, "purged", **confirm), 422, "DATA_VALIDATION_ERROR")
        assert paths(failure) == ["query.confirm"]
    end(api, "purged/versions/1.0.0").raise_for_status()
    failure = assert_failure(end(api, "purged/versions/1.0.0", purge=True), 422, "DATA_VALIDATION_ERROR")
    assert paths(failure) == ["query.confirm"], "it was live once"
    api.post("/api/v1/agents", json={"id": "bound", "model_id": "purged"}).raise_for_status()
    used = assert_failure(end(api, "purged", confirm="purged"), 409, "CONFLICT")
    assert [each["id"] for each in used["details"]["used_by"]] == ["bound"]
    api.post("/api/v1/agents/bound/stop").raise_for_status()
    for _ in range(2):
        answer = end(api, "purged", confirm="purged")
        assert answer.status_code == 200, answer.text
        assert sorted(each["version"] for each in answer.json()["purged"]) == ["1.0.0", "1.1.0"]
    for path in ("purged", "purged/versions", "purged/versions/1.0.0"):
        assert_failure(api.get(f"/api/v1/models/{path}"), 404, "MODEL_NOT_FOUND")
    assert len(history(api, model_id="purged")) == 1, "the history outlives the files"
    assert_failure(end(api, "nobody", confirm="nobody"), 404, "MODEL_NOT_FOUND")


def test_an_ended_job_is_deleted_and_its_key_makes_no_second_one(api: httpx.Client, service: ServiceProcess) -> None:
    headers, body = {"Idempotency-Key": "deleted-job"}, {**SEED_TRAIN, "model_id": "unmade"}
    job_id = api.post("/api/v1/models/train", json=body, headers=headers).json()["job_id"]
    path = f"/api/v1/jobs/{job_id}"
    assert_failure(api.delete(path), 409, "CONFLICT")
    api.post(f"{path}/cancel").raise_for_status()
    service.wait_for_job(job_id)
    for _ in range(2):
        answer = api.delete(path)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["id"], answer.json()["status"]) == (job_id, "cancelled")
        assert "idempotency_key" not in answer.json()
    assert not (service.folder / "state" / "jobs" / job_id).exists()
    assert "was deleted" in assert_failure(api.get(path), 404, "JOB_NOT_FOUND")["message"]
    assert_failure(api.post("/api/v1/models/train", json=body, headers=headers), 409, "CONFLICT")
    assert job_id not in [each["id"] for each in api.get("/api/v1/jobs", params={"limit": 200}).json()["jobs"]]
    assert_failure(api.delete("/api/v1/jobs/absent"), 404, "JOB_NOT_FOUND")


def test_an_agent_is_begun_anew_stopped_and_removed(api: httpx.Client, service: ServiceProcess, clone: Clone) -> None:
    deployed(api, clone("begun_anew"), "1.0.0")
    api.post("/api/v1/agents", json={"id": "anew", "model_id": "begun_anew"}).raise_for_status()
    predict(service, "begun_anew", range(6))
    become(api, "anew", status="running", num_actions=6)
    assert_failure(api.delete("/api/v1/agents/anew"), 409, "CONFLICT")
    reset = api.post("/api/v1/agents/anew/reset")
    assert reset.status_code == 200, reset.text
    shown = reset.json()
    assert (shown["num_before_reset"], shown["num_actions"], shown["positions"]) == (shown["num_applied"], 0, {})
    predict(service, "begun_anew", range(6, 9))
    become(api, "anew", status="running", num_actions=3)
    api.post("/api/v1/agents/anew/stop").raise_for_status()
    assert api.delete("/api/v1/agents/anew").status_code == 204
    assert_failure(api.get("/api/v1/agents/anew"), 404, "AGENT_NOT_FOUND")
    assert_failure(api.delete("/api/v1/agents/default"), 409, "CONFLICT")
    api.post("/api/v1/models/begun_anew/undeploy").raise_for_status()


@pytest.mark.parametrize("path", ["models/small/versions/9.9.9/restore", "agents/absent/reset"])
def test_what_is_not_there_is_a_404(api: httpx.Client, path: str) -> None:
    assert api.post(f"/api/v1/{path}").status_code == 404
