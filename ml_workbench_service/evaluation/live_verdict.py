"""Live verdict: whether live evidence alone shows skill, tested as growing samples are (`growing_samples`).

It is the way from `unverified` to `skill`: whatever a column knew of the past, what was answered before it happened is
no leak. Tests ask against baselines without information, made from the store's bars before the period; every one has
to be beaten, and the loss itself has to be smaller:

    prices        no change, and the mean                 Clark and West's gains
    volatility    seasonal EWMA, seasonal HAR, their mean  differences of squared errors of log volatility
    classes       a class comes true more often than it does anyhow, and its side, beyond whether anything happens
                  (Pesaran and Timmermann, Journal of Business & Economic Statistics 10, 1992)

When it fails: there is no live verdict on regimes, whose rule no bar tells, nor on policies, whose positions depend on
what was held. Evidence that left the ledger (PREDICTION_LEDGER_ROWS) is gone, and the oldest moments with it.

Legend: B bars of one symbol, M of them answered in time, T moments, P baselines.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms
from ml_workbench_service.contracts.market import Bools, FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.evaluation.growing_samples import FIRST_LIVE_MOMENTS, LEVEL, growing_test, last_stage
from ml_workbench_service.market import calendar
from ml_workbench_service.market.outcomes.live_evidence import (
    MOST_MISSING_SHARE,
    Evidence,
    LiveAnswers,
    gather,
    until,
)
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility
from ml_workbench_service.market.significance import mean_by_moment, trailing_sums
from ml_workbench_service.market.targets import label

HISTORY_BARS = 3_000
"""Before the period, for what baselines are made of: half a year of hours, and 22 days of Corsi's month."""
FEWEST_HISTORY = 250
"""Bars before the period under which no baseline is worth the name."""
HAR_DAYS = (1, 5, 22)
"""Corsi, Journal of Financial Econometrics 7, 2009."""


Period = tuple[Evidence, FeatureTable]
"""One symbol's evidence, and the bars that it was gathered from."""


@dataclass(frozen=True)
class _Gains:
    """One baseline's gains at the answered bars, and how much smaller the loss was."""

    tested_M: Floats
    saved_M: Floats


def live_verdict(card: ModelCard, answers_of: Callable[[str], LiveAnswers], store: FeatureStore) -> LiveVerdict:
    """Of one version.

    Args:
        card: the version's.
        answers_of: its live answers about a symbol, as the ledger kept them.
        store: whose bars alone say what came true.

    Raises:
        UnavailableError: the ledger cannot be read.
        UpstreamError, UpstreamTimeoutError, DataValidationError: the store does not give its bars.
    """
    target = None if card.target is None else parse_target(card.target)
    if target is None or target.measure == "market_regime":
        return _none("not_applicable", "there is no live verdict on what bars do not tell: regimes, policies, scores")
    periods = list(_periods(card, target, answers_of, store))
    late = [table for evidence, table in periods if evidence.first_row < FEWEST_HISTORY]
    if late:
        since = iso_of_ms(int(late[0].opened_ms[0]))
        return _none("insufficient_data", f"the store has {late[0].symbol} since {since} only, too late for a baseline")
    num_bars = sum(evidence.num_bars for evidence, _ in periods)
    num_answered = sum(evidence.num_answered for evidence, _ in periods)
    share = 1.0 - num_answered / num_bars if num_bars else 1.0
    if not any(len(evidence.row_M) for evidence, _ in periods):
        found = _none("insufficient_data", "no answer was received in time and has an outcome yet")
    elif share > MOST_MISSING_SHARE:
        found = _none(
            "insufficient_data",
            f"{share:.1%} of the period's {num_bars:,} bars were not asked within a tenth of a bar, or have no "
            f"outcome; at most {MOST_MISSING_SHARE:.0%} may be missing (monitoring_level high keeps every answer)",
        )
    else:
        found = _tested(target, periods)
    return found.model_copy(update={"num_bars": num_bars, "num_answered": num_answered, "missing_share": share})


def _none(verdict: str, reason: str) -> LiveVerdict:
    return LiveVerdict.model_validate({"verdict": verdict, "reason": reason})


