"""`/predict` and `/predict/batch`: three bodies, one record, and what a record means."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.contract import iso, to_ms
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from tests.api.failures import assert_body, assert_failure, paths
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, WEDNESDAY, ServiceProcess

FEATURES = ("sma_20", "rsi_14", "macd", "bb_width")
NOON = datetime(2025, 3, 5, 12, 30, tzinfo=UTC)  # a Wednesday, in the middle of a bar
RECORD_KEYS = [
    "prediction_id",
    "model_id",
    "version",
    "version_id",
    "role",
    "symbol",
    "timeframe",
    "target",
    "as_of",
    "valid_until",
    "timestamp",
    "price",
    "bar_open",
    "open",
    "close",
    "spread_open",
    "prev_bar_open",
    "source",
    "sample",
    "status",
    "prediction",
    "label",
    "direction",
    "confidence",
    "outputs",
    "interval",
    "novelty",
    "drivers",
    "warnings",
    "abstain_reasons",
    "scaling_factor",
    "metadata",
]
OF_THE_CALL = ("prediction_id", "timestamp", "metadata")


@pytest.fixture(scope="module")
def model(service: ServiceProcess) -> str:
    """`/api/v1/models/exact`: both versions in float32, where batch and single answers agree to the bit."""
    root = registry_of(service)
    for version in ("1.0.0", "1.1.0"):
        copy_version(root / "small" / version, root, "exact", version, precision="fp32")
    return "/api/v1/models/exact"


@pytest.fixture
def the_clock_back(service: ServiceProcess) -> Iterator[None]:
    """Others ask the shared service too."""
    yield
    service.clock.set(WEDNESDAY)


@lru_cache
def store() -> LocalFeatureStore:
    """The same sample that the service serves."""
    return LocalFeatureStore(SampleRates())


def columns(symbol: str = "EUR/USD", *, as_of: datetime = NOON, last: int = 24) -> dict[str, list[float]]:
    """The newest rows known at a moment, as a client would send them."""
    table = store().fetch(
        [symbol], "1h", start_ms=None, end_ms=None, features=[*FEATURES, "close"], as_of_ms=to_ms(as_of), last=last
    )[0]
    return {name: [float(value) for value in table.columns[name]] for name in (*FEATURES, "close")}


def body(symbol: str = "EUR/USD", *, last: int = 24, as_of: datetime = NOON, **changes: Any) -> dict[str, Any]:
    """The seed's kind of body over real rows; keyword arguments replace keys."""
    rows = columns(symbol, as_of=as_of, last=last)
    features = {name: rows[name] for name in FEATURES}
    return {"symbol": symbol, "timeframe": "1h", "features": features, "as_of": iso(as_of), **changes}


def predict(api: httpx.Client, model: str, request: dict[str, Any]) -> dict[str, Any]:
    """The record of a 200."""
    answer = api.post(f"{model}/predict", json=request)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    PredictionRecord.model_validate(record)
    return record


