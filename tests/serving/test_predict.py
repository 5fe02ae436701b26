"""From a question to a record: scale, run, say how sure, and abstain where there is a reason."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.serving.abstain_by_clock import valid_until_ms
from ml_workbench_service.serving.history import SymbolHistory, read_history
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many

pytestmark = pytest.mark.processor

LIVE = Circumstances(role="champion", correlation_id="c-1", scaling_factor=0.5, deployment_id="d-1")
TUESDAY_MS = int(np.datetime64("2020-04-14T10:00", "ms").astype(np.int64))


def row_at(history: SymbolHistory, moment_ms: int) -> int:
    """The bar that became known at that moment."""
    return int(np.flatnonzero(history.table.available_at_ms == moment_ms)[0])


@pytest.fixture
def question(history: SymbolHistory) -> Question:
    """An ordinary one, on a Tuesday morning."""
    return history.question(row_at(history, TUESDAY_MS), prediction_id="p-1")


def forecast_decoder(model: ServedModel) -> ForecastDecoder:
    """The decoder, which is a forecast's."""
    assert isinstance(model.decoder, ForecastDecoder)
    return model.decoder


def label_scale(model: ServedModel) -> float:
    """The unit of EUR/USD's price changes."""
    (scale,) = model.scaler.symbols["EUR/USD"].label_scale_K
    return float(scale)


def essence(record: PredictionRecord) -> str:
    """Everything but the time of answering, as JSON: equal texts are equal bits."""
    return json.dumps(record.model_dump(mode="json", exclude={"timestamp"}), allow_nan=False)


def calm(model: ServedModel, history: SymbolHistory, predicate: Callable[[PredictionRecord], bool]) -> PredictionRecord:
    """The first answered record of the history that is of a kind."""
    for row in range(200, len(history.table)):
        record = answer(model, history.question(row), LIVE)
        if record.status == "ok" and predicate(record):
            return record
    raise AssertionError("no such record")


def test_an_ordinary_question_has_a_whole_record(model: ServedModel, question: Question) -> None:
    record = answer(model, question, LIVE)
    assert PredictionRecord.model_validate(record.model_dump()) == record
    assert (record.status, record.abstain_reasons, record.warnings) == ("ok", (), ())
    assert (record.symbol, record.timeframe, record.target) == ("EUR/USD", "1h", "price_change_1h")
    assert record.outputs == {"price_change_1h": record.prediction}
    assert record.price == question.price
    assert (record.role, record.scaling_factor, record.prediction_id) == ("champion", 0.5, "p-1")
    assert (record.metadata.correlation_id, record.metadata.deployment_id) == ("c-1", "d-1")
    assert record.metadata.volatility == question.bar_volatility
    assert record.metadata.data_source == "file"
    assert to_ms(record.as_of) == TUESDAY_MS
    assert to_ms(record.valid_until) == TUESDAY_MS + HOUR_MS
    assert record.interval is not None
    assert record.interval.lower < record.prediction < record.interval.upper
    assert record.novelty is not None
    assert set(record.novelty.top_features) == {"signal", "close", "rsi_14"}


def test_the_forecast_is_the_networks_answer_in_the_symbols_unit(model: ServedModel, question: Question) -> None:
    rows = model.scaler.rows("EUR/USD", question.x_TF)
    wanted = float(model.float32.predict(rows[None]).outputs_NK[0, 0]) * label_scale(model)
    assert answer(model, question, LIVE).prediction == wanted


def test_many_questions_in_one_run_are_answered_to_the_bit_like_each_alone(
    model: ServedModel, history: SymbolHistory, tables: dict[str, object]
) -> None:
    other = read_history(model, tables["GBP/USD"])  # type: ignore[arg-type]
    questions = []
    for number, row in enumerate(range(300, 700, 7)):
        whole = (history if number % 2 else other).question(row)
        questions.append(replace(whole, x_TF=whole.x_TF[-(3 + number % 9) :]))
    questions.insert(11, replace(questions[0], symbol="USD/JPY", prediction_id="unknown"))
    together = answer_many(model, [prepare(model, each) for each in questions], LIVE)
    assert [essence(record) for record in together] == [essence(answer(model, each, LIVE)) for each in questions]
    assert together[11].abstain_reasons == ("unknown_symbol",)
    assert len({record.prediction for record in together}) > 40