def _periods(
    card: ModelCard, target: Target, answers_of: Callable[[str], LiveAnswers], store: FeatureStore
) -> Iterator[Period]:
    """Of each symbol that has evidence."""
    bar_ms = TIMEFRAMES_MS[card.timeframe]
    for symbol in card.symbols:
        answers = answers_of(symbol)
        if not len(answers.as_of_ms_N):
            continue
        first_ms = int(answers.as_of_ms_N.min())
        start_ms = int(calendar.advance(first_ms, -HISTORY_BARS * bar_ms)) - 7 * calendar.DAY_MS
        table = store.fetch([symbol], card.timeframe, start_ms=start_ms, end_ms=None, features=["close"])[0]
        evidence = gather(answers, table, target)
        if evidence is not None:
            yield evidence, table


def _tested(target: Target, periods: list[Period]) -> LiveVerdict:
    """By the baseline that was hardest to beat; symbols at one moment are one observation."""
    moments = np.unique(np.concatenate([evidence.moment_ms_M for evidence, _ in periods]))
    stage = last_stage(len(moments), first=FIRST_LIVE_MOMENTS)
    if stage is None:
        reason = f"{len(moments)} moments of evidence; the first test waits for {FIRST_LIVE_MOMENTS}"
        waiting = {"num_moments": len(moments), "next_at": FIRST_LIVE_MOMENTS}
        return _none("insufficient_data", reason).model_copy(update=waiting)
    # A test reads nothing later than its own moments, frequencies of classes included.
    oldest = [(until(evidence, int(moments[stage.num_moments - 1])), table) for evidence, table in periods]
    gains = [_gains(target, evidence, table) for evidence, table in oldest if len(evidence.row_M)]
    read_M = np.concatenate([evidence.moment_ms_M for evidence, _ in oldest if len(evidence.row_M)])
    answers, worse = {}, []
    for baseline in gains[0]:
        tested_T = mean_by_moment(np.concatenate([each[baseline].tested_M for each in gains]), read_M)
        answers[baseline] = growing_test(tested_T, first=FIRST_LIVE_MOMENTS, horizon=target.horizon)
        if mean_by_moment(np.concatenate([each[baseline].saved_M for each in gains]), read_M).mean() <= 0:
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


def _gains(target: Target, evidence: Evidence, table: FeatureTable) -> dict[str, _Gains]:
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
    is_known = (np.arange(len(table)) + target.horizon <= evidence.first_row) & np.isfinite(past.values)
    if not target.needs_price:
        return _gains_of_volatility(target, evidence, table, np.where(is_known, past.values, np.nan))
    values = past.values[is_known]
    scale = float(values.std()) or 1.0
    return {
        "random_walk": _clark_west(evidence, 0.0, scale),
        "drift": _clark_west(evidence, float(values.mean()), scale),
    }


def _clark_west(evidence: Evidence, baseline: float, scale: float) -> _Gains:
    missed_M = (evidence.realised_M - baseline) / scale
    moved_M = (evidence.prediction_M - baseline) / scale
    return _Gains(tested_M=2 * missed_M * moved_M, saved_M=missed_M**2 - (missed_M - moved_M) ** 2)


def _gains_of_classes(evidence: Evidence) -> dict[str, _Gains]:
    """Hits beyond how often the stated class comes true anyhow; and agreement in side beyond both sides' leanings."""
    said_M, true_M = evidence.prediction_M, evidence.realised_M
    often = {value: float(np.mean(true_M == value)) for value in np.unique(said_M)}
    hits_M = (said_M == true_M) - np.array([often[value] for value in said_M])
    sides_M = np.sign(said_M) * (np.sign(true_M) - float(np.mean(np.sign(true_M))))
    return {"frequencies": _Gains(hits_M, hits_M), "undirected": _Gains(sides_M, sides_M)}


def _gains_of_volatility(target: Target, evidence: Evidence, table: FeatureTable, past_B: Floats) -> dict[str, _Gains]:
    forecasts = _volatility_baselines(target, table, past_B, evidence.row_M)
    floor = 1e-3 * float(np.nanmedian(past_B))  # a market that stands still has no log volatility
    true_M, said_M = (np.log(np.maximum(each, floor)) for each in (evidence.realised_M, evidence.prediction_M))
    found = {}
    for name, forecast_M in forecasts.items():
        saved_M = (true_M - forecast_M) ** 2 - (true_M - said_M) ** 2
        found[name] = _Gains(saved_M, saved_M)
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
