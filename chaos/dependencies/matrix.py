"""Matrix: each outside thing x each fault x each verb; what the service promises there, and whether it keeps it.

A row is one thing under one fault: all verbs are asked, then readiness; then the fault is taken back, and all verbs are
asked again until they are well, without a restart. `/health` is asked all the while.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from chaos.dependencies.proxy import Fault, FaultyProxy
from chaos.dependencies.servers import FEATURE_STORE, MLFLOW, REDIS, STRATEGY_ENGINE
from chaos.dependencies.verbs import VERBS, Asker, Outcome
from tools.documents import markdown_table

MOST_S = 120.0
"""For one verb, jobs to their end: four times the longest patience that the service has with anybody outside."""
BACK_WITHIN_S = 90.0
HEALTH_WITHIN_S = 5.0
BEGIN = "<!-- dependencies: written by python -m chaos.dependencies -->"
FAULTS = tuple(each for each in Fault if each is not Fault.NONE)
PASSING = frozenset({Fault.LATENCY, Fault.SLOW_CLOSE})
SILENT = frozenset({Fault.BLACK_HOLE, Fault.DRIP})
THINGS = {
    FEATURE_STORE: "feature_store", MLFLOW: "experiment_tracking", REDIS: "redis", STRATEGY_ENGINE: "strategy_engine",
}  # fmt: skip
"""Names in `/health/ready`."""
BROKEN: Mapping[tuple[str, str], tuple[str, str]] = {
    (FEATURE_STORE, "train"): ("failed UPSTREAM_ERROR", "failed UPSTREAM_TIMEOUT"),
    (FEATURE_STORE, "predict"): ("502 UPSTREAM_ERROR", "504 UPSTREAM_TIMEOUT"),
    (FEATURE_STORE, "replay"): ("failed UPSTREAM_ERROR", "failed UPSTREAM_TIMEOUT"),
    (REDIS, "replay"): ("503 UNAVAILABLE", "503 UNAVAILABLE"),
    (STRATEGY_ENGINE, "deploy"): ("502 UPSTREAM_ERROR", "504 UPSTREAM_TIMEOUT"),
}
"""What a thing that is away, or silent, takes along; every other verb goes on as if nothing were."""


@dataclass
class Row:
    """One thing under one fault."""

    thing: str
    fault: Fault
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    readiness: str = ""
    readiness_s: float = 0.0
    worst_health_s: float = 0.0
    back_after_s: float | None = None

    def violations(self) -> list[str]:
        """What was promised and not kept, a sentence each."""
        found = []
        for verb, outcome in self.outcomes.items():
            wanted = promised(self.thing, self.fault, verb)
            if not (outcome.is_well if wanted is None else outcome.said == wanted):
                found.append(f"{verb}: {outcome.said} ({outcome.message}) instead of {wanted or 'being done'}")
            if outcome.seconds > MOST_S:
                found.append(f"{verb} took {outcome.seconds:.0f} s")
        if self.readiness_s > MOST_S:
            found.append(f"readiness took {self.readiness_s:.0f} s")
        if self.readiness not in self._readiness():
            found.append(f"readiness says {self.readiness}")
        if self.worst_health_s > HEALTH_WITHIN_S:
            found.append(f"/health took {self.worst_health_s:.1f} s")
        if self.back_after_s is None:
            found.append("it was not back without a restart")
        return [f"{self.thing}, {self.fault}: {each}" for each in found]

    def _readiness(self) -> set[str]:
        if self.fault in PASSING:
            return {"ok"}
        if self.thing in (MLFLOW, STRATEGY_ENGINE):  # of half an answer the status may stand in that half
            return {"degraded"} | ({"ok"} if self.fault is Fault.HALF_ANSWER else set())
        return {"down"}

    def line(self) -> list[str]:
        """Its cells of the table."""
        cells = [f"{each.said} ({each.seconds:.1f} s)" for each in self.outcomes.values()]
        back = "no" if self.back_after_s is None else f"{self.back_after_s:.0f} s"
        health = f"{self.worst_health_s * 1000:.0f} ms"
        return [self.thing, str(self.fault), *cells, f"{self.readiness} ({self.readiness_s:.1f} s)", health, back]


def promised(thing: str, fault: Fault, verb: str) -> str | None:
    """What a verb ends with; None: it is done as ever."""
    found = None if fault in PASSING else BROKEN.get((thing, verb))
    return None if found is None else found[fault in SILENT]


def sweep(
    client: httpx.Client, asker: Asker, proxies: Mapping[str, FaultyProxy], faults: Sequence[Fault],
    verbs: Sequence[str] = tuple(VERBS), *, told: Callable[[str], None] = lambda _: None,
) -> list[Row]:  # fmt: skip
    """Every thing under every fault."""
    rows = []
    for thing, proxy in proxies.items():
        for fault in faults:
            rows.append(_row(client, asker, proxy, Row(thing, fault), verbs))
            told(" | ".join(rows[-1].line()))
            for each in rows[-1].violations():
                told(f"VIOLATED {each}")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    return markdown_table(
        ["outside", "fault", *VERBS, "readiness", "`/health` at worst", "all well again after"],
        [row.line() for row in rows],
    )


def _row(client: httpx.Client, asker: Asker, proxy: FaultyProxy, row: Row, verbs: Sequence[str]) -> Row:
    with _health_asked(str(client.base_url), row):
        proxy.fault = row.fault
        try:
            for name in verbs:
                row.outcomes[name] = VERBS[name](asker)
            looked, things = asker.readiness()
            row.readiness, row.readiness_s = things[THINGS[row.thing]], looked.seconds
        finally:
            proxy.fault = Fault.NONE
        row.back_after_s = _back(asker, row.thing, verbs)
    return row


def _back(asker: Asker, thing: str, verbs: Sequence[str]) -> float | None:
    """Seconds until every verb is well, readiness says so, and MLflow knows what was trained; None: never."""
    begun = time.monotonic()
    while time.monotonic() - begun < BACK_WITHIN_S:
        is_well = all(VERBS[name](asker).is_well for name in verbs)
        is_known = thing != MLFLOW or asker.is_tracked(within_s=BACK_WITHIN_S)
        if is_well and is_known and asker.readiness()[1][THINGS[thing]] == "ok":
            return time.monotonic() - begun
        time.sleep(0.2)
    return None


@contextmanager
def _health_asked(address: str, row: Row) -> Iterator[None]:
    stopping = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=MOST_S) as client:
            while not stopping.wait(0.05):
                begun = time.monotonic()
                client.get("/health").raise_for_status()
                row.worst_health_s = max(row.worst_health_s, time.monotonic() - begun)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
