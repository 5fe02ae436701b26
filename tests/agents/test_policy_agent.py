"""A deep agent executes a deployed policy for the position that it holds itself, and earns what the backtest says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_workbench_service import families as families  # registers them
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import build
from ml_workbench_service.learning.decoders.action import ActionDecoder, greedy_actions
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.reinforcement.environment import walk
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.serving.history import read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from tests.integrations.model_cards import model_card
from tests.prediction_records import prediction_record
from tests.reinforcement.policies import policy_family
from tests.trained_models import HOUR_MS, injected_bars

LIVE = Circumstances(role="champion")
LOOKBACK = 8
ABSTENTION = {"status": "abstain", "prediction": None, "abstain_reasons": ("novel_input",)}


def policy_record(number: int, actions: Sequence[int] | None, **changes: Any) -> PredictionRecord:
    """What a policy says at one hour to one who is flat, and to each position."""
    output = {"prediction": float(actions[1]) if actions else 0.0, "interval": None, "model_id": "trader"}
    return prediction_record(number, **({**output, "metadata": {"actions_by_position": actions}} | changes))


def applied(agent: PolicyAgent, records: Sequence[PredictionRecord], *, first_id: int = 1) -> list[Decision]:
    decisions = [agent.apply(f"{first_id + number}-0", record) for number, record in enumerate(records)]
    return [decision for decision in decisions if decision is not None]


def test_it_takes_the_action_of_its_own_position_in_each_lane() -> None:
    agent = PolicyAgent("a", family="dqn", model_id="trader")
    turn = (0, 1, -1)  # who is short goes flat, who is flat goes long, who is long goes short
    found = applied(agent, [policy_record(number, turn) for number in range(5)])
    assert [each.position for each in found] == [1, -1, 0, 1, -1]
    (other,) = applied(agent, [policy_record(0, turn, symbol="GBP/USD")], first_id=9)
    assert other.position == 1
    assert agent.counters.num_settled == 4


def test_other_models_and_records_without_actions_are_observed() -> None:
    agent = PolicyAgent("a", family="dqn", model_id="trader")
    assert agent.apply("1-0", policy_record(0, (1, 1, 1), model_id="another")) is None
    assert agent.apply("2-0", policy_record(1, None)) is None
    assert agent.apply("3-0", policy_record(2, (1, 1, 1), role="candidate")) is None
    assert (agent.counters.num_applied, agent.counters.num_observed) == (3, 3)
    assert agent.apply("4-0", policy_record(3, (1, 1, 1))) is not None


def test_an_abstention_goes_flat_and_pays_for_it() -> None:
    agent = PolicyAgent("a", family="ppo", model_id="trader")
    found = applied(
        agent, [policy_record(0, (1, 1, 1)), policy_record(1, None, **ABSTENTION), policy_record(2, (0, 0, 0))]
    )
    assert [each.action for each in found] == ["long", "flat", "flat"]
    assert found[1].expected_cost > 0 == found[2].expected_cost
    assert found[2].cost == pytest.approx(found[1].expected_cost)


def test_a_watched_policy_asks_for_nothing_and_a_frozen_one_for_its_size() -> None:
    for mode, size in (("shadow", 0.0), ("frozen", 0.25)):
        agent = PolicyAgent("a", family="dqn", model_id="trader", mode=mode)  # type: ignore[arg-type]
        (decision,) = applied(agent, [policy_record(0, (1, 1, 1), scaling_factor=0.25)])
        assert (decision.mode, decision.size, decision.position, decision.explored) == (mode, size, 1, False)


def test_its_checkpoint_continues_to_the_bit(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    prices = 1.1 * np.exp(np.cumsum(chance.normal(0, 1e-3, 60)))
    records = [
        policy_record(number, chance.integers(-1, 2, 3).tolist(), price=float(prices[number])) for number in range(60)
    ]
    whole = PolicyAgent("a", family="dqn", model_id="trader", mode="frozen")
    expected = applied(whole, records)
    broken, found = PolicyAgent("a", family="dqn", model_id="trader", mode="frozen"), []
    for start in range(0, len(records), 7):
        found += applied(broken, records[start : start + 7], first_id=1 + start)
        broken.checkpoint().save(tmp_path)
        loaded = Checkpoint.load(tmp_path)
        assert loaded is not None
        broken = PolicyAgent.restored(loaded)
    assert found == expected
    assert broken.checkpoint().model_copy(update={"saved_at": None}) == whole.checkpoint().model_copy(
        update={"saved_at": None}
    )


@dataclass(frozen=True)
class Trader:
    """A policy trained on an injected signal, as it is served, with the bars and windows of its training."""

    model: ServedModel
    problem: TrainingProblem
    table: FeatureTable


@pytest.fixture(scope="module", params=[("dqn", "next_open"), ("ppo", "next_close")], ids=["dqn", "ppo"])
def trader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trader:
    name, fill = request.param
    folder = tmp_path_factory.mktemp(name)
    injected_bars(900, seed=6, r2=0.3).write(folder, "EUR/USD")
    store = LocalFeatureStore(FolderBars(folder, fixings=no_fixings))
    (table,) = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["signal", "open", "close"])
    costs = {"EUR/USD": resolved_costs("EUR/USD")}
    labelling = label_tables([table], features=["signal"], columns=[table.columns], targets=(), costs=costs)
    windows = build(labelling.rows, features=["signal"], is_level=[False], lookback=LOOKBACK, split=0.4)
    problem = TrainingProblem(windows=windows, targets=(), costs=costs, fill=fill)
    family = policy_family(name, epochs=3, patience=3, lookback=LOOKBACK)
    trained = family.train(problem, accelerator=OneThread(), report=Recorder())
    network = export(trained, folder, num_features=1, lengths=[LOOKBACK], seed=0)
    card = model_card(
        "trader", type="reinforcement_learning", family=name, features=("signal",), target=None, lookback=LOOKBACK,
        outputs=trained.outputs, fill=fill,
    )  # fmt: skip
    model = ServedModel(
        card=card, scaler=windows.scaler, derivation=Derivation(("signal",), {}),
        decoder=ActionDecoder(trained.outputs), novelty=None, borders_ms=dict(windows.borders_ms),
        last_available_at_ms=int(table.available_at_ms[-1]), costs=costs, reference_price={"EUR/USD": 1.1},
        float32=network, single=network,
    )  # fmt: skip
    return Trader(model, problem, table)


def test_on_the_test_part_it_does_and_earns_what_the_backtest_of_its_policy_says(trader: Trader) -> None:
    model, series = trader.model, series_of(trader.problem)
    rows = decision_rows(series, trader.problem, "test")
    assert (np.diff(rows) == 1).all(), "one segment, weekends among it"
    walked = walk(
        lambda rows_NTF, positions_N: greedy_actions(model.float32.predict(rows_NTF, positions_N).outputs_NK),
        series, rows, lookback=LOOKBACK,
    )  # fmt: skip
    backtest = signal_backtest.realise(walked.positions_N, rows, trader.problem)
    asked = [each for _, each in replay_questions(read_history(model, trader.table), from_ms=0, job_id="j") if each]
    assert (np.diff(series.available_at_ms_R[rows]) > 40 * HOUR_MS).any(), "a weekend"
    first_ms, last_ms = int(series.available_at_ms_R[rows[0]]), int(series.available_at_ms_R[rows[-1]])
    chance = np.random.default_rng(0)
    records = [  # whatever position the callers named
        answer(model, replace(each, position=float(chance.integers(-1, 2))), LIVE)
        for each in asked
        if first_ms <= each.as_of_ms <= last_ms
    ]
    assert {each.status for each in records} == {"ok"}, "Friday's last bar is answered too"
    assert [to_ms(each.as_of) for each in records] == series.available_at_ms_R[rows].tolist()
    agent = PolicyAgent("a", family="dqn", model_id="trader", mode="frozen")
    decisions = applied(agent, records)
    assert [each.position for each in decisions] == walked.positions_N.tolist()
    assert len(set(walked.positions_N.tolist())) > 1
    assert np.abs(np.diff(walked.positions_N)).sum() > 20
    assert {each.fill for each in decisions} == {None, series.fill}
    num_settled = len(rows) - 1 - series.delay
    rewards = [each.reward for each in decisions if each.reward is not None]
    np.testing.assert_allclose(rewards, backtest.net_N[:num_settled], rtol=0, atol=1e-15)
    assert agent.counters.num_settled == num_settled > 150
    assert agent.counters.cumulative_reward == pytest.approx(float(backtest.net_N[:num_settled].sum()), abs=1e-12)


def test_a_records_actions_are_its_answers_to_each_position_one_by_one(trader: Trader) -> None:
    model = trader.model
    asked = [each for _, each in replay_questions(read_history(model, trader.table), from_ms=0, job_id="j") if each]
    asked = [replace(each, position=(-1.0, 0.0, 1.0, 0.3)[n % 4], clock=False) for n, each in enumerate(asked[-200:])]
    together = answer_many(model, [prepare(model, each) for each in asked], LIVE)
    for question, many in zip(asked, together, strict=True):
        one = answer(model, question, LIVE)
        held = np.array([question.position], dtype=np.float32)
        alone = model.single.predict(prepare(model, question).rows_TF[None], held).outputs_NK[0]
        assert list(one.outputs.values()) == list(many.outputs.values()) == alone.astype(float).tolist()
        each = [answer(model, replace(question, position=position), LIVE).prediction for position in (-1.0, 0.0, 1.0)]
        assert list(one.metadata.actions_by_position or ()) == each
        assert many.metadata.actions_by_position == one.metadata.actions_by_position
    # A quantised graph is asked for one position at a time: the same words here, where it is the same graph.
    quantised = replace(model, card=model.card.model_copy(update={"precision": "int8"}))
    assert [answer(quantised, each, LIVE).metadata.actions_by_position for each in asked] == [
        each.metadata.actions_by_position for each in together
    ]


def test_positions_follow_from_outputs_as_actions_do() -> None:
    outputs = np.random.default_rng(0).integers(0, 3, (300, 3)).astype(np.float32)
    found = ActionDecoder(("q_short", "q_flat", "q_long")).next_positions(outputs)
    assert list(found) == (greedy_actions(outputs) - 1).tolist()
    assert set(found) == {-1, 0, 1}


def test_records_of_other_models_have_no_such_field_and_streams_keep_it() -> None:
    from ml_workbench_service.contracts.entries import flatten, unflatten

    plain = prediction_record(0)
    assert plain.metadata.actions_by_position is None
    output = policy_record(0, (0, 1, -1))
    fields = flatten(output)
    pairs = {
        (name if isinstance(name, bytes) else name.encode()): value if isinstance(value, bytes) else value.encode()
        for name, value in zip(fields[::2], fields[1::2], strict=True)
    }
    assert unflatten(PredictionRecord, pairs) == output
