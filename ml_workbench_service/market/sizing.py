"""Position sizing: from a forecast to the position that is taken, the one place that decides it; pure functions.

    forecast, volatility, cost  →  `Sizing.wanted`: what the rule wants, from this bar alone
    record                      →  `terms_of`: the same, as a record carries it
    wanted, held                →  `next_held`: what is taken, given what is held: band, horizon, reversal

Backtest, replay and live agent call both. Arrays and single numbers go through the same operations, element by element,
so that a card and the live records behind it agree to the bit. `follow` runs `next_held` along rows.

Kelly: of a bet with mean m and variance v the growth of the logarithm is largest at m ÷ v (Kelly 1956; Thorp 2006). The
mean is the forecast times its slope on what came true in the calibration part, for raw forecasts are as a rule too
bold; a slope below zero bets nothing. On hourly majors m ÷ v of a usual forecast is in the tens: the cap decides, and
the rule is nearly a sign that looks at no costs.

A portfolio multiplies each symbol's size by a weight of its own, fixed on the calibration part, so that all contribute
alike to the account's variance there, which is then the budget's square (Maillard, Roncalli and Teiletche, Journal of
Portfolio Management 36, 2010). Weights are fixed so that a record says its symbol's size without the others'.

A no-trade band trades to what is wanted, not to its edge: with costs proportional to the change the edge would be best
(Davis and Norman 1990), but it leaves the last step to every bar that follows.

Legend: N rows, S symbols.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, overload

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, Floats
from ml_workbench_service.contracts.prediction import Direction, PredictionRecord
from ml_workbench_service.contracts.sizing import Deciding, PositionRule, PositionWanted
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.market.performance import DAYS_PER_YEAR

MOST_SWEEPS = 1_000
SWEPT = 1e-12
"""Weights that move by a smaller share in a sweep over all symbols have arrived."""
SIGN_AFTER_COSTS = PositionRule()
"""Of versions that name no rule."""
_OF_DIRECTION: Mapping[Direction, PositionWanted] = {
    "sell": PositionWanted(rule="sign_after_costs", wanted=-1.0),
    "hold": PositionWanted(rule="sign_after_costs", wanted=0.0),
    "buy": PositionWanted(rule="sign_after_costs", wanted=1.0),
}


class Held(NamedTuple):
    """A position, and for how many bars it has been held since it was decided."""

    position: float = 0.0
    bars: int = 0


FLAT = Held()


@overload
def sides(forecast: float, dead_zone: float) -> float: ...
@overload
def sides(forecast: Floats, dead_zone: Floats) -> Floats: ...
def sides(forecast: Any, dead_zone: Any) -> Any:
    """The sign after costs of each forecast: 0 within ± the round-trip cost, else -1 or 1."""
    return np.where(np.abs(forecast) <= dead_zone, 0.0, np.sign(forecast))


def side(forecast: float, dead_zone: float) -> int:
    """`sides` of one forecast, in a tenth of its time."""
    return 0 if abs(forecast) <= dead_zone else 1 if forecast > 0 else -1


@dataclass(frozen=True)
class Sizing:
    """A rule with what it needs to know beside each forecast.

    Attributes:
        rule: resolved, or its default setting counts.
        horizon: bars that the forecast, and its volatility, look ahead.
        bars_per_year: trading time only.
        slope: of what came true on the forecast, in the calibration part; read by kelly.
        weights: of a portfolio, by symbol; 1 where a symbol has none.
    """

    rule: PositionRule = SIGN_AFTER_COSTS
    horizon: int = 1
    bars_per_year: float = DAYS_PER_YEAR
    slope: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rule: PositionRule, *, horizon: int, timeframe: str, slope: float = 1.0) -> Self:
        """For bars of this timeframe, every weight 1."""
        return cls(rule.resolved, horizon, DAYS_PER_YEAR * DAY_MS / TIMEFRAMES_MS[timeframe], slope)

    @property
    def is_plain(self) -> bool:
        """Whether it is the sign after costs at each bar, which the direction of a record says already."""
        return self.rule == SIGN_AFTER_COSTS

    def weight(self, symbol: str) -> float:
        """What the symbol's sizes are multiplied with."""
        return self.weights.get(symbol, 1.0)

    @overload
    def wanted(self, forecast: float, *, volatility: float, dead_zone: float, weight: float = 1.0) -> float: ...
    @overload
    def wanted(
        self, forecast: Floats, *, volatility: Floats, dead_zone: Floats, weight: Floats | float = 1.0
    ) -> Floats: ...
    def wanted(self, forecast: Any, *, volatility: Any, dead_zone: Any, weight: Any = 1.0) -> Any:
        """The position that each forecast alone would have, within ± `max_leverage`.

        Args:
            forecast: of the relative price move over the horizon.
            volatility: its ex-ante standard deviation; above zero.
            dead_zone: the round-trip cost, a fraction; not below zero.
            weight: the symbol's.

        Raises:
            DataValidationError: a number is not finite, a volatility not above zero, or a cost below it.
        """
        _check(forecast, volatility, dead_zone)
        most = self.rule.max_leverage
        return np.clip(weight * self._uncut(forecast, volatility, dead_zone), -most, most) + 0.0  # no zero has a sign

    def _uncut(self, forecast: Any, volatility: Any, dead_zone: Any) -> Any:
        setting = self.rule.setting
        if self.rule.rule == "proportional":
            return forecast / volatility / setting
        if self.rule.rule == "kelly":
            return setting * max(self.slope, 0.0) * forecast / volatility / volatility
        side = sides(forecast, dead_zone)
        if self.rule.rule == "volatility_target":
            return side * (setting / (volatility * (self.bars_per_year / self.horizon) ** 0.5))
        return side

    def wants(self, forecast: float, *, volatility: float, dead_zone: float, weight: float = 1.0) -> PositionWanted:
        """The same of one forecast, as a record carries it; raises as `wanted`."""
        return PositionWanted(
            rule=self.rule.rule,
            wanted=float(self.wanted(forecast, volatility=volatility, dead_zone=dead_zone, weight=weight)),
            band=self.rule.band,
            decide=self.rule.decide,
            horizon=self.horizon,
        )

    def follow(self, wanted_N: Floats, starts_N: Bools) -> Floats:
        """(N,) the positions taken along rows, in the order of time, flat before each that starts a segment."""
        rule = self.rule
        if rule.decide == "each_bar" and not rule.band:
            return np.asarray(wanted_N, dtype=np.float64)
        held, found = FLAT, []
        for wanted, starts in zip(wanted_N.tolist(), starts_N.tolist(), strict=True):
            held = next_held(wanted, FLAT if starts else held, band=rule.band, decide=rule.decide, horizon=self.horizon)
            found.append(held.position)
        return np.array(found, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "rule": self.rule.model_dump(),
            "horizon": self.horizon,
            "bars_per_year": self.bars_per_year,
            "slope": self.slope,
            "weights": dict(self.weights),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any] | None) -> Self:
        """The inverse; a recipe that says nothing is of a version that knew but the sign after costs."""
        if plain is None:
            return cls()
        return cls(
            rule=PositionRule.model_validate(plain["rule"]),
            horizon=plain["horizon"],
            bars_per_year=plain["bars_per_year"],
            slope=plain["slope"],
            weights=plain["weights"],
        )


