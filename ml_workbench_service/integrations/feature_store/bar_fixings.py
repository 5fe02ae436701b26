"""A file's prices against the fixings of the European Central Bank: whether they are the pair's that its name says.

The bank fixes at 14:15 in Frankfurt. The file's price at that moment must lie within 1 % of that day's cross in the
median, and its daily moves must be correlated with the cross's; daily bars hold that moment somewhere inside, so their
moves are taken over five days. What moves as another pair's, against its own, or a day beside it is refused, and so is
what lies far off. Prices near the right ones that move as nothing does are another market's, or made up: they are
read, with a warning, and nothing learnt from them counts as proven.

Legend: D days with a fixing.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS

MOST_MEDIAN_DISTANCE = 0.01  # |log|
LEAST_CORRELATION = 0.8
FEWEST_MOVES = 20
FAR = 0.1  # |log|: no market quotes a pair so far from its fixing
SLOW_DAYS = 5  # over which daily bars' moves are taken
FIXING_HOUR = 14.25  # Frankfurt
_LISTED = ("EUR", "USD", "JPY", "GBP", "CHF", "AUD", "CAD", "NZD", "SEK", "NOK", "PLN", "CZK", "HUF", "TRY", "ZAR")


class Unlike(Exception):
    """The prices are not the pair's; the sentence says whose they seem to be."""


@dataclass(frozen=True)
class Fixings:
    """The bank's fixings, as `sample_rates` reads them."""

    days_ms: Ints  # (D,) 00:00 UTC
    per_euro: dict[str, Floats]  # each (D,); NaN without fixing

    @cached_property
    def moments_ms(self) -> Ints:
        """(D,) 14:15 in Frankfurt."""
        import polars as pl

        wall = pl.Series(self.days_ms + round(FIXING_HOUR * DAY_MS / 24)).cast(pl.Datetime("ms"))
        return wall.dt.replace_time_zone("Europe/Berlin").dt.epoch("ms").to_numpy().astype(np.int64)

    def has(self, symbol: str) -> bool:
        """Whether the bank fixes both currencies."""
        return all(leg in self.per_euro for leg in symbol.split("/"))

    def log_cross(self, symbol: str) -> Floats:
        """(D,) log of the pair's cross; NaN without fixing."""
        base, quote = symbol.split("/")
        return np.asarray(np.log(self.per_euro[quote] / self.per_euro[base]))


@lru_cache(maxsize=1)
def ecb_fixings() -> Fixings:
    """All of them, read at the first call."""
    from ml_workbench_service.integrations.feature_store.sample_rates import fixings

    days_ms, per_euro = fixings()
    return Fixings(days_ms, per_euro)


def no_fixings() -> None:
    """Nothing to hold prices against: for bars that are made up, as those of tests and simulations are."""


@dataclass(frozen=True)
class Finding:
    """What the comparison says: a note where the prices are the pair's, else a warning."""

    text: str
    is_doubt: bool


def compare(symbol: str, opened_ms: Ints, open_: Floats, close: Floats, bar_ms: int, fixings: Fixings) -> Finding:
    """Holds a file's bars against the pair's fixings.

    Raises:
        Unlike: the prices are another pair's, the inverse, a day off, or far from the fixings.
    """
    if not fixings.has(symbol):
        return Finding(f"nothing to hold the prices of {symbol} against: the ECB does not fix it", True)
    price = _at_fixing(opened_ms, np.log(open_), np.log(close), bar_ms, fixings)
    own = fixings.log_cross(symbol)
    lag = SLOW_DAYS if bar_ms >= DAY_MS else 1
    num = int(np.isfinite(_moves(price, lag) - _moves(own, lag)).sum())
    if num < FEWEST_MOVES:
        return Finding(
            f"only {num} daily moves can be held against the ECB's fixings of {symbol}, {FEWEST_MOVES} are needed", True
        )
    distance, correlation = _distance(price, own), _correlation(price, own, lag)
    figures = f"{distance:.2%} off in the median, daily moves correlated {correlation:.2f}, on {num} days"
    if distance <= MOST_MEDIAN_DISTANCE and correlation >= LEAST_CORRELATION:
        return Finding(f"held against the ECB's fixings of {symbol}: {figures}", False)
    whose = _whose(symbol, price, lag, fixings)
    if whose or distance > FAR:
        raise Unlike(f"its prices are not {symbol}'s as the ECB fixed them ({figures}){whose}")
    return Finding(f"its prices do not move as {symbol} did by the ECB's fixings ({figures})", True)


def _at_fixing(opened_ms: Ints, open_: Floats, close: Floats, bar_ms: int, fixings: Fixings) -> Floats:
    """(D,) log price at the fixing, on the way from the bar's open to its close; NaN without a bar."""
    moments = fixings.moments_ms
    at = np.searchsorted(opened_ms, moments, side="right") - 1
    inside = (at >= 0) & (moments - opened_ms[np.maximum(at, 0)] < bar_ms)
    at = np.maximum(at, 0)
    share = (moments - opened_ms[at]) / bar_ms
    return np.where(inside, open_[at] + share * (close[at] - open_[at]), np.nan)


def _moves(log_price: Floats, lag: int) -> Floats:
    """(D - lag,) from fixing to fixing."""
    return np.asarray(log_price[lag:] - log_price[:-lag])


def _distance(price: Floats, cross: Floats) -> float:
    distances = np.abs(price - cross)
    return float(np.median(distances[np.isfinite(distances)], axis=0)) if np.isfinite(distances).any() else np.inf


def _correlation(price: Floats, cross: Floats, lag: int) -> float:
    ours, theirs = _moves(price, lag), _moves(cross, lag)
    both = np.isfinite(ours) & np.isfinite(theirs)
    if both.sum() < FEWEST_MOVES or ours[both].std() == 0 or theirs[both].std() == 0:
        return 0.0
    return float(np.corrcoef(ours[both], theirs[both])[0, 1])


def _whose(symbol: str, price: Floats, lag: int, fixings: Fixings) -> str:
    """Whose prices they seem to be, as the end of a sentence; empty where nobody's."""
    own = fixings.log_cross(symbol)
    if _correlation(price, own, lag) <= -LEAST_CORRELATION:
        return ": they are inverted; write the price of one " + symbol[:3]
    for days in (-1, 1):
        shifted = np.roll(own, days)
        if _correlation(price, shifted, lag) >= LEAST_CORRELATION:
            return ": their days are one too " + ("early" if days < 0 else "late") + "; check dates and time zone"
    names = [name for name in _LISTED if name in fixings.per_euro]
    for base in names:
        for quote in names:
            if base == quote or f"{base}/{quote}" == symbol:
                continue
            cross = fixings.log_cross(f"{base}/{quote}")
            if _distance(price, cross) <= MOST_MEDIAN_DISTANCE and _correlation(price, cross, lag) >= LEAST_CORRELATION:
                return f": they are {base}/{quote}'s; rename the file"
    return ""
