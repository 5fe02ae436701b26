"""Slices of the test part: by symbol, session, market regime and span of time, each as good as it is by itself.

Many slices are many looks: each rank correlation's p-value is adjusted for all of them (Holm), and still the best slice
is not what was asked before.

Legend: N rows.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.desk_report import Estimate, Session, Slice, SliceKind, Stability
from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.evaluation.desk.money import DeskAccount, moment
from ml_workbench_service.evaluation.desk.ranking import rank_ic
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.evaluation.moment_means import holm
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.regimes import REGIMES, RegimeRule, regime_features

SESSIONS: tuple[tuple[Session, int, int], ...] = (
    ("asia", 0, 10),
    ("london", 10, 15),
    ("overlap", 15, 19),
    ("new_york", 19, 24),
)
"""By hours since the last 17:00 New York, the clock of `market/costs.SESSIONS`: London opens at 03:00 New York and both
deal from 08:00 to 12:00, but for the weeks in which only one of the two has changed its clocks."""
NUM_PERIODS = 8


def slices(rows: DeskRows, account: DeskAccount | None) -> tuple[Slice, ...]:
    """By symbol, session and regime; kinds that tell nothing apart are left out."""
    groups: list[tuple[SliceKind, str, Bools]] = []
    if len(rows.symbols) > 1:
        groups += [("symbol", symbol, rows.symbol_N == place) for place, symbol in enumerate(rows.symbols)]
    if TIMEFRAMES_MS[rows.card.timeframe] < DAY_MS and rows.card.calendar == "fx":
        hour_N = (rows.as_of_N - calendar.trading_day_opening(rows.as_of_N)) // HOUR_MS
        groups += [("session", name, (hour_N >= begin) & (hour_N < end)) for name, begin, end in SESSIONS]
    groups += [("regime", name, kept_N) for name, kept_N in _regimes(rows)]
    return tuple(_slice(rows, account, kind, name, kept_N) for kind, name, kept_N in groups if kept_N.any())


def stability(rows: DeskRows, account: DeskAccount | None) -> Stability | None:
    """Eight spans of equally many moments, and the change from the first half to the second."""
    if rows.num_moments < NUM_PERIODS:
        return None
    number_N = rows.place_N * NUM_PERIODS // rows.num_moments
    periods = tuple(
        _slice(rows, account, "period", str(number + 1), number_N == number) for number in range(NUM_PERIODS)
    )
    ics = [each.rank_ic.value for each in periods if each.rank_ic is not None and each.rank_ic.value is not None]
    nets = [each.net for each in periods if each.net is not None]
    return Stability(
        periods=periods,
        periods_with_positive_ic=sum(each > 0 for each in ics) if ics else None,
        periods_with_positive_net=sum(each > 0 for each in nets) if nets else None,
        change_of_ic=_change(rows, number_N >= NUM_PERIODS // 2),
    )


def adjusted(groups: Sequence[Sequence[Slice]]) -> list[tuple[Slice, ...]]:
    """The same slices with p-values that bear all of them."""
    every = [each for group in groups for each in group]
    found = holm([None if each.rank_ic is None else each.rank_ic.p_value for each in every])
    told = iter(
        [each.model_copy(update={"adjusted_p_value": p_value}) for each, p_value in zip(every, found, strict=True)]
    )
    return [tuple(next(told) for _ in group) for group in groups]


def _slice(rows: DeskRows, account: DeskAccount | None, kind: SliceKind, name: str, kept_N: Bools) -> Slice:
    outcome_N, as_of_N = rows.ordered_outcome_N, rows.as_of_N[kept_N]
    ranked = None if outcome_N is None else rank_ic(rows, rows.signal_N, outcome_N, kept_N)
    position_N = rows.columns["position"][kept_N & np.isfinite(rows.columns["net"])]
    return Slice(
        kind=kind,
        name=name,
        first=moment(as_of_N.min()),
        last=moment(as_of_N.max()),
        num_rows=int(kept_N.sum()),
        rank_ic=None if ranked is None else ranked.estimate(horizon=rows.horizon),
        share_right=_share_right(rows, kept_N),
        net=None if account is None else account.part(kept_N, "net"),
        gross=None if account is None else account.part(kept_N, "gross"),
        share_in_market=float(np.mean(position_N != 0)) if account is not None and len(position_N) else None,
    )


def _share_right(rows: DeskRows, kept_N: Bools) -> float | None:
    """Of the rows that say buy or sell: those whose outcome went there."""
    if not rows.has_sides:
        return None
    stated_N = kept_N & (rows.stated_side_N != 0) & np.isfinite(rows.columns["realised"])
    if not stated_N.any():
        return None
    return float(np.mean(np.sign(rows.columns["realised"][stated_N]) == rows.stated_side_N[stated_N]))


def _change(rows: DeskRows, is_later_N: Bools) -> Estimate | None:
    outcome_N = rows.ordered_outcome_N
    if outcome_N is None:
        return None
    early, late = (rank_ic(rows, rows.signal_N, outcome_N, each) for each in (~is_later_N, is_later_N))
    if early is None or late is None:
        return None
    return late.less(early).estimate(horizon=rows.horizon, two_sided=True)


def _regimes(rows: DeskRows) -> Iterator[tuple[str, Bools]]:
    """Each regime's rows, by a rule of what came before the test part; none where that is too short."""
    class_N = np.full(len(rows.as_of_N), np.nan)
    for place, symbol in enumerate(rows.symbols):
        before, own = rows.before["symbol"] == symbol, rows.of_symbol(place)
        as_of, first = np.unique(
            np.concatenate([rows.before["as_of"][before], rows.as_of_N[own]]).astype(np.int64), return_index=True
        )
        close = np.concatenate([rows.before["price"][before], rows.columns["price"][own]])[first]
        trend, volatility = regime_features(close, _runs(rows, as_of))
        num_before = len(as_of) - len(own)
        try:
            rule = RegimeRule.fit(trend[:num_before], volatility[:num_before])
        except DataValidationError:  # too few bars before the test part
            return
        class_N[own] = rule.classify(trend, volatility)[num_before:]
    for number, name in enumerate(REGIMES):
        yield name, class_N == number


def _runs(rows: DeskRows, as_of: Ints) -> Ints:
    return calendar.runs(rows.opened_ms(as_of), TIMEFRAMES_MS[rows.card.timeframe], rows.card.calendar)
