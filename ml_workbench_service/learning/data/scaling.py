"""Feature scaling: `RowScaler`, from a feature's own unit to what a network reads, per symbol, fitted on the training
part.

Two stages share the work. The row stage is here and runs on single rows: `stationary` features become z-scores;
`level` features (prices, moving averages) become centred logarithms in units of their typical distance from a
window's mean. The window stage is the network's first operation: it subtracts from each level feature its mean over
the window, which makes it the log ratio to the window's own (geometric) mean. So a decade's drift of the price is no
novelty, and training and serving share every operation. The geometric mean is linear in logarithms; it differs from
the arithmetic one by 1e-7 of the price on hourly bars.

Legend: N rows, F features, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Floats32, Ints

SMALLEST_LABEL_SCALE = 1e-12
ROUNDING = 1e-13
"""A deviation smaller than this share of the centre is a constant's rounding error, whatever the feature's unit."""
LARGEST_ROW = 1e9
"""Deviations beyond this are cut: far beyond any novelty, near enough for float32 and a network to stay finite."""


@dataclass(frozen=True)
class SymbolScale:
    """One symbol's centres and scales, and the units of its labels (1 for a class)."""

    center_F: Floats
    scale_F: Floats
    label_scale_K: Floats


@dataclass(frozen=True)
class RowScaler:
    """The row stage for every symbol of a model."""

    features: tuple[str, ...]
    is_level_F: tuple[bool, ...]
    symbols: Mapping[str, SymbolScale]

    def rows(self, symbol: str, x_NF: Floats) -> Floats32:
        """Scaled rows, float32; a row's result does not depend on the rows around it.

        Raises:
            DataValidationError: a level feature is zero or negative, so that it has no logarithm.
        """
        scale = self.symbols[symbol]
        x_NF = to_logs(x_NF, self.features, self.is_level_F)
        with np.errstate(over="ignore"):
            scaled_NF = x_NF - scale.center_F
            scaled_NF /= scale.scale_F
        np.maximum(scaled_NF, -LARGEST_ROW, out=scaled_NF)
        return np.minimum(scaled_NF, LARGEST_ROW, out=scaled_NF).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "features": list(self.features),
            "is_level": list(self.is_level_F),
            "symbols": {
                name: {
                    "center": scale.center_F.tolist(),
                    "scale": scale.scale_F.tolist(),
                    "label_scale": scale.label_scale_K.tolist(),
                }
                for name, scale in self.symbols.items()
            },
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "RowScaler":
        """The inverse of `to_json`."""
        return cls(
            features=tuple(plain["features"]),
            is_level_F=tuple(plain["is_level"]),
            symbols={
                name: SymbolScale(
                    np.array(each["center"]), np.array(each["scale"]), np.atleast_1d(np.array(each["label_scale"]))
                )
                for name, each in plain["symbols"].items()
            },
        )


@dataclass(frozen=True)
class RawRows:
    """No scaling: the rows of a feature set are its answer, to the last bit. Every symbol is known that it names."""

    features: tuple[str, ...]
    symbols: Mapping[str, SymbolScale]

    def rows(self, symbol: str, x_NF: Floats) -> Floats32:
        """The rows as they are, in double precision: what reads them takes both."""
        return cast(Floats32, x_NF)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {"raw": True, "features": list(self.features), "symbols": list(self.symbols)}

    @classmethod
    def of(cls, features: Sequence[str], symbols: Sequence[str]) -> "RawRows":
        """For these columns and symbols."""
        num = len(features)
        unit = SymbolScale(np.zeros(num), np.ones(num), np.ones(num))
        return cls(tuple(features), dict.fromkeys(symbols, unit))


def load_scaler(plain: Mapping[str, Any]) -> RowScaler | RawRows:
    """What a recipe describes."""
    if plain.get("raw"):
        return RawRows.of(plain["features"], plain["symbols"])
    return RowScaler.from_json(plain)


def to_logs(x_NF: Floats, features: Sequence[str], is_level_F: Sequence[bool]) -> Floats:
    """Level columns as logarithms; the others untouched. NaN stays NaN."""
    level = _level_columns(tuple(is_level_F))
    if not len(level):
        return x_NF
    x_NF = x_NF.copy()
    values = x_NF[:, level]
    if (values <= 0).any():
        name = features[int(level[int(np.argmax((values <= 0).any(axis=0)))])]
        raise DataValidationError.at(
            f"features.{name}", f"{name} is a price level and must be above zero; send the feature in its own unit"
        )
    x_NF[:, level] = np.log(values)
    return x_NF


@lru_cache(maxsize=64)
def _level_columns(is_level_F: tuple[bool, ...]) -> Ints:
    return np.flatnonzero(is_level_F)


def fit_symbol(
    x_NF: Floats,
    labels_NK: Floats,
    ends: Ints,
    *,
    is_level_F: Sequence[bool],
    lookback: int,
    scales_K: Sequence[bool],
) -> SymbolScale:
    """Centres and scales from the training windows that end at `ends`.

    Args:
        x_NF: rows of one symbol after `to_logs`.
        labels_NK: labels in their own units.
        ends: row numbers of the training windows' last rows; every row of those windows is finite.
        is_level_F: which columns are levels.
        lookback: rows of a window.
        scales_K: which labels have a unit; the others are classes, with unit 1.
    """
    rows_NF = x_NF[_rows_of(ends, lookback) if len(ends) * lookback < 4_000_000 else ends]
    center = rows_NF.mean(axis=0)
    scale = rows_NF.std(axis=0, mean=center[None])
    for column in np.flatnonzero(is_level_F):
        values = np.where(np.isfinite(x_NF[:, column]), x_NF[:, column] - center[column], 0.0)
        total = np.concatenate([[0.0], np.cumsum(values)])
        last = values[ends] - (total[ends + 1] - total[ends + 1 - lookback]) / lookback
        scale[column] = np.sqrt(np.mean(last**2))
    scale = np.where(scale > ROUNDING * np.abs(center), scale, 1.0)
    sizes = np.sqrt(np.mean(labels_NK[ends] ** 2, axis=0))
    has_unit = np.array(scales_K, dtype=bool) & (sizes > SMALLEST_LABEL_SCALE)
    return SymbolScale(center, scale, np.where(has_unit, sizes, 1.0))


def _rows_of(ends: Ints, lookback: int) -> Ints:
    """Every row of the windows that end there, once and in order."""
    num = int(ends.max(initial=-1)) + 2
    begun_minus_ended = np.bincount(ends - lookback + 1, minlength=num) - np.bincount(ends + 1, minlength=num)
    return np.flatnonzero(np.cumsum(begun_minus_ended))