def test_no_questions_have_no_records(model: ServedModel) -> None:
    assert answer_many(model, [], LIVE) == []


def test_rows_before_the_lookback_change_nothing(model: ServedModel, question: Question) -> None:
    longer = replace(question, x_TF=np.concatenate([question.x_TF[::-1] * 1.3, question.x_TF]))
    assert essence(answer(model, longer, LIVE)) == essence(answer(model, question, LIVE))


def test_a_short_window_is_answered_with_a_warning(model: ServedModel, question: Question) -> None:
    for length in (3, 9):
        record = answer(model, replace(question, x_TF=question.x_TF[-length:]), LIVE)
        assert record.warnings == ("short_window",)
        assert record.prediction is not None


def test_fewer_rows_than_the_shortest_window_are_refused_with_the_number_needed(
    model: ServedModel, question: Question
) -> None:
    with pytest.raises(
        DataValidationError, match="small needs at least 3 rows of each feature \\(best 10\\)"
    ) as caught:
        answer(model, replace(question, x_TF=question.x_TF[-2:]), LIVE)
    assert caught.value.details["min_window"] == 3
    assert caught.value.details["errors"][0]["code"] == "too_few_rows"


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_price_level_that_is_not_positive_is_refused(value: float, model: ServedModel, question: Question) -> None:
    x_TF = question.x_TF.copy()
    x_TF[4, 1] = value
    with pytest.raises(DataValidationError, match="close is a price level and must be above zero"):
        answer(model, replace(question, x_TF=x_TF), LIVE)


def abstained(record: PredictionRecord) -> tuple[str, ...]:
    """The reasons, after a look at what an abstention must be."""
    assert record.status == "abstain"
    assert (record.prediction, record.confidence, record.interval) == (None, None, None)
    assert (record.direction, record.outputs) == ("hold", {"price_change_1h": None})
    assert PredictionRecord.model_validate(record.model_dump()) == record
    return record.abstain_reasons


def test_a_last_row_scaled_by_fifty_is_novel(model: ServedModel, question: Question) -> None:
    x_TF = question.x_TF.copy()
    x_TF[-1] *= 50
    record = answer(model, replace(question, x_TF=x_TF), LIVE)
    assert abstained(record) == ("novel_input",)
    assert record.novelty is not None
    assert record.novelty.score > 1.0
    assert answer(model, question, LIVE).novelty.score < 1.0  # type: ignore[union-attr]


def test_novelty_begins_where_its_score_passes_one(model: ServedModel, question: Question) -> None:
    scores = []
    for step in range(60):
        x_TF = question.x_TF.copy()
        x_TF[-1, 0] += 0.1 * step
        record = answer(model, replace(question, x_TF=x_TF), LIVE)
        assert record.novelty is not None
        scores.append(record.novelty.score)
        assert (record.status == "abstain") == (scores[-1] > 1.0)
    assert any(0.9 < score <= 1.0 for score in scores)
    assert any(1.0 < score < 1.1 for score in scores)


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("absurd", [1e15, 1e300])
def test_an_absurd_number_is_novel_and_nothing_else(
    column: int, absurd: float, model: ServedModel, question: Question
) -> None:
    x_TF = question.x_TF.copy()
    x_TF[-1, column] = absurd
    record = answer(model, replace(question, x_TF=x_TF), LIVE)
    assert abstained(record) == ("novel_input",)
    assert record.novelty is not None
    assert record.novelty.top_features[0] == ("signal", "close", "rsi_14")[column]
    essence(record)  # every number is finite


def test_a_drifted_price_level_is_no_novelty(model: ServedModel, question: Question) -> None:
    x_TF = question.x_TF.copy()
    x_TF[:, 1] *= 1.6
    record = answer(model, replace(question, x_TF=x_TF), LIVE)
    assert record.status == "ok"
    assert record.prediction == pytest.approx(answer(model, question, LIVE).prediction, rel=1e-3)


def test_features_more_than_two_bars_old_are_stale(model: ServedModel, question: Question) -> None:
    fresh = replace(question, as_of_ms=TUESDAY_MS + 2 * HOUR_MS)
    assert answer(model, fresh, LIVE).status == "ok"
    assert abstained(answer(model, replace(fresh, as_of_ms=fresh.as_of_ms + 1), LIVE)) == ("stale_features",)
    assert answer(model, replace(fresh, as_of_ms=fresh.as_of_ms + 1, clock=False), LIVE).status == "ok"


