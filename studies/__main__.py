"""Makes the tables of docs/evaluation.md: `python -m studies [--seed N] [--only table,…] [--quick]`.

Two processes of one core each; under half an hour. Ends with 1 where a table does not show what it must. `--quick`
makes every table very small, to see that all of it runs: it proves nothing, and the document stays as it is.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from studies import (
    certificate_on_leaks,
    injected_signal,
    interval_hours,
    intervals,
    irrelevant_columns,
    label_uniqueness,
    leaks_in_own_columns,
    null_series,
    position_portfolio,
    position_sizes,
    real_data,
    retrained_trainings,
    validation_schemes,
    verdict_rules,
)
from studies.tables import Run, Table, write
from tools.documents import say

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
ALL: dict[str, Callable[[Run], list[Table]]] = {
    "null_series": null_series.tables,
    "injected_signal": injected_signal.tables,
    "injected_leaks": certificate_on_leaks.tables,
    "leaks_in_own_columns": leaks_in_own_columns.tables,
    "intervals": intervals.tables,
    "interval_hours": interval_hours.tables,
    "position_sizes": position_sizes.tables,
    "position_portfolio": position_portfolio.tables,
    "irrelevant_columns": irrelevant_columns.tables,
    "validation_schemes": validation_schemes.tables,
    "label_uniqueness": label_uniqueness.tables,
    "real_data": real_data.tables,
    "verdict_rules": verdict_rules.tables,
    "retrained_trainings": retrained_trainings.tables,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes, prints and writes the tables asked for; the exit code."""
    asked = _parser().parse_args(arguments)
    names = list(ALL) if asked.only is None else asked.only.split(",")
    unknown = sorted(set(names) - set(ALL))
    if unknown:
        say(f"no table is called {', '.join(unknown)}; there are {', '.join(ALL)}")
        return 2
    run = Run(seed=asked.seed, is_quick=asked.quick, say=say)
    missed = 0
    for name in names:
        begun = time.perf_counter()
        say(f"{name}: begun")
        made = ALL[name](run)
        for table in made:
            say(f"\n## {table.title}\n\n{table.markdown(run)}\n")
            missed += sum(not goal.met for goal in table.goals)
        say(f"{name}: {time.perf_counter() - begun:.0f} s")
        if not run.is_quick:
            write(asked.document, made, run)
    return 1 if missed and not run.is_quick else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies", description="The tables of docs/evaluation.md.")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--only", help=f"tables by name, with commas: {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="very small, checks no goal and writes nothing")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where the tables stand")
    return parser


if __name__ == "__main__":
    sys.exit(main())
