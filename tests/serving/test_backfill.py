"""Recordings: what a replay would publish, to the bit, without the bars that taught the model something."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.q_table import StateBins
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.market import Costs, FeatureTable
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.recordings import SAMPLES, Recording
from ml_workbench_service.reinforcement.agent_sweep import grid_settings, run_grid
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.backfill import fetch_past, first_usable_ms, record
from ml_workbench_service.serving.history import read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer
from ml_workbench_service.testing.synthetic import Recorder
from tests.serving.conftest import LOOKBACK, SYMBOLS
from tests.trained_models import loaded, train_model

pytestmark = pytest.mark.processor

Tables = dict[str, FeatureTable]


def replayed(model: ServedModel, tables: Sequence[FeatureTable], start_ms: int) -> list[PredictionRecord]:
    """What a replay publishes (workflows/replay.py): one question at a time, policies told what they hold."""
    circumstances = Circumstances(role="champion", source="replay:job")
    found: list[tuple[int, int, PredictionRecord]] = []
    for place, table in enumerate(tables):
        held = 0.0
        for available_at_ms, question in replay_questions(read_history(model, table), from_ms=start_ms, job_id="job"):
            if question is None:
                held = 0.0
                continue
            told = answer(model, replace(question, position=held), circumstances)
            held = (told.prediction or 0.0) if model.decoder.holds_positions else 0.0
            found.append((available_at_ms, place, told))
    return [each for _, _, each in sorted(found, key=lambda each: each[:2])]


def assert_same(recording: Recording, spoken: Sequence[PredictionRecord]) -> None:
    """Every number an agent reads, to the bit."""

    def column(values: Sequence[Any]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    assert len(recording) == len(spoken) > 100
    assert recording.as_of_ms_M.tolist() == [to_ms(each.as_of) for each in spoken]
    assert [recording.symbols[place] for place in recording.symbol_M] == [each.symbol for each in spoken]
    assert [SAMPLES[place] for place in recording.sample_M] == [each.sample for each in spoken]
    assert recording.abstained_M.tolist() == [each.status == "abstain" for each in spoken]
    for found, values in (
        (recording.price_M, [each.price for each in spoken]),
        (recording.prediction_M, [each.prediction for each in spoken]),
        (recording.volatility_M, [each.metadata.volatility for each in spoken]),
        (recording.width_M, [each.interval and each.interval.upper - each.interval.lower for each in spoken]),
        (recording.strength_M, [each.metadata.strength for each in spoken]),
    ):
        np.testing.assert_array_equal(found, column(values))
    costs = [each.metadata.costs for each in spoken]
    assert recording.costs_M5.tolist() == [[getattr(each, name) for name in Costs.model_fields] for each in costs]


def test_a_recording_is_what_a_replay_publishes_to_the_bit(model: ServedModel, tables: Tables) -> None:
    both = [tables[symbol] for symbol in reversed(SYMBOLS)]
    start_ms = first_usable_ms(model)
    recording = record(model, both, start_ms=start_ms)
    spoken = [each for each in replayed(model, both, start_ms) if each.sample in ("test", "live")]
    assert_same(recording, spoken)
    assert recording.symbols == ("GBP/USD", "EUR/USD")
    assert np.isfinite(recording.prediction_M).sum() > 100
    assert (recording.model_id, recording.version, recording.fill) == ("small", "1.0.0", "next_open")
    assert recording.span_ms == (to_ms(spoken[0].as_of), to_ms(spoken[-1].as_of) + 1)


def test_a_version_that_serves_int8_is_asked_one_window_at_a_time(
    bench: Workbench, model: ServedModel, tables: Tables
) -> None:
    """Another network behind `single` stands out at once where batches were asked."""
    other = loaded(bench, bench.registry.card("small", "1.1.0"))
    served = replace(model, single=other.float32, card=model.card.model_copy(update={"precision": "int8"}))
    start_ms = first_usable_ms(model)
    both = [tables[symbol] for symbol in SYMBOLS]
    recording = record(served, both, start_ms=start_ms)
    assert_same(recording, [each for each in replayed(served, both, start_ms) if each.sample in ("test", "live")])
    assert not np.array_equal(recording.prediction_M, record(model, both, start_ms=start_ms).prediction_M)


def test_a_policy_is_told_what_it_holds_and_is_flat_after_a_gap(
    bench: Workbench, tables: Tables, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("trader")
    card = train_model(
        bench, "trader", checkpoint=home, model_type="reinforcement_learning", target=None, timeframe="1h",
        features=["signal"], symbols=list(SYMBOLS), validation_split=0.4, hyperparameters={"bins": 4, "epochs": 3},
        costs={"spread_pips": 6.0},
    )  # fmt: skip
    trader = loaded(bench, card)
    start_ms = first_usable_ms(trader)
    both = [with_gaps(tables[symbol], start_ms, after=range(15, 400, 15)) for symbol in SYMBOLS]
    recording = record(trader, both, start_ms=start_ms)
    assert_same(recording, [each for each in replayed(trader, both, start_ms) if each.sample in ("test", "live")])
    assert recording.num_skipped > 0
    assert np.isfinite(recording.strength_M).any() or len(set(recording.prediction_M.tolist())) > 1


def with_gaps(table: FeatureTable, start_ms: int, *, after: Sequence[int]) -> FeatureTable:
    """Without the bars that many rows after the start."""
    rows = int(np.searchsorted(table.opened_ms, start_ms)) + np.array(after)
    return replace(
        table,
        opened_ms=np.delete(table.opened_ms, rows),
        available_at_ms=np.delete(table.available_at_ms, rows),
        columns={name: np.delete(values, rows) for name, values in table.columns.items()},
    )


def test_bars_without_a_whole_window_are_counted_and_left_out(model: ServedModel, tables: Tables) -> None:
    start_ms = first_usable_ms(model)
    whole = record(model, [tables["EUR/USD"]], start_ms=start_ms)
    weekday = next(
        after for after in range(20, 200) if not np.any(np.diff(whole.as_of_ms_M[after - 2 : after + LOOKBACK]) > 3.6e6)
    )
    broken = record(model, [with_gaps(tables["EUR/USD"], start_ms, after=[weekday])], start_ms=start_ms)
    assert (whole.num_skipped, broken.num_skipped) == (0, LOOKBACK - 1)
    assert len(broken) == len(whole) - LOOKBACK


def test_bars_that_taught_the_model_are_left_out_unless_they_are_asked_for(model: ServedModel, tables: Tables) -> None:
    table = tables["EUR/USD"]
    start_ms = int(table.opened_ms[LOOKBACK])
    border_ms = first_usable_ms(model)
    usual = record(model, [table], start_ms=start_ms)
    assert set(usual.num_by_sample) <= {"test", "live"}
    assert int(usual.as_of_ms_M[0]) > border_ms
    asked = record(model, [table], start_ms=start_ms, allow_in_sample=True)
    assert set(asked.num_by_sample) >= {"train", "stop", "calibrate", "test"}
    assert len(asked) == len(usual) + usual.num_in_sample
    assert usual.num_in_sample == sum(num for part, num in asked.num_by_sample.items() if part not in ("test", "live"))
    np.testing.assert_array_equal(asked.prediction_M[-len(usual) :], usual.prediction_M)


def test_a_range_that_taught_the_model_is_refused_with_the_first_usable_moment(
    model: ServedModel, tables: Tables
) -> None:
    table = tables["EUR/USD"]
    early = replace(
        table, opened_ms=table.opened_ms[:600], available_at_ms=table.available_at_ms[:600],
        columns={name: values[:600] for name, values in table.columns.items()},
    )  # fmt: skip
    first = iso_of_ms(first_usable_ms(model))
    with pytest.raises(DataValidationError, match=first) as caught:
        record(model, [early], start_ms=int(table.opened_ms[100]))
    assert caught.value.details["first_usable"] == first
    assert caught.value.details["errors"][0]["code"] == "in_sample"
    assert len(record(model, [early], start_ms=int(table.opened_ms[100]), allow_in_sample=True)) == 500


def test_ranges_without_bars_or_windows_and_unknown_symbols_are_refused(
    bench: Workbench, model: ServedModel, tables: Tables
) -> None:
    table = tables["EUR/USD"]
    with pytest.raises(DataValidationError, match="no bar opens"):
        record(model, [table], start_ms=int(table.opened_ms[-1]) + 1)
    short = replace(
        table, opened_ms=table.opened_ms[-5:], available_at_ms=table.available_at_ms[-5:],
        columns={name: values[-5:] for name, values in table.columns.items()},
    )  # fmt: skip
    with pytest.raises(DataValidationError, match="whole bars"):
        record(model, [short], start_ms=0)
    with pytest.raises(DataValidationError, match="not trained on USD/JPY"):
        fetch_past(model, bench.feature_store, symbols=["EUR/USD", "USDJPY"], start_ms=0, end_ms=1)
    with pytest.raises(DataValidationError, match="not trained on USD/JPY"):
        record(model, [replace(table, symbol="USD/JPY")], start_ms=0)


def test_what_is_fetched_reaches_back_far_enough(bench: Workbench, model: ServedModel, tables: Tables) -> None:
    start_ms, end_ms = int(tables["EUR/USD"].opened_ms[-300]), int(tables["EUR/USD"].opened_ms[-100])
    fetched = fetch_past(model, bench.feature_store, symbols=["eur_usd", "GBPUSD"], start_ms=start_ms, end_ms=end_ms)
    assert len(fetched[0]) < len(tables["EUR/USD"]) / 2
    part = record(model, fetched, start_ms=start_ms)
    whole = record(model, [tables[symbol] for symbol in SYMBOLS], start_ms=start_ms)
    assert len(part) == 400
    np.testing.assert_array_equal(part.prediction_M, whole.prediction_M[:400])
    np.testing.assert_array_equal(part.volatility_M, whole.volatility_M[:400])


def test_late_bars_are_left_out_as_agents_count_them(model: ServedModel, tables: Tables) -> None:
    table = tables["EUR/USD"]
    available_at_ms = table.available_at_ms.copy()
    available_at_ms[-10] = available_at_ms[-8]  # known with the bar after the next one
    recording = record(model, [replace(table, available_at_ms=available_at_ms)], start_ms=int(table.opened_ms[-20]))
    assert len(recording) == 18
    assert (np.diff(recording.as_of_ms_M) > 0).all()


def test_a_recording_is_cancelled_between_two_batches(model: ServedModel, tables: Tables) -> None:
    both = [tables[symbol] for symbol in SYMBOLS]
    with pytest.raises(JobCancelled):
        record(model, both, start_ms=first_usable_ms(model), report=Recorder(cancel_at_check=2))


def test_a_grid_on_a_recording_is_the_live_agent_on_the_replay(model: ServedModel, tables: Tables) -> None:
    """With costs that follow the session, and bars with a spread of their own: each step pays those of its fill."""
    spread = np.where(np.arange(len(tables["EUR/USD"])) % 3 == 0, 3e-5, np.nan)
    spread[::5] = 9e-5
    own = replace(tables["EUR/USD"], columns={**tables["EUR/USD"].columns, "spread": spread})
    both, start_ms = [own, tables["GBP/USD"]], first_usable_ms(model)
    [(params, setting)] = grid_settings({"learning_rate": (0.05,)})
    agent = QLearningAgent("a", hyperparameters=setting)
    for number, each in enumerate(replayed(model, both, start_ms)):
        if each.sample in ("test", "live"):
            agent.apply(f"{number + 1}-0", each)
    recording = record(model, both, start_ms=start_ms)
    assert len(np.unique(recording.costs_M5[:, 0])) > 4
    outcome = run_grid(recording, [(params, setting)], seeds=[0], bins=StateBins())
    assert outcome.best.net == agent.counters.cumulative_reward != 0.0
