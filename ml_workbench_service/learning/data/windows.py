"""Sliding windows by index, and the purged split: nothing is copied per window, and time only flows forward.

`build` stacks the rows of all symbols into one array, finds every window of `lookback` consecutive complete bars,
splits them by timestamps that are the same for all symbols, and purges the windows whose label reaches over a border:

    train | validation | calibration | test      the last `validation_split` of the time: a quarter, a quarter, a half

An embargo keeps each part further away from the one before it: windows that end on the first bars after a border
belong to no part (Lopez de Prado, "Advances in financial machine learning", 2018, section 7.4.2). Parts of several
stretches are `splits.py`'s.

Legend: R rows of all symbols, F features, K labels of a row (none where nothing is forecast), N windows of a part. A
window is named by its last row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.contracts.prediction import Sample
from ml_workbench_service.learning.data.label_overlap import average_uniqueness
from ml_workbench_service.learning.data.scaling import RowScaler, SymbolScale, fit_symbol, to_logs
from ml_workbench_service.learning.data.splits import PARTS as PARTS
from ml_workbench_service.learning.data.splits import Borders as Borders
from ml_workbench_service.learning.data.splits import Part as Part
from ml_workbench_service.learning.data.splits import Split
from ml_workbench_service.learning.data.window_losses import streaks, why_too_few
from ml_workbench_service.market.trading_series import StackedBars

Value = TypeVar("Value")
SAMPLES: Mapping[Part, Sample] = {"train": "train", "validation": "stop", "calibration": "calibrate", "test": "test"}
"""Parts as records, cards and recipes have always spelt them: what was written once is read for ever."""
SPLIT_SHARES: Mapping[Part, float] = {"validation": 1.0, "calibration": 0.75, "test": 0.5}
"""Of `validation_split`, from each part's border to the end."""
FEWEST_WINDOWS: Mapping[Part, int] = {"train": 100, "validation": 20, "calibration": 20, "test": 20}
"""Under this many windows a part says nothing; the calibration's 90 % quantile alone needs 9."""


@dataclass(frozen=True)
class SymbolRows:
    """One symbol's rows before scaling: features in their own units, labels, and what the decoder needs."""

    symbol: str
    x_NF: Floats
    labels_NK: Floats  # class targets hold the number of the class
    label_available_at_ms_N: Ints  # when the last of a row's labels is known; without labels, when the row is
    available_at_ms_N: Ints
    runs_N: Ints
    bar_volatility_N: Floats  # ex-ante standard deviation of one of the horizon's bars; NaN where unknown
    opened_ms_N: Ints
    open_N: Floats
    close_N: Floats
    spread_N: Floats  # at the close, in price units; NaN where the costs' own holds
    spread_open_N: Floats  # at the open, likewise
    untested_N: Bools | None = None  # rows whose label says nothing of the market; None: there are none
    has_outcome_N: Bools | None = None  # rows whose outcome is known, where labels are of some of them; None: as labels
    label_spans_N2: Ints | None = None  # places of the first and last bar of a row's labels; None: rows count alike


SCORING_ROWS = 4096 * 24
"""Rows of a batch of windows, so that long windows need no more memory than short ones; the families' estimates count
on it."""
FinishRows = Callable[[Split], Sequence[SymbolRows]]
"""Each symbol's rows once the parts are known: for what is fitted on the training part, labels and volatility."""
LEARNT: tuple[Part, ...] = ("train", "validation")
"""Parts that a loss is computed on; their rows may count differently."""


