"""`explain=true`: what each feature added, over HTTP: single, batch, large bodies; and the record as it ever was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from common_lib.exceptions import DataValidationError
from ml_workbench_client import Workbench
from ml_workbench_client.cli.root import build
from ml_workbench_service.contracts.explanations import ExplainedRecord
from ml_workbench_service.contracts.models import ModelCard
from tests.api.failures import assert_failure
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess
from tests.trained_models import injected_bars, open_bench, train_model

pytestmark = pytest.mark.more

FEATURES = ["signal", "rsi_14", "sma_20"]
TREES = {"lookback": 6, "num_iterations": 30, "learning_rate": 0.1}
OF_THE_CALL = ("prediction_id", "timestamp", "metadata", "explanation")


@pytest.fixture(scope="module")
def cards(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    """A forecast of two seeds, one with quantiles, and a classifier, published on the shared service."""
    folder = tmp_path_factory.mktemp("trees")
    bench = open_bench(folder)
    injected_bars(2500, seed=3, r2=0.3).write(folder / "bars", "EUR/USD")
    usual: dict[str, Any] = {"features": FEATURES, "symbols": ["EUR/USD"], "hyperparameters": TREES}
    requests: dict[str, dict[str, Any]] = {
        "reasons": {"family": "lightgbm", "seeds": [1, 2]},
        "reasons_bands": {"family": "lightgbm", "quantiles": [0.1, 0.5, 0.9]},
        "reasons_sides": {
            "family": "lightgbm_classifier", "model_type": "classification", "target": "direction_1h",
        },
    }  # fmt: skip
    cards = {}
    for name, request in requests.items():
        cards[name] = train_model(bench, name, checkpoint=folder / f"job-{name}", **usual, **request)
        copy_version(bench.registry.folder(name, "1.0.0"), registry_of(service), name, "1.0.0")
    linear = {**usual, "hyperparameters": {"lookback": 6, "epochs": 3}, "family": "linear"}
    train_model(bench, "reasons_not", checkpoint=folder / "job-linear", **linear)
    for version, name in (("1.0.0", "reasons"), ("2.0.0", "reasons_not")):
        copy_version(bench.registry.folder(name, "1.0.0"), registry_of(service), "reasons_mixed", version)
    return cards


def body(seed: int = 0, *, rows: int = 6, **more: Any) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    columns = {
        "signal": 0.5 * chance.standard_normal(rows), "rsi_14": 50 + 3 * chance.standard_normal(rows),
        "sma_20": 1.1 + 0.001 * chance.standard_normal(rows),
    }  # fmt: skip
    return {"symbol": "EUR/USD", "timeframe": "1h", "features": {n: v.tolist() for n, v in columns.items()}, **more}


def asked(api: Any, model_id: str, sent: dict[str, Any], **query: Any) -> dict[str, Any]:
    answer = api.post(f"/api/v1/models/{model_id}/predict", json=sent, params=query)
    answer.raise_for_status()
    return dict(answer.json())


def assert_adds_up(explanation: dict[str, Any]) -> None:
    for each in explanation["outputs"]:
        total = each["base"] + sum(each["contributions"].values())
        assert total == pytest.approx(each["raw"], abs=1e-9 * max(1.0, abs(each["raw"])))
        sizes = [abs(value) for value in each["contributions"].values()]
        assert sizes == sorted(sizes, reverse=True), "largest first"
        assert set(each["contributions"]) == set(FEATURES)


def test_a_forecasts_reasons_add_up_to_its_prediction_in_the_targets_unit(
    api: Any, cards: dict[str, ModelCard]
) -> None:
    plain = asked(api, "reasons", body(), enqueue="never")
    told = asked(api, "reasons", body(), enqueue="never", explain="true")
    assert {name: value for name, value in told.items() if name not in OF_THE_CALL} == {
        name: value for name, value in plain.items() if name not in OF_THE_CALL
    }
    assert "explanation" not in plain
    assert told["explanation"]["unit"] == "target"
    assert_adds_up(told["explanation"])
    (output,) = told["explanation"]["outputs"]
    assert output["output"] == "price_change_1h"
    assert output["raw"] == pytest.approx(told["prediction"], rel=1e-5, abs=1e-9)
    assert next(iter(output["contributions"])) == "signal", "what the market was made of"


@pytest.mark.parametrize("rows", [3, 6, 40])
def test_windows_of_every_length_have_reasons(api: Any, cards: dict[str, ModelCard], rows: int) -> None:
    told = asked(api, "reasons", body(rows=rows), enqueue="never", explain="true")
    assert told["explanation"]["outputs"][0]["raw"] == pytest.approx(told["prediction"], rel=1e-5, abs=1e-9)


def test_each_quantile_and_each_class_has_its_own(api: Any, cards: dict[str, ModelCard]) -> None:
    bands = asked(api, "reasons_bands", body(), enqueue="never", explain="true")
    assert_adds_up(bands["explanation"])
    raw = [each["raw"] for each in bands["explanation"]["outputs"]]
    assert [each["output"] for each in bands["explanation"]["outputs"]] == list(cards["reasons_bands"].outputs)
    assert sorted(raw) == pytest.approx(list(bands["outputs"].values()), rel=1e-4, abs=1e-8), "sorted they are stated"
    sides = asked(api, "reasons_sides", body(), enqueue="never", explain="true")
    assert sides["explanation"]["unit"] == "logit"
    assert_adds_up(sides["explanation"])
    assert len(sides["explanation"]["outputs"]) == 3
    order = np.argsort([each["raw"] for each in sides["explanation"]["outputs"]])
    assert order.tolist() == np.argsort(list(sides["outputs"].values())).tolist(), "temperature keeps the order"


def test_a_batch_has_them_in_the_order_of_its_items_and_a_bad_item_fails_alone(
    api: Any, cards: dict[str, ModelCard]
) -> None:
    items = [body(1), {"unknown": 1}, body(2, rows=3), body(3), body(4, rows=1)]
    path = "/api/v1/models/reasons/predict/batch"
    found = api.post(path, json={"items": items}, params={"explain": "true", "enqueue": "never"}).json()["predictions"]
    assert ["error_code" in each for each in found] == [False, True, False, False, True]
    for number in (0, 2, 3):
        alone = asked(api, "reasons", items[number], enqueue="never", explain="true")
        assert found[number]["explanation"] == alone["explanation"]
        assert found[number]["prediction"] == alone["prediction"]
    whole = api.post(path, json={"items": items}, params={"enqueue": "never"}).json()["predictions"]
    assert [each.get("prediction") for each in whole] == [each.get("prediction") for each in found]
    assert all("explanation" not in each for each in whole)


def test_items_whose_version_cannot_explain_fail_alone_beside_those_whose_can(
    api: Any, cards: dict[str, ModelCard]
) -> None:
    """The whole is refused only where no item's version can."""
    items = [body(1, version="1.0.0"), body(1, version="2.0.0"), body(2, version="1.0.0")]
    path = "/api/v1/models/reasons_mixed/predict/batch"
    answer = api.post(path, json={"items": items}, params={"explain": "true", "enqueue": "never"})
    assert answer.status_code == 200, answer.text
    trees, linear, again = answer.json()["predictions"]
    assert_adds_up(trees["explanation"])
    assert_adds_up(again["explanation"])
    assert linear["error_code"] == "DATA_VALIDATION_ERROR"
    assert [each["code"] for each in linear["details"]["errors"]] == ["cannot_explain"]
    assert "lightgbm" in linear["message"]
    refused = api.post(path, json={"items": items[1:2]}, params={"explain": "true", "enqueue": "never"})
    assert_failure(refused, 422, "DATA_VALIDATION_ERROR")
    plain = api.post(path, json={"items": items}, params={"enqueue": "never"}).json()["predictions"]
    assert all(each["status"] == "ok" for each in plain)


