"""Live verdict: whether live evidence alone shows skill, tested as growing samples are (`growing_samples`).

It is the way from `unverified` to `skill`: whatever a column knew of the past, what was answered before it happened is
no leak. Tests ask against baselines without information, made from the store's bars before the period; every one has
to be beaten, and the loss itself has to be smaller:

    prices        no change, and the mean                 Clark and West's gains
    volatility    seasonal EWMA, seasonal HAR, their mean  differences of squared errors of log volatility
    classes       a class comes true more often than it does anyhow, and its side, beyond whether anything happens
                  (Pesaran and Timmermann, Journal of Business & Economic Statistics 10, 1992)
    regimes       a regime comes true more often than it does anyhow; differences of hits to persistence, and to the
                  likeliest one where the rule's own statistics stand as now
    policies      flat, holding on                         differences of steps' net returns (`policy_evidence`)
    followers     the primary always, and thinned          likewise

When it fails: the ledger keeps the stated regime and not its probability, so that a regime is right or wrong, which
sees less than the published verdict's log loss. Evidence that left the ledger (PREDICTION_LEDGER_ROWS) is gone, and the
oldest moments with it.

Legend: B bars of one symbol, M of them answered in time, T moments, P baselines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from common_lib.exceptions import PredictionError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms
from ml_workbench_service.contracts.market import Bools, Costs, FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.contracts.training import ModelType, Target, parse_target
from ml_workbench_service.evaluation.class_baselines import PRESENT_STATISTICS, by_statistics
from ml_workbench_service.evaluation.growing_samples import FIRST_LIVE_MOMENTS, LEVEL, growing_test, last_stage
from ml_workbench_service.evaluation.policy_evidence import follower_periods, policy_periods
from ml_workbench_service.learning.calibration.class_metrics import PERSISTENCE, persistence, stated
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import ResolvedCosts
from ml_workbench_service.market.outcomes.live_evidence import (
    MOST_MISSING_SHARE,
    Evidence,
    LiveAnswers,
    gather,
    until,
)
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility
from ml_workbench_service.market.significance import mean_by_moment, trailing_sums
from ml_workbench_service.market.targets import label

HISTORY_BARS = 3_000
"""Before the period, for what baselines are made of: half a year of hours, and 22 days of Corsi's month."""
FEWEST_HISTORY = 250
"""Bars before the period under which no baseline is worth the name."""
HAR_DAYS = (1, 5, 22)
"""Corsi, Journal of Financial Econometrics 7, 2009."""


Gains = tuple[Floats, Floats]
"""One baseline's gains at the answered bars, (M,) each: what is tested, and how much smaller the loss was."""


class Period(Protocol):
    """One symbol's evidence."""

    @property
    def moment_ms_M(self) -> Ints:
        """When each answered bar was known."""
        ...

    @property
    def num_bars(self) -> int:
        """Of the period, that have an outcome or should have one."""
        ...

    @property
    def num_answered(self) -> int:
        """Of them, answered in time with an outcome, abstentions included."""
        ...

    @property
    def too_late_since_ms(self) -> int | None:
        """Since when there are bars, where that is too late for a baseline."""
        ...

    def until(self, moment_ms: int) -> Self:
        """The same without bars that were known later."""
        ...

    def gains(self) -> Mapping[str, Gains]:
        """By baseline."""
        ...


@dataclass(frozen=True)
class LiveRules:
    """What a version was published with that tells what came true.

    Attributes:
        regimes: by symbol; empty without regimes.
        costs: resolved, by symbol.
    """

    regimes: Mapping[str, RegimeRule] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)


