"""Chaos run: one of a cell, in whatever process; its histories are kept where an invariant was violated."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from chaos.cells import Cell
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.contracts.resilience import ResilienceReport
from ml_workbench_service.workflows.run_resilience_test import run_resilience_test

KEPT = Path(__file__).resolve().parent.parent / ".bench" / "chaos"


@dataclass(frozen=True)
class Done:
    """One run: its report, or why there is none."""

    cell: str
    seed: int
    report: ResilienceReport | None
    fault: str = ""
    kept: str = ""  # where the histories of a violation lie


def run_once(cell: Cell, seed: int) -> Done:
    """One run in a folder of its own, kept where an invariant was violated."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        report = run_resilience_test(cell.request(seed), folder / "run", SilentReport())
    except Exception as error:  # a run that cannot be made is a row's failure, and must not end the others
        return Done(cell.name, seed, None, f"{type(error).__name__}: {error}", str(_keep(folder, cell, seed)))
    if report.passed or not cell.is_promised:
        shutil.rmtree(folder)
        return Done(cell.name, seed, report)
    (folder / "report.txt").write_text(report.table, encoding="utf-8")
    return Done(cell.name, seed, report, kept=str(_keep(folder, cell, seed)))


def _keep(folder: Path, cell: Cell, seed: int) -> Path:
    kept = KEPT / f"{cell.name.replace(' ', '_')}-{seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(str(folder), kept)
    return kept