@dataclass(frozen=True)
class Windows(StackedBars):
    """Stacked bars with labels and parts: everything a family trains on, and everything it is judged on."""

    labels_RK: Floats32  # in units of the symbol's label scale
    own_labels_RK: Floats  # in the targets' own units
    label_available_at_ms_R: Ints
    bar_volatility_R: Floats
    parts: Mapping[Part, Ints]  # last rows of each part's windows, by time within each symbol
    decisions: Mapping[Part, Ints]  # the same of all windows that serving would answer, labelled or not
    borders_ms: Mapping[Part, int]  # when each part but the first begins
    num_purged: int
    num_untested: int  # labelled windows that the test part leaves out
    lookback: int
    scaler: RowScaler
    split: Split
    uniqueness_R: Floats | None = None  # of the learnt parts' windows, NaN of others; None: each counts as much

    @property
    def weights_R(self) -> Floats32 | None:
        """(R,) what a row's loss counts, 1 in the mean of each learnt part; None: each as much as any other."""
        if self.uniqueness_R is None:
            return None
        weights_R: Floats32 = np.ones(len(self.uniqueness_R), dtype=np.float32)
        for part in LEARNT:
            unique_N = self.uniqueness_R[self.parts[part]]
            weights_R[self.parts[part]] = unique_N / unique_N.mean()
        return weights_R

    @property
    def features(self) -> tuple[str, ...]:
        """Feature names in the order of the columns."""
        return self.scaler.features

    @property
    def label_scale_RK(self) -> Floats:
        """The unit of each row's labels."""
        scales: Floats = np.stack([self.scaler.symbols[symbol].label_scale_K for symbol in self.symbols])
        return scales[self.symbol_R]

    def moments(self, ends: Ints) -> Ints:
        """(N,) the moment of each window, ms: bars that become known within half a bar of each other share one.

        A store may deliver one symbol's bar some seconds after another's; it is the same bar of the market's time.
        """
        known_N, symbol_N = self.available_at_ms_R[ends], self.symbol_R[ends]
        times = np.unique(known_N)
        distances = np.diff(known_N)[np.diff(symbol_N) == 0]
        half_bar = float(np.median(np.abs(distances))) / 2 if len(distances) else 0.0
        ends_T = np.maximum(np.searchsorted(times, times + half_bar), np.arange(1, len(times) + 1)).tolist()
        begins, begin = [], 0
        while begin < len(times):
            begins.append(begin)
            begin = ends_T[begin]
        firsts = times[np.array(begins, dtype=np.int64)]
        return np.asarray(firsts[np.searchsorted(firsts, known_N, side="right") - 1])

    def batches(self, ends: Ints) -> list[Ints]:
        """As many windows at a time as a scoring batch has rows for."""
        size = max(1, SCORING_ROWS // self.lookback)
        return [ends[begin : begin + size] for begin in range(0, len(ends), size)]

    def last_rows(self, ends: Ints) -> Floats32:
        """Last rows (N, F) after the window stage: level columns less their mean over the window."""
        last_NF, offsets, begin = self.rows_RF[ends], np.arange(1 - self.lookback, 1), 0
        for batch in self.batches(ends):
            for level in np.flatnonzero(self.scaler.is_level_F):
                windows_NT = self.rows_RF[:, level][batch[:, None] + offsets]
                last_NF[begin : begin + len(batch), level] -= windows_NT.mean(axis=1)
            begin += len(batch)
        return last_NF

    def gather(self, ends: Ints, length: int | None = None) -> Floats32:
        """The windows (N, T, F) that end at these rows; for slices only, training gathers on its device."""
        offsets = np.arange(1 - (length or self.lookback), 1)
        windows: Floats32 = self.rows_RF[ends[:, None] + offsets]
        return windows


def build(
    tables: Sequence[SymbolRows],
    *,
    features: Sequence[str],
    is_level: Sequence[bool],
    lookback: int,
    split: float | Split,
    scales_labels: Sequence[bool] | None = None,
    finish_rows: FinishRows | None = None,
) -> Windows:
    """Windows, parts and scaling; see the module.

    Args:
        tables: one symbol each.
        features: names of the columns.
        is_level: which of them are on the price's scale.
        lookback: rows of a window.
        split: the last share of the time, or the parts themselves.
        scales_labels: which labels are put into units of their symbol's typical size, if not all; classes are not.
        finish_rows: replaces the tables once the parts are known; a row that has a label keeps one.

    Raises:
        DataValidationError: a part has too few windows; the message says how to get more.
    """
    logs = [to_logs(table.x_NF, features, is_level) for table in tables]
    complete = [_complete(x_NF, table, lookback) for x_NF, table in zip(logs, tables, strict=True)]
    ends = [each[_labelled(table)[each]] for each, table in zip(complete, tables, strict=True)]
    known = [table.available_at_ms_N[each] for table, each in zip(tables, ends, strict=True)]
    label_known = [table.label_available_at_ms_N[each] for table, each in zip(tables, ends, strict=True)]
    why = partial(why_too_few, tables, logs, features, lookback)
    if not sum(len(each) for each in ends):
        raise _too_few("train", 0, lookback, why=why())
    if isinstance(split, float):
        split = Borders(_borders(tables, split))
    if finish_rows is not None:
        tables = finish_rows(split)
    barred = [split.barred(table.available_at_ms_N, lookback) for table in tables]
    masks = [_masks(*each, split) for each in zip(known, label_known, _at(barred, ends), strict=True)]
    untested = [_take_untested(table, each, mask) for table, each, mask in zip(tables, ends, masks, strict=True)]
    lengths = [len(table.labels_NK) for table in tables]
    parts = _parts(ends, masks, lengths=lengths, lookback=lookback, why=why)
    known = [table.available_at_ms_N[each] for table, each in zip(tables, complete, strict=True)]
    asked = [_masks(*each, split) for each in zip(known, known, _at(barred, complete), strict=True)]
    has_unit = [True] * tables[0].labels_NK.shape[1] if scales_labels is None else scales_labels
    scales = {
        table.symbol: _scale(table, x_NF, each[mask["train"]], is_level=is_level, lookback=lookback, has_unit=has_unit)
        for x_NF, table, each, mask in zip(logs, tables, ends, masks, strict=True)
    }
    scaler = RowScaler(tuple(features), tuple(is_level), scales)
    num_kept = sum(len(each) for each in parts.values())
    decisions = _stacked(complete, asked, lengths=lengths)
    num_purged = sum(map(len, ends)) - num_kept - sum(untested)
    cut = _Cut(parts, decisions, split, num_purged, sum(untested))
    uniqueness = [_uniqueness(*each) for each in zip(tables, ends, masks, strict=True)]
    return _stack(tables, scaler, cut, lookback=lookback, uniqueness=uniqueness)


@dataclass(frozen=True)
class _Cut:
    """Where the windows fall; see `Windows`."""

    parts: Mapping[Part, Ints]
    decisions: Mapping[Part, Ints]
    split: Split
    num_purged: int
    num_untested: int


def _uniqueness(table: SymbolRows, ends: Ints, masks: Mapping[Part, np.ndarray]) -> Floats | None:
    """(N,) of one symbol's rows; each learnt part counts its own labels alone, so that no part tells of another."""
    if table.label_spans_N2 is None:
        return None
    found_N = np.full(len(table.labels_NK), np.nan)
    for part in LEARNT:
        own = ends[masks[part]]
        found_N[own] = average_uniqueness(*table.label_spans_N2[own].T)
    return found_N


def _at(values: Sequence[Bools], rows: Sequence[Ints]) -> list[Bools]:
    return [each[here] for each, here in zip(values, rows, strict=True)]


def _take_untested(table: SymbolRows, ends: Ints, masks: dict[Part, np.ndarray]) -> int:
    """Takes windows out of the test part whose label says nothing of the market; how many."""
    if table.untested_N is None:
        return 0
    untested = masks["test"] & table.untested_N[ends]
    masks["test"] = masks["test"] & ~untested
    return int(untested.sum())


def _stacked(
    ends: Sequence[Ints], masks: Sequence[Mapping[Part, np.ndarray]], *, lengths: Sequence[int]
) -> dict[Part, Ints]:
    """Each part's windows among the stacked rows."""
    offsets = np.cumsum([0, *lengths])
    return {
        part: np.concatenate(
            [each[mask[part]] + offset for each, mask, offset in zip(ends, masks, offsets, strict=False)]
        )
        for part in PARTS
    }


def _parts(
    ends: Sequence[Ints],
    masks: Sequence[Mapping[Part, np.ndarray]],
    *,
    lengths: Sequence[int],
    lookback: int,
    why: Callable[[], str],
) -> dict[Part, Ints]:
    """Each part's windows among the stacked rows; raises DataValidationError where one has too few."""
    parts = _stacked(ends, masks, lengths=lengths)
    for part in PARTS:
        if len(parts[part]) < FEWEST_WINDOWS[part]:
            raise _too_few(part, len(parts[part]), lookback, why=why())
    return parts


def _scale(
    table: SymbolRows, x_NF: Floats, ends: Ints, *, is_level: Sequence[bool], lookback: int, has_unit: Sequence[bool]
) -> SymbolScale:
    if not len(ends):
        raise DataValidationError.at(
            "body.symbols", f"{table.symbol} has no complete window in the training part; leave it out or start earlier"
        )
    return fit_symbol(x_NF, table.labels_NK, ends, is_level_F=is_level, lookback=lookback, scales_K=has_unit)


def _stack(
    tables: Sequence[SymbolRows],
    scaler: RowScaler,
    cut: _Cut,
    *,
    lookback: int,
    uniqueness: Sequence[Floats | None],
) -> Windows:
    own_labels = np.concatenate([table.labels_NK for table in tables])
    symbol_R = np.concatenate([np.full(len(table.labels_NK), number) for number, table in enumerate(tables)])
    rows = np.concatenate([scaler.rows(table.symbol, table.x_NF) for table in tables])
    label_scale = np.stack([scaler.symbols[table.symbol].label_scale_K for table in tables])[symbol_R]
    first_runs = np.cumsum([0] + [int(table.runs_N.max(initial=-1)) + 1 for table in tables])
    return Windows(
        rows_RF=np.ascontiguousarray(np.nan_to_num(rows)),  # rows with gaps are in no window
        labels_RK=np.nan_to_num(own_labels / label_scale).astype(np.float32),
        own_labels_RK=own_labels,
        symbol_R=symbol_R.astype(np.int64),
        available_at_ms_R=np.concatenate([table.available_at_ms_N for table in tables]),
        label_available_at_ms_R=np.concatenate([table.label_available_at_ms_N for table in tables]),
        runs_R=np.concatenate([table.runs_N + first for table, first in zip(tables, first_runs, strict=False)]),
        bar_volatility_R=np.concatenate([table.bar_volatility_N for table in tables]),
        opened_ms_R=np.concatenate([table.opened_ms_N for table in tables]),
        open_R=np.concatenate([table.open_N for table in tables]),
        close_R=np.concatenate([table.close_N for table in tables]),
        spread_R=np.concatenate([table.spread_N for table in tables]),
        spread_open_R=np.concatenate([table.spread_open_N for table in tables]),
        parts=cut.parts,
        decisions=cut.decisions,
        borders_ms=dict(cut.split.at_ms),
        num_purged=cut.num_purged,
        num_untested=cut.num_untested,
        lookback=lookback,
        symbols=tuple(table.symbol for table in tables),
        scaler=scaler,
        split=cut.split,
        uniqueness_R=np.concatenate(known) if (known := [each for each in uniqueness if each is not None]) else None,
    )


def _complete(x_NF: Floats, table: SymbolRows, lookback: int) -> Ints:
    """Last rows of the windows with `lookback` complete rows, labelled or not."""
    streak = streaks(_all_finite(x_NF), table.runs_N)
    return np.flatnonzero(streak >= lookback)


def _labelled(table: SymbolRows) -> Bools:
    """(N,) rows with all labels."""
    return _all_finite(table.labels_NK)


def _all_finite(values_NV: Floats) -> Bools:
    """(N,) rows without a missing value, column by column: rows are short."""
    found_N = np.ones(len(values_NV), dtype=bool)
    for column_N in np.isfinite(values_NV).T:
        found_N &= column_N
    return found_N


def _borders(tables: Sequence[SymbolRows], validation_split: float) -> dict[Part, int]:
    """The three borders, as moments; a window belongs to the part in which its last row becomes known.

    They follow the bars and the labels' horizon alone: models of one range are judged on one test part, whatever
    features they read and however long their windows are.
    """
    first = min(int(table.available_at_ms_N.min()) for table in tables if len(table.available_at_ms_N))
    labelled = [
        table.label_available_at_ms_N[_labelled(table) if table.has_outcome_N is None else table.has_outcome_N]
        for table in tables
    ]
    last = int(np.concatenate(labelled).max())
    span = last - first
    return {name: last - round(span * validation_split * share) for name, share in SPLIT_SHARES.items()}


def _masks(available_at_ms: Ints, label_available_at_ms: Ints, barred: Bools, split: Split) -> dict[Part, np.ndarray]:
    """Which windows belong to which part; one whose label is known only after the part's end belongs to none."""
    return split.masks(available_at_ms, label_available_at_ms, barred)


def _too_few(part: Part, num: int, lookback: int, *, why: str) -> DataValidationError:
    return DataValidationError.at(
        "body.start_date",
        f"the {part} part has {num} complete windows of {lookback} bars and needs {FEWEST_WINDOWS[part]}; {why}",
        code="too_few_windows",
    )


def to_wire(by_part: Mapping[Part, Value]) -> dict[str, Value]:
    """Keyed as cards, recipes and records spell the parts."""
    return {SAMPLES[part]: value for part, value in by_part.items()}


def from_wire(stored: Mapping[str, Value]) -> dict[Part, Value]:
    """The inverse of `to_wire`."""
    return {part: stored[name] for part, name in SAMPLES.items() if name in stored}


def part_of(moment_ms: int, borders_ms: Mapping[Part, int], *, last_ms: int) -> Sample:
    """Which part a prediction made at this moment falls into; `live` after the last bar the training saw.

    A moment before the first window is no training data, yet everything learnt comes later: it counts as `train`.
    """
    if moment_ms > last_ms:
        return "live"
    later_parts: tuple[Part, ...] = ("test", "calibration", "validation")
    return SAMPLES[next((part for part in later_parts if moment_ms > borders_ms[part]), "train")]


def describe_borders(borders_ms: Mapping[Part, int]) -> dict[str, str]:
    """Borders in ISO 8601, for the card."""
    return {name: iso_of_ms(moment) for name, moment in to_wire(borders_ms).items()}


def evenly(ends: Ints, most: int) -> Ints:
    """At most this many of these windows, spread evenly."""
    if len(ends) <= most:
        return ends
    return ends[np.linspace(0, len(ends) - 1, most).round().astype(np.int64)]
