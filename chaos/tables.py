"""Chaos table as Markdown, for docs/resilience.md."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import get_args

from chaos.cells import Cell
from ml_workbench_service.contracts.resilience import Invariant, ResilienceReport
from tools.documents import markdown_table

INVARIANTS: tuple[Invariant, ...] = get_args(Invariant)
BEGIN = "<!-- table: written by make chaos -->"
Reports = Sequence[ResilienceReport | None]


def markdown(cells: Sequence[Cell], reports: Mapping[str, Reports]) -> str:
    """Rows are faults; a cell is the number of runs in which the invariant was violated, of all runs."""
    promised = [cell for cell in cells if cell.is_promised]
    head = ["fault", *(name.replace("_", " ") for name in INVARIANTS), "records", "p50 ms", "p99 ms"]
    measured = [_measured(cell, reports[cell.name]) for cell in cells if not cell.is_promised]
    return "\n\n".join([markdown_table(head, [_row(cell, reports[cell.name]) for cell in promised]), *measured])


def _row(cell: Cell, reports: Reports) -> list[str]:
    made = [report for report in reports if report is not None]
    verdicts = [{verdict.invariant: verdict.holds for verdict in report.verdicts} for report in made]
    counts = []
    for invariant in INVARIANTS:
        num_violated = sum(not each[invariant] for each in verdicts)
        counts.append(f"{num_violated}/{len(made)}" if num_violated == 0 else f"**{num_violated}/{len(made)}**")
    missing = len(reports) - len(made)
    name = cell.name if not missing else f"{cell.name} ({missing} not run)"
    timed = [report.latency for report in made if report.latency is not None]
    figures = ["-", "-"]
    if timed:
        figures = [f"{median(each.p50_ms for each in timed):.0f}", f"{median(each.p99_ms for each in timed):.0f}"]
    return [name, *counts, f"{sum(report.num_acknowledged for report in made):,}", *figures]


def _measured(cell: Cell, reports: Reports) -> str:
    made = [report for report in reports if report is not None]
    lost = [_num_lost(report) for report in made]
    taken = sum(report.num_acknowledged for report in made)
    return (
        f"Measured, not promised: {cell.name}: {sum(lost)} of {taken:,} acknowledged records were lost, in "
        f"{sum(map(bool, lost))} of {len(made)} runs; at most {max(lost, default=0)} in one."
    )


def _num_lost(report: ResilienceReport) -> int:
    return next(verdict.num_violations for verdict in report.verdicts if verdict.invariant == "nothing_lost")
