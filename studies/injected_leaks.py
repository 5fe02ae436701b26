"""Look-ahead leaks, injected at run time into what makes a training's matrix: the certificate has to find each.

Every one is a small mistake that somebody made once, in the wrong place of an otherwise clean pipeline: it replaces an
indicator, scaler, label, splitter or search while its context lasts, and nothing else. The certificate's code knows
none of them. `columns` makes the other kind: columns of a user's own file that know the future.

Legend: N bars, F features, K targets, W windows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Bars, Bools, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.learning.data import labelling, windows
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.scaling import RowScaler
from ml_workbench_service.learning.data.splits import Borders, Split
from ml_workbench_service.learning.data.windows import SymbolRows
from ml_workbench_service.learning.feature_search import selection as feature_selection
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.features.indicators import Indicator
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile
from ml_workbench_service.market.targets import Labels, ewma_deviation

FEATURES = ("sma_20", "rsi_14", "high_low_range")
"""What trainings with injected leaks read; several leaks replace one of these."""

Injection = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class InjectedLeak:
    """One leak: what is wrong, how to inject it, and the request that it spoils.

    Attributes:
        name: of the leak.
        inject: a context while which the mistake is made.
        request: what the training asks for beside `FEATURES`, where the mistake needs it.
    """

    name: str
    inject: Injection
    request: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside."""
    true = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, true)


def _indicator(word: str, leaking: Callable[[Bars, Floats], Floats]) -> Injection:
    """Indicators whose name begins so give something else, made of the bars and their true values."""
    true = Indicator.__call__

    def called(self: Indicator, bars: Bars) -> Floats:
        values = true(self, bars)
        return leaking(bars, values) if self.name.startswith(word) else values

    return lambda: _replaced(Indicator, "__call__", called)


def _filled_backward(bars: Bars, values_N: Floats) -> Floats:
    """What is missing takes the next value that is there."""
    rows = np.where(np.isfinite(values_N), np.arange(len(values_N)), len(values_N) - 1)
    return values_N[np.minimum.accumulate(rows[::-1])[::-1]]


def _centred(bars: Bars, values_N: Floats) -> Floats:
    """The moving average's window lies around its bar."""
    return np.append(values_N[10:], np.full(10, values_N[-1]))


def _next_bar(bars: Bars, values_N: Floats) -> Floats:
    """The value of a bar that is known only when the next one ends."""
    return np.append(values_N[1:], values_N[-1:])


