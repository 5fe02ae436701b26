"""Held-out information of each column with the target, its permutation null, and both under a block bootstrap.

Three figures over the same rows, all by counting (`learning.feature_search.mutual_information`): held-out information
by fold, the best of all columns on targets shuffled in blocks of time, and in-sample information of block-bootstrap
samples.

Legend: N bars of a symbol, R rows of all symbols, C columns, K folds, B blocks, S shuffles or samples, T moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.feature_search.mutual_information import (
    COLUMN_BINS,
    MOVE_BINS,
    TARGET_BINS,
    Bins,
    Counter,
    bias,
    held_out_information,
    information,
    ranked,
)

NUM_FOLDS = 5
NUM_BLOCKS = 50
FEWEST_BLOCKS = 10
BLOCK_HORIZONS = 4
"""A block is at least this many label horizons long, so that few labels reach over its end."""
FEWEST_MOMENTS = 250
EMBARGO = 0.01
"""Of the moments, left out after a held-out fold (López de Prado, "Advances in Financial Machine Learning", 2018)."""
CHUNK = 16
"""Columns counted together: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class SelectionRows:
    """One symbol's base columns and labels, oldest first."""

    columns: Mapping[str, Floats]  # (N,) each
    opened_ms: Ints
    available_at_ms: Ints
    runs: Ints
    labels: Floats  # NaN where there is none; class numbers where the target has classes
    label_available_at_ms: Ints

    def until(self, end_ms: int) -> "SelectionRows":
        """The bars known by then, and of their labels those known by then."""
        num = int(np.searchsorted(self.available_at_ms, end_ms, side="right"))
        label_known = self.label_available_at_ms[:num]
        return SelectionRows(
            {name: column[:num] for name, column in self.columns.items()},
            self.opened_ms[:num],
            self.available_at_ms[:num],
            self.runs[:num],
            np.where(label_known <= end_ms, self.labels[:num], np.nan),
            label_known,
        )


