"""Environment step, compiled: the inner loop. Needs numba, so only what trains imports it.

It knows no money: what a decision earns is looked up, computed beforehand by the rule in `market/trading_series.py`. A
logarithm and the branches around it would take as long as everything else in a step.

    envs_N3    ROW          HELD                     LEFT                      one row an environment
               next         action whose position    decisions until the
               decision     is held: 0 short,        episode is truncated
                            1 flat, 2 long

    ends_N2    TERMINATED   TRUNCATED                                          few arrays rather than many: numba
               by ruin      by length or gap                                   unpacks each of them at each call

Legend: N environments, R rows, F features, O = lookback * F + 1 numbers of an observation.
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints

Kernel = TypeVar("Kernel", bound=Callable[..., object])

ROW, HELD, LEFT = range(3)
FLAT = 1
TERMINATED, TRUNCATED = range(2)


def compiled(function: Kernel, *, nogil: bool = False) -> Kernel:
    """Compiled on first use and kept on disk; compiled anew by each process where no folder takes the cache.

    numba looks for a writable folder when it decorates, and raises where it finds none (read-only installation). What
    it keeps is compiled anew when the function's own file changes, no other: constants of other files are arguments.
    """
    try:
        kept: Kernel = numba.njit(cache=True, error_model="numpy", nogil=nogil)(function)
    except RuntimeError:
        fresh: Kernel = numba.njit(error_model="numpy", nogil=nogil)(function)
        return fresh
    return kept


@compiled
def observe(
    flat_rows: Floats32, num_features: int, row: int, lookback: int, held: int, flat_NO: Floats32, env: int
) -> None:
    """Writes the window that ends at the row, oldest row first, and the position behind it.

    Flat arrays with unsigned indices: numba turns negative indices round, and its check for them keeps the copy from
    being vectorised (ten times slower).
    """
    width = np.uint64(lookback * num_features)
    begin = np.uint64((row + 1 - lookback) * num_features)
    place = np.uint64(env) * (width + np.uint64(1))
    for number in range(width):
        flat_NO[place + number] = flat_rows[begin + number]
    flat_NO[place + width] = held - FLAT


@compiled
def put_env(envs_N3: Ints, env: int, row: int, held: int, left: int) -> None:
    """Where an environment stands, by the columns of the diagram."""
    envs_N3[env, ROW], envs_N3[env, HELD], envs_N3[env, LEFT] = row, held, left


@compiled
def begin_envs(
    flat_rows: Floats32,
    num_features: int,
    lookback: int,
    episode_length: int,
    starts_N: Ints,
    envs_N3: Ints,
    flat_NO: Floats32,
) -> None:
    """Every environment begins an episode at its row, flat."""
    for env in range(len(envs_N3)):
        put_env(envs_N3, env, starts_N[env], FLAT, episode_length)
        observe(flat_rows, num_features, starts_N[env], lookback, FLAT, flat_NO, env)


@compiled
def step_envs(
    actions_N: Ints,
    flat_rows: Floats32,
    num_features: int,
    rewards_R33: Floats,
    closing_R: Floats,
    ruin: float,
    allowed_R: Bools,
    lookback: int,
    episode_length: int,
    queue_Q: Ints,
    cursor: int,
    envs_N3: Ints,
    flat_NO: Floats32,
    flat_finals_NO: Floats32,
    rewards_N: Floats,
    ends_N2: Bools,
) -> int:
    """One decision of every environment. Environments that end begin anew at the queue's next row.

    Returns the cursor in the queue, or -1 where an action is none of 0, 1, 2; then nothing has changed.
    """
    for env in range(len(actions_N)):
        if actions_N[env] < 0 or actions_N[env] > 2:
            return -1
    for env in range(len(actions_N)):
        row, held, action = envs_N3[env, ROW], envs_N3[env, HELD], actions_N[env]
        reward = rewards_R33[row, held, action]
        left, following = envs_N3[env, LEFT] - 1, row + 1
        ruined = reward <= ruin
        ends = ruined or left == 0 or not allowed_R[following]
        if ends:
            if action != FLAT:
                reward = max(reward + closing_R[row], ruin)
                ruined = reward <= ruin
            observe(flat_rows, num_features, following, lookback, FLAT, flat_finals_NO, env)
            following, action, left = queue_Q[cursor], FLAT, episode_length
            cursor += 1
        put_env(envs_N3, env, following, action, left)
        observe(flat_rows, num_features, following, lookback, action, flat_NO, env)
        rewards_N[env] = reward
        ends_N2[env, TERMINATED] = ruined
        ends_N2[env, TRUNCATED] = ends and not ruined
    return cursor
