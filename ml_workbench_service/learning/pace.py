"""`Pace`: one thread or several for a training loop, whichever is faster just now.

On a quiet machine two threads train a batch of 128 windows half as fast again; beside a busy process they wait for
each other at every operation and are 5 to 100 times slower. So the loop measures: a few batches with one thread, then
several threads until they fall behind that. The caller makes sure that the number of threads changes no bit on its
shapes (`loop` compares the gradients): otherwise the weights would depend on the clock.
"""

import statistics
import time

import torch

PROBE = 6
"""Batches with one thread that set the standard."""
PATIENCE = 10
"""How far several threads may fall behind one, in batches of time, before they are given up."""
SHORTEST, LONGEST = 250, 4000
"""Batches from one probe to the next; doubled whenever several threads fell behind."""


class Pace:
    """Call `next_batch` before every batch; it costs a microsecond."""

    def __init__(self, most_threads: int) -> None:
        self._most = most_threads
        self._place, self._period = 0, SHORTEST
        self._last = 0.0
        self._alone: list[float] = []
        self._standard_s = 0.0
        self._behind_s = 0.0
        self._is_several = False
        self._use_several(False)

    def next_batch(self) -> None:
        """Notes how long the last batch took, and changes the number of threads where that tells."""
        if self._most == 1:
            return
        now = time.perf_counter()
        took_s, self._last = now - self._last, now
        if self._place in range(1, PROBE + 1):
            self._alone.append(took_s)
            if self._place == PROBE:
                self._standard_s, self._behind_s, self._alone = statistics.median(self._alone), 0.0, []
                self._use_several(True)
        elif self._is_several:
            self._behind_s = max(0.0, self._behind_s + took_s - self._standard_s)
            if self._behind_s > PATIENCE * self._standard_s:
                self._use_several(False)
        self._place += 1
        if self._place >= self._period:
            self._period = SHORTEST if self._is_several else min(self._period * 2, LONGEST)
            self._place = 0
            self._use_several(False)

    def _use_several(self, several: bool) -> None:
        self._is_several = several
        torch.set_num_threads(self._most if several else 1)