def live_rules_of(recipe: Mapping[str, Any]) -> LiveRules:
    """Those of a published version, by its recipe.

    Raises:
        PredictionError: they cannot be read.
    """
    try:
        regimes = {symbol: RegimeRule.from_json(each) for symbol, each in recipe.get("regimes", {}).items()}
        costs = {symbol: ResolvedCosts.model_validate(each) for symbol, each in recipe.get("costs", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PredictionError("the version's recipe makes no sense; train it again") from error
    return LiveRules(regimes, costs)


def live_verdict(
    card: ModelCard, answers_of: Callable[[str], LiveAnswers], store: FeatureStore, rules: LiveRules | None = None
) -> LiveVerdict:
    """Of one version.

    Args:
        card: the version's.
        answers_of: its live answers about a symbol, as the ledger kept them.
        store: whose bars alone say what came true.
        rules: the version's; None where its bundle does not tell them.

    Raises:
        UnavailableError: the ledger cannot be read.
        UpstreamError, UpstreamTimeoutError, DataValidationError: the store does not give its bars.
    """
    target, rules = _target(card), rules or LiveRules()
    is_policy = card.type == ModelType.REINFORCEMENT_LEARNING
    if target is None and not is_policy:
        return _none("not_applicable", "there is no live verdict on scores and feature sets: they bet on nothing")
    if target is not None and target.measure == "market_regime" and not set(card.symbols) <= set(rules.regimes):
        return _none("insufficient_data", "its bundle does not keep the regimes' rule of each symbol: train it again")
    follows = target is not None and target.measure == "follow"
    if target is not None and follows and not target.is_traded(card.fill or "next_open"):
        return _none("not_applicable", "its label is not what a position earns; leave `label.start` out")
    if (is_policy or follows) and not set(card.symbols) <= set(rules.costs):
        return _none("insufficient_data", "its bundle does not keep the costs of each symbol: train it again")
    periods: list[Period]
    if target is None:
        periods = list(policy_periods(card, answers_of, store, rules.costs))
    elif follows:
        periods = list(follower_periods(card, answers_of, store, rules.costs))
    else:
        periods = list(_forecasts(card, target, answers_of, store, rules.regimes))
    return _found(periods, horizon=1 if target is None else target.horizon)


def _target(card: ModelCard) -> Target | None:
    """The headline target, whose label begins where the card says."""
    if card.target is None:
        return None
    return parse_target(card.target).model_copy(update={"delay": int(card.label_start == "fill")})


def _found(periods: Sequence[Period], *, horizon: int) -> LiveVerdict:
    late = [each.too_late_since_ms for each in periods if each.too_late_since_ms is not None]
    if late:
        return _none(
            "insufficient_data", f"the store has bars since {iso_of_ms(late[0])} only, too late for a baseline"
        )
    num_bars = sum(each.num_bars for each in periods)
    num_answered = sum(each.num_answered for each in periods)
    share = 1.0 - num_answered / num_bars if num_bars else 1.0
    if not any(len(each.moment_ms_M) for each in periods):
        found = _none("insufficient_data", "no answer was received in time and has an outcome yet")
    elif share > MOST_MISSING_SHARE:
        found = _none(
            "insufficient_data",
            f"{share:.1%} of the period's {num_bars:,} bars were not asked within a tenth of a bar, or have no "
            f"outcome; at most {MOST_MISSING_SHARE:.0%} may be missing (monitoring_level high keeps every answer)",
        )
    else:
        found = _tested(periods, horizon=horizon)
    return found.model_copy(update={"num_bars": num_bars, "num_answered": num_answered, "missing_share": share})


def _none(verdict: str, reason: str) -> LiveVerdict:
    return LiveVerdict.model_validate({"verdict": verdict, "reason": reason})


def _tested(periods: Sequence[Period], *, horizon: int) -> LiveVerdict:
    """By the baseline that was hardest to beat; symbols at one moment are one observation."""
    moments = np.unique(np.concatenate([each.moment_ms_M for each in periods]))
    stage = last_stage(len(moments), first=FIRST_LIVE_MOMENTS)
    if stage is None:
        reason = f"{len(moments)} moments of evidence; the first test waits for {FIRST_LIVE_MOMENTS}"
        waiting = {"num_moments": len(moments), "next_at": FIRST_LIVE_MOMENTS}
        return _none("insufficient_data", reason).model_copy(update=waiting)
    # A test reads nothing later than its own moments, frequencies of classes included.
    oldest = [each.until(int(moments[stage.num_moments - 1])) for each in periods]
    oldest = [each for each in oldest if len(each.moment_ms_M)]
    gains = [each.gains() for each in oldest]
    read_M = np.concatenate([each.moment_ms_M for each in oldest])
    answers, worse = {}, []
    for baseline in gains[0]:
        tested_M, saved_M = (np.concatenate([each[baseline][place] for each in gains]) for place in (0, 1))
        answers[baseline] = growing_test(mean_by_moment(tested_M, read_M), first=FIRST_LIVE_MOMENTS, horizon=horizon)
        if mean_by_moment(saved_M, read_M).mean() <= 0:
            worse.append(baseline)
    p_values = {name: 1.0 if each.p_value is None else each.p_value for name, each in answers.items()}
    hardest = max(p_values, key=lambda name: p_values[name])
    tested = f"{stage.num_moments:,} moments against {hardest}, p = {p_values[hardest]:.3g} (at most {LEVEL} counts)"
    told: dict[str, object] = {
        "baseline": hardest, "p_value": p_values[hardest], "num_moments": len(moments),
        "next_at": 2 * stage.num_moments,
    }  # fmt: skip
    if worse or not all(each.is_passed for each in answers.values()):
        loss = f"; its loss is not below that of {', '.join(worse)}" if worse else ""
        reason = f"{tested}: nothing is proved{loss}; the next test waits for {2 * stage.num_moments:,}"
        return _none("insufficient_data", reason).model_copy(update=told)
    return _none("skill", f"{tested}: what it said before it happened came true").model_copy(update=told)


@dataclass(frozen=True)
class _Forecasts:
    """One symbol's forecasts, and the bars that they were gathered from."""

    target: Target
    evidence: Evidence
    table: FeatureTable
    rule: RegimeRule | None

    @property
    def moment_ms_M(self) -> Ints:
        """As `Period`'s, like all that follows."""
        return self.evidence.moment_ms_M

    @property
    def num_bars(self) -> int:
        return self.evidence.num_bars

    @property
    def num_answered(self) -> int:
        return self.evidence.num_answered

    @property
    def too_late_since_ms(self) -> int | None:
        return int(self.table.opened_ms[0]) if self.evidence.first_row < FEWEST_HISTORY else None

    def until(self, moment_ms: int) -> Self:
        return replace(self, evidence=until(self.evidence, moment_ms))

    def gains(self) -> Mapping[str, Gains]:
        if self.rule is not None:
            return _gains_of_regimes(self.target, self.evidence, self.table, self.rule)
        return _gains(self.target, self.evidence, self.table)


def _forecasts(
    card: ModelCard,
    target: Target,
    answers_of: Callable[[str], LiveAnswers],
    store: FeatureStore,
    regimes: Mapping[str, RegimeRule],
) -> Iterator[_Forecasts]:
    """Of each symbol that has evidence."""
    bar_ms = TIMEFRAMES_MS[card.timeframe]
    for symbol in card.symbols:
        answers = answers_of(symbol)
        if not len(answers.as_of_ms_N):
            continue
        first_ms = int(answers.as_of_ms_N.min())
        start_ms = int(calendar.advance(first_ms, -HISTORY_BARS * bar_ms)) - 7 * calendar.DAY_MS
        table = store.fetch([symbol], card.timeframe, start_ms=start_ms, end_ms=None, features=["close"])[0]
        rule = regimes[symbol] if target.measure == "market_regime" else None
        regimes_B = None if rule is None else rule.classify(*_statistics(table))
        evidence = gather(answers, table, target, regimes_B=regimes_B)
        if evidence is not None:
            yield _Forecasts(target, evidence, table, rule)


def _statistics(table: FeatureTable) -> tuple[Floats, Floats]:
    """(B,) trend and volatility, as training's rule of regimes reads them."""
    runs_B = calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar)
    return regime_features(np.asarray(table.columns["close"]), runs_B)


def _gains(target: Target, evidence: Evidence, table: FeatureTable) -> dict[str, Gains]:
    """By baseline, in units of the symbol's own labels before the period."""
    if target.classes:
        return _gains_of_classes(evidence)
    past = label(
        target,
        close=np.asarray(table.columns["close"]),
        opened_ms=table.opened_ms,
        available_at_ms=table.available_at_ms,
        runs=calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar),
        timeframe=table.timeframe,
    )
    is_known = (np.arange(len(table)) + target.reach <= evidence.first_row) & np.isfinite(past.values)
    if not target.needs_price:
        return _gains_of_volatility(target, evidence, table, np.where(is_known, past.values, np.nan))
    values = past.values[is_known]
    scale = float(values.std()) or 1.0
    return {
        "random_walk": _clark_west(evidence, 0.0, scale),
        "drift": _clark_west(evidence, float(values.mean()), scale),
    }


