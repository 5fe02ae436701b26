"""A policy replayed through its agent earns what its card says, to 1e-12, weekends included: simulated hours and files.

The policy is a rule, so that nothing is trained: what is under test is where decisions are filled, on both ways.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.market import FeatureTable, Floats32
from ml_workbench_service.contracts.prediction import PredictionRecord, RawPrediction
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import build
from ml_workbench_service.learning.decoders.action import ActionDecoder, greedy_actions
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.reinforcement.environment import walk
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.serving.history import read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from tests.integrations.model_cards import model_card

HOUR_MS, SYMBOL, LOOKBACK = calendar.HOUR_MS, "EUR/USD", 3
START_MS, NUM = 1_709_503_200_000, 620  # Sunday 3 March 2024, 17:00 New York; clocks change a week later
REPLAY = Circumstances(role="champion", source="replay:job")


class Rule:
    """A policy without training: the last move against its own position, with a turn now and then."""

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        held = np.zeros(len(rows_NTF), dtype=np.float32) if positions_N is None else positions_N
        lean = np.sin(40 * rows_NTF[:, -1, 0]) - 0.4 * held
        return RawPrediction(
            np.stack([-lean, np.full(len(lean), 0.3), lean], axis=1).astype(np.float32), rows_NTF[:, -1]
        )


def simulated(folder: Path) -> FeatureTable:
    return fetched(LocalFeatureStore(SampleRates()))


def of_files(folder: Path) -> FeatureTable:
    """A file whose weeks open far from where they closed, with the spread of each open."""
    chance, hours = np.random.default_rng(0), START_MS + HOUR_MS * np.arange(2 * NUM)
    opened = hours[calendar.is_open(hours)][:NUM]
    close = 1.08 * np.exp(np.cumsum(chance.normal(0, 1e-3, NUM)))
    jumps = np.where(np.diff(opened, prepend=opened[0]) > HOUR_MS, 20.0, 1.0) * chance.normal(0, 2e-4, NUM)
    start = np.append(close[0], close[:-1]) * np.exp(jumps)
    columns = {
        "timestamp": [iso_of_ms(int(each)) for each in opened], "open": start, "high": np.maximum(start, close) + 1e-4,
        "low": np.minimum(start, close) - 1e-4, "close": close, "spread_open": chance.uniform(1e-5, 2e-4, NUM),
    }  # fmt: skip
    pl.DataFrame(columns).write_csv(folder / "EURUSD_1h.csv")
    return fetched(LocalFeatureStore(FolderBars(folder)))


def fetched(store: LocalFeatureStore) -> FeatureTable:
    (table,) = store.fetch(
        [SYMBOL],
        "1h",
        start_ms=START_MS,
        end_ms=START_MS + 40 * calendar.DAY_MS,
        features=["return_1", "open", "close"],
    )
    return table


def served(table: FeatureTable, problem: TrainingProblem) -> ServedModel:
    card = model_card(
        "trader", type="reinforcement_learning", features=("return_1",), target=None, lookback=LOOKBACK,
        outputs=("q_short", "q_flat", "q_long"), fill=table.fill,
    )  # fmt: skip
    return ServedModel(
        card=card, scaler=problem.windows.scaler, derivation=Derivation(("return_1",), {}),
        decoder=ActionDecoder(("q_short", "q_flat", "q_long")), novelty=None,
        borders_ms=dict(problem.windows.borders_ms), last_available_at_ms=int(table.available_at_ms[-1]),
        costs=problem.costs, reference_price={SYMBOL: 1.1}, float32=Rule(), single=Rule(),
    )  # fmt: skip


@pytest.mark.parametrize("source", [simulated, of_files])
def test_a_replayed_policy_earns_what_its_card_says_weekends_included(source, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    table = source(tmp_path)
    costs = {SYMBOL: resolved_costs(SYMBOL)}
    labelling = label_tables([table], features=["return_1"], columns=[table.columns], targets=(), costs=costs)
    windows = build(labelling.rows, features=["return_1"], is_level=[False], lookback=LOOKBACK, split=0.6)
    problem = TrainingProblem(windows=windows, targets=(), costs=costs, fill=table.fill, tables=(table,))
    model, series = served(table, problem), series_of(problem)
    rows = np.concatenate([decision_rows(series, problem, part) for part in ("calibration", "test")])
    rows = series.payable(np.arange(rows[0], rows[-1] + 1))
    weekends = np.diff(series.priced_at_ms_R[rows + series.delay]) > 40 * HOUR_MS
    assert weekends.sum() >= 2, "more than two weeks"
    walked = walk(
        lambda rows_NTF, held_N: greedy_actions(Rule().predict(rows_NTF, held_N).outputs_NK),
        series,
        rows,
        lookback=LOOKBACK,
    )
    card = signal_backtest.realise(walked.positions_N, rows, problem)

    asked = [each for _, each in replay_questions(read_history(model, table), from_ms=0, job_id="job") if each]
    first_ms, last_ms = int(series.available_at_ms_R[rows[0]]), int(series.available_at_ms_R[rows[-1] + 1])
    wanted = [each for each in asked if first_ms <= each.as_of_ms <= last_ms]
    records = answer_many(model, [prepare(model, each) for each in wanted], REPLAY)
    assert {each.status for each in records} == {"ok"}
    earned, fills = replayed(records)
    assert fills == {series.fill}
    assert len(earned) == len(rows) - 1
    np.testing.assert_allclose(earned, card.net_N[:-1], rtol=0, atol=1e-12)
    held = walked.positions_N[:-1] != 0
    assert (held & weekends).any(), "a position is held over a weekend"
    without = replayed([each for number, each in enumerate(records) if number != 40])
    assert without[1] == {series.fill, "approximate"}, "a skipped bar is said"


def replayed(records: list[PredictionRecord]) -> tuple[list[float], set[str]]:
    """Rewards and fills of a policy's agent that has seen these records."""
    agent = PolicyAgent("a", family="dqn", model_id="trader")
    decisions = [agent.apply(f"{number}-0", each) for number, each in enumerate(records)]
    rewards = [each.reward for each in decisions if each is not None and each.reward is not None]
    return rewards, {each.fill for each in decisions if each is not None and each.fill is not None}
