"""Ranking: rank IC with its decay over horizons, and what came after low and high forecasts, all with HAC errors.

Ranks are taken within each symbol and standardised; a row's product of both is its part of Spearman's correlation, so
that the correlation is a mean over rows, whose error allows for overlapping labels and for symbols at one moment.

Legend: N rows, T moments.
"""

import math

import numpy as np

from ml_workbench_service.contracts.desk_report import DecayPoint, QuantileReturn, QuantileReturns, Ranking
from ml_workbench_service.contracts.market import Bools, Floats
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.evaluation.moment_means import MomentMean

HORIZONS = (1, 2, 3, 5, 10, 20, 40)
"""Bars of the decay: to two days of hours, two months of days."""
FEWEST_ROWS = 50
"""Under so many pairs a rank correlation says nothing."""
NUM_QUANTILES = 5


def rank_ic(rows: DeskRows, signal_N: Floats, outcome_N: Floats, kept_N: Bools | None = None) -> MomentMean | None:
    """Spearman's correlation within symbols; None under `FEWEST_ROWS` rows, and where nothing varies."""
    known_N = np.isfinite(signal_N) & np.isfinite(outcome_N)
    if kept_N is not None:
        known_N &= kept_N
    products_N = np.full(len(signal_N), np.nan)
    for place in range(len(rows.symbols)):
        own = np.flatnonzero(known_N & (rows.symbol_N == place))
        one, other = (_standardised(values[own]) for values in (signal_N, outcome_N))
        if one is not None and other is not None:
            products_N[own] = one * other
    ranked_N = np.isfinite(products_N)
    if ranked_N.sum() < FEWEST_ROWS:
        return None
    return MomentMean.of(products_N, ranked_N, rows.place_N, rows.num_moments)


def ranking(rows: DeskRows) -> Ranking | None:
    """Of whatever forecasts; None where nothing does, or it ranks too few rows."""
    if rows.target is None:
        return None
    outcome_N, is_size = rows.ordered_outcome_N, rows.target.measure == "volatility"
    found = None if outcome_N is None else rank_ic(rows, rows.signal_N, outcome_N)
    decay = _decay(rows, is_size=is_size)
    if found is None and not decay:
        return None
    return Ranking(
        rank_ic=None if found is None else found.estimate(horizon=rows.horizon),
        decay=decay,
        decay_of="size_of_return" if is_size else "return",
    )


def quantile_returns(rows: DeskRows) -> QuantileReturns | None:
    """Mean outcome of each fifth of the forecasts; None of what has no number for an outcome."""
    outcome_N, signal_N = rows.ordered_outcome_N, rows.signal_N
    if outcome_N is None or rows.card.classes:
        return None
    known_N = np.isfinite(signal_N) & np.isfinite(outcome_N)
    if known_N.sum() < NUM_QUANTILES * FEWEST_ROWS:
        return None
    fifth_N = np.full(len(signal_N), -1, dtype=np.int64)
    for place in range(len(rows.symbols)):
        own = np.flatnonzero(known_N & (rows.symbol_N == place))
        order = np.argsort(signal_N[own], kind="stable")
        fifth_N[own[order]] = np.arange(len(own)) * NUM_QUANTILES // max(len(own), 1)
    means = [
        MomentMean.of(outcome_N, fifth_N == number, rows.place_N, rows.num_moments) for number in range(NUM_QUANTILES)
    ]
    kept = [each for each in means if each is not None]
    if len(kept) < NUM_QUANTILES:
        return None
    quantiles = tuple(
        QuantileReturn(
            number=number + 1,
            mean_forecast=float(signal_N[fifth_N == number].mean()),
            outcome=each.estimate(horizon=rows.horizon),
        )
        for number, each in enumerate(kept)
    )
    return QuantileReturns(quantiles=quantiles, spread=kept[-1].less(kept[0]).estimate(horizon=rows.horizon))


def _decay(rows: DeskRows, *, is_size: bool) -> tuple[DecayPoint, ...]:
    found = []
    for bars in HORIZONS:
        of_bar_N, up_to_N = _moves(rows, bars)
        if is_size:
            of_bar_N, up_to_N = np.abs(of_bar_N), np.abs(up_to_N)
        alone, together = (rank_ic(rows, rows.signal_N, each) for each in (of_bar_N, up_to_N))
        if alone is None or together is None:
            break
        found.append(
            DecayPoint(bars=bars, of_the_bar=alone.estimate(horizon=1), up_to_it=together.estimate(horizon=bars))
        )
    return tuple(found)


def _moves(rows: DeskRows, bars: int) -> tuple[Floats, Floats]:
    """(N,) log return of the bar that lies so many rows ahead, and of all up to it."""
    of_bar_N, up_to_N = (np.full(len(rows.as_of_N), np.nan) for _ in range(2))
    for place in range(len(rows.symbols)):
        own = rows.of_symbol(place)
        log = np.log(rows.columns["price"][own])
        if len(own) > bars:
            of_bar_N[own[:-bars]] = log[bars:] - log[bars - 1 : -1]
            up_to_N[own[:-bars]] = log[bars:] - log[:-bars]
    return of_bar_N, up_to_N


def _standardised(values: Floats) -> Floats | None:
    """Ranks with mean 0 and mean square 1, equal values sharing theirs; None where nothing varies."""
    if len(values) < 2:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    centred = ((np.cumsum(counts) - counts) + (counts - 1) / 2)[place] - (len(values) - 1) / 2
    size = math.sqrt(float(np.mean(centred**2)))
    return centred / size if size > 0 else None
