"""Predictions and their outcomes over HTTP: what enters, what became of it, how live versions fare."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.ledger import _check_possible
from ml_workbench_service.contracts.contract import iso
from tests.api.conftest import Clone
from tests.api.deploying import deployed
from tests.api.failures import assert_failure, paths
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version, publish_anew
from tests.service_process import SEED_PREDICT, WEDNESDAY, ServiceProcess

NOON = datetime(2025, 3, 5, 12, tzinfo=UTC)  # a Wednesday; the model learnt until 1 March
NUM_HOURS = 40


@pytest.fixture(autouse=True, scope="module")
def _the_clock_as_before(service: ServiceProcess) -> Iterator[None]:
    """Others ask the shared service too."""
    yield
    service.clock.set(WEDNESDAY)


def ask(
    service: ServiceProcess, model_id: str, at: datetime, symbol: str = "EUR/USD", **changes: Any
) -> dict[str, Any]:
    """A record about a moment of the embedded sample, asked at that moment."""
    service.clock.set(at)
    body = {"symbol": symbol, "timeframe": "1h", "as_of": iso(at)}
    answer = service.client.post(f"/api/v1/models/{model_id}/predict", json=body)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


def listed(api: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    """Every row, page by page."""
    found, cursor = [], None
    while True:
        page = api.get("/api/v1/predictions", params={**params, **({"cursor": cursor} if cursor else {})})
        assert page.status_code == 200, page.text
        found += page.json()["predictions"]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return found


def report(api: httpx.Client, prediction_id: str, realised: float, at: datetime) -> httpx.Response:
    """What came true."""
    body = {"realised": realised, "at": iso(at)}
    return api.post(f"/api/v1/predictions/{prediction_id}/outcome", json=body)


def monitoring(api: httpx.Client, model_id: str, **params: Any) -> list[dict[str, Any]]:
    """The figures of each version."""
    answer = api.get(f"/api/v1/models/{model_id}/monitoring", params=params)
    assert answer.status_code == 200, answer.text
    versions: list[dict[str, Any]] = answer.json()["versions"]
    return versions


@pytest.fixture(scope="module")
def watched(service: ServiceProcess, clone: Clone) -> str:
    """A model whose version 1.0.0 is live and monitored as a whole, asked every hour about two symbols."""
    clone("watched")
    deployed(service.client, "watched", "1.0.0", monitoring_level="high")
    for hour in range(NUM_HOURS):
        for symbol in ("EUR/USD", "GBP/USD"):
            ask(service, "watched", NOON + timedelta(hours=hour), symbol)
    return "watched"


def test_a_live_answer_is_listed_with_what_the_next_hours_price_made_of_it(api: httpx.Client, watched: str) -> None:
    rows = listed(api, model_id=watched, symbol="EURUSD", limit=30)
    assert len(rows) == NUM_HOURS
    assert [row["as_of"] for row in rows] == sorted((row["as_of"] for row in rows), reverse=True)
    assert {row["symbol"] for row in rows} == {"EUR/USD"}
    for row, following in zip(rows[1:], rows, strict=False):
        if row["status"] == "abstain":
            assert row["outcome"]["state"] == "none"
            continue
        assert row["outcome"]["state"] == "known"
        assert row["outcome"]["source"] == "stream"
        assert row["outcome"]["at"] == following["as_of"]
        assert row["outcome"]["realised"] == following["price"] / row["price"] - 1
    assert (rows[0]["status"], rows[0]["outcome"]["state"], rows[0]["outcome"]["realised"]) == ("ok", "open", None)


def test_filters_narrow_the_list(api: httpx.Client, watched: str) -> None:
    begin, end = iso(NOON + timedelta(hours=3)), iso(NOON + timedelta(hours=5))
    assert len(listed(api, model_id=watched, **{"from": begin, "to": end})) == 6
    everything = listed(api, model_id=watched, version="1.0.0")
    for outcome in ("open", "known"):
        kept = [row for row in everything if row["outcome"]["state"] == outcome]
        assert kept
        assert listed(api, model_id=watched, outcome=outcome, limit=7) == kept
    assert listed(api, model_id=watched, version="9.9.9") == []
    for params in ({"cursor": "MTI="}, {"cursor": "LTE"}, {"cursor": "x"}, {"symbol": "EUR"}, {"from": "yesterday"}):
        answer = api.get("/api/v1/predictions", params=params)
        assert answer.status_code == (200 if params == {"cursor": "MTI="} else 422), params


def test_candidates_and_replays_of_nobody_enter_and_low_levels_sample(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    clone("sampled")
    ask(service, "sampled", NOON)
    assert listed(api, model_id="sampled") == [], "a candidate"
    deployed(api, "sampled", "1.0.0", monitoring_level="medium")
    ask(service, "sampled", NOON, version="1.1.0")
    service.clock.set(WEDNESDAY)
    items = [{"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON + timedelta(hours=hour))} for hour in range(60)]
    for _ in range(5):
        answer = api.post("/api/v1/models/sampled/predict/batch", json={"items": items})
        ids = [each["prediction_id"] for each in answer.json()["predictions"]]
    rows = listed(api, model_id="sampled", limit=200)
    assert {row["version"] for row in rows} == {"1.0.0"}
    assert 10 <= len(rows) <= 60, "a tenth of 300"
    assert set(ids) != {row["prediction_id"] for row in rows}


def test_a_reported_outcome_is_taken_once_and_teaches_the_live_interval(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    clone("told_outcomes")
    deployed(api, "told_outcomes", "1.0.0", monitoring_level="high")
    record = ask(service, "told_outcomes", NOON)
    end = NOON + timedelta(hours=1)
    service.clock.set(end + timedelta(hours=2))
    assert_failure(report(api, record["prediction_id"], 0.001, NOON), 422, "DATA_VALIDATION_ERROR")
    too_early = report(api, record["prediction_id"], 0.001, end - timedelta(seconds=1))
    assert paths(too_early.json()) == ["body.at"]
    still_to_come = report(api, record["prediction_id"], 0.001, end + timedelta(hours=2, seconds=1))
    assert paths(still_to_come.json()) == ["body.at"]
    assert paths(report(api, record["prediction_id"], -1.0, end).json()) == ["body.realised"]
    told = report(api, record["prediction_id"], 0.001, end)
    assert told.status_code == 200, told.text
    assert told.json()["outcome"]["source"] == "caller"
    assert report(api, record["prediction_id"], 0.001, end + timedelta(hours=1)).json() == told.json()
    assert_failure(report(api, record["prediction_id"], 0.002, end), 409, "OUTCOME_CONFLICT")
    assert_failure(report(api, "nobody", 0.0, end), 404, "PREDICTION_NOT_FOUND")
    ask(service, "told_outcomes", end)
    card = api.get("/api/v1/models/told_outcomes").json()
    assert card["live_intervals"]["num_outcomes"] == 1, "the next price taught nothing again"
    row = next(row for row in listed(api, model_id="told_outcomes") if row["prediction_id"] == record["prediction_id"])
    assert row["outcome"]["realised"] == 0.001


def test_monitoring_says_how_a_live_version_fares(api: httpx.Client, watched: str) -> None:
    (live,) = monitoring(api, watched)
    rows = listed(api, model_id=watched, limit=200)
    known = [row for row in rows if row["outcome"]["state"] == "known" and row["status"] == "ok"]
    assert (live["version"], live["monitoring_level"], live["num_predictions"]) == ("1.0.0", "high", 2 * NUM_HOURS)
    num_open = sum(row["outcome"]["state"] == "open" for row in rows)
    assert (live["num_outcomes"], live["num_open"], live["num_not_live"]) == (len(known), num_open, 0)
    assert live["num_abstained"] == sum(row["status"] == "abstain" for row in rows)
    missed = [abs(row["prediction"] - row["outcome"]["realised"]) for row in known]
    assert live["error"]["mae"] == pytest.approx(sum(missed) / len(missed))
    inside = [row["interval"]["lower"] <= row["outcome"]["realised"] <= row["interval"]["upper"] for row in known]
    assert live["coverage"]["coverage"]["value"] == pytest.approx(sum(inside) / len(inside))
    assert live["coverage"]["level"] == 0.9
    assert live["calibration"]["num"] == len(known)
    assert live["warnings"] == []
    assert {each["feature"] for each in live["drift"]["features"]} == {"sma_20", "rsi_14", "macd", "bb_width"}
    assert all(each["num_rows"] == 2 * NUM_HOURS for each in live["drift"]["features"])
    (part,) = monitoring(api, watched, version="1.0.0", **{"from": iso(NOON), "to": iso(NOON + timedelta(hours=2))})
    assert part["num_predictions"] == 6
    assert part["warnings"] == ["few_outcomes"]


def test_a_version_without_rows_or_without_a_reference_says_so(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    clone("quiet")
    assert monitoring(api, "quiet") == []
    (quiet,) = monitoring(api, "quiet", version="1.0.0")
    assert (quiet["num_predictions"], quiet["error"], quiet["drift"]) == (0, None, None)
    assert "kept its inputs" in quiet["drift_reason"]
    assert_failure(api.get("/api/v1/models/nobody/monitoring"), 404, "MODEL_NOT_FOUND")
    assert_failure(api.get("/api/v1/models/quiet/monitoring?version=3.0.0"), 404, "VERSION_NOT_FOUND")
    folder = copy_older(service, "older")
    assert "reference" not in json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    deployed(api, "older", "1.0.0", monitoring_level="high")
    ask(service, "older", NOON)
    (older,) = monitoring(api, "older")
    assert older["drift"] is None
    assert "train it again" in older["drift_reason"]


def copy_older(service: ServiceProcess, model_id: str) -> Any:
    """A bundle as it was published before inputs were kept."""
    root = registry_of(service)
    folder = copy_version(root / "small" / "1.0.0", root, model_id, "1.0.0")
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    del recipe["reference"], recipe["barrier_width"]
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    publish_anew(folder)
    return folder


def test_questions_about_the_past_are_answered_kept_and_counted_apart(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    """They enter no stream, move no live interval, and are no evidence of how the version fares."""
    clone("historian")
    deployed(api, "historian", "1.0.0", monitoring_level="high")
    ask(service, "historian", NOON)
    service.clock.set(WEDNESDAY)
    before = api.get("/api/v1/queue").json()["enqueued"]
    for hour in range(3):
        body = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON + timedelta(hours=hour)), "price": 1.0}
        record = api.post("/api/v1/models/historian/predict", json=body).json()
        assert (record["sample"], record["status"], record["as_of"]) == ("historical", "ok", body["as_of"])
        told = report(api, record["prediction_id"], 0.001, NOON + timedelta(days=1))
        assert told.json()["outcome"]["state"] == "known"
    guaranteed = api.post("/api/v1/models/historian/predict", json=body, params={"enqueue": "guaranteed"})
    assert "about the past" in assert_failure(guaranteed, 409, "NOT_LIVE")["message"]
    (found,) = monitoring(api, "historian")
    assert (found["num_predictions"], found["num_outcomes"], found["num_not_live"], found["error"]) == (1, 0, 3, None)
    samples = [row["sample"] for row in listed(api, model_id="historian")]
    assert samples == ["historical"] * 3 + ["live"]
    assert api.get("/api/v1/queue").json()["enqueued"] == before
    assert api.get("/api/v1/models/historian").json()["live_intervals"]["num_outcomes"] == 0


def test_an_unknown_symbol_abstains_and_has_no_outcome(
    api: httpx.Client, service: ServiceProcess, watched: str
) -> None:
    service.clock.set(WEDNESDAY)
    body = {**SEED_PREDICT, "symbol": "USD/CHF", "as_of": iso(NOON)}
    record = api.post(f"/api/v1/models/{watched}/predict", json=body).json()
    (row,) = listed(api, model_id=watched, symbol="USD/CHF")
    assert (row["prediction_id"], row["status"], row["outcome"]["state"]) == (
        record["prediction_id"],
        "abstain",
        "none",
    )
    assert_failure(report(api, record["prediction_id"], 0.1, NOON + timedelta(days=1)), 409, "OUTCOME_CONFLICT")


def test_the_metrics_show_rows_by_outcome_and_each_live_version(api: httpx.Client, watched: str) -> None:
    text = api.get("/metrics").text
    assert 'ml_workbench_ledger_rows{outcome="known"}' in text
    assert "ml_workbench_ledger_unwritten_total 0.0" in text
    for name in ("live_mae", "live_mae_ratio", "live_coverage"):
        assert f'ml_workbench_{name}{{model_id="{watched}",version="1.0.0"}}' in text


@pytest.mark.parametrize(
    ("target", "possible", "impossible"),
    [
        ("direction_1h", (-1, 0, 1), (2, 0.5)),
        ("triple_barrier_4h", (-1, 0, 1), (3, -0.1)),
        ("market_regime", (0, 1, 2, 3), (-1, 4)),
        ("volatility_4h", (0, 0.01), (-0.01,)),
        ("price_change_1h", (-0.5, 0, 3), (-1, -2)),
        ("log_return_1h", (-5, 0, 3), ()),
        (None, (17,), ()),
    ],
)
def test_an_outcome_must_be_possible(
    target: str | None, possible: tuple[float, ...], impossible: tuple[float, ...]
) -> None:
    for realised in possible:
        _check_possible(target, realised)
    for realised in impossible:
        with pytest.raises(DataValidationError):
            _check_possible(target, realised)
