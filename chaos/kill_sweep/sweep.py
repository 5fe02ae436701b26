"""The sweep: every point of every step is killed, so often, and what is left is checked as a start would find it."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.kill_sweep.killing import Acknowledge, Ended, Point, run
from chaos.kill_sweep.steps import Step

MOST_BYTE_POINTS = 40
NOTHING_MORE: tuple[str, ...] = ()


@dataclass
class Swept:
    """What came of a step.

    Attributes:
        num_points: where it was killed; `num_there` of the points that there are.
        num_kills: with repetitions.
        violations: each with its point.
    """

    name: str
    num_points: int = 0
    num_there: int = 0
    num_kills: int = 0
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        tried = f"{self.num_points} of {self.num_there} points"
        return f"{self.name}: {tried}, {self.num_kills} kills, {len(self.violations)} violations"


def sweep(
    name: str, step: Step, *, repetitions: int, most_points: int | None = None, told: Callable[[str], object] = print
) -> Swept:
    """Kills one step everywhere.

    Args:
        most_points: evenly spaced ones where there are more; None: all.

    Raises:
        RuntimeError: the step cannot be prepared, or does not even go well when nobody kills it.
    """
    swept = Swept(name)
    with tempfile.TemporaryDirectory(prefix="kill-sweep-") as temporary:
        before = Path(temporary) / "before"
        before.mkdir()
        place = Path(temporary) / "now"  # the same one each time: databases hold absolute paths
        _whole(run(lambda _: step.prepare(_moved(before, place)), modules=NOTHING_MORE, at=None), "prepare")
        shutil.copytree(place, before, dirs_exist_ok=True) if place.exists() else None
        unharmed, wrong = _once(step, before, place, at=None)
        _whole(unharmed, "work")
        if wrong:
            raise RuntimeError(f"{name} goes wrong without a kill: {wrong}")
        points = _points(unharmed.num_lines, _largest(step, before, place))
        swept.num_there = len(points)
        chosen = _some(points, most_points)
        swept.num_points = len(chosen)
        for point in chosen:
            for _ in range(repetitions):
                ended, wrong = _once(step, before, place, at=point)
                swept.num_kills += ended.was_killed
                swept.violations += [f"{name}, {point.kind} {point.number}: {each}" for each in wrong]
                for each in wrong:
                    told(f"VIOLATED {name}, {point.kind} {point.number}: {each}")
    return swept


def _once(step: Step, before: Path, place: Path, *, at: Point | None) -> tuple[Ended, list[str]]:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place)
    ended = run(lambda acknowledge: step.work(place, acknowledge), modules=step.modules, at=at)
    if ended.fault and not (at is not None and at.kind == "bytes"):
        return ended, [f"the work failed: {ended.fault}"]

    def check(acknowledge: Acknowledge) -> None:
        for each in step.check(place, ended.acknowledged):
            acknowledge(each)

    checked = run(check, modules=NOTHING_MORE, at=None)
    return ended, [*checked.acknowledged, *([f"the next start fails: {checked.fault}"] if checked.fault else [])]


def _moved(before: Path, place: Path) -> Path:
    """Prepared at the place where it will be worked on."""
    del before
    place.mkdir()
    return place


def _points(num_lines: int, num_bytes: int) -> list[Point]:
    lines = [Point("lines", number) for number in range(1, num_lines + 1)]
    return [*lines, *(Point("bytes", number) for number in _spread(num_bytes, MOST_BYTE_POINTS))]


def _spread(most: int, num: int) -> list[int]:
    return sorted({round(most * place / num) for place in range(num)})


def _some(points: Sequence[Point], most: int | None) -> list[Point]:
    if most is None or len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _largest(step: Step, before: Path, place: Path) -> int:
    """How large the largest file gets that the work has changed."""
    del step
    sizes = {each.relative_to(before): each.stat().st_size for each in before.rglob("*") if each.is_file()}
    found = [each for each in place.rglob("*") if each.is_file()]
    return max((each.stat().st_size for each in found if sizes.get(each.relative_to(place)) != each.stat().st_size),
               default=0)  # fmt: skip


def _whole(ended: Ended, what: str) -> None:
    if ended.fault or ended.was_killed:
        raise RuntimeError(f"the step does not {what}: {ended.fault or 'it was killed'}")
