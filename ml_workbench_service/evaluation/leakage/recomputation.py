"""Recomputation: a training's matrix made again over bars with another future, and what moved in it before the moment.

    replaced    every bar known after a moment becomes another: columns, features, labels known by then stay bit-equal;
                from the training part's end on scaler, fitted rules, parts and the network's rows as well
    cut off     the bars end there: what reads how many bars follow moves, which replacing cannot show; of a store that
                is out of reach the same is asked with `as_of`

Moments lie at the borders, at random in each part, at the first row that any window reads, and where a bar or a value
is missing next: a fill from behind is idle elsewhere.

Exact comparison is right where bars are replaced: arrays keep their length, and causal code is bit-equal on them. A
shorter array may round its last elements otherwise (vector instructions end in scalar ones): `ROUNDING`.

Legend: N bars of one symbol, R rows of all symbols, F features, K targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from common_lib.exceptions import DataValidationError, UpstreamError, UpstreamTimeoutError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Bars, Bools, FeatureStore, FeatureTable, recomputing
from ml_workbench_service.evaluation.leakage.perturbations import cut_after, replaced_after, table_replaced_after
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.windows import PARTS, Part, Windows
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder

ROUNDING = 1e-9
"""Of a value and its column's spread; a double's last place is 1e-16, and no use of the future is as small as this."""
CELLS = 200_000
"""Rows times features beyond which one random moment a part has to do: a recomputation takes a tenth of a second."""
LAST_MS = int(np.iinfo(np.int64).max)
AFTER_LEARNT: dict[Part, Part] = {"train": "validation", "validation": "calibration"}

Array = NDArray[np.generic]


@dataclass
class Recomputation:
    """Everything again at each moment.

    Attributes:
        order, data, store: the training; the data as they were made from this store.
        report: cancels between moments.
        seed: of moments and replacements.
        moved: by kind (`features`, `cut`, `labels`, `scaling`) the first sentence about something that moved.
        num_compared: by kind of alteration (`replaced`, `cut`), how many moments could be compared.
        recomputing: the store, where it can make its columns again.
        own_columns: what the bars themselves brought beside prices.
    """

    order: TrainingOrder
    data: TrainingData
    store: FeatureStore
    report: Report
    seed: int
    moved: dict[str, str] = field(default_factory=dict)
    num_compared: dict[str, int] = field(default_factory=lambda: {"replaced": 0, "cut": 0})
    own_columns: set[str] = field(default_factory=set)
    _fills_ms: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.recomputing = recomputing(self.store)
        if self.order.request.as_of is None:  # bars that arrive meanwhile are not part of this training
            self.order = self._known_by(max(int(table.available_at_ms.max()) for table in self.data.tables))

    def run(self) -> None:
        """Compares at every moment; afterwards `moved` has what moved.

        Raises:
            JobCancelled: somebody asked for it.
        """
        if self.recomputing is not None:
            self._compare(self._fetched(self.recomputing.altered(self._noted)), LAST_MS)
        borders = list(self.data.windows.borders_ms.values())
        chosen = self._random_moments()
        for number, moment_ms in enumerate([*borders, *chosen, *self._odd_moments()]):
            self.report.check()
            self._compare(self._replaced(moment_ms, number), moment_ms)
        for moment_ms in [*borders, *chosen] if self.recomputing is not None else borders[:1]:
            self.report.check()
            self._compare_cut(moment_ms)

    def replaced(self, moment_ms: int) -> TrainingData:
        """The training's data over bars that are others after the moment."""
        return training_data.assemble(self.order, self._replaced(moment_ms, 0), kind_of=self.store.kind_of)

    def _replaced(self, moment_ms: int, number: int) -> list[FeatureTable]:
        """Tables over such bars; `number` chooses which others."""
        seed = self.seed + 1000 * number
        if self.recomputing is not None:
            return self._fetched(self.recomputing.altered(lambda bars: replaced_after(bars, moment_ms, seed=seed)))
        return [table_replaced_after(table, moment_ms, seed=seed) for table in self.data.tables]

    def _fetched(self, store: FeatureStore) -> list[FeatureTable]:
        return training_data.fetch(self.order, store)

    def _known_by(self, moment_ms: int) -> TrainingOrder:
        as_of = datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
        return replace(self.order, request=self.order.request.model_copy(update={"as_of": as_of}))

    def _noted(self, bars: Bars) -> Bars:
        """The bars as they are; remembers the user's own columns, and where they begin again after a hole."""
        self.own_columns |= set(bars.extra)
        for values_N in bars.extra.values():
            missing_N = ~np.isfinite(values_N)
            self._fills_ms |= set(bars.available_at_ms[:-1][missing_N[:-1] & ~missing_N[1:]].tolist())
        return bars

    def _random_moments(self) -> list[int]:
        """Moments of windows, one or two in each part, once every symbol has bars."""
        windows, chance = self.data.windows, np.random.default_rng(self.seed)
        began_ms = max(int(table.available_at_ms[0]) for table in self.data.tables)
        num = 1 if windows.rows_RF.size > CELLS else 2
        moments: list[int] = []
        for part in PARTS:
            known = windows.available_at_ms_R[windows.parts[part]]
            moments += chance.choice(known[known >= min(began_ms, known.max())], size=num).tolist()
        return moments

    def _odd_moments(self) -> list[int]:
        """Where the first window begins, and one moment each before a missing bar and before a value that follows a
        hole."""
        windows, chance = self.data.windows, np.random.default_rng([self.seed, 1])
        begins = windows.available_at_ms_R[windows.parts["train"] - windows.lookback + 1]
        span_ms = TIMEFRAMES_MS[self.data.tables[0].timeframe]
        pauses = {
            moment
            for table in self.data.tables
            for moment in table.available_at_ms[:-1][np.diff(table.opened_ms) > span_ms].tolist()
        }
        last_ms = int(windows.available_at_ms_R.max())
        moments = [int(begins.min())]
        for odd in (pauses, self._fills_ms):
            inside = sorted(moment for moment in odd if begins.min() <= moment < last_ms)
            moments += [int(chance.choice(inside))] if inside else []
        return moments

    def _compare(self, tables: list[FeatureTable], moment_ms: int) -> None:
        """Bit by bit, everything that was known by the moment."""
        self.num_compared["replaced"] += moment_ms < LAST_MS
        labelled = training_data.label(self.order, tables)
        moved = list(_moved_rows(self.data, tables, labelled, moment_ms))
        if moment_ms >= self.data.windows.borders_ms["validation"]:  # before: another training part
            windows = training_data.cut(self.order, labelled, kind_of=self.store.kind_of)
            moved += self._moved_windows(windows, labelled, moment_ms)
        for kind, what, at_ms in moved:
            self._note(kind, what, at_ms, moment_ms, "were replaced")

    def _compare_cut(self, moment_ms: int) -> None:
        """To rounding, columns, features and labels where the bars end at the moment."""
        try:
            if self.recomputing is not None:
                tables = self._fetched(self.recomputing.altered(lambda bars: cut_after(bars, moment_ms)))
            else:
                tables = training_data.fetch(self._known_by(moment_ms), self.store)
            rows = training_data.label(self.order, tables).rows
        except (DataValidationError, UpstreamError, UpstreamTimeoutError):
            return  # too little is left of a symbol, or the server answers no more: counted as not compared
        self.num_compared["cut"] += 1
        for table, true, short, cut in zip(self.data.tables, self.data.labelling.rows, tables, rows, strict=True):
            num = int((table.available_at_ms <= moment_ms).sum())
            if not np.array_equal(short.available_at_ms, table.available_at_ms[:num]):
                self._note("cut", f"the bars of {table.symbol}", None, moment_ms, "were cut off")
                continue
            pairs = {name: (table.columns[name], short.columns[name]) for name in table.columns}
            features = zip(self.order.derivation.features, true.x_NF.T, cut.x_NF.T, strict=True)
            pairs |= {name: (before, after) for name, before, after in features}
            pairs["the past volatility"] = (true.bar_volatility_N, cut.bar_volatility_N)
            for name, (before, after) in pairs.items():
                for row in np.flatnonzero(_far(before[:num], after))[:1]:
                    self._note(
                        "cut", f"{name} of {table.symbol}", table.available_at_ms[row], moment_ms, "were cut off"
                    )
            for column, target in enumerate(self.order.targets):
                before, after = true.labels_NK[:num, column], cut.labels_NK[:, column]
                is_known_N = np.arange(num) + target.reach < num
                early_N = np.where(is_known_N, _far(before, after), np.isfinite(after))
                for row in np.flatnonzero(early_N)[:1]:
                    what = f"the label {target.name} of {table.symbol}"
                    self._note("labels", what, table.available_at_ms[row], moment_ms, "were cut off")

    def _moved_windows(
        self, again: Windows, labelled: Labelling, moment_ms: int
    ) -> Iterator[tuple[str, str, int | None]]:
        """What `windows.build` made of rows known by the moment."""
        true = self.data.windows
        if true.borders_ms != again.borders_ms or len(true.rows_RF) != len(again.rows_RF):
            yield "scaling", "a border between the parts", None
            return
        if true.scaler.to_json() != again.scaler.to_json():
            yield "scaling", "the scaler", None
        if self.data.labelling.regimes != labelled.regimes:
            yield "scaling", "the regimes' rule", None
        if self.data.labelling.profiles != labelled.profiles:
            yield "scaling", "the volatility's seasonal profile", None
        if not _same_weights(true, again, moment_ms):
            yield "labels", "the weights of the windows that are learnt from", None
        labelled_R = true.label_available_at_ms_R <= moment_ms
        for part in PARTS:
            ends, others = true.parts[part], again.parts[part]
            if not np.array_equal(ends[labelled_R[ends]], others[labelled_R[others]]):
                yield "scaling", f"the windows of the part {part}", None
        known_R = true.available_at_ms_R <= moment_ms
        for name, before, after, rows_R in (
            ("the scaled rows", true.rows_RF, again.rows_RF, known_R),
            ("the past volatility of the windows", true.bar_volatility_R, again.bar_volatility_R, known_R),
            ("the prices of the windows", true.close_R, again.close_R, known_R),
            ("the scaled labels", true.labels_RK, again.labels_RK, labelled_R),
            ("the labels of the windows", true.own_labels_RK, again.own_labels_RK, labelled_R),
        ):
            for row in np.flatnonzero(rows_R & _differ(before, after))[:1]:
                yield "labels" if "labels" in name else "scaling", name, int(true.available_at_ms_R[row])

    def _note(self, kind: str, what: str, at_ms: int | None, moment_ms: int, how: str) -> None:
        when = "" if at_ms is None else f" at {iso_of_ms(int(at_ms))}"
        cause = "the same bars were read again" if moment_ms == LAST_MS else f"bars after {iso_of_ms(moment_ms)} {how}"
        self.moved.setdefault(kind, f"{what} moved{when} when {cause}")


