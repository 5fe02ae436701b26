"""Class labels (direction, triple barrier, regime): their numbers at each bar (NaN where there is none), when known.

A class has a label exactly where the price change over the same bars has one, and is known with it: a missing bar ends
labels, and on intraday bars those that span a scheduled closure are dropped and counted (`market.targets.label`).

    direction_h        sell · hold · buy           sign of the price change; hold inside ± the break-even cost
    triple_barrier_h   lower · neither · upper     which of two barriers the closes touch first within h bars
    market_regime_h    trend_down · calm · volatile · trend_up      the regime at t + h, see `market.regimes`

Legend: N bars, h the horizon.
"""

from dataclasses import replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.contracts.training import CLASSES, Target, parse_target
from ml_workbench_service.market.costs import round_trip_cost
from ml_workbench_service.market.targets import Labels, label, target_volatility

_SELL, _HOLD, _BUY = (float(CLASSES["direction"].index(name)) for name in ("sell", "hold", "buy"))
_LOWER, _NEITHER, _UPPER = (float(CLASSES["triple_barrier"].index(name)) for name in ("lower", "neither", "upper"))


def price_moves(
    target: Target, *, close: Floats, opened_ms: Ints, available_at_ms: Ints, runs: Ints, timeframe: str
) -> Labels:
    """The price change over the target's horizon, with `label`'s arguments: what all classes are made from."""
    change = parse_target(f"price_change_{target.horizon}").model_copy(update={"delay": target.delay})
    return label(
        change, close=close, opened_ms=opened_ms, available_at_ms=available_at_ms, runs=runs, timeframe=timeframe
    )


def break_even(costs: Costs, symbol: str, close: Floats, spread: Floats | None = None) -> Floats:
    """(N,) the round-trip cost at each bar's price, as a fraction of it.

    Args:
        costs: all five fields set.
        spread: the bars' own spread in price units; where it is known it replaces `spread_pips`.

    Raises:
        DataValidationError: the costs are not resolved, or a price is not positive.
    """
    if not (np.isfinite(close).all() and (close > 0).all()):
        raise DataValidationError.at("price", "A price must be positive and finite; check the bars.")
    without_spread = round_trip_cost(costs.model_copy(update={"spread_pips": 0.0}), symbol, 1.0)
    at_price_1 = round_trip_cost(costs, symbol, 1.0) - without_spread
    spreads = np.full(len(close), at_price_1)
    if spread is not None:
        spreads = np.where(np.isfinite(spread), spread, spreads)
    return np.asarray(spreads / close + without_spread)


def direction_labels(moves: Labels, *, break_even_N: Floats) -> Labels:
    """`buy` and `sell` where the move would have paid for a round trip at that bar's price, `hold` elsewhere.

    Args:
        moves: from `price_moves`.
        break_even_N: from `break_even`.
    """
    classes = np.select([moves.values > break_even_N, moves.values < -break_even_N], [_BUY, _SELL], default=_HOLD)
    return _labelled(moves, classes, np.isfinite(break_even_N))


def triple_barrier_labels(
    target: Target, moves: Labels, *, close: Floats, bar_volatility: Floats, width: float = 1.0
) -> Labels:
    """The first barrier touched within h bars, else `neither` (López de Prado, Advances in Financial Machine
    Learning, 2018, chapter 3).

    The barriers lie at ± `width` x past volatility x root of h in log price. Touches are looked for among the closes:
    within a bar nobody knows whether the high or the low came first, daily fixings have no range of their own, and
    a rule must not change with the source of the bars. Closes touch later and less often than ticks would.

    A touch may come early, yet the label counts as known only with bar t + h, and where those bars have a gap there
    is none, touched or not: the early ones alone would be a selection of the largest moves.

    Args:
        moves: from `price_moves`.
        bar_volatility: (N,) ex-ante standard deviation of one bar's log return; NaN: no label.
        width: the barriers' distance in volatilities over the horizon.
    """
    barriers = width * target_volatility(bar_volatility, target)
    labelled = np.isfinite(moves.values) & np.isfinite(barriers) & (barriers > 0)
    log_close = np.log(close)
    classes, decided_after_N = np.full(len(close), _NEITHER), np.full(len(close), target.horizon)
    waiting = np.flatnonzero(labelled)
    for ahead in range(1, target.horizon + 1):
        if not len(waiting):
            break
        path = log_close[waiting + target.delay + ahead] - log_close[waiting + target.delay]
        classes[waiting[path >= barriers[waiting]]] = _UPPER
        classes[waiting[path <= -barriers[waiting]]] = _LOWER
        labelled[waiting[np.isnan(path)]] = False  # a bar without a close may have touched
        decided_after_N[waiting[np.abs(path) >= barriers[waiting]]] = ahead
        waiting = waiting[np.abs(path) < barriers[waiting]]
    return replace(_labelled(moves, classes, labelled), decided_after_N=decided_after_N)


def regime_labels(target: Target, moves: Labels, *, classes_N: Floats) -> Labels:
    """The class of bar t + h at bar t.

    Args:
        moves: from `price_moves`.
        classes_N: each bar's own class, from `RegimeRule.classify`; NaN where unknown. The rule is fitted after the
            borders are drawn: until then any number where `regime_features` are known tells which rows have a label.
    """
    h = target.horizon
    classes = np.full(len(classes_N), np.nan)
    if len(classes) > h:
        classes[:-h] = classes_N[h:]
    return _labelled(moves, classes, np.isfinite(classes))


def _labelled(moves: Labels, classes: Floats, exists: np.ndarray) -> Labels:
    """The classes where there is a move and the class exists."""
    labelled = np.isfinite(moves.values) & exists
    return replace(
        moves, values=np.where(labelled, classes, np.nan), available_at_ms=np.where(labelled, moves.available_at_ms, -1)
    )