def _clark_west(evidence: Evidence, baseline: float, scale: float) -> Gains:
    missed_M = (evidence.realised_M - baseline) / scale
    moved_M = (evidence.prediction_M - baseline) / scale
    return 2 * missed_M * moved_M, missed_M**2 - (missed_M - moved_M) ** 2


def _gains_of_classes(evidence: Evidence) -> dict[str, Gains]:
    """Hits beyond how often the stated class comes true anyhow; and agreement in side beyond both sides' leanings."""
    said_M, true_M = evidence.prediction_M, evidence.realised_M
    hits_M = _hits_beyond_chance(said_M, true_M)
    sides_M = np.sign(said_M) * (np.sign(true_M) - float(np.mean(np.sign(true_M))))
    return {"frequencies": (hits_M, hits_M), "undirected": (sides_M, sides_M)}


def _hits_beyond_chance(said_M: Floats, true_M: Floats) -> Floats:
    """(M,) whether the stated class came true, less how often it does anyhow."""
    often = {value: float(np.mean(true_M == value)) for value in np.unique(said_M)}
    return np.asarray((said_M == true_M) - np.array([often[value] for value in said_M]))


def _gains_of_regimes(target: Target, evidence: Evidence, table: FeatureTable, rule: RegimeRule) -> dict[str, Gains]:
    """Hits beyond chance, and beyond the hits of who knows the rule: where it stands now, and what followed from there.

    Both are learnt from the bars before the period.
    """
    said_M, true_M, row_M = evidence.prediction_M, evidence.realised_M, evidence.row_M
    statistics_B2 = np.column_stack(_statistics(table))
    present_B = rule.classify(*statistics_B2.T)
    followed_B = np.full(len(table), np.nan)
    followed_B[: -target.horizon] = present_B[target.horizon :]
    is_known_B = np.isfinite(followed_B) & np.isfinite(present_B)
    past = np.flatnonzero(is_known_B & (np.arange(len(table)) + target.horizon <= evidence.first_row))
    stays = persistence(followed_B[past], present_B[past], present_N=present_B[row_M], num_classes=len(target.classes))
    likeliest_M = stays.stated_N.copy()
    told = np.flatnonzero(np.isfinite(present_B[row_M]))
    likeliest_M[told] = stated(
        by_statistics(statistics_B2, followed_B, known=past, asked=row_M[told], prior_NC=stays.probabilities_NC[told])
    )
    hits_M = _hits_beyond_chance(said_M, true_M)
    found: dict[str, Gains] = {"frequencies": (hits_M, hits_M)}
    for name, baseline_M in ((PERSISTENCE, stays.stated_N), (PRESENT_STATISTICS, likeliest_M)):
        gained_M = (said_M == true_M).astype(np.float64) - (baseline_M == true_M)
        found[name] = (gained_M, gained_M)
    return found


