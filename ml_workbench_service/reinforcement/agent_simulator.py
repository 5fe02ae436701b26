"""Agent simulation: the live Q-learning agent over one recording, many settings and seeds in one compiled call.

What an agent does changes neither prices nor predictions, so bins and every possible reward are computed once, and a
run is a walk over them. A run does what `agents.q_learning_agent.QLearningAgent` does record by record: symbols share
one table, one exploration rate and one generator, each holds a position of its own, and an abstention goes flat without
drawing a random number; where the market is closed the position is kept. A record settles what was chosen two records
earlier and filled at the one before, the table learns from it, then an action is chosen. The table, the visits and the
sum of rewards equal the agent's to the bit; so logarithms are taken one by one with C's routine, where NumPy's for
vectors rounds differently on some processors.

A step is one number, so that it is kept, found in the table and paid without being taken apart:

    step = (market bin * 3 + held) * 3 + action      its place in the flat table of values
           |                       |
           step // 9: market bin   step % 9: held * 3 + action, its place in a record's nine rewards
                                   step % 3: action;  step // 3 * 3: the first of its state's three values

Nothing is closed at the end and no gap is an end: the agent's runs know neither. Needs numba.

Legend: M records in order, L runs, G runs of one seed side by side, S = 3 * B states of B market bins, A = 3 actions,
X = S * A, D days on which a step settles, W random words, F flat: several axes in one.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.market.trading_series import RUIN, RUIN_LOG_RETURN
from ml_workbench_service.reinforcement.environment import generator_words
from ml_workbench_service.reinforcement.environment_kernels import compiled
from ml_workbench_service.reinforcement.tabular_q import QSettings
from ml_workbench_service.reinforcement.tabular_q_kernels import FLAT, NUM_ACTIONS, _next_word

NET, LATE_NET, GROSS, EXPLORATION, TURNOVER, NUM_HELD, NUM_SETTLED = range(7)
"""Columns of `figures_LK`: log return after costs, of the last half of the records alone, before costs; the exploration
rate at the end; sum of the changes of position; steps with a position, all steps."""
NUM_EARNED, NUM_FIGURES = 4, 7
GROUP = 16
"""Runs that take turns at a record: while one waits for its table the processor is busy with the next."""
SPARE_WORDS = 1024
"""A record draws a word and a half at most, and a rejected number (one in 2**32) another half."""
NONE = np.uint64(2**63)
# Indices are uint64: numba checks signed ones for being negative, which takes as long as the rest. And every constant
# beside them is one too: it makes a float of a uint64 and an int.
_0, _1, _2, _3, _9, _11, _32 = (np.uint64(each) for each in (0, 1, 2, 3, 9, 11, 32))
_LOW_HALF, _DOUBLE = np.uint64(2**32 - 1), 2.0**-53

_compiled = partial(compiled, nogil=True)
"""Runs go side by side in threads: without Python's lock."""


@dataclass(frozen=True)
class Records:
    """What a run walks over.

    Attributes:
        rewards_M33: log return of the step that a record settles, by position held before it and position chosen,
            both plus one; unused where the record settles none.
        gross_M3: the same without costs, by position chosen.
        symbol_M: numbers from 0.
        bins_M: market bins, 0 to B - 1.
        idle_B: bins of an abstention.
        keeps_M: whether the position is kept, whatever the table says.
        day_M: numbers of the days, from 0.
    """

    rewards_M33: Floats
    gross_M3: Floats
    symbol_M: Ints
    bins_M: Ints
    idle_B: Bools
    keeps_M: Bools
    day_M: Ints
    num_symbols: int
    num_days: int


@dataclass(frozen=True)
class Walked:
    """What runs learnt and earned; `days_LD` is the net log return of each day."""

    values_LSA: Floats
    visits_LSA: Ints
    figures_LK: Floats
    days_LD: Floats


