"""Injected anomalies: windows in which one thing is known to be wrong, to learn what a detector finds of it.

    spike                one feature of the last row jumps, as a bad tick does
    stale_price          all features keep one row's values, as a feed does that has stopped without saying so
    volatility_burst     all deviations from the rows before are several times as large
    broken_correlation   one feature is that of another time, while the others go on

Each injected window is a real one, copied and changed at its end: the detector is asked about now. Copies leave the
series itself untouched, so that its own windows still tell how often a detector alarms for nothing, and a short test
part has room for as many anomalies as a share is to be measured by.

Works on scaled rows, where one unit is a feature's typical deviation, level features included (these are logarithms,
and a window's mean is taken off them later, so that what is spliced in must continue where the window was). Taken
from the families of faults in Lavin and Ahmad (Numenta benchmark, 2015, arXiv:1510.03336) and Lai et al. (NeurIPS
2021, "Revisiting Time Series Outlier Detection").

Legend: R rows, F features, N injected windows, T rows of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats32, Ints

SPIKE_DEVIATIONS = (5.0, 10.0)
"""Size of a spike in a feature's typical deviations, either way; daily exchange rates reach 5 a few times a decade."""
BURST_FACTOR = 4.0
"""How much larger deviations get: about what the largest announcements do to an hour."""
SHORTEST_EPISODE, LONGEST_EPISODE = 4, 12
"""Rows of whatever lasts, as far as half of the window allows."""


@dataclass(frozen=True)
class Injected:
    """Windows with an anomaly at their end, in the order of `KINDS`.

    Attributes:
        windows_NTF: scaled rows, before the window stage.
        kind_N: place in `KINDS`.
        changed_NF: the features that were changed.
        ends_N: last row of the real window behind each.
    """

    windows_NTF: Floats32
    kind_N: Ints
    changed_NF: Bools
    ends_N: Ints

    def of(self, kind: str) -> Bools:
        """Which windows hold this kind; none where it could not be injected."""
        return np.asarray(self.kind_N == KINDS.index(kind))


def inject(
    rows_RF: Floats32, ends: Ints, *, lookback: int, is_level_F: Sequence[bool], seed: int, num_per_kind: int = 200
) -> Injected:
    """Plants anomalies of every kind into copies of windows; the same seed injects the same.

    A single feature has no correlation to break: then that kind is left out.

    Args:
        rows_RF: scaled rows.
        ends: last rows of the windows to inject into, at least two; also where a broken correlation finds its other
            time.
        lookback: rows of a window, at least 3.
        is_level_F: which columns are levels.
        seed: decides places, features, sizes and lengths.
        num_per_kind: windows of each kind, at most as many as there are.
    """
    chance = np.random.default_rng(seed)
    windows, kinds, changed, places = [], [], [], []
    for number, kind in enumerate(_INJECTORS):
        if kind == "broken_correlation" and rows_RF.shape[1] < 2:
            continue
        chosen = chance.choice(ends, size=min(num_per_kind, len(ends)), replace=False)
        for end in np.sort(chosen):
            window_TF = rows_RF[end + 1 - lookback : end + 1].copy()
            donor = _another_time(ends, int(end), apart=lookback, chance=chance)
            scene = _Scene(window_TF, rows_RF[donor + 1 - lookback : donor + 1], np.asarray(is_level_F), chance)
            changed.append(_INJECTORS[kind](scene))
            windows.append(window_TF)
            kinds.append(number)
            places.append(int(end))
    return Injected(np.stack(windows), np.array(kinds), np.stack(changed), np.array(places))


def _another_time(ends: Ints, end: int, *, apart: int, chance: np.random.Generator) -> int:
    """Last row of a window that shares no row with this one, where there is one; else of any other."""
    distance = np.abs(ends - end)
    return int(chance.choice(ends[distance >= min(apart, int(distance.max()))]))


@dataclass(frozen=True)
class _Scene:
    """A window to change in place, a window of another time, and the dice."""

    window_TF: Floats32
    donor_TF: Floats32
    is_level_F: Bools
    chance: np.random.Generator

    def one_feature(self) -> Bools:
        """One feature at random, as a mask."""
        num_features = self.window_TF.shape[1]
        return np.asarray(np.arange(num_features) == self.chance.integers(num_features))

    def all_features(self) -> Bools:
        """All of them, as a mask."""
        return np.ones(self.window_TF.shape[1], dtype=bool)

    def begin(self) -> int:
        """First row of an episode that lasts until the window's end."""
        half = max(2, len(self.window_TF) // 2)
        longest = min(half, LONGEST_EPISODE)
        return len(self.window_TF) - int(self.chance.integers(min(half, SHORTEST_EPISODE), longest + 1))


def _spike(scene: _Scene) -> Bools:
    feature = scene.one_feature()
    size = scene.chance.uniform(*SPIKE_DEVIATIONS) * scene.chance.choice([-1.0, 1.0])
    scene.window_TF[-1, feature] += np.float32(size)
    return feature


def _stale_price(scene: _Scene) -> Bools:
    begin = scene.begin()
    scene.window_TF[begin:] = scene.window_TF[begin - 1]
    return scene.all_features()


def _volatility_burst(scene: _Scene) -> Bools:
    begin = scene.begin()
    before_F = scene.window_TF[:begin].mean(axis=0)
    scene.window_TF[begin:] = before_F + np.float32(BURST_FACTOR) * (scene.window_TF[begin:] - before_F)
    return scene.all_features()


def _broken_correlation(scene: _Scene) -> Bools:
    """The other time's rows; a level goes on from where the window was, by the other time's moves."""
    feature, begin = scene.one_feature(), scene.begin()
    spliced_T1 = scene.donor_TF[begin:, feature].copy()
    if scene.is_level_F[feature].any():
        spliced_T1 += scene.window_TF[begin - 1, feature] - scene.donor_TF[begin - 1, feature]
    scene.window_TF[begin:, feature] = spliced_T1
    return feature


_INJECTORS: dict[str, Callable[[_Scene], Bools]] = {
    "spike": _spike,
    "stale_price": _stale_price,
    "volatility_burst": _volatility_burst,
    "broken_correlation": _broken_correlation,
}
KINDS = tuple(_INJECTORS)
"""What can be injected."""
