"""Which clock a file's times are in: zones by name, conversion to UTC, and inference from the week's close.

A zone is `UTC`, `UTC+2`, `UTC-05:00`, an IANA name such as `Europe/Athens`, or an IANA name with hours added. The
last is how most MetaTrader brokers keep time: `America/New_York+7`, whose midnight is 17:00 New York all the year.

Legend: N bars; local times as in `bar_times`.
"""

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, WEEK_OPEN_MS, market_ms, week_opening

MAX_OUTSIDE_SHARE = 0.01  # of bars outside the FX week, beyond which a file's zone is wrong
MIN_CLOSE_SHARE = 0.8  # of weekends whose last bar must end at Friday 17:00 New York, to believe an inferred zone
CLOSE_TOLERANCE_MS = 600_000  # feeds end their week up to ten minutes early
CANDIDATES = (
    "UTC",
    "America/New_York+7",
    "America/New_York",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    *(f"UTC{hours:+d}" for hours in (-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
)
_SAMPLED_BARS = 20_000


@dataclass(frozen=True)
class _Zone:
    """An IANA zone, None for a fixed offset alone, and what is added to its clock."""

    iana: str | None
    added_ms: int


def parse_zone(name: str) -> _Zone:
    """Checks a zone's name.

    Raises:
        DataValidationError: no such zone; says how to write one.
    """
    match = re.fullmatch(r"\s*([A-Za-z_/]+?(?:/[A-Za-z_]+)*)?\s*(?:([+-])(\d{1,2})(?::?(\d{2}))?)?\s*", name)
    if match and (match[1] or match[2]):
        hours = int(match[3] or 0) + int(match[4] or 0) / 60
        added_ms = round(hours * HOUR_MS) * (-1 if match[2] == "-" else 1)
        if (match[1] or "UTC").upper() in ("UTC", "GMT", "Z"):
            return _Zone(None, added_ms)
        try:
            ZoneInfo(match[1])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
        else:
            return _Zone(match[1], added_ms)
    raise DataValidationError.at(
        "BARS_TIMEZONE",
        "there is no such timezone; write UTC+2, Europe/Athens or America/New_York+7",
        code="unknown_timezone",
    )


def to_utc(local_ms: Ints, zone: str) -> Ints:
    """(N,) UTC; an hour that the clock repeats is its first, one that it leaves out counts by the later offset."""
    parsed = parse_zone(zone)
    shifted = local_ms - parsed.added_ms
    if parsed.iana is None:
        return shifted
    import polars as pl

    wall = pl.from_numpy(shifted).to_series().cast(pl.Datetime("ms"))
    utc = wall.dt.replace_time_zone(parsed.iana, ambiguous="earliest", non_existent="null")
    skipped = utc.is_null()
    if skipped.any():
        later = wall.dt.offset_by("1h")
        late = later.dt.replace_time_zone(parsed.iana, ambiguous="earliest", non_existent="null").dt.offset_by("-1h")
        utc = utc.zip_with(~skipped, late)
    return utc.dt.epoch("ms").to_numpy().astype(np.int64)


def outside(opened_ms: Ints, timeframe_ms: int) -> Bools:
    """(N,) whether not a moment of a bar lies within the FX week."""
    return np.asarray(market_ms(opened_ms + timeframe_ms) == market_ms(opened_ms))


def infer_zone(local_ms: Ints, timeframe_ms: int) -> str | None:
    """The zone in which the week closes Friday 17:00 New York; None where none fits, or several differ.

    Daily bars do not tell. Bars must be sorted and free of weekend filling.
    """
    if timeframe_ms >= DAY_MS or len(local_ms) < 2:
        return None
    edges = np.flatnonzero(np.diff(local_ms) > DAY_MS)
    if len(edges) == 0:
        return None
    sample = local_ms[:: max(1, len(local_ms) // _SAMPLED_BARS)]
    scores: list[tuple[float, str, Ints]] = []
    for name in CANDIDATES:
        last, first = to_utc(local_ms[edges], name), to_utc(local_ms[edges + 1], name)
        fit = _fit(last, first, timeframe_ms)
        if fit is not None and outside(to_utc(sample, name), timeframe_ms).mean() <= MAX_OUTSIDE_SHARE:
            scores.append((fit, name, np.concatenate([last, first])))
    if not scores:
        return None
    best = max(scores, key=lambda score: score[0])
    rivals = [score for score in scores if score[0] > best[0] - 0.02]
    return best[1] if all(np.array_equal(rival[2], best[2]) for rival in rivals) else None


def _fit(last: Ints, first: Ints, timeframe_ms: int) -> float | None:
    """How exactly weeks end and begin on the hour; None where the ends do not lie at the close."""
    close = week_opening(last) + WEEK_OPEN_MS
    opening = week_opening(first + timeframe_ms - 1)
    end = last + timeframe_ms
    at_close = (end >= close - CLOSE_TOLERANCE_MS) & (last < close)
    if at_close.mean() < MIN_CLOSE_SHARE:
        return None
    exact = (np.abs(end - close) <= CLOSE_TOLERANCE_MS).mean() + (np.abs(first - opening) <= CLOSE_TOLERANCE_MS).mean()
    return float(exact)
