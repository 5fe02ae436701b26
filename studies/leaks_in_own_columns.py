"""Leaks in own columns: none may go live as proven skill, whatever it tells and whatever its file claims.

Every column is drawn (`leaking_columns`): what the future tells, times how a user would bring it. Each stands in the
bars of a series of its own beside three indicators, and is trained, certified and judged by the service's own workflow.
No detector can find them all: a forecast under ten deviations of noise looks like a small honest signal. What must hold
is that none of them gets `skill` with `proof: recomputed` or `witnessed`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ml_workbench_service.contracts.models import ModelCard
from studies.clean_pipelines import INDICATORS
from studies.fits import bench_on, train_once, training_request
from studies.leaking_columns import LeakingColumn, Market, drawn
from studies.series import Series, null_series
from studies.tables import Goal, Run, Table, of_all
from studies.workers import in_workers

NUM_COLUMNS, NUM_QUICK = 48, 3
NUM_BARS = 9_000
SETTINGS = {"lookback": 6, "epochs": 10, "batch_size": 512, "learning_rate": 0.005}
PASSING = ("recomputed", "witnessed")
COLUMN = "own"


@dataclass(frozen=True)
class Case:
    """The column of this number."""

    number: int
    seed: int
    num_columns: int = NUM_COLUMNS
    num_bars: int = NUM_BARS


@dataclass(frozen=True)
class Found:
    """What became of it."""

    name: str
    is_declared: bool
    failed: tuple[str, ...]
    verdict: str
    proof: str | None
    p_value: float | None

    @property
    def passes(self) -> bool:
        """Whether `SKILL_GATE=enforce` would let it go live, with nobody naming anything."""
        return self.verdict == "skill" and self.proof in PASSING


def column_of(case: Case) -> tuple[Series, LeakingColumn]:
    """Its series and its values: all cases of a seed draw the same kinds, each over bars of its own."""
    series = null_series(case.num_bars, seed=case.seed, number=4000 + case.number)
    prices = series.prices
    chance = np.random.default_rng([case.seed, 11])
    market = Market(series.close, prices["high"], prices["low"], series.opened_ms, chance)
    return series, drawn(market, case.num_columns, only=case.number)


def judged(case: Case) -> Found:
    """Trains on it through the workflow and reads the card."""
    series, column = column_of(case)
    write = partial(series.write, more={COLUMN: column.values}, declares=column.is_declared)
    with bench_on(write) as workbench:
        body = training_request("Leak", [COLUMN, *INDICATORS], hyperparameters=SETTINGS)
        return _read(column, train_once(workbench, body))


def _read(column: LeakingColumn, card: ModelCard) -> Found:
    certificate, evaluation = card.certificate, card.evaluation
    assert certificate is not None, "every training is certified"
    failed = tuple(check.name for check in certificate.checks if check.status == "failed")
    tested = evaluation.significance
    p_value = None if tested is None else tested.p_value
    return Found(column.name, column.is_declared, failed, evaluation.verdict, evaluation.proof, p_value)


def tables(run: Run) -> list[Table]:
    """One row a column."""
    numbers = range(run.size(NUM_COLUMNS, quick=NUM_QUICK))
    cases = [Case(number, run.seed) for number in numbers]
    found = in_workers(judged, cases, progress=run.progress("leaks in own columns"), num_workers=run.num_workers)
    return [_table(found)]


def _table(found: Sequence[Found]) -> Table:
    rows = [
        [
            each.name,
            "falsely" if each.is_declared else "no",
            ", ".join(f"`{name}`" for name in each.failed) or "-",
            "-" if each.p_value is None else f"{each.p_value:.3f}",
            f"`{each.verdict}`",
            f"`{each.proof}`" if each.proof else "-",
        ]
        for each in sorted(found, key=lambda each: each.name)
    ]
    verdicts = Counter(each.verdict if each.proof is None else f"{each.verdict} ({each.proof})" for each in found)
    counted = ", ".join(f"`{name}` {num}" for name, num in verdicts.most_common())
    caption = (
        f"{len(found)} columns that know the future, drawn at random; {of_all([each.is_declared for each in found])} "
        f"with false claims of `available_at`. Driftless series of {NUM_BARS:,} hourly bars, `linear`. Verdicts: "
        f"{counted}. {of_all([bool(each.failed) for each in found])} were found by a check; the others are kept from "
        "passing because nothing proves them. *p* is what the test of skill alone would have said."
    )
    goals = [
        Goal(
            "leaks with `skill` proven `recomputed` or `witnessed`", sum(each.passes for each in found), 0, at_most=True
        )
    ]
    headings = ["column", "declared", "found by", "p", "verdict", "proof"]
    return Table("leaks_in_own_columns", "Leaks in own columns", caption, headings, rows, goals)