def _gains_of_volatility(target: Target, evidence: Evidence, table: FeatureTable, past_B: Floats) -> dict[str, Gains]:
    forecasts = _volatility_baselines(target, table, past_B, evidence.row_M)
    floor = 1e-3 * float(np.nanmedian(past_B))  # a market that stands still has no log volatility
    true_M, said_M = (np.log(np.maximum(each, floor)) for each in (evidence.realised_M, evidence.prediction_M))
    found = {}
    for name, forecast_M in forecasts.items():
        saved_M = (true_M - forecast_M) ** 2 - (true_M - said_M) ** 2
        found[name] = (saved_M, saved_M)
    return found


def _volatility_baselines(target: Target, table: FeatureTable, past_B: Floats, row_M: Ints) -> Mapping[str, Floats]:
    """(M,) log volatility by seasonal EWMA, seasonal HAR, and their mean, each fitted before the period."""
    bar_ms = TIMEFRAMES_MS[table.timeframe]
    moves_B = np.diff(np.log(np.asarray(table.columns["close"])), prepend=np.nan)
    is_past_B = np.isfinite(past_B) & (past_B > 0)
    until = int(np.flatnonzero(is_past_B)[-1]) + 1
    profile = SeasonalProfile.fit(table.opened_ms[:until], moves_B[:until], bar_ms)
    coming_B = np.log(profile.coming_factor(table.opened_ms, target.horizon))
    ewma_B = np.log(seasonal_volatility(profile, table.opened_ms, moves_B, horizon=target.horizon))
    squares_B = (moves_B / profile.factor(table.opened_ms)) ** 2
    spans = [max(1, days * calendar.DAY_MS // bar_ms) for days in HAR_DAYS]
    sums = [trailing_sums(squares_B, span) for span in spans]
    har_BX = np.column_stack([0.5 * np.log(np.maximum(total / np.maximum(num, 1), 1e-20)) for total, num in sums])
    forecasts = {
        "ewma": _regressed(ewma_B[:, None], past_B, is_past_B)[row_M],
        "har": _regressed(np.column_stack([har_BX, coming_B]), past_B, is_past_B)[row_M],
    }
    return {**forecasts, "ewma_har": (forecasts["ewma"] + forecasts["har"]) / 2}


def _regressed(told_BX: Floats, past_B: Floats, is_past_B: Bools) -> Floats:
    """(B,) log volatility by least squares on the past alone."""
    told_BX = np.column_stack([np.ones(len(told_BX)), told_BX])
    whole_B = is_past_B & np.isfinite(told_BX).all(axis=1)
    slopes = np.linalg.lstsq(told_BX[whole_B], np.log(past_B[whole_B]), rcond=None)[0]
    return np.asarray(np.nan_to_num(told_BX) @ slopes)
