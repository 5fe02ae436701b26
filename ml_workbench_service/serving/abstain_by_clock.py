"""Abstentions by the clock: features or a model that are too old, a closed market; and when an answer's horizon ends.

Ages are of open-market time, so that a weekend makes nothing old.
"""

import numpy as np

from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.contracts.prediction import AbstainReason
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.market import calendar
from ml_workbench_service.serving.model import ServedModel

STALE_BARS = 2
"""Features are stale when their newest bar became known more than this many bars of market time ago."""
FIXINGS_PAUSE_BARS = 2
"""Weekdays without a fixing in the longest scheduled pause (Easter, Christmas): no gap, so nothing gets stale."""
PROMPT_SHARE = 0.1
"""Of a bar: a question that comes within it after a bar became known is asked at once (finance.md, "live_verdict")."""

_WORDS: tuple[AbstainReason, ...] = ("stale_features", "model_expired", "market_closed")
_COMBINED = tuple([tuple([word for bit, word in enumerate(_WORDS) if number >> bit & 1]) for number in range(8)])
"""Every set of reasons: the first word for the lowest bit."""


def clock_reasons(
    model: ServedModel, *, now_ms: int, known_ms: int, has_known_age: bool, has_bar: bool, may_be_prompt: bool
) -> list[AbstainReason]:
    """What the time of asking alone forbids.

    Args:
        now_ms: the moment that decides.
        known_ms: when the newest row became known.
        has_known_age: whether features and model can be too old; else only a closed market counts.
        has_bar: whether the service fetched the bar.
        may_be_prompt: whether it is asked live, where the moment after a bar's end counts as its end.
    """
    reasons: list[AbstainReason] = []
    if has_known_age:
        if _market_age_ms(known_ms, now_ms) > _allowed_ms(model):
            reasons.append("stale_features")
        if now_ms > model.expires_ms:
            reasons.append("model_expired")
    # The week's last bar becomes known when the market closes, a daily one just after it: asked then it is Monday's
    # forecast, filled at Sunday's open. Who asks live needs a moment to ask.
    prompt_ms = PROMPT_SHARE * model.timeframe_ms if may_be_prompt else 0
    is_last = calendar.is_open_at(known_ms - 1) or has_bar
    is_daily = model.timeframe_ms >= calendar.DAY_MS and has_known_age
    is_timely = 0 <= now_ms - known_ms <= prompt_ms and (is_last or is_daily)
    if not calendar.is_open_at(now_ms) and not is_timely:
        reasons.append("market_closed")
    return reasons


def reasons_of_run(
    model: ServedModel, *, now_ms_N: Ints, known_ms_N: Ints, has_known_age_N: Bools, has_bar_N: Bools | bool,
    may_be_prompt_N: Bools,
) -> Coded:  # fmt: skip
    """`clock_reasons` of N questions, as a column."""
    is_daily = model.timeframe_ms >= calendar.DAY_MS
    passed_ms_N = calendar.market_ms(now_ms_N) - calendar.market_ms(known_ms_N)
    is_stale_N = has_known_age_N & (passed_ms_N > _allowed_ms(model))
    is_expired_N = has_known_age_N & (now_ms_N > model.expires_ms)
    prompt_ms_N = np.where(may_be_prompt_N, PROMPT_SHARE * model.timeframe_ms, 0)
    is_last_N = calendar.is_open(known_ms_N - 1) | has_bar_N | (is_daily & has_known_age_N)
    after_ms_N = now_ms_N - known_ms_N
    is_timely_N = (after_ms_N >= 0) & (after_ms_N <= prompt_ms_N) & is_last_N
    is_closed_N = ~calendar.is_open(now_ms_N) & ~is_timely_N
    return Coded(_COMBINED, is_stale_N + 2 * is_expired_N + 4 * is_closed_N)


def is_about_the_past(model: ServedModel, as_of_ms: int, *, now_ms: int) -> bool:
    """Whether the moment lies more than `STALE_BARS` bars of market time back, so that its clock is `as_of` itself."""
    return _market_age_ms(as_of_ms, now_ms) > STALE_BARS * model.timeframe_ms


def past_of_run(model: ServedModel, as_of_ms_N: Ints, *, now_ms: int) -> Bools:
    """`is_about_the_past` of N moments."""
    return calendar.market_ms_at(now_ms) - calendar.market_ms(as_of_ms_N) > STALE_BARS * model.timeframe_ms


def valid_until_ms(model: ServedModel, as_of_ms: int) -> int:
    """When the horizon has passed: so much open-market time after `as_of`."""
    return calendar.advance_from(as_of_ms, model.reach * model.timeframe_ms)


def _allowed_ms(model: ServedModel) -> int:
    """The age of features that are not stale yet."""
    return (STALE_BARS + (FIXINGS_PAUSE_BARS if model.card.calendar == "fixings" else 0)) * model.timeframe_ms


def _market_age_ms(then_ms: int, now_ms: int) -> int:
    """How much open-market time lies between two moments."""
    return calendar.market_ms_at(now_ms) - calendar.market_ms_at(then_ms)
