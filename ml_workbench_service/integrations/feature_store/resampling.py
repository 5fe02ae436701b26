"""Coarser bars from finer ones, by one rule for every source; a bar that is not whole is left out.

Intraday bars are aligned to midnight UTC. Daily bars are FX trading days, 17:00 to 17:00 New York, which are five full
days a week; where the finer bars lie across 17:00 New York (4-hour bars aligned to UTC do), they are UTC days.

A coarse bar is whole when its last expected finer bar is there, and nine tenths of the others that the week expects:
exports leave out minutes without a tick, and feeds lose hours. Holidays expect nothing. What is lost is counted by
reason on the reading reports: `1h_to_1d_without_last`, `…_too_few`, `…_off_grid`; above 1 % it is a warning. The newest
bar, which is still to come, is no loss.

Legend: N fine bars, M coarse bars.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Bools, Floats, Ints
from ml_workbench_service.contracts.reading_reports import ReadingReport
from ml_workbench_service.market.calendar import DAY_MS, expected_ms, market_ms, trading_day_opening
from ml_workbench_service.market.fills import SPREAD, SPREAD_OPEN

LEAST_SHARE = 0.9  # of the expected finer bars but the last
MOST_LOST = 0.01  # of the coarse bars, without a warning
_MAX_SPLIT_SHARE = 0.01  # bars across the roll beyond which daily bars are UTC days


def resample(fine: Bars, timeframe: str) -> Bars:
    """`fine` in the coarser timeframe; open first, high, low, close last, volume summed, spread averaged unless
    its moment in the bar is known, others last.

    The result may be empty. Bars that do not lie on the finer grid make their coarse bar incomplete.
    """
    fine_ms, coarse_ms = TIMEFRAMES_MS[fine.timeframe], TIMEFRAMES_MS[timeframe]
    if len(fine) == 0:
        return replace(fine, timeframe=timeframe)
    group = coarse_openings(fine.opened_ms, fine_ms=fine_ms, coarse_ms=coarse_ms)
    firsts = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    counts = np.diff(np.append(firsts, len(group)))
    opened = group[firsts]
    lost = _lost(fine, opened, firsts, counts, coarse_ms=coarse_ms)
    whole = ~np.any(list(lost.values()), axis=0)
    lasts = firsts + counts - 1
    known = np.maximum(opened + coarse_ms, np.maximum.reduceat(fine.available_at_ms, firsts))
    return replace(
        fine,
        timeframe=timeframe,
        opened_ms=opened[whole],
        available_at_ms=known[whole],
        open=fine.open[firsts][whole],
        high=np.maximum.reduceat(fine.high, firsts)[whole],
        low=np.minimum.reduceat(fine.low, firsts)[whole],
        close=fine.close[lasts][whole],
        extra=_merge(fine, firsts, counts, whole=whole),
        reports=_with_losses(fine, timeframe, lost),
    )


def coarse_openings(opened_ms: Ints, *, fine_ms: int, coarse_ms: int) -> Ints:
    """(N,) opening of the coarse bar that each fine bar belongs to."""
    if coarse_ms < DAY_MS:
        return opened_ms - opened_ms % coarse_ms
    days = trading_day_opening(opened_ms)
    is_split = trading_day_opening(opened_ms + fine_ms - 1) != days
    # A bar over Friday's close is cut by the market itself and is no sign of a clash.
    is_split &= market_ms(opened_ms + fine_ms) - market_ms(opened_ms) == fine_ms
    return opened_ms - opened_ms % DAY_MS if is_split.mean() > _MAX_SPLIT_SHARE else days


def _lost(fine: Bars, opened: Ints, firsts: Ints, counts: Ints, *, coarse_ms: int) -> dict[str, Bools]:
    """(M,) by reason: which coarse bars are not whole, each for its first reason."""
    fine_ms = TIMEFRAMES_MS[fine.timeframe]
    expected = -(-(expected_ms(opened + coarse_ms) - expected_ms(opened)) // fine_ms)
    offset = fine.opened_ms - np.repeat(opened, counts)
    off_grid = np.asarray(np.maximum.reduceat((offset % fine_ms != 0).astype(np.int64), firsts) == 1)
    ends = fine.opened_ms[firsts + counts - 1] + fine_ms
    without_last = ~off_grid & (expected_ms(opened + coarse_ms) > expected_ms(ends))
    others = np.where(expected > 0, expected - 1, 0)
    too_few = ~off_grid & ~without_last & (counts - 1 < np.ceil(LEAST_SHARE * others)) & (expected > 0)
    return {"off_grid": off_grid, "without_last": without_last, "too_few": too_few}


def _with_losses(fine: Bars, timeframe: str, lost: Mapping[str, Bools]) -> tuple[ReadingReport, ...]:
    """The reports of the files with what resampling lost; the bar that is still to come is none."""
    step = f"{fine.timeframe}_to_{timeframe}"
    num_lost = {f"{step}_{reason}": int(where[:-1].sum()) for reason, where in lost.items()}
    num_lost = {reason: num for reason, num in num_lost.items() if num}
    total, num_bars = sum(num_lost.values()), len(next(iter(lost.values())))
    warnings = (
        (f"{total} of {num_bars} bars of {timeframe} lack bars of {fine.timeframe} and are left out",)
        if total > MOST_LOST * num_bars
        else ()
    )
    return tuple(
        each.model_copy(update={"dropped": {**each.dropped, **num_lost}, "warnings": (*each.warnings, *warnings)})
        for each in fine.reports
    )


def _merge(fine: Bars, firsts: Ints, counts: Ints, *, whole: Bools) -> dict[str, Floats]:
    """Further columns: volumes summed, spreads as when they were taken, all others as they were last."""
    last, extra = firsts + counts - 1, fine.extra
    merged = {name: column[last] for name, column in extra.items()}
    if "volume" in extra:
        merged["volume"] = np.add.reduceat(extra["volume"], firsts)
    if SPREAD_OPEN in extra:
        merged[SPREAD_OPEN] = extra[SPREAD_OPEN][firsts]
    if SPREAD in extra and fine.spread_time == "open":
        merged[SPREAD] = extra[SPREAD][firsts]
    elif SPREAD in extra and fine.spread_time != "close":
        merged[SPREAD] = np.add.reduceat(extra[SPREAD], firsts) / counts
    return {name: column[whole] for name, column in merged.items()}
