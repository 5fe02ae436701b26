"""Signal backtest, net of all costs, on the bars that a signal was given for: from positions to a report.

Positions (signed sizes) stand at the windows that decide; each is filled and paid as `market/trading_series.py` says,
decided anew at the next bar whatever the forecast's horizon. Decisions are the rows that serving would answer, whether
their label is known or not: a signal holds over a weekend, earns the gap and pays swap, though no label of hours spans
one. Bars without a window in between are spent flat: what is held before them is closed and paid. All symbols are one
account with equal weights, rebalanced at each moment; a symbol without a decision then is flat.

Everything is in arrays; `market/backtest.py` says the same with the scalar functions of `market/costs.py`.

Legend: N decisions, M moments, S symbols, D days.
"""

from dataclasses import dataclass, replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import BacktestReport, CarryStress
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.contracts.sizing import MOST_LEVERAGE
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market import performance
from ml_workbench_service.market.costs import BASIS_POINT, DAYS_PER_YEAR, has_default_swaps
from ml_workbench_service.market.policy_rates import largest_differential
from ml_workbench_service.market.significance import hac_mean
from ml_workbench_service.market.sizing import Sizing
from ml_workbench_service.market.trading_series import RUIN, Positions, TradingSeries, segment_starts, step_rewards
from ml_workbench_service.reinforcement.policy_family import series_of


@dataclass(frozen=True)
class Account:
    """What the positions came to, decision by decision and for the account at each moment of filling.

    Attributes:
        series: prices and costs.
        rows_N: decisions that can be paid, ascending; `positions_N` belong to them.
        net_N: each decision's log return after costs, as `series.step_rewards`.
        gross_N: the same without any cost.
        trading_N: spread, commission and slippage, a fraction; the closing of a segment included.
        swap_N: swap, a fraction; negative where more is received than paid.
        turnover_N: change of position, closings included.
        net_M: log return of the account.
        gross_M: the same without any cost.
        gain_M: relative gain of the account after swap, before the costs of trading.
        turnover_M: of the account: a symbol's change counts 1 / S.
        settled_ms_M: when the account's step is settled.
    """

    series: TradingSeries
    rows_N: Ints
    positions_N: Positions
    net_N: Floats
    gross_N: Floats
    trading_N: Floats
    swap_N: Floats
    turnover_N: Floats
    net_M: Floats
    gross_M: Floats
    gain_M: Floats
    turnover_M: Floats
    settled_ms_M: Ints
    num_trades: int
    num_symbols: int
    moments_N: Ints  # place of each decision's step among the account's

    @property
    def equity_N(self) -> Floats:
        """The account's running net log return once each decision's step is settled."""
        return np.asarray(np.cumsum(self.net_M)[self.moments_N])


def report(positions_N: Positions, ends: Ints, problem: TrainingProblem) -> BacktestReport:
    """The cost-true backtest of a signal, as cards show it.

    Turnover and costs are the account's: with S symbols a change of one symbol's position counts 1 / S, so that net =
    gross - costs holds for relative returns, exactly per step and to second order in the sum of logarithms.
    `mean_cost_bp` is per decision, swap included; `break_even_cost_bp` per unit of turnover, with swap as it was.

    Args:
        positions_N: a signed size at each window.
        ends: the windows' last rows, in any order.
        problem: prices, costs and the fill rule.

    Raises:
        DataValidationError: a position is none, or no decision can be paid.
    """
    account = realise(positions_N, ends, problem)
    daily_D = np.array(list(_daily(account).values()))
    held = account.positions_N != 0
    num_decisions, share = len(account.rows_N), 1.0 / account.num_symbols
    swap, trading = float(account.swap_N.sum()) * share, float(account.trading_N.sum()) * share
    return BacktestReport(
        net_log_return=float(account.net_M.sum()),
        gross_log_return=float(account.gross_M.sum()),
        sharpe=performance.annual(performance.sharpe(daily_D)),
        gross_sharpe=performance.annual(performance.sharpe(_values(account.gross_M, account))),
        sortino=performance.annual(performance.sortino(daily_D)),
        calmar=performance.calmar(daily_D),
        max_drawdown=performance.max_drawdown(account.net_M),
        turnover=float(account.turnover_M.sum()),
        num_trades=account.num_trades,
        hit_rate=float(np.mean(account.gross_N[held] > 0)) if held.any() else None,
        share_in_market=float(np.mean(held)),
        mean_cost_bp=float((account.trading_N + account.swap_N).sum()) / num_decisions / BASIS_POINT,
        total_cost=trading + swap,
        swap_cost=swap,
        break_even_cost_bp=performance.break_even_cost_bp(account.gain_M, account.turnover_M),
        num_days=len(daily_D),
        probabilistic_sharpe=performance.probabilistic_sharpe(daily_D),
        deflated_sharpe=performance.deflated_sharpe(daily_D, num_trials=problem.num_evaluations),
        p_value=hac_mean(daily_D).p_value,
        fill=problem.fill,
        costs=_costs_used(account),
        carry="not_modelled" if _default_swaps(account.series) else "modelled",
        stressed=_stressed(account),
    )