PLAIN = Sizing()
"""The sign after costs at each bar: of every version that declares nothing else."""


def next_held(wanted: float, held: Held, *, band: float, decide: Deciding, horizon: int) -> Held:
    """What is held after a bar at which `wanted` is wanted. An abstention makes flat, whatever the terms."""
    if decide == "horizon" and held.position and held.bars < horizon:
        return Held(held.position, held.bars + 1)
    keeps = (decide == "reversal" and wanted == 0.0) or abs(wanted - held.position) <= band
    return Held(held.position if keeps else wanted, 1)


def wanted_position(record: PredictionRecord) -> float:
    """What a record wants: by its rule, or, where it carries none, the side of its direction; 0 of an abstention."""
    return terms_of(record).wanted


def terms_of(record: PredictionRecord) -> PositionWanted:
    """What a record wants and on which terms what is held is kept; the sign after costs where it carries no rule."""
    return record.metadata.sizing or _OF_DIRECTION[record.direction]


def calibration_slope(forecast_N: Floats, realised_N: Floats) -> float:
    """Slope through the origin of what came true on the forecast; 0 where no forecast moves."""
    squares = float(forecast_N @ forecast_N)
    return float(forecast_N @ realised_N) / squares if squares > 0 else 0.0


def equal_risk_weights(covariance_SS: Floats, budget: float) -> Floats:
    """(S,) what each symbol is multiplied with so that all contribute alike to a standard deviation of `budget`.

    By cyclical coordinate descent (Griveau-Billion, Richard and Roncalli 2013), from inverse volatilities on. A symbol
    that never varies has the weight 1 and no part in it.

    Args:
        covariance_SS: of the symbols' contributions to the account, of a year.
    """
    weights_S = np.ones(len(covariance_SS))
    varies = np.flatnonzero(np.diag(covariance_SS) > 0)
    if not len(varies):
        return weights_S
    scale = 1.0 / np.sqrt(np.diag(covariance_SS)[varies])
    correlation = covariance_SS[np.ix_(varies, varies)] * np.outer(scale, scale)
    found, share = np.ones(len(varies)), 1.0 / len(varies)
    for _ in range(MOST_SWEEPS):
        before = found.copy()
        for place in range(len(varies)):
            others = float(correlation[place] @ found) - found[place]
            found[place] = (-others + (others**2 + 4.0 * share) ** 0.5) / 2.0
        if np.abs(found - before).max() <= SWEPT * found.max():
            break
    weights_S[varies] = found * scale * (budget / float(found @ correlation @ found) ** 0.5)
    return weights_S


def _check(forecast: Any, volatility: Any, dead_zone: Any) -> None:
    if not np.all(np.isfinite(forecast)):
        raise DataValidationError.at("forecast", "A forecast is not a finite number; no position follows from it.")
    if not np.all((np.asarray(volatility) > 0) & np.isfinite(volatility)):
        raise DataValidationError.at("volatility", "A volatility must be finite and above zero; pass the label scale.")
    if not np.all((np.asarray(dead_zone) >= 0) & np.isfinite(dead_zone)):
        raise DataValidationError.at("costs", "A round-trip cost must be finite and not below zero; check the costs.")
