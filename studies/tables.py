"""Result tables: rows, the goals that they have to meet, and their place in docs/evaluation.md.

A table stands between `<!-- name: written by make evaluate -->` and `<!-- end -->`; what people wrote around it stays.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from scipy.stats import binomtest

from studies.workers import NUM_WORKERS
from tools import interleaved_rounds as rounds
from tools.documents import in_place, markdown_table

WIDTH = 120
"""Columns of prose in a document (tests/test_words.py)."""


class Goal(rounds.Goal):
    """What a table must show, as it stands in the document; a figure that is not a number never does."""

    def __str__(self) -> str:
        bound = "at most" if self.at_most else "at least"
        return f"{'met' if self.met else '**missed**'}: {self.name} {self.reached:.3g}, {bound} {self.wanted:g}"


@dataclass(frozen=True)
class Table:
    """One table, its sentence and its goals."""

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    goals: Sequence[Goal] = ()

    def markdown(self, run: "Run") -> str:
        """As it stands in the document."""
        caption = fill(f"{self.caption} Seed {run.seed}.", WIDTH, break_long_words=False, break_on_hyphens=False)
        parts = [caption, markdown_table(self.columns, self.rows)]
        if self.goals:
            parts.append("\n".join(f"- {goal}" for goal in self.goals))
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Run:
    """What all tables of one run share."""

    seed: int = 0
    is_quick: bool = False
    num_workers: int = NUM_WORKERS
    say: Callable[[str], None] = field(default=lambda _: None)

    def size(self, whole: int, *, quick: int) -> int:
        """How many: all, or as few as show that everything runs."""
        return quick if self.is_quick else whole

    def progress(self, what: str) -> Callable[[int, int], None]:
        """Says every tenth of the way how far it is."""
        begun = time.perf_counter()

        def heard(done: int, total: int) -> None:
            if done == total or done * 10 // total != (done - 1) * 10 // total:
                self.say(f"  {what}: {done} of {total}, {time.perf_counter() - begun:.0f} s")

        return heard


def share(outcomes: Sequence[bool]) -> str:
    """Exact 95 % interval of a rate (Clopper and Pearson, Biometrika 26, 1934)."""
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(0.95, method="exact")
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def of_all(outcomes: Sequence[bool]) -> str:
    """How many, and the rate: `3 of 200 (1.5 %)`."""
    return f"{sum(outcomes)} of {len(outcomes)} ({100 * sum(outcomes) / len(outcomes):.1f} %)"


def names(features: Sequence[str]) -> str:
    """A list of names as the document sets them."""
    return ", ".join(f"`{name}`" for name in features)


def begin(name: str) -> str:
    """The marker above a table."""
    return f"<!-- {name}: written by make evaluate -->"


def write(document: Path, tables: Sequence[Table], run: Run) -> None:
    """Puts each table between its markers.

    Raises:
        ValueError: the document has no such markers.
    """
    text = document.read_text(encoding="utf-8")
    for table in tables:
        text = in_place(text, begin(table.name), f"\n{table.markdown(run)}")
    document.write_text(text, encoding="utf-8")
