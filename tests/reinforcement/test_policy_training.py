"""PPO and DQN over environments: their updates are stable-baselines3's, rewards are in the symbols' own units."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO

from common_lib.exceptions import TrainingError
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.reinforcement.dqn import VectorDqn
from ml_workbench_service.reinforcement.environment import generator_of, generator_words
from ml_workbench_service.reinforcement.policy_family import Market
from ml_workbench_service.reinforcement.policy_training import fit
from ml_workbench_service.reinforcement.ppo import VectorPpo
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment
from ml_workbench_service.testing.synthetic import Recorder, symbol_rows
from tests.reinforcement.policies import algorithm_of, market_of, policy_family

pytestmark = pytest.mark.processor

FAR = 1e9
"""A bound on gradients that none reaches."""


class Still:
    """An optimizer that leaves everything where it is, so that the gradients can be read."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [{}]

    def zero_grad(self) -> None:
        """As stable-baselines3 calls it before each batch."""
        for each in self.parameters:
            each.grad = torch.zeros_like(each)

    def step(self) -> None:
        """Nothing moves."""


def gradients(parameters: Any) -> list[torch.Tensor]:
    return [each.grad.clone() for each in parameters]


def test_ppos_gradient_is_that_of_stable_baselines3() -> None:
    algorithm = algorithm_of(VectorPpo, "ppo", market_of(), passes=1, batch_size=4096, entropy_coefficient=0.02)
    algorithm.rollout()  # away from the first policy, where no probability has moved
    algorithm.collect_rollouts(algorithm.env, algorithm._watch, algorithm.rollout_buffer, algorithm.n_steps)
    with torch.no_grad():
        for each in algorithm.policy.parameters():
            each.add_(0.05 * torch.randn_like(each))  # so that some decisions are clipped
    algorithm.policy.optimizer = algorithm.adam = Still(algorithm.policy.parameters())
    algorithm.max_grad_norm = FAR
    algorithm.train()
    ours = gradients(algorithm.policy.parameters())
    algorithm.batch_size = algorithm.rollout_size
    PPO.train(algorithm)
    theirs = gradients(algorithm.policy.parameters())
    assert 0.02 < algorithm.logger.name_to_value["train/clip_fraction"] < 0.98
    assert max(float(each.abs().max()) for each in theirs) > 0.01
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=2e-6, rtol=1e-4)