def _moved_rows(
    true: TrainingData, tables: list[FeatureTable], labelled: Labelling, moment_ms: int
) -> Iterator[tuple[str, str, int | None]]:
    """Kind, name and moment of each column, feature or label that is another before the moment."""
    for table, rows, table_again, again in zip(true.tables, true.labelling.rows, tables, labelled.rows, strict=True):
        if not np.array_equal(table.available_at_ms, table_again.available_at_ms):
            yield "features", f"the times of {table.symbol}'s bars", None
            continue
        known_N = table.available_at_ms <= moment_ms
        pairs = {name: (table.columns[name], table_again.columns[name]) for name in table.columns}
        names = true.windows.features
        pairs |= {name: (rows.x_NF[:, f], again.x_NF[:, f]) for f, name in enumerate(names)}
        pairs["the past volatility"] = (rows.bar_volatility_N, again.bar_volatility_N)
        pairs["the spread"] = (rows.spread_N, again.spread_N)
        for name, (before, after) in pairs.items():
            for row in np.flatnonzero(known_N & _differ(before, after))[:1]:
                yield "features", f"{name} of {table.symbol}", int(table.available_at_ms[row])
        labelled_N = (rows.label_available_at_ms_N <= moment_ms) | (again.label_available_at_ms_N <= moment_ms)
        for row in np.flatnonzero(known_N & labelled_N & _differ(rows.labels_NK, again.labels_NK))[:1]:
            yield "labels", f"a label of {table.symbol}", int(table.available_at_ms[row])


