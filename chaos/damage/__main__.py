"""Random damage: `python -m chaos.damage [--cases N] [--minutes M] [--seed S] [--starts N] …`.

Populates a state by real jobs (or takes the one at F, which is left behind with `--at`), then damages files under a
running service, which starts anew every so many cases; `--starts` damages files under a service that is away, and asks
once it has come back. Every finding names its seed; `--exactly SEED` makes that case again. Ends with 1 where there is
any.
"""

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.running_service import started
from chaos.damage.cases import Cases, Finding, Tally
from chaos.damage.population import client_of, populate, variables
from chaos.damage.starts import run_starts
from tools.documents import say

USUAL_CASES, USUAL_STARTS, USUAL_QUESTIONS = 10_000, 60, 8
CASES_OF_A_LIFE = 500
"""Of one process of the service."""
KEY_FILE = "fuzz.key"


class Life(NamedTuple):
    """Cases of one process of the service: the first one's seed, and their number."""

    begin: int
    num: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases asked for and prints what was found; the exit code."""
    asked = _parser().parse_args(arguments)
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    deadline_s = float("inf") if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    with ExitStack() as stack:
        folder = asked.at or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / KEY_FILE).exists():
            say("populating a state")
            (folder / KEY_FILE).write_text(populate(folder), encoding="utf-8")
        key = (folder / KEY_FILE).read_text(encoding="utf-8")
        tally = Tally()
        say(f"seed {seed}")
        for life in _lives(asked, seed):
            if time.monotonic() > deadline_s:
                break
            _one_life(folder, key, tally, life, asked.questions, deadline_s)
        if asked.exactly is None:
            run_starts(folder, key, num=asked.starts, seed=seed, tally=tally, on_finding=_told, deadline_s=deadline_s)
    say(str(tally))
    say("by kind: " + ", ".join(f"{kind} {num}" for kind, num in tally.by_kind.most_common()))
    return 1 if tally.findings else 0


def _one_life(folder: Path, key: str, tally: Tally, life: Life, num_questions: int | None, deadline_s: float) -> None:
    with started(folder, **variables(folder)) as service, client_of(service.address, key) as client:
        roots = (folder / "state", folder / "registry")
        cases = Cases(client, roots, tally, num_questions=num_questions, on_finding=_told)
        cases.run(life.num, life.begin, until=lambda: time.monotonic() > deadline_s)
    say(str(tally))


def _lives(asked: argparse.Namespace, seed: int) -> list[Life]:
    if asked.exactly is not None:
        return [Life(asked.exactly, 1)]
    begins = range(0, asked.cases, CASES_OF_A_LIFE)
    return [Life(seed + begin, min(CASES_OF_A_LIFE, asked.cases - begin)) for begin in begins]


def _told(finding: Finding) -> None:
    say(str(finding))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.damage", description="Random damage to a service's files.")
    parser.add_argument("--cases", type=int, default=USUAL_CASES)
    parser.add_argument("--starts", type=int, default=USUAL_STARTS, help="damage under a service that is away")
    parser.add_argument("--questions", type=int, default=USUAL_QUESTIONS, help="of each case, by chance")
    parser.add_argument("--minutes", type=float, help="no case begins after so many")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--exactly", type=int, metavar="SEED", help="that case alone")
    parser.add_argument("--at", type=Path, metavar="FOLDER", help="a populated state to use, or to make and keep")
    return parser


if __name__ == "__main__":
    sys.exit(main())
