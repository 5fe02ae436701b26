"""The rule of verdicts, case by case; and what it says of many series without and with something to find."""

from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.evaluation import (
    BacktestReport,
    Certificate,
    CertificateCheck,
    Comparison,
    Evaluation,
    SignificanceTest,
    ValidationReport,
)
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation import baselines
from ml_workbench_service.evaluation.class_baselines import UNDIRECTED, VOLATILITY_FREQUENCIES
from ml_workbench_service.evaluation.forecast_metrics import ForecastRows, evaluate
from ml_workbench_service.evaluation.verdict import ALPHA, NAMES, POWER, POWER_R2, apply_verdict
from ml_workbench_service.learning.calibration.class_metrics import MAJORITY, PERSISTENCE
from ml_workbench_service.market.significance import power
from ml_workbench_service.training.tasks import reinforcement_learning as control
from tests.market.test_significance import storms

MOMENTS = 5000
PASSED = Certificate.of((CertificateCheck(name="features", status="passed", detail="Nothing moved."),))
UNPROVABLE = Certificate.of((CertificateCheck(name="own columns", status="unprovable", detail="No bars."),))
FAILED = Certificate.of((CertificateCheck(name="labels", status="failed", detail="Labels moved."),))


def significance(p_value: float | None, num_moments: int = MOMENTS) -> SignificanceTest:
    return SignificanceTest(statistic=None if p_value is None else 2.0, p_value=p_value, num_moments=num_moments, lag=3)


def compared(
    baseline: str, p_value: float | None, skill: float | None = 0.01, *, num_moments: int = MOMENTS
) -> Comparison:
    return Comparison(
        baseline=baseline, loss="squared_error", model_loss=0.99, baseline_loss=1.0, skill=skill,
        diebold_mariano=significance(0.9, num_moments), clark_west=significance(p_value, num_moments),
    )  # fmt: skip


def earned(**changes: Any) -> BacktestReport:
    return BacktestReport(
        **{
            "net_log_return": 0.1, "gross_log_return": 0.2, "sharpe": 1.0, "max_drawdown": 0.1, "turnover": 50.0,
            "num_trades": 50, "share_in_market": 0.5, "mean_cost_bp": 1.0, "total_cost": 0.1, "swap_cost": 0.0,
            "num_days": 400, "p_value": 0.001,
            **changes,
        }
    )  # fmt: skip


def settled(
    *comparisons: Comparison,
    num_evaluations: int = 1,
    certificate: Certificate | None = PASSED,
    is_simulated: bool = False,
    horizon: int = 1,
    **more: Any,
) -> Evaluation:
    measured = Evaluation(
        test={}, baselines={}, skill={}, verdict="not_judged", reason="measured", comparisons=comparisons, **more
    )
    return apply_verdict(
        measured, num_evaluations=num_evaluations, certificate=certificate, is_simulated=is_simulated, horizon=horizon
    )


def test_a_model_that_beats_every_baseline_has_skill() -> None:
    found = settled(compared("random_walk", 0.001), compared("linear", 0.02))
    assert found.verdict == "skill"
    assert found.significance is not None
    assert found.significance.baseline == "linear"
    assert found.significance.p_value == found.significance.adjusted_p_value == 0.02
    assert found.significance.num_independent == MOMENTS
    assert found.significance.power > POWER
    assert "against a linear model on the same windows, the hardest baseline" in found.reason
    assert "p = 0.020" in found.reason


def test_one_baseline_that_is_not_beaten_is_enough_for_none() -> None:
    found = settled(compared("random_walk", 0.0001), compared("linear", 0.03))
    assert found.verdict == "no_skill"
    assert "chance explains it" in found.reason
    assert "try other features" in found.reason


@pytest.mark.parametrize(("num_evaluations", "verdict"), [(1, "skill"), (2, "skill"), (3, "no_skill")])
def test_each_test_set_evaluation_raises_the_bar(num_evaluations: int, verdict: str) -> None:
    found = settled(compared("random_walk", ALPHA / 2), num_evaluations=num_evaluations)
    assert found.verdict == verdict
    assert found.significance is not None
    assert found.significance.adjusted_p_value == pytest.approx(num_evaluations * ALPHA / 2)
    assert found.significance.power == pytest.approx(power(MOMENTS, alpha=ALPHA / num_evaluations, r2=POWER_R2))
    assert ("after" in found.reason) == (num_evaluations > 1)


def test_a_p_value_never_exceeds_one() -> None:
    found = settled(compared("random_walk", 0.4), num_evaluations=10)
    assert found.significance is not None
    assert found.significance.adjusted_p_value == 1.0


def test_significant_but_too_loud_to_be_useful_is_no_skill() -> None:
    found = settled(compared("random_walk", 0.001, skill=-0.002), compared("drift", 0.001))
    assert found.verdict == "no_skill"
    assert "its loss is not below that of the random walk" in found.reason


