"""`Promise`: what a parser keeps for every case of a strategy; hypothesis makes the cases, and shrinks what breaks it.

Law: a promise is checked with the parsers that the service runs, over bytes and files; nothing is stood in for.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from chaos.damage.damages import DAMAGES

LONGEST_S = 5.0
"""Of one case on a busy machine; a parser whose time explodes with its input takes longer."""
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)


@dataclass(frozen=True)
class Promise:
    """A promise by name.

    Attributes:
        cases: makes them.
        check: raises where a case breaks the promise.
    """

    name: str
    cases: st.SearchStrategy[Any]
    check: Callable[[Any], None]

    def run(self, num: int, *, seed: int | None = None, until: Callable[[], bool] = lambda: False) -> int:
        """Checks so many cases; how many were checked, shrinking apart.

        Args:
            seed: of the cases; None: always the same ones.
            until: no case is checked once it says so.

        Raises:
            Exception: of the smallest case that breaks the promise, with that case in its notes.
        """
        num_checked = 0

        @settings(
            max_examples=num, deadline=None, database=None, derandomize=seed is None, phases=PHASES,
            suppress_health_check=list(HealthCheck), print_blob=False,
        )  # fmt: skip
        @given(self.cases)
        def tried(case: Any) -> None:
            nonlocal num_checked
            if until():
                return
            num_checked += 1
            begun_s = time.monotonic()
            self.check(case)
            taken_s = time.monotonic() - begun_s
            assert taken_s < LONGEST_S, f"took {taken_s:.1f} s"

        (tried if seed is None else hypothesis.seed(seed)(tried))()
        return num_checked


PROMISES: dict[str, Promise] = {}
"""All, by name, once their modules are loaded."""


def promise(name: str, cases: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a check as a promise over these cases."""

    def registered(check: Callable[[Any], None]) -> Callable[[Any], None]:
        assert name not in PROMISES, f"two promises are called {name}"
        PROMISES[name] = Promise(name, cases, check)
        return check

    return registered


def mutations(contents: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Some of these contents, damaged once or several times in the ways of `chaos.damage`."""
    kinds = st.lists(st.sampled_from(sorted(DAMAGES)), min_size=1, max_size=3)
    return st.tuples(st.sampled_from(list(contents)), kinds, st.integers(0, 2**32 - 1)).map(_mutated)


def _mutated(case: tuple[bytes, list[str], int]) -> bytes:
    content, kinds, seed = case
    chance = Random(seed)
    for kind in kinds:
        content = DAMAGES[kind](content, chance) if content else content
    return content
