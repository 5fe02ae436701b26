"""The environments as stable-baselines3 sees them: conventions at an episode's end; its algorithms train on them."""

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecMonitor

from ml_workbench_service.market.trading_series import TradingSeries
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment
from ml_workbench_service.reinforcement.policy_algorithm import silent
from ml_workbench_service.reinforcement.sb3_environment import TradingVecEnv
from tests.market.series_for_tests import LOOKBACK, series_of, window_ends

NUM_ENVS, EPISODE = 6, 25


def environment_of(series: TradingSeries) -> VectorTradingEnvironment:
    return VectorTradingEnvironment(
        series, window_ends(series), lookback=LOOKBACK, num_envs=NUM_ENVS, episode_length=EPISODE, seed=1
    )


def test_an_episodes_end_is_told_in_the_convention_of_stable_baselines3() -> None:
    series = series_of()
    environment, plain = TradingVecEnv(environment_of(series)), environment_of(series)
    seen = environment.reset()
    np.testing.assert_array_equal(seen, plain.reset())
    chance, num_ended = np.random.default_rng(0), 0
    for _ in range(120):
        actions = chance.integers(0, 3, NUM_ENVS)
        before = seen.copy()
        following, rewards, dones, infos = environment.step(actions)
        np.testing.assert_array_equal(seen, before, err_msg="stable-baselines3 keeps observations over a step")
        seen, stepped = following, plain.step(actions)
        np.testing.assert_array_equal(seen, stepped.observations_NO)
        assert rewards.dtype == np.float32
        np.testing.assert_allclose(rewards, stepped.rewards_N, rtol=1e-6)
        np.testing.assert_array_equal(dones, stepped.truncated_N)
        for env, info in enumerate(infos):
            assert bool(info) == dones[env]
            if dones[env]:
                num_ended += 1
                assert info["TimeLimit.truncated"] is True
                np.testing.assert_array_equal(info["terminal_observation"], plain.final_observation(env))
                assert environment.observation_space.contains(info["terminal_observation"])
    assert num_ended > NUM_ENVS


def test_episode_returns_agree_with_stable_baselines3s_monitor() -> None:
    environment = TradingVecEnv(environment_of(series_of()))
    monitor = VecMonitor(environment)
    monitor.reset()
    chance, counted = np.random.default_rng(0), []
    for _ in range(80):
        *_, infos = monitor.step(chance.integers(0, 3, NUM_ENVS))
        counted += [info["episode"]["r"] for info in infos if "episode" in info]
    taken = environment.take_episode_returns()
    assert len(taken) == len(counted) > NUM_ENVS
    assert taken == pytest.approx(counted, abs=1e-6)
    assert environment.take_episode_returns() == []


def test_a_seed_repeats_and_a_saved_state_goes_on_exactly() -> None:
    series = series_of()
    environment = TradingVecEnv(environment_of(series))
    environment.seed(5)
    first = environment.reset()
    assert not np.array_equal(environment.reset(), first)
    environment.seed(5)
    np.testing.assert_array_equal(environment.reset(), first)
    chance = np.random.default_rng(0)
    for _ in range(40):
        environment.step(chance.integers(0, 3, NUM_ENVS))
    other = TradingVecEnv(environment_of(series))
    other.restore(environment.state())
    for _ in range(60):
        actions = chance.integers(0, 3, NUM_ENVS)
        ours, theirs = environment.step(actions), other.step(actions)
        for one, two in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(one, two)
    assert environment.take_episode_returns() == other.take_episode_returns()


def test_its_algorithms_train_on_it() -> None:
    series = series_of()
    policy = {"net_arch": [8]}
    ppo = PPO(
        "MlpPolicy", TradingVecEnv(environment_of(series)), n_steps=8, batch_size=48, n_epochs=1, policy_kwargs=policy,
        device="cpu", seed=0,
    )  # fmt: skip
    ppo.set_logger(silent())  # its own one makes a folder for each training
    ppo.learn(2 * 8 * NUM_ENVS)
    dqn = DQN(
        "MlpPolicy", TradingVecEnv(environment_of(series)), learning_starts=30, train_freq=4, buffer_size=500,
        policy_kwargs=policy, device="cpu", seed=0,
    )  # fmt: skip
    dqn.set_logger(silent())
    dqn.learn(96)
    observations = TradingVecEnv(environment_of(series)).reset()
    for algorithm in (ppo, dqn):
        assert algorithm.num_timesteps == 96
        actions, _ = algorithm.predict(observations, deterministic=True)
        assert set(actions.tolist()) <= {0, 1, 2}


def test_environments_have_no_attributes_or_methods_of_their_own() -> None:
    environment = TradingVecEnv(environment_of(series_of()))
    assert environment.get_attr("episode_length", indices=[0, 2]) == [EPISODE, EPISODE]
    assert environment.has_attr("render_mode")
    assert environment.env_is_wrapped(VecMonitor) == [False] * NUM_ENVS
    with pytest.raises(AttributeError, match="make new environments"):
        environment.set_attr("episode_length", 3)
    with pytest.raises(AttributeError, match=r"of `\.envs`"):
        environment.env_method("reset")
