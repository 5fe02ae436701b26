"""Kept rows with a planted relation of forecast and price: hourly bars of the FX week, several symbols, no training."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import pip_size
from tests.integrations.model_cards import model_card

FIRST_MS = int(datetime(2021, 1, 4, 0, tzinfo=UTC).timestamp()) * 1000
DEVIATION = 0.001
SPREAD_PIPS = 1.0
BACKTEST: dict[str, Any] = {
    "net_log_return": 0.0, "gross_log_return": 0.0, "sharpe": None, "max_drawdown": 0.0, "turnover": 0.0,
    "num_trades": 0, "share_in_market": 1.0, "mean_cost_bp": 0.0, "total_cost": 0.0, "swap_cost": 0.0, "num_days": 1,
}  # fmt: skip


def openings(num: int) -> Ints:
    """So many hours in which the market is open."""
    hours = FIRST_MS + HOUR_MS * np.arange(num * 2 + 200)
    return np.asarray(hours[calendar.is_open(hours)][:num])


def planted(
    num: int = 2_000, *, seed: int, strength: float = 0.2, lead: int = 1, symbols: tuple[str, ...] = ("EUR/USD",),
    horizon: int = 1, num_before: int = 400, **card: Any,
) -> DeskRows:  # fmt: skip
    """Rows whose forecast moves with the log return of the bar that lies `lead` bars ahead.

    Args:
        strength: correlation of the two.
        horizon: bars that the outcome spans.
    """
    chance = np.random.default_rng(seed)
    opened = openings(num_before + num + lead + horizon)
    tables = [_symbol(chance, opened, symbol, strength, lead, horizon, num_before + num) for symbol in symbols]
    joined = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}
    order = np.lexsort((joined["symbol"].astype(str), joined["as_of"]))
    joined = {name: values[order] for name, values in joined.items()}
    is_test = joined["as_of"] > opened[num_before - 1] + HOUR_MS
    costs = {symbol: {"spread_pips": SPREAD_PIPS} for symbol in symbols}
    evaluation = model_card().evaluation.model_dump() | {"backtest": {**BACKTEST, "costs": costs}}
    found = model_card(
        symbols=symbols, target=f"price_change_{horizon}h", horizon=horizon, **{"evaluation": evaluation} | card
    )
    before = {name: joined[name][~is_test] for name in ("as_of", "symbol", "price")}
    return DeskRows(found, {name: values[is_test] for name, values in joined.items()}, before)


def _symbol(
    chance: np.random.Generator, opened: Ints, symbol: str, strength: float, lead: int, horizon: int, num: int
) -> dict[str, np.ndarray]:
    """One symbol's rows: it holds the side of its forecast, decided anew every bar, closed at the last one."""
    forecast, noise = chance.standard_normal((2, len(opened)))
    move = np.empty(len(opened))
    move[lead:] = strength * forecast[:-lead] + np.sqrt(1 - strength**2) * noise[lead:]
    move[:lead] = noise[:lead]
    log = np.cumsum(DEVIATION * move)
    close = 1.1 * np.exp(log)
    outcome = np.exp(log[horizon:] - log[:-horizon]) - 1
    position, step = np.sign(forecast[:num]), np.exp(log[1 : num + 1] - log[:num]) - 1
    changed = np.abs(np.diff(position, prepend=0.0))
    changed[-1] += np.abs(position[-1])
    cost = changed * SPREAD_PIPS * pip_size(symbol) / 2 / close[:num]
    return {
        "as_of": opened[:num] + HOUR_MS, "symbol": np.full(num, symbol, dtype=object), "price": close[:num],
        "realised": outcome[:num], "prediction": DEVIATION * forecast[:num],
        "direction": np.where(position > 0, "buy", "sell").astype(object), "status": np.full(num, "ok", dtype=object),
        "position": position, "gross": np.log1p(position * step), "net": np.log1p(position * step - cost),
    }  # fmt: skip


def kept(rows: DeskRows, is_kept: Bools) -> DeskRows:
    """Those rows alone."""
    return DeskRows(rows.card, {name: values[is_kept] for name, values in rows.columns.items()}, rows.before)


def correlation_of_ranks(one: Floats, other: Floats) -> float:
    """Spearman's, by its definition."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)
