"""Weights by label uniqueness: what they change where labels overlap unevenly, and where evenly.

A slow column tells the mean of the next hours, and labels look a day ahead. Where every hour has a row, labels overlap
alike and weights can change nothing. Where rows are dense for a while and then rare, as columns that come with events
are, most rows tell of a few days again and again: a plain loss hears those days' luck.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.interfaces.dataset import problem_for
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from ml_workbench_service.training.publishing import weights_report
from ml_workbench_service.training.tasks.network_task import NetworkTask
from studies.memory import assembled, ordered
from studies.position_sizes import slow
from studies.series import DEVIATION, open_hours
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

HORIZON = 24
LOOKBACK = 3
NUM_BARS = 12_000
NUM_SERIES = 40
R2 = 0.05
"""Of the next day's move."""
PERSISTENCE = 0.98
DENSE = 0.12
"""Of the time every hour has a row; elsewhere one in `HORIZON`."""
EVEN, UNEVEN = "at every hour", "dense for an eighth of the time, then rare"
SCHEMES = ("none", "uniqueness")
ALPHA = 0.025


@dataclass(frozen=True)
class InjectedSeries:
    """One series."""

    rows: str
    r2: float
    number: int
    seed: int
    num_bars: int


@dataclass(frozen=True)
class Learnt:
    """What one scheme came to: how much of the known mean was learnt, and whether the test says skill."""

    recovery: float
    found: bool
    distinct: float
    num_train: int


def learn(series: InjectedSeries) -> dict[str, Learnt]:
    """Both schemes on one series."""
    chance = np.random.default_rng([series.seed, series.number, 21])
    num, signal = series.num_bars, slow(chance, series.num_bars, PERSISTENCE)
    ahead = sum(PERSISTENCE**step for step in range(HORIZON))
    # of a day's move: the mean's deviation is ahead * beta, the noise's root of HORIZON
    beta = np.sqrt(series.r2 * HORIZON) / ahead
    moves = DEVIATION * chance.standard_normal(num)
    moves[1:] += beta * DEVIATION * signal[:-1]
    close = 1.1 * np.cumprod(1 + moves)
    column = signal.copy()
    if series.rows == UNEVEN:
        place = np.arange(num)
        rare = (place > DENSE * num) & (place < 0.7 * num) & (place % HORIZON >= LOOKBACK)
        column[rare] = np.nan
    known = beta * DEVIATION * ahead * signal
    return {scheme: _learnt(scheme, open_hours(num), close, column, known) for scheme in SCHEMES}


def _learnt(scheme: str, opened_ms: np.ndarray, close: Floats, column: Floats, known: Floats) -> Learnt:
    order = ordered(
        ["signal"], target=f"price_change_{HORIZON}h", validation_split=0.4, sample_weights=scheme,
        hyperparameters={"lookback": LOOKBACK, "epochs": 20, "learning_rate": 0.01, "batch_size": 64, "patience": 6},
    )  # fmt: skip
    data = assembled(order, opened_ms, close, {"signal": column})
    task, problem, windows = order.task, problem_for(order, data), data.windows
    assert isinstance(task, NetworkTask)
    trained = order.family.train(problem, accelerator=OneThread(), report=Recorder())
    predict, ends = Predict(trained, None), windows.parts["test"]
    outputs_NK = predict.over(windows, ends)
    decoder = task.calibrate(trained, outputs_NK, ends, problem)
    tests = [
        each.comparison() for each in task.differentials(trained, decoder, outputs_NK, ends, problem, predict=predict)
    ]
    said = outputs_NK[:, 0] * windows.label_scale_RK[ends, 0]
    true, report = known[ends], weights_report(windows)
    size = float(np.mean(true**2))
    return Learnt(
        recovery=1 - float(np.mean((said - true) ** 2)) / size if size else 0.0,
        found=all((each.decisive.p_value or 1.0) <= ALPHA and (each.skill or 0.0) > 0 for each in tests),
        distinct=float(len(windows.parts["train"])) if report is None else report.distinct_labels,
        num_train=len(windows.parts["train"]),
    )


def tables(run: Run) -> list[Table]:
    """One table: both schemes on even and uneven rows, and on a column that tells nothing."""
    num, num_bars = run.size(NUM_SERIES, quick=2), run.size(NUM_BARS, quick=6_000)
    found = {
        (rows, r2): in_workers(
            learn,
            [InjectedSeries(rows, r2, number, run.seed, num_bars) for number in range(num)],
            progress=run.progress(f"uniqueness, rows {rows}, R² {r2:g}"),
            num_workers=run.num_workers,
        )
        for rows, r2 in ((EVEN, R2), (UNEVEN, R2), (UNEVEN, 0.0))
    }
    gains = {
        rows: float(np.median([each["uniqueness"].recovery - each["none"].recovery for each in found[rows, R2]]))
        for rows in (EVEN, UNEVEN)
    }
    false = float(np.mean([each["uniqueness"].found for each in found[UNEVEN, 0.0]]))
    return [
        Table(
            name="label_uniqueness",
            title="Weights by label uniqueness",
            caption=(
                f"{num} series each of {num_bars:,} hourly bars, `linear` on a slow column, `price_change_{HORIZON}h`, "
                f"`validation_split` 0.4. *Recovery* is 1 - E(ŷ - f)² / E f² over the test part, f the known "
                "conditional mean; *distinct labels* is the sum of the training rows' uniqueness."
            ),
            columns=(
                "training rows", "R²", "`sample_weights`", "training windows", "distinct labels",
                "recovery, median (quartiles)", "p at most 0.025", "exact 95 % interval",
            ),
            rows=[_row(*key, scheme, each) for key, each in found.items() for scheme in SCHEMES],
            goals=[
                Goal("uneven rows: recovery gained, median", gains[UNEVEN], 0.02),
                Goal("even rows: recovery moved, median", abs(gains[EVEN]), 0.02, at_most=True),
                Goal("nothing to tell: weighted trainings found", false, 0.05, at_most=True),
            ],
        )
    ]  # fmt: skip


def _row(rows: str, r2: float, scheme: str, found: list[dict[str, Learnt]]) -> tuple[str, ...]:
    own = [each[scheme] for each in found]
    low, middle, high = np.quantile([each.recovery for each in own], [0.25, 0.5, 0.75])
    tests = [each.found for each in own]
    return (
        rows, f"{100 * r2:g} %", f"`{scheme}`", f"{np.median([each.num_train for each in own]):,.0f}",
        "-" if scheme == "none" else f"{np.median([each.distinct for each in own]):,.0f}",
        f"{middle:.2f} ({low:.2f} to {high:.2f})" if r2 else "-", of_all(tests), share(tests),
    )  # fmt: skip
