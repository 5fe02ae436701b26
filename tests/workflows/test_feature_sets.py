"""A feature search, the models that name its set, and what both answer: the whole way over the user's own bars."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.clock import WALL, clock_ms
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.feature_sets import FeatureSet
from ml_workbench_service.contracts.market_data import FeatureRequest
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.feature_store.table_format import json_of
from ml_workbench_service.learning.interfaces import dataset
from ml_workbench_service.learning.interfaces.dataset import TrainingOrder
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of
from ml_workbench_service.training.publishing import SELECTION_SAW_TEST
from ml_workbench_service.workflows.plan_training import plan_training
from ml_workbench_service.workflows.read_features import read_features, selected_sets
from tests.trained_models import injected_bars, loaded, open_bench, train_model

SYMBOL = "EUR/USD"
SEARCH = {"max_candidates": 40, "max_features": 4, "num_shuffles": 40, "num_samples": 10}
LIVE = Circumstances(role="candidate")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("sets")
    bench = open_bench(folder)
    bars = injected_bars(2970, seed=3, r2=0.3)
    bars.write(folder / "bars", SYMBOL, signal=np.roll(bars.signal, -1))  # so that its lag is what tells
    return bench


@pytest.fixture(scope="module")
def found(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return train_model(
        bench, "my_set", checkpoint=tmp_path_factory.mktemp("search"), model_type="feature_engineering",
        features=["signal", "rsi_14", "sma_20"], symbols=[SYMBOL], hyperparameters=SEARCH,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reader(bench: Workbench, found: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """A model trained on the set."""
    return train_model(
        bench, "reader", checkpoint=tmp_path_factory.mktemp("reader"), family="linear", features=["@my_set", "rsi_14"],
        symbols=[SYMBOL], hyperparameters={"lookback": 6, "epochs": 12, "learning_rate": 0.01},
    )  # fmt: skip


def feature_set(card: ModelCard) -> FeatureSet:
    return FeatureSet.model_validate(card.findings["feature_set"])


def test_the_injected_column_is_found_and_stands_first(found: ModelCard) -> None:
    product = feature_set(found)
    assert product.expressions[0].expression == "lag(signal, 1)"
    assert product.expressions[0].score is not None
    assert product.expressions[0].score > product.selection.chance_level
    assert (product.id, product.version) == ("my_set", "1.0.0")
    assert found.outputs == found.features == product.names
    assert found.evaluation.verdict == "not_applicable"


def test_only_the_training_part_chose(found: ModelCard) -> None:
    assert feature_set(found).selection.end <= found.split.borders["stop"]


def test_asked_for_a_prediction_it_returns_its_columns_to_the_last_bit(bench: Workbench, found: ModelCard) -> None:
    model = loaded(bench, found)
    record = answer(model, fetch_question(model, newest(bench), bench.feature_store, received_ms=clock_ms(WALL)), LIVE)
    table = bench.feature_store.fetch(
        [SYMBOL], "1h", start_ms=None, end_ms=None, features=[*model.derivation.base_columns, "close"]
    )[0]
    wanted = {name: float(column[-1]) for name, column in model.derivation.read_table(table).items()}
    assert record.outputs == wanted
    assert record.prediction == wanted["lag.signal.1"]


def test_a_model_reads_the_sets_expressions_and_keeps_them(
    bench: Workbench, found: ModelCard, reader: ModelCard
) -> None:
    model = loaded(bench, reader)
    assert reader.features == (*found.features, "rsi_14")
    assert dict(model.derivation.expressions) == {each.name: each.expression for each in feature_set(found).expressions}
    skill = reader.evaluation.skill["mse_against_random_walk"]
    assert skill is not None
    assert skill > 0.2


def test_a_table_counts_every_column_of_a_set(bench: Workbench, tmp_path: Path) -> None:
    card = train_model(
        bench, "several", checkpoint=tmp_path, model_type="feature_engineering", features=["rsi_14", "macd", "sma_20"],
        symbols=[SYMBOL], hyperparameters=SEARCH,
    )  # fmt: skip
    num = len(card.features)
    assert num >= 2
    bins = int(65_536 ** (1 / num)) + 1  # one too many for the whole set, and few for one feature
    body = {
        "name": "Table", "model_type": "reinforcement_learning", "features": ["@several"], "timeframe": "1h",
        "symbols": [SYMBOL], "start_date": "2020-01-01T00:00:00Z", "end_date": "2020-07-01T00:00:00Z",
        "hyperparameters": {"bins": min(bins, 64)},
    }  # fmt: skip
    with pytest.raises(DataValidationError, match=f"{num} features in"):
        plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)


def newest(bench: Workbench) -> PredictRequest:
    """A question about the last bar, at the moment at which it was known."""
    table = bench.feature_store.fetch([SYMBOL], "1h", start_ms=None, end_ms=None, features=["close"], last=1)[0]
    return PredictRequest.model_validate(
        {"symbol": SYMBOL, "timeframe": "1h", "as_of": iso_of_ms(int(table.available_at_ms[-1]))}
    )


def same_answer(model: ServedModel, bench: Workbench, columns: dict[str, list[float]]) -> None:
    fetched = answer(model, fetch_question(model, newest(bench), bench.feature_store, received_ms=clock_ms(WALL)), LIVE)
    assert fetched.status == "ok", fetched.abstain_reasons
    asked = PredictRequest.model_validate(
        {"symbol": SYMBOL, "timeframe": "1h", "features": columns, "as_of": fetched.as_of.isoformat()}
    )
    question = question_of(model, asked, received_ms=clock_ms(WALL))
    assert question is not None
    assert answer(model, question, LIVE).outputs == fetched.outputs


def test_columns_sent_by_the_caller_give_the_same_answer(bench: Workbench, reader: ModelCard) -> None:
    """By the features' own names, or as the columns that the expressions read."""
    model = loaded(bench, reader)
    table = bench.feature_store.fetch(
        [SYMBOL], "1h", start_ms=None, end_ms=None, features=[*model.derivation.base_columns, "close"], last=400
    )[0]
    derived = model.derivation.read_table(table)
    same_answer(model, bench, {name: derived[name][-6:].tolist() for name in reader.features})
    num = model.derivation.history + 6
    base = {name: np.asarray(table.columns[name])[-num:].tolist() for name in model.derivation.base_columns}
    same_answer(model, bench, base)