def daily_net(positions_N: Positions, ends: Ints, problem: TrainingProblem) -> dict[str, float]:
    """Net log return of each FX day, by its date, oldest first, days flat included: what the ledger keeps of a trial.

    Raises:
        DataValidationError: as `report`.
    """
    return _daily(realise(positions_N, ends, problem))


def realise(positions_N: Positions, ends: Ints, problem: TrainingProblem) -> Account:
    """Pays the positions; decisions whose settling price is missing, or lies beyond the part's border, are left out.

    Raises:
        DataValidationError: as `report`.
    """
    sizes_N = np.asarray(positions_N, dtype=np.float64)
    if len(sizes_N) != len(ends) or not (np.abs(sizes_N) <= MOST_LEVERAGE).all():
        raise DataValidationError.at(
            "positions", f"A signal is a size within ± {MOST_LEVERAGE:g} at each of its windows; correct it."
        )
    series, order = series_of(problem), np.argsort(ends)
    ascending, positions = np.asarray(ends)[order], sizes_N[order]
    rows = series.payable(ascending, until_ms=_border_after(ascending, problem))
    if not len(rows):
        raise DataValidationError.at(
            "rows", "No decision can be paid: the bars after the windows are missing; ask for a longer range."
        )
    return pay(series, rows, positions[np.searchsorted(ascending, rows)])


def taken(sizing: Sizing, wanted_N: Floats, ends: Ints, problem: TrainingProblem) -> Floats:
    """(N,) the positions that a rule takes at windows, in any order: each segment begins flat.

    Args:
        wanted_N: what the rule wants at each window.
        ends: the windows that decide.
    """
    order, found_N = np.argsort(ends), np.zeros(len(ends))
    found_N[order] = taken_in_rows(sizing, wanted_N[order], np.asarray(ends)[order], series_of(problem))
    return found_N


def taken_in_rows(sizing: Sizing, wanted_N: Floats, rows_N: Ints, series: TradingSeries) -> Floats:
    """`taken` at ascending rows of a series; a decision that cannot be paid ends its segment."""
    starts_N = segment_starts(rows_N)
    starts_N[1:] |= ~np.isin(rows_N, series.payable(rows_N))[:-1]
    return sizing.follow(wanted_N, starts_N)


def _border_after(ends: Ints, problem: TrainingProblem) -> int | None:
    """The border of the part in which the last window lies; None in the test part, where the data end."""
    if not len(ends):
        return None
    last_ms = int(problem.windows.available_at_ms_R[ends].max())
    return problem.windows.split.end_after(last_ms)


