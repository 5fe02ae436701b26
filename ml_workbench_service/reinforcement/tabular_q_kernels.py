"""Tabular Q-learning, compiled: the inner loop of one run, one pass over the rows, in the order of time.

It draws its random numbers itself, from the words of NumPy's PCG64 (`reinforcement.environment.generator_words`), and
the numbers are NumPy's: numba can call a NumPy generator too, but takes most of a microsecond for one small integer.
O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation"
(2014); Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 29 (2019).

    market bin      0             1             2
    held          S   F   L     S   F   L     S   F   L        short, flat, long: the action that opened the position
    state         0   1   2     3   4   5     6   7   8 ...    `state_of`

Legend: N rows, S states, A = 3 actions, B market bins. Needs numba.
"""

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.reinforcement.environment_kernels import compiled

FLAT, NUM_ACTIONS = 1, 3
STATE_HIGH, STATE_LOW, INCREMENT_HIGH, INCREMENT_LOW, HAS_HALF, HALF = range(6)
"""Places in the generator's six words."""
# Every constant is a uint64: numba makes a float of a uint64 and an int.
_MULTIPLIER_HIGH, _MULTIPLIER_LOW = np.uint64(2549297995355413924), np.uint64(4865540595714422341)
_0, _1, _3, _11 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(11)
_32, _58, _63, _64 = np.uint64(32), np.uint64(58), np.uint64(63), np.uint64(64)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_DOUBLE = 2.0**-53
_LEMIRE_THRESHOLD = np.uint64(2**32 % NUM_ACTIONS)


@compiled
def _high_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper 64 of the 128 bits of a product."""
    a_high, a_low, b_high, b_low = a >> _32, a & _LOW_HALF, b >> _32, b & _LOW_HALF
    middle = a_high * b_low + ((a_low * b_low) >> _32)
    other = a_low * b_high + (middle & _LOW_HALF)
    return a_high * b_high + (middle >> _32) + (other >> _32)


@compiled
def _next_word(words: np.ndarray) -> np.uint64:
    """64 random bits: a step of the 128-bit congruence, and its output by xor, shift and rotation (XSL-RR)."""
    high, low = words[STATE_HIGH], words[STATE_LOW]
    high = _high_product(low, _MULTIPLIER_LOW) + high * _MULTIPLIER_LOW + low * _MULTIPLIER_HIGH
    product = low * _MULTIPLIER_LOW
    low = product + words[INCREMENT_LOW]
    high += words[INCREMENT_HIGH]
    if low < product:
        high += _1
    words[STATE_HIGH], words[STATE_LOW] = high, low
    mixed, turn = high ^ low, high >> _58
    word: np.uint64 = (mixed >> turn) | (mixed << ((_64 - turn) & _63))
    return word


@compiled
def random_share(words: np.ndarray) -> float:
    """`Generator.random()`."""
    return float(_next_word(words) >> _11) * _DOUBLE


@compiled
def random_action(words: np.ndarray) -> int:
    """`Generator.integers(3)`: half a word at a time, the other half is kept; without bias."""
    while True:
        if words[HAS_HALF] != _0:
            half = words[HALF]
            words[HAS_HALF] = _0
        else:
            word = _next_word(words)
            half = word & _LOW_HALF
            words[HAS_HALF], words[HALF] = _1, word >> _32
        scaled = half * _3
        if (scaled & _LOW_HALF) >= _LEMIRE_THRESHOLD:
            return int(np.int64(scaled >> _32))  # a uint64 among ints would make floats of them


@compiled
def state_of(market_bin: int, held: int) -> int:
    """The state of a Q table, as the diagram numbers them; `held` is an action."""
    return market_bin * NUM_ACTIONS + held


@compiled
def learn_pass(
    rewards_N33: Floats,
    bins_N: Ints,
    starts_N: Bools,
    values_SA: Floats,
    visits_SA: Ints,
    learning_rate: float,
    discount: float,
    exploration: float,
    decay: float,
    minimum: float,
    words: np.ndarray,
) -> tuple[float, float]:
    """Learns in place; the log return earned on the way, and the exploration rate it ends with.

    The arithmetic and the order of random numbers are those of `agents.q_table.QTable`, so that the tables are equal
    to the bit: choose, pay, learn. After a segment's last row nothing follows, so its target is the reward alone.
    """
    num_rows = len(bins_N)
    total, held = 0.0, FLAT
    for number in range(num_rows):
        if starts_N[number]:
            held = FLAT
        state = state_of(bins_N[number], held)
        if random_share(words) < exploration:
            action = random_action(words)
        else:
            best = 0
            for other in range(1, NUM_ACTIONS):
                if values_SA[state, other] > values_SA[state, best]:
                    best = other
            action = FLAT if values_SA[state, FLAT] == values_SA[state, best] else best
        exploration = min(exploration, max(minimum, exploration * decay))
        reward = rewards_N33[number, held, action]
        total += reward
        following = number + 1
        value = 0.0
        if following < num_rows and not starts_N[following]:
            next_state = state_of(bins_N[following], action)
            value = max(values_SA[next_state, FLAT], values_SA[next_state, 0], values_SA[next_state, 2])
        old = values_SA[state, action]
        values_SA[state, action] = old + learning_rate * (reward + discount * value - old)
        visits_SA[state, action] += 1
        held = action
    return total, exploration
