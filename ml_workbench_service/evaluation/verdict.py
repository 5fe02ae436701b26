"""Verdict: the rule that turns measurements into one word, and the sentences that say why. The first that applies:

    not_applicable      the prices are simulated, or nothing is bet on
    leak                the leakage certificate failed
    implausible         the lower bound of a figure exceeds its band (`evaluation/plausibility.py`)
    unverified, skill   every test against a baseline without information has p <= 0.025 after evaluations, and the
                        version itself lost less than each of them on its own rows; `skill` where the certificate is
                        proven, with its `proof`
    insufficient_data   what must not be missed would have been found with a probability under 80 %
    no_skill            else, and where the family does not find a known future (policies' oracle)

A model must beat every baseline, the best one too: the largest p-value is a test of that at its own level without any
correction (intersection-union test; Berger, Technometrics 24, 1982). Hypotheses on the same return series and kind of
target were as many chances to be lucky: Holm's step-down (Scandinavian Journal of Statistics 6, 1979) over all of them.
A recipe's sample grows with each retraining; "p <= 0.025" is then what its test may spend
(`evaluation/growing_samples.py`), and p-values are stated in units of that.

`adds_over_linear` is another question, and so is `economic`: what the signal earned after all costs. A model can have
skill that a linear one has too, that costs more to trade than it is worth, and earn without skill by holding what rose.

When it fails: hypotheses are those that the log knows; who peeks elsewhere is not counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ml_workbench_service.contracts.evaluation import (
    VERDICT_RULES,
    AddsOverLinear,
    BacktestReport,
    CarryStress,
    Certificate,
    Comparison,
    Economic,
    Evaluation,
    Proof,
    Significance,
    Verdict,
)
from ml_workbench_service.evaluation.baselines import LINEAR
from ml_workbench_service.evaluation.forecast_metrics import SIMULATED
from ml_workbench_service.evaluation.growing_samples import LEVEL, Stage, level
from ml_workbench_service.evaluation.plausibility import Excess, excesses
from ml_workbench_service.learning.data.windows import FEWEST_WINDOWS
from ml_workbench_service.market.significance import FEWEST_MOMENTS, NORMAL, MeanError, power, power_of

ALPHA = LEVEL
"""finance.md: one-sided, hence the usual 5 % two-sided."""
POWER = 0.8
"""finance.md; Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), makes it the convention."""
LEAST_LINEAR_GAIN = 0.0025
"""finance.md: of `linear`'s loss, under which no complexity is worth its keep."""
NORMAL_80 = 0.8416212335729143
"""The normal's 80 % quantile."""
FAR_BELOW = -100.0
"""A skill under this is not worth a figure."""
NAMES = {
    "random_walk": "the random walk", "drift": "the training part's mean",
    "seasonal_ewma": "an EWMA of past volatility with its season", "seasonal_har": "the seasonal HAR regression",
    "seasonal_blend": "the mean of seasonal EWMA and HAR", "linear": "a linear model on the same windows",
    "majority_class": "the training part's frequencies", "persistence": "persistence",
    "present_statistics": "the frequencies at the rule's present statistics",
    "undirected": "its own answers without their side", "flat": "staying flat", "buy_and_hold": "holding on",
    "primary": "following the primary always", "thinned": "its primary at every bar, as large as it is followed often",
}  # fmt: skip
"""How sentences call the baselines."""


@dataclass(frozen=True)
class TestedSample:
    """The rows that decide: a recipe's pooled ones, as many as its last test reads."""

    __test__ = False

    comparisons: tuple[Comparison, ...]
    stage: Stage


