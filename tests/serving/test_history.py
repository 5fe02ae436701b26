"""Questions out of fetched bars: a replay asks exactly what a live request would have asked."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.targets import EWMA_BARS, ewma_volatility
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import (
    SymbolHistory,
    bars_needed,
    columns_needed,
    newest_question,
    read_history,
    replay_questions,
)
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer

Tables = Mapping[str, FeatureTable]


def without_bars(table: FeatureTable, rows: list[int]) -> FeatureTable:
    return replace(
        table,
        opened_ms=np.delete(table.opened_ms, rows),
        available_at_ms=np.delete(table.available_at_ms, rows),
        columns={name: np.delete(values, rows) for name, values in table.columns.items()},
    )


def with_missing(table: FeatureTable, name: str, row: int) -> FeatureTable:
    values = table.columns[name].copy()
    values[row] = np.nan
    return replace(table, columns={**table.columns, name: values})


def essence(record: PredictionRecord) -> str:
    return json.dumps(record.model_dump(mode="json", exclude={"prediction_id", "timestamp", "source"}))


def asked(model: ServedModel, table: FeatureTable, from_row: int) -> list[bool]:
    """For each bar from a row on, whether the replay has a question."""
    questions = replay_questions(read_history(model, table), from_ms=int(table.opened_ms[from_row]), job_id="j")
    return [question is not None for _, question in questions]


@pytest.mark.parametrize("symbol", ["EUR/USD", "GBP/USD"])
def test_a_replay_tells_what_a_live_request_would_have_been_told(
    symbol: str, bench: Workbench, model: ServedModel, tables: Tables
) -> None:
    """The replay sees the whole history at once, the live request only the bars it fetched then."""
    history = read_history(model, tables[symbol])
    first = 400
    replayed = dict(replay_questions(history, from_ms=int(history.table.opened_ms[first]), job_id="job"))
    num_ok = 0
    for row in range(first, len(history.table), 37):
        available_at_ms = int(history.table.available_at_ms[row])
        fetched = bench.feature_store.fetch(
            [symbol], "1h", start_ms=None, end_ms=None, features=columns_needed(model), as_of_ms=available_at_ms,
            last=bars_needed(model),
        )[0]  # fmt: skip
        assert len(fetched) == bars_needed(model) < row
        live = answer(model, newest_question(model, fetched, as_of_ms=None), Circumstances(role="champion"))
        question = replayed[available_at_ms]
        assert question is not None
        past = answer(model, question, Circumstances(role="champion", source="replay:job"))
        assert essence(past) == essence(live)
        num_ok += past.status == "ok"
    assert num_ok > 40


def test_a_question_holds_the_bars_window_price_and_volatility(model: ServedModel, history: SymbolHistory) -> None:
    question = history.question(500)
    table = history.table
    assert question.x_TF.shape == (10, 3)
    for column, name in enumerate(("signal", "close", "rsi_14")):
        assert question.x_TF[:, column].tolist() == table.columns[name][491:501].tolist()
    assert question.price == table.columns["close"][500]
    assert question.as_of_ms == question.newest_available_at_ms == table.opened_ms[500] + HOUR_MS
    profile, bars = model.profiles["EUR/USD"], slice(501 - EWMA_BARS, 501)
    returns = np.diff(np.log(table.columns["close"][500 - EWMA_BARS : 501])) / profile.factor(table.opened_ms[bars])
    weights = 0.94 ** np.arange(EWMA_BARS)
    deviation = np.sqrt(np.sum(weights * returns[::-1] ** 2) / weights.sum())
    next_factor = profile.factor(table.opened_ms[501:502])[0]
    assert question.bar_volatility == pytest.approx(deviation * next_factor, rel=1e-8)
    plain = read_history(replace(model, profiles={}), table).question(500).bar_volatility
    assert plain == ewma_volatility(np.asarray(table.columns["close"]))[500], "a version older than profiles"


def test_the_first_bars_have_no_volatility(history: SymbolHistory) -> None:
    assert history.question(20).bar_volatility is None
    assert history.question(EWMA_BARS).bar_volatility is not None


def test_enough_bars_are_fetched_for_the_window_and_the_kernel(model: ServedModel) -> None:
    assert bars_needed(model) > EWMA_BARS
    long = replace(model, card=model.card.model_copy(update={"lookback": 500}))
    assert bars_needed(long) > 500
    assert columns_needed(model) == ["signal", "close", "rsi_14", "open"]
    no_close = replace(model, derivation=Derivation(("rsi_14",)))
    assert columns_needed(no_close) == ["rsi_14", "open", "close"]
    lagged = replace(model, derivation=Derivation(("far",), {"far": "lag(sma_20, 300)"}))
    assert bars_needed(lagged) >= model.card.lookback + 300
    assert columns_needed(lagged) == ["sma_20", "open", "close"]


def test_a_replay_asks_at_every_bar_from_its_start_once(model: ServedModel, history: SymbolHistory) -> None:
    start_ms = int(history.table.opened_ms[600])
    for from_ms in (start_ms, start_ms - 1):
        moments = [available_at_ms for available_at_ms, _ in replay_questions(history, from_ms=from_ms, job_id="j")]
        assert moments == history.table.available_at_ms[600:].tolist()
    assert next(replay_questions(history, from_ms=start_ms + 1, job_id="j"))[0] == history.table.available_at_ms[601]


def test_ids_follow_from_job_symbol_and_bar(model: ServedModel, tables: Tables) -> None:
    def ids(symbol: str, job_id: str) -> list[str]:
        history = read_history(model, tables[symbol])
        from_ms = int(history.table.opened_ms[-50])
        return [each.prediction_id for _, each in replay_questions(history, from_ms=from_ms, job_id=job_id) if each]

    first = ids("EUR/USD", "one")
    assert first == ids("EUR/USD", "one")
    assert len({*first, *ids("EUR/USD", "two"), *ids("GBP/USD", "one")}) == 150
    assert all(len(each) == 32 for each in first)


def test_no_window_of_a_replay_spans_a_missing_bar(model: ServedModel, tables: Tables) -> None:
    table = tables["EUR/USD"]
    gap = 500 + int(np.argmax(np.diff(table.opened_ms[500:]) > HOUR_MS)) + 30  # within a week
    broken = without_bars(table, [gap])
    assert asked(model, broken, gap - 5)[:20] == [True] * 5 + [False] * 9 + [True] * 6
    weekend = int(np.flatnonzero(np.diff(table.opened_ms[gap:]) > HOUR_MS)[0]) + gap
    assert all(asked(model, table, weekend - 3)[:12])


@pytest.mark.parametrize("name", ["signal", "close"])
def test_no_window_of_a_replay_holds_a_missing_value(name: str, model: ServedModel, tables: Tables) -> None:
    broken = with_missing(tables["EUR/USD"], name, 800)
    assert asked(model, broken, 795)[:20] == [True] * 5 + [False] * 10 + [True] * 5


def test_a_live_request_after_a_gap_gets_the_shorter_window(model: ServedModel, tables: Tables) -> None:
    table = tables["EUR/USD"]
    rows = np.arange(100, 300)
    cut = replace(
        table, opened_ms=table.opened_ms[rows], available_at_ms=table.available_at_ms[rows],
        columns={name: values[rows] for name, values in table.columns.items()},
    )  # fmt: skip
    question = newest_question(model, with_missing(cut, "signal", 195), as_of_ms=None)
    assert len(question.x_TF) == 4
    assert np.isfinite(question.x_TF).all()
    assert answer(model, question, Circumstances(role="champion")).warnings == ("short_window",)
    with pytest.raises(DataValidationError, match="missing bar or feature within the last 3 bars") as caught:
        newest_question(model, with_missing(cut, "signal", 198), as_of_ms=None)
    assert caught.value.details["errors"][0]["code"] == "incomplete_window"


def test_asked_for_a_later_moment_the_question_keeps_it(model: ServedModel, tables: Tables) -> None:
    table = tables["EUR/USD"]
    last_ms = int(table.available_at_ms[-1])
    question = newest_question(model, table, as_of_ms=last_ms + 1234)
    assert (question.as_of_ms, question.newest_available_at_ms) == (last_ms + 1234, last_ms)


def test_a_tables_warnings_travel_with_its_questions(model: ServedModel, tables: Tables) -> None:
    warned = replace(tables["EUR/USD"], warnings=("synthetic_range",))
    record = answer(model, newest_question(model, warned, as_of_ms=None), Circumstances(role="champion"))
    assert record.warnings == ("synthetic_range",)


def test_the_bars_own_spread_decides_what_is_worth_acting_on(
    model: ServedModel, tables: dict[str, FeatureTable]
) -> None:
    table = tables["EUR/USD"]
    last = len(table) - 1
    plain = read_history(model, table).question(last)
    assert plain.spread is None
    wide = replace(table, columns={**table.columns, "spread": np.full(len(table), 0.05)})
    question = read_history(model, wide).question(last)
    assert question.spread == 0.05
    record = answer(model, question, Circumstances(role="candidate"))
    assert record.direction == "hold"
    assert record.metadata.costs is not None
    assert record.metadata.costs.spread_pips == pytest.approx(500)
    free = replace(table, columns={**table.columns, "spread": np.zeros(len(table))})
    cheap = answer(model, read_history(model, free).question(last), Circumstances(role="candidate"))
    assert model.dead_zone("EUR/USD", question.price, 0.0) < model.dead_zone("EUR/USD", question.price)
    assert cheap.prediction == record.prediction
