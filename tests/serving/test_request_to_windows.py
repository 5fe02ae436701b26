"""From a body to a question: names, lengths, symbols, timeframes, and what time it is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.evaluation.leakage.perturbations import cut_after
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question, answer, prepare
from ml_workbench_service.serving.request_to_windows import fetch_question, question_of, symbol_of
from ml_workbench_service.testing.clocks import FixedClock

COLUMNS: dict[str, list[float]] = {
    "signal": [0.1, -0.2, 0.3, 0.5],
    "close": [1.1, 1.101, 1.102, 1.1],
    "rsi_14": [45.0, 46.0, 47.5, 50.0],
}
LIVE = Circumstances(role="champion")
NOON = datetime(2020, 4, 15, 12, 30, tzinfo=UTC)  # a Wednesday, in the middle of a bar
SATURDAY = datetime(2020, 4, 18, 12, tzinfo=UTC)


def asked(model: ServedModel, request: PredictRequest, *, at: datetime = NOON) -> Question:
    """The question of a request that brings its columns."""
    question = question_of(model, request, received_ms=to_ms(at))
    assert question is not None
    return question


def fetched(model: ServedModel, bench: Workbench, request: PredictRequest, *, at: datetime = NOON) -> Question:
    """The question whose columns are fetched, from a store that lives by the same clock."""
    store = LocalFeatureStore(FolderBars(bench.state_dir.parent / "bars"), clock=FixedClock(at))
    return fetch_question(model, request, store, received_ms=to_ms(at))


def body(**changes: Any) -> PredictRequest:
    return PredictRequest.model_validate({"symbol": "EUR/USD", "timeframe": "1h", "features": COLUMNS, **changes})


def refused(model: ServedModel, request: PredictRequest) -> list[dict[str, str]]:
    with pytest.raises(DataValidationError) as caught:
        asked(model, request)
    errors: list[dict[str, str]] = caught.value.details["errors"]
    assert all(set(error) == {"path", "message", "code"} for error in errors)
    return errors


def test_columns_are_matched_by_name_whatever_their_order(model: ServedModel) -> None:
    question = asked(model, body(features=dict(reversed(COLUMNS.items()))))
    assert question.x_TF.tolist() == np.column_stack(list(COLUMNS.values())).tolist()


def test_the_three_bodies_ask_the_same(model: ServedModel) -> None:
    first = asked(model, body())
    second = asked(
        model, PredictRequest.model_validate({"inputs": COLUMNS, "context": {"symbol": "EURUSD", "timeframe": "H1"}})
    )
    assert (first.symbol, first.x_TF.tolist()) == (second.symbol, second.x_TF.tolist())
    assert question_of(model, body(features=None), received_ms=to_ms(NOON)) is None


def test_an_unknown_name_is_refused_with_the_nearest(model: ServedModel) -> None:
    errors = refused(model, body(features={**COLUMNS, "rsi_41": [1.0, 2.0, 3.0, 4.0]}))
    assert [error["code"] for error in errors] == ["unknown"]
    assert errors[0]["path"] == "body.features.rsi_41"
    assert "did you mean rsi_14?" in errors[0]["message"]
    errors = refused(model, body(features={**COLUMNS, "zzz": [1.0, 2.0, 3.0, 4.0]}))
    assert "the model reads signal, close, rsi_14" in errors[0]["message"]


def test_what_is_said_of_many_names_is_bounded(model: ServedModel) -> None:
    names = tuple(f"feature_{number}" for number in range(200))
    wide = replace(model, card=model.card.model_copy(update={"features": names}))
    errors = refused(wide, body(features={f"zzz{number}": [1.0] for number in range(300)}))
    assert [error["code"] for error in errors] == ["unknown"] * 50 + ["missing"] * 50
    assert max(len(error["message"]) for error in errors) < 600
    assert "feature_19 and 180 more" in errors[0]["message"]


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
    two = asked(model, body(features={name: values[:2] for name, values in COLUMNS.items()}))
    with pytest.raises(DataValidationError, match="needs at least 3 rows"):
        prepare(model, two)
    negative = asked(model, body(features={**COLUMNS, "close": [1.1, -1.1, 1.1, 1.1]}))
    with pytest.raises(DataValidationError, match="close is a price level"):
        prepare(model, negative)


def test_without_as_of_sent_features_are_about_the_last_bar_that_was_over(model: ServedModel) -> None:
    """How old features and model are cannot be known; the model expired years ago."""
    late = NOON + timedelta(days=7 * 300)
    question = asked(model, body(price=1.1), at=late)
    assert question.as_of_ms == to_ms(late.replace(minute=0))
    record = answer(model, question, LIVE)
    assert record.warnings == ("as_of_assumed", "short_window", "unconditional_interval")
    assert not {"stale_features", "model_expired", "market_closed"} & set(record.abstain_reasons)
    assert (record.sample, record.price, record.timestamp) == ("live", 1.1, late)


def test_a_closed_market_is_known_without_as_of(model: ServedModel) -> None:
    assert answer(model, asked(model, body(), at=SATURDAY), LIVE).abstain_reasons == ("market_closed",)
    daily = of_days(model)
    assert answer(daily, asked(daily, body(timeframe="1d"), at=SATURDAY), LIVE).abstain_reasons == ("market_closed",)
    evening = datetime(2020, 4, 19, 21, 30, tzinfo=UTC)  # a Sunday; the last daily border lies before the opening
    question = asked(daily, body(timeframe="1d"), at=evening)
    assert (question.as_of_ms, question.clock_ms) == (to_ms(evening.replace(hour=0, minute=0)), to_ms(evening))
    assert "market_closed" not in answer(daily, question, LIVE).abstain_reasons


def of_days(model: ServedModel) -> ServedModel:
    """The model as if its bars were days."""
    return replace(model, card=model.card.model_copy(update={"timeframe": "1d"}))


@pytest.mark.parametrize(
    ("hours", "is_historical"), [(0, False), (2, False), (2.001, True), (24, True), (24 * 365 * 9, True)]
)
def test_an_as_of_more_than_two_bars_old_is_a_question_about_the_past(
    hours: float, is_historical: bool, model: ServedModel
) -> None:
    question = asked(model, body(as_of=NOON), at=NOON + timedelta(hours=hours))
    record = answer(model, question, LIVE)
    assert (question.is_historical, question.as_of_ms) == (is_historical, to_ms(NOON))
    assert (record.sample == "historical") == is_historical
    assert record.abstain_reasons == ()
    assert "as_of_assumed" not in record.warnings


def test_two_bars_are_counted_in_open_market_time(model: ServedModel) -> None:
    """Friday's last bar is asked about on Sunday evening: a question about the present."""
    friday, sunday = datetime(2020, 4, 17, 21, tzinfo=UTC), datetime(2020, 4, 19, 21, 1, tzinfo=UTC)
    assert not asked(model, body(as_of=friday), at=sunday).is_historical
    assert asked(model, body(as_of=friday), at=sunday + timedelta(hours=2)).is_historical


