"""Plausibility: bands beyond which a figure is a mistake rather than a discovery, whatever the certificate says.

Bid-ask bounce, stale prices and a wrong time zone are no look-ahead, so that no certificate finds them; yet a currency
forecast that explains 10 % of the next hour's variance does not exist. `implausible` is said only where the one-sided
97.5 % lower bound of a figure exceeds its band: luck alone does it once in forty times the already impossible.

    R², direction, information coefficient   monthly out-of-sample R² of 0.5 to 1 % are the most that survive for shares
                                             (Campbell and Thompson, Review of Financial Studies 21, 2008), and for
                                             exchange rates hardly any does (Rossi, Journal of Economic Literature 51,
                                             2013); an IC of r is an R² of r², and sides right in 1/2 + arcsin(r) / pi
    volatility                               as gain over the seasonal blend, in QLIKE; what realised measures of
                                             minutes add over HAR (Bollerslev, Patton and Quaedvlieg, Journal of
                                             Econometrics 192, 2016)
    net Sharpe ratio                         S - 1.96 / root of years (Lo, Financial Analysts Journal 58, 2002)

Legend: N rows of all symbols, T moments.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.evaluation import BacktestReport
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.market.performance import DAYS_PER_YEAR
from ml_workbench_service.market.significance import NORMAL_975, mean_by_moment, mean_error, wilson

Figure = Literal["r2", "information_coefficient", "direction_accuracy", "volatility_gain", "net_sharpe"]
CLASSES = ("15m", "1h", "4h", "1d")
"""Timeframes up to which each of a band's four values holds; the last also for longer ones."""
BANDS: Mapping[Figure, tuple[float, float, float, float]] = {
    "r2": (0.01, 0.02, 0.03, 0.04),
    "information_coefficient": (0.10, 0.14, 0.17, 0.20),
    "direction_accuracy": (0.54, 0.555, 0.565, 0.575),
    "volatility_gain": (0.15, 0.25, 0.25, 0.25),
    "net_sharpe": (4.0, 4.0, 3.5, 3.0),
}
"""finance.md, "Verdicts"; sources above."""
ONE_BAR_VOLATILITY = 0.15
"""finance.md: a single bar's |return| is mostly noise, at any timeframe."""
CONFIDENCE = 0.975
NAMES: Mapping[Figure, str] = {
    "r2": "R²", "information_coefficient": "the information coefficient", "direction_accuracy": "direction accuracy",
    "volatility_gain": "the gain over the seasonal blend", "net_sharpe": "the net Sharpe ratio",
}  # fmt: skip


class Excess(NamedTuple):
    """A figure whose lower bound lies beyond its band."""

    figure: Figure
    bound: float
    band: float

    @property
    def sentence(self) -> str:
        """What is wrong with it."""
        values = (
            f"{self.bound:.2f} exceeds {self.band:g}"
            if self.figure in ("net_sharpe", "information_coefficient")
            else f"{self.bound:.1%} exceeds {self.band:.1%}"
        )
        return f"{NAMES[self.figure]} is too good: its 97.5% lower bound of {values}"


def band(figure: Figure, timeframe: str, *, horizon: int = 1) -> float:
    """What a figure may reach at this timeframe."""
    if figure == "volatility_gain" and horizon == 1:
        return ONE_BAR_VOLATILITY
    length_ms = TIMEFRAMES_MS[timeframe]
    place = next((number for number, name in enumerate(CLASSES) if length_ms <= TIMEFRAMES_MS[name]), len(CLASSES) - 1)
    return BANDS[figure][place]


def excesses(
    lower_bounds: Mapping[str, float], backtest: BacktestReport | None, *, timeframe: str, horizon: int
) -> list[Excess]:
    """Figures beyond their bands, the farthest first."""
    bounds = dict(lower_bounds)
    if backtest is not None and backtest.sharpe is not None and backtest.num_days > 0:
        bounds["net_sharpe"] = backtest.sharpe - NORMAL_975 / math.sqrt(backtest.num_days / DAYS_PER_YEAR)
    found = [
        Excess(figure, bounds[figure], limit)
        for figure in BANDS
        if figure in bounds and bounds[figure] > (limit := band(figure, timeframe, horizon=horizon))
    ]
    return sorted(found, key=lambda each: each.band / each.bound)


def of_prices(
    labels_N: Floats, forecasts_N: Floats, moments_N: Ints, differentials: Sequence[Differentials], *, horizon: int
) -> dict[str, float]:
    """Lower bounds of R² against each nested baseline (the least), and of the information coefficient.

    Args:
        labels_N: in units of their typical size, as `forecasts_N`.
        differentials: of the same rows.
    """
    shares = [_gain_bound(each) for each in differentials if each.is_nested]
    found = {"r2": min((each for each in shares if each is not None), default=None)}
    found["information_coefficient"] = _correlation_bound(labels_N, forecasts_N, moments_N, horizon=horizon)
    return {name: value for name, value in found.items() if value is not None}


def of_volatilities(differentials: Sequence[Differentials], *, blend: str) -> dict[str, float]:
    """Lower bound of the share of the seasonal blend's loss that was gained."""
    found = next((_gain_bound(each) for each in differentials if each.baseline == blend), None)
    return {} if found is None else {"volatility_gain": found}


def of_sides(stated_N: Ints, came_N: Ints, moments_N: Ints, *, horizon: int) -> dict[str, float]:
    """Lower bound of the share of right sides, where one was stated and one came (0: none)."""
    both_N = (stated_N != 0) & (came_N != 0)
    if not both_N.any():
        return {}
    share = float(np.mean(stated_N[both_N] == came_N[both_N]))
    low, _ = wilson(share, len(np.unique(moments_N[both_N])) / horizon)
    return {"direction_accuracy": low}


def _gain_bound(differentials: Differentials) -> float | None:
    gain_T = differentials.baseline_T - differentials.model_T
    found, loss = mean_error(gain_T, horizon=differentials.horizon), float(np.mean(differentials.baseline_T))
    if found is None or not loss > 0:
        return None
    return (float(np.mean(gain_T)) - found.quantile(CONFIDENCE) * found.error) / loss


def _correlation_bound(labels_N: Floats, forecasts_N: Floats, moments_N: Ints, *, horizon: int) -> float | None:
    deviations = float(labels_N.std()), float(forecasts_N.std())
    if not min(deviations) > 0:
        return None
    labels, forecasts = (
        (each - each.mean()) / size for each, size in zip((labels_N, forecasts_N), deviations, strict=True)
    )
    products_T = mean_by_moment(labels * forecasts, moments_N)
    found = mean_error(products_T, horizon=horizon)
    return None if found is None else float(products_T.mean()) - found.quantile(CONFIDENCE) * found.error