def test_fixings_do_not_get_stale_over_easter(model: ServedModel, question: Question) -> None:
    """No fixing on Good Friday and Easter Monday: on Tuesday noon Thursday's is still the newest there can be."""
    daily = replace(model, card=model.card.model_copy(update={"calendar": "fixings", "timeframe": "1d"}))
    thursday = int(np.datetime64("2020-04-09T14:00", "ms").astype(np.int64))
    on_tuesday = replace(question, as_of_ms=thursday + 5 * DAY_MS - HOUR_MS, newest_available_at_ms=thursday)
    assert answer(daily, on_tuesday, LIVE).status == "ok"
    late = replace(question, as_of_ms=thursday + 7 * DAY_MS, newest_available_at_ms=thursday)
    assert abstained(answer(daily, late, LIVE)) == ("stale_features",)


def test_fridays_last_bar_is_fresh_on_sunday_evening(model: ServedModel, history: SymbolHistory) -> None:
    friday_close, sunday_open = TUESDAY_MS + 3 * DAY_MS + 11 * HOUR_MS, TUESDAY_MS + 5 * DAY_MS + 11 * HOUR_MS
    assert [bool(calendar.is_open(each)) for each in (friday_close - 1, friday_close, sunday_open)] == [1, 0, 1]
    last = history.question(row_at(history, friday_close))
    assert answer(model, last, LIVE).status == "ok", "it becomes known as the market closes, and is filled on Sunday"
    assert abstained(answer(model, replace(last, as_of_ms=friday_close + 1), LIVE)) == ("market_closed",)
    sent = replace(last, bar=None)  # features of a caller
    assert answer(model, sent, LIVE).status == "ok"
    assert abstained(answer(model, replace(sent, as_of_ms=friday_close + HOUR_MS), LIVE)) == ("market_closed",)
    assert answer(model, replace(last, as_of_ms=sunday_open), LIVE).status == "ok"
    assert abstained(answer(model, replace(last, as_of_ms=sunday_open - 1), LIVE)) == ("market_closed",)
    assert answer(model, replace(last, clock=False), LIVE).status == "ok"


def test_a_year_after_its_last_bar_a_model_has_expired(model: ServedModel, question: Question) -> None:
    expiry_ms = to_ms(model.card.expires_at)
    assert expiry_ms == int(model.last_available_at_ms) + 365 * DAY_MS
    late_ms, early_ms = (int(calendar.advance(expiry_ms, hours * HOUR_MS)) for hours in (30, -30))
    assert calendar.is_open(np.array([late_ms, early_ms])).all()
    late = replace(question, as_of_ms=late_ms, newest_available_at_ms=late_ms)
    assert abstained(answer(model, late, LIVE)) == ("model_expired",)
    assert answer(model, replace(late, clock=False), LIVE).status == "ok"
    assert answer(model, replace(late, as_of_ms=early_ms, newest_available_at_ms=early_ms), LIVE).status == "ok"


def test_an_interval_far_wider_than_usual_is_a_reason(model: ServedModel, question: Question) -> None:
    assert question.bar_volatility is not None
    assert abstained(answer(model, replace(question, bar_volatility=20 * question.bar_volatility), LIVE)) == (
        "interval_too_wide",
    )


def test_an_unknown_symbol_is_abstained_from(model: ServedModel, question: Question) -> None:
    record = answer(model, replace(question, symbol="USD/JPY"), LIVE)
    assert abstained(record) == ("unknown_symbol",)
    assert record.novelty is None


def test_several_reasons_stand_together(model: ServedModel, question: Question) -> None:
    x_TF = question.x_TF.copy()
    x_TF[-1] *= 50
    saturday = TUESDAY_MS + 4 * DAY_MS
    record = answer(model, replace(question, x_TF=x_TF, as_of_ms=saturday), LIVE)
    assert abstained(record) == ("novel_input", "stale_features", "market_closed")


