"""Expressions in a training request, the whole way: planned, trained, proven, served, and made again in pandas."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.clock import WALL, clock_ms
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.interfaces import dataset
from ml_workbench_service.learning.interfaces.dataset import TrainingOrder
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import fetch_range, read_history
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of
from ml_workbench_service.training.recipes import own_columns
from ml_workbench_service.workflows.plan_training import plan_training
from tests.trained_models import injected_bars, loaded, open_bench, train_model

SYMBOL, OTHER = "EUR/USD", "GBP/USD"
NUM_BARS, NUM_MOMENTS = 2400, 200
BUILT_IN = (
    "zscore(close, 50)", "close / delay(close, 24) - 1", 'ret("GBP/USD", 1)', 'at("1d", rsi_5)',
    'zscore(close / of("GBP/USD", close), 40)', 'at("4h", ret(close, 2))', "corr(return_1, high_low_range, 30)",
    "quantile(close, 20, 0.8) / close", "std(return_1, 12) / std(return_1, 48)", "mean(close > lag(close, 1), 20)",
)  # fmt: skip
OWN = ("rank(signal, 250)", 'mean(of("GBP/USD", signal), 3)')
LINEAR = {"lookback": 3, "epochs": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("expressions")
    bench = open_bench(folder)
    injected_bars(NUM_BARS, seed=3, r2=0.3).write(folder / "bars", SYMBOL)
    injected_bars(NUM_BARS, seed=4, r2=0.3, level=1.3).write(folder / "bars", OTHER)
    return bench


@pytest.fixture(scope="module")
def card(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """Of a model that reads nothing but what is made of bars."""
    return train_model(
        bench, "reader", checkpoint=tmp_path_factory.mktemp("reader"), family="linear", features=list(BUILT_IN),
        symbols=[SYMBOL], hyperparameters=LINEAR,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(bench: Workbench, card: ModelCard) -> ServedModel:
    return loaded(bench, card)


def planned(bench: Workbench, *features: str, **changes: Any) -> Any:
    body = {
        "name": "Planned", "model_type": "time_series", "target": "price_change_1h", "features": list(features),
        "symbols": [SYMBOL], "start_date": "2020-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z",
        "family": "linear", **changes,
    }  # fmt: skip
    return plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)


def refused(bench: Workbench, *features: str, **changes: Any) -> tuple[str, str]:
    """Path and message of the error."""
    with pytest.raises(DataValidationError) as caught:
        planned(bench, *features, **changes)
    return caught.value.details["errors"][0]["path"], caught.value.message


def table_of(bench: Workbench, model: ServedModel) -> Any:
    columns = [*model.derivation.base_columns, "close"]
    return bench.feature_store.fetch([SYMBOL], "1h", start_ms=None, end_ms=None, features=columns)[0]


def in_pandas(bench: Workbench) -> dict[str, "pd.Series[float]"]:
    """The model's features over the same bars; other series set beside them by when their bars were known."""

    def frame(symbol: str, timeframe: str, *names: str) -> pd.DataFrame:
        table = bench.feature_store.fetch([symbol], timeframe, start_ms=None, end_ms=None, features=names)[0]
        columns = {name: table.columns[name] for name in names}
        return pd.DataFrame({"known": table.available_at_ms, **columns})

    names = ("open", "high", "low", "close", "return_1", "high_low_range")
    bars, pound = frame(SYMBOL, "1h", *names), frame(OTHER, "1h", "close")
    days, quarters = frame(SYMBOL, "1d", "rsi_5"), frame(SYMBOL, "4h", "close")
    quarters["moved"] = quarters.close.pct_change(2)
    close, ratio = bars.close, bars.close / pound.close
    of_returns = bars.return_1.rolling
    return {
        "zscore(close, 50)": (close - close.rolling(50).mean()) / close.rolling(50).std(),
        "close / lag(close, 24) - 1": close.pct_change(24),
        'ret(of("GBP/USD", close), 1)': pound.close.pct_change(),
        'at("1d", rsi_5)': pd.merge_asof(bars[["known"]], days, on="known").rsi_5,
        'zscore(close / of("GBP/USD", close), 40)': (ratio - ratio.rolling(40).mean()) / ratio.rolling(40).std(),
        'at("4h", ret(close, 2))': pd.merge_asof(bars[["known"]], quarters, on="known").moved,
        "corr(return_1, high_low_range, 30)": of_returns(30).corr(bars.high_low_range),
        "quantile(close, 20, 0.8) / close": close.rolling(20).quantile(0.8) / close,
        "std(return_1, 12) / std(return_1, 48)": of_returns(12).std() / of_returns(48).std(),
        "mean(close > lag(close, 1), 20)": (close > close.shift()).astype(float).rolling(20).mean(),
    }


