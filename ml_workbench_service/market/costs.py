"""Trading costs, and what one step of a position earns after them: the one formula of backtest, environment, agent.

Pips are converted at the price at hand; everything returned is a fraction of the price, so 0.0001 is one basis point.
A cost is positive where it is paid. `swap_long_pips` and `swap_short_pips` are paid per night (negative: received).

A default spread holds in London's and New York's busy hours and is wider in others (`session_spread`). A spread that
the request names holds at all hours, the bars' own spread goes before both, and a daily fixing has no session.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import normal_symbol
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.market.calendar import HOUR_MS, swap_days, trading_day_opening

BASIS_POINT = 1e-4

# Units of the currency per euro: average of the ECB reference rates of 2024 (HRK and RUB of 2022, their last year).
# They only turn basis points into pips for the defaults; no price comes from here.
UNITS_PER_EUR = {
    "EUR": 1.0, "USD": 1.0824, "JPY": 163.85, "GBP": 0.84662, "CHF": 0.95263, "AUD": 1.6397, "CAD": 1.4821,
    "NZD": 1.7880, "SEK": 11.433, "NOK": 11.629, "DKK": 7.4589, "PLN": 4.3058, "CZK": 25.12, "HUF": 395.3,
    "RON": 4.9746, "BGN": 1.9558, "HRK": 7.5349, "ISK": 149.31, "TRY": 35.573, "RUB": 88.397, "CNY": 7.7875,
    "HKD": 8.4454, "SGD": 1.4458, "KRW": 1475.4, "INR": 90.556, "IDR": 17158.0, "MYR": 4.9503, "PHP": 62.007,
    "THB": 38.181, "ILS": 4.0067, "ZAR": 19.83, "MXN": 19.831, "BRL": 5.8283,
}  # fmt: skip

# Spread in pips on raw-spread (ECN) accounts. Sourced: EUR/USD the middle of 0.0 to 0.3 (kenmacro.com, "Spread vs
# Commission", 2026); GBP/USD, AUD/USD, USD/JPY the published raw spreads of VT Markets ("Normal spreads on STP and ECN
# accounts"). The other pairs are set beside these by their liquidity, not looked up. All are orders of magnitude, meant
# to be overridden by the user's own figures or by a bars file's spread column.
SPREAD_PIPS = {
    "EUR/USD": 0.2, "USD/JPY": 0.5, "GBP/USD": 0.6, "USD/CHF": 0.5, "AUD/USD": 0.4, "USD/CAD": 0.5, "NZD/USD": 0.6,
    "EUR/GBP": 0.5, "EUR/JPY": 0.7, "EUR/CHF": 0.8, "EUR/AUD": 1.2, "EUR/CAD": 1.2, "GBP/JPY": 1.3, "AUD/JPY": 0.9,
}  # fmt: skip

# Where a pair is not listed above: the sum of its legs, in basis points of the price; the same kind of source, wider.
LEG_SPREAD_BP = {
    "EUR": 0.2, "USD": 0.2, "JPY": 0.3, "GBP": 0.4, "CHF": 0.5, "AUD": 0.5, "CAD": 0.5, "NZD": 0.8, "SEK": 2.5,
    "NOK": 3.0, "DKK": 1.5, "PLN": 4.0, "CZK": 5.0, "HUF": 5.0, "RON": 8.0, "BGN": 5.0, "HRK": 10.0, "ISK": 30.0,
    "TRY": 25.0, "RUB": 40.0, "CNY": 2.0, "HKD": 1.0, "SGD": 1.5, "KRW": 10.0, "INR": 10.0, "IDR": 15.0, "MYR": 15.0,
    "PHP": 15.0, "THB": 8.0, "ILS": 6.0, "ZAR": 8.0, "MXN": 5.0, "BRL": 12.0,
}  # fmt: skip

# How much wider a default spread is, by hours since the last 17:00 New York: a session begins at its hour, a whole or
# a half one, and lasts to the next. Orders of magnitude for majors, one clock for all pairs. The pattern, narrow
# where many deal, wide in New York's late afternoon and outside London's hours, is Ito and Hashimoto's, from EBS
# quotes ("Intraday seasonality in activities of the foreign exchange markets", Journal of the Japanese and
# International Economies 20, 2006). The sizes are set beside brokers' published figures: EUR/USD 0.2 pips by day, 0.5
# to 1.9 in the two hours before the roll, 0.3 in the two after it (fxca-trade.com, "FxPro Trading Hours in Canada");
# more than twice London's in Asia (fxtime.net, "Compare spread widening during London New York overlap"). London
# opens at 03:00 New York but for the weeks in which only one of the two has changed its clocks.
SESSIONS = (
    (0.0, 5.0, "roll"),  # 17:00, and from 16:30
    (0.5, 1.5, "asia"),  # 17:30 to 03:00
    (10.0, 1.0, "london"),  # 03:00 to 12:00, New York's morning among it
    (19.0, 1.2, "new_york"),  # 12:00 to 16:30
    (23.5, 5.0, "roll"),
)

COMMISSION_BP = 0.35  # 3.50 per 100,000 and side, the usual raw-spread rate (forexcracked.com, glossary, "Commission")
SLIPPAGE_BP = 0.1  # a tenth of a pip on EUR/USD: a small market order in liquid hours
# Financing per year, charged on either side: the charge that retail brokers add to tom-next (about 0.5 to 1 %). The
# interest differential itself is left out: it changed its sign in most pairs, so no constant is right for a history.
FINANCING_PER_YEAR = 0.008
DAYS_PER_YEAR = 365
HALF_HOUR_MS = HOUR_MS // 2
NEXT_DAY_PAIRS = frozenset({"CAD/USD", "PHP/USD", "RUB/USD", "TRY/USD"})
"""Pairs that settle a business day after the trade, currencies in alphabetic order; others take two (finance.md)."""

_COARSE_PIPS = frozenset({"JPY", "HUF", "KRW", "IDR", "ISK"})  # quoted with two decimals


def pip_size(symbol: str) -> float:
    """Price of one pip: 0.01 where the quote currency's unit is small (JPY, HUF, KRW, IDR, ISK), else 0.0001."""
    return 0.01 if symbol[-3:] in _COARSE_PIPS else 0.0001


