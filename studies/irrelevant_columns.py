"""Planted columns: importance finds the column that carries a forecast, and sees noise in those that carry nothing.

`linear` learns from a column that knows something and from two that know nothing: one new in every bar, one that lasts
for days. The importance is measured on the test part of each series as a job measures it. A column that knows nothing
lies inside noise where the 95 % interval of what it adds to the loss holds zero.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from ml_workbench_service.contracts.importance import ColumnImportance
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation.importance import judged_windows, permutation_importance
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.serving.model import load_model
from studies.fits import bench_on, train_once, training_request
from studies.series import injected_series
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

R2 = 0.01
NUM_BARS = 6_000
NUM_SERIES = 100
NUM_REPEATS = 10
LOOKBACK = 8
LASTS = 0.98
"""Autocorrelation of the column that lasts, bar by bar."""
IRRELEVANT = {"white": "nothing, new in every bar", "lasting": "nothing, for days"}
FEATURES = ["signal", *IRRELEVANT]
TAIL = 0.025
MOST_OUTSIDE = 0.05
LEAST_FIRST = 0.8


@dataclass(frozen=True)
class ColumnsCase:
    """One series to train on."""

    number: int
    seed: int
    num_bars: int


def find(case: ColumnsCase) -> list[ColumnImportance]:
    """Trains on one series, and measures every column on the test part."""
    series = injected_series(case.num_bars, seed=case.seed, number=case.number, r2=R2)
    chance = np.random.default_rng([case.seed, case.number, 3])
    white, lasting = chance.standard_normal(case.num_bars), _lasting(chance, case.num_bars)
    with bench_on(lambda folder: series.write(folder, {"white": white, "lasting": lasting})) as workbench:
        card = train_once(
            workbench, training_request("Planted", FEATURES, hyperparameters={"lookback": LOOKBACK, "epochs": 30})
        )
        folder = workbench.registry.folder(card.id, card.version)
        windows = judged_windows(load_model(folder, card), workbench.feature_store, folder / EVALUATION_FILE, "test")
        found, _ = permutation_importance(
            windows, num_repeats=NUM_REPEATS, seed=case.number, progress=lambda step, total: None
        )
    return list(found)


def tables(run: Run) -> list[Table]:
    """One table: a row a column."""
    num = run.size(NUM_SERIES, quick=2)
    num_bars = run.size(NUM_BARS, quick=4_000)
    made = in_workers(
        find,
        [ColumnsCase(number, run.seed, num_bars) for number in range(num)],
        progress=run.progress("planted columns"),
        num_workers=run.num_workers,
    )
    by_name = {name: [next(each for each in found if each.name == name) for found in made] for name in FEATURES}
    firsts = [found[0].name for found in made]
    goals = [Goal("planted columns: share in which the signal comes first", firsts.count("signal") / num, LEAST_FIRST)]
    for name in IRRELEVANT:
        outside = sum(map(_is_outside, by_name[name]))
        least = float(binomtest(outside, num).proportion_ci(method="exact").low)
        what = f"planted columns: `{name}` outside noise, least it can be"
        goals.append(Goal(what, least, MOST_OUTSIDE, at_most=True))
    caption = (
        f"{num} series of {num_bars:,} hourly bars, `linear`, lookback {LOOKBACK}, `validation_split` 0.4, "
        f"{NUM_REPEATS} permutations in blocks of lookback and horizon on the test part. `signal` explains {R2:.0%} of "
        f"the next return's variance; `lasting` keeps {LASTS:.0%} of itself from bar to bar. *Outside*: the two-sided "
        "95 % interval of the added loss leaves zero out; *important*: p after all columns is 0.025 or less."
    )
    columns = [
        "column", "knows", "outside noise", "exact 95 % interval", "important", "comes first", "share of loss, median",
    ]  # fmt: skip
    rows = [_row(name, by_name[name], firsts) for name in FEATURES]
    return [Table("irrelevant_columns", "Importance of planted columns", caption, columns, rows, goals)]


def _row(name: str, found: list[ColumnImportance], firsts: list[str]) -> list[str]:
    outside = [_is_outside(each) for each in found]
    return [
        f"`{name}`",
        IRRELEVANT.get(name, f"{R2:.0%} of the next return"),
        of_all(outside),
        share(outside),
        of_all([_is_important(each) for each in found]),
        of_all([first == name for first in firsts]),
        f"{100 * float(np.median([each.share_of_loss or 0.0 for each in found])):.3f} %",
    ]


def _is_outside(found: ColumnImportance) -> bool:
    """What is not known lies outside nothing."""
    p_value = found.loss_added.p_value
    return p_value is not None and not TAIL < p_value < 1 - TAIL


def _is_important(found: ColumnImportance) -> bool:
    return found.adjusted_p_value is not None and found.adjusted_p_value <= TAIL


def _lasting(chance: np.random.Generator, num: int) -> Floats:
    """(N,) a standard normal column that forgets slowly."""
    values = chance.standard_normal(num)
    for row in range(1, num):
        values[row] = LASTS * values[row - 1] + np.sqrt(1 - LASTS**2) * values[row]
    return values