def test_the_clock_of_a_question_about_the_past_is_its_as_of(model: ServedModel) -> None:
    saturday = asked(model, body(as_of=SATURDAY), at=SATURDAY + timedelta(days=300))
    assert answer(model, saturday, LIVE).abstain_reasons == ("market_closed",)
    expired = asked(model, body(as_of=NOON + timedelta(days=3500)), at=NOON + timedelta(days=3600))
    assert answer(model, expired, LIVE).abstain_reasons == ("model_expired",)
    recent = asked(model, body(as_of=NOON + timedelta(days=3500)), at=NOON + timedelta(days=3500, minutes=5))
    assert answer(model, recent, LIVE).abstain_reasons == ("model_expired",)


def test_an_as_of_after_receipt_is_refused_with_the_services_time(model: ServedModel, bench: Workbench) -> None:
    later = NOON + timedelta(milliseconds=1)
    for ask in (
        lambda: asked(model, body(as_of=later)),
        lambda: fetched(model, bench, body(features=None, as_of=later)),
    ):
        with pytest.raises(DataValidationError, match="2020-04-15T12:30:00Z") as caught:
            ask()
        assert caught.value.details["errors"][0]["path"] == "body.as_of"


def test_enough_closes_of_its_own_give_a_request_its_volatility(model: ServedModel, history: SymbolHistory) -> None:
    """As soon as they fill the kernel, and then to the bit as if the service had fetched them."""
    last = 900
    as_of = datetime.fromtimestamp(int(history.table.available_at_ms[last]) / 1000, tz=UTC)
    for num, is_known in ((EWMA_BARS + 1, True), (EWMA_BARS + 40, True), (EWMA_BARS, False), (4, False)):
        rows = slice(last + 1 - num, last + 1)
        columns = {name: history.table.columns[name][rows].tolist() for name in COLUMNS}
        question = asked(model, body(features=columns, as_of=as_of), at=as_of)
        assert question.bar_volatility == (history.question(last).bar_volatility if is_known else None)
    columns["close"] = [0.0] * 4
    assert asked(model, body(features=columns)).bar_volatility is None