def test_dqns_gradient_is_that_of_stable_baselines3() -> None:
    algorithm = algorithm_of(VectorDqn, "dqn", market_of())
    for _ in range(30):
        algorithm.rollout()
    parameters = list(algorithm.q_net.parameters())
    algorithm.policy.optimizer = algorithm.adam = Still(parameters)
    algorithm.max_grad_norm = FAR
    words = generator_words(algorithm.replay_buffer.chance)
    algorithm.train(1, 200)
    ours = gradients(parameters)
    algorithm.replay_buffer.chance = generator_of(words)
    DQN.train(algorithm, 1, 200)
    assert max(float(each.abs().max()) for each in ours) > 0.001
    for one, two in zip(ours, gradients(parameters), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_the_replay_shows_what_the_environments_showed() -> None:
    algorithm = algorithm_of(
        VectorDqn, "dqn", market_of(), episode_length=7, learning_starts=1000, memory=640, lanes=16
    )
    seen: list[tuple[np.ndarray, ...]] = []
    for _ in range(30):
        before = algorithm._last_obs.copy()
        algorithm.rollout()
        seen.append((before, algorithm._last_obs.copy(), algorithm.env.actions.copy()))
    replay, num_cut = algorithm.replay_buffer, 0
    assert replay.size() == 480
    for number, (before, after, actions) in enumerate(seen):
        both, kept, _, _ = replay._at(np.arange(16) + 16 * number)
        here, following = both.numpy()[:16], both.numpy()[16:]
        np.testing.assert_array_equal(here, before)
        np.testing.assert_array_equal(kept.numpy(), actions)
        goes_on = (following == after).all(axis=1)
        np.testing.assert_array_equal(following[~goes_on, -1], 0)  # cut: flat at the next row
        num_cut += int((~goes_on).sum())
    assert 16 <= num_cut <= 16 * 30 // 4
    for _ in range(20):
        algorithm.rollout()
    assert replay.size() == 640
    np.testing.assert_array_equal(replay._at(np.arange(16))[0].numpy()[:16, -1], replay._kept["held"][:16])


def test_each_environment_explores_by_itself() -> None:
    algorithm = algorithm_of(VectorDqn, "dqn", market_of(), lanes=64, learning_starts=0, exploration_share=0.5)
    algorithm.exploration_rate, shares = 0.5, []
    for _ in range(20):
        greedy = algorithm.network.stack(
            algorithm.q_net.features_extractor(torch.from_numpy(algorithm._last_obs))
        ).argmax(1)
        actions, _ = algorithm._sample_action(0, n_envs=64)
        shares.append(np.mean(actions != greedy.numpy()))
    assert 0.2 < np.mean(shares) < 0.46  # half explore, and a third of those hit the greedy action
    assert np.std(shares) < 0.15  # one draw for all environments would give 0 or 2 / 3


def test_rewards_are_in_units_of_each_symbols_bar() -> None:
    tables = [symbol_rows("EUR/USD", num=500, deviation=1e-3), symbol_rows("GBP/USD", num=500, seed=1, deviation=1e-5)]
    market = Market.of(market_of(*tables))
    environment = MarketEnvironment(market, lookback=8, num_envs=64, episode_length=20, seed=0)
    plain = MarketEnvironment(market, lookback=8, num_envs=64, episode_length=20, seed=0)
    environment.reset()
    plain.envs.reset()
    chance, sizes = np.random.default_rng(0), {0: [], 1: []}
    for _ in range(60):
        actions = chance.integers(0, 3, 64)
        _, rewards, _, _ = environment.step(actions)
        stepped = plain.envs.step(actions)
        symbols = market.series.symbol_R[environment.decided_N]
        np.testing.assert_allclose(rewards, stepped.rewards_N * market.units_R[environment.decided_N], rtol=1e-5)
        for symbol, held in sizes.items():
            held += np.abs(rewards[(symbols == symbol) & (actions != 1)]).tolist()
    for held in sizes.values():
        assert 0.6 < np.mean(held) < 1.0  # a normal bar's mean size is 0.8


def test_weights_that_are_no_numbers_end_the_training() -> None:
    problem = market_of()
    algorithm = algorithm_of(VectorPpo, "ppo", problem)
    with torch.no_grad():
        next(iter(algorithm.network.layers)).weight[0, 0] = float("nan")
    algorithm.rollout = lambda: None
    with pytest.raises(TrainingError, match="learning_rate"):
        fit(
            algorithm, Market.of(problem), policy_family("ppo", epochs=1).hyperparameters, report=Recorder(),
            checkpoint=None,
        )  # fmt: skip


def test_the_position_held_is_read() -> None:
    algorithm = algorithm_of(VectorDqn, "dqn", market_of())
    rows = np.random.default_rng(0).standard_normal((9, 8, 3)).astype(np.float32)
    flat, long = (algorithm.network.answer(rows, np.full(9, held, np.float32)).outputs_NK for held in (0, 1))
    assert (flat != long).all()
    np.testing.assert_array_equal(algorithm.network.answer(rows).outputs_NK, flat)


@pytest.mark.parametrize(("kind", "family"), [(VectorPpo, "ppo"), (VectorDqn, "dqn")])
def test_what_was_collected_is_freed_though_the_algorithm_lives_on_in_circles(kind: Any, family: str) -> None:
    """Forty sanity runs would hold as many rollouts until Python looks for cycles."""
    algorithm = algorithm_of(kind, family, market_of())
    algorithm.rollout()
    buffer = getattr(algorithm, "rollout_buffer", None) or algorithm.replay_buffer
    arrays = [each for each in gc.get_referents(vars(buffer)) if isinstance(each, np.ndarray | dict)]
    assert arrays, "something was collected"
    algorithm.let_go()
    assert not vars(buffer)
    assert algorithm.network.weights(), "what was learnt stays"
