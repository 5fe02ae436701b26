"""Meta-labelling over HTTP: train a primary and its follower, deploy and ask it, and what is refused."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.failures import assert_failure, paths
from tests.meta_labelling.followed_bars import FOLLOW, PRIMARY, write_bars
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more  # real services

TRAIN = "/api/v1/models/train"
SEARCH_TIMEOUT_S = 200.0
DEPLOY = {"version": "1.0.0", "deployment_target": "local", "force": True}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service over planted bars, with a primary and a follower."""
    folder = tmp_path_factory.mktemp("followed")
    (folder / "bars").mkdir()
    write_bars(folder / "bars", seed=3, is_planted=True)
    running = ServiceProcess(folder, FEATURE_STORE_URL=f"file://{folder / 'bars'}", AGENT_AUTOSTART="false").start()
    running.train(PRIMARY)
    running.train(FOLLOW)
    yield running.client
    running.close()


def ask(client: httpx.Client, model_id: str, **columns: list[float]) -> dict[str, Any]:
    """What it says of these columns, at a moment after its training."""
    body = {"features": columns, "symbol": "EUR/USD", "timeframe": "1h", "as_of": "2021-08-03T10:00:00Z"}
    answer = client.post(f"/api/v1/models/{model_id}/predict", json=body)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


def test_a_follower_is_searched_for(client: httpx.Client) -> None:
    """Before the primary is purged."""
    base = {**FOLLOW, "model_id": "searched", "hyperparameters": {"lookback": 3, "num_iterations": 20}}
    search = {
        "name": "Search", "base": base, "sampler": "grid", "search_space": {"num_leaves": {"choices": [4, 8]}},
    }  # fmt: skip
    answer = client.post("/api/v1/experiments", json=search)
    assert answer.status_code == 202, answer.text
    job = f"/api/v1/jobs/{answer.json()['job_id']}"
    deadline = time.monotonic() + SEARCH_TIMEOUT_S
    while (status := client.get(job).json()["status"]) not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    card = client.get("/api/v1/models/searched/versions/1.0.0").json()
    assert card["primary"]["version"] == "1.0.0", client.get(job).json()


def test_a_follower_is_deployed_and_answers_though_its_primary_is_purged(client: httpx.Client) -> None:
    card = client.get("/api/v1/models/follower/versions/1.0.0").json()
    assert card["primary"]["model_id"] == "primary"
    assert card["evaluation"]["test"]["precision"] > card["evaluation"]["test"]["primary_precision"]
    deployed = client.post("/api/v1/models/follower/deploy", json=DEPLOY)
    assert deployed.status_code in (200, 201), deployed.text
    signal = [1.0, -1.0, 1.0, -1.0, 1.0]
    side = ask(client, "primary", signal=signal[-3:])
    follows, skips = (
        ask(client, "follower", signal=signal, regime=[0.1, 0.2, -0.3, 0.4, last]) for last in (1.5, -1.5)
    )
    assert side["direction"] == follows["direction"] == "buy"
    assert (follows["label"], skips["label"], skips["direction"], skips["prediction"]) == (
        "follow",
        "skip",
        "hold",
        0.0,
    )
    assert follows["confidence"] == follows["outputs"]["follow"]
    path = "/api/v1/models/primary/versions/1.0.0"
    assert client.delete(path).status_code == 200
    purged = client.delete(path, params={"purge": "true"})
    assert purged.status_code == 200, purged.text
    assert client.get(path).status_code == 404
    again = ask(client, "follower", signal=signal, regime=[0.1, 0.2, -0.3, 0.4, 1.5])
    assert again["outputs"] == follows["outputs"]


def test_a_batch_says_what_single_requests_say(client: httpx.Client) -> None:
    columns = {"signal": [1.0, 1.0, -1.0, -1.0, -1.0], "regime": [0.5, 0.4, -0.3, 0.2, 1.2]}
    alone = ask(client, "follower", **columns)
    body = {"features": columns, "symbol": "EUR/USD", "timeframe": "1h", "as_of": "2021-08-03T10:00:00Z"}
    answer = client.post("/api/v1/models/follower/predict/batch", json={"items": [body] * 20})
    assert answer.status_code == 200, answer.text
    for record in answer.json()["predictions"]:
        assert {name: record[name] for name in ("outputs", "direction", "label", "confidence")} == {
            name: alone[name] for name in ("outputs", "direction", "label", "confidence")
        }


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"meta": {"primary": "nobody@1.0.0"}}, "body.meta.primary"),
        ({"meta": {"primary": "follower"}}, "body.meta.primary"),
        ({"meta": {"primary": "follower@1.0.0"}}, "body.meta.primary"),
        ({"meta": {"primary": "follower@1.0.0", "threshold": 0.5}}, "body.meta.threshold"),
        ({"model_type": "time_series", "family": "linear", "target": "price_change_1h"}, "body.meta"),
        ({"meta": None, "target": "follow_1h"}, "body.target"),
    ],
)
def test_what_cannot_be_followed_is_refused(client: httpx.Client, changes: dict[str, Any], place: str) -> None:
    answer = client.post(TRAIN, json={**FOLLOW, "model_id": "refused", **changes})
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == [place]


def test_a_follower_of_trees_says_what_moved_it(client: httpx.Client) -> None:
    """Its own features, and what its primary says; they add up to the classes' logits."""
    signal = [1.0, -1.0, 1.0, -1.0, 1.0]
    body = {
        "features": {"signal": signal, "regime": [0.1, 0.2, -0.3, 0.4, 1.5]}, "symbol": "EUR/USD", "timeframe": "1h",
        "as_of": "2021-08-03T10:00:00Z",
    }  # fmt: skip
    answer = client.post("/api/v1/models/follower/predict", params={"explain": True}, json=body)
    assert answer.status_code == 200, answer.text
    told, outputs = answer.json()["explanation"], answer.json()["outputs"]
    assert told["unit"] == "logit"
    assert [each["output"] for each in told["outputs"]] == ["skip", "follow"]
    follow = told["outputs"][1]
    assert set(follow["contributions"]) == {"regime", "primary_price_change_1h"}
    assert next(iter(follow["contributions"])) == "regime"
    assert follow["contributions"]["regime"] > 0
    for each in told["outputs"]:
        assert each["base"] + sum(each["contributions"].values()) == pytest.approx(each["raw"], abs=1e-6)
    lead = told["outputs"][1]["raw"] - told["outputs"][0]["raw"]
    assert (lead > 0) == (outputs["follow"] > outputs["skip"])
    assert outputs["primary_side"] == 1.0
