"""The environment: pays what the backtest pays, never looks or trades over a gap, repeats itself, fits Gymnasium."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FillRule, Floats32, Ints
from ml_workbench_service.market.backtest import backtest
from ml_workbench_service.market.trading_series import RUIN_LOG_RETURN, TradingSeries, build_trading_series
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment, generator_of, generator_words, walk
from ml_workbench_service.reinforcement.environment_kernels import compiled
from ml_workbench_service.reinforcement.gym_environment import TradingVectorEnv
from tests.market.series_for_tests import COSTS, LOOKBACK, START_MS, series_of, stacked, window_ends

pytestmark = pytest.mark.processor

YEAR = 6240.0
NUM_ENVS, EPISODE = 5, 37
FILLS: tuple[FillRule, ...] = ("next_open", "next_close")


def environment_of(series: TradingSeries, *, seed: int = 3, num_envs: int = NUM_ENVS) -> VectorTradingEnvironment:
    return VectorTradingEnvironment(
        series, window_ends(series), lookback=LOOKBACK, num_envs=num_envs, episode_length=EPISODE, seed=seed
    )


@dataclasses.dataclass
class Episode:
    """What one environment did from its start to its end."""

    rows: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    observations: list[Floats32] = dataclasses.field(default_factory=list)
    final: Floats32 | None = None


def episodes(envs: VectorTradingEnvironment, *, num_steps: int, seed: int = 4) -> Iterator[Episode]:
    """Whole episodes under random actions."""
    chance = np.random.default_rng(seed)
    running = [Episode() for _ in range(envs.num_envs)]
    observations = envs.reset()
    for _ in range(num_steps):
        actions = chance.integers(0, 3, envs.num_envs)
        for env, episode in enumerate(running):
            episode.rows.append(int(envs.rows_N[env]))
            episode.positions.append(int(actions[env]) - 1)
            episode.observations.append(observations[env].copy())
        stepped = envs.step(actions)
        observations = stepped.observations_NO
        for env, episode in enumerate(running):
            episode.rewards.append(float(stepped.rewards_N[env]))
            if stepped.truncated_N[env]:
                episode.final = envs.final_observation(env)
                yield episode
                running[env] = Episode()
        assert not stepped.terminated_N.any()


@pytest.mark.parametrize("fill", FILLS)
def test_rewards_equal_the_backtest_of_the_same_actions(fill: FillRule) -> None:
    series = series_of(fill=fill)
    done = list(episodes(environment_of(series), num_steps=600))
    lengths = {len(each.rows) for each in done}
    assert max(lengths) == EPISODE, "some end by length"
    assert min(lengths) < EPISODE, "some end at a gap or at the end of the symbol"
    for each in done:
        judged = backtest(series, np.array(each.rows), np.array(each.positions), bars_per_year=YEAR)
        np.testing.assert_allclose(each.rewards, judged.net_N, rtol=0, atol=3e-16)


@pytest.mark.parametrize("fill", FILLS)
def test_an_episode_stays_in_one_run_and_in_the_allowed_rows(fill: FillRule) -> None:
    series = series_of(fill=fill)
    allowed = set(series.payable(window_ends(series)).tolist())
    for each in episodes(environment_of(series), num_steps=400):
        assert each.rows == list(range(each.rows[0], each.rows[-1] + 1))
        assert set(each.rows) <= allowed
        assert series.next_ok_R[each.rows[0] : each.rows[-1] + 1 + series.delay].all()
        if len(each.rows) < EPISODE:
            assert each.rows[-1] + 1 not in allowed, "it went on as long as it could"


def test_an_observation_is_the_window_and_the_position() -> None:
    series = series_of()
    for each in episodes(environment_of(series), num_steps=200):
        assert each.final is not None
        held = [0, *each.positions[:-1], 0]
        seen = [*each.observations, each.final]
        for row, position, observation in zip([*each.rows, each.rows[-1] + 1], held, seen, strict=True):
            window = series.rows_RF[row - LOOKBACK + 1 : row + 1]
            np.testing.assert_array_equal(observation, [*window.ravel(), position])


def test_the_same_seed_repeats_and_another_differs() -> None:
    series = series_of()

    def starts(seed: int) -> list[int]:
        return [each.rows[0] for each in episodes(environment_of(series, seed=seed), num_steps=150)]

    assert starts(1) == starts(1) != starts(2)
    envs = environment_of(series, seed=1)
    first = envs.reset(seed=9).copy()
    assert not np.array_equal(envs.reset(), first)
    np.testing.assert_array_equal(envs.reset(seed=9), first)


def test_starting_rows_cover_all_that_are_allowed_and_only_those_given() -> None:
    series = series_of(num_bars=60, num_missing=0)
    envs = environment_of(series, num_envs=4000)
    envs.reset()
    assert set(envs.rows_N) == set(series.payable(window_ends(series)))
    few = VectorTradingEnvironment(
        series, window_ends(series), lookback=4, num_envs=100, episode_length=9, seed=0, starts_N=np.array([10, 70])
    )
    few.reset()
    assert set(few.rows_N) == {10, 70}


@pytest.mark.parametrize("num_steps", [3, 1800])  # before and after more starting rows had to be drawn
def test_a_saved_state_goes_on_exactly(num_steps: int) -> None:
    series = series_of()
    envs = environment_of(series, num_envs=100)
    chance = np.random.default_rng(0)
    envs.reset()
    for _ in range(num_steps):
        envs.step(chance.integers(0, 3, 100))
    saved = envs.state()
    assert all(isinstance(each, np.ndarray) and each.dtype != object for each in saved.values())
    other = environment_of(series, num_envs=100, seed=77)
    np.testing.assert_array_equal(other.restore(saved), saved["observations"])
    for _ in range(1700):
        actions = chance.integers(0, 3, 100)
        ours, theirs = envs.step(actions), other.step(actions)
        np.testing.assert_array_equal(ours.observations_NO, theirs.observations_NO)
        np.testing.assert_array_equal(ours.rewards_N, theirs.rewards_N)
    with pytest.raises(DataValidationError, match="start afresh"):
        environment_of(series).restore(saved)


def test_a_generator_in_words_draws_the_same_numbers() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    generator.integers(3)  # leaves half a word behind
    other = generator_of(generator_words(generator))
    assert generator.integers(0, 3, 50).tolist() == other.integers(0, 3, 50).tolist()
    assert generator.random(50).tolist() == other.random(50).tolist()


def prices(values: list[float]) -> TradingSeries:
    return build_trading_series(
        stacked(np.array(values), START_MS + np.arange(len(values)) * 60_000),
        costs=COSTS,
        fill="next_open",
    )


def test_only_ruin_terminates() -> None:
    series = prices([1.0, 1.0, 1.0, 2.5, 2.5])
    envs = VectorTradingEnvironment(
        series, np.arange(4), lookback=1, num_envs=2, episode_length=9, seed=0, starts_N=np.array([1])
    )
    envs.reset()
    stepped = envs.step(np.array([0, 2]))
    assert stepped.terminated_N.tolist() == [True, False]
    assert stepped.truncated_N.tolist() == [False, False]
    assert stepped.rewards_N[0] == RUIN_LOG_RETURN
    assert envs.rows_N.tolist() == [1, 2], "the ruined environment has begun again, the other one goes on"


def test_wrong_actions_change_nothing() -> None:
    envs = environment_of(series_of())
    with pytest.raises(DataValidationError, match="after `reset`"):
        envs.step(np.ones(NUM_ENVS, dtype=np.int64))
    envs.reset()
    before = envs.state()
    for wrong in ([1, 1, 1, 1, 3], [-1, 1, 1, 1, 1], [1, 1]):
        with pytest.raises(DataValidationError, match="action"):
            envs.step(np.array(wrong))
    for name, value in envs.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_environments_without_a_payable_row_or_a_whole_window_are_refused() -> None:
    series = prices([1.0, 1.1, 1.2])
    for rows, lookback in ((np.array([2]), 1), (np.array([0, 1]), 2)):
        with pytest.raises(DataValidationError, match=r"No row is left|before the first row"):
            VectorTradingEnvironment(series, rows, lookback=lookback, num_envs=1, episode_length=5, seed=0)


def wilful(windows_NTF: Floats32, positions_N: Floats32) -> Ints:
    """Depends on the window and on the position."""
    return ((windows_NTF.sum(axis=(1, 2)) * 7 + positions_N * 2).astype(np.int64) % 3).astype(np.int64)


@pytest.mark.parametrize("fill", FILLS)
def test_a_walk_is_what_stepping_row_by_row_gives(fill: FillRule) -> None:
    series = series_of(fill=fill)
    walked = walk(wilful, series, window_ends(series), lookback=LOOKBACK, chunk=100)
    held, expected = 0, []
    for number, row in enumerate(walked.rows_N):
        if number == 0 or walked.rows_N[number - 1] + 1 != row:
            held = 0
        window = series.rows_RF[row - LOOKBACK + 1 : row + 1][None]
        held = int(wilful(window, np.array([held], dtype=np.float32))[0]) - 1
        expected.append(held)
    assert walked.positions_N.tolist() == expected
    judged = backtest(series, walked.rows_N, walked.positions_N, bars_per_year=YEAR)
    np.testing.assert_allclose(walked.rewards_N, judged.net_N, rtol=0, atol=3e-16)
    np.testing.assert_allclose(walked.gross_N, judged.gross_N, rtol=0, atol=3e-16)
    np.testing.assert_allclose(walked.costs_N, judged.cost_N, rtol=0, atol=1e-18)


def test_gymnasium_counts_the_episodes_as_they_were() -> None:
    series = series_of()
    environment = RecordEpisodeStatistics(TradingVectorEnv(environment_of(series)))
    plain = environment_of(series)
    observations, infos = environment.reset(seed=3)
    np.testing.assert_array_equal(observations, plain.reset())
    assert infos == {}
    chance, running, num_ended = np.random.default_rng(0), np.zeros(NUM_ENVS), 0
    for _ in range(200):
        actions = chance.integers(0, 3, NUM_ENVS)
        assert environment.action_space.contains(actions)
        before = observations.copy()
        following, rewards, terminated, truncated, infos = environment.step(actions)
        np.testing.assert_array_equal(observations, before, err_msg="what was handed over stays as it was")
        observations = following
        stepped = plain.step(actions)
        np.testing.assert_array_equal(observations, stepped.observations_NO)
        assert environment.observation_space.contains(observations)
        running += rewards
        for env in np.flatnonzero(terminated | truncated):
            num_ended += 1
            assert infos["_final_obs"][env]
            np.testing.assert_array_equal(infos["final_obs"][env], plain.final_observation(env))
            assert infos["episode"]["r"][env] == pytest.approx(running[env], abs=1e-12)
            running[env] = 0.0
    assert num_ended > 10


def test_infos_have_the_form_of_gymnasiums_own_environment() -> None:
    ours = TradingVectorEnv(environment_of(series_of()))
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    gymnasium = pytest.importorskip("gymnasium")
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1", max_episode_steps=EPISODE)] * NUM_ENVS,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    seen = []
    for environment in (ours, theirs):
        environment.reset(seed=0)
        for _ in range(EPISODE):
            *_, infos = environment.step(np.ones(NUM_ENVS, dtype=np.int64))
            if infos:
                break
        seen.append({name: (type(value), getattr(value, "dtype", None)) for name, value in infos.items()})
        environment.close()
    assert seen[0] == seen[1]


def test_a_kernel_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    scope: dict[str, object] = {}
    exec("def double(number):\n    return 2 * number", scope)  # from no file, so numba finds no folder for its cache
    double = compiled(scope["double"])  # type: ignore[type-var]
    assert double(21) == 42  # type: ignore[operator]
