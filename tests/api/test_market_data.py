"""`/features/{symbol}`, `/features/batch`, `/labels/{symbol}`: the store's own values, point in time.

And what follows: one service as the feature store of another, and a feed that stops.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pytest

from ml_workbench_service.contracts.contract import iso, to_ms
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.integrations.feature_store.table_format import ARROW
from ml_workbench_service.market import calendar
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.market.targets import label
from ml_workbench_service.testing.feature_stores import FeatureStoreConformance, StoredBars
from tests.api.failures import assert_failure, paths
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.integrations.feature_store.bar_files import bars_frame, write_plain
from tests.service_process import ServiceProcess
from tests.trained_models import open_bench, train_model

MONDAY, TUESDAY = datetime(2025, 2, 3, tzinfo=UTC), datetime(2025, 2, 4, tzinfo=UTC)
RANGE = {"start_date": iso(MONDAY), "end_date": iso(TUESDAY)}
MANY = ",".join(f"sma_{period}" for period in range(2, 12))
NAMES = ["close", "sma_20", "rsi_14"]


@lru_cache
def sample(symbol: str = "EUR/USD", *names: str, start: datetime = MONDAY, end: datetime = TUESDAY) -> FeatureTable:
    """The same bars as the service serves."""
    store = LocalFeatureStore(SampleRates())
    features = names or ("close",)
    return store.fetch([symbol], "1h", start_ms=to_ms(start), end_ms=to_ms(end), features=features)[0]


def read(api: httpx.Client, path: str, **query: Any) -> dict[str, Any]:
    """The answer to a GET."""
    answer = api.get(f"/api/v1/{path}", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_expressions_come_as_they_were_written(api: httpx.Client) -> None:
    """By GET between commas, by batch in a list, of other series too; the sets that ship are written out."""
    asked = ["rsi_14", "zscore(close, 50)", 'ret("GBP/USD", 1)', 'at("4h", rsi_14)']
    found = read(api, "features/EURUSD", timeframe="1h", features=",".join(asked), **RANGE)
    assert list(found["features"]) == asked
    assert all(None not in values for values in found["features"].values())
    close = pd.Series(sample("EUR/USD", "close", start=datetime(2025, 1, 20, tzinfo=UTC)).columns["close"])
    expected = ((close - close.rolling(50).mean()) / close.rolling(50).std()).to_list()[-len(found["timestamps"]) :]
    assert found["features"]["zscore(close, 50)"] == pytest.approx(expected, rel=1e-9)
    body = {"symbols": ["EUR/USD"], "timeframe": "1h", "features": [*asked, "@alpha158_price"], **RANGE}
    (result,) = api.post("/api/v1/features/batch", json=body).raise_for_status().json()["results"]
    assert {name: result["features"][name] for name in asked} == found["features"]
    assert len(result["features"]) == len(asked) + 117


@pytest.mark.parametrize("symbol", ["EUR%2FUSD", "EUR/USD", "eur_usd"])
def test_features_are_the_stores_own_whichever_way_the_symbol_is_written(api: httpx.Client, symbol: str) -> None:
    found = read(api, f"features/{symbol}", timeframe="H1", features=",".join(NAMES), **RANGE)
    table = sample("EUR/USD", *NAMES)
    assert (found["symbol"], found["timeframe"], found["data_source"]) == ("EUR/USD", "1h", "simulated")
    assert {name: found["features"][name] for name in NAMES} == {name: table.columns[name].tolist() for name in NAMES}
    opened = [to_ms(datetime.fromisoformat(each)) for each in found["timestamps"]]
    assert opened == table.opened_ms.tolist()
    known = [to_ms(datetime.fromisoformat(each)) for each in found["available_at"]]
    assert known == table.available_at_ms.tolist()


def test_without_names_the_bars_come_and_as_of_hides_what_was_not_known(api: httpx.Client) -> None:
    whole = read(api, "features/EURUSD", timeframe="1h", **RANGE)
    assert list(whole["features"]) == ["open", "high", "low", "close"]
    assert len(whole["timestamps"]) == 24
    moment = MONDAY + timedelta(hours=10)
    known = read(api, "features/EURUSD", timeframe="1h", as_of=iso(moment), **RANGE)
    assert known["timestamps"] == whole["timestamps"][:10]
    assert all(each <= iso(moment) for each in known["available_at"])
    daily = read(api, "features/EURUSD", timeframe="1d", features="high", start_date=iso(MONDAY))
    assert (daily["calendar"], daily["fill"], daily["warnings"]) == ("fixings", "next_close", ["synthetic_range"])


def test_a_batch_comes_in_the_order_asked_as_json_and_as_arrow(api: httpx.Client) -> None:
    body = {"symbols": ["GBPUSD", "EUR/USD"], "timeframe": "1h", "features": ["sma_20", "close"], **RANGE}
    results = api.post("/api/v1/features/batch", json=body).raise_for_status().json()["results"]
    assert [each["symbol"] for each in results] == ["GBP/USD", "EUR/USD"]
    answer = api.post("/api/v1/features/batch", json=body, headers={"Accept": f"{ARROW}, application/json"})
    assert answer.headers["content-type"] == ARROW
    frame = pl.read_ipc_stream(io.BytesIO(answer.content))
    for result in results:
        part = frame.filter(pl.col("symbol") == result["symbol"])
        for name in ("sma_20", "close"):
            assert part[name].to_list() == result["features"][name]
        assert part["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list() == result["timestamps"]
        assert set(part["data_source"]) == {"simulated"}


def test_a_missing_value_is_null(api: httpx.Client) -> None:
    found = read(api, "features/EURUSD", timeframe="1h", features="sma_20", end_date="2010-01-05T00:00:00Z")
    assert found["features"]["sma_20"][:19] == [None] * 19
    assert None not in found["features"]["sma_20"][19:]


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("features/EURUSD", {"timeframe": "7h"}, "timeframe"),
        ("features/EURUSD", {}, "timeframe"),
        ("features/nonsense", {"timeframe": "1h"}, "two currency codes"),
        ("features/EUR/XTS", {"timeframe": "1h"}, "every pair of"),
        ("features/EURUSD", {"timeframe": "1h", "features": "smaa_20"}, "did you mean sma_20"),
        ("features/EURUSD", {"timeframe": "1h", "features": "close,,sma_20"}, "features"),
        ("features/EURUSD", {"timeframe": "1h", "features": "close,zscore(close, 2)"}, "at character 15"),
        ("features/EURUSD", {"timeframe": "1h", "features": "zscore(close, 20"}, "write it as zscore(x, bars)"),
        ("features/EURUSD", {"timeframe": "1h", "features": "@mine"}, "@alpha158"),
        ("features/EURUSD", {"timeframe": "1h", "features": "at('1d', rsi_14)"}, "two histories"),
        ("features/EURUSD", {"timeframe": "1h", "start_date": iso(TUESDAY), "end_date": iso(MONDAY)}, "later than"),
        ("features/EURUSD", {"timeframe": "1h", "start_date": "2029-01-01T00:00:00Z"}, "there are bars from"),
        (
            "features/EURUSD",
            {"timeframe": "5m", "features": MANY},
            "shorter range",
        ),
        (
            "labels/EURUSD",
            {"target": "price_change_1h", **RANGE, "timeframe": "1d"},
            "fixes the timeframe 1h; leave `timeframe` out, or count bars of 1d, as price_change_1 does",
        ),
        ("labels/EURUSD", {"target": "profit_1h", **RANGE}, "a target is"),
        ("labels/EURUSD", {"target": "price_change_1h", "start_date": iso(TUESDAY), "end_date": iso(MONDAY)}, "later"),
        ("labels/EURUSD", {"target": "market_regime", "timeframe": "1h", **RANGE}, ""),
    ],
)
def test_what_cannot_be_read_is_a_422_that_says_what_can(
    api: httpx.Client, path: str, query: dict[str, str], says: str
) -> None:
    found = assert_failure(api.get(f"/api/v1/{path}", params=query), 422, "DATA_VALIDATION_ERROR")
    assert says in found["message"]
    assert paths(found)


@pytest.mark.parametrize("target", ["price_change_1h", "log_return_4h", "volatility_2h"])
def test_labels_are_what_a_training_over_the_range_sees(api: httpx.Client, target: str) -> None:
    found = read(api, "labels/EUR%2FUSD", target=target, **RANGE)
    table = sample()
    runs = calendar.runs(table.opened_ms, 3_600_000, table.calendar)
    wanted = label(
        parse_target(target), close=table.columns["close"], opened_ms=table.opened_ms,
        available_at_ms=table.available_at_ms, runs=runs, timeframe="1h",
    )  # fmt: skip
    values = np.array(found["labels"], dtype=np.float64)
    assert np.array_equal(values, wanted.values, equal_nan=True)
    known = [-1 if each is None else to_ms(datetime.fromisoformat(each)) for each in found["available_at"]]
    assert known == wanted.available_at_ms.tolist()
    assert (found["classes"], found["timeframe"]) == ({}, "1h")


def test_classes_are_the_numbers_that_outcomes_have(api: httpx.Client) -> None:
    month = RANGE | {"start_date": "2025-01-06T00:00:00Z"}
    barrier = read(api, "labels/EURUSD", target="triple_barrier_4h", k=0.5, **month)
    assert barrier["classes"] == {"lower": -1.0, "neither": 0.0, "upper": 1.0}
    assert set(barrier["labels"]) <= {-1.0, 0.0, 1.0, None}
    assert len(set(barrier["labels"])) == 4
    assert barrier["num_dropped"]["label_spans_closure"] > 0
    begin, end = datetime(2023, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    query = {"target": "market_regime", "timeframe": "1h", "start_date": iso(begin), "end_date": iso(end)}
    regimes = read(api, "labels/EURUSD", **query)
    table = sample(start=begin, end=end)
    trend_N, volatility_N = regime_features(
        np.asarray(table.columns["close"]), calendar.runs(table.opened_ms, 3_600_000, table.calendar)
    )
    early = np.arange(len(table)) < 0.8 * len(table)  # the training part, but for some bars
    rule = RegimeRule.fit(trend_N[early], volatility_N[early])
    wanted = rule.classify(trend_N, volatility_N)[1:]
    pairs = [(one, other) for one, other in zip(regimes["labels"][:-1], wanted, strict=True) if one is not None]
    assert len(pairs) > 5000
    assert np.mean([one == other for one, other in pairs]) > 0.98


@pytest.fixture(scope="module")
def stored(service: ServiceProcess) -> Iterator[StoredBars]:
    """A running service as the feature store of another, by its address."""
    store = RemoteFeatureStore(service.url)
    yield StoredBars(store, "simulated", optional=())
    store.close()


class TestAnotherService(FeatureStoreConformance):
    """What every feature store keeps (`stored`)."""


def test_a_training_over_another_services_bars_is_certified_as_over_bars_of_its_own(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """Its health is the specification's, its features are made here, its simulated prices stay simulated."""
    store = RemoteFeatureStore(service.url)
    assert store.check().state == "ok"
    bench = replace(open_bench(tmp_path), feature_store=store)
    card = train_model(
        bench, "elsewhere", checkpoint=tmp_path, family="linear", features=["sma_20", "rsi_14", "macd"],
        symbols=["EUR/USD"], start_date="2024-01-01T00:00:00Z", end_date="2025-01-01T00:00:00Z",
        hyperparameters={"epochs": 2},
    )  # fmt: skip
    store.close()
    assert card.data_source == "simulated"
    assert card.certificate is not None
    assert card.certificate.status == "passed"
    assert {check.status for check in card.certificate.checks} == {"passed"}