def test_too_few_rows_of_base_columns_are_refused_with_the_number(bench: Workbench, reader: ModelCard) -> None:
    model = loaded(bench, reader)
    assert model.derivation.history > 0
    sent = {name: [1.0, 1.1] for name in model.derivation.base_columns}
    body = PredictRequest.model_validate({"symbol": SYMBOL, "timeframe": "1h", "features": sent})
    with pytest.raises(DataValidationError, match="send at least"):
        question_of(model, body, received_ms=clock_ms(WALL))


def test_a_set_that_was_selected_on_the_test_part_is_said_on_the_card(
    bench: Workbench, reader: ModelCard, tmp_path: Path
) -> None:
    train_model(
        bench, "late_set", checkpoint=tmp_path, model_type="feature_engineering", features=["signal"],
        symbols=[SYMBOL], hyperparameters=SEARCH, validation_split=0.1,
    )  # fmt: skip
    card = train_model(
        bench, "late_reader", checkpoint=tmp_path, family="linear", features=["@late_set"], symbols=[SYMBOL],
        hyperparameters={"lookback": 6, "epochs": 1}, validation_split=0.5,
    )  # fmt: skip
    assert SELECTION_SAW_TEST in card.warnings
    assert SELECTION_SAW_TEST not in reader.warnings


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("@nobody", "there is no feature set @nobody"),
        ("@my_set:9.9.9", "there is no"),
        ("@reader", "not a feature set"),
    ],
)
def test_a_set_that_is_none_is_refused(feature: str, message: str, bench: Workbench, reader: ModelCard) -> None:
    with pytest.raises(DataValidationError, match=message) as caught:
        plan_training(request(features=["rsi_14", feature]), bench, unfinished=[], max_memory_gb=16)
    assert caught.value.details["errors"][0]["path"] == "body.features.1"


