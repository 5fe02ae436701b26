"""File names of bars: symbol and timeframe, as programs and their users write them.

`EURUSD_1h.csv`, `EUR_USD-H1.parquet`, `EURUSD60.csv` (MetaTrader 4), `OANDA_EURUSD, 60.csv` (TradingView), `EURUSDm_H1`
(a broker's suffix), `DAT_ASCII_EURUSD_M1_2023.csv` (HistData), `EURUSD=X.csv` (Yahoo). A name that says no timeframe
leaves it to the spacing of the rows; one that says another than the service has is told why it is not read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, normal_symbol
from ml_workbench_service.contracts.market import Ints

UNITS_PER_DOLLAR = {
    "EUR": 0.85, "GBP": 0.68, "AUD": 1.35, "NZD": 1.5, "CHF": 1.05, "CAD": 1.25, "SGD": 1.4, "BGN": 1.7, "FJD": 2.0,
    "USD": 1.0, "BRL": 3.2, "PLN": 3.7, "RON": 3.8, "ILS": 3.8, "MYR": 4.0, "SAR": 3.75, "AED": 3.67, "QAR": 3.64,
    "CNY": 7.0, "CNH": 6.8, "DKK": 6.5, "HKD": 7.8, "HRK": 6.5, "NOK": 8.0, "SEK": 8.5, "TRY": 6.0, "ZAR": 12.0,
    "MXN": 14.0, "CZK": 22.0, "THB": 34.0, "TWD": 31.0, "PHP": 50.0, "INR": 65.0, "RUB": 55.0, "ISK": 115.0,
    "JPY": 115.0, "HUF": 270.0, "KRW": 1200.0, "CLP": 650.0, "COP": 3000.0, "IDR": 12000.0, "VND": 21000.0,
    "XAU": 1 / 1100, "XAG": 1 / 17, "XPT": 1 / 1000, "XPD": 1 / 800,
}  # fmt: skip
"""Orders of magnitude of a quarter of a century, geometric means of the extremes: a price is told from a thousandfold
one by them, and nothing else. Reference rates of the European Central Bank; London fixings for metals."""
_FURTHER = ("ARS", "EGP", "KES", "KWD", "KZT", "MAD", "NGN", "PEN", "PKR", "UAH", "UYU", "BHD", "OMR", "JOD", "GEL")
_CRYPTO = ("BTC", "XBT", "ETH", "LTC", "XRP", "BCH", "ADA", "SOL", "DOT", "BNB", "XLM", "EOS", "TRX", "UNI", "DOG")
_ENERGY = ("XTI", "XBR", "XNG")
_CURRENCIES = frozenset((*UNITS_PER_DOLLAR, *_FURTHER, *_CRYPTO, *_ENERGY))
_METALS = {"GOLD": "XAUUSD", "SILVER": "XAGUSD"}
_TWO_CODES = re.compile(r"(?<![A-Za-z])(?=([A-Za-z]{3})[_\-. /]?([A-Za-z]{3}))")
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000, "o": 30 * 86_400_000}
_TIMEFRAME = re.compile(
    r"(?<![a-z0-9])(?:(?P<count>\d{1,4})[_ ]?(?P<unit>minutes?|mins?|months?|mo|m|hours?|hrs?|h|days?|d|weeks?|wk|w)"
    r"|(?P<mt_unit>mn|m|h|d|w)(?P<mt_count>\d{1,3})|(?P<word>daily|hourly|weekly|monthly)"
    r"|(?P<letter>(?<=[_\-, ])[hdw])|,\s*(?P<minutes>\d{1,5}))(?![a-z0-9])",
    re.IGNORECASE,
)
_METATRADER_MINUTES = ("1", "5", "15", "30", "60", "120", "240", "1440", "10080", "43200")
_DAY_MS = 86_400_000
FEWEST_GAPS = 3  # between rows, to tell how far apart they lie
_BLOCK = 50  # gaps, in which most must be of one length
_MOST = 0.6

Series = tuple[str, str]


@dataclass(frozen=True)
class BarName:
    """What a file's name says.

    Attributes:
        symbol: None where it says none.
        timeframe: None where it says none, or one that the service does not have.
        reason: why the file is not read, whatever stands in it; None where it may be.
        is_daily: whether such files hold days unless their rows say otherwise.
        notes: what was taken for what, in words.
    """

    symbol: str | None
    timeframe: str | None = None
    reason: str | None = None
    is_daily: bool = False
    notes: tuple[str, ...] = ()


def name_of_bars(stem: str) -> BarName:
    """Symbol and timeframe of a file's name without its suffix."""
    found = _symbol(stem)
    if found is None:
        return BarName(None, reason=_no_symbol(stem))
    symbol, rest, notes = found
    told = list(_timeframes(rest))
    known = [timeframe for timeframe, _ in told if timeframe is not None]
    if told and not known:
        have = ", ".join(TIMEFRAMES_MS)
        return BarName(symbol, reason=f"the service has no timeframe {told[0][1]}; it has {have}")
    return BarName(symbol, known[0] if known else None, is_daily="=X" in stem.upper(), notes=notes)


def usual_price(name: str) -> float | None:
    """What the instrument of a file costs, by order of magnitude; None where that is not known."""
    found = _symbol(name)
    base, _, quote = found[0].partition("/") if found else ("", "", "")
    if base not in UNITS_PER_DOLLAR or quote not in UNITS_PER_DOLLAR:
        return None
    return UNITS_PER_DOLLAR[quote] / UNITS_PER_DOLLAR[base]