def walk_runs(records: Records, settings: QSettings, *, num_threads: int = 1) -> Walked:
    """One pass of every run over the records; the same to the bit whatever the number of threads."""
    num_runs, num_states = len(settings), len(records.idle_B) * NUM_ACTIONS
    walked = Walked(
        np.zeros((num_runs, num_states, NUM_ACTIONS)),
        np.zeros((num_runs, num_states, NUM_ACTIONS), dtype=np.int64),
        np.zeros((num_runs, NUM_FIGURES)),
        np.zeros((num_runs, records.num_days)),
    )
    seeds_L = np.asarray(settings.seed_L, dtype=np.int64)
    alike = [np.flatnonzero(seeds_L == seed) for seed in np.unique(seeds_L)]
    groups = [group for runs in alike for group in np.array_split(runs, -(-len(runs) // GROUP))]
    walk = partial(_walk_group, records, settings, walked)
    if num_threads == 1 or len(groups) == 1:
        for group in groups:
            walk(group)
        return walked
    with ThreadPoolExecutor(min(num_threads, len(groups))) as pool:  # kernels hold no lock, groups share nothing
        list(pool.map(walk, groups))
    return walked


def reward_table(
    move_M: Floats, unit_cost_M: Floats, swap_long_M: Floats, swap_short_M: Floats
) -> tuple[Floats, Floats]:
    """Rewards (M, 3, 3) and gross ones (M, 3) of holding a position over each record's step, by
    `market.trading_series`'s rule.

    Args:
        move_M: relative change of the price over the step.
        unit_cost_M: of a change of position by one where it begins.
        swap_long_M: of holding one unit long over it; `swap_short_M` likewise.
    """
    rewards_M33, gross_M3 = np.empty((len(move_M), NUM_ACTIONS, NUM_ACTIONS)), np.empty((len(move_M), NUM_ACTIONS))
    _fill_rewards(move_M, unit_cost_M, swap_long_M, swap_short_M, RUIN, RUIN_LOG_RETURN, rewards_M33, gross_M3)
    return rewards_M33, gross_M3


def _walk_group(records: Records, settings: QSettings, walked: Walked, runs_G: Ints) -> None:
    """Runs of one seed, side by side: they draw from the same sequence of words, each at a place of its own."""
    num_records, num_runs = len(records.bins_M), len(runs_G)
    words = generator_words(np.random.Generator(np.random.PCG64(int(settings.seed_L[runs_G[0]]))))
    stream_W = np.empty(num_records + num_records // 2 + SPARE_WORDS, dtype=np.uint64)
    _fill_words(words, stream_W)
    values_GX = np.zeros((num_runs, walked.values_LSA[0].size))
    visits_GX = np.zeros(values_GX.shape, dtype=np.int64)
    earned_GK, days_GD = np.zeros((num_runs, NUM_EARNED)), np.zeros((num_runs, records.num_days))
    _walk(
        records.rewards_M33.ravel(),
        records.gross_M3.ravel(),
        records.symbol_M.astype(np.uint64),
        records.bins_M.astype(np.uint64),
        records.idle_B,
        records.day_M.astype(np.uint64),
        records.keeps_M,
        records.num_symbols,
        stream_W,
        _rates(settings, runs_G),
        values_GX,
        visits_GX,
        earned_GK,
        days_GD,
    )
    visits_GSA = visits_GX.reshape(num_runs, -1, NUM_ACTIONS)
    walked.values_LSA[runs_G], walked.visits_LSA[runs_G] = values_GX.reshape(visits_GSA.shape), visits_GSA
    walked.figures_LK[runs_G, :NUM_EARNED] = earned_GK
    walked.figures_LK[runs_G, NUM_EARNED:] = _counted(visits_GSA)
    walked.days_LD[runs_G] = days_GD


def _rates(settings: QSettings, runs_G: Ints) -> Floats:
    """(5, G) learning rate, discount, exploration rate, its decay, its minimum."""
    columns = (
        settings.learning_rate_L,
        settings.discount_factor_L,
        settings.exploration_rate_L,
        settings.exploration_decay_L,
        settings.exploration_minimum_L,
    )
    return np.stack([column[runs_G].astype(np.float64) for column in columns])


def _counted(visits_GSA: Ints) -> Ints:
    """(G, 3) turnover, steps with a position, all steps: a visit is a settled step, its state says what was held."""
    num_33 = visits_GSA.reshape(len(visits_GSA), -1, NUM_ACTIONS, NUM_ACTIONS).sum(axis=1)
    change_33 = np.abs(np.arange(NUM_ACTIONS) - np.arange(NUM_ACTIONS)[:, None])
    num = num_33.sum(axis=(1, 2))
    return np.stack([(num_33 * change_33).sum(axis=(1, 2)), num - num_33[:, :, FLAT].sum(axis=1), num], axis=1)


@_compiled
def _fill_rewards(
    move_M: Floats,
    unit_cost_M: Floats,
    swap_long_M: Floats,
    swap_short_M: Floats,
    ruin: float,
    ruin_log_return: float,
    rewards_M33: Floats,
    gross_M3: Floats,
) -> None:
    """The order of the operations is that of `market.costs.step_log_return`."""
    for row in range(len(move_M)):
        for action in range(NUM_ACTIONS):
            position = action - 1
            swap = swap_long_M[row] if position > 0 else swap_short_M[row] if position < 0 else 0.0
            gross = 1.0 + position * move_M[row]
            gross_M3[row, action] = math.log(gross) if gross > ruin else ruin_log_return
            for held in range(NUM_ACTIONS):
                growth = gross - unit_cost_M[row] * abs(action - held) - swap
                rewards_M33[row, held, action] = math.log(growth) if growth > ruin else ruin_log_return


@_compiled
def _fill_words(words: np.ndarray, stream_W: np.ndarray) -> None:
    """The generator's next words; which of them an agent draws depends on its choices, what they are does not."""
    for number in range(len(stream_W)):
        stream_W[number] = _next_word(words)


@_compiled
def _walk(
    rewards_F: Floats,
    gross_F: Floats,
    symbol_M: np.ndarray,
    bins_M: np.ndarray,
    idle_B: Bools,
    day_M: np.ndarray,
    keeps_M: Bools,
    num_symbols: int,
    stream_W: np.ndarray,
    rates_5G: Floats,
    values_GX: Floats,
    visits_GX: Ints,
    earned_GK: Floats,
    days_GD: Floats,
) -> None:
    """Settle, learn, choose; the newest two steps of each symbol wait for what a later record makes known."""
    values_F, visits_F, days_F = values_GX.reshape(-1), visits_GX.reshape(-1), days_GD.reshape(-1)
    num_runs, width, num_days = np.uint64(len(values_GX)), np.uint64(values_GX.shape[1]), np.uint64(days_GD.shape[1])
    newest_F, before_F = np.full(num_symbols * len(values_GX), NONE), np.full(num_symbols * len(values_GX), NONE)
    places_G2 = np.zeros((len(values_GX), 2), dtype=np.uint64)
    for row in range(len(bins_M)):
        if row == len(bins_M) // 2:
            earned_GK[:, LATE_NET] = earned_GK[:, NET]
        market_bin, pending, paid = bins_M[row], symbol_M[row] * num_runs, np.uint64(row) * _9
        is_idle = idle_B[market_bin]
        for run in range(len(values_GX)):
            unsigned = np.uint64(run)
            table, wait = unsigned * width, pending + unsigned
            last = newest_F[wait]
            state = _first_step(market_bin, last % _3 if last != NONE else _1)
            settled, before_F[wait] = before_F[wait], last
            if settled != NONE:
                following, is_silent = last // _3 * _3, idle_B[last // _9]
                reward, place = rewards_F[paid + settled % _9], table + settled
                target = reward + rates_5G[1, run] * _worth(values_F, table + following, is_silent)
                values_F[place] += rates_5G[0, run] * (target - values_F[place])
                visits_F[place] += 1
                days_F[unsigned * num_days + day_M[row]] += reward
                earned_GK[run, NET] += reward
                earned_GK[run, GROSS] += gross_F[np.uint64(row) * _3 + settled % _3]
            chosen = _1
            if keeps_M[row]:
                chosen = last % _3 if last != NONE else _1
            elif not is_idle:
                exploration = rates_5G[2, run]
                share = float(stream_W[places_G2[run, 0]] >> _11) * _DOUBLE
                places_G2[run, 0] += _1
                explores = share < exploration
                chosen = _draw(stream_W, places_G2[run]) if explores else _best(values_F, table + state)
                rates_5G[2, run] = min(exploration, max(rates_5G[4, run], exploration * rates_5G[3, run]))
            newest_F[wait] = state + chosen
    earned_GK[:, LATE_NET] = earned_GK[:, NET] - earned_GK[:, LATE_NET]
    earned_GK[:, EXPLORATION] = rates_5G[2]


@_compiled
def _first_step(market_bin: np.uint64, held: np.uint64) -> np.uint64:
    """The step of a state's first action, by the module's diagram; `tabular_q_kernels.state_of` in unsigned numbers."""
    step: np.uint64 = (market_bin * _3 + held) * _3
    return step


@_compiled
def _draw(stream_W: np.ndarray, place_2: np.ndarray) -> np.uint64:
    """`tabular_q_kernels.random_action` over the stream; the second place keeps half a word, doubled plus one."""
    while True:
        half = place_2[1] >> _1
        if place_2[1] != _0:
            place_2[1] = _0
        else:
            word = stream_W[place_2[0]]
            place_2[0] += _1
            half, place_2[1] = word & _LOW_HALF, ((word >> _32) << _1) | _1
        scaled = half * _3
        if (scaled & _LOW_HALF) >= _1:  # 2**32 % 3
            action: np.uint64 = scaled >> _32
            return action


@_compiled
def _best(values_F: Floats, state: np.uint64) -> np.uint64:
    """The best action; among equals flat, then short."""
    short, flat, long = values_F[state], values_F[state + _1], values_F[state + _2]
    if flat >= max(short, long):
        return _1
    return _0 if short >= long else _2


@_compiled
def _worth(values_F: Floats, state: np.uint64, is_idle: bool) -> float:
    """What the best action is worth; in an abstention only flat can be chosen."""
    flat: float = values_F[state + _1]
    return flat if is_idle else max(flat, values_F[state], values_F[state + _2])
