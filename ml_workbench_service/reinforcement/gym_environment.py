"""Gymnasium vector environment over `VectorTradingEnvironment`, so that any library that takes one can trade.

Episodes that end begin anew in the same step (`AutoresetMode.SAME_STEP`): the observation returned is already the next
episode's, and `infos["final_obs"][environment]` is the old one's last, with `infos["_final_obs"]` saying for which
environments.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.market.trading_series import POSITIONS
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment


class TradingVectorEnv(VectorEnv[Floats32, Ints, Any]):  # type: ignore[misc]  # gymnasium is not read by mypy
    """The environments behind Gymnasium's interface.

    Answers are copies, the caller's to keep.

    Args:
        envs: what really steps; this environment is its only user.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, envs: VectorTradingEnvironment) -> None:
        super().__init__()
        self.envs, self.num_envs = envs, envs.num_envs
        shape = (envs.num_observed,)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, shape, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.num_envs, *shape), dtype=np.float32)
        self.single_action_space = spaces.Discrete(len(POSITIONS))
        self.action_space = spaces.MultiDiscrete([len(POSITIONS)] * self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats32, dict[str, Any]]:
        """All environments begin an episode; there are no options."""
        super().reset(seed=seed)
        return self.envs.reset(seed=seed).copy(), {}

    def step(self, actions: Ints) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """One decision of every environment: 0 short, 1 flat, 2 long; rewards are log returns after costs."""
        stepped = self.envs.step(actions)
        ended = stepped.terminated_N | stepped.truncated_N
        infos: dict[str, Any] = {}
        for env in np.flatnonzero(ended):
            final = {"final_obs": self.envs.final_observation(int(env)), "final_info": {}}
            infos = self._add_info(infos, final, int(env))
        return (
            stepped.observations_NO.copy(),
            stepped.rewards_N.copy(),
            stepped.terminated_N.copy(),
            stepped.truncated_N.copy(),
            infos,
        )
