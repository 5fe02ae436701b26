"""Makes the tables of docs/scaling.md: `python -m studies.scaling [--measure] [--seed N]`.

`--measure` measures the constants anew by real parts of this machine (some five minutes), and keeps them in
`studies/scaling/constants.json`; without it those that are kept are used. Ends with 1 where the model and the
simulation differ by more than is stated.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from studies.scaling import constants as kept
from studies.scaling.comparison import (
    AS_BUILT,
    ASKED,
    LIFTED,
    TAIL_TOLERANCE,
    TOLERANCE,
    limits_table,
    measured_rows,
    price_rows,
    simulated_table,
)
from studies.scaling.constants import Constants
from studies.scaling.model import Plan
from tools.documents import in_place, markdown_table, say

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
LOADS = (500.0, 2_000.0, 5_000.0, 20_000.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures where that is asked for, makes, prints and writes the tables; the exit code."""
    asked = _parser().parse_args(arguments)
    if asked.measure:
        measure()
    constants = kept.load()
    measured = json.loads(kept.FILE.read_text(encoding="utf-8"))["loads"]
    columns, rows, every = simulated_table(constants, asked.seed)
    whole = Plan(constants, ASKED, AS_BUILT)
    low = replace(whole, demand=replace(ASKED, sampled=0.01))
    tables = {
        "constants": markdown_table(["constant", "figure", ""], kept.rows(constants)),
        "measured": markdown_table(
            ["models · asked (answered), /s", "stretched", "busy", "questions a run", "mean, ms", "p99, ms"],
            measured_rows(constants, measured),
        ),
        "simulated": markdown_table(columns, rows),
        "limits": markdown_table(
            ["limit, predictions/s", "as built", "`low`", "lifted", "lifted by"],
            limits_table([whole, low, replace(low, layout=LIFTED)]),
        ),
        "price": markdown_table(
            ["predictions/s", "replicas · shards · redis", "cores", "replicas, GB", "rows/s · GB a day",
             "control process", "answer, mean · p99, ms"],
            price_rows(constants, LOADS),
        ),
    }  # fmt: skip
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables.items():
        say(f"\n## {name}\n\n{table}")
        text = in_place(text, f"<!-- {name}: written by python -m studies.scaling -->", f"\n{table}")
    DOCUMENT.write_text(text, encoding="utf-8")
    apart = [each for each in every if not each.agrees]
    for each in apart:
        say(f"apart: {each.name}: {each.model:.3g} beside {each.simulated:.3g}, {each.tolerance:.0%} stated")
    say(f"{len(every) - len(apart)} of {len(every)} figures within {TOLERANCE:.0%} (latencies {TAIL_TOLERANCE:.0%})")
    return 1 if apart else 0


def measure() -> None:
    """All constants anew, by real parts."""
    from studies.scaling.measured_service import SECONDS, service  # the service's libraries are needed here alone
    from studies.scaling.measured_stores import stores

    say("a service of 1,000 models: begun")
    found, loads = service(say)
    say("stores: begun")
    found |= stores()
    constants = Constants(**{each.name: found[each.name] for each in fields(Constants)})
    kept.save(constants, {"loads": [{**asdict(each), "seconds": SECONDS} for each in loads]})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.scaling", description="The tables of docs/scaling.md.")
    parser.add_argument("--measure", action="store_true", help="measure the constants anew")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
