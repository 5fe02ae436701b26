"""Parsers against any bytes: `python -m chaos.parsers [--minutes M] [--seed N] [--only NAME]`.

Every promise in turn, a round of cases each, until the minutes are over; a promise that was broken is told with its
smallest case and tried no more. The same seed makes the same cases. Ends with 1 where any was broken.
"""

import argparse
import faulthandler
import logging
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from chaos.parsers import load
from chaos.parsers.promise import PROMISES
from tools.documents import say

USUAL_MINUTES = 5.0
CASES_OF_A_ROUND = 300
MOST_CHARACTERS = 3_000
"""Of a finding: a case may be long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the promises and prints what was found; the exit code."""
    asked = _parser().parse_args(arguments)
    faulthandler.enable()  # a reader that ends the process is a finding too, and the last line names its promise
    logging.disable(logging.CRITICAL)
    load()
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    begun_s = time.monotonic()
    deadline_s = begun_s + 60 * asked.minutes
    names = [name for name in PROMISES if asked.only in name]
    num_checked: Counter[str] = Counter()
    broken: set[str] = set()
    say(f"seed {seed}, {len(names)} promises")
    round_number = 0
    while time.monotonic() < deadline_s and broken != set(names):
        say(f"round {round_number}, seed {seed + round_number}, {sum(num_checked.values())} cases so far")
        for name in names:
            if name in broken or time.monotonic() > deadline_s:
                continue
            try:
                num_checked[name] += PROMISES[name].run(CASES_OF_A_ROUND, seed=seed + round_number)
            except Exception as error:
                broken.add(name)
                told = "".join(traceback.format_exception(error))[-MOST_CHARACTERS:]
                say(f"BROKEN [{seed + round_number}] {name}\n{told}")
        round_number += 1
    for name in names:
        say(f"{name}: {num_checked[name]} cases")
    minutes = (time.monotonic() - begun_s) / 60
    say(f"seed {seed}: {sum(num_checked.values())} cases in {minutes:.1f} minutes, {len(broken)} findings")
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.parsers", description="Any bytes against every parser.")
    parser.add_argument("--minutes", type=float, default=USUAL_MINUTES)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", default="", help="promises with this in their name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