@pytest.mark.parametrize(("num_moments", "horizon"), [(1000, 1), (5000, 5)])
def test_too_few_independent_moments_are_no_proof_of_the_contrary(num_moments: int, horizon: int) -> None:
    found = settled(compared("random_walk", 0.3, num_moments=num_moments), horizon=horizon)
    assert found.verdict == "insufficient_data"
    assert "1,000 independent moments and 1 evaluation of them" in found.reason
    assert "ask for a longer range" in found.reason
    assert settled(compared("random_walk", 0.001, num_moments=num_moments), horizon=horizon).verdict == "skill"


def test_looks_make_the_same_data_insufficient() -> None:
    assert settled(compared("random_walk", 0.3, num_moments=1700)).verdict == "no_skill"
    assert settled(compared("random_walk", 0.3, num_moments=1700), num_evaluations=4).verdict == "insufficient_data"


def test_a_failed_certificate_and_a_missing_one_forbid_skill() -> None:
    failed = settled(compared("random_walk", 0.0001), certificate=FAILED, backtest=earned())
    assert (failed.verdict, failed.economic) == ("no_skill", "unproven")
    assert "labels: Labels moved;" not in failed.reason
    assert "the leakage certificate failed (labels: Labels moved)" in failed.reason
    missing = settled(compared("random_walk", 0.0001), certificate=None, backtest=earned())
    assert (missing.verdict, missing.economic) == ("no_skill", "unproven")
    assert "no leakage certificate was made" in missing.reason


def test_what_could_not_be_proven_is_said_and_forbids_nothing() -> None:
    found = settled(compared("random_walk", 0.0001), certificate=UNPROVABLE, backtest=earned())
    assert (found.verdict, found.economic) == ("skill", "profitable")
    assert "ready-made (own columns)" in found.reason


def test_simulated_prices_are_never_judged() -> None:
    found = settled(compared("random_walk", 0.0001), is_simulated=True, backtest=earned())
    assert (found.verdict, found.economic) == ("not_applicable", "not_applicable")
    assert found.significance is None
    assert "simulated" in found.reason
    assert "simulated" in found.economic_reason


def test_what_bets_on_nothing_keeps_its_reason() -> None:
    measured = Evaluation(test={}, baselines={}, skill={}, verdict="not_applicable", reason="an alarm is no bet")
    found = apply_verdict(measured, num_evaluations=1, certificate=PASSED, is_simulated=False, horizon=1)
    assert (found.verdict, found.reason) == ("not_applicable", "an alarm is no bet")
    assert (found.economic, found.economic_reason) == ("not_applicable", "there is no signal to trade")


def test_nothing_testable_is_nothing_found() -> None:
    found = settled(compared("random_walk", None, skill=0.0), compared("drift", 0.001))
    assert found.verdict == "no_skill"
    assert "nothing could be tested" in found.reason
    assert found.significance is not None
    assert found.significance.adjusted_p_value is None


def test_trials_are_mentioned_where_there_were_some() -> None:
    found = settled(compared("random_walk", 0.001), validation=ValidationReport(num_trials=27))
    assert "27 trials are known on its validation part" in found.reason
    assert "trials" not in settled(compared("random_walk", 0.001), validation=ValidationReport(num_trials=1)).reason


@pytest.mark.parametrize(
    ("backtest", "num_evaluations", "economic", "words"),
    [
        (earned(), 1, "profitable", "p = 0.001 after 1 evaluation"),
        (earned(), 30, "unproven", "luck is not excluded"),
        (earned(p_value=0.03), 1, "unproven", "luck is not excluded"),
        (earned(p_value=None), 1, "unproven", "luck is not excluded"),
        (
            earned(net_log_return=-0.01, break_even_cost_bp=0.4),
            1,
            "unprofitable",
            "where a change of position by one costs 0.40 bp",
        ),
        (earned(net_log_return=-0.01, break_even_cost_bp=-0.4), 1, "unprofitable", "no cost of trading is low enough"),
        (earned(net_log_return=0.0), 1, "unprofitable", "0% log return net of 10.00% costs"),
        (earned(net_log_return=-1e-6), 1, "unprofitable", "-1.0e-06 log return"),
        (earned(total_cost=-0.02), 1, "profitable", "with 2.00% more swap received than costs paid"),
        (earned(net_log_return=0.0, num_trades=0, p_value=None), 1, "unproven", "never traded"),
        (None, 1, "not_applicable", "no signal to trade"),
    ],
)
def test_money_is_judged_apart(
    backtest: BacktestReport | None, num_evaluations: int, economic: str, words: str
) -> None:
    found = settled(compared("random_walk", 0.3), num_evaluations=num_evaluations, backtest=backtest)
    assert found.economic == economic
    assert words in found.economic_reason
    assert found.verdict != "skill"


