"""A run's answers: each is the single one to the bit, and whatever is written of it is what its record says."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml_workbench_service.contracts.deployment import MONITORED_SHARE, is_monitored
from ml_workbench_service.contracts.entries import SEPARATOR, row
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.contracts.runs.columns import Coded, Words, moments_ms
from ml_workbench_service.contracts.runs.records import RecordRun
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.integrations.prediction_ledger.rows import entries_of, entry_of
from ml_workbench_service.integrations.prediction_queue.writer import PublishingRules, arguments_of
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.sizing import Sizing
from ml_workbench_service.serving.history import SymbolHistory, read_history
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question, answer, answered, prepare
from ml_workbench_service.serving.record_columns import record_columns
from ml_workbench_service.serving.runs import network
from ml_workbench_service.serving.runs.answering import answer_run
from ml_workbench_service.serving.runs.questions import QuestionRun

pytestmark = pytest.mark.processor

LIVE = Circumstances(role="champion", correlation_id="c-1", scaling_factor=0.5, deployment_id="d-1")


@pytest.fixture(scope="session", params=[None, PositionRule(rule="proportional", band=0.1)], ids=["plain", "sized"])
def model(request: pytest.FixtureRequest, model: ServedModel) -> ServedModel:
    """As it was trained, and with a declared position rule."""
    if request.param is None:
        return model
    assert isinstance(model.decoder, ForecastDecoder)
    sizing = Sizing.of(request.param, horizon=model.card.horizon, timeframe=model.card.timeframe)
    return replace(model, decoder=replace(model.decoder, sizing=sizing))


@pytest.fixture(scope="module")
def asked(model: ServedModel, history: SymbolHistory, tables: dict[str, FeatureTable]) -> list[Question]:
    """Of every kind that a question may be, and some that abstain, in an order that mixes them."""
    other, chance = read_history(model, tables["GBP/USD"]), np.random.default_rng(5)
    found = []
    for number, bar in enumerate(chance.integers(200, 2300, 150).tolist()):
        each = (history if number % 3 else other).question(bar, prediction_id=f"{number:032x}")
        each = replace(each, received_ms=each.as_of_ms + number % 2, x_TF=each.x_TF[-(3 + number % 12) :])
        changes: list[dict[str, object]] = [
            {},
            {"bar": None, "bar_volatility": None, "has_known_age": False, "warnings": ("as_of_assumed",)},
            {"price": None, "spread": 0.00031, "clock": False},
            {"clock_ms": each.as_of_ms + 30_000, "bar": None},
            {"as_of_ms": each.as_of_ms + 3 * DAY_MS + 7 * HOUR_MS},
            {"x_TF": each.x_TF * np.array([40.0, 1.0, 1.0])},
            {"bar_volatility": 30 * (each.bar_volatility or 1.0)},
            {"symbol": "USD/JPY"},
            {"is_historical": True, "position": 0.5, "price": 1e-3},
        ]
        found.append(replace(each, **changes[number % len(changes)]))  # type: ignore[arg-type]
    return found


def run_of(model: ServedModel, asked: Sequence[Question]) -> RecordRun:
    return answer_run(model, QuestionRun.of([prepare(model, each) for each in asked]), LIVE)


@pytest.fixture(scope="module")
def run(model: ServedModel, asked: list[Question]) -> RecordRun:
    return run_of(model, asked)


def test_a_row_is_the_single_answer_whoever_is_beside_it(model: ServedModel, asked: list[Question]) -> None:
    alone = [answer(model, each, LIVE).model_dump_json() for each in asked]
    said = [json.loads(each) for each in alone]
    assert {reason for each in said for reason in each["abstain_reasons"]} == {
        "unknown_symbol", "novel_input", "stale_features", "market_closed", "interval_too_wide",
    }  # fmt: skip
    assert len({each["direction"] for each in said}) == 3
    chance = np.random.default_rng(11)
    for size in (1, 2, 3, 5, 8, 17, 64, 65, 150):
        drawn = chance.permutation(len(asked))[:size].tolist()
        found = run_of(model, [asked[number] for number in drawn])
        assert [each.model_dump_json() for each in found.records()] == [alone[number] for number in drawn]
        assert [found.record(place).model_dump_json() for place in range(size)] == [alone[number] for number in drawn]


def test_windows_at_once_change_nothing(
    model: ServedModel, asked: list[Question], run: RecordRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "WINDOWS_AT_ONCE", 7)
    assert run_of(model, asked).bodies == run.bodies


def test_symbols_that_are_all_unknown_are_abstained_from(model: ServedModel, asked: list[Question]) -> None:
    strangers = [replace(each, symbol="USD/JPY") for each in asked[:4]]
    wanted = [answer(model, each, LIVE).model_dump_json() for each in strangers]
    assert [each.decode() for each in run_of(model, strangers).bodies] == wanted


def test_it_is_written_as_its_records_are(run: RecordRun) -> None:
    records = run.records()
    assert [each.decode() for each in run.bodies] == [each.model_dump_json() for each in records]
    for entry, record in zip(run.entries, records, strict=True):
        names, values = row(record)
        assert entry == (names, b"".join(each + SEPARATOR for each in values))


def test_its_rows_enter_the_queue_as_its_records_do(run: RecordRun) -> None:
    rules = PublishingRules(100, 1000, "wait", 0)
    ways = ([Outgoing(each, "c-1", 0.0) for each in some] for some in (run.rows(), run.records()))
    by_rows, by_records = (arguments_of(each, rules) for each in ways)
    moment = by_records[-1].split(SEPARATOR)[-2]  # `enqueued_at` is of the call
    assert [each.replace(by_rows[-1].split(SEPARATOR)[-2], moment) if isinstance(each, bytes) else each
            for each in by_rows] == by_records  # fmt: skip


def test_a_text_with_the_separator_in_it_is_written_by_itself(run: RecordRun) -> None:
    odd = replace(run, columns={**run.columns, "label": Coded.same("a\x1eb", len(run))})
    rules = PublishingRules(100, 1000, "wait", 0)
    (record,) = odd.taken(np.array([3])).records()
    by_row = arguments_of([Outgoing(odd.rows()[3], "c", 0.0)], rules)
    by_record = arguments_of([Outgoing(record, "c", 0.0)], rules)
    assert b"a\x1eb" in by_row
    assert by_row[:-1] == by_record[:-1]


def test_every_column_of_a_table_is_that_of_its_records(model: ServedModel, run: RecordRun) -> None:
    records = run.records()
    for each in record_columns(tuple(model.card.outputs)):
        column = run.column(each.name)
        if each.kind == "time":
            wanted = [each.value_of(record) for record in records]
            assert column.values() == wanted
            assert len(moments_ms(column)) == len(wanted)
        elif each.kind == "number":
            found = np.array(column.values(), dtype=np.float64)
            assert found.tobytes() == each.numbers(records).tobytes(), each.name
        else:
            assert column.values() == [each.value_of(record) for record in records], each.name


def test_some_of_its_rows_are_a_run(run: RecordRun) -> None:
    places = np.array([140, 3, 77, 7])
    assert run.taken(places).bodies == [run.bodies[place] for place in places]
    assert [run.taken(places).answered(1).record] == [run.record(3)]


def test_the_ledger_reads_of_it_what_it_reads_of_answers(
    model: ServedModel, asked: list[Question], run: RecordRun
) -> None:
    chance = np.random.default_rng(3)
    for share in (0.0, 0.3, 1.0):
        is_sampled_N = chance.random(len(run)) < share
        alone = [answered(model, each, LIVE) for each in asked]
        wanted = [
            entry_of(each, model.making, is_sampled=bool(sampled))
            for each, sampled in zip(alone, is_sampled_N, strict=True)
        ]
        found = list(entries_of(run, model.making, is_sampled_N, is_new=lambda *each: True))
        seen: set[tuple[str, int]] = set()
        kept = []
        for each, sampled in zip(wanted, is_sampled_N, strict=True):
            key = (each.asked.series[2], each.asked.as_of_ms)
            if sampled or (each.asked.price is not None and not each.is_past and key not in seen):
                kept.append(each)
            if not sampled and each.asked.price is not None and not each.is_past:
                seen.add(key)
        assert found == kept


def test_it_is_sampled_as_its_ids_are(run: RecordRun) -> None:
    ids = [f"{number:032x}" for number in np.random.default_rng(0).integers(0, 2**60, len(run)).tolist()]
    drawn = replace(run, columns={**run.columns, "prediction_id": Words(ids)})
    for level in MONITORED_SHARE:
        assert drawn.is_monitored(level).tolist() == [is_monitored(each, level) for each in ids]
