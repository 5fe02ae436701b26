"""Interleaved rounds, as every benchmark measures: medians, ratios of one round, a table, a file.

A busy machine slows all contestants of a round alike. So a ratio is taken within each round, and the median over the
rounds is reported; the figures beside it are medians too.
"""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_workbench_service.accelerators.processor import processor_features

ROOT = Path(__file__).resolve().parent.parent
WORKPLACE = ROOT / ".bench"


@dataclass
class Rounds:
    """Figures of each contestant, one a round; `bigger_is_better` says which way a ratio counts."""

    bigger_is_better: bool
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contestant: str, figure: float) -> None:
        """One round's figure."""
        self.figures.setdefault(contestant, []).append(figure)

    def median(self, contestant: str) -> float:
        """The contestant's figure."""
        return statistics.median(self.figures[contestant])

    def times_better(self, ours: str, theirs: str) -> float:
        """How many times better we are: the median of the rounds' own ratios."""
        pairs = list(zip(self.figures[ours], self.figures[theirs], strict=True))
        return statistics.median(a / b if self.bigger_is_better else b / a for a, b in pairs)

    def medians(self) -> dict[str, float]:
        """Everybody's figure."""
        return {name: self.median(name) for name in self.figures}

    def row(self, ours: str, theirs: str, *, digits: int = 0, of_ratio: int = 1) -> list[str]:
        """A contestant in a table: its name, its figure, and how many times better we are."""
        return [theirs, f"{self.median(theirs):,.{digits}f}", f"{self.times_better(ours, theirs):,.{of_ratio}f}"]


@dataclass(frozen=True)
class Goal:
    """What a benchmark is to show."""

    name: str
    reached: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it shows it."""
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted

    def __str__(self) -> str:
        bound = "at most" if self.at_most else "at least"
        return f"{'met   ' if self.met else 'MISSED'}  {self.name}: {self.reached:.2f}, wanted {bound} {self.wanted:g}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, the first column to the left and the others to the right."""
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    print(f"\n{title}")
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells))


def conclude(name: str, goals: Sequence[Goal], figures: Mapping[str, Any]) -> None:
    """Prints the goals and keeps everything in `.bench/results/<name>.json`."""
    processor = " ".join(processor_features())
    for goal in goals:
        print(f"  {goal}")
    print(f"  measured on {os.cpu_count()} cores with {processor}")
    folder = WORKPLACE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": name,
        "machine": {"cores": os.cpu_count(), "processor": processor, "python": platform.python_version()},
        "goals": [{"name": g.name, "reached": g.reached, "wanted": g.wanted, "met": g.met} for g in goals],
        "figures": dict(figures),
    }
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