def default_costs(symbol: str) -> Costs:
    """Non-zero costs of a known pair: any cross of the currencies that the ECB publishes today, with HRK and RUB.

    Raises:
        DataValidationError: a currency without a default; the caller must send `costs` (422).
    """
    symbol = normal_symbol(symbol)
    base, quote = symbol.split("/")
    if base not in UNITS_PER_EUR or quote not in UNITS_PER_EUR:
        raise DataValidationError.at(
            "body.costs",
            f"There are no default costs for {symbol}; send all five fields of `costs` for it.",
            code="unknown_costs",
        )
    price_in_pips = UNITS_PER_EUR[quote] / UNITS_PER_EUR[base] / pip_size(symbol)
    legs = (LEG_SPREAD_BP[base] + LEG_SPREAD_BP[quote]) * BASIS_POINT * price_in_pips
    night = FINANCING_PER_YEAR / DAYS_PER_YEAR * price_in_pips
    return Costs(
        spread_pips=_rounded(SPREAD_PIPS.get(symbol, legs)),
        commission_bp=COMMISSION_BP,
        slippage_bp=SLIPPAGE_BP,
        swap_long_pips=_rounded(night),
        swap_short_pips=_rounded(night),
    )


class ResolvedCosts(Costs):
    """Costs with all five fields set, and whether their spread is a default, which the session widens."""

    by_session: bool = False


def resolved_costs(symbol: str, override: Costs | None = None) -> ResolvedCosts:
    """All five fields set: the override's where it has them, the pair's defaults elsewhere.

    Raises:
        DataValidationError: a field is left open and the pair has no defaults (422).
    """
    given = {} if override is None else override.model_dump(exclude_none=True)
    by_session = bool(given.pop("by_session", "spread_pips" not in given))
    defaults = {} if len(given) == len(Costs.model_fields) else default_costs(symbol).model_dump()
    return ResolvedCosts(**{**defaults, **given, "by_session": by_session})


def has_default_swaps(symbol: str, costs: Costs) -> bool:
    """Whether both swaps are the pair's default, which leaves the interest differential out."""
    try:
        usual = default_costs(symbol)
    except DataValidationError:  # a pair without defaults: the user's own
        return False
    return (costs.swap_long_pips, costs.swap_short_pips) == (usual.swap_long_pips, usual.swap_short_pips)


def check_costs(symbols: Iterable[str], override: Costs | None, *, path: str) -> None:
    """Every symbol has costs, nobody is paid for trading, and no cost is larger than any price.

    Raises:
        DataValidationError: naming the cost, below `path`.
    """
    for symbol in symbols:
        resolved_costs(symbol, override)
    for name, sentence in ({} if override is None else override.nonsense()).items():
        raise DataValidationError.at(f"{path}.{name}", sentence)


def session_factor(at_ms: Ints | int) -> Floats:
    """How much wider than in busy hours a spread is at each moment; see `SESSIONS`."""
    hours = (np.asarray(at_ms, dtype=np.int64) - trading_day_opening(at_ms)) / HOUR_MS
    return _FACTORS[np.searchsorted(_SESSION_HOURS, hours, side="right") - 1]


def session_spread(costs: Costs, symbol: str, at_ms: Ints, *, calendar: Literal["fx", "fixings"]) -> Floats:
    """(N,) the spread at each moment, in price units; NaN where `spread_pips` holds as it is: it was named, or fixings.

    Raises:
        DataValidationError: the costs are not resolved.
    """
    if not _has_sessions(costs, calendar):
        return np.full(len(at_ms), np.nan)
    return _set(costs.spread_pips) * pip_size(symbol) * session_factor(at_ms)