def agree(bench: Workbench, model: ServedModel, expected: dict[str, "pd.Series[float]"]) -> None:
    """Serving reads at 200 random moments what the whole table says, to the bit; pandas, whose windows run, to nine
    digits."""
    table = table_of(bench, model)
    whole = model.derivation.read_table(table)
    complete = np.isfinite(np.column_stack(list(whole.values()))).all(axis=1)
    rows = np.flatnonzero(complete & np.roll(complete, 1) & np.roll(complete, 2))
    for row in np.random.default_rng(0).choice(rows[rows > 400], NUM_MOMENTS, replace=False):
        as_of = iso_of_ms(int(table.available_at_ms[row]))
        asked = PredictRequest.model_validate({"symbol": SYMBOL, "timeframe": "1h", "as_of": as_of})
        question = fetch_question(model, asked, bench.feature_store, received_ms=clock_ms(WALL))
        served = dict(zip(model.card.features, question.x_TF[-1], strict=True))
        assert served == {name: column[row] for name, column in whole.items()}
        for name, series in expected.items():
            assert served[name] == pytest.approx(series[row], rel=1e-9, abs=1e-11), name


def test_training_serving_and_pandas_see_the_same_at_200_moments(bench: Workbench, model: ServedModel) -> None:
    expected = in_pandas(bench)
    assert set(expected) == set(model.card.features)
    agree(bench, model, expected)


def test_a_replay_reads_what_single_answers_read(bench: Workbench, model: ServedModel) -> None:
    table = table_of(bench, model)
    whole, start_ms = model.derivation.read_table(table), int(table.opened_ms[1500])
    end_ms = int(table.opened_ms[-1]) + 1
    (fetched,) = fetch_range(model, bench.feature_store, symbols=[SYMBOL], start_ms=start_ms, end_ms=end_ms)
    history = read_history(model, fetched)
    rows = fetched.opened_ms >= start_ms
    assert rows.sum() == len(table) - 1500
    for number, name in enumerate(model.card.features):
        assert np.array_equal(history.x_NF[rows, number], whole[name][1500:], equal_nan=True), name


def test_the_training_read_what_serving_reads(bench: Workbench, card: ModelCard, model: ServedModel) -> None:
    plan = planned(bench, *BUILT_IN, hyperparameters=LINEAR)
    order = TrainingOrder.of(plan.request, plan.to_json(), job_id="job", store=bench.feature_store)
    data = dataset.assemble(order, dataset.fetch(order, bench.feature_store), kind_of=bench.feature_store.kind_of)
    whole = model.derivation.read_table(table_of(bench, model))
    for number, name in enumerate(card.features):
        assert np.array_equal(data.labelling.rows[0].x_NF[:, number], whole[name], equal_nan=True), name


def test_the_card_names_its_expressions_and_their_proof_is_made_again(card: ModelCard) -> None:
    assert card.features[:3] == ("zscore(close, 50)", "close / lag(close, 24) - 1", 'ret(of("GBP/USD", close), 1)')
    assert card.expressions["zscore(close, 50)"] == "zscore(close, 50)"
    assert len(card.features) == len(card.expressions) == len(BUILT_IN)
    assert card.certificate is not None
    assert (card.certificate.status, card.certificate.proof) == ("passed", "recomputed")


