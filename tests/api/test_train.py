"""`POST /models/train`: what is accepted, what is refused before any work starts, and what a repeated key gets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.api.conftest import Guarded
from tests.api.failures import assert_failure, paths
from tests.conftest import SMALL_TRAIN
from tests.service_process import SEED_TRAIN

TRAIN = "/api/v1/models/train"
LONG = {**SMALL_TRAIN, "hyperparameters": {"lstm_units": 8, "epochs": 10_000, "patience": 10_000}}
SYMBOLS = ["EUR/USD", "GBP/USD", "USD/JPY", "USD/CHF", "AUD/USD", "USD/CAD", "NZD/USD", "EUR/GBP", "EUR/JPY"]


def plain(**changes: Any) -> dict[str, Any]:
    """A long training of a model of these tests; keyword arguments replace keys."""
    return {**LONG, "name": "Trained here", **{"model_id": "trained_here", **changes}}


@contextmanager
def accepted(client: httpx.Client, body: dict[str, Any], **headers: str) -> Iterator[httpx.Response]:
    """The 202 of a training that is cancelled afterwards."""
    answer = client.post(TRAIN, json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    try:
        yield answer
    finally:
        client.post(f"/api/v1/jobs/{answer.json()['job_id']}/cancel").raise_for_status()


def test_the_seeds_request_is_valid_as_printed(api: httpx.Client) -> None:
    with accepted(api, SEED_TRAIN) as answer:
        body = answer.json()
        assert set(body) == {"job_id", "kind", "model_id", "version", "status", "href", "estimate"}
        assert (body["model_id"], body["version"], body["status"]) == ("lstm_price_predictor", "1.0.0", "queued")
        assert set(body["estimate"]) == {"memory_gb", "duration_s", "num_windows", "power"}
        assert 0.5 < body["estimate"]["memory_gb"] < 4
        assert body["estimate"]["num_windows"] == pytest.approx(26_900, rel=0.02)
        assert answer.headers["Location"] == f"/api/v1/jobs/{body['job_id']}"
        assert int(answer.headers["Retry-After"]) > 0
        job = api.get(answer.headers["Location"]).json()
        assert job["kind"] == "train"
        assert job["request"] == SEED_TRAIN


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"target": "price_change"}, "body.target"),
        ({"target": "price_change_0h"}, "body.target"),
        ({"target": "price_change_5m"}, "body.target"),
        ({"target": "direction_1h"}, "body.target"),
        ({"target": "price_change_1h", "timeframe": "1d"}, "body.target"),
        ({"timeframe": "3h"}, "body.timeframe"),
        ({"features": []}, "body.features"),
        ({"features": ["sma_20", "sma_20"]}, "body.features"),
        ({"features": ["sma_20", "smaa_20"]}, "body.features.1"),
        ({"features": ["sma_1"]}, "body.features.0"),
        ({"symbols": []}, "body.symbols"),
        ({"symbols": ["EUR/USD", "EURUSD"]}, "body.symbols"),
        ({"symbols": ["EUR/EUR"]}, "body.symbols.0"),
        ({"symbols": ["ABC/XYZ"]}, "body.costs"),
        ({"symbols": ["ABC/XYZ"], "costs": {"spread_pips": 1}}, "body.costs"),
        ({"end_date": SMALL_TRAIN["start_date"]}, "body"),
        ({"validation_split": 0.01}, "body.validation_split"),
        ({"validation_split": 0.99}, "body.validation_split"),
        ({"model_type": "classification"}, "body.target"),
        ({"model_type": "oracle"}, "body.model_type"),
        ({"family": "lsmt"}, "body.family"),
        ({"hyperparameters": {"epochs": 0}}, "body.hyperparameters.epochs"),
        ({"hyperparameters": {"dropout": 1}}, "body.hyperparameters.dropout"),
        ({"hyperparameters": {"lookback": 2}}, "body.hyperparameters.lookback"),
        ({"family": "gru", "hyperparameters": {"lstm_units": 8}}, "body.hyperparameters.lstm_units"),
        ({"model_id": "Upper"}, "body.model_id"),
        ({"model_id": "a..b"}, "body.model_id"),
        ({"model_id": "../up"}, "body.model_id"),
        ({"model_id": "x" * 65}, "body.model_id"),
        ({"model_id": None, "name": "価格"}, "body.name"),
        ({"version": "1.0"}, "body.version"),
        ({"version": "01.0.0"}, "body.version"),
        ({"version": "١.0.0"}, "body.version"),  # noqa: RUF001 - a digit, but none of ours
        ({"seeds": []}, "body.seeds"),
        ({"seeds": [-1]}, "body.seeds.0"),
        ({"name": ""}, "body.name"),
        ({"quantiles": [0.1]}, "body.quantiles"),
        ({"seeds": [1, 1]}, "body.seeds"),
        ({"cv": {"scheme": "kfold"}}, "body.cv.scheme"),
        ({"cv": {"scheme": "walk_forward", "folds": 1}}, "body.cv.folds"),
        ({"cv": {"scheme": "combinatorial_purged", "folds": 3}}, "body.cv"),
        ({"cv": {"scheme": "combinatorial_purged", "groups": 16, "test_groups": 4}}, "body.cv"),
        ({"sample_weights": "heavy"}, "body.sample_weights"),
        ({"refit": True}, "body.refit"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(api: httpx.Client, changes: dict[str, Any], place: str) -> None:
    before = _newest_job(api)
    answer = api.post(TRAIN, json=plain(**changes))
    found = paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR"))
    assert {path == place or path.startswith(f"{place}.") for path in found} == {True}, found
    assert _newest_job(api) == before


def _newest_job(api: httpx.Client) -> str:
    (job,) = api.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"]
    return str(job["id"])


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"features": ["smaa_20"]}, "did you mean sma_20"),
        ({"features": ["rsi14"]}, "rsi_14"),
        ({"family": "lsmt"}, "did you mean lstm"),
        ({"hyperparameters": {"lstm_unit": 3}}, "did you mean lstm_units"),
        ({"symbols": ["ABC/XYZ"]}, "send all five fields of `costs`"),
    ],
)
def test_a_refusal_says_what_to_send_instead(api: httpx.Client, changes: dict[str, Any], hint: str) -> None:
    body = assert_failure(api.post(TRAIN, json=plain(**changes)), 422, "DATA_VALIDATION_ERROR")
    assert any(hint in each["message"] for each in body["details"]["errors"]), body


def test_an_unknown_pair_with_all_its_costs_is_refused_by_the_store_that_has_no_bars_of_it(api: httpx.Client) -> None:
    names = ("spread_pips", "commission_bp", "slippage_bp", "swap_long_pips", "swap_short_pips")
    body = plain(symbols=["ABC/XYZ"], costs=dict.fromkeys(names, 1.0))
    found = assert_failure(api.post(TRAIN, json=body), 422, "DATA_VALIDATION_ERROR")
    assert "the sample has no ABC/XYZ" in found["message"]


def test_the_name_makes_the_id_and_symbols_have_one_spelling(api: httpx.Client) -> None:
    body = {**LONG, "name": " My  Model, 2nd try! ", "symbols": ["eurusd", "GBP_USD"]}
    del body["model_id"]
    with accepted(api, body) as answer:
        assert answer.json()["model_id"] == "my_model_2nd_try"
        job = api.get(answer.headers["Location"]).json()
        assert job["request"]["symbols"] == ["EUR/USD", "GBP/USD"]


def test_versions_are_counted_on_and_a_taken_one_is_a_conflict(api: httpx.Client) -> None:
    with accepted(api, {**LONG, "model_id": "small"}) as first:
        assert first.json()["version"] == "1.2.0"
        with accepted(api, {**LONG, "model_id": "small"}) as second:
            assert second.json()["version"] == "1.3.0"
            for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0"):
                answer = api.post(TRAIN, json={**LONG, "model_id": "small", "version": version})
                assert_failure(answer, 409, "VERSION_EXISTS")
            with accepted(api, {**LONG, "model_id": "small", "version": "2.0.0"}) as chosen:
                assert chosen.json()["version"] == "2.0.0"


def test_a_key_sent_again_gets_the_first_answer(api: httpx.Client) -> None:
    with accepted(api, plain(), **{"Idempotency-Key": "train-1"}) as first:
        again = api.post(TRAIN, json=plain(), headers={"Idempotency-Key": "train-1"})
        assert again.status_code == 202
        assert again.json() == first.json()
        assert again.headers["Location"] == first.headers["Location"]
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        other = api.post(TRAIN, json=plain(notes="another"), headers={"Idempotency-Key": "train-1"})
        assert_failure(other, 422, "IDEMPOTENCY_MISMATCH")
    after = api.post(TRAIN, json=plain(), headers={"Idempotency-Key": "train-1"})
    assert after.json() == first.json()  # whatever became of the job since


def test_without_a_key_every_request_is_a_training(api: httpx.Client) -> None:
    with accepted(api, plain()) as first, accepted(api, plain()) as second:
        assert first.json()["job_id"] != second.json()["job_id"]
        assert first.json()["version"] != second.json()["version"]


def test_the_answer_to_an_invalid_request_is_not_kept(api: httpx.Client) -> None:
    key = {"Idempotency-Key": "train-2"}
    assert_failure(api.post(TRAIN, json=plain(family="none"), headers=key), 422, "DATA_VALIDATION_ERROR")
    with accepted(api, plain(), **key) as answer:
        assert "Idempotency-Replayed" not in answer.headers


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_is_up_to_255_printable_characters(api: httpx.Client, key: str) -> None:
    answer = api.post(TRAIN, json=plain(), headers={"Idempotency-Key": key})
    assert_failure(answer, 422, "DATA_VALIDATION_ERROR")


def test_one_key_sent_many_times_at_once_makes_one_job(api: httpx.Client) -> None:
    def send(_: int) -> httpx.Response:
        return api.post(TRAIN, json=plain(model_id="raced"), headers={"Idempotency-Key": "train-race"})

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(16)))
    api.post(f"/api/v1/jobs/{answers[0].json()['job_id']}/cancel")
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    jobs = api.get("/api/v1/jobs", params={"limit": 200}).json()["jobs"]
    assert sum(job["request"].get("model_id") == "raced" for job in jobs) == 1


def test_many_requests_at_once_get_a_version_each(api: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.post(TRAIN, json=plain(model_id="crowd")).json(), range(8)))
    for answer in answers:
        api.post(f"/api/v1/jobs/{answer['job_id']}/cancel")
    assert sorted(answer["version"] for answer in answers) == [f"1.{number}.0" for number in range(8)]


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": {"lookback": 1024, "lstm_units": 256}},
        {"hyperparameters": {"lookback": 512, "lstm_units": 2048, "batch_size": 65536}},
        {"symbols": SYMBOLS, "timeframe": "5m", "target": "log_return_3", "start_date": "2015-01-01T00:00:00Z"},
    ],
)
def test_a_training_too_large_is_a_507_with_a_change_that_fits(guarded: Guarded, changes: dict[str, Any]) -> None:
    body = plain(**changes)
    found = assert_failure(guarded.client.post(TRAIN, json=body), 507, "INSUFFICIENT_MEMORY")
    details = found["details"]
    assert details["estimate"]["memory_gb"] > details["limit_gb"] == 1
    assert "MAX_TRAINING_MEMORY" in found["message"]
    assert details["change"]
    for key, value in details["change"].items():
        body[key] = {**body[key], **value} if isinstance(value, dict) else value
    with accepted(guarded.client, body) as answer:
        assert answer.json()["estimate"]["memory_gb"] <= 1


def test_the_correlation_id_of_the_request_is_the_jobs(api: httpx.Client) -> None:
    with accepted(api, plain(), **{"X-Correlation-ID": "train-corr.1"}) as answer:
        assert answer.headers["X-Correlation-ID"] == "train-corr.1"
        assert api.get(answer.headers["Location"]).json()["correlation_id"] == "train-corr.1"
