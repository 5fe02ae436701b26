"""Feature selection by mRMR: what tells something about the target, each thing once, beyond chance, and stably.

1. **Score.** A candidate's information with the target on held-out folds of time, learnt on the other folds less the
   rows whose labels reach into the held-out one and an embargo after it (López de Prado, 2018, chapter 7).
2. **Chance.** The target is shuffled in blocks of time, all symbols together, which keeps its own dependence and cuts
   that on the columns; the best score of all candidates, each time, is what luck reaches (Westfall and Young, 1993).
   A candidate counts only above the 97.5 % quantile of those.
3. **Stability.** Blocks are drawn with replacement and the choice is made again; what half of the samples do not
   choose, itself or a near copy, is left out (Meinshausen and Bühlmann, 2010, "Stability selection").
4. **Redundancy.** One after the other, the candidate with the most information over what it shares with those chosen
   (the quotient of Ding and Peng, 2005; Peng, Long and Ding, 2005: mRMR); a near copy of a chosen one never.

It fails where features tell something only together, and where the dependence is finer than the bins. Nothing after
`end_ms` is looked at: rows are cut by when they and their labels are known, before anything is computed.

Legend: R rows of all symbols, C candidates, S bootstrap samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.feature_sets import FeatureExpression, RejectedCandidate, Rejection
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Bools, Floats
from ml_workbench_service.learning.feature_search.mutual_information import COLUMN_BINS, Bins, ranked, shared
from ml_workbench_service.learning.feature_search.scores import LabelledRows, SelectionRows, labelled, resampled, scored
from ml_workbench_service.market.features.expressions.evaluation import evaluate
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.features.expressions.units import KindOf, kind

CHANCE_QUANTILE = 0.975
"""As strict as the verdicts on skill: one search in 40 over pure noise lets something through."""
LEAST_STABILITY = 0.5
STABLE_AMONG = 12
"""A sample chooses at least so many, so that a small set does not make its runners-up look unstable."""
NEAR_COPY = 0.5
"""Share of information in common from which two columns are one; normal columns reach it at a correlation of 0.95."""
REDUNDANCY_FLOOR = 0.25
"""Added to the mean share in common: without it a column that tells next to nothing wins by sharing nothing."""
FEWEST_KNOWN = 0.5
"""Share of the rows in which a candidate must have a value."""
NUM_BEST_OF_NOISE = 3
NUM_REJECTED = 40
NO_BETTER_THAN_CHANCE = "no feature beats chance"
_EVALUATED_TOGETHER = 32


@dataclass(frozen=True)
class Chosen:
    """A selected expression and the figures that selected it."""

    expression: Expression
    score: float
    score_by_fold: tuple[float, ...]
    stability: float


@dataclass(frozen=True)
class Selection:
    """The outcome: what was chosen, in mRMR's order, and why the best of the others were not."""

    chosen: tuple[Chosen, ...]
    rejected: tuple[RejectedCandidate, ...]  # best score first
    chance_level: float
    num_candidates: int
    num_rows: int
    start_ms: int  # when the first row was known
    end_ms: int  # when the last label was known
    warnings: tuple[str, ...]

    def features(self, kind_of: KindOf) -> tuple[FeatureExpression, ...]:
        """The chosen ones as a feature set lists them; `kind_of` answers for base columns."""
        return tuple(
            FeatureExpression(
                name=each.expression.name,
                expression=each.expression.text,
                kind=kind(each.expression, kind_of),
                score=each.score,
                score_by_fold=each.score_by_fold,
                stability=each.stability,
            )
            for each in self.chosen
        )


@dataclass(frozen=True)
class SelectionSettings:
    """What kind of target it is, how much is tried and how much is kept.

    Attributes:
        is_move: whether the target is a price move; then what tells only how large it is does not count.
        num_classes: of the target; 0 where it is a number.
        max_features: most to choose.
        num_shuffles: of the target, for the chance level.
        num_samples: of the block bootstrap, for the stability.
    """

    is_move: bool
    num_classes: int = 0
    max_features: int = 12
    num_shuffles: int = 100
    num_samples: int = 50


