"""Chaos table of faults and invariants: `python -m chaos [--runs N] [--only "cell;…"] [--seed N] [--exactly SEED]`.

Two runs at a time. Every run's seed is printed; `--only CELL --exactly SEED` repeats one. Ends with 1 where an
invariant was violated or a run could not be made. A whole run writes its table into docs/resilience.md.
"""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from chaos.cells import CELLS, Cell, cells_named
from chaos.runs import Done, run_once
from chaos.tables import BEGIN, markdown
from tools.documents import in_place, say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".bench" / "results" / "chaos.json"
DOCUMENT = ROOT / "docs" / "resilience.md"
USUAL_RUNS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells asked for, prints and writes the table; the exit code."""
    asked = _parser().parse_args(arguments)
    cells = cells_named(asked.only)
    if not cells:
        say(f"no cell is called {asked.only}; there are: " + ", ".join(cell.name for cell in CELLS))
        return 2
    base = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    say(f"{len(cells)} cells, {asked.runs} runs each, seed {base}")
    begun = time.monotonic()
    wanted = [
        (cell, seed)
        for cell in cells
        for seed in ([asked.exactly] if asked.exactly is not None else cell.seeds(base, asked.runs))
    ]
    done = _run_all(wanted, num_workers=asked.workers)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(_as_json(done, base), indent=1), encoding="utf-8")
    text = markdown(cells, {cell.name: [each.report for each in done if each.cell == cell.name] for cell in cells})
    say("\n" + text)
    elapsed_s = time.monotonic() - begun
    say(f"\n{len(done)} runs in {elapsed_s / 60:.1f} minutes")
    if len(cells) == len(CELLS) and asked.runs >= USUAL_RUNS:
        when = datetime.now(tz=UTC).date().isoformat()
        command = f"python -m chaos --runs {asked.runs} --seed {base}"
        text = f"`{command}`, {when}, {elapsed_s / 60:.0f} minutes.\n\n{text}"
        DOCUMENT.write_text(in_place(DOCUMENT.read_text(encoding="utf-8"), BEGIN, text), encoding="utf-8")
    promised = {cell.name for cell in cells if cell.is_promised}
    failed = [each for each in done if each.report is None or (not each.report.passed and each.cell in promised)]
    return 1 if failed else 0


def _run_all(wanted: Sequence[tuple[Cell, int]], *, num_workers: int) -> list[Done]:
    if num_workers == 1:
        return [_told(run_once(cell, seed), number, len(wanted)) for number, (cell, seed) in enumerate(wanted, 1)]
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        runs = [pool.submit(run_once, cell, seed) for cell, seed in wanted]
        return [_told(run.result(), number, len(wanted)) for number, run in enumerate(as_completed(runs), 1)]


def _told(done: Done, number: int, total: int) -> Done:
    if done.report is None:
        say(f"{number}/{total} {done.cell} seed {done.seed}: NOT RUN, {done.fault} ({done.kept})")
        return done
    broken = [verdict for verdict in done.report.verdicts if not verdict.holds]
    how = "ok" if not broken else "VIOLATED " + ", ".join(verdict.invariant for verdict in broken)
    say(f"{number}/{total} {done.cell} seed {done.seed}: {how}, {done.report.duration_s:.1f} s")
    for verdict in broken:
        for example in verdict.counter_examples[:2]:
            say(f"    {verdict.invariant}: {example}")
    for note in done.report.notes:
        say(f"    {note}")
    return done


def _as_json(done: Sequence[Done], base: int) -> dict[str, object]:
    runs = [
        {
            "cell": each.cell,
            "seed": each.seed,
            "fault": each.fault,
            "kept": each.kept,
            "report": None if each.report is None else each.report.model_dump(mode="json", exclude={"depth", "table"}),
        }
        for each in done
    ]
    return {"seed": base, "at": datetime.now(tz=UTC).isoformat(), "runs": runs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Faults and invariants of the queue.")
    parser.add_argument("--runs", type=int, default=USUAL_RUNS, help=f"of each cell (default {USUAL_RUNS})")
    parser.add_argument("--only", help="cells by name, with semicolons")
    parser.add_argument("--seed", type=int, help="from which the runs' seeds follow; drawn unless given")
    parser.add_argument("--exactly", type=int, help="one run of each cell, with this very seed")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
