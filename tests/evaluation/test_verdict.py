"""The rule of verdicts, case by case; and what it says of many series without and with something to find."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from ml_workbench_service.contracts.evaluation import (
    AddsOverLinear,
    BacktestReport,
    CarryStress,
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
from ml_workbench_service.evaluation.class_baselines import PRESENT_STATISTICS, UNDIRECTED
from ml_workbench_service.evaluation.forecast_metrics import ForecastRows, evaluate
from ml_workbench_service.evaluation.growing_samples import FIRST_LEVEL, Stage, level
from ml_workbench_service.evaluation.verdict import (
    ALPHA,
    LEAST_LINEAR_GAIN,
    NAMES,
    POWER,
    TestedSample,
    apply_verdict,
    holm,
)
from ml_workbench_service.learning.calibration.class_metrics import MAJORITY, PERSISTENCE
from ml_workbench_service.learning.interfaces.differentials import EFFECTS, Differentials
from ml_workbench_service.market.significance import MeanError
from ml_workbench_service.training.tasks import following
from ml_workbench_service.training.tasks import reinforcement_learning as control
from tests.market.test_significance import storms

MOMENTS = 5000
POWER_R2 = 0.005
PASSED = Certificate.of((CertificateCheck(name="features", status="passed", detail="Nothing moved."),))
UNPROVABLE = Certificate.of((CertificateCheck(name="own columns", status="unprovable", detail="No bars."),))
FAILED = Certificate.of((CertificateCheck(name="labels", status="failed", detail="Labels moved."),))


def significance(p_value: float | None, num_moments: int = MOMENTS) -> SignificanceTest:
    return SignificanceTest(statistic=None if p_value is None else 2.0, p_value=p_value, num_moments=num_moments, lag=3)


def compared(
    baseline: str, p_value: float | None, skill: float | None = 0.01, *, num_moments: int = MOMENTS, horizon: int = 1
) -> Comparison:
    """Of a forecast in hours whose outcomes are independent and normal."""
    return Comparison(
        baseline=baseline, loss="squared_error", model_loss=0.99, baseline_loss=1.0, skill=skill,
        diebold_mariano=significance(0.9, num_moments), clark_west=significance(p_value, num_moments),
        effect=POWER_R2, expected_gain=float(np.sqrt(POWER_R2)), gain_error=float(np.sqrt(horizon / num_moments)),
        moments_per_year=6000.0,
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


def stress(net: float | None, p_value: float | None, *, rate: float | None = 0.0525) -> CarryStress:
    """What the worst carry leaves."""
    return CarryStress(yearly_rate={"EUR/USD": rate}, net_log_return=net, p_value=p_value)


def settled(
    *comparisons: Comparison,
    num_evaluations: int = 1,
    others: Sequence[float | None] | None = None,
    certificate: Certificate | None = PASSED,
    is_simulated: bool = False,
    horizon: int = 1,
    sample: TestedSample | None = None,
    **more: Any,
) -> Evaluation:
    measured = Evaluation(
        **{"test": {}, "baselines": {}, "skill": {}, "verdict": "not_judged", "reason": "measured", **more},
        comparisons=comparisons,
    )
    return apply_verdict(
        measured, certificate=certificate, is_simulated=is_simulated, horizon=horizon, timeframe="1h",
        others=[None] * (num_evaluations - 1) if others is None else others, sample=sample,
    )  # fmt: skip


def test_a_model_that_beats_every_baseline_has_skill() -> None:
    found = settled(compared("random_walk", 0.001), compared("drift", 0.015), compared("linear", 0.9, skill=-0.1))
    assert (found.verdict, found.proof, found.verdict_rules) == ("skill", "recomputed", 2)
    assert found.significance is not None
    assert found.significance.baseline == "drift"
    assert found.significance.p_value == 0.015
    assert found.significance.adjusted_p_value == pytest.approx(0.015 * ALPHA / FIRST_LEVEL)
    assert found.significance.num_independent == MOMENTS
    assert found.significance.power > POWER
    assert "against the training part's mean, the hardest baseline" in found.reason
    assert "p = 0.015" in found.reason


def test_one_baseline_that_is_not_beaten_is_enough_for_none() -> None:
    found = settled(compared("random_walk", 0.0001), compared("drift", 0.03))
    assert found.verdict == "no_skill"
    assert "chance explains it" in found.reason
    assert "try other features" in found.reason


@pytest.mark.parametrize(("p_value", "verdict"), [(0.0199, "skill"), (0.0201, "no_skill")])
def test_the_first_test_of_a_recipe_spends_two_percent(p_value: float, verdict: str) -> None:
    assert settled(compared("random_walk", p_value)).verdict == verdict


@pytest.mark.parametrize(("num_evaluations", "verdict"), [(1, "skill"), (2, "skill"), (3, "no_skill")])
def test_each_untold_evaluation_raises_the_bar(num_evaluations: int, verdict: str) -> None:
    found = settled(compared("random_walk", FIRST_LEVEL / 2), num_evaluations=num_evaluations)
    assert found.verdict == verdict
    assert found.significance is not None
    assert found.significance.looks == num_evaluations
    assert found.significance.adjusted_p_value == pytest.approx(num_evaluations * ALPHA / 2)


def test_what_others_found_leaves_more_to_the_rest() -> None:
    """Holm: the smallest p-value bears all of them, the next one fewer; a larger one never passes before it."""
    assert holm(0.01, [0.001, 0.6]) == pytest.approx(0.02)
    assert holm(0.01, [0.02, 0.6]) == pytest.approx(0.03)
    assert holm(0.01, [0.009, 0.6]) == pytest.approx(0.027)
    assert holm(0.01, []) == 0.01
    assert holm(0.4, [None, 0.3]) == pytest.approx(0.9)
    assert holm(0.6, [None, 0.3]) == 1.0
    assert holm(None, [0.1]) is None
    assert holm(0.01, [0.01]) == pytest.approx(0.02)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    """Holm (1979): reject from the smallest on while p(i) <= alpha / (m - i + 1)."""
    chance = np.random.default_rng(0)
    for alpha in (0.01, 0.025, 0.3):
        p_values = chance.uniform(0, 1, 9) ** 4
        rejected, order = np.zeros(9, dtype=bool), np.argsort(p_values)
        for step, place in enumerate(order):
            if p_values[place] > alpha / (9 - step):
                break
            rejected[place] = True
        ours = [holm(each, [*p_values[:at], *p_values[at + 1 :]]) or 0.0 for at, each in enumerate(p_values)]
        assert (np.array(ours) <= alpha).tolist() == rejected.tolist()


def test_significant_but_too_loud_to_be_useful_is_no_skill() -> None:
    found = settled(compared("random_walk", 0.001, skill=-0.002), compared("drift", 0.001))
    assert found.verdict == "no_skill"
    assert "its loss is not below that of the random walk" in found.reason


def test_a_recipes_sample_decides_and_the_versions_own_rows_must_gain() -> None:
    pooled = TestedSample((compared("random_walk", 0.001, num_moments=9000),), Stage(1, 9000, level(1)))
    found = settled(compared("random_walk", 0.4, 0.001, num_moments=900), sample=pooled)
    assert found.verdict == "skill"
    assert found.significance is not None
    assert (found.significance.doublings, found.significance.num_moments) == (1, 9000)
    assert found.significance.adjusted_p_value == pytest.approx(0.001 * ALPHA / level(1))
    assert settled(compared("random_walk", 0.4, -0.001), sample=pooled).verdict == "no_skill"
    weak = TestedSample((compared("random_walk", 0.003, num_moments=2000),), Stage(1, 2000, level(1)))
    assert settled(compared("random_walk", 0.0001), sample=weak).verdict != "skill"


@pytest.mark.parametrize(("num_moments", "horizon"), [(1000, 1), (5000, 5)])
def test_too_few_independent_moments_are_no_proof_of_the_contrary(num_moments: int, horizon: int) -> None:
    found = settled(compared("random_walk", 0.3, num_moments=num_moments, horizon=horizon), horizon=horizon)
    assert found.verdict == "insufficient_data"
    assert "1,000 independent moments and 1 evaluation of them" in found.reason
    assert "ask for a longer range" in found.reason
    assert settled(compared("random_walk", 0.001, num_moments=num_moments), horizon=horizon).verdict == "skill"


def test_evaluations_make_the_same_data_insufficient() -> None:
    assert settled(compared("random_walk", 0.3, num_moments=1900)).verdict == "no_skill"
    assert settled(compared("random_walk", 0.3, num_moments=1900), num_evaluations=4).verdict == "insufficient_data"


def test_power_is_by_the_observed_error_and_of_the_baseline_where_it_is_least() -> None:
    loud = compared("random_walk", 0.3).model_copy(update={"gain_error": 1.0, "expected_gain": 2.0})
    found = settled(compared("drift", 0.2), loud)
    assert found.verdict == "insufficient_data"
    assert found.significance is not None
    bar = MeanError(1.0, 1.5 * MOMENTS / 4).quantile(1 - FIRST_LEVEL)
    assert found.significance.power == pytest.approx(float(ndtr(2.0 - bar)))


def test_no_skill_names_the_sharpe_ratio_that_it_excludes() -> None:
    found = settled(compared("random_walk", 0.3))
    assert found.significance is not None
    sharpe = found.significance.excluded_sharpe
    assert sharpe is not None
    times = (MeanError(1.0, 1.5 * MOMENTS / 4).quantile(1 - FIRST_LEVEL) + 0.8416) / np.sqrt(MOMENTS * POWER_R2)
    assert sharpe == pytest.approx(np.sqrt(POWER_R2 * 6000) * times, rel=1e-3)
    assert f"a gross Sharpe ratio of {sharpe:.1f} a year is excluded" in found.reason


def test_a_failed_certificate_is_a_leak_before_anything_else() -> None:
    found = settled(compared("random_walk", 0.0001), certificate=FAILED, backtest=earned(), lower_bounds={"r2": 0.5})
    assert (found.verdict, found.economic, found.proof) == ("leak", "unproven", None)
    assert "labels: Labels moved;" not in found.reason
    assert "the leakage certificate failed (labels: Labels moved)" in found.reason
    assert settled(compared("random_walk", 0.9, num_moments=50), certificate=FAILED).verdict == "leak"


def test_what_is_not_proven_is_unverified_and_says_why() -> None:
    found = settled(compared("random_walk", 0.0001), certificate=UNPROVABLE, backtest=earned())
    assert (found.verdict, found.economic, found.proof) == ("unverified", "profitable", None)
    assert "ready-made (own columns)" in found.reason
    missing = settled(compared("random_walk", 0.0001), certificate=None, backtest=earned())
    assert (missing.verdict, missing.economic) == ("unverified", "unproven")
    assert "no leakage certificate was made" in missing.reason
    witnessed = UNPROVABLE.model_copy(update={"proof": "witnessed"})
    proven = settled(compared("random_walk", 0.0001), certificate=witnessed)
    assert (proven.verdict, proven.proof) == ("skill", "witnessed")


def test_what_is_too_good_is_implausible_whatever_its_proof() -> None:
    found = settled(compared("random_walk", 1e-9), lower_bounds={"r2": 0.021, "information_coefficient": 0.13})
    assert found.verdict == "implausible"
    assert "R² is too good: its 97.5% lower bound of 2.1% exceeds 2.0%" in found.reason
    assert settled(compared("random_walk", 1e-9), lower_bounds={"r2": 0.019}).verdict == "skill"
    rich = settled(compared("random_walk", 0.5), backtest=earned(sharpe=9.0))
    assert rich.verdict == "implausible"
    assert "net Sharpe ratio" in rich.reason


def test_a_family_that_fails_its_oracle_has_no_skill() -> None:
    assert settled(compared("random_walk", 0.0001), oracle_passed=True).verdict == "skill"
    found = settled(compared("random_walk", 0.0001), oracle_passed=False)
    assert found.verdict == "no_skill"
    assert "oracle" in found.reason


def test_of_rows_that_serving_would_not_answer_nothing_is_concluded() -> None:
    assert settled(compared("random_walk", 0.0001), num_answered=19).verdict == "insufficient_data"
    assert settled(compared("random_walk", 0.0001), num_answered=20).verdict == "skill"


@pytest.mark.parametrize(
    ("gain", "statistic", "p_value", "answer"),
    [
        (0.01, 3.0, 0.001, "yes"), (0.01, 3.0, 0.02, "insufficient_data"), (0.01, 1.0, 0.16, "insufficient_data"),
        (0.0001, 0.1, 0.46, "no"), (-0.01, -3.0, 0.999, "no"), (0.0, 0.0, 0.5, "no"),
        (0.0, None, None, "insufficient_data"),
    ],
)  # fmt: skip
def test_complexity_is_worth_it_or_not_or_it_cannot_be_told(
    gain: float, statistic: float | None, p_value: float | None, answer: str
) -> None:
    test = SignificanceTest(statistic=statistic, p_value=p_value, num_moments=MOMENTS, lag=3)
    linear = Comparison(
        baseline="linear", loss="squared_error", model_loss=1 - gain, baseline_loss=1.0, skill=gain,
        diebold_mariano=test,
    )  # fmt: skip
    found = settled(compared("random_walk", 0.3), linear, num_evaluations=2)
    assert found.adds_over_linear is not None
    assert found.adds_over_linear.answer == answer
    assert found.verdict == settled(compared("random_walk", 0.3), num_evaluations=2).verdict, "it changes no verdict"
    if statistic:
        assert found.adds_over_linear.gain == pytest.approx(gain)
        assert found.adds_over_linear.upper_bound == pytest.approx(gain + 1.96 * gain / statistic, rel=0.02)


def test_linear_itself_has_nothing_to_add() -> None:
    assert settled(compared("random_walk", 0.3)).adds_over_linear == AddsOverLinear(answer="not_applicable")


def test_simulated_prices_are_never_judged() -> None:
    found = settled(compared("random_walk", 0.0001), is_simulated=True, backtest=earned())
    assert (found.verdict, found.economic) == ("not_applicable", "not_applicable")
    assert found.significance is None
    assert "simulated" in found.reason
    assert "simulated" in found.economic_reason


def test_what_bets_on_nothing_keeps_its_reason() -> None:
    measured = Evaluation(test={}, baselines={}, skill={}, verdict="not_applicable", reason="an alarm is no bet")
    found = apply_verdict(measured, certificate=PASSED, is_simulated=False, horizon=1, timeframe="1h")
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
        (earned(stressed=stress(0.05, 0.002)), 1, "profitable", "p = 0.001 after 1 evaluation"),
        (earned(stressed=stress(0.05, 0.02)), 2, "unproven", "EUR/USD 5.25% a year) +5.00% is left, p = 0.040"),
        (
            earned(stressed=stress(-0.01, 0.6)),
            1,
            "unproven",
            "difference of policy rates against each night held",
        ),
        (
            earned(stressed=stress(None, None, rate=None)),
            1,
            "unproven",
            "no table bounds it for EUR/USD: send",
        ),
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
    days = np.arange(900) * 86_400_000
    chance = np.random.default_rng(8).standard_normal(900)
    chance -= chance.mean()
    own, held = 0.005 * (0.02 + chance), 0.02 * chance[::-1]
    flat, market = (
        Differentials.of_returns(name, own, other, moments_T=days).comparison()
        for name, other in (("flat", np.zeros(900)), ("buy_and_hold", held))
    )
    found = settled(flat, market)
    assert found.verdict == "insufficient_data"
    assert found.significance is not None
    assert found.significance.baseline == "buy_and_hold"
    assert (found.significance.effect_kind, found.significance.effect) == ("sharpe", 1.5)
    assert "against holding on, the hardest baseline, skill is +1.00e-04 net log return a bar" in found.reason
    assert "find a Sharpe ratio of 1.5" in found.reason
    years = 899 / 365.25
    alone = settled(flat).significance
    assert alone is not None
    assert alone.power == pytest.approx(float(ndtr(1.5 * np.sqrt(years) - norm.ppf(0.98))), abs=0.1)


@pytest.mark.parametrize(("skill", "words"), [(-1e-6, "skill is -1.0e-06"), (-1e27, "skill is under -10,000%"),
                                              (0.0, "skill is 0%"), (None, "that never errs")])  # fmt: skip
def test_no_figure_of_a_sentence_is_nonsense(skill: float | None, words: str) -> None:
    assert words in settled(compared("drift", 0.3, skill=skill)).reason


@pytest.mark.parametrize(
    ("p_value", "shown"), [(0.020032, " 0.02504 after"), (0.019968, " 0.02496 after"), (0.2, "p = 0.200")]
)
def test_a_p_value_shows_on_which_side_of_the_limit_it_lies(p_value: float, shown: str) -> None:
    assert shown in settled(compared("drift", p_value)).reason


def test_a_power_just_under_the_limit_is_not_rounded_up_to_it() -> None:
    bar = MeanError(1.0, 1.5 * MOMENTS / 4).quantile(1 - FIRST_LEVEL)
    near = compared("drift", 0.3).model_copy(update={"gain_error": 1.0, "expected_gain": bar + float(ndtri(0.7985))})
    assert "a probability of only 79%, under 80%" in settled(near).reason


def test_every_baseline_has_a_name_for_people() -> None:
    assert len(set(NAMES.values())) == len(NAMES)
    assert set(NAMES) == {
        *(baselines.RANDOM_WALK, baselines.DRIFT, baselines.LINEAR),
        *(baselines.SEASONAL_EWMA, baselines.SEASONAL_HAR, baselines.SEASONAL_BLEND),
        *(MAJORITY, PERSISTENCE, PRESENT_STATISTICS, UNDIRECTED),
        *control.BASELINES,
        *(following.PRIMARY, following.THINNED),
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
        evaluate(rows, is_simulated=False), certificate=PASSED, is_simulated=False, horizon=1, timeframe="1d"
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
        num_found += found.verdict == "skill"
    if r2:
        assert num_found >= 0.8 * num_series
        return
    assert num_found <= 8  # of 120 at 2.5 %: more come up once in 200 times


def test_the_constants_are_those_of_the_definitions() -> None:
    assert (ALPHA, POWER, FIRST_LEVEL, LEAST_LINEAR_GAIN) == (0.025, 0.8, 0.02, 0.0025)
    effects = {"squared_error": 0.005, "brier": 0.005, "log_loss": 0.005, "qlike": 0.02, "net_return": 1.5}
    assert {loss: effect for loss, (_, effect) in EFFECTS.items()} == effects
