"""Open-loop load schedule: when each record is due, fixed beforehand, whatever becomes of the ones before it.

An open loop: a producer that falls behind offers late and says how late, instead of waiting for answers and so leaving
out the very moments that matter (coordinated omission).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.resilience import Scenario

WAVE_S = 1.0  # a burst's records come together, once in this time


@dataclass(frozen=True)
class Burst:
    """Records on top of the scenario's, all due at one moment."""

    at_s: float
    num_records: int


def due_times(
    scenario: Scenario, *, rate_per_s: float, duration_s: float, seed: int, bursts: Sequence[Burst] = ()
) -> Floats:
    """Seconds after the beginning at which record 0, 1, 2 … is due, rising."""
    num_records = max(1, round(rate_per_s * duration_s))
    even = np.arange(num_records) / rate_per_s
    if scenario == "flood":  # Poisson arrivals: uniform moments, in order
        even = np.sort(np.random.default_rng([seed, 2]).uniform(0.0, duration_s, num_records))
    elif scenario == "burst":
        even = np.floor(even / WAVE_S) * WAVE_S
    extra = [np.full(burst.num_records, burst.at_s) for burst in bursts]
    return np.sort(np.concatenate([even, *extra]), kind="stable")
