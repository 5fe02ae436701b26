"""Learning curves out of a training's event log: losses of every seed by epoch, thinned where there are many.

The steps of several seeds follow one another in the log: seed number s of S has the steps after s / S of the total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ml_workbench_service.jobs.job import JobFolder

MOST_POINTS = 2_000
"""Of one answer; a screen has no more columns, and a log may have a hundred thousand epochs."""
OLD, NEW = "stop_", "validation_"
"""Parts' names in records, and in new answers."""


@dataclass(frozen=True)
class LearningCurves:
    """A training's steps.

    Attributes:
        rows: of `contracts.series.CurveRow`, in order.
        num_steps: reported in all.
    """

    rows: tuple[dict[str, Any], ...]
    num_steps: int

    @property
    def is_thinned(self) -> bool:
        """Whether steps are left out."""
        return len(self.rows) < self.num_steps


def read_curves(folder: JobFolder, *, most_points: int = MOST_POINTS) -> LearningCurves:
    """What the training has reported so far; it may still run."""
    spec = folder.spec
    seeds = list(spec.request.get("seeds") or [0])
    rate = spec.plan.get("hyperparameters", {}).get("learning_rate")
    rows = []
    for event in folder.reader().read():
        data = event.data
        if event.type != "progress" or "step" not in data:
            continue
        per_seed = max(data["total"] // len(seeds), 1)
        place = min((data["step"] - 1) // per_seed, len(seeds) - 1)
        figures = {name.replace(OLD, NEW, 1) if name.startswith(OLD) else name: value
                   for name, value in data.get("metrics", {}).items()}  # fmt: skip
        row = {"at": event.at, "seed": seeds[place], "epoch": data["step"] - place * per_seed, "learning_rate": rate}
        rows.append(row | figures)
    return LearningCurves(tuple(rows[number] for number in _kept(rows, most_points)), len(rows))


def _kept(rows: Sequence[dict[str, Any]], most: int) -> list[int]:
    """Rows to show: of each seed the first, the last and the one of least validation loss, the others evenly."""
    if len(rows) <= most:
        return list(range(len(rows)))
    by_seed: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_seed.setdefault(row["seed"], []).append(number)
    kept: set[int] = set()
    for numbers in by_seed.values():
        losses = [(rows[number].get("validation_loss"), number) for number in numbers]
        best = min(((loss, number) for loss, number in losses if loss is not None), default=(0.0, numbers[0]))[1]
        kept |= {numbers[0], numbers[-1], best}
    left = most - len(kept)
    if left > 0:
        others = [number for number in range(len(rows)) if number not in kept]
        kept |= {others[place * len(others) // left] for place in range(left)}
    return sorted(kept)[:most]
