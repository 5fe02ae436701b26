"""Validation schemes on injected series: what one split, a walk forward and combinations say where the truth is known.

A column moves the next hour's mean all the time, only in the first half, only in the test part, or never. One split has
one answer, and knows nothing of the time before its test part. The tests are the verdict's own, against every baseline
without information; combinations make no test, so what stands here is how their paths are spread.

The second table plants a leak that has to be closed: on a market that nobody can forecast trees know by a column that
only grows in which days they are, and labels of twenty days tell the days beside a border what those inside hold.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_workbench_service.contracts.evaluation import CombinatorialReport, Comparison
from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.contracts.training import CrossValidation
from ml_workbench_service.learning.data.splits import Part, ScatteredParts
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder, problem_for
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from ml_workbench_service.training.combinatorial import combinatorial
from ml_workbench_service.training.tasks.network_task import NetworkTask
from ml_workbench_service.training.walk_forward import walk_forward
from studies.memory import assembled, kind_of, ordered
from studies.series import DEVIATION, FIRST_MS, null_series, open_hours
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

NUM_BARS = 8_000
R2 = 0.01
ALPHA = 0.025
WORLDS = {"never": 100, "all the time": 20, "in the first half only": 20, "in the test part only": 20}
"""When the column tells the next hour's mean, and how many series."""
NEVER, ALWAYS, EARLY, LATE = WORLDS
LEAK_BARS, LEAK_SERIES, LEAK_DAYS = 1_250, 24, 20
COMBINED = CrossValidation(scheme="combinatorial_purged", groups=6, test_groups=2)
WALK = CrossValidation(folds=5)
LEARNING = {"lookback": 3, "epochs": 12, "learning_rate": 0.01, "batch_size": 256, "patience": 4}
TREES = {
    "lookback": 3, "columns": "summary", "num_iterations": 60, "learning_rate": 0.03, "min_data_in_leaf": 5,
    "num_leaves": 31, "bagging_fraction": 1.0, "feature_fraction": 1.0, "lambda_l2": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class InjectedSeries:
    """One series."""

    world: str
    number: int
    seed: int
    num_bars: int


@dataclass(frozen=True)
class Answers:
    """What the three schemes said of one series; skills are against the random walk."""

    one_split: bool
    walked: bool
    skills: tuple[float, ...]
    sharpes: tuple[float, ...]
    one_sharpe: float


def validated(injected: InjectedSeries) -> Answers:
    """Every scheme on one series."""
    chance = np.random.default_rng([injected.seed, injected.number, 11])
    num, signal = injected.num_bars, chance.standard_normal(injected.num_bars)
    if injected.world == NEVER:
        series = null_series(num, seed=injected.seed, number=injected.number)
        opened_ms, close = series.opened_ms, series.close
    else:
        place = np.arange(num) / num
        alive = {ALWAYS: place >= 0, EARLY: place < 0.5, LATE: place >= 0.8}[injected.world]
        opened_ms, moves = open_hours(num), DEVIATION * chance.standard_normal(num)
        moves[1:] += np.sqrt(R2) * DEVIATION * (signal * alive)[:-1]
        close = 1.1 * np.cumprod(1 + moves)
    order = ordered(["signal"], target="price_change_1h", hyperparameters=LEARNING, validation_split=0.4)
    data = assembled(order, opened_ms, close, {"signal": signal})
    comparisons, sharpe = _one_split(order, data)
    means: dict[str, Any] = {"accelerator": OneThread(), "report": Recorder(), "kind_of": kind_of}
    walked = walk_forward(order, data, cv=WALK, **means)
    found = combinatorial(order, data, cv=COMBINED, **means)
    return Answers(
        one_split=_found(comparisons),
        walked=_found(walked.pooled),
        skills=_skills(found),
        sharpes=tuple(each.sharpe or 0.0 for each in found.paths),
        one_sharpe=sharpe,
    )


def _one_split(order: TrainingOrder, data: TrainingData) -> tuple[tuple[Comparison, ...], float]:
    task, problem, windows = order.task, problem_for(order, data), data.windows
    assert isinstance(task, NetworkTask)
    trained = order.family.train(problem, accelerator=OneThread(), report=Recorder())
    predict, ends = Predict(trained, None), windows.parts["calibration"]
    decoder = task.calibrate(trained, predict.over(windows, ends), ends, problem)
    ends = windows.parts["test"]
    outputs_NK = predict.over(windows, ends)
    found, differentials = task.measure(
        trained, decoder, outputs_NK, ends, problem, is_simulated=False, predict=predict
    )
    return tuple(map(Differentials.comparison, differentials)), (found.backtest and found.backtest.sharpe) or 0.0


def _found(comparisons: tuple[Comparison, ...]) -> bool:
    """Skill as the verdict asks for it, before further evaluations are counted."""
    return all((each.decisive.p_value or 1.0) <= ALPHA and (each.skill or 0.0) > 0 for each in comparisons)


def _skills(found: CombinatorialReport) -> tuple[float, ...]:
    return tuple(each.skill["random_walk"] or 0.0 for each in found.paths)


@contextmanager
def unpurged() -> Iterator[None]:
    """Combinations whose parts follow one another without a gap, however long labels and windows are."""
    masks, barred = ScatteredParts.masks, ScatteredParts.barred

    def leaking(self: ScatteredParts, available_at_ms_N: Ints, label_ms_N: Ints, barred_N: Bools) -> dict[Part, Bools]:
        return masks(self, available_at_ms_N, available_at_ms_N, barred_N)

    def nowhere(self: ScatteredParts, available_at_ms_N: Ints, lookback: int) -> Bools:
        return np.zeros(len(available_at_ms_N), dtype=bool)

    ScatteredParts.masks, ScatteredParts.barred = leaking, nowhere  # type: ignore[method-assign]
    try:
        yield
    finally:
        ScatteredParts.masks, ScatteredParts.barred = masks, barred  # type: ignore[method-assign]


def open_days(num: int) -> Ints:
    """(N,) openings of weekdays."""
    days = FIRST_MS // DAY_MS + np.arange(num * 7 // 5 + 7)
    return np.asarray(days[(days + 3) % 7 < 5][:num] * DAY_MS)  # day 0 was a Thursday


def remember(injected: InjectedSeries) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Skills of the paths, purged and not, of trees that know in which days they are."""
    chance, num = np.random.default_rng([injected.seed, injected.number, 12]), injected.num_bars
    close = 1.1 * np.cumprod(1 + 5 * DEVIATION * chance.standard_normal(num))
    order = ordered(
        ["grows"], family="lightgbm", target=f"price_change_{LEAK_DAYS}d", hyperparameters=TREES, validation_split=0.4
    )
    data = assembled(order, open_days(num), close, {"grows": np.arange(num) / num})
    cv = CrossValidation(scheme="combinatorial_purged", groups=10, test_groups=2)
    means: dict[str, Any] = {"accelerator": OneThread(), "report": Recorder(), "kind_of": kind_of}
    purged = _skills(combinatorial(order, data, cv=cv, **means))
    with unpurged():
        return purged, _skills(combinatorial(order, data, cv=cv, **means))


def tables(run: Run) -> list[Table]:
    """What the schemes say, and what the purge is for."""
    num_bars = run.size(NUM_BARS, quick=3_000)
    found = {
        world: in_workers(
            validated,
            [InjectedSeries(world, number, run.seed, num_bars) for number in range(run.size(num, quick=2))],
            progress=run.progress(f"validation, {world}"),
            num_workers=run.num_workers,
        )
        for world, num in WORLDS.items()
    }
    return [_schemes(found, num_bars), _purge(run)]


def _schemes(found: dict[str, list[Answers]], num_bars: int) -> Table:
    false = {name: [getattr(each, name) for each in found[NEVER]] for name in ("one_split", "walked")}
    above = {world: _above(each) for world, each in found.items()}
    return Table(
        name="validation_schemes",
        title="Validation schemes",
        caption=(
            f"Series of {num_bars:,} hourly bars with a column that explains {100 * R2:g} % of the next hour's move, "
            "`linear`, `validation_split` 0.4. *Found*: the verdict's tests against every baseline, p at most 0.025. "
            "Combinations of 2 in 6 groups: 15 trainings, 5 paths; medians over the series of the paths' least and "
            "largest Sharpe ratio a year, after costs."
        ),
        columns=(
            "the column tells", "one split: found", "exact 95 % interval", "walk forward: found",
            "exact 95 % interval", "paths with skill", "all paths have skill", "Sharpe, one split",
            "Sharpe of the paths",
        ),
        rows=[_row(world, each) for world, each in found.items()],
        goals=[
            Goal("nothing to tell: one split finds", float(np.mean(false["one_split"])), 0.05, at_most=True),
            Goal("nothing to tell: the walk forward finds", float(np.mean(false["walked"])), 0.05, at_most=True),
            Goal("told all the time: paths with skill", above[ALWAYS], 0.9),
            Goal("told in the first half only: paths with skill", above[EARLY], 0.5),
            Goal("told in the test part only: paths with skill", above[LATE], 0.5, at_most=True),
        ],
    )  # fmt: skip


def _row(world: str, said: list[Answers]) -> tuple[str, ...]:
    one, walked = [each.one_split for each in said], [each.walked for each in said]
    least, most = (float(np.median([pick(each.sharpes) for each in said])) for pick in (min, max))
    return (
        world, of_all(one), share(one), of_all(walked), share(walked), f"{100 * _above(said):.0f} %",
        of_all([min(each.skills) > 0 for each in said]), f"{np.median([each.one_sharpe for each in said]):.2f}",
        f"{least:.2f} to {most:.2f}",
    )  # fmt: skip


def _above(said: list[Answers]) -> float:
    return float(np.mean([skill > 0 for each in said for skill in each.skills]))


def _purge(run: Run) -> Table:
    num, num_bars = run.size(LEAK_SERIES, quick=2), LEAK_BARS
    found = in_workers(
        remember,
        [InjectedSeries(NEVER, number, run.seed, num_bars) for number in range(num)],
        progress=run.progress("validation, with and without a purge"),
        num_workers=run.num_workers,
    )
    by_way = {"purged, windows kept apart": [one for one, _ in found], "neither": [other for _, other in found]}
    rates = {way: float(np.mean([min(each) > 0 for each in skills])) for way, skills in by_way.items()}
    gap = float(np.median([np.median(other) - np.median(one) for one, other in found]))
    return Table(
        name="validation_purge",
        title="Purge of combinations",
        caption=(
            f"{num} series of {num_bars:,} daily bars that nobody can forecast; `lightgbm` on a column that only "
            f"grows, `price_change_{LEAK_DAYS}d`, 2 of 10 groups. Skill of the paths against the random walk."
        ),
        columns=("combinations", "all paths have skill", "exact 95 % interval", "median skill of the paths"),
        rows=[
            (
                way,
                of_all([min(each) > 0 for each in skills]),
                share([min(each) > 0 for each in skills]),
                f"{100 * float(np.median([np.median(each) for each in skills])):.2f} %",
            )
            for way, skills in by_way.items()
        ],
        goals=[
            Goal("purged: share with skill on all paths", next(iter(rates.values())), 0.05, at_most=True),
            Goal("what neither adds to the median skill", gap, 0.01),
        ],
    )
