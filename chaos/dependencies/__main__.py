"""Fault matrix: `python -m chaos.dependencies [--things "Redis;MLflow"] [--faults "drip;garbage"] [--write]`.

A service with the outside things at real servers, each behind a proxy that spoils its connections: every thing x every
fault x train, predict, deploy, replay. `--write` puts the table into docs/resilience.md. Ends with 1 where something
was not as promised.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.running_service import started
from benchmarks.small_training import write_bars
from chaos.dependencies.matrix import BEGIN, FAULTS, sweep, table
from chaos.dependencies.proxy import Fault, FaultyProxy
from chaos.dependencies.servers import DEPENDENCIES, dependencies, variables
from chaos.dependencies.verbs import PATIENCE_S, VERBS, Asker
from tools.documents import in_place, say

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "resilience.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweeps what was asked for, and prints the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.dependencies", description="Outside things that fail.")
    parser.add_argument("--things", default=";".join(DEPENDENCIES), help="with semicolons")
    parser.add_argument("--faults", default=";".join(FAULTS), help="with semicolons")
    parser.add_argument("--write", action="store_true", help="the table into docs/resilience.md")
    asked = parser.parse_args(arguments)
    faults = [Fault(each.strip()) for each in asked.faults.split(";")]
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), tuple(each.strip() for each in asked.things.split(";"))) as (client, asker, proxies),
    ):
        rows = sweep(client, asker, proxies, faults, told=say)
    violations = [each for row in rows for each in row.violations()]
    when, minutes = datetime.now(tz=UTC).date().isoformat(), (time.monotonic() - begun) / 60
    num_cells = len(rows) * len(VERBS)
    about = f"{when}, {minutes:.0f} minutes: {num_cells} cells, {len(violations)} not as promised"
    text = f"`python -m chaos.dependencies`, {about}.\n\n{table(rows)}"
    say("\n" + text)
    for each in violations:
        say(f"VIOLATED {each}")
    if asked.write:
        DOCUMENT.write_text(in_place(DOCUMENT.read_text(encoding="utf-8"), BEGIN, text), encoding="utf-8")
    return 1 if violations else 0


@contextmanager
def running(folder: Path, things: tuple[str, ...]) -> Iterator[tuple[httpx.Client, Asker, dict[str, FaultyProxy]]]:
    """A service with two versions of a model, one of them live, among these outside things."""
    bars = folder / "bars"
    bars.mkdir()
    write_bars(bars / "EURUSD_1h.csv")
    with dependencies(folder / "outside", bars, wanted=things) as proxies:
        told = {"FEATURE_STORE_URL": bars.as_uri(), "PAGE": "false", **variables(proxies)}
        with (
            started(folder / "service", **told) as service,
            httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client,
        ):
            asker = Asker(client)
            asker.prepare()
            yield client, asker, proxies


if __name__ == "__main__":
    sys.exit(main())