def apply_verdict(
    evaluation: Evaluation,
    *,
    certificate: Certificate | None,
    is_simulated: bool,
    horizon: int,
    timeframe: str,
    others: Sequence[float | None] = (),
    sample: TestedSample | None = None,
) -> Evaluation:
    """The evaluation with its significance, verdict, economic verdict, and a sentence for each.

    Args:
        evaluation: as its task measured it. One without comparisons that calls itself `not_applicable` keeps its
            reason.
        certificate: None: none was made, so that nothing is proven.
        is_simulated: whether the prices are.
        horizon: bars that one label spans.
        timeframe: of the bars.
        others: p-values, in units of what their tests may spend, of all other hypotheses on this return series and
            kind of target; None where one was tried and never told.
        sample: None: the evaluation's own rows, tested for the first time.
    """
    evaluation = evaluation.model_copy(update={"verdict_rules": VERDICT_RULES})
    if is_simulated:
        return evaluation.model_copy(update=_apart("not_applicable", SIMULATED, evaluation.backtest))
    if not evaluation.comparisons:
        assert evaluation.verdict == "not_applicable", "what is bet on is compared with something"
        return evaluation.model_copy(update=_apart("not_applicable", evaluation.reason, evaluation.backtest))
    linear = next((each for each in evaluation.comparisons if each.baseline == LINEAR), None)
    own = _without_linear(evaluation.comparisons)
    if sample is None:
        sample = TestedSample(own, Stage(0, max(each.decisive.num_moments for each in own), level(0)))
    hardest = max(_without_linear(sample.comparisons), key=_difficulty)
    found = _significance(hardest, sample, others=others, horizon=horizon)
    beyond = excesses(evaluation.lower_bounds, evaluation.backtest, timeframe=timeframe, horizon=horizon)
    verdict, why, proof = _verdict(evaluation, own, found, certificate, beyond)
    reason = f"{_outcome(hardest, found)}: {why}"
    tried = evaluation.validation
    if tried is not None and tried.num_trials > 1:
        reason += f"; {tried.num_trials} trials are known on its validation part, which `validation` bears in mind"
    economic, economic_reason = _economic(evaluation.backtest, num_evaluations=found.looks, certificate=certificate)
    return evaluation.model_copy(
        update={
            "significance": found,
            "verdict": verdict,
            "proof": proof,
            "reason": reason,
            "adds_over_linear": adds_over_linear(linear, num_evaluations=found.looks),
            "economic": economic,
            "economic_reason": economic_reason,
        }
    )


def todays_verdict(
    evaluation: Evaluation,
    *,
    certificate: Certificate | None,
    timeframe: str,
    horizon: int,
    others: Sequence[float | None],
) -> Evaluation:
    """The evaluation as it reads after all hypotheses that are known today; cards themselves are never rewritten.

    What was judged by earlier rules, or has nothing tested, stays as it is.
    """
    published = evaluation.significance
    if evaluation.verdict_rules < VERDICT_RULES or published is None:
        return evaluation
    num, adjusted = len(others) + 1, holm(spent_p_value(published), others)
    if (num, adjusted) == (published.looks, published.adjusted_p_value):
        return evaluation
    found = published.model_copy(update={"adjusted_p_value": adjusted, **_by_todays_bar(published, num)})
    beyond = excesses(evaluation.lower_bounds, evaluation.backtest, timeframe=timeframe, horizon=horizon)
    verdict, why, proof = _verdict(evaluation, _without_linear(evaluation.comparisons), found, certificate, beyond)
    economic, economic_reason = _economic(evaluation.backtest, num_evaluations=num, certificate=certificate)
    return evaluation.model_copy(
        update={
            "significance": found,
            "verdict": verdict,
            "proof": proof,
            "reason": f"after {_times(num)} known today p = {_p(adjusted)}: {why}",
            "adds_over_linear": _adds_today(evaluation, num),
            "economic": economic,
            "economic_reason": economic_reason,
        }
    )


def _by_todays_bar(published: Significance, num: int) -> dict[str, object]:
    """Power, and what it excludes (at least), where as many hypotheses share the level; by the normal's quantiles."""
    alpha = level(published.doublings)
    then, now = (NORMAL.inv_cdf(1 - alpha / each) for each in (published.looks, num))
    power_now, excluded = published.power, published.excluded_sharpe
    if 0.0 < power_now < 1.0:
        power_now = NORMAL.cdf(NORMAL.inv_cdf(power_now) + then - now)
    if excluded is not None:
        excluded *= (now + NORMAL_80) / (then + NORMAL_80)
    return {"looks": num, "power": power_now, "excluded_sharpe": excluded}


def _adds_today(evaluation: Evaluation, num: int) -> AddsOverLinear | None:
    """The answer to the other question after as many evaluations; its bound knows nothing of them."""
    published = evaluation.adds_over_linear
    linear = next((each for each in evaluation.comparisons if each.baseline == LINEAR), None)
    p_value = None if linear is None else linear.diebold_mariano.p_value
    if published is None or linear is None or p_value is None or published.upper_bound is None:
        return published
    return _answered(published, min(1.0, p_value * num), earns=linear.loss == "net_return")


def spent_p_value(found: Significance | None) -> float | None:
    """The p-value in units of what its test may spend, before any adjustment."""
    if found is None or found.p_value is None:
        return None
    return min(1.0, found.p_value * ALPHA / level(found.doublings))


