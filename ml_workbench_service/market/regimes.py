"""Market regimes: one of four classes for each bar, by a rule whose two thresholds come from the training part.

A bar is in a trend where its trend strength, the log move of the last 20 bars in units of their own volatility, lies
outside ± the threshold; else it is volatile where its ex-ante volatility is above its own threshold; else calm. Both
thresholds are quantiles of one symbol's training part: volatilities of two pairs are no more comparable than their
features, which are scaled per symbol too, and every symbol's training part holds the same shares of the classes.

When it fails: a rule names what has happened, not what will. Twenty bars overlap in nineteen from one bar to the next,
so the present regime is right about the next bar's most of the time; whoever forecasts regimes must beat that.

Legend: N bars. Features and classes are causal: a bar's own use closes up to its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import CLASSES
from ml_workbench_service.market.targets import ewma_volatility

REGIMES = CLASSES["market_regime"]
TREND_BARS = 20
"""Bars of the trend: a month of daily ones, and about the 16 bars that are the mean age of the EWMA's squares, so that
the move and the volatility it is measured by speak of the same segment."""
TREND_QUANTILE = 2 / 3
"""A third of the training part's bars is in a trend, by its strength alone."""
VOLATILITY_QUANTILE = 2 / 3
"""Volatile is the upper tercile of the training part, the convention of volatility regimes."""
FEWEST_BARS = 60
"""Bars with both features under which a tercile is no more than an anecdote: three trends' length."""

_TREND_DOWN, _CALM, _VOLATILE, _TREND_UP = (
    float(REGIMES.index(name)) for name in ("trend_down", "calm", "volatile", "trend_up")
)


def regime_features(close: Floats, runs: Ints) -> tuple[Floats, Floats]:
    """Trend strength (signed, no unit) and ex-ante volatility of one bar's log return; NaN where unknown.

    A trend is unknown until `TREND_BARS` bars follow one another: no move is taken over a missing bar.
    """
    volatility = ewma_volatility(close)
    trend = np.full(len(close), np.nan)
    if len(close) > TREND_BARS:
        moves = np.log(close[TREND_BARS:] / close[:-TREND_BARS])
        unbroken = runs[TREND_BARS:] == runs[:-TREND_BARS]
        trend[TREND_BARS:] = np.where(unbroken, moves / (volatility[TREND_BARS:] * np.sqrt(TREND_BARS)), np.nan)
    return trend, volatility


@dataclass(frozen=True)
class RegimeRule:
    """The two thresholds of one symbol."""

    trend: float  # of the trend strength's absolute value
    volatility: float  # of the ex-ante volatility of one bar's log return

    @classmethod
    def fit(cls, trend_N: Floats, volatility_N: Floats) -> "RegimeRule":
        """Both quantiles over the rows given: those known by the end of the training part, and no others.

        Raises:
            DataValidationError: fewer than `FEWEST_BARS` rows have both features.
        """
        known = np.isfinite(trend_N) & np.isfinite(volatility_N)
        if known.sum() < FEWEST_BARS:
            raise DataValidationError.at(
                "body.start_date",
                f"a rule for market regimes needs {FEWEST_BARS} bars with trend and volatility in the training part "
                f"of each symbol, and one has {int(known.sum())}; start earlier, or leave that symbol out",
                code="too_few_windows",
            )
        return cls(
            trend=float(np.quantile(np.abs(trend_N[known]), TREND_QUANTILE)),
            volatility=float(np.quantile(volatility_N[known], VOLATILITY_QUANTILE)),
        )

    def classify(self, trend_N: Floats, volatility_N: Floats) -> Floats:
        """Each bar's class as its number in `REGIMES`; NaN where a feature is unknown.

        Of the bar itself it is the present regime: the baseline of persistence, and `regime_labels` moves it ahead.
        """
        quiet = np.where(volatility_N > self.volatility, _VOLATILE, _CALM)
        moving = np.where(trend_N > 0, _TREND_UP, _TREND_DOWN)
        classes = np.where(np.abs(trend_N) > self.trend, moving, quiet)
        return np.where(np.isfinite(trend_N) & np.isfinite(volatility_N), classes, np.nan)

    def to_json(self) -> dict[str, float]:
        """Plain values for `recipe.json`."""
        return {"trend": self.trend, "volatility": self.volatility}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "RegimeRule":
        """The inverse of `to_json`."""
        return cls(float(plain["trend"]), float(plain["volatility"]))