def test_without_a_volatility_the_interval_is_the_unconditional_one(model: ServedModel, question: Question) -> None:
    record = answer(model, replace(question, bar_volatility=None), LIVE)
    assert record.warnings == ("unconditional_interval",)
    assert record.interval is not None
    half = (record.interval.upper - record.interval.lower) / 2
    assert half == pytest.approx(forecast_decoder(model).unconditional.radius * label_scale(model))
    assert record.metadata.volatility == label_scale(model)


def test_the_interval_grows_with_the_volatility(model: ServedModel, question: Question) -> None:
    assert question.bar_volatility is not None
    widths = []
    for factor in (1.0, 1.5):
        record = answer(model, replace(question, bar_volatility=factor * question.bar_volatility), LIVE)
        assert record.interval is not None
        widths.append(record.interval.upper - record.interval.lower)
    assert widths[1] == pytest.approx(1.5 * widths[0])


def test_a_forecast_within_the_round_trip_cost_is_hold(model: ServedModel, history: SymbolHistory) -> None:
    """Spread 0.2 pips, commission and slippage 0.45 basis points a side, twice."""
    price = 1.1
    zone = model.dead_zone("EUR/USD", price)
    assert zone == pytest.approx(0.2e-4 / price + 2 * 0.45e-4)
    for kind in ("buy", "sell", "hold"):
        record = calm(model, history, lambda each, kind=kind: each.direction == kind)  # type: ignore[misc]
        assert record.prediction is not None
        edge = model.dead_zone("EUR/USD", record.price, as_of_ms=to_ms(record.as_of))
        assert {
            "buy": record.prediction > edge,
            "sell": record.prediction < -edge,
            "hold": abs(record.prediction) <= edge,
        }[kind]
    assert model.dead_zone("EUR/USD", None) == model.dead_zone("EUR/USD", model.reference_price["EUR/USD"])


def test_dearer_trading_turns_a_direction_into_hold(model: ServedModel, history: SymbolHistory) -> None:
    record = calm(model, history, lambda each: each.direction == "buy")
    question = history.question(row_at(history, to_ms(record.as_of)))
    costs = {**model.costs, "EUR/USD": model.costs["EUR/USD"].model_copy(update={"spread_pips": 100.0})}
    dear = answer(replace(model, costs=costs), question, LIVE)
    assert (dear.direction, dear.prediction) == ("hold", record.prediction)


def test_confidence_counts_the_residuals_that_make_the_direction_true(
    model: ServedModel, history: SymbolHistory
) -> None:
    conditional = forecast_decoder(model).conditional
    assert conditional is not None
    grid = conditional.grid_Q
    for kind in ("buy", "sell", "hold"):
        record = calm(model, history, lambda each, kind=kind: each.direction == kind)  # type: ignore[misc]
        outcomes = record.prediction + grid * record.metadata.volatility
        edge = model.dead_zone("EUR/USD", record.price, as_of_ms=to_ms(record.as_of))
        true = {"buy": outcomes > edge, "sell": outcomes < -edge, "hold": np.abs(outcomes) <= edge}[kind]
        assert record.confidence == pytest.approx(np.mean(true), abs=2 / len(grid))


def test_a_records_sample_is_the_part_its_moment_falls_into(model: ServedModel, history: SymbolHistory) -> None:
    found = {}
    for row in range(200, len(history.table), 3):
        record = answer(model, history.question(row), LIVE)
        found.setdefault(record.sample, []).append(to_ms(record.as_of))
    borders = {name: to_ms(moment) for name, moment in model.card.split.borders.items()}
    assert list(found) == ["train", "stop", "calibrate", "test"]
    for earlier, later in (("train", "stop"), ("stop", "calibrate"), ("calibrate", "test")):
        assert max(found[earlier]) <= borders[later] < min(found[later])
    newest = history.question(len(history.table) - 1)
    assert answer(model, newest, LIVE).sample == "test"
    assert answer(model, replace(newest, as_of_ms=newest.as_of_ms + 1), LIVE).sample == "live"


def test_an_answer_holds_for_the_horizon_in_market_time(model: ServedModel) -> None:
    friday = TUESDAY_MS + 3 * DAY_MS + 10 * HOUR_MS  # 16:00 New York
    assert iso_of_ms(valid_until_ms(model, friday)) == "2020-04-17T21:00:00Z"
    assert iso_of_ms(valid_until_ms(model, friday + HOUR_MS // 2)) == "2020-04-19T21:30:00Z"
