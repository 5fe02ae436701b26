"""Coarser bars from finer ones, by one rule for every source; a bar that is not whole is left out.

Intraday bars are aligned to midnight UTC. Daily bars are FX trading days, 17:00 to 17:00 New York, which are five full
days a week; where the finer bars lie across 17:00 New York (4-hour bars aligned to UTC do), they are UTC days.

A coarse bar is whole when every finer bar that the week expects is there. One exception: exports of minute bars leave
out minutes without a tick, so there nine tenths suffice, if the last minute has passed. Holidays expect nothing.

Legend: N fine bars, M coarse bars.
"""

from dataclasses import replace

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Bools, Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS, expected_ms, market_ms, trading_day_opening
from ml_workbench_service.market.fills import SPREAD, SPREAD_OPEN

MINUTE_SHARE = 0.9  # of the expected minutes that must be there, see above
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
    whole = _is_whole(fine, opened, firsts, counts, fine_ms=fine_ms, coarse_ms=coarse_ms)
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


def _is_whole(fine: Bars, opened: Ints, firsts: Ints, counts: Ints, *, fine_ms: int, coarse_ms: int) -> Bools:
    """(M,) bool: whether enough of the expected fine bars are there, all of them on the grid."""
    expected = -(-(expected_ms(opened + coarse_ms) - expected_ms(opened)) // fine_ms)
    share = MINUTE_SHARE if fine_ms == TIMEFRAMES_MS["1m"] else 1.0
    offset = fine.opened_ms - np.repeat(opened, counts)
    on_grid = np.asarray(np.minimum.reduceat((offset % fine_ms == 0).astype(np.int64), firsts) == 1)
    whole: Bools = on_grid & (counts >= np.ceil(share * expected))
    # The newest bar: nothing expected may still be to come.
    last_known = fine.opened_ms[-1] + fine_ms
    whole[-1] &= bool(expected_ms(opened[-1] + coarse_ms) <= expected_ms(last_known))
    return whole


def _merge(fine: Bars, firsts: Ints, counts: Ints, *, whole: Bools) -> dict[str, Floats]:
    extra, last = fine.extra, firsts + counts - 1
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
