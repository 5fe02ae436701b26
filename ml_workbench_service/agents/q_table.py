"""Tabular Q-learning with epsilon-greedy choices whose random state can be saved and restored exactly.

Q(s, a) moves by the learning rate towards r + discount · V(s'), V the best value of s' (Watkins, 1989). A state is
three bins: the forecast in units of the ex-ante volatility, the interval's width in the same units, and the
position held. An abstention is a state of its own, in which only `flat` can be chosen.

Shape legend: S states, A = 3 actions (short, flat, long, in this order).
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.market import Floats, Ints

POSITIONS = (-1, 0, 1)
NUM_ACTIONS = len(POSITIONS)
FLAT = 1  # index of position 0

# Forecast ÷ volatility. A forecast that explains R² of the variance has a standard deviation of R volatilities: 0.07
# at R² = 0.5 %, 0.22 at 5 %. Below 0.05 it says next to nothing; above 0.3 it is rare.
STRENGTH_EDGES = (-0.3, -0.15, -0.05, 0.05, 0.15, 0.3)
# Width of the 90 % interval ÷ volatility: 3.29 for normal residuals as large as the volatility.
WIDTH_EDGES = (2.5, 4.0)
USUAL_WIDTH = 3.29


@dataclass(frozen=True)
class StateBins:
    """How a forecast, its uncertainty and a position become a state; kept in the checkpoint, so never changed by it."""

    strength_edges: tuple[float, ...] = STRENGTH_EDGES
    width_edges: tuple[float, ...] = WIDTH_EDGES

    @property
    def num_states(self) -> int:
        """S: strength bins and the abstention, times width bins, times positions."""
        return (len(self.strength_edges) + 2) * (len(self.width_edges) + 1) * len(POSITIONS)

    def state_of(self, strength: float | None, width: float | None, position: int) -> int:
        """The state's row.

        Args:
            strength: forecast ÷ volatility; None where the model abstained.
            width: interval width ÷ volatility; None where unknown, which counts as usual.
            position: -1, 0 or 1.
        """
        strength_bin = len(self.strength_edges) + 1 if strength is None else _bin(strength, self.strength_edges)
        width_bin = _bin(USUAL_WIDTH if width is None or strength is None else width, self.width_edges)
        return (strength_bin * (len(self.width_edges) + 1) + width_bin) * len(POSITIONS) + position + 1

    @property
    def first_abstention(self) -> int:
        """From this state on the model abstained: the last strength bin."""
        return (len(self.strength_edges) + 1) * (len(self.width_edges) + 1) * len(POSITIONS)


def _bin(value: float, edges: tuple[float, ...]) -> int:
    """How many edges lie below the value; none where it is no number."""
    return bisect_left(edges, value)


class QTable:
    """Values, visits, exploration rate and random state of one agent.

    The result depends on the order of `choose` and `learn` alone; every number here goes into the checkpoint. Single
    values are read and written through memory views of the arrays, at a tenth of what indexing an array costs.
    """

    def __init__(self, hyperparameters: QLearningHyperparameters, bins: StateBins | None = None) -> None:
        self.hyperparameters = hyperparameters
        self.bins = StateBins() if bins is None else bins
        self.values_SA: Floats = np.zeros((self.bins.num_states, NUM_ACTIONS), dtype=np.float64)
        self.visits_SA: Ints = np.zeros((self.bins.num_states, NUM_ACTIONS), dtype=np.int64)
        self._values: Any = self.values_SA.data
        self._visits: Any = self.visits_SA.data
        self._first_abstention = self.bins.first_abstention
        self.exploration_rate = hyperparameters.exploration_rate
        self._rng = np.random.Generator(np.random.PCG64(hyperparameters.seed))

    @property
    def random_state(self) -> dict[str, Any]:
        """The generator's state, as plain numbers and names."""
        return dict(self._rng.bit_generator.state)

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def greedy(self, state: int) -> int:
        """The best action; among equals flat, so that a state never seen risks nothing."""
        values = self._values
        short, flat, long = values[state, 0], values[state, FLAT], values[state, 2]
        if flat >= short and flat >= long:
            return FLAT
        return 0 if short >= long else 2

    def choose(self, state: int) -> tuple[int, bool]:
        """An action, and whether it was a random one; lowers the exploration rate."""
        explored = bool(self._rng.random() < self.exploration_rate)
        action = int(self._rng.integers(NUM_ACTIONS)) if explored else self.greedy(state)
        settings = self.hyperparameters
        lowered = max(settings.exploration_minimum, self.exploration_rate * settings.exploration_decay)
        self.exploration_rate = min(self.exploration_rate, lowered)
        return action, explored

    def learn(self, state: int, action: int, *, reward: float, next_state: int) -> None:
        """One update with the realised reward."""
        old: float = self._values[state, action]
        target = reward + self.hyperparameters.discount_factor * self._value(next_state)
        self._values[state, action] = old + self.hyperparameters.learning_rate * (target - old)
        self._visits[state, action] += 1

    def _value(self, state: int) -> float:
        values = self._values
        flat: float = values[state, FLAT]
        return flat if state >= self._first_abstention else max(values[state, 0], flat, values[state, 2])