def test_a_large_body_is_explained_as_a_small_one(api: Any, cards: dict[str, ModelCard]) -> None:
    items = [body(number, rows=6) for number in range(400)]
    sent = json.dumps({"items": items})
    assert len(sent) > 64 * 1024
    answer = api.post(
        "/api/v1/models/reasons/predict/batch?explain=true&enqueue=never", content=sent,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    found = answer.json()["predictions"]
    assert len(found) == 400
    alone = asked(api, "reasons", items[7], enqueue="never", explain="true")
    assert found[7]["explanation"] == alone["explanation"]


@pytest.mark.parametrize("written", ["yes", "1", "TRUE", "on"])
@pytest.mark.parametrize("num_items", [1, 400])
def test_a_truth_value_is_true_or_false_whatever_the_size(
    api: Any, cards: dict[str, ModelCard], written: str, num_items: int
) -> None:
    answer = api.post(
        f"/api/v1/models/reasons/predict/batch?explain={written}&enqueue=never",
        content=json.dumps({"items": [body(number, rows=6) for number in range(num_items)]}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert answer.json()["details"]["errors"][0]["path"] == "query.explain"


def test_an_abstention_states_nothing_and_explains_nothing(api: Any, cards: dict[str, ModelCard]) -> None:
    wild = body()
    wild["features"]["signal"][-1] = 1e6
    told = asked(api, "reasons", wild, enqueue="never", explain="true")
    assert (told["status"], told["explanation"]) == ("abstain", None)
    unknown = asked(api, "reasons", {**body(), "symbol": "GBP/USD"}, enqueue="never", explain="true")
    assert (unknown["abstain_reasons"][0], unknown["explanation"]) == ("unknown_symbol", None)


@pytest.mark.parametrize("path", ["predict", "predict/batch"])
def test_other_families_are_refused_with_those_that_can(api: Any, cards: dict[str, ModelCard], path: str) -> None:
    sent = {"symbol": "EUR/USD", "timeframe": "1h"}
    answer = api.post(
        f"/api/v1/models/small/{path}", json=sent if path == "predict" else {"items": [sent]},
        params={"explain": "true"},
    )  # fmt: skip
    told = assert_failure(answer, 422, "DATA_VALIDATION_ERROR")
    assert "lightgbm and lightgbm_classifier can" in told["message"]
    assert "/importance" in told["message"]


def test_arrow_has_no_reasons_and_says_so(api: Any, cards: dict[str, ModelCard]) -> None:
    answer = api.post(
        "/api/v1/models/reasons/predict/batch?explain=true", content=b"",
        headers={"Content-Type": "application/vnd.apache.arrow.stream"},
    )  # fmt: skip
    assert "come in JSON" in assert_failure(answer, 422, "DATA_VALIDATION_ERROR")["message"]


def test_the_service_itself_loads_neither_lightgbm_nor_scikit_learn(
    api: Any, service: ServiceProcess, cards: dict[str, ModelCard]
) -> None:
    asked(api, "reasons", body(), enqueue="never", explain="true")
    assert service.process is not None
    mapped = {Path(each.path).name for each in psutil.Process(service.process.pid).memory_maps()}
    assert not [name for name in mapped if "lightgbm" in name or "sklearn" in name]


def test_the_client_has_them_of_one_and_of_many(service: ServiceProcess, cards: dict[str, ModelCard]) -> None:
    with Workbench(service.url) as bench:
        model = bench.model("reasons")
        one = model.explain(body(), enqueue="never")
        assert one.explanation is not None
        assert one.explanation.outputs[0].raw == pytest.approx(one.prediction, rel=1e-5, abs=1e-9)
        plain, bad = model.explain_batch([body(), {"unknown": [1.0]}], enqueue="never")
        assert isinstance(plain, ExplainedRecord)
        assert plain.explanation == one.explanation
        assert isinstance(bad, DataValidationError)
        with pytest.raises(DataValidationError, match="lightgbm and lightgbm_classifier can"):
            bench.model("small").explain({"symbol": "EUR/USD", "timeframe": "1h"})
        families = {
            each.name: each.explains_answers for kind in bench.model_types.model_types for each in kind.families
        }
        assert [name for name, explains in families.items() if explains] == ["lightgbm", "lightgbm_classifier"]


def test_the_command_line_shows_a_table_an_output(
    service: ServiceProcess, cards: dict[str, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_URL", service.url)
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body()))
    told = CliRunner().invoke(build(), ["predict", "reasons_sides", str(file), "--enqueue", "never", "--explain"])
    assert told.exit_code == 0, told.output
    for words in ("What each feature added to sell", "(base)", "signal", "(together)"):
        assert words in told.stdout
    plain = CliRunner().invoke(build(), ["predict", "reasons", str(file), "--enqueue", "never", "--explain", "--json"])
    assert set(json.loads(plain.stdout)["explanation"]) == {"method", "unit", "outputs"}
