"""`MarketEnvironment`: the trading lanes as the policies' algorithms see them, with rewards in the symbols' own units.

Legend: N lanes, R rows.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.learning.policy_family import Market
from ml_workbench_service.learning.sb3_environment import TradingVecEnv
from ml_workbench_service.market.environment import TradingLanes
from ml_workbench_service.market.tape import Bools


class MarketEnvironment(TradingVecEnv):
    """Episodes begin anywhere in the training part; a reward is a net log return in units of the symbol's bar."""

    def __init__(self, market: Market, *, lookback: int, num_lanes: int, episode_length: int, seed: int) -> None:
        lanes = TradingLanes(
            market.tape, market.train, lookback=lookback, num_lanes=num_lanes, episode_length=episode_length, seed=seed
        )
        super().__init__(lanes)
        self._units_R = market.units_R.astype(np.float32)
        self.decided_N: Ints = np.zeros(num_lanes, dtype=np.int64)

    def step_wait(self) -> tuple[Floats32, Floats32, Bools, list[dict[str, Any]]]:
        """One decision of every lane; its rows stay in `decided_N`."""
        self.decided_N = self.lanes.rows_N
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards * self._units_R[self.decided_N], dones, infos


class Watch(BaseCallback):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """Looks for a cancellation at every step of the lanes."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def _on_step(self) -> bool:
        self._report.check()
        return True


def silent() -> Logger:
    """A logger that writes nowhere; stable-baselines3's own makes a folder for each training."""
    return Logger(folder=None, output_formats=[])


class Later:
    """Stands where stable-baselines3 makes its optimizer, until the network lies on its device."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.learning_rate = lr
