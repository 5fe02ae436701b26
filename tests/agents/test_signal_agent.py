"""A forecast replayed through its signal agent earns what its card says, to 1e-12, whatever rule sizes its positions.

Nothing is trained, for the network is a rule: what is under test is how a forecast becomes a position, on both ways.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.definition import open_agent
from ml_workbench_service.agents.signal_agent import SignalAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.market import FeatureTable, Floats32
from ml_workbench_service.contracts.prediction import PredictionRecord, RawPrediction
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import build
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.sizing import Sizing
from ml_workbench_service.market.targets import target_volatility
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.serving.history import read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.training import position_rules
from tests.agents.test_replay_equals_card import LOOKBACK, SYMBOL, of_files, simulated
from tests.integrations.model_cards import model_card
from tests.prediction_records import prediction_record

TARGET = "price_change_3h"
REPLAY = Circumstances(role="champion", source="replay:job")
RULES = (
    PositionRule(),
    PositionRule(decide="reversal"),
    PositionRule(decide="horizon", max_leverage=0.5),
    PositionRule(rule="proportional"),
    PositionRule(rule="proportional", band=0.3, max_leverage=2.0),
    PositionRule(rule="volatility_target", decide="horizon"),
    PositionRule(rule="kelly", fraction=0.02, band=0.1),
    PositionRule(rule="volatility_target", risk_budget=0.05),
)


class Forecasts:
    """A network without training: the last move turned over, in units of the label scale."""

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        return RawPrediction((0.4 * np.sin(40 * rows_NTF[:, -1])).astype(np.float32), rows_NTF[:, -1])


class Bench:
    """What a training and a service make of one table: the problem, and its rows as they are served."""

    def __init__(self, table: FeatureTable) -> None:
        targets, costs = (parse_target(TARGET),), {SYMBOL: resolved_costs(SYMBOL)}
        labelling = label_tables([table], features=["return_1"], columns=[table.columns], targets=targets, costs=costs)
        windows = build(
            labelling.rows, features=["return_1"], is_level=[False], lookback=LOOKBACK, split=0.6,
            finish_rows=labelling.finish,
        )  # fmt: skip
        self.table = table
        self.problem = TrainingProblem(
            windows=windows, targets=targets, costs=costs, fill=table.fill, tables=(table,),
            profiles=labelling.profiles,
        )  # fmt: skip
        series = series_of(self.problem)
        rows = np.concatenate([decision_rows(series, self.problem, part) for part in ("calibration", "test")])
        self.rows = series.payable(np.arange(rows[0], rows[-1] + 1))
        self.is_weekend = np.diff(series.priced_at_ms_R[self.rows + series.delay]) > 40 * HOUR_MS
        self.first_ms = int(series.available_at_ms_R[self.rows[0]])
        self.last_ms = int(series.available_at_ms_R[self.rows[-1] + 1])
        ends = windows.parts["calibration"]
        self.decoder = ForecastDecoder.fit(
            self.outputs(ends), targets=targets, names=(TARGET,), quantiles=(),
            labels_N=windows.own_labels_RK[ends, 0], label_scale_N=windows.label_scale_RK[ends, 0],
            volatility_N=target_volatility(windows.bar_volatility_R[ends], targets[0]),
        )  # fmt: skip

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        return Forecasts().predict(self.problem.windows.gather(rows)).outputs_NK.astype(np.float64)

    def sized(self, rule: PositionRule) -> ForecastDecoder:
        sizing = Sizing.of(rule, horizon=3, timeframe="1h", slope=0.5)
        weights = {} if rule.risk_budget is None else {SYMBOL: 0.7}
        return replace(self.decoder, sizing=replace(sizing, weights=weights))

    def records(self, rule: PositionRule) -> list[PredictionRecord]:
        """As they are served, once alone and once in a run, which must be alike."""
        windows = self.problem.windows
        card = model_card(
            "forecaster", features=("return_1",), target=TARGET, horizon=3, lookback=LOOKBACK, outputs=(TARGET,),
            fill=self.table.fill, volatility_rule="seasonal_ewma" if self.problem.profiles else "ewma",
        )  # fmt: skip
        model = ServedModel(
            card=card, scaler=windows.scaler, derivation=Derivation(("return_1",), {}), decoder=self.sized(rule),
            novelty=None, borders_ms=dict(windows.borders_ms),
            last_available_at_ms=int(self.table.available_at_ms[-1]), costs=self.problem.costs,
            reference_price={SYMBOL: 1.1}, float32=Forecasts(), single=Forecasts(), profiles=self.problem.profiles,
        )  # fmt: skip
        asked = [each for _, each in replay_questions(read_history(model, self.table), from_ms=0, job_id="job") if each]
        wanted = [each for each in asked if self.first_ms <= each.as_of_ms <= self.last_ms]
        records = list(answer_many(model, [prepare(model, each) for each in wanted], REPLAY))
        assert [each.metadata.sizing for each in records[:9]] == [
            answer(model, each, REPLAY).metadata.sizing for each in wanted[:9]
        ]
        return records


@pytest.fixture(scope="module", params=[simulated, of_files])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    make: Callable[[Path], FeatureTable] = request.param
    return Bench(make(tmp_path_factory.mktemp("bars")))


def replayed(records: Sequence[PredictionRecord]) -> tuple[SignalAgent, list[Decision]]:
    agent = SignalAgent("a", model_id="forecaster")
    decisions = [agent.apply(f"{number}-0", each) for number, each in enumerate(records)]
    return agent, [each for each in decisions if each is not None]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.rule}-{rule.decide}-{rule.band}-{rule.risk_budget}")
def test_a_replayed_forecast_earns_what_its_card_says_weekends_included(bench: Bench, rule: PositionRule) -> None:
    held_N = position_rules.positions(bench.sized(rule), bench.outputs(bench.rows), bench.rows, bench.problem)
    card = signal_backtest.realise(held_N, bench.rows, bench.problem)
    assert (np.abs(held_N) <= rule.max_leverage).all()
    assert len(np.unique(held_N)) > (1 if rule.rule == "sign_after_costs" else 10)
    assert (bench.is_weekend & (held_N[:-1] != 0)).any(), "a position is held over a weekend"

    records = bench.records(rule)
    assert {each.status for each in records} == {"ok"}
    assert all((each.metadata.sizing is None) == (rule == PositionRule()) for each in records)
    agent, decisions = replayed(records)
    earned = [each.reward for each in decisions if each.reward is not None]
    np.testing.assert_allclose([each.position for each in decisions[: len(held_N)]], held_N, rtol=0, atol=1e-12)
    np.testing.assert_allclose(earned, card.net_N[:-1], rtol=0, atol=1e-12)
    assert {each.fill for each in decisions if each.fill is not None} == {bench.problem.fill}
    assert agent.counters.num_approximate == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.rule}-{rule.decide}-{rule.band}-{rule.risk_budget}")
def test_an_abstention_makes_flat_and_what_follows_begins_anew_as_on_the_card(bench: Bench, rule: PositionRule) -> None:
    gone = np.array([40, 41, 90])
    rows = np.delete(bench.rows, gone)
    held_N = position_rules.positions(bench.sized(rule), bench.outputs(rows), rows, bench.problem)
    card = signal_backtest.realise(held_N, rows, bench.problem)
    abstains = {"status": "abstain", "prediction": None, "direction": "hold", "abstain_reasons": ("novel_input",)}
    records = bench.records(rule)
    for place in gone.tolist():
        metadata = records[place].metadata.model_copy(update={"sizing": None})
        records[place] = records[place].model_copy(update=abstains | {"metadata": metadata})
    agent, decisions = replayed(records)
    assert [decisions[place].position for place in gone.tolist()] == [0, 0, 0]
    assert agent.counters.cumulative_reward == pytest.approx(float(card.net_N[:-1].sum()), abs=1e-12)


def test_an_agent_that_stopped_goes_on_where_it_stood(bench: Bench, tmp_path: Path) -> None:
    records = bench.records(PositionRule(rule="proportional", decide="horizon"))
    whole, decisions = replayed(records)
    first, some = replayed(records[:77])
    first.checkpoint().save(tmp_path)
    again = open_agent(tmp_path, "a")
    assert isinstance(again, SignalAgent)
    more = [again.apply(f"{77 + number}-0", each) for number, each in enumerate(records[77:])]
    assert [*some, *more] == decisions
    assert again.checkpoint().lanes == whole.checkpoint().lanes


def test_records_without_a_rule_are_followed_by_their_direction_of_size_one() -> None:
    records = [prediction_record(number, direction=side) for number, side in enumerate(("buy", "hold", "sell"))]
    agent = SignalAgent("a", model_id=records[0].model_id)
    decisions = [agent.apply(f"{number}-0", each) for number, each in enumerate(records)]
    assert [None if each is None else (each.action, each.position) for each in decisions] == [
        ("long", 1.0), ("flat", 0.0), ("short", -1.0),
    ]  # fmt: skip


def test_a_frozen_agents_size_is_the_position_times_the_deployments_factor() -> None:
    sizing = {"rule": "proportional", "wanted": 0.4, "band": 0.0, "decide": "each_bar", "horizon": 1}
    agent = SignalAgent("a", model_id=prediction_record(0).model_id, mode="frozen")
    record = prediction_record(0, direction="buy", scaling_factor=0.5, metadata={"sizing": sizing})
    decision = agent.apply("1-0", record)
    assert decision is not None
    assert (decision.position, decision.size, decision.action) == (0.4, 0.2, "long")


def test_a_checkpoint_from_before_the_rules_is_read_and_keeps_whole_positions() -> None:
    lane = {"last_ms": 1, "position": -1, "exposure": -1.0, "steps": [], "last_bar_ms": None, "last_price": 1.1}
    plain = {
        "agent_id": "a", "family": "ppo", "mode": "learn", "costs": None, "lanes": {"live|m|EUR/USD|1h": lane},
        "positions": {"EUR/USD": -1}, "last_applied_id": "1-0", "saved_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    found = Checkpoint.model_validate(plain)
    (standing,) = found.lanes.values()
    assert (standing.position, standing.held_bars) == (-1, 0)
    assert isinstance(standing.position, int)
    assert '"positions":{"EUR/USD":-1}' in found.model_dump_json()
