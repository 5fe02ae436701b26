"""Every 2xx answer of the document has an example that a running service gave, and gives again.

`RECORD_ANSWERS=1 make test-more ARGS="tests/api/document/test_answers.py"` writes the examples anew.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema_rs import validator_for

from ml_workbench_service.api import document as document_package
from ml_workbench_service.api.inference_protocol.routes import EXAMPLE
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.api.conftest import Clone, Guarded
from tests.api.deploying import deployed
from tests.api.test_openapi import examples, operations
from tests.conftest import SMALL_TRAIN
from tests.prediction_records import prediction_record
from tests.service_process import SEED_PREDICT, SEED_TRAIN, WEDNESDAY, ServiceProcess

pytestmark = pytest.mark.more
ANSWERS = Path(document_package.__file__).parent / "answers"
RECORDS = os.environ.get("RECORD_ANSWERS") == "1"
API = "/api/v1"
NOON = datetime(2025, 3, 5, 12, tzinfo=UTC)
RANGE = {"timeframe": "1h", "start_date": "2025-02-03T00:00:00Z", "end_date": "2025-02-03T04:00:00Z"}
DAY = {"start_date": "2025-01-08T00:00:00Z", "end_date": "2025-01-09T00:00:00Z"}
SEARCH: dict[str, Any] = {
    "name": "Two rates",
    "base": {
        **SMALL_TRAIN,
        "name": "Two rates",
        "model_id": "two_rates",
        "family": "linear",
        "start_date": "2024-11-01T00:00:00Z",
        "hyperparameters": {"epochs": 2, "batch_size": 256},
    },
    "search_space": {"learning_rate": {"choices": [0.001, 0.01]}},
    "num_trials": 2,
}
PLAIN_TEXT = {"read_metrics", "read_report", "read_job_log"}
"""Whose example stands in the route."""
KNOWN_LATER = {"create_agent": {"MODEL_NOT_FOUND", "CONFLICT"}, "report_outcome": {"OUTCOME_CONFLICT"}}
"""Right in itself, about a model that nobody trained here, an agent without experience, an outcome told before."""
MOST_NUMBERS = 4
"""Of a list of plain values, so many are enough to show what it holds."""
MOST_LINES = 2
"""Of a table, behind its header."""
Answers = dict[str, httpx.Response]


@pytest.fixture(scope="module")
def document(service: ServiceProcess) -> dict[str, Any]:
    """The served schema."""
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def answers(service: ServiceProcess, clone: Clone, guarded: Guarded) -> Iterator[Answers]:
    """One answer of every operation, by its id; each part of the walk leaves what the next one looks at."""
    found: Answers = {}
    for part in (_look_around, _predict_and_report, _work, _keep_agents, _deploy):
        found |= part(service, clone)
    yield found | _give_up(guarded)
    service.clock.set(WEDNESDAY)


def _look_around(service: ServiceProcess, clone: Clone) -> Answers:
    get, post = service.client.get, service.client.post
    version = f"{API}/models/small/versions/1.0.0"
    clone("shelved")
    return {
        "check_health": get("/health"),
        "check_liveness": get("/health/live"),
        "check_readiness": get("/health/ready"),
        "read_metrics": get("/metrics"),
        "check_server_live": get("/v2/health/live"),
        "check_server_ready": get("/v2/health/ready"),
        "show_server": get("/v2"),
        "show_model_tensors": get("/v2/models/small"),
        "show_version_tensors": get("/v2/models/small/versions/1.0.0"),
        "check_model_ready": get("/v2/models/small/ready"),
        "check_version_ready": get("/v2/models/small/versions/1.0.0/ready"),
        "infer_model": post("/v2/models/small/infer", json=EXAMPLE),
        "infer_version": post("/v2/models/small/versions/1.0.0/infer", json=EXAMPLE),
        "list_models": get(f"{API}/models", params={"limit": 1}),
        "show_model": get(f"{API}/models/small"),
        "list_versions": get(f"{API}/models/small/versions", params={"limit": 1}),
        "show_version": get(version),
        "archive_version": service.client.delete(f"{API}/models/shelved/versions/1.0.0"),
        "restore_version": post(f"{API}/models/shelved/versions/1.0.0/restore"),
        "delete_model": service.client.delete(f"{API}/models/shelved", params={"confirm": "shelved"}),
        "list_model_types": get(f"{API}/model-types"),
        "list_features": get(f"{API}/features"),
        "list_series": get(f"{API}/series"),
        "read_features": get(f"{API}/features/EUR%2FUSD", params={**RANGE, "features": "close,rsi_14"}),
        "read_feature_batch": post(
            f"{API}/features/batch", json={"symbols": ["EUR/USD"], "features": ["close", "sma_20"], **RANGE}
        ),
        "list_labels": get(f"{API}/labels/EUR%2FUSD", params={"target": "price_change_1h", **RANGE}),
        "list_faults": get(f"{API}/resilience/faults"),
        "show_queue": get(f"{API}/queue"),
        "read_version_series": get(f"{version}/series", params={"limit": 2}),
        "list_figures": get(f"{version}/figures"),
        "draw_figure": get(f"{version}/figures/monthly_returns"),
        "read_report": get(f"{version}/report"),
        "read_desk_report": get(f"{version}/desk-report"),
        "compare_versions": get(f"{API}/compare", params={"versions": "small@1.0.0,small@1.1.0"}),
    }


def _predict_and_report(service: ServiceProcess, clone: Clone) -> Answers:
    post = service.client.post
    deployed(service.client, clone("asked"), "1.0.0", monitoring_level="high")
    service.clock.set(NOON)
    record = post(f"{API}/models/asked/predict", json={"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON)})
    service.clock.set(NOON + timedelta(hours=3))
    outcome = {"realised": 0.00042, "at": iso(NOON + timedelta(hours=1))}
    place = f"{API}/predictions/{record.json()['prediction_id']}/outcome"
    return {
        "predict": record,
        "predict_batch": post(f"{API}/models/asked/predict/batch", json={"items": [SEED_PREDICT, {}]}),
        "report_outcome": post(place, json=outcome),
        "list_predictions": service.client.get(f"{API}/predictions", params={"model_id": "asked", "limit": 1}),
        "show_monitoring": service.client.get(f"{API}/models/asked/monitoring"),
    }


def _work(service: ServiceProcess, clone: Clone) -> Answers:
    get, post = service.client.get, service.client.post
    _agent_runs(service)
    accepted = {
        "train_model": post(f"{API}/models/train", json={**SEED_TRAIN, "model_id": "asked_for"}),
        "start_experiment": post(f"{API}/experiments", json=SEARCH),
        "measure_importance": post(f"{API}/models/small/versions/1.0.0/importance", json={}),
        "replay_past": post(f"{API}/replays", json={"model_id": "asked", "symbols": ["EUR/USD"], **DAY}),
        "test_resilience": post(f"{API}/resilience", json={"scenario": "flood", "rate_per_s": 50, "duration_s": 1}),
    }
    for answer in accepted.values():
        assert answer.status_code == 202, answer.text
    cancelled = post(f"{API}/jobs/{accepted['train_model'].json()['job_id']}/cancel")
    experiment, replay = (accepted[name].json()["job_id"] for name in ("start_experiment", "replay_past"))
    for job_id in (experiment, replay, cancelled.json()["job_id"]):
        ended = service.wait_for_job(job_id)
        assert ended["status"] == ("cancelled" if job_id == cancelled.json()["job_id"] else "succeeded"), ended["error"]
    trained = get(f"{API}/models/small/versions/1.0.0").json()["lineage"]["job_id"]
    return accepted | {
        "cancel_job": cancelled,
        "delete_job": service.client.delete(f"{API}/jobs/{cancelled.json()['job_id']}"),
        "list_jobs": get(f"{API}/jobs", params={"kind": "train", "status": "succeeded", "limit": 1}),
        "show_job": get(f"{API}/jobs/{trained}"),
        "follow_job": get(f"{API}/jobs/{trained}/events"),
        "read_job_log": get(f"{API}/jobs/{trained}/log"),
        "read_job_curves": get(f"{API}/jobs/{trained}/curves", params={"limit": 2}),
        "read_job_series": get(f"{API}/jobs/{replay}/series", params={"limit": 2}),
        "list_experiments": get(f"{API}/experiments", params={"limit": 1}),
        "show_experiment": get(f"{API}/experiments/{experiment}"),
        "read_trials": get(f"{API}/experiments/{experiment}/trials", params={"limit": 2}),
        "list_experiment_figures": get(f"{API}/experiments/{experiment}/figures"),
        "draw_experiment_figure": get(f"{API}/experiments/{experiment}/figures/trials"),
        "read_q_table": get(f"{API}/agents/default/q-table", params={"limit": 2}),
        "read_decisions": get(f"{API}/agents/default/decisions", params={"limit": 2}),
        "list_agent_figures": get(f"{API}/agents/default/figures"),
        "draw_agent_figure": get(f"{API}/agents/default/figures/agent_reward"),
    }


def _agent_runs(service: ServiceProcess) -> None:
    """Replays need a consumer, which takes a moment to begin."""
    deadline = time.monotonic() + 120
    while service.client.get(f"{API}/agents/default").json().get("status") != "running":
        assert time.monotonic() < deadline, "the default agent does not begin"
        time.sleep(0.1)


def _keep_agents(service: ServiceProcess, clone: Clone) -> Answers:
    post = service.client.post
    made = post(f"{API}/agents", json={"id": "asked", "model_id": "asked", "hyperparameters": {"learning_rate": 0.05}})
    assert made.status_code == 201, made.text
    return {
        "create_agent": made,
        "show_agent": service.client.get(f"{API}/agents/asked"),
        "list_agents": service.client.get(f"{API}/agents", params={"limit": 1}),
        "start_agent": post(f"{API}/agents/asked/start"),
        "stop_agent": post(f"{API}/agents/asked/stop"),
        "reset_agent": post(f"{API}/agents/asked/reset"),
        "delete_agent": service.client.delete(f"{API}/agents/asked"),
    }


def _deploy(service: ServiceProcess, clone: Clone) -> Answers:
    clone("deployed_twice")
    deployed(service.client, "deployed_twice", "1.0.0")
    body = {"version": "1.1.0", "deployment_target": "local", "scaling_factor": 1.0, "monitoring_level": "high"}
    second = service.client.post(f"{API}/models/deployed_twice/deploy", json=body)
    shown = f"{API}/deployments/{second.json()['id']}"
    return {
        "deploy_model": second,
        "show_deployment": service.client.get(shown),
        "list_deployments": service.client.get(f"{API}/deployments", params={"limit": 1}),
        "roll_back_deployment": service.client.post(f"{shown}/rollback"),
        "undeploy_model": service.client.post(f"{API}/models/deployed_twice/undeploy"),
    }


def _give_up(guarded: Guarded) -> Answers:
    """Dead letters, on a queue that no agent reads."""
    redis = guarded.redis.client()
    redis.flushall()
    redis.close()
    queue = RedisPredictionQueue(guarded.redis.url, capacity=100)
    queue.create_group("reader")
    queue.publish([prediction_record(number) for number in (1, 2)])
    for delivery in queue.consume("reader", "test", block_ms=0):
        queue.dead_letter("reader", delivery, f"no costs for {delivery.entry_id}")
    queue.close()
    letters = f"{API}/queue/dead-letters"
    listed = guarded.client.get(letters)
    first, second = (each["id"] for each in listed.json()["dead_letters"])
    return {
        "list_audit": guarded.client.get(f"{API}/audit?limit=2"),
        "list_dead_letters": listed,
        "requeue_dead_letter": guarded.client.post(f"{letters}/{first}/requeue"),
        "discard_dead_letter": guarded.client.delete(f"{letters}/{second}"),
    }


def said(operation_id: str, answer: httpx.Response) -> Any:
    """What is answered, as the document describes it: of a stream, its last message."""
    if operation_id != "follow_job":
        return answer.json()
    last = answer.text.strip().split("\n\n")[-1]
    lines = dict(line.split(": ", 1) for line in last.splitlines() if not line.startswith(":"))
    return {"id": lines["id"], "event": lines["event"], "data": json.loads(lines["data"])}


def shortened(value: Any) -> Any:
    """One item of a list of things, a few of a list of values: enough to show what is in it."""
    if isinstance(value, dict):
        return {name: shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        is_plain = not any(isinstance(each, dict | list) for each in value)
        return [shortened(each) for each in value[: MOST_NUMBERS if is_plain else 1]]
    return value


def outline(value: Any, depth: int = 2) -> Any:
    """The keys of a document and of the first of each of its lists; what is null says nothing of its shape."""
    if isinstance(value, dict) and depth:
        return {name: outline(each, depth - 1) for name, each in value.items() if isinstance(each, list) or depth > 1}
    if isinstance(value, list) and value and depth:
        return [outline(value[0], depth)]
    return None


def test_the_walk_comes_by_every_operation(answers: Answers, document: dict[str, Any]) -> None:
    every = {each["operationId"]: each for each in operations(document).values()}
    assert set(answers) == set(every)
    for name, answer in answers.items():
        assert 200 <= answer.status_code < 300, (name, answer.text)
        assert str(answer.status_code) in every[name]["responses"], name


def test_its_headers_are_those_that_the_document_describes(answers: Answers, document: dict[str, Any]) -> None:
    told = document["components"]["headers"]
    for operation in operations(document).values():
        answer = answers[operation["operationId"]]
        described = set(operation["responses"][str(answer.status_code)]["headers"])
        sent = {name for name in told if name in answer.headers}
        always = described - {"Idempotency-Replayed", "Content-Disposition"}
        assert always <= sent <= described, operation["operationId"]
        for name in sent:
            schema = told[name]["schema"]
            text = answer.headers[name]
            validator_for(schema).validate(int(text) if schema["type"] == "integer" else text)


def test_each_example_is_such_an_answer(answers: Answers, document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        name = operation["operationId"]
        if name in PLAIN_TEXT or answers[name].status_code == 204:
            continue
        answer = said(name, answers[name])
        content = operation["responses"][str(answers[name].status_code)]["content"]
        kind = answers[name].headers["content-type"].partition(";")[0]
        check: Callable[[Any], None] = validator_for(
            {**content[kind].get("schema", {}), "components": document["components"]}
        ).validate
        check(answer)
        if RECORDS:
            ANSWERS.mkdir(exist_ok=True)
            text = json.dumps(shortened(answer), indent=1, ensure_ascii=False)
            (ANSWERS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            continue
        example = content[kind]["example"]
        check(example)
        assert outline(example).keys() == outline(answer).keys(), f"{name}: record the examples anew"


def test_each_table_has_an_example_of_its_lines(
    service: ServiceProcess, answers: Answers, document: dict[str, Any]
) -> None:
    tables = {
        each["operationId"]: each["responses"]["200"]["content"]["text/csv"]
        for each in operations(document).values()
        if "text/csv" in each["responses"].get("200", {}).get("content", {})
    }
    assert len(tables) >= 7
    for name, described in tables.items():
        asked = answers[name].request
        again = service.client.request(asked.method, asked.url, content=asked.content, headers={
            "Accept": "text/csv", "Content-Type": "application/json",
        })  # fmt: skip
        assert again.status_code == 200, (name, again.text)
        lines = again.text.splitlines(keepends=True)[: 1 + MOST_LINES]
        if RECORDS:
            (ANSWERS / f"{name}.csv").write_text("".join(lines), encoding="utf-8")
            continue
        validator_for(described["schema"]).validate(described["example"])
        assert described["example"].splitlines(keepends=True)[0] == lines[0], f"{name}: record the examples anew"
        assert len(described["example"].splitlines()) > 1, name


def test_examples_name_nothing_of_the_machine_they_were_recorded_on() -> None:
    known = sorted([*ANSWERS.glob("*.json"), *ANSWERS.glob("*.csv")])
    assert known
    for path in known:
        text = path.read_text(encoding="utf-8")
        assert "/tmp" not in text, path.name
        assert "/home" not in text, path.name


def test_each_request_example_is_taken_as_it_stands(
    service: ServiceProcess, guarded: Guarded, clone: Clone, answers: Answers, document: dict[str, Any]
) -> None:
    clone("lstm_price_predictor")
    outcome = f"{API}/predictions/{answers['predict'].json()['prediction_id']}/outcome"
    place = {"predict": f"{API}/models/small/predict", "predict_batch": f"{API}/models/small/predict/batch"}
    place |= {"infer_model": "/v2/models/small/infer", "infer_version": "/v2/models/small/versions/1.0.0/infer"}
    place |= {"report_outcome": outcome, "deploy_model": f"{API}/models/engine_model/deploy"}
    place["measure_importance"] = f"{API}/models/small/versions/1.0.0/importance"
    with_body = {name: each for name, each in operations(document).items() if "requestBody" in each}
    for words, operation in with_body.items():
        name = operation["operationId"]
        client = guarded.client if name == "deploy_model" else service.client  # that has a strategy engine
        for example in examples(document, operation):
            answer = client.post(place.get(name, words.removeprefix("POST ")), json=example)
            refused = set() if answer.is_success else {answer.json()["error_code"]}
            assert refused <= KNOWN_LATER.get(name, set()), (name, answer.text)
            if answer.status_code == 202:
                service.client.post(f"{answer.json()['href']}/cancel").raise_for_status()
            if answer.status_code == 201:
                service.client.post(f"{answer.headers['Location']}/stop").raise_for_status()
