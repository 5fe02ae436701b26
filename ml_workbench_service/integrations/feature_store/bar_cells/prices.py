"""Which columns of a file are its prices, of which side, and what the two sides say of the spread.

Where bid and ask are both there, prices are their mean and the spread their distance, at the open and at the close
apart, whatever the columns' order. Else the side is that of the columns that were taken.

Legend: names as `headers` makes them; N rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.reading_reports import PriceSide, SpreadTime

SpreadUnit = Literal["price", "points"]
SIDES: tuple[PriceSide, ...] = ("bid", "ask", "mid")
PRICES = ("open", "high", "low", "close")
_LETTERS = dict(zip("ohlc", PRICES, strict=True))
_WORDS = "|".join(PRICES)
_SIDED = re.compile(
    rf"(?:(?P<side>bid|ask|offer|mid)_?)?(?P<word>{_WORDS})(?:_?price)?(?:_?(?P<after>bid|ask|offer|mid))?"
    r"|(?:(?P<side_1>bid|ask|offer|mid)_)?(?P<letter>[ohlc])(?:_(?P<after_1>bid|ask|offer|mid))?"
)
_INSTEAD_OF_CLOSE = ("close_last", "last", "price")
VOLUME_NAMES = (
    *("volume", "vol", "tickvol", "tick_volume", "tick_vol", "tickvolume", "volume_ticks", "tickqty", "tick_qty", "v"),
)
_SPREAD_TIMES: dict[str, SpreadTime] = {
    "spread": "unknown",
    **dict.fromkeys(("spread_close", "close_spread", "spreadclose"), "close"),
    **dict.fromkeys(("spread_avg", "avg_spread", "average_spread", "spread_average", "spread_mean"), "average"),
    **dict.fromkeys(("spread_min", "min_spread", "minimum_spread", "spread_minimum"), "minimum"),
    **dict.fromkeys(("spread_open", "open_spread", "spreadopen"), "open"),
}


@dataclass(frozen=True)
class PriceColumns:
    """Names of a file's columns of prices.

    Attributes:
        taken: by open, high, low, close; empty where the file has no whole set.
        side: of `taken`, None where its names do not say.
        pairs: bid and ask columns of the open, the close …, where both are there.
        has_both: whether both sides are whole, so that the mean of the pairs is the price.
        used: all of these, which are nobody's own column.
    """

    taken: dict[str, str]
    side: PriceSide | None
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    has_both: bool = False
    used: frozenset[str] = frozenset()


def price_columns(names: Sequence[str]) -> PriceColumns:
    """The file's prices; those without a side before a single side, and both sides before all."""
    sets: dict[PriceSide | None, dict[str, str]] = {None: {}, "bid": {}, "ask": {}, "mid": {}}
    for name in sorted(names, key=_plainness):
        if (told := _side_and_word(name)) is not None:
            sets[told[0]].setdefault(told[1], name)
    plain = sets[None]
    if "close" not in plain and {"open", "high", "low"} <= plain.keys():
        instead = [name for name in _INSTEAD_OF_CLOSE if name in names]
        plain |= dict(zip(["close"], instead, strict=False))
    bid, ask = sets["bid"], sets["ask"]
    pairs = {word: (bid[word], ask[word]) for word in PRICES if word in bid and word in ask}
    used = frozenset(name for columns in sets.values() for name in columns.values())
    if len(pairs) == len(PRICES):
        return PriceColumns(sets["mid"] if _is_whole(sets["mid"]) else {}, "mid", pairs, has_both=True, used=used)
    whole = [(side, columns) for side, columns in sets.items() if _is_whole(columns)]
    if not whole:
        return PriceColumns({}, None)
    side, taken = whole[0]
    used = frozenset(taken.values()) | {name for pair in pairs.values() for name in pair}
    return PriceColumns(taken, side, pairs, used=used)


def _plainness(name: str) -> int:
    """`close` before `close_price`, that before `c`, wherever they stand."""
    return 0 if name in PRICES else 1 if any(word in name for word in PRICES) else 2


def _is_whole(columns: Mapping[str, str]) -> bool:
    return columns.keys() >= set(PRICES)


def _side_and_word(name: str) -> tuple[PriceSide | None, str] | None:
    match = _SIDED.fullmatch(name)
    if match is None:
        return None
    parts = match.groupdict()
    side = parts["side"] or parts["after"] or parts["side_1"] or parts["after_1"]
    word = parts["word"] or _LETTERS[parts["letter"]]
    sides: dict[str, PriceSide] = {"bid": "bid", "ask": "ask", "offer": "ask", "mid": "mid"}
    return (sides[side] if side else None), word


def side_of_name(stem: str) -> PriceSide | None:
    """The side that a file's name says."""
    words = re.findall(r"[a-z]+", stem.lower())
    return next((side for side in SIDES if side in words), None)


def spread_times(names: Sequence[str]) -> dict[str, SpreadTime]:
    """Columns of spreads in a file's order, each with the time in the bar that its name says."""
    return {name: _SPREAD_TIMES[name] for name in names if name in _SPREAD_TIMES}


def mean_of(bid: Floats, ask: Floats, digits: int | None) -> Floats:
    """(N,) the mid, rounded to one digit more than the sides are written with."""
    mid = (bid + ask) / 2
    return mid if digits is None else np.round(mid, digits + 1)


def between(bid: Floats, ask: Floats, digits: int | None) -> Floats:
    """(N,) ask less bid, rounded to the digits that both are written with."""
    return ask - bid if digits is None else np.round(ask - bid, digits)
