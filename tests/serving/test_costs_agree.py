"""One formula everywhere: what training, backtest, record and live agent pay for the same bars, to the bit."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Costs, FeatureTable
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import build
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.costs import resolved_costs, session_factor, unit_cost
from ml_workbench_service.reinforcement.policy_family import series_of
from ml_workbench_service.serving.history import read_history, replay_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, prepare
from ml_workbench_service.serving.runs.answering import answer_many

REPLAY = Circumstances(role="champion", source="replay:job")


def records_of(model: ServedModel, table: FeatureTable) -> list[PredictionRecord]:
    """What a replay of the whole table publishes."""
    questions = replay_questions(read_history(model, table), from_ms=0, job_id="job")
    return answer_many(model, [prepare(model, each) for _, each in questions if each is not None], REPLAY)


def problem_of(table: FeatureTable, costs: Costs) -> TrainingProblem:
    """Windows of one bar, as a training with these costs labels and cuts them."""
    labelling = label_tables(
        [table], features=["signal"], columns=[table.columns], targets=(), costs={table.symbol: costs}
    )
    windows = build(labelling.rows, features=["signal"], is_level=[False], lookback=1, split=0.4)
    return TrainingProblem(windows=windows, targets=(), costs={table.symbol: costs})


def test_a_records_costs_follow_the_session_and_name_what_is_paid(
    model: ServedModel, tables: dict[str, FeatureTable]
) -> None:
    records = records_of(model, tables["EUR/USD"])
    pips = [record.metadata.costs.spread_pips for record in records if record.metadata.costs]
    wanted = 0.2 * session_factor(np.array([to_ms(record.as_of) for record in records]))
    np.testing.assert_allclose(pips, wanted, rtol=1e-14)
    assert len(set(np.round(wanted, 6))) == 4
    assert all(type(record.metadata.costs) is Costs for record in records)
    fixings = replace(model, card=model.card.model_copy(update={"calendar": "fixings"}))
    assert fixings.costs_at("EUR/USD", as_of_ms=to_ms(records[0].as_of)) == Costs(
        **model.costs_at("EUR/USD").model_dump()
    )


def with_opens(table: FeatureTable) -> FeatureTable:
    """The bars open some way off the close before, on Sundays too."""
    close = np.asarray(table.columns["close"])
    jumps = np.random.default_rng(7).normal(0, 3e-4, len(close))
    return replace(table, columns={**table.columns, "open": np.append(close[0], close[:-1]) * np.exp(jumps)})


def moment(ms: int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, tz=UTC)


def told(record: PredictionRecord, position: int) -> PredictionRecord:
    """The record as a policy's that says this position, whatever is held."""
    metadata = record.metadata.model_copy(update={"actions_by_position": (position,) * 3})
    answer = {"status": "ok", "prediction": 0.0, "scaling_factor": 1.0}
    return record.model_copy(update={**answer, "metadata": metadata})


@pytest.mark.parametrize("spread", ["session", "own", "named"])
def test_training_backtest_record_and_agent_pay_the_same(
    model: ServedModel, tables: dict[str, FeatureTable], spread: str
) -> None:
    table = with_opens(tables["EUR/USD"])
    if spread == "own":
        own = np.where(np.arange(len(table)) % 2 == 0, 0.0004, np.nan)
        table = replace(table, columns={**table.columns, "spread": own}, spread_time="open")
    costs = resolved_costs("EUR/USD", Costs(spread_pips=0.9) if spread == "named" else None)
    served = replace(model, costs={"EUR/USD": costs})
    records = records_of(served, table)
    given = problem_of(table, costs)
    series = series_of(given)
    rows = np.searchsorted(series.available_at_ms_R, [to_ms(record.as_of) for record in records])
    for row, record in zip(rows, records, strict=True):
        assert record.metadata.costs is not None
        assert (record.open, record.bar_open) == (series.price_R[row], moment(series.priced_at_ms_R[row]))
        assert record.spread_open is not None
        paid = record.metadata.costs.model_copy(update={"spread_pips": record.spread_open / 1e-4})
        assert unit_cost(paid, "EUR/USD", series.price_R[row]) == pytest.approx(series.unit_cost_R[row], rel=1e-14)

    positions = np.random.default_rng(0).integers(-1, 2, len(rows))
    agent = PolicyAgent("a", family="dqn", model_id=records[0].model_id)
    decisions = [
        agent.apply(f"{number}-0", told(record, int(position)))
        for number, (record, position) in enumerate(zip(records, positions, strict=True))
    ]
    earned = [each.reward for each in decisions if each is not None and each.reward is not None]
    paid = signal_backtest.realise(positions, rows, given)
    assert {each.fill for each in decisions if each is not None} == {None, "next_open"}, "weekends are no gap"
    assert len(earned) == len(paid.net_N) > 2000, "the newest two decisions wait for their bars"
    np.testing.assert_allclose(earned[:-1], paid.net_N[:-1], rtol=0, atol=1e-15)
