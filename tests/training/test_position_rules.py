"""Position rules in training: all tried on the calibration part, each a trial; one of them reaches the test part."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.agents.signal_agent import SignalAgent
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.evaluation import PositionReport
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.replayed_rows import ReplayedRows
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE, RECIPE_FILE
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.learning.interfaces.task import Predict, task_for
from ml_workbench_service.market.sizing import Sizing
from ml_workbench_service.market.targets import target_volatility
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import columns_needed, read_history, replay_questions
from ml_workbench_service.serving.model import load_model
from ml_workbench_service.serving.predict import Circumstances, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.training import position_rules
from ml_workbench_service.training.tasks.time_series import Forecasting as ForecastTask
from tests.evaluation.test_signal_backtest import problem, table
from tests.trained_models import injected_bars, open_bench, train_model

RULES = [
    {},
    {"rule": "proportional", "full_ratio": 0.3, "band": 0.2},
    {"rule": "volatility_target", "decide": "horizon"},
    {"rule": "kelly", "fraction": 0.1},
]
REQUEST = {
    "features": ["signal"], "target": "price_change_1h", "symbols": ["EUR/USD"], "validation_split": 0.4,
    "family": "linear", "hyperparameters": {"lookback": 3, "epochs": 30, "learning_rate": 0.01},
}  # fmt: skip
EXACT = 1e-12


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("rules")
    made = open_bench(folder)
    injected_bars(900, seed=5, r2=0.3).write(folder / "bars", "EUR/USD")
    return made


@pytest.fixture(scope="module")
def card(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return train_model(bench, "sized", checkpoint=tmp_path_factory.mktemp("sized"), position=RULES, **REQUEST)


@pytest.fixture(scope="module")
def report(card: ModelCard) -> PositionReport:
    assert card.evaluation.position is not None
    return card.evaluation.position


def test_each_rule_is_tried_on_the_calibration_part_and_the_best_one_reaches_the_test_part(
    bench: Workbench, card: ModelCard, report: PositionReport
) -> None:
    assert [each.rule for each in report.tried] == [PositionRule.model_validate(each).resolved for each in RULES]
    ratios = [each.sharpe or 0.0 for each in report.tried]
    assert report.rule == report.tried[int(np.argmax(ratios))].rule
    assert card.evaluation.backtest is not None
    assert report.own.net_log_return == card.evaluation.backtest.net_log_return
    assert report.own.turnover == card.evaluation.backtest.turnover
    assert report.flat.net_log_return == report.flat.turnover == report.flat.mean_size == 0.0
    assert report.flat.sharpe is None
    assert report.buy_and_hold.mean_size == 1.0
    assert report.buy_and_hold.turnover >= 2.0
    assert report.own.turnover > 2.0
    assert report.cost_free.net_log_return > report.own.net_log_return


def test_each_tried_rule_is_a_trial_that_deflates_the_chosen_ones_figures(
    bench: Workbench, card: ModelCard, report: PositionReport
) -> None:
    borders = card.split.borders
    read = PartRead(
        id="asked", subject="price", symbols=("EUR/USD",), start_ms=to_ms(borders["calibrate"]),
        end_ms=to_ms(borders["test"]), at=utc_now(),
    )  # fmt: skip
    trials = [each for each in bench.multiple_testing.trials(read) if each.read.id.startswith(card.lineage.job_id)]
    assert [each.read.id for each in trials] == [f"{card.lineage.job_id}/position/{place}" for place in range(4)]
    assert report.calibration is not None
    assert report.calibration.num_trials == len(RULES)
    chosen = [each.rule for each in report.tried].index(report.rule)
    assert report.calibration.sharpe == report.tried[chosen].sharpe
    daily = sum(trials[chosen].daily_returns.values())
    assert daily == pytest.approx(report.tried[chosen].net_log_return, abs=EXACT)


class Killed(BaseException):
    """Nothing that happens afterwards happens."""


class WatchedLog(SqliteMultipleTestingLog):
    """A log whose notes of position rules are seen; after so many of them the process is killed."""

    def __init__(self, path: Path, *, killed_after: int | None) -> None:
        super().__init__(path)
        self.events: list[str] = []
        self._killed_after = killed_after

    def record_trial(self, trial: Trial) -> None:
        super().record_trial(trial)
        if "/position/" in trial.read.id:
            self.events.append(trial.read.id.rpartition("/")[2])
            if len(self.events) == self._killed_after:
                raise Killed


def test_rules_are_noted_before_the_test_part_is_read_and_a_kill_between_leaves_them_noted(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Predict.over
    log = WatchedLog(tmp_path / "ledgers.db", killed_after=len(RULES))

    def watched(self: Predict, windows: Windows, ends: Ints) -> Floats:
        if (windows.available_at_ms_R[ends] >= windows.borders_ms["test"]).any():
            log.events.append("test part")
        return over(self, windows, ends)

    monkeypatch.setattr(Predict, "over", watched)
    order = {"checkpoint": tmp_path / "checkpoint", "position": RULES, **REQUEST}
    with pytest.raises(Killed):
        train_model(replace(bench, multiple_testing=log), "killed", **order)
    assert log.events == ["0", "1", "2", "3"], "nothing of the test part was read"
    log = WatchedLog(tmp_path / "ledgers.db", killed_after=None)
    card = train_model(replace(bench, multiple_testing=log), "killed", **order)
    assert log.events[:5] == ["0", "1", "2", "3", "test part"]
    assert set(log.events[5:]) <= {"test part"}
    assert card.evaluation.position is not None
    assert card.evaluation.position.calibration is not None
    assert card.evaluation.position.calibration.num_trials == len(RULES), "the same rules again are no more trials"


def test_without_an_answer_from_the_log_there_is_no_evaluation(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(SqliteMultipleTestingLog):
        def record_trial(self, trial: Trial) -> None:
            if "/position/" in trial.read.id:
                raise UnavailableError("the disk is full")
            super().record_trial(trial)

    measured: list[bool] = []
    monkeypatch.setattr(ForecastTask, "measure", lambda *_, **__: measured.append(True))
    with pytest.raises(UnavailableError, match="the disk is full"):
        train_model(
            replace(bench, multiple_testing=Away(tmp_path / "ledgers.db")), "unnoted", checkpoint=tmp_path / "left",
            position=RULES, **REQUEST,
        )  # fmt: skip
    assert not measured
    assert bench.registry.versions("unnoted") == []


def test_the_rows_hold_the_sizes_and_add_up_to_the_card(bench: Workbench, card: ModelCard) -> None:
    rows = pl.read_parquet(bench.registry.folder(card.id, card.version) / EVALUATION_FILE)
    test = rows.filter(pl.col("part") == "test")
    assert card.evaluation.backtest is not None
    assert test["equity"].drop_nulls()[-1] == pytest.approx(card.evaluation.backtest.net_log_return, abs=EXACT)
    assert test["position"].abs().max() <= 1.0


def test_the_version_replayed_through_its_agent_earns_its_test_part(
    bench: Workbench, card: ModelCard, tmp_path: Path
) -> None:
    folder = bench.registry.folder(card.id, card.version)
    model = load_model(folder, card)
    assert isinstance(model.decoder, ForecastDecoder)
    assert card.evaluation.position is not None
    assert model.decoder.sizing.rule == card.evaluation.position.rule
    columns = [*columns_needed(model), "open"]
    (table,) = bench.feature_store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=columns)
    rows = pl.read_parquet(folder / EVALUATION_FILE).filter(pl.col("part") == "test")
    paid = rows.drop_nulls("net")
    first_ms, last_ms = (int(each.timestamp() * 1000) for each in (paid["as_of"][0], rows["as_of"][-1]))
    questions = [each for _, each in replay_questions(read_history(model, table), from_ms=0, job_id="j") if each]
    asked = [prepare(model, each) for each in questions if first_ms <= each.as_of_ms <= last_ms]
    agent, kept = SignalAgent("a", model_id=card.id), ReplayedRows(model, [table])
    records = answer_many(model, asked, Circumstances(role="champion", source="replay:j"))
    decisions = [agent.apply(f"{number}-0", each) for number, each in enumerate(records)]
    positions = [each.position for each in decisions if each is not None]
    np.testing.assert_allclose(positions, rows["position"], rtol=0, atol=EXACT)
    earned = [each.reward for each in decisions if each is not None and each.reward is not None]
    assert agent.counters.num_approximate == 0
    num_held = len(paid) - 1  # the last row closes on the card alone
    np.testing.assert_allclose(earned[:num_held], paid["net"][:num_held], rtol=0, atol=EXACT)

    for each in records:
        kept.add(0, each)
    kept.write(tmp_path / "series.parquet")
    told = pl.read_parquet(tmp_path / "series.parquet")
    np.testing.assert_allclose(told["position"], rows["position"], rtol=0, atol=EXACT)
    np.testing.assert_allclose(told["net"].drop_nulls()[:num_held], paid["net"][:num_held], rtol=0, atol=EXACT)


def test_without_a_rule_all_is_as_it_was_by_name(bench: Workbench, tmp_path: Path) -> None:
    found = train_model(bench, "plain", checkpoint=tmp_path / "checkpoint", **REQUEST)
    position = found.evaluation.position
    assert position is not None
    assert (position.rule, position.tried, position.calibration) == (PositionRule(), (), None)
    recipe = json.loads((bench.registry.folder("plain", "1.0.0") / RECIPE_FILE).read_text())
    assert "sizing" not in recipe["uncertainty"]
    rows = pl.read_parquet(bench.registry.folder("plain", "1.0.0") / EVALUATION_FILE)
    assert rows["position"].dtype == pl.Int8


def test_a_portfolios_symbols_contribute_alike_to_its_risk_budget() -> None:
    rule = PositionRule(rule="proportional", risk_budget=0.02, max_leverage=20.0)
    given = replace(problem(table(), table("USD/JPY", seed=1), target="price_change_2h"), position_rules=(rule,))
    windows, (target,) = given.windows, given.targets
    ends = windows.parts["calibration"]
    outputs = 1e-4 * windows.last_rows(ends).astype(np.float64)
    decoder = ForecastDecoder.fit(
        outputs, targets=given.targets, names=(target.name,), quantiles=(), labels_N=windows.own_labels_RK[ends, 0],
        label_scale_N=windows.label_scale_RK[ends, 0],
        volatility_N=target_volatility(windows.bar_volatility_R[ends], target),
    )  # fmt: skip
    sized, choice = position_rules.choose(decoder, outputs, ends, np.ones(len(ends), dtype=bool), given)
    assert choice is not None
    assert set(sized.sizing.weights) == {"EUR/USD", "USD/JPY"}
    held = position_rules.positions(sized, outputs, ends, given)
    assert np.abs(held).max() < 20.0
    covariance = position_rules.risk_covariance(signal_backtest.realise(held, ends, given))
    np.testing.assert_allclose(covariance.sum(axis=1), 0.02**2 / 2, rtol=1e-6)
    assert Sizing.from_json(json.loads(json.dumps(sized.sizing.to_json()))) == sized.sizing


@pytest.mark.parametrize(
    "request_of",
    [
        {"model_type": "classification", "target": "direction_1h"},
        {"model_type": "reinforcement_learning", "target": None},
        {"model_type": "time_series", "target": "volatility_4h"},
    ],
)
def test_what_forecasts_no_price_has_no_position_to_size(request_of: dict[str, str | None]) -> None:
    body = {
        "name": "m", "features": ["rsi_14"], "symbols": ["EUR/USD"], "start_date": "2024-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z", "position": {"rule": "kelly"}, **request_of,
    }  # fmt: skip
    request = TrainRequest.model_validate(body)
    with pytest.raises(DataValidationError, match="position"):
        task_for(request.model_type).check(request)
