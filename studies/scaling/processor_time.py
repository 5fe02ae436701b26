"""Processor time of any process to the nanosecond, and what it waited for a core, by Linux's scheduler."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class Spent(NamedTuple):
    """Seconds on a core, and seconds of waiting for one, of all threads that live."""

    run_s: float
    waited_s: float

    def since(self, before: "Spent") -> "Spent":
        """What came since."""
        return Spent(self.run_s - before.run_s, self.waited_s - before.waited_s)


def spent(pid: int) -> Spent:
    """Of a process, from `/proc/<pid>/task/*/schedstat`; a thread that has ended counts no more."""
    run_ns = waited_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            on, waiting, _ = (task / "schedstat").read_text().split()
        except OSError:  # it has just ended
            continue
        run_ns, waited_ns = run_ns + int(on), waited_ns + int(waiting)
    return Spent(run_ns / 1e9, waited_ns / 1e9)


def least_s(work: Callable[[], object], *, num_rounds: int = 30, num: int = 50) -> float:
    """Processor time of this process for one of many calls, in the round that took least."""
    costs = []
    for _ in range(num_rounds):
        begun = time.process_time()
        for _ in range(num):
            work()
        costs.append((time.process_time() - begun) / num)
    return min(costs)


def least(costs: Sequence[float], *counts: Sequence[float]) -> list[list[float]]:
    """The least cost of each combination of counts, and these: one round of several."""
    found: dict[tuple[float, ...], float] = {}
    for cost, *of in zip(costs, *counts, strict=True):
        found[tuple(of)] = min(cost, found.get(tuple(of), cost))
    return [list(found.values()), *map(list, zip(*found, strict=True))]


def fitted(costs: Sequence[float], *counts: Sequence[float]) -> list[float]:
    """What each thing costs, none less than nothing: `costs` of calls with so many of each, relative errors alike."""
    weight = 1 / np.asarray(costs)
    matrix = np.column_stack([np.asarray(each, dtype=float) for each in counts])
    solution, _ = nnls(matrix * weight[:, None], np.ones(len(costs)))
    return [float(each) for each in solution]


def share_of_a_core(seconds: float = 0.5) -> float:
    """What a loop that only counts got of a core just now: 1 on a machine that nobody else uses."""
    wall, processor = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        pass
    return (time.process_time() - processor) / (time.perf_counter() - wall)