def pay(series: TradingSeries, rows_N: Ints, positions_N: Positions) -> Account:
    """What positions at payable rows, ascending, come to; see `Account`."""
    starts = segment_starts(rows_N)
    held_N = np.where(starts, 0, np.roll(positions_N, 1))
    closed_N = np.where(np.append(starts[1:], True), np.abs(positions_N), 0)
    entry = rows_N + series.delay
    changed_N = np.abs(positions_N - held_N)
    swap_N = series.swap(entry, positions_N)
    gross_N = np.maximum(positions_N * series.move_R[entry], RUIN - 1.0)
    turnover_N = (changed_N + closed_N).astype(np.float64)
    net_N = step_rewards(series, rows_N, held_N=held_N, position_N=positions_N)

    moments, first_N, place_N = np.unique(series.priced_at_ms_R[entry], return_index=True, return_inverse=True)
    num_symbols = len(np.unique(series.symbol_R[rows_N]))

    def shared(values_N: Floats) -> Floats:
        return np.asarray(np.bincount(place_N, weights=values_N, minlength=len(moments)) / num_symbols)

    return Account(
        series=series,
        rows_N=rows_N,
        positions_N=positions_N,
        net_N=net_N,
        gross_N=np.log1p(gross_N),
        trading_N=series.unit_cost_R[entry] * changed_N + series.unit_cost_R[entry + 1] * closed_N,
        swap_N=swap_N,
        turnover_N=turnover_N,
        net_M=np.log1p(shared(np.expm1(net_N))),
        gross_M=np.log1p(shared(gross_N)),
        gain_M=shared(gross_N - swap_N),
        turnover_M=shared(turnover_N),
        settled_ms_M=series.priced_at_ms_R[entry[first_N] + 1],
        num_trades=int((changed_N > 0).sum() + (closed_N > 0).sum()),
        num_symbols=num_symbols,
        moments_N=place_N,
    )


def _daily(account: Account) -> dict[str, float]:
    return performance.daily_returns(account.net_M, account.settled_ms_M)


def _values(log_return_M: Floats, account: Account) -> Floats:
    return np.array(list(performance.daily_returns(log_return_M, account.settled_ms_M).values()))


def _costs_used(account: Account) -> dict[str, Costs]:
    """What each symbol's fills were charged, the spread as its mean over the decisions."""
    series, entry = account.series, account.rows_N + account.series.delay
    used = {}
    for number in np.unique(series.symbol_R[account.rows_N]).tolist():
        symbol = series.symbols[number]
        costs, spread_N = series.costs[symbol], series.spread_R[entry[series.symbol_R[entry] == number]]
        assert costs.spread_pips is not None, "a series has resolved costs"
        plain = {name: getattr(costs, name) for name in Costs.model_fields}
        mean = float(np.where(np.isfinite(spread_N), spread_N, costs.spread_pips).mean())
        used[symbol] = Costs(**{**plain, "spread_pips": mean})
    return used


def _default_swaps(series: TradingSeries) -> list[str]:
    """The symbols whose swaps leave the interest differential out; fixings' among them."""
    return [symbol for symbol in series.symbols if has_default_swaps(symbol, series.costs[symbol])]


def _stressed(account: Account) -> CarryStress | None:
    """The same decisions where each held night pays the largest difference of policy rates; see `CarryStress`."""
    series, entry = account.series, account.rows_N + account.series.delay
    first, last = series.priced_at_ms_R[entry[[0, -1]]].astype("datetime64[ms]").astype("datetime64[Y]").astype(int)
    first, last = (int(min(first, last)) + 1970, int(max(first, last)) + 1970)
    rates = {symbol: largest_differential(symbol, first, last) for symbol in _default_swaps(series)}
    if not rates:
        return None
    if None in rates.values():
        return CarryStress(yearly_rate=rates, net_log_return=None, p_value=None)
    nightly_R = np.array([(rates.get(symbol) or 0.0) / DAYS_PER_YEAR for symbol in series.symbols])[series.symbol_R]
    charge_R = nightly_R * series.nights_R
    dearer = replace(series, swap_long_R=series.swap_long_R + charge_R, swap_short_R=series.swap_short_R + charge_R)
    stressed = pay(dearer, account.rows_N, account.positions_N)
    daily_D = np.array(list(_daily(stressed).values()))
    return CarryStress(yearly_rate=rates, net_log_return=float(stressed.net_M.sum()), p_value=hac_mean(daily_D).p_value)
