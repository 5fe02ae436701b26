"""Soak: `python -m chaos.soak [--minutes 30] [--seed N] [--load 0.7]`.

A service among a real Feature Store, Redis and strategy engine, each behind a proxy, with its state on a disk of its
own, answers mixed load at a share of what it can answer; every twenty seconds something fails, for eight. Counted are
answers that the OpenAPI document does not know, records that were promised and are nowhere, and how the memory and the
descriptors of the API process grow. Ends with 1 where something was not as promised.
"""

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.running_service import RunningService, started
from benchmarks.serving import pid_of
from benchmarks.small_training import write_bars
from chaos.dependencies.servers import FEATURE_STORE, REDIS, STRATEGY_ENGINE, dependencies, variables
from chaos.dependencies.verbs import API, MODEL, PATIENCE_S, SENT, Asker
from chaos.soak.faults import Faults, small_disk
from chaos.soak.load import DEPLOYED, Load
from tools.documents import say

EVERY_S, HELD_S = 20.0, 8.0
MEASURE_S = 8.0
QUIET_S = 90.0
"""After the last fault, for everything to be well again."""
DISK_MB = 512
MOST_MB_AN_HOUR = 60.0
MOST_DESCRIPTORS = 20
WARM_SHARE = 0.3
"""Of the time, in which caches and pools fill; slopes are of the rest."""


@dataclass
class Watch:
    """The API process, looked at again and again: seconds, resident MB, descriptors."""

    process: psutil.Process
    rows: list[tuple[float, float, int]] = field(default_factory=list)

    def look(self) -> None:
        """One look."""
        resident = self.process.memory_info().rss / 1e6
        self.rows.append((time.monotonic(), resident, self.process.num_fds()))

    def slopes(self) -> tuple[float, float]:
        """MB and descriptors an hour, by least squares over what comes after the warm-up."""
        seconds, resident, descriptors = np.array(self.rows[int(len(self.rows) * WARM_SHARE) :]).T
        hours = (seconds - seconds[0]) / 3600
        return float(np.polyfit(hours, resident, 1)[0]), float(np.polyfit(hours, descriptors, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Soaks, and prints what came of it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description="Load and faults for a long time.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--load", type=float, default=0.7, help="share of what it answers at most")
    asked = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bars = folder / "bars"
        bars.mkdir()
        write_bars(bars / "EURUSD_1h.csv")
        things = (FEATURE_STORE, REDIS, STRATEGY_ENGINE)
        with (
            small_disk(folder / "disk", size_mb=DISK_MB) as disk,
            dependencies(folder / "outside", bars, wanted=things) as proxies,
        ):
            state = folder / "disk" / "state"
            told = {"STATE_DIR": str(state), "PAGE": "false", **variables(proxies)}
            with started(folder / "service", **told) as service:
                faults = Faults(proxies, state, disk, seed=seed)
                say(f"seed {seed}; {'with' if disk else 'without'} a disk of its own")
                return 1 if _soaked(service, faults, minutes=asked.minutes, share=asked.load) else 0


def _soaked(service: RunningService, faults: Faults, *, minutes: float, share: float) -> list[str]:
    """What was not as promised, a sentence each."""
    with httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client:
        Asker(client).prepare()
        client.post(f"{API}/models/{MODEL}/deploy", json={"version": "1.1.0", **DEPLOYED}).raise_for_status()
        most_per_s = _answered_per_s(client)
        load = Load(service.address, rate_per_s=most_per_s * share)
        watch, done = Watch(psutil.Process(pid_of(service))), Counter[str]()
        say(f"{most_per_s:.0f} guaranteed predictions a second at most from one caller; {share:.0%} of them are asked")
        load.start()
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            with faults.one() as name:
                done[name] += 1
                _watched(watch, HELD_S)
            _watched(watch, EVERY_S - HELD_S)
        load.stop()
        _until(lambda: _is_quiet(client), QUIET_S)
        lost = _lost(client, load.told.kept)
        balances = {each["group"]: each["balance"] for each in client.get(f"{API}/queue").json()["groups"]}
        things = {name: each["state"] for name, each in client.get("/health/ready").json()["things"].items()}
    mb_an_hour, descriptors_an_hour = watch.slopes()
    grown = max(row[2] for row in watch.rows[-5:]) - min(row[2] for row in watch.rows[:5])
    wrong = [f"not in the document: {each}" for each in load.told.undocumented]
    wrong += [f"{lost} of {len(load.told.kept)} records that were promised are nowhere"] if lost else []
    wrong += [f"group {name} does not balance: {off}" for name, off in balances.items() if off]
    wrong += [f"{name} is {state} at the end" for name, state in things.items() if state == "down"]
    wrong += [f"resident memory grows by {mb_an_hour:.0f} MB an hour"] if mb_an_hour > MOST_MB_AN_HOUR else []
    wrong += [f"{grown} descriptors more than at the start"] if grown > MOST_DESCRIPTORS else []
    for name, num in sorted(load.told.statuses.items()):
        say(f"  {num:6,} {name}")
    say(f"faults: {', '.join(f'{name} {num}' for name, num in sorted(done.items()))}")
    say(f"jobs: {dict(load.told.num_jobs)}; slowest answer {load.told.slowest_s:.1f} s")
    say(
        f"{minutes:.0f} minutes: {sum(load.told.statuses.values()):,} answers, "
        f"{len(load.told.undocumented)} undocumented, "
        f"{lost} of {len(load.told.kept):,} promised records lost, balances {balances}; resident "
        f"{watch.rows[0][1]:.0f} → {watch.rows[-1][1]:.0f} MB ({mb_an_hour:+.1f} MB/h), descriptors "
        f"{watch.rows[0][2]} → {watch.rows[-1][2]} ({descriptors_an_hour:+.1f}/h)"
    )
    for each in wrong:
        say(f"VIOLATED {each}")
    return wrong


def _answered_per_s(client: httpx.Client) -> float:
    """By one caller, one after the other."""
    num, begun = 0, time.monotonic()
    while time.monotonic() - begun < MEASURE_S:
        client.post(f"{API}/models/{MODEL}/predict", json=SENT, params={"enqueue": "guaranteed"}).raise_for_status()
        num += 1
    return num / (time.monotonic() - begun)


def _watched(watch: Watch, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watch.look()
        time.sleep(min(2.0, max(0.0, end - time.monotonic())))


def _is_quiet(client: httpx.Client) -> bool:
    answer = client.get(f"{API}/queue")
    if answer.status_code != 200:
        return False
    found = answer.json()
    return found["outbox"] == 0 and all(not each["pending"] and not each["undelivered"] for each in found["groups"])


def _lost(client: httpx.Client, kept: Sequence[str]) -> int:
    """How many of these are not in the ledger, which has every live answer."""
    found: set[str] = set()
    cursor: str | None = None
    while True:
        query = {"limit": "200", **({"cursor": cursor} if cursor else {})}
        page = client.get(f"{API}/predictions", params=query).raise_for_status().json()
        found |= {each["prediction_id"] for each in page["predictions"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return len(set(kept) - found)


def _until(is_true: Callable[[], bool], most_s: float) -> None:
    end = time.monotonic() + most_s
    while time.monotonic() < end and not is_true():
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