def test_policies_are_judged_by_their_returns_and_need_more_data() -> None:
    found = settled(
        Comparison(
            baseline="flat", loss="net_return", model_loss=1e-4, baseline_loss=0.0, skill=1e-4,
            diebold_mariano=significance(0.01, 2000),
        ),
        Comparison(
            baseline="buy_and_hold", loss="net_return", model_loss=1e-4, baseline_loss=1e-5, skill=9e-5,
            diebold_mariano=significance(0.2, 2000),
        ),
    )  # fmt: skip
    assert found.verdict == "insufficient_data"
    assert found.significance is not None
    assert found.significance.power == pytest.approx(power(2000, alpha=ALPHA, r2=POWER_R2, by_sign=True))
    assert "against holding on, the hardest baseline, skill is +9.00e-05 net log return a bar" in found.reason


@pytest.mark.parametrize(("skill", "words"), [(-1e-6, "skill is -1.0e-06"), (-1e27, "skill is under -10,000%"),
                                              (0.0, "skill is 0%"), (None, "that never errs")])  # fmt: skip
def test_no_figure_of_a_sentence_is_nonsense(skill: float | None, words: str) -> None:
    assert words in settled(compared("drift", 0.3, skill=skill)).reason


@pytest.mark.parametrize(
    ("p_value", "shown"), [(0.02504, "p = 0.02504 "), (0.02496, "p = 0.02496 "), (0.2, "p = 0.200")]
)
def test_a_p_value_shows_on_which_side_of_the_limit_it_lies(p_value: float, shown: str) -> None:
    assert shown in settled(compared("drift", p_value)).reason


def test_a_power_just_under_the_limit_is_not_rounded_up_to_it() -> None:
    num = next(num for num in range(1000, 3000) if power(num, alpha=ALPHA, r2=POWER_R2) > 0.797)
    found = settled(compared("drift", 0.3, num_moments=num))
    assert "a probability of only 79%, under 80%" in found.reason


def test_every_baseline_has_a_name_for_people() -> None:
    assert len(set(NAMES.values())) == len(NAMES)
    assert set(NAMES) == {
        *(baselines.RANDOM_WALK, baselines.DRIFT, baselines.EWMA, baselines.HAR, baselines.EWMA_HAR, baselines.LINEAR),
        *(MAJORITY, PERSISTENCE, VOLATILITY_FREQUENCIES, UNDIRECTED),
        *control.BASELINES,
    }


def judged(returns: Floats, forecasts: Floats) -> Evaluation:
    """(T, symbols) both; the last two thirds are the test part."""
    num, num_symbols = returns.shape
    begin = num // 3
    labels, said = returns[begin:].ravel(), forecasts[begin:].ravel()
    size = float(returns[:begin].std())
    rows = ForecastRows(
        target=parse_target("log_return_1"),
        labels_N=labels,
        predictions_N=said,
        baselines={"random_walk": np.zeros(len(labels)), "drift": np.full(len(labels), returns[:begin].mean())},
        moments_N=np.repeat(np.arange(num - begin), num_symbols),
        units_N=np.full(len(labels), size),
        naive_mae_N=np.full(len(labels), size),
        naive_rmse_N=np.full(len(labels), size),
    )
    return apply_verdict(
        evaluate(rows, is_simulated=False), num_evaluations=1, certificate=PASSED, is_simulated=False, horizon=1
    )


@pytest.mark.parametrize(("r2", "num_symbols"), [(0.0, 1), (0.0, 3), (0.02, 1)])
def test_the_whole_rule_is_seldom_fooled_and_finds_what_is_there(r2: float, num_symbols: int) -> None:
    """A regression on twelve features, fitted before; GARCH storms with heavy tails."""
    num, num_series, num_features = 3000, 120, 12
    every = storms(num, num_series, num_symbols=num_symbols, seed=5)
    chance, num_found = np.random.default_rng(17), 0
    for series in range(num_series):
        known = chance.standard_normal((num, num_symbols, num_features))
        returns = np.sqrt(1 - r2) * every[:, series] / every[:, series].std() + np.sqrt(r2) * known[:, :, 0]
        before = known[: num // 3].reshape(-1, num_features)
        gram = before.T @ before + 0.05 * len(before) * np.eye(num_features)
        weights = np.linalg.solve(gram, before.T @ returns[: num // 3].ravel())
        found = judged(returns, known @ weights)
        assert found.verdict != "insufficient_data"
        num_found += found.verdict == "skill"
    if r2:
        assert num_found >= 0.8 * num_series
        return
    assert num_found <= 8  # of 120 at 2.5 %: more come up once in 200 times


def test_the_constants_are_those_of_the_definitions() -> None:
    assert (ALPHA, POWER, POWER_R2) == (0.025, 0.8, 0.005)
