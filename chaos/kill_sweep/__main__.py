"""Kill sweep: `python -m chaos.kill_sweep [--only "publish;deploy"] [--repetitions N] [--most-points N]`.

Prints a line for each step: points, kills, violations. Ends with 1 where there is a violation.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from chaos.kill_sweep.signing import SIGNING
from chaos.kill_sweep.steps import STEPS, Step
from chaos.kill_sweep.sweep import Swept, sweep
from tools.documents import say

TRACKER_POINTS = 60
"""Of the tracker, whose store takes a second for each; `--most-points` says otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweeps what was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.kill_sweep", description="Kills at every step.")
    parser.add_argument("--only", help="steps by name, with semicolons")
    parser.add_argument("--repetitions", type=int, default=1, help="of each point (default 1)")
    parser.add_argument("--most-points", type=int, help="of each step, evenly spaced (default: all)")
    asked = parser.parse_args(arguments)
    wanted = None if asked.only is None else {each.strip() for each in asked.only.split(";")}
    begun, done = time.monotonic(), []
    for name, step in steps().items():
        if wanted is None or name in wanted:
            most = asked.most_points or (TRACKER_POINTS if name == "tracker" else None)
            done.append(sweep(name, step, repetitions=asked.repetitions, most_points=most, told=say))
            say(done[-1].line())
    if not done:
        say(f"no step is called {asked.only}; there are: {', '.join(steps())}")
        return 2
    say(total(done, asked.repetitions) + f", in {(time.monotonic() - begun) / 60:.1f} minutes")
    return 1 if any(each.violations for each in done) else 0


def steps() -> dict[str, Step]:
    """All of them; MLflow is loaded once, here, and not in each child."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from chaos.kill_sweep.tracking import TRACKER

    return {**STEPS, **SIGNING, "tracker": TRACKER}


def total(done: Sequence[Swept], repetitions: int) -> str:
    """Points x repetitions, and what came of them."""
    points, kills = sum(each.num_points for each in done), sum(each.num_kills for each in done)
    violations = sum(len(each.violations) for each in done)
    return f"{points} points x {repetitions} repetitions, {kills} kills, {violations} violations"


if __name__ == "__main__":
    sys.exit(main())
