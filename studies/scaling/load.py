"""Load on a serving process: several requests drawn at random, as fast as they are answered or at Poisson moments.

Sockets and `epoll` alone, as `benchmarks.contestants.closed_loop_load`, whose connections it uses.
"""

import select
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from benchmarks.contestants.closed_loop_load import Connection


class Asker(Connection):
    """A connection that asks for something else each time."""

    def ask_for(self, request: bytes) -> None:
        """Sends it."""
        self._request = request
        self.ask()


def answer_times(
    port: int, requests: Sequence[bytes], *, num_connections: int, seconds: float, per_s: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Seconds of each answer; with `per_s` from when its question was due, an open loop with Poisson arrivals.

    Raises:
        RuntimeError: an answer was no 200.
    """
    chance = np.random.default_rng(seed)
    connections = [Asker(port, b"") for _ in range(num_connections)]
    by_number = {each.socket.fileno(): each for each in connections}
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    idle, took = deque(connections), []
    begun = due = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        while idle and due <= now:
            each = idle.popleft()
            each.ask_for(requests[int(chance.integers(len(requests)))])
            if per_s:
                each.begun, due = due, due + float(chance.exponential(1 / per_s))
        for number, _ in poll.poll(max(due - now, 0.0) if idle else 5.0):
            each = by_number[number]
            if each.read():
                took.append(time.perf_counter() - each.begun)
                idle.append(each)
    for each in connections:
        each.socket.close()
    poll.close()
    return np.asarray(took)