def timeframe_of_rows(local_ms: Ints) -> str | None:
    """The timeframe that most neighbouring rows lie apart; None where none of the service's is."""
    gaps: Ints = np.diff(np.sort(local_ms)).astype(np.int64)
    gaps = gaps[gaps > 0]
    if len(gaps) < FEWEST_GAPS:
        return None
    usual, share = _usual_gap(gaps)
    return next((name for name, length in TIMEFRAMES_MS.items() if length == usual and share >= _MOST), None)


def coarser_rows(local_ms: Ints, timeframe: str) -> tuple[int, int] | None:
    """The first row of a part whose rows lie further apart than the timeframe, and how far; None where there is none.

    Missing bars make no part: of fifty neighbours three fifths must lie the same distance apart.
    """
    order = np.argsort(local_ms, kind="stable")
    gaps = np.diff(local_ms[order])
    rows = order[:-1][gaps > 0]
    gaps = gaps[gaps > 0]
    if len(gaps) < FEWEST_GAPS:
        return None
    ends = np.r_[np.arange(_BLOCK, len(gaps), _BLOCK), len(gaps)]
    starts = np.maximum(ends - _BLOCK, 0)
    wide = np.r_[0, np.cumsum(gaps > TIMEFRAMES_MS[timeframe])]
    for start in starts[wide[ends] - wide[starts] >= _MOST * (ends - starts)]:
        usual, share = _usual_gap(gaps[start : start + _BLOCK])
        if usual > TIMEFRAMES_MS[timeframe] and share >= _MOST:
            return int(rows[start]), usual
    return None


def length_text(length_ms: int) -> str:
    """A distance between bars in words: `15 minutes`, `1 day`."""
    for unit_ms, word in ((_DAY_MS, "day"), (3_600_000, "hour"), (60_000, "minute"), (1000, "second")):
        if length_ms >= unit_ms:
            count = length_ms / unit_ms
            return f"{count:g} {word}{'' if count == 1 else 's'}"
    return f"{length_ms} milliseconds"


def _usual_gap(gaps: Ints) -> tuple[int, float]:
    lengths, counts = np.unique(gaps, return_counts=True)
    most = int(np.argmax(counts))
    return int(lengths[most]), float(counts[most] / len(gaps))


def _symbol(stem: str) -> tuple[str, str, tuple[str, ...]] | None:
    """The symbol, the rest of the name before and behind it, and what was taken for what."""
    for match in _TWO_CODES.finditer(stem):
        first, second = match[1].upper(), match[2].upper()
        if first == second or not {first, second} <= _CURRENCIES:
            continue
        start = match.start()
        rest = re.sub(r"^[A-Za-z]{3}[_\-. /]?[A-Za-z]{3}", "", stem[start:])
        if first in _CRYPTO and re.match(r"[TC]", rest, re.IGNORECASE):
            continue  # USDT, USDC are not the dollar
        behind = _behind_the_symbol(rest)
        if behind is not None:
            suffix = rest[: len(rest) - len(behind)] if rest.endswith(behind) else ""
            notes = (f"`{suffix}` in its name is taken for a broker's suffix",) if suffix.isalpha() else ()
            return normal_symbol(first + second), f"{stem[:start]} {behind}", notes
    metal = re.search(r"(?<![A-Za-z])(?:(GOLD|SILVER)[a-z]{1,4}|((?i:gold|silver)))(?![A-Za-z]{2})", stem)
    behind = _behind_the_symbol(stem[metal.end() :]) if metal else None
    if metal is None or behind is None:
        return None
    symbol = normal_symbol(_METALS[(metal[1] or metal[2]).upper()])
    return symbol, f"{stem[: metal.start()]} {behind}", (f"`{metal[0]}` in its name is read as {symbol}",)


def _behind_the_symbol(text: str) -> str | None:
    """Without a broker's suffix (`m`, `pro`); None where the symbol goes on into another word."""
    text = re.sub(r"^=[Xx](?![A-Za-z0-9])", "", text)
    if match := re.match(r"(\d{1,5})(?![A-Za-z0-9])", text):
        return f", {text}" if match[1] in _METATRADER_MINUTES else text
    if not re.match(r"[A-Za-z]", text) or re.match(r"(?:mn|[mhdw])\d{1,3}(?![A-Za-z0-9])", text, re.IGNORECASE):
        return text
    suffix = re.match(r"[A-Za-z]{1,4}(?![A-Za-z0-9])", text)
    if suffix is None or suffix[0].upper() in _CURRENCIES:
        return None
    return text[suffix.end() :]


def _timeframes(text: str) -> Iterator[tuple[str | None, str]]:
    """Each timeframe that a text names, None where the service has none of that length, and how it is written."""
    for match in _TIMEFRAME.finditer(text):
        if match["minutes"] is not None:
            if match["minutes"] not in _METATRADER_MINUTES and int(match["minutes"]) > 1000:
                continue  # a year
            count, unit = int(match["minutes"]), "m"
        else:
            count = int(match["count"] or match["mt_count"] or 1)
            unit = _unit(match["unit"] or match["mt_unit"] or match["word"] or match["letter"], text)
        length = count * _UNIT_MS[unit]
        name = next((name for name, known in TIMEFRAMES_MS.items() if known == length), None)
        yield name, match[0].strip(" ,_-")


def _unit(word: str, text: str) -> str:
    """Its key in the table of lengths; TradingView writes months as `M`, behind a comma."""
    if word.lower() in ("mo", "mn") or word.lower().startswith("month") or re.search(r",\s*\d*M\b", text):
        return "o"
    return word[0].lower()


def _no_symbol(stem: str) -> str:
    word = next(iter(re.findall(r"[A-Za-z]+\d*", stem)), stem)
    return f"`{word}` is no pair of two currency codes, as symbols are; a file of bars is named like EURUSD_1h.csv"
