"""Verdict: the rule that turns measurements into one, and the sentences that say why.

    not_applicable      the prices are simulated, or nothing is bet on
    skill               the leakage certificate did not fail, the model's loss is below every baseline's, and the
                        largest p-value over the baselines, times the evaluations of the test part, is at most `ALPHA`
    insufficient_data   else, where a true R² of 0.5 % would have been found with a probability under 80 %
    no_skill            else

A model must beat every baseline, the best one too: the largest p-value is a test of that at its own level without any
correction (intersection-union test; Berger, Technometrics 24, 1982). Each test-set evaluation of an overlapping part
was another chance to be lucky: p-values are multiplied by their number (Bonferroni), and the power counts at the level
that is left. That nobody leaked the future is a condition, no test: a failed certificate forbids `skill`, and so does
none at all; one that could not be completed for ready-made columns is said aloud.

`economic` stands apart: what the signal earned after all costs, tested in the same way. A model can have skill that
costs more to trade than it is worth, and earn without skill by holding what rose.

When it fails: evaluations are those that the ledger knows; who peeks elsewhere is not counted.
"""

from ml_workbench_service.contracts.evaluation import (
    BacktestReport,
    CarryStress,
    Certificate,
    Comparison,
    Economic,
    Evaluation,
    Significance,
    Verdict,
)
from ml_workbench_service.evaluation.forecast_metrics import SIMULATED
from ml_workbench_service.market.significance import FEWEST_MOMENTS, power

ALPHA = 0.025
"""finance.md: one-sided, hence the usual 5 % two-sided."""
POWER = 0.8
"""finance.md; Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), makes it the convention."""
POWER_R2 = 0.005
"""finance.md: a monthly R² of half a percent already raises an investor's return visibly (Campbell and Thompson,
Review of Financial Studies 21, 2008)."""
FAR_BELOW = -100.0
"""A skill under this is not worth a figure."""
NAMES = {
    "random_walk": "the random walk", "drift": "the training part's mean", "ewma": "an EWMA of past volatility",
    "har": "the HAR regression", "ewma_har": "EWMA and HAR together", "linear": "a linear model on the same windows",
    "majority_class": "the training part's frequencies", "persistence": "persistence",
    "volatility_frequencies": "the frequencies at this volatility", "undirected": "its own answers without their side",
    "flat": "staying flat", "buy_and_hold": "holding on",
}  # fmt: skip
"""How sentences call the baselines."""


def apply_verdict(
    evaluation: Evaluation,
    *,
    num_evaluations: int,
    certificate: Certificate | None,
    is_simulated: bool,
    horizon: int,
) -> Evaluation:
    """The evaluation with its significance, verdict, economic verdict, and a sentence for each.

    Args:
        evaluation: as its task measured it. One without comparisons that calls itself `not_applicable` keeps its
            reason.
        num_evaluations: test-set evaluations of overlapping parts, this one included.
        certificate: None: none was made, which forbids `skill`.
        is_simulated: whether the prices are.
        horizon: bars that one label spans.
    """
    assert num_evaluations >= 1, "a test part that was judged was evaluated"
    if is_simulated:
        return evaluation.model_copy(update=_apart("not_applicable", SIMULATED, evaluation.backtest))
    if not evaluation.comparisons:
        assert evaluation.verdict == "not_applicable", "what is bet on is compared with something"
        return evaluation.model_copy(update=_apart("not_applicable", evaluation.reason, evaluation.backtest))
    hardest = max(evaluation.comparisons, key=_difficulty)
    found = _significance(hardest, num_evaluations=num_evaluations, horizon=horizon)
    verdict, why = _verdict(evaluation.comparisons, found, certificate)
    reason = f"{_outcome(hardest, found)}: {why}"
    tried = evaluation.validation
    if tried is not None and tried.num_trials > 1:
        reason += f"; {tried.num_trials} trials are known on its validation part, which `validation` bears in mind"
    economic, economic_reason = _economic(evaluation.backtest, num_evaluations=num_evaluations, certificate=certificate)
    return evaluation.model_copy(
        update={
            "significance": found,
            "verdict": verdict,
            "reason": reason,
            "economic": economic,
            "economic_reason": economic_reason,
        }
    )


