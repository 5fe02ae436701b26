"""Alpha spending: the tests of a sample that grows, so that looking again and again finds no more by luck than once.

A recipe's rows grow with each retraining, a live version's with each bar. Whoever tests at 2.5 % after every row finds
skill in nearly everything sooner or later. So a growing sample is tested at sizes that are fixed beforehand, and each
test spends a part of the 2.5 % (Lan and DeMets, Biometrika 70, 1983):

    first whole             a recipe's first test part, or 400 live moments        0.02
    each time it doubled    first x 2, x 4, x 8 ...; the k-th doubling             0.005 x 2^-k      0.025 in all

A test reads the oldest `first x 2^k` moments and nothing later, so that its answer never moves and can be made again
from the rows alone. Between tests the last answer stands; a later test can take skill away as well as give it. That
the levels sum to 2.5 % holds whatever the tests share (Bonferroni).

When it fails: the rows must come in order of time and must not be chosen by what they show.

Legend: T moments.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ml_workbench_service.contracts.evaluation import SignificanceTest
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.significance import hac_mean

LEVEL = 0.025
"""finance.md: one-sided; what all tests of one sample may spend together."""
FIRST_LEVEL = 0.02
"""finance.md: of it, the first test's."""
DOUBLING_LEVEL = 0.005
"""finance.md: of it, that of all doublings together; the k-th spends 2^-k of it."""
FIRST_LIVE_MOMENTS = 400
"""finance.md: live rows that the first test waits for."""


class Stage(NamedTuple):
    """One test of a growing sample: how many doublings came before it, its size in moments, and what it spends."""

    doublings: int
    num_moments: int
    level: float


@dataclass(frozen=True)
class GrowingAnswer:
    """What the last test said that the sample was large enough for.

    Attributes:
        stage: None: the first is still to come.
        test: None likewise.
        next_at: moments that the next test waits for.
    """

    stage: Stage | None
    test: SignificanceTest | None
    next_at: int

    @property
    def p_value(self) -> float | None:
        """The p-value in units of what its test may spend: at most `LEVEL` exactly where the test passes."""
        if self.stage is None or self.test is None or self.test.p_value is None:
            return None
        return min(1.0, self.test.p_value * LEVEL / self.stage.level)

    @property
    def is_passed(self) -> bool:
        """Whether the last test found what it looked for."""
        p_value = self.p_value
        return p_value is not None and p_value <= LEVEL


def level(doublings: int) -> float:
    """What the test after so many doublings spends."""
    return FIRST_LEVEL if doublings == 0 else DOUBLING_LEVEL * 2.0**-doublings


def last_stage(num_moments: int, *, first: int) -> Stage | None:
    """The last test that a sample of so many moments has reached; None before the first."""
    assert first >= 1, "a first test reads something"
    if num_moments < first:
        return None
    doublings = (num_moments // first).bit_length() - 1
    return Stage(doublings, first << doublings, level(doublings))


def growing_test(gains_T: Floats, *, first: int, horizon: int = 1) -> GrowingAnswer:
    """Whether the mean gain is above zero, by the last test that the sample is large enough for.

    Args:
        gains_T: one value a moment, oldest first.
        first: moments of the first test: all that there were when the sample was first judged.
        horizon: bars that one value spans.
    """
    stage = last_stage(len(gains_T), first=first)
    if stage is None:
        return GrowingAnswer(None, None, first)
    return GrowingAnswer(stage, hac_mean(gains_T[: stage.num_moments], horizon=horizon), 2 * stage.num_moments)