@dataclass(frozen=True)
class LabelledRows:
    """The rows with a label, of all symbols on one time line, with folds of equal time and blocks."""

    target_R: Bins
    num_targets: int
    symbol_R: Ints
    available_at_ms_R: Ints
    label_available_at_ms_R: Ints
    moments_ms_T: Ints
    moment_R: Ints
    block: int  # moments

    @property
    def fold_R(self) -> Ints:
        """The fold that holds each row out."""
        return np.asarray(self.moment_R * NUM_FOLDS // len(self.moments_ms_T))

    @property
    def num_blocks(self) -> int:
        """Blocks of the time line, the last one perhaps shorter."""
        return -(-len(self.moments_ms_T) // self.block)

    def purged(self) -> tuple[Ints, Ints]:
        """Rows that a fold may not learn from beside its own, and that fold: labels that reach into it, and embargo."""
        rows, folds = [], []
        for fold in range(NUM_FOLDS):
            held_R = self.fold_R == fold
            first_ms = self.available_at_ms_R[held_R].min()
            last = int(np.searchsorted(self.moments_ms_T, self.label_available_at_ms_R[held_R].max()))
            last += round(EMBARGO * len(self.moments_ms_T))
            end_ms = self.moments_ms_T[last] if last < len(self.moments_ms_T) else np.iinfo(np.int64).max
            near = np.flatnonzero(
                ~held_R & (self.label_available_at_ms_R > first_ms) & (self.available_at_ms_R < end_ms)
            )
            rows.append(near)
            folds.append(np.full(len(near), fold))
        return np.concatenate(rows), np.concatenate(folds)

    def shuffled(self, chance: np.random.Generator) -> Bins:
        """The target with blocks of time in another order, from a random start; all symbols move together."""
        num = len(self.moments_ms_T)
        order = np.roll(np.arange(num), int(chance.integers(num)))
        blocks = [order[start : start + self.block] for start in range(0, num, self.block)]
        source_T = np.concatenate([blocks[number] for number in chance.permutation(len(blocks))])
        target_TS = np.full((num, int(self.symbol_R.max()) + 1), self.num_targets, dtype=np.uint8)
        target_TS[self.moment_R, self.symbol_R] = self.target_R
        return np.asarray(target_TS[source_T[self.moment_R], self.symbol_R])


def labelled(tables: Sequence[SelectionRows], *, num_classes: int, is_move: bool) -> LabelledRows:
    """The rows of all symbols that have a label: its class, the half of its values it lies in (moves), or the third.

    Raises:
        DataValidationError: too few for folds and blocks at this horizon.
    """
    kept = [np.isfinite(table.labels) for table in tables]
    labels = [table.labels[keep] for table, keep in zip(tables, kept, strict=True)]
    known = np.concatenate([table.available_at_ms[keep] for table, keep in zip(tables, kept, strict=True)])
    label_known = np.concatenate([table.label_available_at_ms[keep] for table, keep in zip(tables, kept, strict=True)])
    moments, moment_R = np.unique(known, return_inverse=True)
    horizon = int(np.median(np.searchsorted(moments, label_known) - moment_R)) if len(moments) else 1
    block = max(len(moments) // NUM_BLOCKS, BLOCK_HORIZONS * max(horizon, 1))
    needed = max(FEWEST_BLOCKS * block, FEWEST_MOMENTS)
    if len(moments) < needed:
        raise DataValidationError.at(
            "body.start_date",
            f"the training part has {len(moments)} labelled bars, and {needed} are needed to tell features from "
            "chance at this horizon; ask for a longer range or a shorter horizon",
            code="too_few_rows",
        )
    num_targets = num_classes or (MOVE_BINS if is_move else TARGET_BINS)
    targets = [each.astype(np.uint8) if num_classes else ranked(each, num_targets) for each in labels]
    return LabelledRows(
        target_R=np.concatenate(targets),
        num_targets=num_targets,
        symbol_R=np.repeat(np.arange(len(tables)), [len(each) for each in labels]),
        available_at_ms_R=known,
        label_available_at_ms_R=label_known,
        moments_ms_T=moments,
        moment_R=moment_R,
        block=block,
    )


@dataclass(frozen=True)
class Scores:
    """Held-out information of each column, and the best column's on each shuffled target; nats a row."""

    by_fold_CK: Floats
    best_by_chance_S: Floats


def scored(
    columns_CR: Bins, rows: LabelledRows, *, chance: np.random.Generator, num_shuffles: int, report: Report
) -> Scores:
    """Scores on the target and on its shuffles; reports a step a chunk of columns."""
    shuffles = [rows.shuffled(chance) for _ in range(num_shuffles)]
    purged, purged_from = rows.purged()
    by_fold, best = [], np.full(num_shuffles, -np.inf)
    starts = range(0, len(columns_CR), CHUNK)
    for step, start in enumerate(starts, 1):
        chunk_CR = columns_CR[start : start + CHUNK]
        held = _counter(chunk_CR, rows.fold_R, NUM_FOLDS, rows)
        barred = _counter(chunk_CR[:, purged], purged_from, NUM_FOLDS, rows)

        def on(target_R: Bins, held: Counter = held, barred: Counter = barred) -> Floats:
            counts = held.counts(target_R)
            learnt = counts.sum(axis=1, keepdims=True) - counts - barred.counts(target_R[purged])
            return held_out_information(counts, learnt)

        by_fold.append(on(rows.target_R))
        for number, target_R in enumerate(shuffles):
            report.check()
            best[number] = max(best[number], on(target_R).mean(axis=1).max())
        best_score = max(float(each.mean(axis=1).max()) for each in by_fold)
        report(step, len(starts), best_score=best_score)
    return Scores(np.concatenate(by_fold), best)


def resampled(
    columns_CR: Bins, rows: LabelledRows, *, chance: np.random.Generator, num_samples: int, report: Report
) -> Floats:
    """(S, C) information within samples of blocks drawn with replacement, less its bias.

    The bias counts twice: a sample repeats rows, so the noise of the rows comes on top of that of the draw.
    """
    weights_SB = chance.multinomial(rows.num_blocks, np.full(rows.num_blocks, 1 / rows.num_blocks), size=num_samples)
    block_R = rows.moment_R // rows.block
    found = []
    for start in range(0, len(columns_CR), CHUNK):
        report.check()
        counts_CBQP = _counter(columns_CR[start : start + CHUNK], block_R, rows.num_blocks, rows).counts(rows.target_R)
        samples_SCQP = np.einsum("sb,cbqp->scqp", weights_SB.astype(np.float64), counts_CBQP)
        found.append(information(samples_SCQP) - 2 * bias(samples_SCQP))
    return np.concatenate(found, axis=1)


def _counter(columns_CR: Bins, groups_R: Ints, num_groups: int, rows: LabelledRows) -> Counter:
    return Counter(columns_CR, groups_R, num_groups=num_groups, num_bins=COLUMN_BINS, num_targets=rows.num_targets)