def holm(p_value: float | None, others: Sequence[float | None]) -> float | None:
    """The p-value after all others by Holm's step-down; an unknown one counts as 1."""
    if p_value is None:
        return None
    every = sorted([p_value, *(1.0 if each is None else each for each in others)])
    place = len(every) - every[::-1].index(p_value) - 1
    return min(1.0, max((len(every) - number) * each for number, each in enumerate(every[: place + 1])))


def adds_over_linear(comparison: Comparison | None, *, num_evaluations: int) -> AddsOverLinear:
    """Whether the gain over `linear` is there, is too small to be worth anything, or cannot be told."""
    if comparison is None:
        return AddsOverLinear(answer="not_applicable")
    test, model, linear = comparison.diebold_mariano, comparison.model_loss, comparison.baseline_loss
    earns = comparison.loss == "net_return"
    if test.p_value is None or test.statistic is None or model is None or linear is None or not (linear or earns):
        return AddsOverLinear(answer="insufficient_data")
    mean, unit = (model - linear, 1.0) if earns else (linear - model, linear)
    error = mean / test.statistic if test.statistic else 0.0
    upper = (mean + _freedom(comparison, error).quantile(1 - ALPHA) * error) / unit
    told = AddsOverLinear(answer="insufficient_data", gain=mean / unit, upper_bound=upper)
    return _answered(told, min(1.0, test.p_value * num_evaluations), earns=earns)


def _answered(told: AddsOverLinear, p_value: float, *, earns: bool) -> AddsOverLinear:
    """By the p-value after evaluations, else by the bound."""
    assert told.upper_bound is not None, "what was tested has a bound"
    answer = "insufficient_data"
    if p_value <= ALPHA:
        answer = "yes"
    elif told.upper_bound < (0.0 if earns else LEAST_LINEAR_GAIN):
        answer = "no"
    return told.model_copy(update={"answer": answer, "p_value": p_value})