def essence(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs from call to call."""
    return {key: value for key, value in record.items() if key not in OF_THE_CALL}


def test_the_seeds_body_answers_as_printed(api: httpx.Client) -> None:
    record = predict(api, "/api/v1/models/small", SEED_PREDICT)
    assert list(record) == RECORD_KEYS
    assert record["prediction"] == record["outputs"]["price_change_1h"]
    assert abs(record["prediction"]) < 1
    assert (record["version"], record["version_id"], record["role"]) == ("1.1.0", "1.1.0", "candidate")
    assert {"as_of_assumed", "short_window"} <= set(record["warnings"])
    assert record["price"] is None
    assert record["direction"] in ("buy", "sell", "hold")
    assert 0 < record["confidence"] < 1
    assert record["interval"]["lower"] < record["prediction"] < record["interval"]["upper"]
    assert (record["source"], record["status"], record["abstain_reasons"]) == ("live", "ok", [])


def test_three_bodies_ask_the_same_question(api: httpx.Client, model: str) -> None:
    sent = body()
    inputs = {
        "inputs": {name: sent["features"][name] for name in reversed(FEATURES)},
        "context": {"symbol": "EUR_USD"},
        "as_of": sent["as_of"],
        "version_id": "1.1.0",
    }
    fetched = {"symbol": "eurusd", "timeframe": "H1", "as_of": sent["as_of"]}
    records = [predict(api, model, each) for each in (sent, inputs, fetched)]
    assert len({record["prediction"] for record in records}) == 1
    assert len({record["prediction_id"] for record in records}) == 3
    assert {record["symbol"] for record in records} == {"EUR/USD"}
    assert {record["as_of"] for record in records} == {"2025-03-05T12:30:00Z"}
    assert {record["valid_until"] for record in records} == {"2025-03-05T13:30:00Z"}


def test_where_the_service_fetches_only_bars_known_at_as_of_count(api: httpx.Client, model: str) -> None:
    seen = []
    for minute in (0, 30, 59):
        moment = NOON.replace(minute=minute)
        record = predict(api, model, {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(moment)})
        assert record["as_of"] == iso(moment)
        assert record["price"] == columns(as_of=moment)["close"][-1]
        seen.append((record["prediction"], record["price"]))
    assert seen[0] == seen[1] == seen[2]
    later = predict(api, model, {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON + timedelta(minutes=30))})
    assert (later["prediction"], later["price"]) != seen[0]


def test_without_as_of_the_sample_is_asked_by_its_own_clock(api: httpx.Client, model: str) -> None:
    """Its last bar, however long ago that was."""
    record = predict(api, model, {"symbol": "GBP/USD", "timeframe": "1h"})
    now_ms = store().now_ms()
    assert now_ms is not None
    table = store().fetch(["GBP/USD"], "1h", start_ms=None, end_ms=None, features=["close"], last=1)[0]
    assert record["price"] == table.columns["close"][-1]
    assert to_ms(datetime.fromisoformat(record["as_of"])) == table.available_at_ms[-1] <= now_ms
    assert "sample_clock" in record["warnings"]
    assert "as_of_assumed" not in record["warnings"]
    assert (record["sample"], record["timestamp"]) == ("live", iso(WEDNESDAY))
    assert "stale_features" not in record["abstain_reasons"]


def test_a_price_passes_through(api: httpx.Client, model: str) -> None:
    assert predict(api, model, body(price=1.1021))["price"] == 1.1021
    assert predict(api, model, body())["price"] is None
    fetched = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON)}
    assert predict(api, model, {**fetched, "price": 1.5})["price"] == 1.5
    for price in (0, -1.1):
        assert paths(assert_failure(api.post(f"{model}/predict", json=body(price=price)), 422, "DATA_VALIDATION_ERROR"))


def test_longer_windows_count_by_their_last_rows(api: httpx.Client, model: str) -> None:
    whole, longer = predict(api, model, body(last=24)), predict(api, model, body(last=60))
    assert whole["prediction"] == longer["prediction"]
    assert "short_window" not in whole["warnings"]
    short = predict(api, model, body(last=23))
    assert "short_window" in short["warnings"]
    assert short["prediction"] != whole["prediction"]


def test_fewer_rows_than_the_least_are_refused_with_the_needed_number(api: httpx.Client, model: str) -> None:
    assert predict(api, model, body(last=3))["status"] == "ok"
    found = assert_failure(api.post(f"{model}/predict", json=body(last=2)), 422, "DATA_VALIDATION_ERROR")
    assert (found["details"]["min_window"], found["details"]["lookback"]) == (3, 24)
    assert "3 rows" in found["message"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"timeframe": "1d"}, "body.timeframe"),
        ({"features": {**SEED_PREDICT["features"], "rsi": [1.0, 2.0, 3.0]}}, "body.features.rsi"),
        ({"features": {"sma_20": [1.1, 1.1, 1.1]}}, "body.features.rsi_14"),
        ({"features": {**SEED_PREDICT["features"], "macd": [0.1, 0.1]}}, "body.features"),
        ({"features": {**SEED_PREDICT["features"], "macd": []}}, "body.features.macd"),
        ({"features": {**SEED_PREDICT["features"], "sma_20": [1.1, 0.0, 1.1]}}, "sma_20"),
        ({"features": {}}, "body.features.sma_20"),
        ({"inputs": SEED_PREDICT["features"]}, "body"),
        ({"symbol": None}, "body"),
        ({"timeframe": None}, "body"),
        ({"context": {"symbol": "EUR/USD"}}, "body"),
        ({"version": "1.0.0", "version_id": "1.1.0"}, "body"),
        ({"version": "newest"}, "body.version"),
    ],
)
def test_what_cannot_be_answered_is_a_422(api: httpx.Client, model: str, change: dict[str, Any], place: str) -> None:
    found = assert_failure(api.post(f"{model}/predict", json={**SEED_PREDICT, **change}), 422, "DATA_VALIDATION_ERROR")
    assert any(path.endswith(place) for path in paths(found)), paths(found)


def test_inputs_of_a_model_with_several_symbols_need_a_context(api: httpx.Client, model: str) -> None:
    found = assert_failure(
        api.post(f"{model}/predict", json={"inputs": SEED_PREDICT["features"]}), 422, "DATA_VALIDATION_ERROR"
    )
    assert "EUR/USD, GBP/USD" in found["message"]


def test_a_model_of_one_symbol_needs_no_context(api: httpx.Client, service: ServiceProcess) -> None:
    root = registry_of(service)
    copy_version(root / "small" / "1.0.0", root, "lonely", "1.0.0", symbols=["EUR/USD"])
    record = predict(api, "/api/v1/models/lonely", {"inputs": SEED_PREDICT["features"]})
    assert record["symbol"] == "EUR/USD"


def test_an_unknown_model_or_version_is_a_404(api: httpx.Client, model: str) -> None:
    assert_failure(api.post("/api/v1/models/absent/predict", json=SEED_PREDICT), 404, "MODEL_NOT_FOUND")
    answer = api.post(f"{model}/predict", json={**SEED_PREDICT, "version": "7.0.0"})
    assert_failure(answer, 404, "VERSION_NOT_FOUND")
    answer = api.post("/api/v1/models/absent/predict/batch", json={"items": [SEED_PREDICT]})
    assert_failure(answer, 404, "MODEL_NOT_FOUND")


def test_an_unknown_symbol_is_abstained_from(api: httpx.Client, model: str) -> None:
    for request in ({**body(), "symbol": "USD/JPY"}, {"symbol": "USDJPY", "timeframe": "1h", "as_of": iso(NOON)}):
        record = predict(api, model, request)
        assert (record["status"], record["prediction"], record["direction"]) == ("abstain", None, "hold")
        assert record["abstain_reasons"] == ["unknown_symbol"]
        assert (record["interval"], record["confidence"], record["symbol"]) == (None, None, "USD/JPY")


def test_an_absurd_row_is_abstained_from(api: httpx.Client, model: str) -> None:
    request = body()
    request["features"]["rsi_14"][-1] *= 50
    record = predict(api, model, request)
    assert (record["status"], record["prediction"], record["abstain_reasons"]) == ("abstain", None, ["novel_input"])
    assert record["novelty"]["score"] > record["novelty"]["threshold"]
    assert record["novelty"]["top_features"][0] == "rsi_14"


@pytest.mark.parametrize("value", [1e15, -1e15])
def test_the_largest_features_accepted_are_still_answered(api: httpx.Client, model: str, value: float) -> None:
    request = body()
    request["features"]["macd"] = [value] * 24
    assert predict(api, model, request)["abstain_reasons"] == ["novel_input"]


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(2025, 3, 8, 12, tzinfo=UTC), "market_closed"),  # a Saturday
        (datetime(2025, 3, 7, 23, 0, tzinfo=UTC), "market_closed"),  # Friday 18:00 New York, in winter
        (datetime(2027, 6, 2, 12, tzinfo=UTC), "model_expired"),
    ],
)
def test_about_the_past_as_of_is_the_clock(api: httpx.Client, model: str, moment: datetime, reason: str) -> None:
    request = {**body(), "as_of": iso(moment)}
    assert reason in predict(api, model, request)["abstain_reasons"]


def test_without_as_of_sent_features_are_about_the_last_bar_at_receipt(
    api: httpx.Client, service: ServiceProcess, model: str, the_clock_back: None
) -> None:
    request = body()
    del request["as_of"]
    record = predict(api, model, request)
    assert (record["status"], record["as_of"]) == ("ok", "2030-03-06T12:00:00Z")
    assert "as_of_assumed" in record["warnings"]
    service.clock.set(WEDNESDAY + timedelta(days=3))
    assert predict(api, model, request)["abstain_reasons"] == ["market_closed"]


def test_an_as_of_still_to_come_is_refused(api: httpx.Client, model: str) -> None:
    later = {"as_of": iso(WEDNESDAY + timedelta(seconds=1))}
    for request in ({**body(), **later}, {"symbol": "EUR/USD", "timeframe": "1h", **later}):
        found = assert_failure(api.post(f"{model}/predict", json=request), 422, "DATA_VALIDATION_ERROR")
        assert paths(found) == ["body.as_of"]
        assert iso(WEDNESDAY) in found["message"]


def test_stale_features_are_abstained_from(api: httpx.Client, model: str) -> None:
    newest = predict(api, model, {"symbol": "EUR/USD", "timeframe": "1h"})
    late = datetime.fromisoformat(newest["as_of"]) + timedelta(days=4)
    record = predict(api, model, {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(late)})
    assert "stale_features" in record["abstain_reasons"]


def test_a_record_says_which_part_of_the_data_it_is_of(
    api: httpx.Client, service: ServiceProcess, model: str, the_clock_back: None
) -> None:
    """Asked at its own moment; asked about later, it is history."""
    card = api.get(f"{model}/versions/1.1.0").json()
    borders = [datetime.fromisoformat(each) for each in card["split"]["borders"].values()]
    assert borders == sorted(borders)
    parts = []
    for moment in (datetime(2024, 7, 3, 12, tzinfo=UTC), *(each + timedelta(days=5) for each in borders)):
        service.clock.set(moment)
        parts.append(predict(api, model, body(as_of=moment, version="1.1.0"))["sample"])
    assert parts[0] == "train"
    assert [part for part in ("train", "stop", "calibrate", "test", "live") if part in parts] == list(
        dict.fromkeys(parts)
    )
    assert "test" in parts
    service.clock.set(WEDNESDAY)
    assert predict(api, model, body(as_of=moment))["sample"] == "historical"


def test_a_batch_agrees_with_single_answers_to_the_bit(api: httpx.Client, model: str) -> None:
    items = [
        body(symbol, as_of=NOON + timedelta(hours=hour), last=last)
        for symbol in ("EUR/USD", "GBP/USD")
        for hour in range(6)
        for last in (24, 24, 7)
    ]
    items += [{"symbol": "GBP/USD", "timeframe": "1h", "as_of": iso(NOON)}, body(version="1.0.0"), body("USD/JPY")]
    singles = [predict(api, model, item) for item in items]
    answer = api.post(f"{model}/predict/batch", json={"items": items})
    assert answer.status_code == 200
    batch = answer.json()["predictions"]
    assert [essence(each) for each in batch] == [essence(each) for each in singles]
    assert {each["metadata"]["precision"] for each in batch} == {"fp32"}
    assert {each["metadata"]["correlation_id"] for each in batch} == {answer.headers["X-Correlation-ID"]}


def test_a_bad_item_fails_alone(api: httpx.Client, model: str) -> None:
    bad = [
        {**SEED_PREDICT, "surprise": 1},
        {**SEED_PREDICT, "version": "9.9.9"},
        {"symbol": "EUR/USD", "timeframe": "1h", "features": {name: [1.0] for name in FEATURES}},
        {"symbol": "EUR/USD", "timeframe": "1d"},
        {**SEED_PREDICT, "as_of": "9999-12-31T23:59:59Z"},
        17,
        None,
        "text",
    ]
    items = [each for item in bad for each in (item, body())]
    predictions = api.post(f"{model}/predict/batch", json={"items": items}).json()["predictions"]
    assert len(predictions) == len(items)
    for number, (item, record) in enumerate(zip(items, predictions, strict=True)):
        if number % 2:
            assert record["status"] == "ok"
            continue
        assert_body(record, "VERSION_NOT_FOUND" if item == bad[1] else "DATA_VALIDATION_ERROR")
    assert f"body.items.{0}.surprise" in paths(predictions[0])


@pytest.mark.parametrize("items", [None, [], [SEED_PREDICT] * 1001, "text"])
def test_a_batch_is_a_list_of_1_to_1000_items(api: httpx.Client, model: str, items: object) -> None:
    answer = api.post(f"{model}/predict/batch", json={"items": items})
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == ["body.items"]
