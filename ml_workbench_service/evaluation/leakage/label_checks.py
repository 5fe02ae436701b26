"""Label look-ahead: which bars a label is about, those up to its horizon and no others; and that no part reaches over.

Nothing is read from the label's name but its horizon. The closes after some rows are lifted, and their labels must
move; then every close but a row's own and those after it up to the horizon is replaced, and their labels must stay. So
a label that is shifted by a bar is found in either direction: part of it is the past, which the features know, or it
ends later than it says, and reaches over a border.

Barriers are measured in past volatility, so for them moves change their signs and keep their squares. A market regime
looks back by its definition: of it only the first half is asked, at rows so far apart that no other row's lift is seen.

Legend: N bars of one symbol, R rows of all symbols, K targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.evaluation import CertificateCheck
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.evaluation.leakage.perturbations import lifted, mirrored, wild_elsewhere
from ml_workbench_service.learning.data.windows import PARTS
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.market.regimes import TREND_BARS
from ml_workbench_service.market.targets import EWMA_BARS

KindOf = Callable[[str], FeatureKind]

ROUNDING = 1e-9
NUM_SAMPLES = 2
"""Sets of rows whose labels do not overlap; a label of a class moves only at some of them."""
FEWEST_REGIMES = 24
"""A lifted regime is another one in two cases of three or more: that none of so many moves is no accident."""
MOST_SAMPLES = 12
REGIME_MEMORY = EWMA_BARS + TREND_BARS
MOVES_WITH_ITS_BARS = {"number": 0.99, "class": 0.1}
"""Share of labels that moves at least, once their bars are lifted by a multiple of the price. A number always does; a
class where it was another one."""
MOVES_WITH_OTHERS = 0.005
"""Share that may move by rounding where a class lies exactly on its border."""


def checks(order: TrainingOrder, data: TrainingData, kind_of: KindOf, *, seed: int) -> list[CertificateCheck]:
    """`labels_own_bars`, where there are labels: one sentence about how they moved."""
    if not order.targets:
        return []
    samples = [_apart(data, offset * (order.horizon // 2 + 1), order.horizon) for offset in range(NUM_SAMPLES)]
    failures: list[str] = []
    for number, target in enumerate(order.targets):
        support = _Support(order, data, kind_of, number, target)
        if target.measure == "market_regime":
            failures += support.idle(_far_apart(data, order.horizon + REGIME_MEMORY))
        else:
            failures += support.idle(samples[:1]) or support.foreign(samples, seed=seed)
    num = sum(map(len, samples))
    detail = (
        "; ".join(failures) or f"{num} labels moved with the bars after their rows up to the horizon, and no others"
    )
    return [CertificateCheck(name="labels_own_bars", status="failed" if failures else "passed", detail=detail)]


def _apart(data: TrainingData, first: int, between: int, *, after_ms: int = -1) -> Ints:
    """Rows of windows, of each symbol from its `first` on, with more than `between` bars between them."""
    windows, begin, found = data.windows, 0, []
    ends = np.sort(np.concatenate([windows.parts[part] for part in PARTS]))
    ends = ends[windows.available_at_ms_R[ends] > after_ms]
    for table in data.tables:
        own = ends[(ends >= begin) & (ends < begin + len(table))]
        step = between + 2 + max(1, between // 4)
        rows, nexts = own.tolist(), np.searchsorted(own, own + step).tolist()
        at = int(np.searchsorted(own, own[:1] + first)[0]) if rows else 0
        while at < len(rows):
            found.append(rows[at])
            at = nexts[at]
        begin += len(table)
    return np.array(found, dtype=np.int64)


def _far_apart(data: TrainingData, between: int) -> list[Ints]:
    """Several such sets after the training part, whose rule has to stay, until there are rows enough to tell."""
    step, border_ms = between // MOST_SAMPLES + 1, data.windows.borders_ms["validation"]
    samples: list[Ints] = []
    while len(samples) < MOST_SAMPLES and sum(map(len, samples)) < FEWEST_REGIMES:
        samples.append(_apart(data, len(samples) * step, between, after_ms=border_ms))
    return samples


@dataclass(frozen=True)
class _Support:
    """One target's labels over other closes."""

    order: TrainingOrder
    data: TrainingData
    kind_of: KindOf
    number: int
    target: Target

    def idle(self, samples: Sequence[Ints]) -> list[str]:
        """A sentence if the labels do not move with their own bars."""
        moved, befores = 0, []
        for rows_R in samples:
            after_R = self._labels([self._own(table, rows) for table, rows in self._by_table(rows_R)])
            befores.append(self.data.windows.own_labels_RK[rows_R, self.number])
            moved += int(np.sum(after_R[rows_R] != befores[-1]))
        before = np.concatenate(befores)
        if not len(before) or (self.target.classes and len(np.unique(before)) == 1):
            return []  # one class throughout: nothing can be told of it
        least = MOVES_WITH_ITS_BARS["class" if self.target.classes else "number"] * len(before)
        if moved >= (1 if self.target.measure == "triple_barrier" else least):
            return []
        return [f"{moved} of {len(before)} labels {self.target.name} moved with the bars that they are about"]

    def foreign(self, samples: Sequence[Ints], *, seed: int) -> list[str]:
        """A sentence if labels move with bars that they are not about."""
        moved, num, first = 0, 0, None
        for number, rows_R in enumerate(samples):
            after_R = self._labels(
                [self._elsewhere(table, rows, seed + number) for table, rows in self._by_table(rows_R)]
            )
            before, after = self.data.windows.own_labels_RK[rows_R, self.number], after_R[rows_R]
            far = ~(np.abs(after - before) <= ROUNDING * (np.abs(before) + np.abs(before).mean()))
            moved, num = moved + int(far.sum()), num + len(far)
            first = int(rows_R[int(np.argmax(far))]) if far.any() and first is None else first
        if first is None or moved <= MOVES_WITH_OTHERS * num:
            return []
        at = iso_of_ms(int(self.data.windows.available_at_ms_R[first]))
        name = self.target.name
        return [f"{moved} of {num} labels {name} moved with bars that they are not about, the first at {at}"]

    def _own(self, table: FeatureTable, rows: Ints) -> Floats:
        close_N = np.asarray(table.columns["close"])
        if self.target.measure == "triple_barrier":
            return mirrored(close_N, rows + self.target.delay, self.target.horizon, elsewhere=False)
        return lifted(close_N, rows + self.target.delay, self.target.horizon)

    def _elsewhere(self, table: FeatureTable, rows: Ints, seed: int) -> Floats:
        close_N = np.asarray(table.columns["close"])
        if self.target.measure == "triple_barrier":
            return mirrored(close_N, rows + self.target.delay, self.target.horizon, elsewhere=True)
        if self.target.classes:  # its break-even cost is measured at the row's own price
            return wild_elsewhere(close_N, rows, self.target.reach, seed=seed)
        return wild_elsewhere(close_N, rows + self.target.delay, self.target.horizon, seed=seed)

    def _by_table(self, rows_R: Ints) -> list[tuple[FeatureTable, Ints]]:
        begin, found = 0, []
        for table in self.data.tables:
            found.append((table, rows_R[(rows_R >= begin) & (rows_R < begin + len(table))] - begin))
            begin += len(table)
        return found

    def _labels(self, closes: Sequence[Floats]) -> Floats:
        """(R,) this target's labels where the closes are these."""
        tables = [
            replace(table, columns={**table.columns, "close": close_N})
            for table, close_N in zip(self.data.tables, closes, strict=True)
        ]
        # a primary's sides are told by bars before the row, which are others here
        held = replace(self.order, sides=self.data.labelling.sides)
        labels_R: Floats = training_data.assemble(held, tables, kind_of=self.kind_of).windows.own_labels_RK[
            :, self.number
        ]
        return labels_R