def _apart(verdict: Verdict, reason: str, backtest: BacktestReport | None) -> dict[str, object]:
    economic_reason = reason if backtest is not None else "there is no signal to trade"
    return {
        "verdict": verdict, "reason": reason, "economic": "not_applicable", "economic_reason": economic_reason,
        "significance": None,
    }  # fmt: skip


def _difficulty(comparison: Comparison) -> tuple[float, float]:
    """The p-value, and of equal ones how little was gained."""
    p_value, skill = comparison.decisive.p_value, comparison.skill
    return 1.0 if p_value is None else p_value, float("inf") if skill is None else -skill


def _significance(hardest: Comparison, *, num_evaluations: int, horizon: int) -> Significance:
    test = hardest.decisive
    by_sign = hardest.loss == "net_return"
    return Significance(
        baseline=hardest.baseline,
        p_value=test.p_value,
        looks=num_evaluations,
        adjusted_p_value=None if test.p_value is None else min(1.0, test.p_value * num_evaluations),
        alpha=ALPHA,
        num_moments=test.num_moments,
        num_independent=test.num_moments / horizon,
        power=power(test.num_moments / horizon, alpha=ALPHA / num_evaluations, r2=POWER_R2, by_sign=by_sign),
        power_r2=POWER_R2,
    )


def _verdict(
    comparisons: tuple[Comparison, ...], found: Significance, certificate: Certificate | None
) -> tuple[Verdict, str]:
    """With what it means and what to do next."""
    is_significant = found.adjusted_p_value is not None and found.adjusted_p_value <= found.alpha
    worse = [each.baseline for each in comparisons if each.skill is None or each.skill <= 0]
    if is_significant and not worse and certificate is not None and certificate.status != "failed":
        unproven = [each.name for each in certificate.checks if each.status == "unprovable"]
        but = f", though leaks could not be excluded where columns came ready-made ({', '.join(unproven)})"
        return "skill", "it knows something that none of the baselines does" + (but if unproven else "")
    if found.p_value is None:
        why = "nothing is proved"
    elif is_significant and not worse:
        why = _uncertified(certificate)
    elif is_significant:
        why = f"its loss is not below that of {_listed(worse)}, whatever it knows: cool its forecasts, or blend them"
    else:
        why = "chance explains it"
    if found.power < POWER:
        return "insufficient_data", f"{why}; {_short_of_data(found)}"
    if is_significant:
        return "no_skill", why
    return "no_skill", (
        f"{why}, and an R² of {POWER_R2:.1%} would have been found with a probability of {found.power:.0%}; try other "
        "features or another horizon rather than more of the same, for each evaluation of this part raises the bar"
    )


def _uncertified(certificate: Certificate | None) -> str:
    if certificate is None:
        return "no leakage certificate was made, without which nothing counts as skill; train through a job"
    failed = [f"{each.name}: {each.detail.rstrip('.')}" for each in certificate.checks if each.status == "failed"]
    return f"the leakage certificate failed ({'; '.join(failed)}); mend that first, for leaked figures prove nothing"


def _short_of_data(found: Significance) -> str:
    percent = int(100 * found.power)  # 79.6 % is not 80 %
    return (
        f"{found.num_independent:,.0f} independent moments and {_times(found.looks)} of them find an R² of "
        f"{POWER_R2:.1%} with a probability of only {percent}%, under {POWER:.0%}; ask for a longer range or a "
        "larger validation_split"
    )


