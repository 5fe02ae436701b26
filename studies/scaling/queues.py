"""Queues in steady state: waiting times of a server that takes what waits, and of k servers behind one line.

`GatedServer` is the embedded chain of Bailey's bulk service (On queueing processes with bulk service, J. R. Stat. Soc.
B 16, 1954) at the beginnings of turns, solved numerically; with one item a turn it is M/G/1. `pooled_wait_s` is Lee and
Longton's M/G/k (Oper. Res. Q. 10, 1959): Erlang's M/M/k wait times half of 1 + c².
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.stats import gamma, nbinom, poisson

SIZES = (48, 256)
"""States of the chain: few, or more where these are seen to end too soon; who has more waiting is called full."""
FULL = 0.97
"""Busier than this a server counts as full: what waits then is no steady state that anybody would run."""
_PARTS = (np.arange(16) + 0.5) / 16
_RESIDUAL = (np.arange(6) + 0.5) / 6


class Latency(NamedTuple):
    """Seconds from an arrival to the end of its turn."""

    mean_s: float
    p99_s: float


NEVER = Latency(math.inf, math.inf)


@dataclass(frozen=True)
class GatedServer:
    """A server that begins a turn with what waits and ends it for all of them together.

    Attributes:
        per_s: Poisson arrivals.
        turn_s, item_s: what a turn costs, and each item in it.
        cv2: squared coefficient of variation of a turn of one item.
        most: items in a turn.
        num_kinds: kinds of items in equal shares, of which a turn has one: its first item's.
    """

    per_s: float
    turn_s: float
    item_s: float
    cv2: float = 0.0
    most: int = 64
    num_kinds: int = 1

    def items(self, waiting: np.ndarray) -> np.ndarray:
        """Items in a turn at whose beginning so many wait."""
        return np.minimum(self.most, 1 + (waiting - 1) / self.num_kinds)

    @property
    def capacity_per_s(self) -> float:
        """Items that it ends where there are always some; of many kinds, one a turn."""
        most = self.most if self.num_kinds == 1 else 1
        return most / (self.turn_s + most * self.item_s)

    @property
    def capacity_alone_per_s(self) -> float:
        """The same of items that each have a turn of their own."""
        return 1 / (self.turn_s + self.item_s)

    @property
    def is_full(self) -> bool:
        """Whether it has no steady state."""
        return bool(self.per_s >= FULL * self.capacity_per_s or self._chain[1][-20:].sum() > 1e-3)

    @cached_property
    def _chain(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Waiting at the beginning of a turn, its shares, the turn's mean duration, and the share of turns after which
        nobody waits.
        """
        for size in SIZES:
            found = self._chain_of(size)
            if found[1][-8:].sum() < 1e-9:
                break
        return found

    def _chain_of(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        waiting = np.arange(1, size + 1)
        items = self.items(waiting)
        duration = self.turn_s + self.item_s * items
        variance = self.cv2 * (self.turn_s + self.item_s) ** 2 * items
        mean = self.per_s * duration
        excess = self.per_s**2 * variance
        came = np.arange(size + 1)
        chances = (
            poisson.pmf(came, mean[:, None])
            if self.cv2 == 0
            else nbinom.pmf(came, (mean**2 / excess)[:, None], (mean / (mean + excess))[:, None])
        )
        matrix = np.zeros((size, size + 1))
        for row, left in enumerate(np.round(waiting - items).astype(int)):
            matrix[row, left:] = chances[row, : size + 1 - left]
            matrix[row, -1] += max(0.0, 1.0 - matrix[row].sum())
        empty = matrix[:, 0].copy()
        steps = matrix[:, 1:].copy()
        steps[:, 0] += empty
        balance = steps.T - np.eye(size)
        balance[-1] = 1.0
        shares = np.linalg.solve(balance, np.append(np.zeros(size - 1), 1.0)).clip(0)
        shares /= shares.sum()
        return waiting, shares, duration, float(shares @ empty)

    @property
    def turns_per_s(self) -> float:
        """Turns in a second."""
        _, shares, duration, empty = self._chain
        return float(1 / (shares @ duration + empty / self.per_s))

    @property
    def busy(self) -> float:
        """Share of the time in which it works; 1 where it is full."""
        if self.is_full:
            return 1.0
        return float(self.turns_per_s * (self._chain[1] @ self._chain[2]))

    @cached_property
    def latency(self) -> Latency:
        """Of an arrival at any moment, first come first served among turns."""
        if self.is_full:
            return NEVER
        waiting, shares, duration, empty = self._chain
        kept = shares > 1e-7
        waiting, shares, duration = waiting[kept], shares[kept], duration[kept]
        long = duration * (1 + self.cv2 * (self.turn_s + self.item_s) ** 2 * self.items(waiting) / duration**2)
        idle_s = empty / self.per_s
        total_s = shares @ duration + idle_s
        left = waiting - self.items(waiting)
        during = np.maximum(self.per_s * long, 1e-12)
        gone, parts = _RESIDUAL[None, :, None], _PARTS[None, None, :]
        ahead = left[:, None, None] + poisson.ppf(parts, during[:, None, None] * gone)
        behind = poisson.ppf(parts[..., ::-1], during[:, None, None] * (1 - gone))
        together = self.items(ahead + 1 + behind)
        turns_before = np.floor(ahead / together)
        full_s = self.turn_s + self.item_s * together
        before_s = long[:, None, None] * (1 - gone) + turns_before * full_s
        own = _gamma_quantiles(self.cv2 / max(1.0, float(self.items(waiting) @ shares)), 10)
        found = before_s[..., None] + full_s[..., None] * own
        weights = np.broadcast_to((shares * duration / total_s)[:, None, None, None], found.shape) / found[0].size
        alone_s = (self.turn_s + self.item_s) * _gamma_quantiles(self.cv2)
        values = np.concatenate([found.ravel(), alone_s])
        chances = np.concatenate([weights.ravel(), np.full(len(alone_s), idle_s / total_s / len(alone_s))])
        order = np.argsort(values)
        place = np.searchsorted(np.cumsum(chances[order]), 0.99 * chances.sum())
        return Latency(float(values @ chances), float(values[order][min(place, len(order) - 1)]))


def _gamma_quantiles(cv2: float, num: int = 200) -> np.ndarray:
    """Of a gamma distribution with mean 1."""
    if cv2 == 0:
        return np.ones(1)
    return np.asarray(gamma.ppf((np.arange(num) + 0.5) / num, 1 / cv2, scale=cv2))


def pooled_wait_s(per_s: float, service_s: float, num: int, cv2: float) -> float:
    """Mean wait for one of `num` servers behind one line; infinite where they are full."""
    offered = per_s * service_s
    if offered >= num:
        return math.inf
    blocked = 1.0
    for each in range(1, num + 1):  # Erlang's B, then C
        blocked = offered * blocked / (each + offered * blocked)
    waits = blocked / (1 - offered / num * (1 - blocked))
    return waits * service_s / (num - offered) * (1 + cv2) / 2