def test_an_expression_has_the_proof_of_the_users_column_in_it(bench: Workbench, tmp_path: Path) -> None:
    """Of another symbol's column too."""
    for number, feature in enumerate(OWN):
        card = train_model(
            bench, f"own{number}", checkpoint=tmp_path / str(number), family="linear", features=[feature, "rsi_14"],
            symbols=[SYMBOL], hyperparameters=LINEAR, start_date="2020-03-01T00:00:00Z",
        )  # fmt: skip
        assert card.certificate is not None
        assert (card.certificate.status, card.certificate.proof) == ("unprovable", None)
        (check,) = [each for each in card.certificate.checks if each.name == "ready_made_columns"]
        assert ("signal", 'of("GBP/USD", signal)')[number] in check.detail
        assert "leakage_unprovable" in card.warnings


def test_own_columns_of_any_series_join_the_recipe(bench: Workbench) -> None:
    plan = planned(bench, *OWN, "zscore(close, 50)", 'at("1d", rsi_5)', hyperparameters=LINEAR)
    order = TrainingOrder.of(plan.request, plan.to_json(), job_id="job", store=bench.feature_store)
    tables = dataset.fetch(order, bench.feature_store)
    assert own_columns(order, tables, bench.feature_store) == ['of("GBP/USD", signal)', "signal"]


def base_columns(bench: Workbench, model: ServedModel, num: int) -> dict[str, list[float]]:
    table = table_of(bench, model)
    return {name: np.asarray(table.columns[name])[-num:].tolist() for name in model.derivation.base_columns}


def test_columns_sent_by_the_caller_give_the_same_answer(bench: Workbench, model: ServedModel) -> None:
    """As the columns that the expressions read, or as the features by their texts, however those are spelt."""
    table = table_of(bench, model)
    newest = {"symbol": SYMBOL, "timeframe": "1h", "as_of": iso_of_ms(int(table.available_at_ms[-1]))}
    asked = PredictRequest.model_validate(newest)
    fetched = fetch_question(model, asked, bench.feature_store, received_ms=clock_ms(WALL))
    wanted = answer(model, fetched, Circumstances(role="candidate")).outputs
    whole = model.derivation.read_table(table)
    by_text = {name: whole[name][-3:].tolist() for name in model.card.features}
    respelt = {name.replace(", ", " ,  ").replace('"', "'"): values for name, values in by_text.items()}
    for sent in (base_columns(bench, model, model.derivation.history + 3), by_text, respelt):
        request = PredictRequest.model_validate({**newest, "features": sent})
        question = question_of(model, request, received_ms=clock_ms(WALL))
        assert question is not None
        assert answer(model, question, Circumstances(role="candidate")).outputs == wanted


def test_too_little_history_is_refused_with_what_is_needed(bench: Workbench, model: ServedModel) -> None:
    assert model.derivation.history == 49
    assert model.derivation.needs('at("1d", rsi_5)') == 'at("1d", rsi_5) needs 6 bars of 1d in a row'
    assert model.derivation.needs("zscore(close, 50)") == "zscore(close, 50) needs 50 bars in a row"
    newest = {"symbol": SYMBOL, "timeframe": "1h"}
    sent = PredictRequest.model_validate({**newest, "features": base_columns(bench, model, 51)})
    with pytest.raises(DataValidationError, match="send at least 52 rows") as caught:
        question_of(model, sent, received_ms=clock_ms(WALL))
    assert "zscore(close, 50) needs 50 bars" in caught.value.message
    table = table_of(bench, model)
    early = iso_of_ms(int(table.available_at_ms[70]))
    with pytest.raises(DataValidationError, match=r'at\("1d", rsi_5\) needs 6 bars of 1d in a row') as caught:
        fetch_question(
            model, PredictRequest.model_validate({**newest, "as_of": early}), bench.feature_store,
            received_ms=clock_ms(WALL),
        )  # fmt: skip
    assert caught.value.details["errors"][0]["code"] == "incomplete_window"


