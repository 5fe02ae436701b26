"""Policy evidence: what a live policy's timely answers earned by the store's bars, beside being flat and holding on.

A follower's answers (meta-labelling) earned what they did beside its primary's side at every bar, and the same thinned.

An answer says which position follows for one who holds -1, 0 and 1, so the walk needs no caller's positions: it begins
flat at the first timely answer and takes at each bar what follows from the position that it holds itself. Each step is
paid by the one rule for fills (`market/trading_series.py`): filled at the next bar's open, or the next fixing, net of
spread, commission, slippage and swap, closed where a bar is missing.

An abstention makes flat, `market_closed` keeps. A bar without a timely answer keeps the position, as the agent does,
and counts as missing.

Legend: B bars of one symbol, N decisions of its period.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.market import calendar
from ml_workbench_service.market.features.tables import SPREAD
from ml_workbench_service.market.fills import fetch_with_opens, open_prices, open_spreads
from ml_workbench_service.market.outcomes.live_evidence import (
    UNKNOWN_ACTION,
    LiveAnswers,
    num_missing_bars,
    timely,
)
from ml_workbench_service.market.trading_series import (
    Positions,
    StackedBars,
    TradingSeries,
    build_trading_series,
    segment_starts,
    step_rewards,
)

BASELINES: Mapping[str, int] = {"flat": 0, "buy_and_hold": 1}
"""By the position that each holds."""
PRIMARY, THINNED = "primary", "thinned"
"""What a follower is compared with."""


@dataclass(frozen=True)
class PolicyPeriod:
    """One symbol's decisions from its first timely answer on.

    Attributes:
        series: prices and costs.
        rows_N: decisions that can be paid, ascending.
        actions_N3: the position that follows for one who holds -1, 0 and 1.
        num_bars: of the period, that have a step or should have one.
        num_answered: of them, answered in time.
    """

    series: TradingSeries
    rows_N: Ints
    actions_N3: Ints
    num_bars: int
    num_answered: int

    @property
    def moment_ms_M(self) -> Ints:
        """When each decision's bar was known."""
        return self.series.available_at_ms_R[self.rows_N]

    @property
    def too_late_since_ms(self) -> int | None:
        """Never: its baselines need no past."""
        return None

    def until(self, moment_ms: int) -> Self:
        """The same without decisions that were made later; what is held then is closed."""
        kept_N = self.moment_ms_M <= moment_ms
        return replace(self, rows_N=self.rows_N[kept_N], actions_N3=self.actions_N3[kept_N])

    def gains(self) -> dict[str, tuple[Floats, Floats]]:
        """By baseline: net log return of each step beside its own, to be tested and to be larger."""
        net_N = self.net(self.positions())
        found = {}
        for name, position in BASELINES.items():
            gained_N = net_N - self.net(np.full(len(self.rows_N), position, dtype=np.int64))
            found[name] = (gained_N, gained_N)
        return found

    def positions(self) -> Ints:
        """(N,) what the walk holds, flat where a segment starts."""
        held, found = 0, []
        for starts, actions in zip(segment_starts(self.rows_N).tolist(), self.actions_N3.tolist(), strict=True):
            held = actions[1 + (0 if starts else held)]
            found.append(held)
        return np.array(found, dtype=np.int64)

    def net(self, positions_N: Positions) -> Floats:
        """(N,) net log return of each step of whoever holds this."""
        held_N = np.concatenate([np.zeros(1, dtype=positions_N.dtype), positions_N[:-1]])
        held_N[segment_starts(self.rows_N)] = 0
        return step_rewards(self.series, self.rows_N, held_N=held_N, position_N=positions_N)


@dataclass(frozen=True)
class FollowerPeriod:
    """One symbol's decisions of a follower, beside its primary's at the same bars (meta-labelling).

    The baselines are its card's: the primary's side at every bar, and the same as large as the share of its sides that
    is followed, so that whoever skips a losing primary blindly shows nothing.

    Attributes:
        own: its walk.
        primary: the walk of whoever always takes the primary's side; abstentions are the follower's.
    """

    own: PolicyPeriod
    primary: PolicyPeriod

    @property
    def moment_ms_M(self) -> Ints:
        """When each decision's bar was known."""
        return self.own.moment_ms_M

    @property
    def num_bars(self) -> int:
        """Of the period."""
        return self.own.num_bars

    @property
    def num_answered(self) -> int:
        """Of them, in time."""
        return self.own.num_answered

    @property
    def too_late_since_ms(self) -> int | None:
        """Never."""
        return None

    def until(self, moment_ms: int) -> Self:
        """Both without later decisions."""
        return replace(self, own=self.own.until(moment_ms), primary=self.primary.until(moment_ms))

    def gains(self) -> dict[str, tuple[Floats, Floats]]:
        """By baseline: net log return of each step beside the primary's, and the thinned primary's."""
        taken_N, side_N = self.own.positions(), self.primary.positions()
        has_side_N, net_N = side_N != 0, self.own.net(taken_N)
        share = float(np.mean(taken_N[has_side_N] != 0)) if has_side_N.any() else 0.0
        found = {}
        for name, size in ((PRIMARY, 1.0), (THINNED, share)):
            gained_N = net_N - self.own.net(np.asarray(size * side_N, dtype=np.float64))
            found[name] = (gained_N, gained_N)
        return found


