"""Kept accounts: from the rows that a version keeps to one account's log returns, and when each step is settled.

Legend: N rows, M moments.
"""

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FillRule, Floats, Ints
from ml_workbench_service.market import calendar


def num_paid_symbols(log_return_N: Floats, symbol_N: np.ndarray) -> int:
    """Symbols among which the account is shared, at least one."""
    return max(len(set(symbol_N[np.isfinite(log_return_N)].tolist())), 1)


def account_returns(log_return_N: Floats, as_of_N: Ints, *, num_symbols: int) -> tuple[Floats, Ints]:
    """(M,) log return of the account and the moments of decision: the symbols have equal weights.

    Args:
        log_return_N: of each row's step; NaN where it could not be paid.
        num_symbols: of the whole account, some of whose rows these are.
    """
    paid_N = np.isfinite(log_return_N)
    moments_M, place_N = np.unique(as_of_N[paid_N], return_inverse=True)
    gains_M = np.bincount(place_N, weights=np.expm1(log_return_N[paid_N]), minlength=len(moments_M)) / num_symbols
    return np.log1p(gains_M), moments_M


def known_at_ms(moments_M: Ints, *, timeframe: str, fill: FillRule) -> Ints:
    """(M,) when each step is settled: a bar later, or where nobody trades but at the fixing two; a step that ends with
    the week is settled where the next one opens."""
    bars = 2 if fill == "next_close" else 1
    settled_M = calendar.advance(moments_M, bars * TIMEFRAMES_MS[timeframe])
    opening_M = calendar.advance(settled_M, 1) - 1
    return np.where(opening_M - settled_M > calendar.HOUR_MS, opening_M, settled_M)