def test_a_set_of_other_bars_is_refused(bench: Workbench, found: ModelCard) -> None:
    with pytest.raises(DataValidationError, match="selected on 1h bars"):
        plan_training(request(features=["@my_set"], target="price_change_1d"), bench, unfinished=[], max_memory_gb=16)


def test_a_search_over_another_set_or_without_a_target_is_refused(bench: Workbench) -> None:
    for change, message in (
        ({"features": ["@my_set"]}, "not from another set"),
        ({"target": None}, "needs one target"),
        ({"target": ["volatility_1h", "volatility_2h"]}, "needs one target"),
    ):
        with pytest.raises(DataValidationError, match=message):
            plan_training(
                request(**{"model_type": "feature_engineering", "features": [], **change}),
                bench, unfinished=[], max_memory_gb=16,
            )  # fmt: skip


def request(**changes: object) -> TrainRequest:
    body = {
        "name": "reader",
        "model_type": "time_series",
        "features": ["rsi_14"],
        "target": "price_change_1h",
        "symbols": [SYMBOL],
        "start_date": "2020-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z",
        **changes,
    }
    return TrainRequest.model_validate({name: value for name, value in body.items() if value is not None})


def test_a_range_that_is_read_has_the_values_that_a_training_saw_to_the_bit(bench: Workbench, found: ModelCard) -> None:
    features = ["signal", "rsi_14", "zscore(signal, 20)", 'at("1d", rsi_14)', "close / delay(close, 24) - 1", "@my_set"]
    order = TrainRequest.model_validate(
        {"name": "Seen", "model_id": "seen", "model_type": "time_series", "family": "linear", "symbols": [SYMBOL],
         "target": "price_change_1h", "features": features, "start_date": "2020-02-03T00:00:00Z",
         "end_date": "2020-05-01T00:00:00Z", "hyperparameters": {"lookback": 6}}
    )  # fmt: skip
    plan = plan_training(order, bench, unfinished=[], max_memory_gb=16)
    asked = TrainingOrder.of(
        order, {**plan.to_json(), "version": "1.0.0"}, job_id="job-seen", store=bench.feature_store
    )
    (table,) = dataset.fetch(asked, bench.feature_store)
    seen = asked.derivation.read_table(table)
    request = FeatureRequest.model_validate(
        {"symbols": [SYMBOL], "timeframe": "1h", "features": features, "start_date": order.start_date,
         "end_date": order.end_date}
    )  # fmt: skip
    tables = read_features(bench.feature_store, request, selected_sets(request, bench.registry))
    (read,) = json.loads(json_of(tables, is_batch=True))["results"]
    assert [to_ms(datetime.fromisoformat(each)) for each in read["timestamps"]] == table.opened_ms.tolist()
    assert len(seen) == len(features) - 1 + len(feature_set(found).expressions)
    as_asked = {parse(each).text: each for each in features if not each.startswith("@")}
    for name, values in seen.items():
        text = asked.derivation.expressions.get(name, name)
        column = read["features"][as_asked.get(text, text)]
        told = np.array([np.nan if each is None else each for each in column])
        first = int(np.argmax(np.isfinite(values)))  # a training has no bars before its range to look back on
        assert first <= asked.derivation.history + 24, name
        assert told[first:].tobytes() == np.where(np.isfinite(values), values, np.nan)[first:].tobytes(), name


@pytest.mark.parametrize(
    ("feature", "timeframe", "said"),
    [
        ("@my_sett", "1h", "there is no feature set @my_sett"),
        ("@reader", "1h", "not a feature set"),
        ("@my_set:7.0.0", "1h", "there is no feature set"),
        ("@my_set", "1d", "selected on 1h bars and this request reads 1d"),
    ],
)
def test_what_cannot_be_read_of_a_set_is_refused_at_its_entry(
    bench: Workbench, reader: ModelCard, feature: str, timeframe: str, said: str
) -> None:
    request = FeatureRequest.model_validate(
        {"symbols": [SYMBOL], "timeframe": timeframe, "features": ["close", feature]}
    )
    with pytest.raises(DataValidationError, match=said) as caught:
        selected_sets(request, bench.registry)
    assert caught.value.details["errors"][0]["path"] == "features.1"