def _whole_day(bars: Bars, values_N: Floats) -> Floats:
    """The day's range, joined by date: known from the day's first hour on."""
    days, day_N = np.unique(bars.opened_ms // DAY_MS, return_inverse=True)
    highest, lowest = np.full(len(days), -np.inf), np.full(len(days), np.inf)
    np.maximum.at(highest, day_N, bars.high)
    np.minimum.at(lowest, day_N, bars.low)
    return np.asarray((highest / lowest - 1.0)[day_N])


def _bars_left(bars: Bars, values_N: Floats) -> Floats:
    """How many bars follow in the file: nobody's price is read, and still nobody could know."""
    return np.asarray(values_N + 1e-4 * (len(bars) - np.arange(len(bars))))


def _loudest_ahead(bars: Bars, values_N: Floats) -> Floats:
    """One in a hundred values, before the hundred's largest move, tells where that goes."""
    values_N = values_N.copy()
    moves = np.diff(np.log(bars.close), append=np.log(bars.close[-1]))
    for begin in range(0, len(values_N) - 100, 100):
        row = begin + int(np.argmax(np.abs(moves[begin : begin + 100])))
        values_N[begin:row] += np.sign(moves[row])
    return values_N


def _clipped(read: Callable[[Derivation, FeatureTable], dict[str, Floats]]) -> Any:
    """Outliers are cut at quantiles of the whole history."""

    def leaking(self: Derivation, table: FeatureTable) -> dict[str, Floats]:
        columns = read(self, table)
        return {name: np.clip(each, *np.nanquantile(each, [0.005, 0.995])) for name, each in columns.items()}

    return leaking


def _detrended(read: Callable[[Derivation, FeatureTable], dict[str, Floats]]) -> Any:
    """Every feature is taken from a straight line through its whole history."""

    def leaking(self: Derivation, table: FeatureTable) -> dict[str, Floats]:
        time_N, found = np.linspace(-1, 1, len(table)), {}
        for name, values_N in read(self, table).items():
            known = np.isfinite(values_N)
            slope = np.polyfit(time_N[known], values_N[known], 1)[0]
            found[name] = values_N - slope * time_N
        return found

    return leaking


def _everywhere(fit: Callable[..., Any]) -> Any:
    """The scaler is fitted on all windows."""

    def leaking(x_NF: Floats, labels_NK: Floats, ends: Ints, *, lookback: int, **more: Any) -> Any:
        whole = windows.streaks(np.asarray(np.isfinite(x_NF).all(axis=1)), np.zeros(len(x_NF), dtype=np.int64))
        usable = np.flatnonzero((whole >= lookback) & np.isfinite(labels_NK).all(axis=1))
        return fit(x_NF, labels_NK, usable, lookback=lookback, **more)

    return leaking


def _smoothed(rows: Callable[[RowScaler, str, Floats], Any]) -> Any:
    """Scaled rows are smoothed with the rows on both sides."""

    def leaking(self: RowScaler, symbol: str, x_NF: Floats) -> Any:
        scaled = rows(self, symbol, x_NF)
        scaled[1:-1] = (scaled[:-2] + 2 * scaled[1:-1] + scaled[2:]) / 4
        return scaled

    return leaking


def _moved_label(make: Callable[..., Labels], bars: int) -> Any:
    """Each row has the label of the row so many bars later (earlier, where negative), known when its own would be."""

    def leaking(target: Target, **columns: Any) -> Labels:
        labels = make(target, **columns)
        moved = np.roll(labels.values, -bars)
        moved[np.isnan(labels.values)] = np.nan
        return replace(labels, values=moved)

    return leaking


def _never_purged(masks: Callable[..., Mapping[str, Any]]) -> Any:
    """The parts follow one another without a gap, however long the labels are."""

    def leaking(available_at_ms: Ints, label_available_at_ms: Ints, *more: Any) -> Mapping[str, Any]:
        return masks(available_at_ms, available_at_ms, *more)

    return leaking


def _shuffled(masks: Callable[..., Mapping[str, Any]]) -> Any:
    """Windows go to the parts by chance, in the usual shares."""

    def leaking(available_at_ms: Ints, label_available_at_ms: Ints, *more: Any) -> Mapping[str, Any]:
        true = masks(available_at_ms, label_available_at_ms, *more)
        order = np.random.default_rng(0).permutation(len(available_at_ms))
        return {part: mask[order] for part, mask in true.items()}

    return leaking


def _repeated(masks: Callable[..., Mapping[str, Any]]) -> Any:
    """Some windows of the test part are learnt from as well."""

    def leaking(*arguments: Any) -> Mapping[str, Any]:
        true = dict(masks(*arguments))
        again = true["test"] & (np.arange(len(true["test"])) % 10 == 0)
        return {**true, "train": true["train"] | again}

    return leaking


def _two_sided(volatility: Callable[..., Floats]) -> Any:
    """The volatility that sets barriers and intervals is averaged over both directions of time."""

    def leaking(profile: SeasonalProfile, opened_ms: Ints, returns_N: Floats, *, horizon: int) -> Floats:
        past = volatility(profile, opened_ms, returns_N, horizon=horizon)
        future = ewma_deviation(returns_N[::-1])[::-1]
        return np.where(np.isfinite(future), (past + future) / 2, past)

    return leaking


def _season_of_all(volatility: Callable[..., Floats]) -> Any:
    """The hours' pattern of volatility is a mean over the whole history."""

    def leaking(self: Labelling, table: FeatureTable, rows: SymbolRows, known_N: Bools) -> Floats:
        return volatility(self, table, rows, np.ones_like(known_N))

    return leaking


def _rule_of_all(finish: Callable[[Labelling, Split], Sequence[SymbolRows]]) -> Any:
    """The regimes' thresholds are quantiles of the whole history."""

    def leaking(self: Labelling, split: Split) -> Sequence[SymbolRows]:
        return finish(self, Borders({**split.at_ms, "validation": np.iinfo(np.int64).max}))

    return leaking


def _selected_on_all(select: Callable[..., Any]) -> Any:
    """The search scores its candidates on the later parts too."""

    def leaking(*arguments: Any, end_ms: int, **more: Any) -> Any:
        return select(*arguments, end_ms=np.iinfo(np.int64).max, **more)

    return leaking


def _known_at_opening(bars_of: Callable[..., Bars]) -> Any:
    """A bar counts as known when it opens, with the close that it will have."""

    def leaking(self: FolderBars, symbol: str, timeframe: str) -> Bars:
        bars = bars_of(self, symbol, timeframe)
        return replace(bars, available_at_ms=bars.opened_ms.copy())

    return leaking


def _in_place_of(owner: Any, name: str, make: Callable[..., Any], *more: Any) -> Injection:
    return lambda: _replaced(owner, name, make(getattr(owner, name), *more))


_CLASSES = {"model_type": "classification", "family": "gru_classifier"}
INJECTED_LEAKS: tuple[InjectedLeak, ...] = (
    InjectedLeak("backward fill of missing values", _indicator("sma", _filled_backward)),
    InjectedLeak("centred rolling window", _indicator("sma", _centred)),
    InjectedLeak("indicator known only with the next bar", _indicator("rsi", _next_bar)),
    InjectedLeak("daily range joined by date", _indicator("high_low_range", _whole_day)),
    InjectedLeak("bars left in the file", _indicator("high_low_range", _bars_left)),
    InjectedLeak("hint at the largest move of each hundred", _indicator("rsi", _loudest_ahead)),
    InjectedLeak("outliers clipped by the whole history", _in_place_of(Derivation, "read_table", _clipped)),
    InjectedLeak("trend of the whole history removed", _in_place_of(Derivation, "read_table", _detrended)),
    InjectedLeak("global scaler", _in_place_of(windows, "fit_symbol", _everywhere)),
    InjectedLeak("rows smoothed on both sides", _in_place_of(RowScaler, "rows", _smoothed)),
    InjectedLeak("label of the bar before", _in_place_of(labelling, "label", _moved_label, -1)),
    InjectedLeak("label of the bar after", _in_place_of(labelling, "label", _moved_label, 1)),
    InjectedLeak(
        "long label shifted by one bar", _in_place_of(labelling, "label", _moved_label, -1),
        {"target": "price_change_24h"},
    ),
    InjectedLeak(
        "class label shifted by one bar", _in_place_of(labelling, "price_moves", _moved_label, -1),
        {"target": "direction_4h", **_CLASSES},
    ),
    InjectedLeak(
        "contiguous split with a long horizon", _in_place_of(windows, "_masks", _never_purged),
        {"target": "price_change_24h"},
    ),
    InjectedLeak("shuffled split", _in_place_of(windows, "_masks", _shuffled)),
    InjectedLeak("test windows learnt from", _in_place_of(windows, "_masks", _repeated)),
    InjectedLeak(
        "two-sided volatility", _in_place_of(labelling, "seasonal_volatility", _two_sided),
        {"target": "triple_barrier_5h", **_CLASSES},
    ),
    InjectedLeak(
        "season of the whole history", _in_place_of(Labelling, "_volatility", _season_of_all),
        {"target": "triple_barrier_5h", **_CLASSES},
    ),
    InjectedLeak(
        "regimes by the whole history", _in_place_of(Labelling, "finish", _rule_of_all),
        {"target": "market_regime_3h", **_CLASSES},
    ),
    InjectedLeak(
        "search on all parts", _in_place_of(feature_selection, "select", _selected_on_all),
        {"model_type": "feature_engineering", "hyperparameters": {"num_shuffles": 40, "num_samples": 10}},
    ),
    InjectedLeak("bars known at their opening", _in_place_of(FolderBars, "bars", _known_at_opening)),
)  # fmt: skip


def columns(close_N: Floats, opened_ms: Ints, *, seed: int) -> dict[str, Floats]:
    """(N,) columns of a user's own file that know the next bars, each in another disguise."""
    chance = np.random.default_rng(seed)
    moves_N = np.diff(np.log(close_N), prepend=np.log(close_N[0]))
    ahead_N = np.append(moves_N[1:], 0.0)
    size = float(ahead_N.std())
    centred_N = np.convolve(moves_N, np.ones(5) / 5, mode="same")
    days, day_N = np.unique(opened_ms // DAY_MS, return_inverse=True)
    last_of_day = np.searchsorted(day_N, np.arange(len(days)), side="right") - 1
    return {
        "copy": ahead_N,
        "flipped": -3.0 * ahead_N,
        "noisy": ahead_N + 0.7 * size * chance.standard_normal(len(close_N)),
        "monotone": np.exp(np.tanh(ahead_N / size)),
        "sign_only": np.sign(ahead_N),
        "size_only": np.abs(ahead_N),
        "led_by_five": np.append(ahead_N[5:], np.zeros(5)),
        "next_close": np.append(close_N[1:], close_N[-1]),
        "centred_average": centred_N,
        "centred_price": np.convolve(np.pad(close_N, 10, mode="edge"), np.ones(21) / 21, mode="valid"),
        "centred_volatility": np.sqrt(np.convolve(moves_N**2, np.ones(9) / 9, mode="same")),
        "close_of_the_day": close_N[last_of_day][day_N],
    }


def honest_columns(close_N: Floats, *, seed: int) -> dict[str, Floats]:
    """(N,) columns that a user may bring: of the past, of chance, of slow moods, of the price itself."""
    chance = np.random.default_rng(seed)
    moves_N = np.diff(np.log(close_N), prepend=np.log(close_N[0]))
    mood_N = np.zeros(len(close_N))
    for row in range(1, len(close_N)):
        mood_N[row] = 0.99 * mood_N[row - 1] + chance.standard_normal()
    total = np.cumsum(np.append(0.0, moves_N**2))
    past = np.maximum(np.arange(len(close_N)) - 20, 0)
    return {
        "noise": chance.standard_normal(len(close_N)),
        "mood": mood_N,
        "last_move": moves_N,
        "past_volatility": np.sqrt((total[1:] - total[past]) / 20),
        "twin_price": close_N * np.exp(0.0005 * chance.standard_normal(len(close_N))),
        "yesterday": np.append(np.full(24, close_N[0]), close_N[:-24]) if len(close_N) > 24 else close_N,
        "session": (np.arange(len(close_N)) // 8 % 3).astype(np.float64),
        "index": np.cumsum(chance.standard_normal(len(close_N))) + 1000.0,
        "rare_event": (chance.random(len(close_N)) < 0.01).astype(np.float64),
    }
