"""Tabular Q-learning in a Python loop over gym-anytrading, by its hooks for environments of one's own.

The subclass adds what the library leaves to its user: three actions, and a reward after costs. Prices, costs and market
bins are lists, tables are lists of Python floats: faster here than arrays, whose elements Python must wrap one by one.
"""

import math
import time
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from gym_anytrading.envs import TradingEnv
from turns import play

FLAT = 1


class ThreeWay(TradingEnv):
    """Short, flat and long, paid per bar."""

    def __init__(self, columns: dict[str, np.ndarray], window_size: int) -> None:
        super().__init__(pd.DataFrame({"Close": columns["close"]}), window_size)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.unit_cost, self.swaps = (
            columns["unit_cost"].tolist(),
            [
                columns["swap_short"].tolist(),
                [0.0] * len(self.prices),
                columns["swap_long"].tolist(),
            ],
        )
        self.held = 0

    def _process_data(self) -> tuple[list[float], np.ndarray]:
        closes = self.df["Close"].to_numpy()
        diff = np.insert(np.diff(closes), 0, 0)
        return closes.tolist(), np.column_stack((closes, diff)).astype(np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begins anew, flat."""
        self.held = 0
        return super().reset(seed=seed, options=options)

    def _calculate_reward(self, action: int) -> float:
        position, row = action - 1, self._current_tick - 1
        change = self.prices[row + 1] / self.prices[row] - 1.0
        cost = self.unit_cost[row] * abs(position - self.held)
        reward = math.log(1.0 + position * change - cost - self.swaps[action][row])
        if self._truncated:
            reward += math.log(1.0 - self.unit_cost[row + 1] * abs(position))
        self.held = position
        return reward

    def _update_profit(self, action: int) -> None:
        pass  # the reward is the profit


def learn(environment: ThreeWay, bins: list[int], num_bins: int, epochs: int, setting: dict[str, Any]) -> Any:
    """One table: epsilon-greedy, flat wins among equals, one update a step."""
    generator = np.random.Generator(np.random.PCG64(setting["seed"]))
    rate, discount = setting["learning_rate"], setting["discount_factor"]
    exploration, decay = setting["exploration_rate"], setting["exploration_decay"]
    minimum = setting["exploration_minimum"]
    values = [[0.0, 0.0, 0.0] for _ in range(3 * num_bins)]
    random, integers, step = generator.random, generator.integers, environment.step
    for _ in range(epochs):
        environment.reset()
        state, truncated, number = bins[0] * 3 + FLAT, False, 0
        while not truncated:
            row = values[state]
            best = max(row)
            greedy = FLAT if row[FLAT] == best else row.index(best)
            action = int(integers(3)) if random() < exploration else greedy
            exploration = min(exploration, max(minimum, exploration * decay))
            _, reward, _, truncated, _ = step(action)
            number += 1
            following = 0.0
            if not truncated:
                state = bins[number] * 3 + action
                following = max(values[state])
            row[action] += rate * (reward + discount * following - row[action])
    return values


def turn(bars: str, tables: str, window: int, num_bins: int, epochs: int, settings: list[dict]) -> dict[str, Any]:
    """Fresh tables for all settings, which go into the file `tables`."""
    columns = dict(np.load(bars))
    environment = ThreeWay(columns, window)
    bins = columns["bins"].tolist()
    begun = time.process_time()
    learnt = [learn(environment, bins, num_bins, epochs, setting) for setting in settings]
    seconds = time.process_time() - begun
    np.save(tables, np.array(learnt))
    return {"updates_per_s": len(settings) * epochs * len(bins) / seconds}


play(turn)
