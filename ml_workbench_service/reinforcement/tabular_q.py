"""Tabular Q-learning: many settings and seeds over the same recorded market, each run a table of its own.

Idea: the market does not answer to what one agent does, so the sequence of market bins and every possible reward are
computed once (`market.trading_series.step_table`), and a run is nothing but a walk over them. A state is the market's
bin and the position held; actions are short, flat, long. Update, exploration and the rule that flat wins among equals
are those of `agents.q_table.QTable`, and a run's table equals its table to the bit, for the same seed.

It fails where the bins say nothing about the next return: then the table learns the costs, and stays flat.

Cost: some 20 ns a row and run, 100 bytes a row. Watkins and Dayan, "Q-learning", Machine Learning 8 (1992).

Legend: N rows, L runs, S = 3 * B states of B market bins, A = 3 actions. Needs numba.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.reinforcement.environment import generator_words
from ml_workbench_service.reinforcement.tabular_q_kernels import NUM_ACTIONS, learn_pass


@dataclass(frozen=True)
class QSettings:
    """One entry a run of each hyper-parameter; bounds and meaning as in `QLearningHyperparameters`."""

    learning_rate_L: Floats
    exploration_rate_L: Floats
    exploration_decay_L: Floats
    exploration_minimum_L: Floats
    discount_factor_L: Floats
    seed_L: Ints

    def __len__(self) -> int:
        return len(self.seed_L)

    @classmethod
    def of(cls, hyperparameters: Sequence[QLearningHyperparameters]) -> "QSettings":
        """One run for each."""
        names = [each.name.removesuffix("_L") for each in fields(cls)]
        return cls(*(np.array([getattr(each, name) for each in hyperparameters]) for name in names))


class VectorTabularQ:
    """Tables that learn side by side, an epoch at a time; everything can be saved and restored exactly.

    Args:
        rewards_N33: `market.trading_series.step_table` of the rows.
        bins_N: the market's bin at each row, 0 to B - 1.
        starts_N: `market.trading_series.segment_starts` of the rows.
        num_bins: B.
        settings: one run each.

    Raises:
        DataValidationError: the sequences differ in length, or a bin lies outside.
    """

    def __init__(
        self,
        rewards_N33: Floats,
        bins_N: Ints,
        starts_N: Bools,
        *,
        num_bins: int,
        settings: QSettings,
    ) -> None:
        if not len(rewards_N33) == len(bins_N) == len(starts_N) > 0:
            raise DataValidationError.at("bins", "Rewards, bins and starts need one entry for each row, and a row.")
        if int(np.min(bins_N)) < 0 or int(np.max(bins_N)) >= num_bins:
            raise DataValidationError.at("bins", f"A bin lies outside 0 to {num_bins - 1}; check the edges.")
        self._rewards_N33 = np.ascontiguousarray(rewards_N33, dtype=np.float64)
        self._bins_N = np.ascontiguousarray(bins_N, dtype=np.int64)
        self._starts_N = np.ascontiguousarray(starts_N, dtype=np.bool_)
        self.settings = settings
        shape = (len(settings), num_bins * NUM_ACTIONS, NUM_ACTIONS)
        self.values_LSA: Floats = np.zeros(shape, dtype=np.float64)
        self.visits_LSA: Ints = np.zeros(shape, dtype=np.int64)
        self.exploration_rate_L: Floats = np.array(settings.exploration_rate_L, dtype=np.float64)
        self._words_L6 = np.stack(
            [generator_words(np.random.Generator(np.random.PCG64(int(seed)))) for seed in settings.seed_L]
        )

    def epoch(self) -> Floats:
        """One pass over all rows by every run; the log return (L,) that each earned while it explored."""
        settings, rewards_L = self.settings, np.zeros(len(self.settings))
        for run in range(len(settings)):
            rewards_L[run], self.exploration_rate_L[run] = learn_pass(
                self._rewards_N33,
                self._bins_N,
                self._starts_N,
                self.values_LSA[run],
                self.visits_LSA[run],
                float(settings.learning_rate_L[run]),
                float(settings.discount_factor_L[run]),
                float(self.exploration_rate_L[run]),
                float(settings.exploration_decay_L[run]),
                float(settings.exploration_minimum_L[run]),
                self._words_L6[run],
            )
        return rewards_L

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to go on exactly here, as plain arrays."""
        return {
            "values": self.values_LSA.copy(),
            "visits": self.visits_LSA.copy(),
            "exploration_rate": self.exploration_rate_L.copy(),
            "generators": self._words_L6.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state of runs made with the same arguments.

        Raises:
            DataValidationError: the state belongs to other runs or bins.
        """
        if state["values"].shape != self.values_LSA.shape:
            raise DataValidationError.at(
                "checkpoint", "The checkpoint belongs to another number of runs or bins; start afresh."
            )
        self.values_LSA[:], self.visits_LSA[:] = state["values"], state["visits"]
        self.exploration_rate_L[:] = state["exploration_rate"]
        self._words_L6[:] = state["generators"]
