"""From a body to a question: names, lengths, symbols, timeframes, and what time it is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import SymbolHistory, newest_question
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of, symbol_of

COLUMNS: dict[str, list[float]] = {
    "signal": [0.1, -0.2, 0.3, 0.5],
    "close": [1.1, 1.101, 1.102, 1.1],
    "rsi_14": [45.0, 46.0, 47.5, 50.0],
}
LIVE = Circumstances(role="champion")


def body(**changes: Any) -> PredictRequest:
    return PredictRequest.model_validate({"symbol": "EUR/USD", "timeframe": "1h", "features": COLUMNS, **changes})


def refused(model: ServedModel, request: PredictRequest) -> list[dict[str, str]]:
    with pytest.raises(DataValidationError) as caught:
        question_of(model, request)
    errors: list[dict[str, str]] = caught.value.details["errors"]
    assert all(set(error) == {"path", "message", "code"} for error in errors)
    return errors


def test_columns_are_matched_by_name_whatever_their_order(model: ServedModel) -> None:
    question = question_of(model, body(features=dict(reversed(COLUMNS.items()))))
    assert question is not None
    assert question.x_TF.tolist() == np.column_stack(list(COLUMNS.values())).tolist()


def test_the_three_bodies_ask_the_same(model: ServedModel) -> None:
    first = question_of(model, body())
    second = question_of(
        model, PredictRequest.model_validate({"inputs": COLUMNS, "context": {"symbol": "EURUSD", "timeframe": "H1"}})
    )
    assert first is not None
    assert second is not None
    assert (first.symbol, first.x_TF.tolist()) == (second.symbol, second.x_TF.tolist())
    assert question_of(model, body(features=None)) is None


def test_an_unknown_name_is_refused_with_the_nearest(model: ServedModel) -> None:
    errors = refused(model, body(features={**COLUMNS, "rsi_41": [1.0, 2.0, 3.0, 4.0]}))
    assert [error["code"] for error in errors] == ["unknown"]
    assert errors[0]["path"] == "body.features.rsi_41"
    assert "did you mean rsi_14?" in errors[0]["message"]
    errors = refused(model, body(features={**COLUMNS, "zzz": [1.0, 2.0, 3.0, 4.0]}))
    assert "the model reads signal, close, rsi_14" in errors[0]["message"]


def test_a_missing_name_is_refused_and_every_fault_is_named(model: ServedModel) -> None:
    errors = refused(model, body(features={"signal": [1.0] * 4, "clsoe": [1.0] * 4}))
    assert [(error["path"], error["code"]) for error in errors] == [
        ("body.features.clsoe", "unknown"),
        ("body.features.close", "missing"),
        ("body.features.rsi_14", "missing"),
    ]
    assert "did you mean close?" in errors[0]["message"]
    inputs = PredictRequest.model_validate({"inputs": {"signal": [1.0]}, "context": {"symbol": "EUR/USD"}})
    assert refused(model, inputs)[0]["path"] == "body.inputs.close"


def test_unequal_lengths_are_refused_with_the_lengths(model: ServedModel) -> None:
    errors = refused(model, body(features={**COLUMNS, "signal": [0.1, 0.2, 0.3]}))
    assert errors[0]["code"] == "lengths"
    assert "signal 3" in errors[0]["message"]
    assert "close 4" in errors[0]["message"]


def test_another_timeframe_is_refused(model: ServedModel) -> None:
    assert refused(model, body(timeframe="4h"))[0]["path"] == "body.timeframe"
    context = {"inputs": COLUMNS, "context": {"symbol": "EUR/USD", "timeframe": "1d"}}
    assert refused(model, PredictRequest.model_validate(context))[0]["path"] == "body.timeframe"
    assert refused(model, body(timeframe="4h", features=None))[0]["path"] == "body.timeframe"


def test_a_model_of_several_symbols_must_be_told_which(model: ServedModel) -> None:
    request = PredictRequest.model_validate({"inputs": COLUMNS})
    assert refused(model, request)[0]["path"] == "body.context"
    single = replace(model, card=model.card.model_copy(update={"symbols": ("GBP/USD",)}))
    assert symbol_of(single, request) == "GBP/USD"


def test_too_few_rows_and_levels_below_zero_are_refused_before_the_network(model: ServedModel) -> None:
    two = question_of(model, body(features={name: values[:2] for name, values in COLUMNS.items()}))
    assert two is not None
    with pytest.raises(DataValidationError, match="needs at least 3 rows"):
        prepare(model, two)
    negative = question_of(model, body(features={**COLUMNS, "close": [1.1, -1.1, 1.1, 1.1]}))
    assert negative is not None
    with pytest.raises(DataValidationError, match="close is a price level"):
        prepare(model, negative)


def test_without_as_of_the_time_of_receipt_is_assumed_and_the_clock_says_nothing(model: ServedModel) -> None:
    """The model expired years ago, and it may be the weekend: neither counts."""
    question = question_of(model, body(price=1.1))
    assert question is not None
    assert abs(question.as_of_ms - to_ms(utc_now())) < 60_000
    record = answer(model, question, LIVE)
    assert record.warnings == ("as_of_assumed", "short_window", "unconditional_interval")
    assert not {"stale_features", "model_expired", "market_closed"} & set(record.abstain_reasons)
    assert (record.sample, record.price) == ("live", 1.1)


def test_with_as_of_the_clock_counts(model: ServedModel) -> None:
    saturday = question_of(model, body(as_of=datetime(2020, 4, 18, 12, tzinfo=UTC)))
    assert saturday is not None
    record = answer(model, saturday, LIVE)
    assert record.abstain_reasons == ("market_closed",)
    assert "as_of_assumed" not in record.warnings
    late = question_of(model, body(as_of=datetime(2030, 4, 16, 12, tzinfo=UTC)))
    assert late is not None
    assert answer(model, late, LIVE).abstain_reasons == ("model_expired",)


def test_enough_closes_of_its_own_give_a_request_its_volatility(model: ServedModel, history: SymbolHistory) -> None:
    """As soon as they fill the kernel, and then to the bit as if the service had fetched them."""
    last = 900
    as_of = datetime.fromtimestamp(int(history.table.available_at_ms[last]) / 1000, tz=UTC)
    for num, is_known in ((EWMA_BARS + 1, True), (EWMA_BARS + 40, True), (EWMA_BARS, False), (4, False)):
        rows = slice(last + 1 - num, last + 1)
        columns = {name: history.table.columns[name][rows].tolist() for name in COLUMNS}
        question = question_of(model, body(features=columns, as_of=as_of))
        assert question is not None
        assert question.bar_volatility == (history.question(last).bar_volatility if is_known else None)
    columns["close"] = [0.0] * 4
    assert question_of(model, body(features=columns)).bar_volatility is None  # type: ignore[union-attr]


def test_the_service_fetches_the_newest_known_bars(
    bench: Workbench, model: ServedModel, history: SymbolHistory
) -> None:
    available_at_ms = int(history.table.available_at_ms[1000])
    moment = datetime.fromtimestamp(available_at_ms / 1000, tz=UTC)
    fetched = fetch_question(model, body(features=None, as_of=moment + timedelta(minutes=30)), bench.feature_store)
    wanted = history.question(1000)
    assert fetched.x_TF.tolist() == wanted.x_TF.tolist()
    assert (fetched.price, fetched.bar_volatility) == (wanted.price, wanted.bar_volatility)
    assert (fetched.as_of_ms, fetched.newest_available_at_ms) == (available_at_ms + 1_800_000, available_at_ms)
    assert fetched.clock
    priced = fetch_question(model, body(features=None, as_of=moment, price=1.5), bench.feature_store)
    assert priced.price == 1.5
    assert priced.bar_volatility == wanted.bar_volatility


def test_without_as_of_the_service_takes_the_last_known_bar(
    bench: Workbench, model: ServedModel, tables: dict[str, Any]
) -> None:
    question = fetch_question(model, body(symbol="GBP/USD", features=None), bench.feature_store)
    wanted = newest_question(model, tables["GBP/USD"], as_of_ms=None)
    assert question.as_of_ms == wanted.as_of_ms == tables["GBP/USD"].available_at_ms[-1]
    assert question.x_TF.tolist() == wanted.x_TF.tolist()


def test_nothing_is_fetched_for_a_symbol_the_model_does_not_know(bench: Workbench, model: ServedModel) -> None:
    question = fetch_question(model, body(symbol="USD/JPY", features=None), bench.feature_store)
    record = answer(model, question, LIVE)
    assert record.abstain_reasons[0] == "unknown_symbol"
    assert record.prediction is None
