"""Spreads of the user's bars: whether a column is one.

A median beyond twenty times the usual is in other units, and refused. One under a twentieth, zero too, is what
programs write who know none: it is left out, with a warning, and the pair's default costs hold. What a spread makes of
prices of one side: `market.fills`.

Legend: N bars.
"""

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.costs import UNITS_PER_EUR, default_costs, pip_size

MOST_TIMES_USUAL = 20.0
LEAST_TIMES_USUAL = 1 / 20
USUAL_OF_OTHERS = {"XAU": 1e-4, "XAG": 8e-4, "XPT": 3e-3, "XPD": 5e-3, "BTC": 5e-4, "XBT": 5e-4, "ETH": 5e-4}
"""Share of the price, by orders of magnitude, of what the ECB does not fix; brokers' pages of 2024."""
MOST_OF_ANY = 0.01  # of the price, where nothing is known


def usual_share(symbol: str) -> float | None:
    """The usual spread as a share of the price; None where nothing is known of the symbol."""
    base, quote = symbol.split("/")
    if base in USUAL_OF_OTHERS:
        return USUAL_OF_OTHERS[base]
    try:
        pips = default_costs(symbol).spread_pips
    except DataValidationError:
        return None
    return None if pips is None else pips * pip_size(symbol) / (UNITS_PER_EUR[quote] / UNITS_PER_EUR[base])


def doubt_of_spread(symbol: str, spread: Floats, close: Floats) -> tuple[str, bool] | None:
    """What is wrong with a spread column, and whether it is refused; None: it is one."""
    if np.isnan(spread).all():
        return "`spread` is empty; the pair's default costs hold", False
    if np.nanmin(spread) < 0:
        return "`spread` is below zero; correct it", True
    share, usual = float(np.nanmedian(spread / close)), usual_share(symbol)
    most = MOST_OF_ANY if usual is None else MOST_TIMES_USUAL * usual
    if share > most:
        than = "1 % of the price" if usual is None else f"{MOST_TIMES_USUAL:g} times the usual {usual * 1e4:.2g} bp"
        text = f"`spread` is {share * 1e4:.3g} bp of the price in the median, over {than}"
        return f"{text}; write it in price units, not in points or pips", True
    if share == 0 or (usual is not None and share < LEAST_TIMES_USUAL * usual):
        return f"`spread` is {share * 1e4:.2g} bp of the price, which is none; the pair's default costs hold", False
    return None
