"""Perturbed bars, whose future is another one: what the certificate recomputes a training's matrix over.

A value that is known at a moment is made of bars known by then. So bars known later are replaced, or cut off, all is
computed again, and whatever moved before the moment has read the future. The past stays the same to the last bit.

Replaced prices follow an independent path that stands still where the price does, so that a flat market stays flat and
whatever has no value there (a division by zero) has none again. Nothing becomes zero, negative or missing.

Legend: N bars.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Bars, Bools, FeatureTable, Floats, Ints

JUMP = 12.0
"""Of the first replaced bar, in typical moves: wide of any barrier, and loud enough for every window that holds it."""
STEP = 3.0
"""Deviation of the path's other steps, in typical moves: the future's own moves drown in it."""
FARTHEST = 2.0
"""In log price: a path of any length stays within the factor e^2 of the true one."""
NOISE = 0.3
"""Deviation of the logarithm of what other columns are multiplied with."""
WILD = 0.3
"""The same for closes that a label must not depend on."""
RAISE = 2.0
"""In log price: a label whose bars are lifted by this much has to notice, whatever the costs and barriers."""
_PRICES = ("open", "high", "low", "close")


def cut_after(bars: Bars, moment_ms: int) -> Bars:
    """The bars known by the moment, and no others."""
    kept = bars.available_at_ms <= moment_ms
    own: dict[str, Any] = {name: getattr(bars, name)[kept] for name in ("opened_ms", "available_at_ms", *_PRICES)}
    return replace(bars, **own, extra={name: column[kept] for name, column in bars.extra.items()})


def replaced_after(bars: Bars, moment_ms: int, *, seed: int) -> Bars:
    """The same bars up to the moment, and others after it: prices, volume, spread and the user's own columns."""
    columns = {**bars.extra, **{name: getattr(bars, name) for name in _PRICES}}
    changed = _changed(columns, bars.available_at_ms > moment_ms, _chance(seed, bars.symbol))
    prices: dict[str, Any] = {name: changed[name] for name in _PRICES}
    return replace(bars, **prices, extra={name: changed[name] for name in bars.extra})


def table_replaced_after(table: FeatureTable, moment_ms: int, *, seed: int) -> FeatureTable:
    """The same for delivered columns, where the bars that they were made of are out of reach."""
    return replace(
        table, columns=_changed(table.columns, table.available_at_ms > moment_ms, _chance(seed, table.symbol))
    )


def lifted(close_N: Floats, rows: Ints, horizon: int) -> Floats:
    """Closes of which the `horizon` bars after each row are lifted, and after every other row lowered."""
    close_N = close_N.copy()
    factors = np.where(np.arange(len(rows)) % 2, np.exp(RAISE), np.exp(-RAISE))
    for ahead in range(1, horizon + 1):
        inside = rows + ahead < len(close_N)
        close_N[rows[inside] + ahead] *= factors[inside]
    return close_N


def wild_elsewhere(close_N: Floats, rows: Ints, horizon: int, *, seed: int) -> Floats:
    """Closes that are true at each row and for `horizon` bars after it, and wild everywhere else."""
    factor_N = np.exp(WILD * np.random.default_rng(seed).standard_normal(len(close_N)))
    factor_N[_from(rows, horizon, len(close_N), first=0)] = 1.0
    return np.asarray(close_N * factor_N)


def mirrored(close_N: Floats, rows: Ints, horizon: int, *, elsewhere: bool) -> Floats:
    """Closes whose moves in the `horizon` bars after each row have the other sign; `elsewhere`: all moves but those.

    Squares stay, so past volatilities are the same to rounding: for labels that are measured in them.
    """
    moves_N = np.diff(np.log(close_N), prepend=np.log(close_N[:1]))
    signs_N = np.where(_from(rows, horizon, len(close_N), first=1) != elsewhere, -1.0, 1.0)
    return np.asarray(close_N[0] * np.exp(np.cumsum(moves_N * signs_N)))


def _from(rows: Ints, horizon: int, num: int, *, first: int) -> Bools:
    """Which bars lie `first` to `horizon` bars after one of the rows."""
    marked_N = np.zeros(num, dtype=bool)
    for ahead in range(first, horizon + 1):
        marked_N[np.minimum(rows + ahead, num - 1)] = True
    return marked_N


def _chance(seed: int, symbol: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(symbol.encode())])


def _changed(columns: Mapping[str, Floats], late_N: Bools, chance: np.random.Generator) -> dict[str, Floats]:
    """Every column with other values in the late rows; missing values stay missing."""
    path_N = _path(columns["close"], late_N, chance)
    changed = {}
    for name, values_N in columns.items():
        factor_N = np.exp(path_N) if name in _PRICES else _noise(values_N, chance)
        if name == "open":
            factor_N = np.exp((path_N + np.append(path_N[:1], path_N[:-1])) / 2)
        changed[name] = np.where(late_N, values_N * factor_N, values_N)
    if "high" in columns and "low" in columns:
        _segment(changed, late_N & (columns["high"] > columns["low"]), columns, chance)
    return changed


def _path(close_N: Floats, late_N: Bools, chance: np.random.Generator) -> Floats:
    """A jump at the first late move, then a walk; it stands still wherever the price does."""
    moves_N = np.diff(np.log(close_N), prepend=np.log(close_N[:1]))
    moving_N = np.isfinite(moves_N) & (moves_N != 0.0)
    typical = float(np.median(np.abs(moves_N[moving_N]))) if moving_N.any() else 0.0
    steps_N = np.where(late_N & moving_N, STEP * typical * chance.standard_normal(len(close_N)), 0.0)
    first = np.flatnonzero(late_N & moving_N)[:1]
    steps_N[first] = JUMP * typical * chance.choice([-1.0, 1.0])
    return np.asarray(FARTHEST * np.tanh(np.cumsum(steps_N) / FARTHEST))


def _noise(values_N: Floats, chance: np.random.Generator) -> Floats:
    """A positive factor for each row that changes only where the values do."""
    starts_N = np.ones(len(values_N), dtype=bool)
    starts_N[1:] = values_N[1:] != values_N[:-1]
    factor_N: Floats = np.exp(NOISE * chance.standard_normal(len(values_N)))
    return factor_N[np.maximum.accumulate(np.where(starts_N, np.arange(len(values_N)), 0))]


def _segment(
    changed: dict[str, Floats], late_N: Bools, true: Mapping[str, Floats], chance: np.random.Generator
) -> None:
    """Other ranges within the late bars that have one; high and low still hold the bar's ends."""
    range_N = np.log(true["high"] / true["low"])
    ends = [changed[name] for name in ("open", "close") if name in changed]
    wider_N = np.exp(range_N * np.abs(chance.standard_normal(len(range_N))))
    high_N = np.maximum.reduce([changed["high"] * wider_N, *ends])
    low_N = np.minimum.reduce([changed["low"] / wider_N, *ends])
    changed["high"], changed["low"] = (
        np.where(late_N, wide_N, changed[name]) for name, wide_N in (("high", high_N), ("low", low_N))
    )
    if "open" in changed:  # a bar without a range has one price
        changed["open"] = np.where(true["high"] > true["low"], changed["open"], changed["close"])
