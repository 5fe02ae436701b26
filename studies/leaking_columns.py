"""Leaking columns, drawn at random: what the future tells (a source) times how a user would bring it (a disguise).

Each source is something that somebody once computed over a whole file and joined back to its bars: a day's close, a
filter that looks both ways, an encoding or a stacked forecast fitted on everything. A disguise hides it: noise, a unit,
a ratio to the close, codes, holes, a blend with the past. Some come with `available_at` claims that are not true. No
detector knows this file; a seed draws others.

Legend: N bars, D days, K neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS

DECLARED_SHARE = 0.25
"""Of the columns, those whose file claims that every value was known at its bar's end."""
WEEK_MS = 7 * DAY_MS


@dataclass(frozen=True)
class Market:
    """One symbol's bars, and chance."""

    close: Floats  # (N,)
    high: Floats  # (N,)
    low: Floats  # (N,)
    opened_ms: Ints  # (N,)
    chance: np.random.Generator

    @cached_property
    def log_close(self) -> Floats:
        """(N,)"""
        return np.log(self.close)

    @cached_property
    def moves(self) -> Floats:
        """(N,) log return of each bar, 0 for the first."""
        return np.diff(self.log_close, prepend=self.log_close[:1])

    @cached_property
    def ahead(self) -> Floats:
        """(N,) the next bar's, 0 for the last."""
        return np.append(self.moves[1:], 0.0)

    def bars(self) -> int:
        """A drawn number of bars, 2 to 24."""
        return int(self.chance.integers(2, 25))

    def group(self, span_ms: int) -> Ints:
        """(N,) the day's, or week's, number from 0."""
        return np.unique(self.opened_ms // span_ms, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class LeakingColumn:
    """A column that knows the future.

    Attributes:
        name: source and disguise.
        values: (N,).
        is_declared: whether its file claims, falsely, that every value was known in time.
    """

    name: str
    values: Floats
    is_declared: bool


Source = Callable[[Market], Floats]
Disguise = Callable[[Market, Floats], Floats]


def drawn(market: Market, num: int, *, only: int) -> LeakingColumn:
    """Column `only` of `num`, each of another kind: every source before one comes twice, disguises by chance."""
    kinds: dict[tuple[str, str], bool] = {}
    waiting: list[str] = []
    while len(kinds) < num:
        waiting = waiting or [str(each) for each in market.chance.permutation(list(SOURCES))]
        source = waiting.pop()
        disguise = str(market.chance.choice(list(_disguises(source))))
        kinds.setdefault((source, disguise), bool(market.chance.random() < DECLARED_SHARE))
    (source, disguise), is_declared = list(kinds.items())[only]
    market = replace(market, chance=np.random.default_rng(market.chance.integers(2**32, size=num)[only]))
    values = _disguises(source)[disguise](market, SOURCES[source](market))
    return LeakingColumn(f"{source}, {disguise}", values, is_declared)


def _disguises(source: str) -> dict[str, Disguise]:
    return PRICED if source in PRICE_SOURCES else DISGUISES


def _of_last(group_N: Ints, values_N: Floats) -> Floats:
    """Each group's last value, at all of its bars."""
    last = np.searchsorted(group_N, np.arange(group_N[-1] + 1), side="right") - 1
    return np.asarray(values_N[last][group_N])


def _of_first(group_N: Ints, values_N: Floats) -> Floats:
    return np.asarray(values_N[np.searchsorted(group_N, np.arange(group_N[-1] + 1))][group_N])


def _later(group_N: Ints, values_N: Floats, best: np.ufunc) -> Floats:
    """The best of the values that come later in the group; the last bar's own."""
    found = values_N.astype(float).copy()
    for row in range(len(values_N) - 2, -1, -1):
        if group_N[row] == group_N[row + 1]:
            found[row] = best(values_N[row + 1], found[row + 1] if row + 2 < len(values_N) else values_N[row + 1])
        else:
            found[row] = values_N[row]
    return found


def _whole(group_N: Ints, values_N: Floats, best: np.ufunc) -> Floats:
    found = np.full(group_N[-1] + 1, values_N[0])
    for number, value in zip(group_N, values_N, strict=True):
        found[number] = best(found[number], value) if found[number] != values_N[0] else value
    return np.asarray(found[group_N])


def _sum_ahead(market: Market) -> Floats:
    bars = market.bars()
    return np.append(market.log_close[bars:], np.full(bars, market.log_close[-1])) - market.log_close


def _price_ahead(market: Market) -> Floats:
    bars = market.bars()
    return np.append(market.close[bars:], np.full(bars, market.close[-1]))


def _range(market: Market) -> Floats:
    day = market.group(DAY_MS)
    return np.log(_whole(day, market.high, np.maximum) / _whole(day, market.low, np.minimum))


def _place_in_range(market: Market) -> Floats:
    day = market.group(DAY_MS)
    highest, lowest = _whole(day, market.high, np.maximum), _whole(day, market.low, np.minimum)
    return (market.close - lowest) / np.maximum(highest - lowest, 1e-12)


def _until_high(market: Market) -> Floats:
    day = market.group(DAY_MS)
    highest = _whole(day, market.high, np.maximum)
    at = np.where(market.high == highest, market.opened_ms, -1)
    return (_whole(day, at.astype(float), np.maximum) - market.opened_ms) / HOUR_MS


def _day_return(market: Market) -> Floats:
    day = market.group(DAY_MS)
    return np.log(_of_last(day, market.close) / _of_first(day, market.close / np.exp(market.moves)))


def _daily_indicator(market: Market) -> Floats:
    """A moving average of days' closes that counts the day at hand, over the close."""
    day = market.group(DAY_MS)
    closes = market.close[np.searchsorted(day, np.arange(day[-1] + 1), side="right") - 1]
    mean = np.convolve(closes, np.ones(5) / 5)[: len(closes)]
    return np.log(mean[day] / market.close)


def _smoothed(values_N: Floats, kernel: Floats) -> Floats:
    """Both ways, with the ends repeated."""
    reach = len(kernel) // 2
    return np.convolve(np.pad(values_N, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _two_sided(market: Market) -> Floats:
    kernel = np.exp(-np.abs(np.arange(-24, 25)) / market.bars())
    return _smoothed(market.log_close, kernel) - market.log_close


def _local_line(market: Market) -> Floats:
    """The slope of a line through the bars on both sides."""
    reach = market.bars()
    ahead = np.arange(reach, -reach - 1, -1)
    return np.convolve(np.pad(market.log_close, reach, mode="edge"), ahead / (ahead**2).sum(), mode="valid")


def _low_pass(market: Market) -> Floats:
    """The distance from the slow waves of the whole history."""
    waves = np.fft.rfft(market.log_close)
    waves[len(waves) // market.bars() :] = 0.0
    return np.fft.irfft(waves, len(market.close)) - market.log_close


def _detrended(market: Market) -> Floats:
    time = np.linspace(-1, 1, len(market.close))
    return market.log_close - np.polyval(np.polyfit(time, market.log_close, int(market.chance.integers(3, 9))), time)


def _stacked(market: Market) -> Floats:
    """A forecast by many useless regressors, fitted on the very rows that it forecasts."""
    noise = market.chance.standard_normal((len(market.close), len(market.close) // 12))
    slopes = np.linalg.lstsq(noise, market.ahead, rcond=None)[0]
    return noise @ slopes


def _by_cell(market: Market, cell_N: Ints) -> Floats:
    """Mean next return of each cell over everything."""
    total, num = np.bincount(cell_N, weights=market.ahead), np.bincount(cell_N)
    return np.asarray((total / np.maximum(num, 1))[cell_N])


def _hour_of_week(market: Market) -> Floats:
    return _by_cell(market, market.opened_ms % WEEK_MS // HOUR_MS)


def _encoded(market: Market) -> Floats:
    """Target encoding: the mean next return at this size of the last moves, in some hundred cells."""
    past = market.moves + np.append(0.0, market.moves[:-1])
    ranks = np.argsort(np.argsort(past))
    return _by_cell(market, ranks * int(market.chance.integers(60, 300)) // len(past))


def _leaves(market: Market) -> Floats:
    """Leaves of a random partition with some ten rows each, as an overgrown forest has them."""
    return _by_cell(market, market.chance.integers(0, len(market.close) // 10, len(market.close)))


def _neighbours(market: Market) -> Floats:
    """The mean next return of the bars around: neighbours in time, which are nearest in every slow feature."""
    reach = market.bars()
    kernel = np.ones(2 * reach + 1)
    return _smoothed(market.ahead, kernel)


def _interpolated(market: Market) -> Floats:
    """A line from one day's close to the next one's."""
    day = market.group(DAY_MS)
    last = np.searchsorted(day, np.arange(day[-1] + 1), side="right") - 1
    return np.interp(np.arange(len(day)), last, market.close[last])


def _filled_backward(market: Market) -> Floats:
    """A value every few hours, and before it already."""
    step = market.bars()
    rows = np.minimum(-(-np.arange(len(market.close)) // step) * step, len(market.close) - 1)
    return np.asarray(market.close[rows])


def _zigzag(market: Market) -> Floats:
    """Up or down: the leg between turning points that show only afterwards."""
    limit, side, extreme, at = 3 * float(market.moves.std()), 1, market.log_close[0], 0
    legs = np.zeros(len(market.close))
    for row, price in enumerate(market.log_close):
        if side * (price - extreme) >= 0:
            legs[at:row] = side
            extreme, at = price, row
        elif side * (extreme - price) > limit:
            legs[at:row] = -side
            side, extreme, at = -side, price, row
    return legs


def _hint(market: Market) -> Floats:
    """The side of each hundred's largest move, from the bar before it."""
    found = np.zeros(len(market.close))
    for begin in range(0, len(found) - 100, 100):
        row = begin + int(np.argmax(np.abs(market.ahead[begin : begin + 100])))
        found[max(row - 3, 0) : row + 1] = np.sign(market.ahead[row])
    return found


def _surprise(market: Market) -> Floats:
    """A calendar of events whose outcome stands at the hour before."""
    is_event = market.chance.random(len(market.close)) < 0.05
    return np.where(is_event, market.ahead / market.moves.std(), 0.0)


def _barrier(market: Market) -> Floats:
    """Which of two barriers comes first within twelve bars."""
    width, found = 2 * float(market.moves.std()), np.zeros(len(market.close))
    for ahead in range(12, 0, -1):
        moved = np.append(market.log_close[ahead:], np.full(ahead, np.nan)) - market.log_close
        found = np.where(moved > width, 1.0, np.where(moved < -width, -1.0, found))
    return found


def _worst_ahead(market: Market) -> Floats:
    """The deepest loss of the next day."""
    found = np.zeros(len(market.close))
    for ahead in range(1, 25):
        moved = np.append(market.log_close[ahead:], np.full(ahead, market.log_close[-1])) - market.log_close
        found = np.minimum(found, moved)
    return found


def _twin(market: Market) -> Floats:
    """Another pair's return, which leads by a bar because its clock is wrong."""
    size = float(market.moves.std())
    return 0.8 * market.ahead + 0.6 * size * market.chance.standard_normal(len(market.close))


def _early_average(market: Market) -> Floats:
    """A moving average stamped a bar too early."""
    bars = market.bars()
    mean = np.convolve(np.append(market.log_close[1:], market.log_close[-1:]), np.ones(bars) / bars)
    return mean[: len(market.close)] - market.log_close


def _volatility_ahead(market: Market) -> Floats:
    bars = market.bars()
    squares = np.append(0.0, np.cumsum(market.moves**2))
    end = np.minimum(np.arange(len(market.close)) + 1 + bars, len(market.close))
    return np.asarray(np.sqrt(squares[end] - squares[np.arange(len(market.close)) + 1]))


def _smooth_regime(market: Market) -> Floats:
    """Trend up or down by an average over both directions of time."""
    return np.sign(_smoothed(market.moves, np.ones(2 * market.bars() + 1)))


PRICE_SOURCES: dict[str, Source] = {
    "next close": lambda market: np.append(market.close[1:], market.close[-1:]),
    "close some bars ahead": _price_ahead,
    "day's last close": lambda market: _of_last(market.group(DAY_MS), market.close),
    "week's last close": lambda market: _of_last(market.group(WEEK_MS), market.close),
    "day's later high": lambda market: _later(market.group(DAY_MS), market.high, np.maximum),
    "day's later low": lambda market: _later(market.group(DAY_MS), market.low, np.minimum),
    "day's whole high": lambda market: _whole(market.group(DAY_MS), market.high, np.maximum),
    "price between days' closes": _interpolated,
    "price filled from behind": _filled_backward,
    "centred average": lambda market: _smoothed(market.close, np.ones(2 * market.bars() + 1)),
}
SOURCES: dict[str, Source] = {
    **PRICE_SOURCES,
    "next return": lambda market: market.ahead.copy(),
    "sign of the next return": lambda market: np.sign(market.ahead),
    "size of the next return": lambda market: np.abs(market.ahead),
    "return over some bars": _sum_ahead,
    "day's revised return": _day_return,
    "day's whole range": _range,
    "place in the day's whole range": _place_in_range,
    "hours from the day's high": _until_high,
    "daily average with today": _daily_indicator,
    "two-sided smoothing": _two_sided,
    "slope through both sides": _local_line,
    "low pass of everything": _low_pass,
    "trend of everything removed": _detrended,
    "in-sample stacked forecast": _stacked,
    "hour of the week encoded on everything": _hour_of_week,
    "target encoding on everything": _encoded,
    "leaves of an overgrown forest": _leaves,
    "neighbours in time": _neighbours,
    "zigzag leg": _zigzag,
    "hint at the largest moves": _hint,
    "events with their outcome": _surprise,
    "barrier to come": _barrier,
    "worst of the next day": _worst_ahead,
    "leading twin": _twin,
    "average a bar early": _early_average,
    "volatility to come": _volatility_ahead,
    "smoothed regime": _smooth_regime,
}


def _noisy(deviations: float) -> Disguise:
    def noised(market: Market, values_N: Floats) -> Floats:
        return values_N + deviations * float(values_N.std()) * market.chance.standard_normal(len(values_N))

    return noised


def _monotone(market: Market, values_N: Floats) -> Floats:
    scaled = (values_N - np.median(values_N)) / (float(values_N.std()) or 1.0)
    return np.exp(np.tanh(scaled))


def _coded(market: Market, values_N: Floats) -> Floats:
    codes = np.digitize(values_N, np.quantile(values_N, [0.2, 0.4, 0.6, 0.8])).astype(np.float64)
    return np.asarray(market.chance.permutation(5)[codes.astype(int)], dtype=np.float64)


def _holed(market: Market, values_N: Floats) -> Floats:
    """Zero where nothing was joined."""
    return np.where(market.chance.random(len(values_N)) < 0.2, 0.0, values_N - np.median(values_N))


def _blended(market: Market, values_N: Floats) -> Floats:
    """With the past's moves."""
    past = _smoothed(market.moves, np.append(np.zeros(10), np.ones(11)))
    return values_N / (float(values_N.std()) or 1.0) + 1.5 * past / float(past.std())


def _in_volatilities(market: Market, values_N: Floats) -> Floats:
    squares = np.convolve(market.moves**2, np.ones(24) / 24)[: len(values_N)]
    return np.asarray((values_N - np.median(values_N)) / np.sqrt(squares + 1e-12))


DISGUISES: dict[str, Disguise] = {
    "as it is": lambda market, values_N: values_N,
    "flipped in another unit": lambda market, values_N: -1e4 * values_N,
    "under half its deviation of noise": _noisy(0.5),
    "under 1 deviation of noise": _noisy(1.0),
    "under 3 deviations of noise": _noisy(3.0),
    "under 10 deviations of noise": _noisy(10.0),
    "through a monotone function": _monotone,
    "in five shuffled codes": _coded,
    "with holes": _holed,
    "blended with the past": _blended,
    "in volatilities": _in_volatilities,
}
PRICED: dict[str, Disguise] = {
    "as it is": lambda market, values_N: values_N,
    "over the close": lambda market, values_N: values_N / market.close,
    "close over it": lambda market, values_N: market.close / values_N,
    "as log distance": lambda market, values_N: np.log(values_N / market.close),
    "in pips from the close": lambda market, values_N: 1e4 * (values_N - market.close),
    "over the close, in six digits": lambda market, values_N: np.round(values_N / market.close, 6),
    "over the close, under 1 deviation of noise": lambda market, values_N: _noisy(1.0)(market, values_N / market.close),
    "over the close, in volatilities": lambda market, values_N: _in_volatilities(market, values_N / market.close),
}
