"""stable-baselines3's vector environment over `VectorTradingEnvironment`, without an object for each environment.

Its convention: an episode that ends begins anew in the same step; the last observation of the old one is
`infos[environment]["terminal_observation"]`, and `infos[environment]["TimeLimit.truncated"]` says that it was cut, so
that its value is still estimated beyond the cut. Here every end but ruin is a cut.

Legend: N environments, R rows, O numbers of an observation (see `reinforcement/environment.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.market.trading_series import POSITIONS
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment
from ml_workbench_service.reinforcement.policy_family import Market


class TradingVecEnv(VecEnv):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """The environments behind stable-baselines3's interface; observations are copies, rewards float32.

    Args:
        envs: what really steps; this environment is its only user.
        units_R: what the log return of a decision at each row is multiplied by; as it is where there is none.

    Attributes:
        decided_N: the rows of the last step's decisions.
    """

    def __init__(self, envs: VectorTradingEnvironment, *, units_R: Floats | None = None) -> None:
        self.envs = envs
        self._units_R = np.ones(envs.series.num_rows, np.float32) if units_R is None else units_R.astype(np.float32)
        self.decided_N: Ints = np.zeros(envs.num_envs, dtype=np.int64)
        self.actions: Ints = np.ones(envs.num_envs, dtype=np.int64)
        self._returns_N = np.zeros(envs.num_envs)
        self._episode_returns: list[float] = []
        super().__init__(
            envs.num_envs,
            spaces.Box(-np.inf, np.inf, (envs.num_observed,), dtype=np.float32),
            spaces.Discrete(len(POSITIONS)),
        )

    def reset(self) -> Floats32:
        """All environments begin an episode; a seed given to `seed` before starts the random rows anew."""
        observations: Floats32 = self.envs.reset(seed=self._seeds[0]).copy()
        self._reset_seeds()
        self._reset_options()
        self._returns_N[:] = 0.0
        return observations

    def step_async(self, actions: Ints) -> None:
        """Keeps the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[Floats32, Floats32, Bools, list[dict[str, Any]]]:
        """One decision of every environment."""
        self.decided_N = self.envs.rows_N
        stepped = self.envs.step(self.actions)
        dones: Bools = stepped.terminated_N | stepped.truncated_N
        self._returns_N += stepped.rewards_N
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in np.flatnonzero(dones).tolist():
            infos[env] = {
                "terminal_observation": self.envs.final_observation(env),
                "TimeLimit.truncated": bool(stepped.truncated_N[env]),
            }
            self._episode_returns.append(float(self._returns_N[env]))
            self._returns_N[env] = 0.0
        rewards = stepped.rewards_N.astype(np.float32) * self._units_R[self.decided_N]
        return stepped.observations_NO.copy(), rewards, dones, infos

    def take_episode_returns(self) -> list[float]:
        """Log returns of the episodes that have ended since the last call, unscaled."""
        taken, self._episode_returns = self._episode_returns, []
        return taken

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to go on exactly here, as plain arrays."""
        returns = {
            "returns": self._returns_N.copy(),
            "episode_returns": np.array(self._episode_returns, dtype=np.float64),
        }
        return self.envs.state() | returns

    def restore(self, state: Mapping[str, np.ndarray]) -> Floats32:
        """Goes on from a state; answers with a copy of the observations at hand, which the algorithm last saw."""
        observations: Floats32 = self.envs.restore(state).copy()
        self._returns_N[:] = state["returns"]
        self._episode_returns = state["episode_returns"].tolist()
        return observations

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same value for every asked environment: environments have no attributes of their own."""
        if attr_name == "render_mode":
            return [None for _ in self._asked(indices)]
        return [getattr(self.envs, attr_name) for _ in self._asked(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: environments have no attributes of their own."""
        raise AttributeError(
            f"trading environments have no attribute {attr_name} to set; make new environments instead"
        )

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Refused: environments have no methods of their own."""
        raise AttributeError(f"trading environments have no method {method_name}; call the method of `.envs`")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never."""
        return [False for _ in self._asked(indices)]

    def _asked(self, indices: Any) -> Sequence[int]:
        asked: Sequence[int] = self._get_indices(indices)
        return asked


class MarketEnvironment(TradingVecEnv):
    """Episodes begin anywhere in the training part; a reward is a net log return in units of the symbol's bar."""

    def __init__(self, market: Market, *, lookback: int, num_envs: int, episode_length: int, seed: int) -> None:
        envs = VectorTradingEnvironment(
            market.series, market.train, lookback=lookback, num_envs=num_envs, episode_length=episode_length, seed=seed
        )
        super().__init__(envs, units_R=market.units_R)