def test_a_request_is_refused_at_the_entry_and_the_character(bench: Workbench) -> None:
    for features, path, says in (
        (("rsi_14", "zscore(close, 2)"), "body.features.1", "at character 15"),
        (("close - open",), "body.features.0", "price's unit"),
        (("zscore(sgnal, 5)",), "body.features.0", "did you mean signal"),
        (('at("15m", rsi_14)',), "body.features.0", "15m is finer"),
        (('ret("USD/JPY", 1)',), "body", "USD/JPY"),
        (("@alpha158",), "body.features.0", "volume"),
        (("@alpha159",), "body.features.0", "@alpha158"),
        (("rank(close, 20)", "mean(volume, 5)"), "body.features.1", "no `volume` column"),
        ((*(f"rank(close, {bars})" for bars in range(900, 940)),), "body.features", "operations a bar"),
        ((*(f'ret(of("{base}/CHF", close), 1)' for base in CURRENCIES),), "body.features", "16 are possible"),
    ):
        found_path, message = refused(bench, *features)
        assert found_path.startswith(path), (features, found_path, message)
        assert says in message, (features, message)


CURRENCIES = (
    "EUR", "USD", "GBP", "JPY", "AUD", "NZD", "CAD", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "ZAR", "TRY", "MXN",
    "SGD",
)  # fmt: skip


def test_names_that_ship_are_taken(bench: Workbench) -> None:
    path, message = refused(bench, model_type="feature_engineering", model_id="alpha158", family=None)
    assert (path, "ships with the service" in message) == ("body.model_id", True)


def test_the_estimate_counts_what_expressions_cost(bench: Workbench) -> None:
    plain, costly = planned(bench, "close").estimate, planned(bench, "close", "@alpha158_price").estimate
    assert costly.memory_gb > plain.memory_gb
    assert costly.duration_s > plain.duration_s
    assert costly.num_windows == plain.num_windows - 60


def test_an_expression_is_a_candidate_of_a_search(bench: Workbench, tmp_path: Path) -> None:
    card = train_model(
        bench, "found", checkpoint=tmp_path, model_type="feature_engineering", family=None, symbols=[SYMBOL],
        features=["signal - lag(signal, 2)", 'of("GBP/USD", signal)'],
        hyperparameters={"max_candidates": 40, "max_features": 4, "num_shuffles": 40, "num_samples": 10},
    )  # fmt: skip
    found = {each["expression"] for each in card.findings["feature_set"]["expressions"]}
    assert "signal - lag(signal, 2)" in found


def test_a_search_tries_no_level(bench: Workbench) -> None:
    path, message = refused(bench, "close / of('GBP/USD', close)", model_type="feature_engineering", family=None)
    assert (path, "a level drifts" in message) == ("body.features.0", True)


@pytest.mark.more
def test_alpha158_is_trained_on_and_served_to_the_bit(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    bars = injected_bars(NUM_BARS, seed=5)
    volume = np.round(np.exp(np.random.default_rng(1).normal(size=NUM_BARS) + 5))
    bars.write(tmp_path / "bars", SYMBOL)
    file = tmp_path / "bars" / "EURUSD_1h.csv"
    pl.read_csv(file).with_columns(pl.Series("volume", volume)).write_csv(file)
    card = train_model(
        bench, "alphas", checkpoint=tmp_path / "job", family="linear", features=["@alpha158"], symbols=[SYMBOL],
        hyperparameters=LINEAR,
    )  # fmt: skip
    assert len(card.features) == 157
    assert card.expressions["MA5"] == "mean(close, 5) / close"
    assert card.certificate is not None
    assert card.certificate.status == "unprovable"  # nobody knows when a file's volume was written
    agree(bench, loaded(bench, card), {})
