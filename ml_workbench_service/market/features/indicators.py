"""Technical indicators by name: `sma_20`, `rsi_14`, `macd`, `bb_width`, `return_1`, … computed from bars.

A name is a word of the table below, with `_N` where it has a parameter (`rsi` alone takes the default). The table is
ours, so that names resolve without TA-Lib; TA-Lib itself loads at the first computation. Every indicator is causal:
row t uses the bars up to t. Rows before an indicator has enough bars are NaN, and so is anything divided by zero.

Kinds: `level` features live on the price's own scale; all others are `stationary`. Legend: N bars.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bars, FeatureDescription, FeatureKind, FeatureParameter, Floats
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, trading_day_opening, week_opening

LONGEST_PERIOD = 1000
NOT_OF_PRICES = frozenset({"volume", "spread"})
"""Of the table: columns that bars may have or lack."""

Compute = Callable[[Bars, int], Floats]


@dataclass(frozen=True)
class _Entry:
    """One row of the table: how a word is computed, and its parameter, if it has one."""

    word: str
    kind: FeatureKind
    description: str
    compute: Compute
    parameter: FeatureParameter | None = None
    needs_range: bool = False

    @property
    def pattern(self) -> str:
        return f"{self.word}_{{{self.parameter.name}}}" if self.parameter else self.word

    def name(self, value: int | None = None) -> str:
        """A usable name, with this value of the parameter or the default."""
        if self.parameter is None:
            return self.word
        return f"{self.word}_{self.parameter.default if value is None else value}"


@dataclass(frozen=True)
class Indicator:
    """A resolved name: ready to be computed over bars."""

    name: str
    kind: FeatureKind
    needs_range: bool
    parameter: int  # 0 where there is none
    _compute: Compute

    def __call__(self, bars: Bars) -> Floats:
        """(N,) values; NaN where there are too few bars."""
        if len(bars) == 0:
            return np.zeros(0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = np.asarray(self._compute(bars, self.parameter), dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)


def resolve(name: str, *, path: str = "features") -> Indicator:
    """The indicator of that name, by our table alone.

    Raises:
        DataValidationError: no such word, or a parameter out of its bounds; names the nearest known ones.
    """
    match = re.fullmatch(r"([a-z][a-z_]*?)(?:_([1-9]\d{0,5}))?", name)
    entry = _TABLE.get(match[1]) if match else None
    if match is None or entry is None or (match[2] and entry.parameter is None):
        raise unknown_feature(name, path=path)
    value = 0
    if entry.parameter is not None:
        value = int(match[2] or entry.parameter.default)
        if not entry.parameter.minimum <= value <= entry.parameter.maximum:
            raise DataValidationError.at(
                path,
                f"`{entry.pattern}` takes a {entry.parameter.name} from {entry.parameter.minimum} to "
                f"{entry.parameter.maximum}; try `{entry.name()}`",
                code="out_of_bounds",
            )
    return Indicator(name, entry.kind, entry.needs_range, value, entry.compute)


def unknown_feature(name: str, own_columns: Sequence[str] = (), *, path: str = "features") -> DataValidationError:
    """The error for a feature nobody has, naming the nearest known ones (with the asker's own number)."""
    word, _, number = name.rpartition("_") if re.search(r"_\d+$", name) else (name, "", "")
    words = difflib.get_close_matches(word.lower(), [*_TABLE, *own_columns], n=3, cutoff=0.5)
    nearest = [_suggestion(known, number) for known in words]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "GET /api/v1/features lists what there is"
    return DataValidationError.at(path, f"there is no such feature; {hint}", code="unknown_feature", nearest=nearest)


def _suggestion(word: str, number: str) -> str:
    entry = _TABLE.get(word)
    parameter = entry.parameter if entry else None
    if entry is None or parameter is None:
        return word
    fits = number and parameter.minimum <= int(number) <= parameter.maximum
    return entry.name(int(number) if fits else None)


def kind_of(name: str) -> FeatureKind:
    """`level` or `stationary`; raises DataValidationError like `resolve`."""
    return resolve(name).kind


def kind_among(described: Iterable[FeatureDescription], name: str) -> FeatureKind:
    """By our table, else as a server describes its own column, else `stationary`."""
    try:
        return kind_of(name)
    except DataValidationError:
        return next((each.kind for each in described if name in (each.name, each.example)), "stationary")


def warm_up(name: str) -> int:
    """Bars before the first one at which an indicator has a value; 0 of a column that is none of ours."""
    try:
        found = resolve(name)
    except DataValidationError:
        return 0
    match = re.fullmatch(r"(.*?)(?:_[1-9]\d*)?", name)
    rule = None if match is None else _WARM_UP.get(match[1])
    return 0 if rule is None else rule(found.parameter)


def is_made_of_prices(name: str) -> bool:
    """Whether a column is a price, a moment of the calendar or an indicator of them: of these every series has them."""
    try:
        return resolve(name).name not in NOT_OF_PRICES
    except DataValidationError:
        return False


def compute(names: Sequence[str], bars: Bars) -> dict[str, Floats]:
    """Each named column over all bars, (N,) each; the bars' own extra columns win over indicators of the same name."""
    columns: dict[str, Floats] = {}
    for name in names:
        if name not in columns:
            columns[name] = bars.extra[name] if name in bars.extra else resolve(name)(bars)
    return columns


def describe() -> list[FeatureDescription]:
    """Every pattern of the table with parameter, kind and a usable example."""
    return [
        FeatureDescription(
            name=entry.pattern,
            example=entry.name(),
            kind=entry.kind,
            description=_described(entry),
            parameters=(entry.parameter,) if entry.parameter else (),
            needs_range=entry.needs_range,
        )
        for entry in _TABLE.values()
    ]


def _described(entry: _Entry) -> str:
    """The entry's sentence, and what its name without a number means."""
    if entry.parameter is None:
        return entry.description
    plain = entry.pattern.partition("_{")[0]
    return f"{entry.description} Plain `{plain}` is `{entry.name()}`."


def _talib(function: str, *arrays: Floats, output: int = 0, **options: float) -> Floats:
    """One output of a TA-Lib function over contiguous float64."""
    import talib

    result: Any = getattr(talib, function)(
        *(np.ascontiguousarray(array, dtype=np.float64) for array in arrays), **options
    )
    return np.asarray(result[output] if isinstance(result, tuple) else result, dtype=np.float64)


def _of_close(function: str) -> Compute:
    return lambda bars, period: _talib(function, bars.close, timeperiod=period)


def _of_range(function: str) -> Compute:
    return lambda bars, period: _talib(function, bars.high, bars.low, bars.close, timeperiod=period)


def _macd(output: int) -> Compute:
    return lambda bars, _: _talib("MACD", bars.close, output=output)


def _band(bars: Bars, period: int, output: int) -> Floats:
    return _talib("BBANDS", bars.close, output=output, timeperiod=period, nbdevup=2.0, nbdevdn=2.0)


def _bb_width(bars: Bars, period: int) -> Floats:
    return np.asarray((_band(bars, period, 0) - _band(bars, period, 2)) / _band(bars, period, 1))


def _bb_percent(bars: Bars, period: int) -> Floats:
    upper, lower = _band(bars, period, 0), _band(bars, period, 2)
    return np.asarray((bars.close - lower) / (upper - lower))


def _stochastic(output: int) -> Compute:
    return lambda bars, _: _talib("STOCH", bars.high, bars.low, bars.close, output=output)


def _lagged_ratio(bars: Bars, lag: int) -> Floats:
    ratio = np.full(len(bars), np.nan)
    ratio[lag:] = bars.close[lag:] / bars.close[: len(bars) - lag] if len(bars) > lag else ratio[lag:]
    return ratio


def _volatility(bars: Bars, period: int) -> Floats:
    """Rolling sample standard deviation of one-bar log returns, by cumulative sums (returns are small and centred)."""
    values = np.full(len(bars), np.nan)
    if len(bars) <= period:
        return values
    returns = np.diff(np.log(bars.close))
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    squares = np.concatenate([[0.0], np.cumsum(returns**2)])
    total, total_squares = sums[period:] - sums[:-period], squares[period:] - squares[:-period]
    values[period:] = np.sqrt(np.maximum(total_squares - total**2 / period, 0.0) / (period - 1))
    return values


def _own(column: str) -> Compute:
    return lambda bars, _: getattr(bars, column)


def _absent(column: str) -> Compute:
    def refuse(bars: Bars, _: int) -> Floats:
        raise DataValidationError.at(
            "features", f"the bars of {bars.symbol} {bars.timeframe} have no `{column}` column", code="unknown_feature"
        )

    return refuse


def _phase(start: Callable[[Any], Any], length_ms: int, wave: Callable[[Floats], Floats]) -> Compute:
    return lambda bars, _: wave(2 * np.pi * (bars.opened_ms - start(bars.opened_ms)) / length_ms)


def _period(default: int, *, name: str = "period", minimum: int = 2) -> FeatureParameter:
    return FeatureParameter(name=name, default=default, minimum=minimum, maximum=LONGEST_PERIOD)


_LAG = _period(1, name="bars", minimum=1)
_ENTRIES = (
    _Entry("sma", "level", "Simple moving average of the close.", _of_close("SMA"), _period(20)),
    _Entry("ema", "level", "Exponential moving average of the close.", _of_close("EMA"), _period(20)),
    _Entry("wma", "level", "Linearly weighted moving average of the close.", _of_close("WMA"), _period(20)),
    _Entry("rsi", "stationary", "Relative strength index (Wilder), 0 to 100.", _of_close("RSI"), _period(14)),
    _Entry("macd", "stationary", "EMA 12 less EMA 26 of the close, in price units.", _macd(0)),
    _Entry("macd_signal", "stationary", "EMA 9 of `macd`.", _macd(1)),
    _Entry("macd_hist", "stationary", "`macd` less its signal.", _macd(2)),
    _Entry(
        "bb_width", "stationary", "Bollinger bands: (upper - lower) / middle, two deviations.", _bb_width, _period(20)
    ),
    _Entry(
        "bb_percent",
        "stationary",
        "Where the close lies between the bands: 0 lower, 1 upper.",
        _bb_percent,
        _period(20),
    ),
    _Entry("bb_upper", "level", "Upper Bollinger band.", lambda bars, n: _band(bars, n, 0), _period(20)),
    _Entry("bb_middle", "level", "Middle Bollinger band.", lambda bars, n: _band(bars, n, 1), _period(20)),
    _Entry("bb_lower", "level", "Lower Bollinger band.", lambda bars, n: _band(bars, n, 2), _period(20)),
    _Entry("atr", "stationary", "Average true range, in price units.", _of_range("ATR"), _period(14), True),
    _Entry("natr", "stationary", "Average true range in percent of the close.", _of_range("NATR"), _period(14), True),
    _Entry("adx", "stationary", "Average directional index, 0 to 100.", _of_range("ADX"), _period(14), True),
    _Entry("plus_di", "stationary", "Positive directional indicator.", _of_range("PLUS_DI"), _period(14), True),
    _Entry("minus_di", "stationary", "Negative directional indicator.", _of_range("MINUS_DI"), _period(14), True),
    _Entry("cci", "stationary", "Commodity channel index.", _of_range("CCI"), _period(14), True),
    _Entry("stoch_k", "stationary", "Slow stochastic %K (5, 3), 0 to 100.", _stochastic(0), None, True),
    _Entry("stoch_d", "stationary", "Slow stochastic %D (3), 0 to 100.", _stochastic(1), None, True),
    _Entry("willr", "stationary", "Williams %R, -100 to 0.", _of_range("WILLR"), _period(14), True),
    _Entry("mom", "stationary", "Close less the close N bars ago.", _of_close("MOM"), _period(10, minimum=1)),
    _Entry(
        "roc", "stationary", "Change of the close over N bars, in percent.", _of_close("ROC"), _period(10, minimum=1)
    ),
    _Entry(
        "return", "stationary", "Relative change of the close over N bars.", lambda b, n: _lagged_ratio(b, n) - 1, _LAG
    ),
    _Entry(
        "log_return",
        "stationary",
        "Log change of the close over N bars.",
        lambda b, n: np.log(_lagged_ratio(b, n)),
        _LAG,
    ),
    _Entry("volatility", "stationary", "Standard deviation of the last N log returns.", _volatility, _period(24)),
    _Entry(
        "high_low_range", "stationary", "(high - low) / close.", lambda b, _: (b.high - b.low) / b.close, None, True
    ),
    _Entry(
        "hour_sin",
        "stationary",
        "Sine of the FX day's phase from 17:00 NY.",
        _phase(trading_day_opening, DAY_MS, np.sin),
    ),
    _Entry("hour_cos", "stationary", "Cosine of the FX day's phase.", _phase(trading_day_opening, DAY_MS, np.cos)),
    _Entry(
        "weekday_sin",
        "stationary",
        "Sine of the week's phase from Sunday 17:00 NY.",
        _phase(week_opening, 168 * HOUR_MS, np.sin),
    ),
    _Entry("weekday_cos", "stationary", "Cosine of the week's phase.", _phase(week_opening, 168 * HOUR_MS, np.cos)),
    _Entry("open", "level", "The bar's open.", _own("open")),
    _Entry("high", "level", "The bar's high.", _own("high"), None, True),
    _Entry("low", "level", "The bar's low.", _own("low"), None, True),
    _Entry("close", "level", "The bar's close.", _own("close")),
    _Entry("volume", "stationary", "The bar's volume, where the bars have one.", _absent("volume")),
    _Entry("spread", "stationary", "The bar's spread in price units, where the bars have one.", _absent("spread")),
)
_TABLE = {entry.word: entry for entry in _ENTRIES}
_WARM_UP: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(
        ("sma", "ema", "wma", "bb_width", "bb_percent", "bb_upper", "bb_middle", "bb_lower", "cci", "willr"),
        lambda bars: bars - 1,
    ),
    **dict.fromkeys(
        ("rsi", "atr", "natr", "plus_di", "minus_di", "mom", "roc", "return", "log_return", "volatility"),
        lambda bars: bars,
    ),
    **dict.fromkeys(("macd", "macd_signal", "macd_hist"), lambda _: 33),
    **dict.fromkeys(("stoch_k", "stoch_d"), lambda _: 8),
    "adx": lambda bars: 2 * bars - 1,
}
"""By an indicator's word, from its parameter; those that are left out read their own bar alone."""