def test_a_feed_that_stopped_abstains_and_one_that_goes_on_answers(service: ServiceProcess, tmp_path: Path) -> None:
    """Over HTTP, from a folder: stale within hours, and after years; never `ok`, whatever is in the files."""
    frame = bars_frame(seed=1)
    (tmp_path / "bars").mkdir()
    path = write_plain(tmp_path / "bars", "EURUSD_1h.csv", frame.head(900))
    copy_version(registry_of(service) / "small" / "1.0.0", tmp_path / "registry", "fed", "1.0.0")
    running = ServiceProcess(tmp_path, FEATURE_STORE_URL=f"file://{path.parent}")
    known = [datetime.fromtimestamp(each / 1000 + 3600, tz=UTC) for each in frame["opened_ms"].to_list()]
    question = {"symbol": "EUR/USD", "timeframe": "1h"}

    def ask(at: datetime, **more: str) -> dict[str, Any]:
        running.clock.set(at)
        answer = running.client.post("/api/v1/models/fed/predict", json=question | more)
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()
        return record

    try:
        running.start()
        body = {"version": "1.0.0", "deployment_target": "local", "force": True}
        assert running.client.post("/api/v1/models/fed/deploy", json=body).status_code == 200
        stopped = known[899]
        fresh = ask(stopped + timedelta(minutes=1))
        assert (fresh["as_of"], fresh["sample"]) == (iso(stopped), "train")
        assert "stale_features" not in fresh["abstain_reasons"]
        assert "stale_features" in ask(stopped + timedelta(hours=2, minutes=1))["abstain_reasons"]
        years_later = ask(stopped + timedelta(weeks=9 * 52))
        assert years_later["status"] == "abstain"
        assert {"stale_features", "model_expired"} <= set(years_later["abstain_reasons"])
        past = ask(stopped + timedelta(weeks=9 * 52), as_of=iso(stopped))
        assert (past["sample"], past["prediction"] is None) == ("historical", fresh["prediction"] is None)
        write_plain(path.parent, path.name, frame.head(903))
        assert "stale_features" not in ask(known[902])["abstain_reasons"]
        assert running.client.get("/api/v1/queue").json()["enqueued"] == 4, "all but the question about the past"
    finally:
        running.close()
