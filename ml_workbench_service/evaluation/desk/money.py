"""Money of a desk: turnover, drawdowns with dates, months, the usual statistics, and what spread is borne.

Everything is of the account that the card shows, out of the rows alone; a position's size may be any number.

Legend: N rows, M moments, D days.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.desk_report import Capacity, CapacityPoint, Drawdown, MonthlyReturn, Turnover
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.evaluation.kept_accounts import account_returns, known_at_ms, num_paid_symbols
from ml_workbench_service.market import calendar, performance
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.market.costs import DAYS_PER_YEAR, pip_size

NUM_DRAWDOWNS = 5
SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
MOST_SPREAD = 100.0


@dataclass(frozen=True)
class DeskAccount:
    """The account, moment by moment, and what is traded row by row.

    Attributes:
        moments_M: of decision.
        settled_M: when each step is.
        net_M, gross_M: log returns.
        changed_N, closed_N: change of position at a row's fill, and what is closed after it; 0 where nothing is paid.
    """

    rows: DeskRows
    num_symbols: int
    moments_M: Ints
    settled_M: Ints
    net_M: Floats
    gross_M: Floats
    changed_N: Floats
    closed_N: Floats

    @classmethod
    def of(cls, rows: DeskRows) -> "DeskAccount":
        """Of rows that are traded."""
        net_N = rows.columns["net"]
        num_symbols = num_paid_symbols(net_N, rows.columns["symbol"])
        net_M, moments_M = account_returns(net_N, rows.as_of_N, num_symbols=num_symbols)
        gross_M, _ = account_returns(rows.columns["gross"], rows.as_of_N, num_symbols=num_symbols)
        settled_M = known_at_ms(moments_M, timeframe=rows.card.timeframe, fill=rows.card.fill)
        return cls(rows, num_symbols, moments_M, settled_M, net_M, gross_M, *_changes(rows))

    @property
    def turnover_N(self) -> Floats:
        """What is bought or sold for each row."""
        return self.changed_N + self.closed_N

    def daily(self, log_return_M: Floats) -> dict[str, float]:
        """Of each FX day, weekdays without a decision as days flat."""
        return performance.daily_returns(log_return_M, self.settled_M)

    def part(self, kept_N: Bools, column: str) -> float:
        """What those rows bring to the account, in log return."""
        values_N = np.where(kept_N, self.rows.columns[column], np.nan)
        return float(account_returns(values_N, self.rows.as_of_N, num_symbols=self.num_symbols)[0].sum())


def turnover(account: DeskAccount) -> Turnover:
    """How much is traded, as the card counts it."""
    paid_N = np.isfinite(account.rows.columns["net"])
    position_N = account.rows.columns["position"][paid_N]
    entries = int((account.changed_N[paid_N] * (position_N != 0) > 0).sum())
    total = float(account.turnover_N.sum()) / account.num_symbols
    years = (int(account.settled_M[-1]) - int(account.moments_M[0])) / DAY_MS / DAYS_PER_YEAR
    return Turnover(
        total=total,
        per_year=total / years if years > 0 else None,
        num_trades=int((account.changed_N > 0).sum() + (account.closed_N > 0).sum()),
        mean_holding_bars=float((position_N != 0).sum()) / entries if entries else None,
        share_long=float(np.mean(position_N > 0)),
        share_short=float(np.mean(position_N < 0)),
        share_flat=float(np.mean(position_N == 0)),
    )


def drawdowns(account: DeskAccount) -> tuple[Drawdown, ...]:
    """The deepest ways down from a peak; the start at zero is one."""
    equity_M = np.concatenate([[0.0], np.cumsum(account.net_M)])
    times_M = np.concatenate([account.moments_M[:1], account.settled_M])
    peak_M = np.maximum.accumulate(equity_M)
    below_M = np.concatenate([[False], equity_M < peak_M, [False]])
    begins, ends = (np.flatnonzero(each) for each in (below_M[1:] & ~below_M[:-1], below_M[:-1] & ~below_M[1:]))
    found = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        trough = begin + int(np.argmin(equity_M[begin:end]))
        has_recovered = end < len(equity_M)
        last = times_M[end] if has_recovered else times_M[-1]
        found.append(
            Drawdown(
                depth=float(-np.expm1(equity_M[trough] - peak_M[trough])),
                peak_at=moment(times_M[begin - 1]),
                trough_at=moment(times_M[trough]),
                recovered_at=moment(times_M[end]) if has_recovered else None,
                num_days=int((last - times_M[begin - 1]) // DAY_MS),
            )
        )
    return tuple(sorted(found, key=lambda each: -each.depth)[:NUM_DRAWDOWNS])


def months(account: DeskAccount) -> tuple[MonthlyReturn, ...]:
    """Log returns by the month of the FX day."""
    net, gross = account.daily(account.net_M), account.daily(account.gross_M)
    by_month: dict[str, list[str]] = {}
    for day in net:
        by_month.setdefault(day[:7], []).append(day)
    found = []
    for name, days in by_month.items():
        after, before = (math.fsum(each[day] for day in days) for each in (net, gross))
        year, month = int(name[:4]), int(name[5:])
        found.append(
            MonthlyReturn(year=year, month=month, net=after, gross=before, cost=before - after, num_days=len(days))
        )
    return tuple(found)


def capacity(account: DeskAccount) -> Capacity | None:
    """The same decisions at other spreads; None where the card does not say what was charged."""
    backtest = account.rows.card.evaluation.backtest
    if backtest is None or not all(symbol in backtest.costs for symbol in account.rows.symbols):
        return None
    pips = {symbol: backtest.costs[symbol].spread_pips or 0.0 for symbol in account.rows.symbols}
    half_S = np.array([pips[symbol] * pip_size(symbol) / 2 for symbol in account.rows.symbols])
    spread_N = half_S[account.rows.symbol_N] / account.rows.columns["price"] * account.turnover_N
    points = []
    for multiple in SPREADS:
        net_M = _net_at(account, spread_N, multiple)
        daily_D = np.array(list(account.daily(net_M).values()))
        ratio = performance.annual(performance.sharpe(daily_D))
        points.append(CapacityPoint(spread_multiple=multiple, net_log_return=float(net_M.sum()), sharpe=ratio))
    return Capacity(points=tuple(points), break_even_multiple=_break_even(account, spread_N), spread_pips=pips)


def moment(moment_ms: float) -> datetime:
    """In UTC."""
    return datetime.fromtimestamp(int(moment_ms) / 1000, tz=UTC)


def _net_at(account: DeskAccount, spread_N: Floats, multiple: float) -> Floats:
    """(M,) the account's log returns where the spread is so many times what was charged."""
    net_N = account.rows.columns["net"]
    changed_N = np.log1p(np.maximum(np.expm1(net_N) - (multiple - 1.0) * spread_N, -0.999999))
    return account_returns(changed_N, account.rows.as_of_N, num_symbols=account.num_symbols)[0]