def select(
    candidates: Sequence[Expression],
    tables: Sequence[SelectionRows],
    settings: SelectionSettings,
    *,
    end_ms: int,
    seed: int,
    report: Report,
) -> Selection:
    """The expressions that tell something about the target, at most `max_features`; the best few if none does.

    Args:
        candidates: different expressions, such as `learning.feature_search.candidates` makes.
        tables: one for each symbol, all with the same base columns.
        end_ms: the training part's border; only labels known by then are used.
        seed: of shuffles and samples.
        report: hears of steps, and cancels.

    Raises:
        DataValidationError: too few rows, no candidate with values, or a base column that was not fetched.
        JobCancelled: somebody asked for it.
    """
    tables = [table.until(end_ms) for table in tables]
    rows = labelled(tables, num_classes=settings.num_classes, is_move=settings.is_move)
    report.say("evaluating candidates")
    columns_CR = _columns(candidates, tables, report)
    usable = [_varies(column_R) for column_R in columns_CR]
    if not any(usable):
        raise DataValidationError.at(
            "body.start_date", "no candidate has values in half of the training part; ask for a longer range"
        )
    columns_CR, chance = columns_CR[usable], np.random.default_rng(seed)
    report.say("scoring candidates")
    scores = scored(columns_CR, rows, chance=chance, num_shuffles=settings.num_shuffles, report=report)
    report.say("resampling")
    samples_SC = resampled(columns_CR, rows, chance=chance, num_samples=settings.num_samples, report=report)
    shared_CC = shared(columns_CR, num_bins=COLUMN_BINS)
    judged = _Judged(
        list(compress(candidates, usable)),
        [each for each, is_usable in zip(candidates, usable, strict=True) if not is_usable],
        scores.by_fold_CK,
        _chance_level(scores.best_by_chance_S),
        _stability(samples_SC, shared_CC, max(settings.max_features, STABLE_AMONG)),
        shared_CC,
    )
    return judged.selection(rows, settings.max_features)


def mrmr(relevance_C: Floats, shared_CC: Floats, *, eligible_C: Bools, most: int) -> list[int]:
    """Positions in the order of choice: each time the most relevance over what is shared with those chosen before.

    Near copies of a chosen one are passed over. Stops when nothing eligible with positive relevance is left.
    """
    open_C = eligible_C & (relevance_C > 0)
    chosen: list[int] = []
    total_C = np.zeros(len(relevance_C))
    while open_C.any() and len(chosen) < most:
        quotient_C = relevance_C / (REDUNDANCY_FLOOR + total_C / max(len(chosen), 1))
        best = int(np.argmax(np.where(open_C, quotient_C, -np.inf)))
        chosen.append(best)
        total_C = total_C + shared_CC[best]
        open_C = open_C & (shared_CC[best] < NEAR_COPY)
        open_C[best] = False
    return chosen