def purged_borders(order: TrainingOrder, data: TrainingData) -> CertificateCheck:
    """`purged_borders`: every part's windows and labels lie between its borders, counted in bars, and in no other part.

    The bar that a label ends with is counted from its row; what the windows say about themselves is not asked.
    """
    windows = data.windows
    ahead = max((target.reach for target in order.targets), default=0)
    symbol_known = [table.available_at_ms for table in data.tables]
    known_R = np.concatenate(symbol_known)
    label_known_R = np.concatenate(
        [np.append(known[ahead:], np.full(min(ahead, len(known)), -1)) for known in symbol_known]
    )
    borders = [-1, *(windows.borders_ms[part] for part in PARTS[1:]), np.iinfo(np.int64).max]
    failures = []
    if borders != sorted(borders):
        failures.append("the borders do not follow one another")
    for number, part in enumerate(PARTS):
        ends = windows.parts[part]
        early, late = known_R[ends] <= borders[number], label_known_R[ends] > borders[number + 1]
        if early.any():
            failures.append(f"{int(early.sum())} windows of the part {part} were known before it began")
        if late.any():
            failures.append(f"{int(late.sum())} windows of the part {part} have a label that is known after it ended")
        if (label_known_R[ends] < known_R[ends]).any():
            failures.append(f"windows of the part {part} end where the bars do, so that they have no label")
    ends = np.concatenate([windows.parts[part] for part in PARTS])
    if len(np.unique(ends)) < len(ends):
        failures.append(f"{len(ends) - len(np.unique(ends))} windows stand in more than one part")
    detail = "; ".join(failures) or f"no label of {len(ends)} windows reaches over a border, and no row is in two parts"
    return CertificateCheck(name="purged_borders", status="failed" if failures else "passed", detail=detail)