def test_the_service_fetches_the_newest_known_bars(
    bench: Workbench, model: ServedModel, history: SymbolHistory
) -> None:
    available_at_ms = int(history.table.available_at_ms[1000])
    moment = datetime.fromtimestamp(available_at_ms / 1000, tz=UTC)
    question = fetched(
        model, bench, body(features=None, as_of=moment + timedelta(minutes=30)), at=moment + timedelta(90)
    )
    wanted = history.question(1000)
    assert question.x_TF.tolist() == wanted.x_TF.tolist()
    assert (question.price, question.bar_volatility) == (wanted.price, wanted.bar_volatility)
    assert (question.as_of_ms, question.newest_available_at_ms) == (available_at_ms + 1_800_000, available_at_ms)
    assert question.is_historical
    priced = fetched(model, bench, body(features=None, as_of=moment, price=1.5), at=moment)
    assert priced.price == 1.5
    assert priced.bar_volatility == wanted.bar_volatility


def test_without_as_of_the_service_takes_the_newest_bar_known_at_receipt(
    bench: Workbench, model: ServedModel, history: SymbolHistory
) -> None:
    row = int(np.searchsorted(history.table.available_at_ms, to_ms(NOON), side="right")) - 1
    question = fetched(model, bench, body(features=None))
    assert question.as_of_ms == history.table.available_at_ms[row] == to_ms(NOON.replace(minute=0))
    assert question.x_TF.tolist() == history.question(row).x_TF.tolist()
    assert "sample_clock" not in question.warnings
    record = answer(model, question, LIVE)
    assert record.timestamp == NOON
    assert record.sample != "historical"


def test_a_feed_that_stopped_abstains(bench: Workbench, model: ServedModel) -> None:
    """Two bars of open market after its last one was known; and years later the model is too old as well."""
    end, said = NOON.replace(minute=0), {}
    for hours in (0, 2, 2.01, 24 * 7 * 460):
        at = end + timedelta(hours=hours)
        store = LocalFeatureStore(FolderBars(bench.state_dir.parent / "bars"), clock=FixedClock(at))
        stopped = store.altered(lambda bars: cut_after(bars, to_ms(end)))
        question = fetch_question(model, body(features=None), stopped, received_ms=to_ms(at))
        assert (question.as_of_ms, question.is_historical) == (to_ms(end), False)
        said[hours] = answer(model, question, LIVE).abstain_reasons
    assert said == {0: (), 2: (), 2.01: ("stale_features",), 24 * 7 * 460: ("stale_features", "model_expired")}


def test_a_daily_bar_known_after_fridays_close_is_answered_while_it_is_new(
    model: ServedModel, history: SymbolHistory
) -> None:
    """Friday's bar is over on Saturday 00:00Z; who asks within a tenth of a bar asks for Monday."""
    saturday_ms = to_ms(SATURDAY.replace(hour=0))
    bar = replace(history.question(1000), as_of_ms=saturday_ms, newest_available_at_ms=saturday_ms)
    for late_ms, reasons in ((0, ()), (8_640_000, ()), (8_640_001, ("market_closed",))):
        live = replace(bar, received_ms=saturday_ms + late_ms, clock_ms=saturday_ms + late_ms)
        assert answer(of_days(model), live, LIVE).abstain_reasons == reasons


def test_nothing_is_fetched_for_a_symbol_the_model_does_not_know(bench: Workbench, model: ServedModel) -> None:
    question = fetched(model, bench, body(symbol="USD/JPY", features=None))
    record = answer(model, question, LIVE)
    assert record.abstain_reasons == ("unknown_symbol",)
    assert record.prediction is None