def _without_linear(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    return tuple(each for each in comparisons if each.baseline != LINEAR)


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


def _significance(
    hardest: Comparison, sample: TestedSample, *, others: Sequence[float | None], horizon: int
) -> Significance:
    """Power is that of the comparison in which the effect is hardest to see: all of them must be passed."""
    test, num = hardest.decisive, len(others) + 1
    alpha = sample.stage.level / num
    compared = _without_linear(sample.comparisons)
    powers = {each.baseline: _power(each, alpha=alpha, horizon=horizon) for each in compared}
    weakest = min(compared, key=lambda each: powers[each.baseline])
    spent = None if test.p_value is None else min(1.0, test.p_value * ALPHA / sample.stage.level)
    return Significance(
        baseline=hardest.baseline,
        p_value=test.p_value,
        looks=num,
        adjusted_p_value=holm(spent, others),
        alpha=ALPHA,
        num_moments=test.num_moments,
        num_independent=test.num_moments / horizon,
        power=powers[weakest.baseline],
        power_r2=weakest.effect if weakest.effect_kind == "r2" else None,
        effect_kind=weakest.effect_kind,
        effect=weakest.effect,
        excluded_sharpe=excluded_sharpe(weakest, alpha=alpha, horizon=horizon),
        doublings=sample.stage.doublings,
    )


def _freedom(comparison: Comparison, error: float) -> MeanError:
    """The t distribution that the comparison's tests had."""
    test = comparison.decisive
    return MeanError(error, 1.5 * max(test.num_moments, 1) / (test.lag + 1))


def _power(comparison: Comparison, *, alpha: float, horizon: int) -> float:
    """By the observed gains; before they vary, by their number."""
    expected, error = comparison.expected_gain, comparison.gain_error
    if expected is not None and error:
        return power_of(expected, _freedom(comparison, error), alpha=alpha)
    effect = comparison.effect if comparison.effect_kind == "r2" else None
    num = comparison.decisive.num_moments / horizon
    return 0.0 if effect is None else power(num, alpha=alpha, r2=effect)


def excluded_sharpe(comparison: Comparison, *, alpha: float, horizon: int) -> float | None:
    """The gross Sharpe ratio of a year that would have been found with a probability of 80 %.

    A forecast with R² of r earns root of r a label before costs, in units of the label's deviation, held once a
    horizon; of a volatility nothing is held.
    """
    expected, error, per_year = comparison.expected_gain, comparison.gain_error, comparison.moments_per_year
    if expected is None or not error or not comparison.effect or not per_year:
        return None
    found = _freedom(comparison, error)
    times = (found.quantile(1 - alpha) + NORMAL_80) * error / expected
    if comparison.effect_kind == "sharpe":
        return comparison.effect * times
    if comparison.effect_kind != "r2":
        return None
    if comparison.clark_west is None:  # the gain is the R² itself: its root, or less where the error shrinks with it
        times = max(times, math.sqrt(times))
    return math.sqrt(comparison.effect * per_year / horizon) * times


def _verdict(
    evaluation: Evaluation,
    own: tuple[Comparison, ...],
    found: Significance,
    certificate: Certificate | None,
    beyond: list[Excess],
) -> tuple[Verdict, str, Proof | None]:
    """With what it means and what to do next."""
    if certificate is not None and certificate.status == "failed":
        return "leak", _leak(certificate), None
    if beyond:
        return "implausible", _implausible(beyond), None
    if evaluation.num_answered is not None and evaluation.num_answered < FEWEST_WINDOWS["test"]:
        return "insufficient_data", "serving would have abstained on nearly all of the test part", None
    is_significant = found.adjusted_p_value is not None and found.adjusted_p_value <= found.alpha
    worse = [each.baseline for each in own if each.skill is None or each.skill <= 0]
    if is_significant and not worse:
        if evaluation.oracle_passed is False:
            return "no_skill", "its family does not find a future that it is told (the oracle of the sanity runs)", None
        return _passed(certificate)
    if found.p_value is None:
        why = "nothing is proved"
    elif is_significant:
        why = f"its loss is not below that of {_listed(worse)}, whatever it knows: cool its forecasts, or blend them"
    else:
        why = "chance explains it"
    if found.power < POWER:
        return "insufficient_data", f"{why}; {_short_of_data(found)}", None
    if is_significant:
        return "no_skill", why, None
    return "no_skill", f"{why}, and {_excluded(found)}", None


def _passed(certificate: Certificate | None) -> tuple[Verdict, str, Proof | None]:
    """By how well it is known that no column knew the future."""
    knows = "it knows something that none of the baselines does"
    if certificate is None:
        return "unverified", f"{knows}, but no leakage certificate was made; train through a job", None
    if certificate.proof is not None:
        return "skill", f"{knows} (proof: {certificate.proof})", certificate.proof
    unproven = [each.name for each in certificate.checks if each.status == "unprovable"]
    where = f" ({', '.join(unproven)})" if unproven else ""
    return (
        "unverified",
        f"{knows}, but leaks could not be excluded where columns came ready-made{where}; declare or witness them, let "
        "the service derive them from bars, or collect live evidence",
        None,
    )


def _leak(certificate: Certificate) -> str:
    failed = [f"{each.name}: {each.detail.rstrip('.')}" for each in certificate.checks if each.status == "failed"]
    return f"the leakage certificate failed ({'; '.join(failed)}); mend that first, for leaked figures prove nothing"


def _implausible(beyond: list[Excess]) -> str:
    return (
        f"{'; '.join(each.sentence for each in beyond)}; look for prices that bounce, stand still or carry a wrong "
        "time zone, and for columns that know the future"
    )


def _effect(found: Significance) -> str:
    size = found.effect if found.effect is not None else found.power_r2 or 0.0
    if found.effect_kind == "sharpe":
        return f"a Sharpe ratio of {size:g}"
    return f"an R² of {size:.1%}" if found.effect_kind == "r2" else f"a gain of {size:.0%} of the loss"


def _excluded(found: Significance) -> str:
    sharpe = found.excluded_sharpe
    named = "" if sharpe is None else f"; a gross Sharpe ratio of {sharpe:.1f} a year is excluded"
    return (
        f"{_effect(found)} would have been found with a probability of {found.power:.0%}{named}; try other "
        "features or another horizon rather than more of the same, for each evaluation of this part raises the bar"
    )


def _short_of_data(found: Significance) -> str:
    percent = min(round(100 * found.power), round(100 * POWER) - 1)  # 79.6 % is not 80 %
    return (
        f"{found.num_independent:,.0f} independent moments and {_times(found.looks)} of them find {_effect(found)} "
        f"with a probability of only {percent}%, under {POWER:.0%}; ask for a longer range or a larger validation_split"
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
    spends = "the first test" if found.doublings == 0 else f"the test after {found.doublings} doublings"
    return (
        f"against {name}, the hardest baseline, skill is {margin} with p = {_p(found.p_value)}, "
        f"{_p(found.adjusted_p_value)} after {_times(found.looks)} and what {spends} of a recipe may spend "
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
