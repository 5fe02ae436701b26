"""Account: from rows of several symbols to one account with equal weights, rebalanced at each moment, as on the card.

With S symbols a moment's gain is the sum of the symbols' relative gains over S; a symbol without a row is flat then.
Buy and hold is the same account always long, from price to price and before costs. All in log returns.
"""

import math
from dataclasses import dataclass

from ml_workbench_figures.inputs import Columns, number, times_ms


@dataclass(frozen=True)
class Account:
    """Log returns of each moment of one part, oldest first.

    Attributes:
        times_ms: when the decision was made that the return belongs to.
        net, gross: after and before costs.
        hold: of buy and hold, before costs.
    """

    times_ms: list[int]
    net: list[float]
    gross: list[float]
    hold: list[float]


def account_of(rows: Columns) -> Account:
    """One part's account; a step that could not be paid earns nothing."""
    moments = times_ms(rows["as_of"])
    symbols = rows.get("symbol") or ["-"] * len(moments)
    prices = rows.get("price") or [None] * len(moments)
    share = 1.0 / max(len(set(symbols)), 1)
    gains: dict[int, list[float]] = {}
    last_price: dict[str, float] = {}
    columns = zip(moments, symbols, prices, rows["net"], rows["gross"], strict=True)
    for moment, symbol, price, net, gross in columns:
        totals = gains.setdefault(moment, [0.0, 0.0, 0.0])
        value, before = number(price), last_price.get(symbol)
        if value is not None and before is not None:
            totals[2] += (value / before - 1.0) * share
        if value is not None:
            last_price[symbol] = value
        paid, unpaid = number(net), number(gross)
        if paid is not None and unpaid is not None:
            totals[0] += math.expm1(paid) * share
            totals[1] += math.expm1(unpaid) * share
    times = sorted(gains)
    logs = [[math.log1p(max(value, -0.999999)) for value in gains[moment]] for moment in times]
    return Account(times, [each[0] for each in logs], [each[1] for each in logs], [each[2] for each in logs])
