"""Verdict rules on drawn losses: the power they claim and have, and what 26 trainings of one recipe find in nothing.

Whole trainings would take hours; these rules see losses alone, so the losses are drawn and everything else is the
product's own: differentials, pooling, the tests of growing samples, the verdict.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.evaluation import Certificate, CertificateCheck, Evaluation
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.multiple_testing import EvaluationResult
from ml_workbench_service.evaluation.verdict import apply_verdict, spent_p_value
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.training.recipes import PooledSample
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

HOUR_MS = 3_600_000
NUM_MOMENTS = 4_000
NUM_SERIES = 100
NUM_RECIPES = 1_000
NUM_VERSIONS = 26
TEST_MOMENTS = 1_000
MONTH_MOMENTS = 250
MOST_SKILL = 0.05
R2 = (0.0025, 0.005, 0.01, 0.02)
PASSED = Certificate.of((CertificateCheck(name="drawn", status="passed", detail="Losses are drawn."),))


def student(chance: np.random.Generator, num: int) -> Floats:
    """t3: its fourth moment is infinite."""
    return chance.standard_t(3, num) / np.sqrt(3)


def garch(chance: np.random.Generator, num: int) -> Floats:
    """A GARCH(1,1) with t5 shocks, of unit variance."""
    shocks, values, variance = chance.standard_t(5, num) / np.sqrt(5 / 3), np.empty(num), 1.0
    for row in range(num):
        values[row] = np.sqrt(variance) * shocks[row]
        variance = 0.03 + 0.1 * values[row] ** 2 + 0.87 * variance
    return values


NOISES: dict[str, Callable[[np.random.Generator, int], Floats]] = {"t3": student, "GARCH": garch}


@dataclass(frozen=True)
class Drawn:
    """One series, or one recipe: what is drawn, and with which number."""

    noise: str
    r2: float
    number: int
    seed: int
    num_moments: int = NUM_MOMENTS


def differentials(labels: Floats, said: Floats, *, begin: int = 0) -> Differentials:
    """Of forecasts beside no change."""
    moments = HOUR_MS * (begin + np.arange(len(labels)))
    return Differentials.of_squares(
        "random_walk", labels, model=said, baseline=np.zeros(len(labels)), moments_N=moments, horizon=1, is_nested=True
    )


def judged(own: Differentials, results: list[EvaluationResult]) -> Evaluation:
    """The verdict on one more version of a recipe; its result joins the others."""
    pooled = PooledSample.of([own], results)
    measured = Evaluation(
        test={}, baselines={}, skill={}, verdict="not_judged", reason="", comparisons=(own.comparison(),)
    )
    found = apply_verdict(
        measured, certificate=PASSED, is_simulated=False, horizon=1, timeframe="1d", sample=pooled.tested
    )
    results.append(pooled.result(spent_p_value(found.significance), ""))
    return found


def find(drawn: Drawn) -> tuple[bool, float]:
    """Whether a model that knows its share of the variance was found, and the power claimed where it knows nothing."""
    chance = np.random.default_rng((drawn.seed, drawn.number, round(1e6 * drawn.r2)))
    rest, signal, other = (
        NOISES[drawn.noise](chance, drawn.num_moments),
        *chance.standard_normal((2, drawn.num_moments)),
    )
    size = float(np.sqrt(np.mean(rest**2)))
    labels = np.sqrt(1 - drawn.r2) * rest + np.sqrt(drawn.r2) * size * signal
    found = judged(differentials(labels, np.sqrt(drawn.r2) * size * signal), [])
    nothing = judged(differentials(rest, np.sqrt(drawn.r2) * size * other), [])
    assert nothing.significance is not None
    return found.verdict == "skill", nothing.significance.power


def retrain(drawn: Drawn) -> bool:
    """Whether any of 26 trainings of a recipe without skill, a month apart, was told that it has some."""
    chance, results = np.random.default_rng((drawn.seed, drawn.number)), list[EvaluationResult]()
    length = TEST_MOMENTS + NUM_VERSIONS * MONTH_MOMENTS
    rest, verdicts = NOISES[drawn.noise](chance, length), []
    for version in range(NUM_VERSIONS):
        rows = slice(version * MONTH_MOMENTS, version * MONTH_MOMENTS + TEST_MOMENTS)
        said = 0.05 * chance.standard_normal(TEST_MOMENTS)  # each version's own luck, on old rows too
        verdicts.append(judged(differentials(rest[rows], said, begin=rows.start), results).verdict)
    return "skill" in verdicts


def tables(run: Run) -> list[Table]:
    """Power, and retrainings."""
    return [_power(run), _retrainings(run)]


def _power(run: Run) -> Table:
    num, rows = run.size(NUM_SERIES, quick=4), []
    for noise in NOISES:
        for r2 in R2:
            drawn = [Drawn(noise, r2, number, run.seed) for number in range(num)]
            found = in_workers(find, drawn, num_workers=run.num_workers)
            hits, claims = [hit for hit, _ in found], [claim for _, claim in found]
            claim = f"{100 * np.mean(claims):.1f} %" if r2 == 0.005 else "-"
            rows.append([noise, f"{100 * r2:g} %", of_all(hits), share(hits), claim])
    caption = (
        f"{num} series each of {NUM_MOMENTS:,} test moments, forecasts of no change as the baseline. The power is "
        "claimed on the same noise by models without skill, for an R² of 0.5 %."
    )
    columns = ["noise", "true R²", "`skill`", "exact 95 % interval", "power claimed"]
    return Table("verdict_power", "Power of the verdict", caption, columns, rows)


def _retrainings(run: Run) -> Table:
    num, rows, goals = run.size(NUM_RECIPES, quick=3), [], []
    for noise in NOISES:
        drawn = [Drawn(noise, 0.0, number, run.seed) for number in range(num)]
        ever = in_workers(retrain, drawn, num_workers=run.num_workers)
        rows.append([noise, of_all(ever), share(ever)])
        goals.append(Goal(f"retrained recipes, {noise}: ever `skill`", sum(ever) / num, MOST_SKILL, at_most=True))
    caption = (
        f"{num} recipes without skill, each trained {NUM_VERSIONS} times a month apart; every version has its own luck "
        f"on its {TEST_MOMENTS:,} test moments, three quarters of which were judged before."
    )
    columns = ["noise", "ever `skill`", "exact 95 % interval"]
    return Table("retrained_recipes", "One recipe trained 26 times", caption, columns, rows, goals)