def _break_even(account: DeskAccount, spread_N: Floats) -> float | None:
    """Where the net return, which falls as the spread grows, is zero."""
    low, high = 0.0, MOST_SPREAD
    if _net_at(account, spread_N, low).sum() <= 0 or _net_at(account, spread_N, high).sum() >= 0:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _net_at(account, spread_N, middle).sum() > 0 else (low, middle)
    return low


def _changes(rows: DeskRows) -> tuple[Floats, Floats]:
    """(N,) what each paid row changes, and what is closed behind it: where the next bar is not the symbol's next row,
    or cannot be paid, the position ends, as in every backtest here."""
    changed_N, closed_N = np.zeros(len(rows.as_of_N)), np.zeros(len(rows.as_of_N))
    timeframe_ms = TIMEFRAMES_MS[rows.card.timeframe]
    for place in range(len(rows.symbols)):
        own = rows.of_symbol(place)
        runs = calendar.runs(rows.opened_ms(rows.as_of_N[own]), timeframe_ms, rows.card.calendar)
        paid = np.flatnonzero(np.isfinite(rows.columns["net"][own]))
        if not len(paid):
            continue
        follows = (np.diff(paid) == 1) & (np.diff(runs[paid]) == 0)
        size = rows.columns["position"][own[paid]]
        held = np.concatenate([[0.0], np.where(follows, size[:-1], 0.0)])
        changed_N[own[paid]] = np.abs(size - held)
        closed_N[own[paid]] = np.where(np.append(~follows, True), np.abs(size), 0.0)
    return changed_N, closed_N
