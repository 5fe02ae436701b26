"""Retrained trainings: one recipe trained 26 times on a market without skill, every training a whole one.

`verdict_rules` draws losses; here bars are drawn, and request, certificate, pool of judged rows and verdict are the
service's own. A month lies between two trainings of a rolling window, as where a model is kept fresh. A recipe counts
as wrong where any of its versions was ever told that it has skill.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from scipy.stats import binomtest

from ml_workbench_service.market.calendar import HOUR_MS
from studies.fits import bench_on, train_once, training_request
from studies.series import null_series
from studies.tables import Goal, Run, Table, of_all, share
from studies.workers import in_workers

NUM_RECIPES = 20
NUM_VERSIONS = 26
WINDOW_HOURS = 5_000
MONTH_HOURS = 520
"""Open hours between two trainings."""
FEATURES = ["return_1", "volatility_24", "rsi_14"]
MOST_SKILL = 0.05


@dataclass(frozen=True)
class Recipe:
    """One market, and how often the recipe is trained on it."""

    number: int
    seed: int
    num_versions: int


@dataclass(frozen=True)
class Story:
    """What all versions of a recipe were told."""

    kind: str
    verdicts: tuple[str, ...]
    num_evaluations: int  # that the last version's verdict was charged with

    @property
    def ever(self) -> bool:
        """Whether any version was told that it has skill."""
        return "skill" in self.verdicts


def retrain(recipe: Recipe) -> Story:
    """Trains the recipe on one month after the other, in one registry with one log."""
    series = null_series(
        WINDOW_HOURS + recipe.num_versions * MONTH_HOURS, seed=recipe.seed, number=1_000 + recipe.number
    )
    with bench_on(series.write) as workbench:
        cards = []
        for version in range(recipe.num_versions):
            begin = version * MONTH_HOURS
            rows = series.opened_ms[begin : begin + WINDOW_HOURS]
            request = training_request(
                "Retrained", FEATURES, start_date=_moment(int(rows[0])), end_date=_moment(int(rows[-1]) + HOUR_MS)
            )
            cards.append(train_once(workbench, request))
    last = cards[-1].evaluation.significance
    return Story(series.kind, tuple(card.evaluation.verdict for card in cards), last.looks if last is not None else 0)


def tables(run: Run) -> list[Table]:
    """One row: how many recipes were ever told that they have skill."""
    recipes = [
        Recipe(number, run.seed, run.size(NUM_VERSIONS, quick=2)) for number in range(run.size(NUM_RECIPES, quick=2))
    ]
    stories = in_workers(retrain, recipes, progress=run.progress("retrained trainings"), num_workers=run.num_workers)
    ever = [story.ever for story in stories]
    at_least = float(binomtest(sum(ever), len(ever)).proportion_ci(0.95, method="exact").low)
    told = [verdict for story in stories for verdict in story.verdicts]
    most = max(story.num_evaluations for story in stories)
    caption = (
        f"{len(stories)} driftless markets, on each one recipe of `linear` trained {run.size(NUM_VERSIONS, quick=2)} "
        f"times on a rolling window of {WINDOW_HOURS:,} hours, a month apart: {len(told)} whole trainings. Test-set "
        f"evaluations charged to a last version, at most: {most}."
    )
    row = [of_all(ever), share(ever), *(str(told.count(each)) for each in ("no_skill", "insufficient_data"))]
    columns = ["recipes ever told `skill`", "exact 95 % interval", "versions `no_skill`", "`insufficient_data`"]
    goal = Goal("whole retrainings: share ever with skill, least it can be", at_least, MOST_SKILL, at_most=True)
    return [Table("retrained_trainings", "Whole retrainings", caption, columns, [row], [goal])]


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat().replace("+00:00", "Z")
