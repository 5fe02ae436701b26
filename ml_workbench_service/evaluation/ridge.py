"""Ridge regression: the linear bar that every model is measured against, in closed form, on the very same windows.

Least squares of the label on all values of a window with a quadratic penalty (Hoerl and Kennard, Technometrics 12,
1970): fitted on the training part, the penalty chosen on the validation part, the test part never seen. Windows go
through the same scaling and window stage as a network's. Sums of products are gathered a block at a time in double
precision, so memory does not grow with the windows, and both parts' errors at every penalty follow from the sums.

When it fails: signals that are not additive over bars and features, and columns with a few giant values. A window of
more than `MOST_COLUMNS` values enters with its newest rows and each feature's mean over the whole window; of more than
`MOST_WINDOWS` windows an even share is fitted on.

Legend: N windows, T rows, F features, P columns, R rows of all symbols.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.data.windows import Windows, evenly

MOST_COLUMNS = 512
"""A system of this size is solved in a fraction of a second."""
MOST_WINDOWS = 200_000
"""Beyond this many more windows hardly move the sums."""
BLOCK_VALUES = 2_000_000
"""Values of a block: 16 MB."""
PENALTIES = tuple(10.0**power for power in np.linspace(-4, 4, 17))
"""In units of what the windows themselves weigh: from next to none to a forecast of next to nothing but the mean."""


@dataclass(frozen=True)
class WindowColumns:
    """What of a window enters a linear model: its last rows, and each feature's mean where that is not all of it."""

    windows: Windows
    num_rows: int
    has_means: bool

    @classmethod
    def of(cls, windows: Windows, *, most: int = MOST_COLUMNS) -> "WindowColumns":
        """All rows where they fit into `most` columns; the last row always."""
        num_features = len(windows.features)
        if windows.lookback * num_features <= most:
            return cls(windows, windows.lookback, False)
        return cls(windows, max(1, most // num_features - 1), True)

    @property
    def num(self) -> int:
        """Columns (P)."""
        return len(self.windows.features) * (self.num_rows + self.has_means)

    def values(self, ends: Ints) -> Floats:
        """(N, P) of the windows that end at these rows, after the window stage."""
        windows_NTF = self.windows.gather(ends).astype(np.float64)
        level = np.flatnonzero(self.windows.scaler.is_level_F)
        means_NF = windows_NTF.mean(axis=1)
        windows_NTF[:, :, level] -= means_NF[:, None, level]
        means_NF[:, level] = 0.0  # what a level's mean is has nothing to say
        values_NP = windows_NTF[:, -self.num_rows :].reshape(len(ends), -1)
        return np.concatenate([values_NP, means_NF], axis=1) if self.has_means else values_NP

    def blocks(self, ends: Ints) -> Iterator[tuple[slice, Floats]]:
        """The same a block at a time, each with its place."""
        size = max(1, BLOCK_VALUES // max(self.num, self.windows.lookback * len(self.windows.features)))
        for begin in range(0, len(ends), size):
            place = slice(begin, min(begin + size, len(ends)))
            yield place, self.values(ends[place])


@dataclass(frozen=True)
class Ridge:
    """A fitted one; forecasts are in the unit of the labels it was given."""

    columns: WindowColumns
    weights_P: Floats
    bias: float
    penalty: float

    @classmethod
    def fit(cls, windows: Windows, labels_R: Floats) -> "Ridge":
        """From the training and validation parts.

        Args:
            windows: rows and parts.
            labels_R: what is forecast, at every row of both parts, in one unit for all symbols. Rows where it is NaN
                are left out.
        """
        columns = WindowColumns.of(windows)
        train, validation = (
            _Sums.of(columns, _labelled(windows.parts[part], labels_R), labels_R) for part in ("train", "validation")
        )
        center_P, center = train.x_P / max(train.num, 1), train.y / max(train.num, 1)
        gram_PP, moment_P = train.centred(center_P, center)[:2]
        sizes_P, axes_PP = np.linalg.eigh(gram_PP)
        sizes_P = np.maximum(sizes_P, 0.0)
        along_P = axes_PP.T @ moment_P
        unit = max(float(sizes_P.sum()) / columns.num, 1e-12)
        judged = validation.centred(center_P, center)
        best_loss, best_P, best_penalty = np.inf, np.zeros(columns.num), PENALTIES[-1]
        for penalty in reversed(PENALTIES):
            weights_P = axes_PP @ (along_P / (sizes_P + penalty * unit))
            loss = float(weights_P @ judged[0] @ weights_P - 2 * weights_P @ judged[1])
            if loss < best_loss:
                best_loss, best_P, best_penalty = loss, weights_P, penalty
        return cls(columns, best_P, float(center - center_P @ best_P), best_penalty)

    def forecasts(self, ends: Ints) -> Floats:
        """(N,) of the windows that end there."""
        found_N = np.empty(len(ends))
        for place, values_NP in self.columns.blocks(ends):
            found_N[place] = values_NP @ self.weights_P + self.bias
        return found_N


@dataclass(frozen=True)
class _Sums:
    """Sums of products over one part's windows."""

    num: int
    x_P: Floats
    y: float
    xx_PP: Floats
    xy_P: Floats

    @classmethod
    def of(cls, columns: WindowColumns, ends: Ints, labels_R: Floats) -> "_Sums":
        x_P, xx_PP, xy_P = np.zeros(columns.num), np.zeros((columns.num, columns.num)), np.zeros(columns.num)
        labels_N = labels_R[ends].astype(np.float64)
        for place, values_NP in columns.blocks(ends):
            x_P += values_NP.sum(axis=0)
            xx_PP += values_NP.T @ values_NP
            xy_P += values_NP.T @ labels_N[place]
        return cls(len(ends), x_P, float(labels_N.sum()), xx_PP, xy_P)

    def centred(self, center_P: Floats, center: float) -> tuple[Floats, Floats]:
        """Sums of products of columns, and of columns and label, once these centres are taken off all of them."""
        cross_PP = np.outer(self.x_P, center_P)
        gram_PP = self.xx_PP - cross_PP - cross_PP.T + self.num * np.outer(center_P, center_P)
        moment_P = self.xy_P - center_P * self.y - center * self.x_P + self.num * center * center_P
        return gram_PP, moment_P


def _labelled(ends: Ints, labels_R: Floats) -> Ints:
    """Those with a label, thinned evenly to `MOST_WINDOWS`."""
    return evenly(ends[np.isfinite(labels_R[ends])], MOST_WINDOWS)