def session_spread_at(costs: Costs, symbol: str, at_ms: int, *, calendar: Literal["fx", "fixings"]) -> float | None:
    """The same of one moment, in a microsecond; None where `spread_pips` holds as it is."""
    if not _has_sessions(costs, calendar):
        return None
    return _set(costs.spread_pips) * pip_size(symbol) * _factor_of(at_ms // HALF_HOUR_MS)


def unit_cost(costs: Costs, symbol: str, price: float) -> float:
    """Half the spread, commission and slippage, as a fraction of the price, for a change of position by one.

    Raises:
        DataValidationError: the costs are not resolved, or the price is not positive.
    """
    half_spread = _set(costs.spread_pips) * pip_size(symbol) / 2 / _positive(price)
    return half_spread + (_set(costs.commission_bp) + _set(costs.slippage_bp)) * BASIS_POINT


def round_trip_cost(costs: Costs, symbol: str, price: float) -> float:
    """In and out again: what a forecast must exceed to be worth acting on."""
    return 2 * unit_cost(costs, symbol, price)


def round_trip_costs(costs: Sequence[tuple[str, Costs]], codes_N: Ints, prices_N: Floats) -> Floats:
    """(N,) `round_trip_cost` of each price, by the costs of the symbol that its code stands for."""
    spreads = np.array([_set(each.spread_pips) * pip_size(symbol) for symbol, each in costs])[codes_N]
    fees = np.array([(_set(each.commission_bp) + _set(each.slippage_bp)) * BASIS_POINT for _, each in costs])[codes_N]
    if not (np.isfinite(prices_N) & (prices_N > 0.0)).all():
        raise _no_price()
    return np.asarray(2 * (spreads / 2 / prices_N + fees))


@lru_cache(maxsize=1024)
def spot_lag_days(symbol: str) -> int:
    """From trade to its value date, which says at which roll three days of swap are paid; either way round."""
    return 1 if "/".join(sorted(symbol.split("/"))) in NEXT_DAY_PAIRS else 2


def swap_cost(costs: Costs, symbol: str, price: float, position: float, from_ms: int, to_ms: int) -> float:
    """What holding `position` over the 17:00 New York rolls between two moments costs, as a fraction of the price.

    Three days are paid at Wednesday's roll, of pairs that settle at T+1 at Thursday's, and none on the weekend; each
    roll counts in exactly one of two adjoining intervals. Positive is paid, negative received.
    """
    if position == 0:
        return 0.0
    nights = _nights(from_ms, to_ms, spot_lag_days(symbol))
    pips = _set(costs.swap_long_pips if position > 0 else costs.swap_short_pips)
    return abs(position) * nights * pips * pip_size(symbol) / _positive(price)


def step_log_return(position: float, price: float, next_price: float, *, cost: float, swap: float = 0.0) -> float:
    """One step's log return after costs: `log(1 + position * (next_price / price - 1) - cost - swap)`.

    Args:
        position: signed size held from `price` to `next_price`; 1 is the whole capital, long.
        price: where the step starts, positive.
        next_price: where it ends, positive.
        cost: `unit_cost` times the change of position that opened the step.
        swap: `swap_cost` of the step.

    Raises:
        DataValidationError: a price is not positive, or the step loses the whole capital (no logarithm).
    """
    growth = 1.0 + position * (_positive(next_price) / _positive(price) - 1.0) - cost - swap
    if not 0.0 < growth < math.inf:
        raise DataValidationError.at(
            "price",
            "One step lost the whole capital, or has no finite return; check the prices, the costs and the position.",
            code="ruin",
        )
    return math.log(growth)


_SESSION_HOURS = np.array([hour for hour, _, _ in SESSIONS])
_FACTORS = np.array([factor for _, factor, _ in SESSIONS])


def _has_sessions(costs: Costs, calendar: str) -> bool:
    return calendar != "fixings" and isinstance(costs, ResolvedCosts) and costs.by_session


@lru_cache(maxsize=4096)  # live requests share their half hour
def _factor_of(half_hour: int) -> float:
    return float(session_factor(half_hour * HALF_HOUR_MS))


@lru_cache(maxsize=4096)  # symbols share their bars' times
def _nights(from_ms: int, to_ms: int, days: int) -> int:
    return int(swap_days(from_ms, to_ms, spot_lag_days=days))


def _rounded(pips: float) -> float:
    return float(f"{pips:.3g}")


def _set(value: float | None) -> float:
    if value is None:
        raise DataValidationError.at("costs", "A cost is not set; pass the costs through `resolved_costs` first.")
    return value


def _positive(price: float) -> float:
    if not (price > 0.0 and math.isfinite(price)):
        raise _no_price()
    return price


def _no_price() -> DataValidationError:
    return DataValidationError.at("price", "A price must be positive and finite; check the bars or the request.")