def _same_weights(true: Windows, again: Windows, moment_ms: int) -> bool:
    """Whether windows of the learnt parts that were over by the moment still count as much."""
    if true.uniqueness_R is None or again.uniqueness_R is None:
        return true.uniqueness_R is again.uniqueness_R
    over: list[Part] = [part for part, border in AFTER_LEARNT.items() if moment_ms >= true.borders_ms[border]]
    return all(
        np.array_equal(true.uniqueness_R[true.parts[part]], again.uniqueness_R[again.parts[part]]) for part in over
    )


def _differ(before: Array, after: Array) -> Bools:
    """(N,) rows that are not the same to the last bit; missing equals missing."""
    other = (before != after) & ~((before != before) & (after != after))
    return np.asarray(reduce(np.logical_or, other.T, np.zeros(len(other), dtype=bool)) if other.ndim == 2 else other)


def _far(before: NDArray[np.float64], after: NDArray[np.float64]) -> Bools:
    """(N,) rows that are not the same to rounding."""
    known = np.isfinite(before) & np.isfinite(after)
    spread = float(before[known].std()) if known.any() else 0.0
    with np.errstate(invalid="ignore"):
        near = np.abs(before - after) <= ROUNDING * (np.abs(before) + spread)
    return np.asarray(~((known & near) | (np.isnan(before) & np.isnan(after))))