def policy_periods(
    card: ModelCard,
    answers_of: Callable[[str], LiveAnswers],
    store: FeatureStore,
    costs: Mapping[str, Costs],
) -> Iterator[PolicyPeriod]:
    """Of each symbol that has timely answers.

    Args:
        costs: resolved, as the version was published with.
    """
    for answers, table in _answered(card, answers_of, store):
        assert answers.actions_N3 is not None, "others are not among them"
        period = _period(answers, answers.actions_N3, table, costs[table.symbol])
        if period is not None:
            yield period


def follower_periods(
    card: ModelCard,
    answers_of: Callable[[str], LiveAnswers],
    store: FeatureStore,
    costs: Mapping[str, Costs],
) -> Iterator[FollowerPeriod]:
    """`policy_periods` of a follower's answers: what it takes is the primary's side, or nothing."""
    for answers, table in _answered(card, answers_of, store):
        side_N3 = answers.actions_N3
        assert side_N3 is not None, "others are not among them"
        skips_N = ~answers.abstains_N & (answers.prediction_N == 0) & (side_N3 != UNKNOWN_ACTION).all(axis=1)
        own = _period(answers, np.where(skips_N[:, None], 0, side_N3), table, costs[table.symbol])
        primary = _period(answers, side_N3, table, costs[table.symbol])
        if own is not None and primary is not None:
            yield FollowerPeriod(own, primary)


def _answered(
    card: ModelCard, answers_of: Callable[[str], LiveAnswers], store: FeatureStore
) -> Iterator[tuple[LiveAnswers, FeatureTable]]:
    """Each symbol's answers that say what follows, and its bars."""
    bar_ms = TIMEFRAMES_MS[card.timeframe]
    for symbol in card.symbols:
        answers = answers_of(symbol)
        if not len(answers.as_of_ms_N) or answers.actions_N3 is None:
            continue
        start_ms = int(calendar.advance(int(answers.as_of_ms_N.min()), -2 * bar_ms)) - 7 * calendar.DAY_MS

        def fetch(names: list[str], symbol: str = symbol, start_ms: int = start_ms) -> list[FeatureTable]:
            return store.fetch([symbol], card.timeframe, start_ms=start_ms, end_ms=None, features=names)

        yield answers, fetch_with_opens(fetch, ["close"])[0]


def _period(answers: LiveAnswers, actions_N3: Ints, table: FeatureTable, costs: Costs) -> PolicyPeriod | None:
    bar_ms = TIMEFRAMES_MS[table.timeframe]
    chosen, row_M = timely(answers, table, bar_ms)
    has_told_M = (actions_N3[chosen] != UNKNOWN_ACTION).all(axis=1)
    chosen, row_M = chosen[has_told_M], row_M[has_told_M]
    series = _series(table, costs)
    if not len(row_M):
        return None
    rows_N = series.payable(np.arange(row_M[0], len(table)))
    actions_B3 = np.tile(np.array([-1, 0, 1], dtype=np.int64), (len(table), 1))  # who is not told holds on
    actions_B3[row_M] = actions_N3[chosen]
    last = len(table) - 1 - series.delay - 1
    num_bars = max(last + 1 - int(row_M[0]), 0)
    return PolicyPeriod(
        series=series,
        rows_N=rows_N,
        actions_N3=actions_B3[rows_N],
        num_bars=num_bars + num_missing_bars(table, first=int(row_M[0]), last=last),
        num_answered=int(np.isin(row_M, rows_N).sum()),
    )


def _series(table: FeatureTable, costs: Costs) -> TradingSeries:
    """One symbol's bars as a series without features."""
    num, nothing = len(table), np.full(len(table), np.nan)
    bars = StackedBars(
        rows_RF=np.zeros((num, 0), dtype=np.float32),
        open_R=open_prices(table.columns),
        close_R=np.asarray(table.columns["close"], dtype=np.float64),
        opened_ms_R=table.opened_ms,
        available_at_ms_R=table.available_at_ms,
        runs_R=calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar),
        symbol_R=np.zeros(num, dtype=np.int64),
        spread_R=np.asarray(table.columns.get(SPREAD, nothing)),
        spread_open_R=open_spreads(table, costs),
        symbols=(table.symbol,),
    )
    return build_trading_series(bars, costs={table.symbol: costs}, fill=table.fill)
