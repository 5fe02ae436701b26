"""Deployments to the strategy engine: what it is told, what its refusal costs, and what the stream says."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import ENGINE_KEY, Guarded
from tests.api.deploying import deployed, history, live_version, send
from tests.api.failures import assert_failure
from tests.service_process import SEED_PREDICT


@pytest.fixture
def engine_model(guarded: Guarded) -> Iterator[str]:
    """A model of the guarded service whose version 1.0.0 is live on the engine, which is in a good mood again after."""
    guarded.engine.mood = "accept"
    deployed(guarded.client, "engine_model", "1.0.0", deployment_target="strategy_engine")
    yield "engine_model"
    guarded.engine.mood = "accept"


def test_the_engine_learns_what_it_needs(guarded: Guarded, engine_model: str) -> None:
    answer = guarded.client.post(
        f"/api/v1/models/{engine_model}/deploy",
        json={
            "version": "1.1.0",
            "deployment_target": "strategy_engine",
            "scaling_factor": 0.75,
            "monitoring_level": "high",
        },
        headers={"X-Correlation-ID": "to-the-engine"},
    )
    found = answer.json()
    headers, body = guarded.engine.received[-1]
    assert body == {
        "name": "Small",
        "type": "ml_enhanced",
        "instruments": ["EUR/USD", "GBP/USD"],
        "timeframe": "1h",
        "parameters": {
            "model_id": engine_model,
            "version": "1.1.0",
            "digest": found["digest"],
            "predict_url": f"{guarded.service.url}/api/v1/models/{engine_model}/predict",
            "scaling_factor": 0.75,
            "monitoring_level": "high",
        },
    }
    assert headers["idempotency-key"] == found["id"]
    assert headers["x-api-key"].encode("latin-1").decode() == ENGINE_KEY
    assert headers["x-correlation-id"] == "to-the-engine"
    assert "strategy_engine_not_configured" not in found["warnings"]
    asked = guarded.client.post(body["parameters"]["predict_url"], json=SEED_PREDICT).json()
    assert (asked["version"], asked["scaling_factor"]) == ("1.1.0", 0.75)


def test_other_targets_do_not_tell_the_engine(guarded: Guarded, engine_model: str) -> None:
    before = len(guarded.engine.received)
    for target in ("ml_integration", "analysis_engine", "local"):
        deployed(guarded.client, engine_model, "1.1.0", deployment_target=target)
    assert len(guarded.engine.received) == before


@pytest.mark.parametrize("mood", ["refuse", "redirect", "hang_up"])
def test_an_engine_that_refuses_leaves_the_previous_version_live(
    guarded: Guarded, engine_model: str, mood: Any
) -> None:
    guarded.engine.mood = mood
    body = {"version": "1.1.0", "deployment_target": "strategy_engine"}
    key = {"Idempotency-Key": f"refused-{mood}"}
    path = f"/api/v1/models/{engine_model}/deploy"
    assert_failure(guarded.client.post(path, json=body, headers=key), 502, "UPSTREAM_ERROR")
    assert live_version(guarded.client, engine_model) == "1.0.0"
    newest = history(guarded.client, model_id=engine_model)[0]
    assert (newest["status"], newest["version"], newest["live_at"]) == ("failed", "1.1.0", None)
    assert newest["error"]
    assert_failure(api_again := guarded.client.post(path, json=body, headers=key), 502, "UPSTREAM_ERROR")
    assert api_again.json()["message"] == newest["error"]
    guarded.engine.mood = "accept"
    assert deployed(guarded.client, engine_model, "1.1.0", deployment_target="strategy_engine")["status"] == "live"


def test_each_deployment_is_one_entry_of_the_stream(guarded: Guarded, engine_model: str) -> None:
    stream = guarded.redis.client()
    last = stream.xrevrange("ml_workbench:deployments", count=1)[0][0]
    live = deployed(guarded.client, engine_model, "1.1.0")
    guarded.engine.mood = "refuse"
    send(guarded.client, engine_model, "1.0.0", deployment_target="strategy_engine")
    failed = history(guarded.client, model_id=engine_model)[0]
    entries = [fields for _, fields in stream.xrange("ml_workbench:deployments", min=b"(" + last)]
    stream.close()
    told = [{key.decode(): value.decode() for key, value in fields.items()} for fields in entries]
    assert [(each["deployment_id"], each["status"]) for each in told] == [
        (live["id"], "live"),
        (failed["id"], "failed"),
    ]
    assert told[0]["model_id"] == engine_model
    assert (told[0]["version"], told[0]["deployment_target"]) == ("1.1.0", "local")