@dataclass(frozen=True)
class _Judged:
    """Usable candidates with all that is known of them."""

    candidates: list[Expression]
    unusable: list[Expression]
    by_fold_CK: Floats
    chance_level: float
    stability_C: Floats
    shared_CC: Floats

    @property
    def score_C(self) -> Floats:
        return np.asarray(self.by_fold_CK.mean(axis=1))

    @property
    def is_fit_C(self) -> Bools:
        return np.asarray((self.score_C > self.chance_level) & (self.stability_C >= LEAST_STABILITY))

    def selection(self, rows: LabelledRows, most: int) -> Selection:
        """The outcome: what is fit, or the best few of noise with a warning."""
        order = mrmr(self.score_C, self.shared_CC, eligible_C=self.is_fit_C, most=most)
        chosen = order or self.best_of_noise()
        empty = [RejectedCandidate(expression=each.text, reason="constant") for each in self.unusable]
        return Selection(
            chosen=tuple(self.chosen(c) for c in chosen),
            rejected=tuple([*self.rejected(chosen), *empty][:NUM_REJECTED]),
            chance_level=self.chance_level,
            num_candidates=len(self.candidates) + len(self.unusable),
            num_rows=len(rows.target_R),
            start_ms=int(rows.available_at_ms_R.min()),
            end_ms=int(rows.label_available_at_ms_R.max()),
            warnings=() if order else (NO_BETTER_THAN_CHANCE,),
        )

    def best_of_noise(self) -> list[int]:
        """The few best scores without near copies, where nothing beats chance."""
        positive_C = self.score_C - self.score_C.min() + 1e-12
        return mrmr(positive_C, self.shared_CC, eligible_C=positive_C > 0, most=NUM_BEST_OF_NOISE)

    def chosen(self, c: int) -> Chosen:
        """Candidate `c` with its figures."""
        by_fold = tuple(float(each) for each in self.by_fold_CK[c])
        return Chosen(self.candidates[c], float(self.score_C[c]), by_fold, float(self.stability_C[c]))

    def rejected(self, chosen: Sequence[int]) -> list[RejectedCandidate]:
        """The others, the best score first."""
        others = [int(c) for c in np.argsort(-self.score_C, kind="stable") if c not in chosen]
        return [self._rejected(c, chosen) for c in others[:NUM_REJECTED]]

    def _rejected(self, c: int, chosen: Sequence[int]) -> RejectedCandidate:
        nearest = max(chosen, key=lambda other: float(self.shared_CC[c, other]))
        is_copy = bool(self.shared_CC[c, nearest] >= NEAR_COPY)
        return RejectedCandidate(
            expression=self.candidates[c].text,
            reason=self._reason(c, is_copy=is_copy),
            score=float(self.score_C[c]),
            stability=float(self.stability_C[c]),
            near_copy_of=self.candidates[nearest].text if is_copy else None,
            shared=float(self.shared_CC[c, nearest]) if is_copy else None,
        )

    def _reason(self, c: int, *, is_copy: bool) -> Rejection:
        if self.score_C[c] <= self.chance_level:
            return "below_chance"
        if self.stability_C[c] < LEAST_STABILITY:
            return "unstable"
        return "near_copy" if is_copy else "not_needed"


def _columns(candidates: Sequence[Expression], tables: Sequence[SelectionRows], report: Report) -> Bins:
    """(C, R) bins of each candidate's rank within its symbol, over the rows with a label."""
    chunks = []
    for start in range(0, len(candidates), _EVALUATED_TOGETHER):
        some = candidates[start : start + _EVALUATED_TOGETHER]
        parts = []
        for table in tables:
            report.check()
            values = evaluate(some, table.columns, opened_ms=table.opened_ms, runs=table.runs)
            keep = np.isfinite(table.labels)
            parts.append(np.stack([ranked(values[each.text][keep], COLUMN_BINS) for each in some]))
        chunks.append(np.concatenate(parts, axis=1))
    return np.concatenate(chunks)


def _chance_level(best_S: Floats) -> float:
    """What luck exceeds once in 40 times, counting the search itself as one of the draws; never below zero."""
    rank = min(int(np.ceil(CHANCE_QUANTILE * (len(best_S) + 1))), len(best_S))
    return max(float(np.sort(best_S)[rank - 1]), 0.0)


def _varies(column_R: Bins) -> bool:
    """Whether enough rows have a value, and not all the same one."""
    counts = np.bincount(column_R, minlength=COLUMN_BINS + 1)
    return bool(counts[COLUMN_BINS] <= (1 - FEWEST_KNOWN) * len(column_R) and (counts[:COLUMN_BINS] > 0).sum() > 1)


def _stability(samples_SC: Floats, shared_CC: Floats, most: int) -> Floats:
    """(C,) share of the samples in which mRMR chooses a candidate or a near copy of it."""
    everything = np.ones(samples_SC.shape[1], dtype=bool)
    found = np.zeros(samples_SC.shape[1])
    for relevance_C in samples_SC:
        chosen = mrmr(relevance_C, shared_CC, eligible_C=everything, most=most)
        if chosen:
            found += np.asarray((shared_CC[chosen] >= NEAR_COPY).any(axis=0))
    return np.asarray(found / len(samples_SC))