def _outcome(hardest: Comparison, found: Significance) -> str:
    """The hardest baseline and its figures."""
    name = NAMES.get(hardest.baseline, hardest.baseline)
    if found.p_value is None:
        why = "are too few" if found.num_moments < FEWEST_MOMENTS else "know no difference that varies"
        return f"against {name}, the hardest baseline, nothing could be tested: {found.num_moments:,} moments {why}"
    margin = "without a measure, for that never errs," if hardest.skill is None else _signed(hardest.skill)
    if hardest.loss == "net_return":
        margin = f"{hardest.skill or 0.0:+.2e} net log return a bar"
    adjusted = f", {_p(found.adjusted_p_value)} after {_times(found.looks)}" if found.looks > 1 else ""
    return (
        f"against {name}, the hardest baseline, skill is {margin} with p = {_p(found.p_value)}{adjusted} "
        f"(at most {found.alpha} counts; {found.num_moments:,} moments)"
    )


def _economic(
    backtest: BacktestReport | None, *, num_evaluations: int, certificate: Certificate | None
) -> tuple[Economic, str]:
    if backtest is None:
        return "not_applicable", "there is no signal to trade"
    if backtest.num_trades == 0:
        return "unproven", "the signal never traded: it was flat all the time"
    cost = _signed(abs(backtest.total_cost)).removeprefix("+")
    costs = f"net of {cost} costs" if backtest.total_cost >= 0 else f"with {cost} more swap received than costs paid"
    earned = (
        f"{_signed(backtest.net_log_return)} log return {costs} over {backtest.num_days:,} days and "
        f"{backtest.num_trades:,} trades"
    )
    if backtest.net_log_return <= 0:
        return "unprofitable", f"{earned}; {_break_even(backtest)}"
    adjusted = 1.0 if backtest.p_value is None else min(1.0, backtest.p_value * num_evaluations)
    tested = f"{earned}, p = {_p(adjusted)} after {_times(num_evaluations)}"
    if adjusted > ALPHA:
        return "unproven", f"{tested}: luck is not excluded"
    if certificate is None or certificate.status == "failed":
        return "unproven", f"{tested}, but without a leakage certificate that holds no gain counts"
    lost = _lost_to_carry(backtest.stressed, num_evaluations)
    return ("profitable", tested) if lost is None else ("unproven", f"{tested}, but {lost}")


def _lost_to_carry(stressed: CarryStress | None, num_evaluations: int) -> str | None:
    """Why a gain may be carry that the costs leave out; None where it survives the worst of it."""
    if stressed is None:
        return None
    own = "send swap_long_pips and swap_short_pips as they were"
    unknown = [symbol for symbol, rate in stressed.yearly_rate.items() if rate is None]
    if unknown:
        return f"carry is not modelled, and no table bounds it for {', '.join(unknown)}: {own}"
    adjusted = 1.0 if stressed.p_value is None else min(1.0, stressed.p_value * num_evaluations)
    if (stressed.net_log_return or 0.0) > 0 and adjusted <= ALPHA:
        return None
    charged = ", ".join(f"{symbol} {rate:.2%}" for symbol, rate in stressed.yearly_rate.items() if rate is not None)
    return (
        f"carry is not modelled, and with the largest difference of policy rates against each night held ({charged} a "
        f"year) {_signed(stressed.net_log_return or 0.0)} is left, p = {_p(adjusted)}; {own}"
    )


def _break_even(backtest: BacktestReport) -> str:
    """What trading may have cost for nothing to be lost."""
    even = backtest.break_even_cost_bp
    if even is None or even <= 0:
        return "no cost of trading is low enough for it"
    return f"it breaks even where a change of position by one costs {even:.2f} bp"


def _signed(share: float) -> str:
    """A share in percent; what percents would show as nothing in powers of ten, and zero without a sign."""
    if share == 0:
        return "0%"
    if share < FAR_BELOW:  # the other's loss is next to nothing
        return f"under {FAR_BELOW:,.0%}"
    return f"{share:+.2%}" if abs(share) >= 0.00005 else f"{share:+.1e}"


def _listed(baselines: list[str]) -> str:
    return ", ".join(NAMES.get(each, each) for each in baselines)


def _times(num_evaluations: int) -> str:
    return f"{num_evaluations} evaluation{'s' if num_evaluations > 1 else ''}"


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    digits = 5 if round(value, 3) == ALPHA else 3  # on which side of the limit it lies is to be seen
    return f"{value:.{digits}f}" if value >= 0.001 else f"{value:.0e}"
