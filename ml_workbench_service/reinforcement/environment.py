"""Vectorised trading environment: many episodes at once on one series; and `walk`, one policy in order over a part.

What a step earns, when an episode ends and what closing costs stands in `market/trading_series.py`. An episode starts
flat at a row drawn at random and lasts `episode_length` decisions, or until its segment ends; then it is truncated, the
position closed and paid for, and the environment begins its next episode in the same step. It is terminated only by
ruin.

An observation is the window of `lookback` rows, oldest first, then the position (-1, 0, 1), all float32.

Memory: the series, 80 bytes a row of the series, and two observations an environment.

Legend: N environments (in `walk`: N decisions), R rows, T = lookback, F features, O = T * F + 1.
Needs numba; import it where training happens, never where the API starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.learning.decoders.action import greedy_actions
from ml_workbench_service.market.trading_series import (
    POSITIONS,
    RUIN_LOG_RETURN,
    TradingSeries,
    closing_rewards,
    held_table,
    segment_starts,
    step_rewards,
)
from ml_workbench_service.reinforcement.environment_kernels import ROW, TERMINATED, TRUNCATED, begin_envs, step_envs
from ml_workbench_service.reinforcement.hyperparameters import WALK_CHUNK

QUEUE_LENGTH = 4096
"""Starting rows drawn at once; a call of the generator for every episode would cost more than the episode's steps."""
_WORD = (1 << 64) - 1

Policy = Callable[[Floats32, Floats32], Ints]
"""(windows (N, T, F), positions (N,)) -> actions (N,) in 0, 1, 2."""


@dataclass(frozen=True)
class Stepped:
    """What a step answers: the environment's own buffers, overwritten by the next step. Copy what you keep.

    `observations_NO` of an environment that has ended belongs to its next episode; the last one of the old episode is
    `VectorTradingEnvironment.final_observation`.
    """

    observations_NO: Floats32
    rewards_N: Floats
    terminated_N: Bools
    truncated_N: Bools


class VectorTradingEnvironment:
    """Episodes side by side, one thread, reproducible from the seed.

    Args:
        series: prices, costs, features.
        rows_N: rows in which decisions are allowed, such as a part's windows; those that cannot be paid are left out.
        lookback: rows of a window.
        num_envs: episodes at once.
        episode_length: most decisions of an episode.
        seed: of the starting rows.
        starts_N: rows at which episodes may begin; all allowed ones unless given.

    Raises:
        DataValidationError: no row is left, or a window would begin before the series.
    """

    def __init__(
        self,
        series: TradingSeries,
        rows_N: Ints,
        *,
        lookback: int,
        num_envs: int,
        episode_length: int,
        seed: int,
        starts_N: Ints | None = None,
    ) -> None:
        allowed = series.payable(rows_N)
        self._starts = allowed if starts_N is None else np.intersect1d(allowed, starts_N)
        _check(self._starts, allowed, lookback=lookback, num_envs=num_envs, episode_length=episode_length)
        self.series, self.lookback = series, lookback
        self.num_envs, self.episode_length = num_envs, episode_length
        self.num_observed = lookback * series.num_features + 1
        self._flat_rows = series.rows_RF.reshape(-1)
        self._rewards_R33, self._closing_R = np.zeros((series.num_rows, 3, 3)), np.zeros(series.num_rows)
        self._rewards_R33[allowed] = held_table(series, allowed)
        self._closing_R[allowed] = closing_rewards(series, allowed)
        self._allowed_R = np.zeros(series.num_rows, dtype=np.bool_)
        self._allowed_R[allowed] = True
        self._envs_N3 = np.zeros((num_envs, 3), dtype=np.int64)
        self._ends_N2 = np.zeros((num_envs, 2), dtype=np.bool_)
        observations_NO, self._finals_NO = (np.zeros((num_envs, self.num_observed), dtype=np.float32) for _ in range(2))
        self._flat_NO, self._flat_finals_NO = observations_NO.reshape(-1), self._finals_NO.reshape(-1)
        self._stepped = Stepped(
            observations_NO, np.zeros(num_envs), self._ends_N2[:, TERMINATED], self._ends_N2[:, TRUNCATED]
        )
        self._begun = False
        self._queue: Ints = np.zeros(0, dtype=np.int64)
        self._cursor = 0
        self._seed(seed)

    def reset(self, *, seed: int | None = None) -> Floats32:
        """All environments begin an episode; the observations (N, O), a buffer that the next step overwrites.

        A seed starts the random rows anew; without one they go on from where they are.
        """
        if seed is not None:
            self._seed(seed)
        self._refill()
        starts = self._queue[self._cursor : self._cursor + self.num_envs]
        self._cursor += self.num_envs
        begin_envs(
            self._flat_rows,
            self.series.num_features,
            self.lookback,
            self.episode_length,
            starts,
            self._envs_N3,
            self._flat_NO,
        )
        self._begun = True
        return self._stepped.observations_NO

    def step(self, actions_N: Ints) -> Stepped:
        """One decision of every environment: 0 short, 1 flat, 2 long.

        Raises:
            DataValidationError: wrong actions; nothing has changed.
        """
        actions = np.ascontiguousarray(actions_N, dtype=np.int64)
        if actions.shape != (self.num_envs,) or not self._begun:
            raise DataValidationError.at(
                "actions", f"A step needs {self.num_envs} actions in one array, after `reset`; got {actions.shape}."
            )
        self._refill()
        cursor = step_envs(
            actions,
            self._flat_rows,
            self.series.num_features,
            self._rewards_R33,
            self._closing_R,
            RUIN_LOG_RETURN,
            self._allowed_R,
            self.lookback,
            self.episode_length,
            self._queue,
            self._cursor,
            self._envs_N3,
            self._flat_NO,
            self._flat_finals_NO,
            self._stepped.rewards_N,
            self._ends_N2,
        )
        if cursor < 0:
            raise DataValidationError.at("actions", "An action must be 0 (short), 1 (flat) or 2 (long).")
        self._cursor = cursor
        return self._stepped

    def final_observation(self, env: int) -> Floats32:
        """A copy of the last observation (O,) of the episode that this one's last step ended; its position is 0."""
        final: Floats32 = self._finals_NO[env].copy()
        return final

    @property
    def rows_N(self) -> Ints:
        """The row of each environment's next decision, a copy."""
        rows: Ints = self._envs_N3[:, ROW].copy()
        return rows

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to go on exactly here, as plain arrays."""
        return {
            "lanes": self._envs_N3.copy(),
            "queue": self._queue[self._cursor :].copy(),
            "generator": generator_words(self._generator),
            "observations": self._stepped.observations_NO.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> Floats32:
        """Goes on from a state of environments made with the same arguments; answers with the observations at hand.

        Raises:
            DataValidationError: the state belongs to environments of another size.
        """
        if state["observations"].shape != self._stepped.observations_NO.shape:
            raise DataValidationError.at(
                "checkpoint",
                "The checkpoint belongs to another number of environments or another window; start afresh.",
            )
        self._envs_N3[:] = state["lanes"]
        self._stepped.observations_NO[:] = state["observations"]
        self._queue, self._cursor = np.array(state["queue"], dtype=np.int64), 0
        self._generator = generator_of(state["generator"])
        self._begun = True
        return self._stepped.observations_NO

    def _seed(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._queue, self._cursor = np.zeros(0, dtype=np.int64), 0

    def _refill(self) -> None:
        """At least one row for every environment in the queue; what is drawn does not depend on when."""
        while len(self._queue) - self._cursor < self.num_envs:
            drawn = self._starts[self._generator.integers(len(self._starts), size=QUEUE_LENGTH)]
            self._queue = np.concatenate([self._queue[self._cursor :], drawn])
            self._cursor = 0


@dataclass(frozen=True)
class Walk:
    """What a policy did and earned, in order: decision rows, positions, net log returns, costs (fractions), gross."""

    rows_N: Ints
    positions_N: Ints
    rewards_N: Floats
    costs_N: Floats
    gross_N: Floats


def walk(policy: Policy, series: TradingSeries, rows_N: Ints, *, lookback: int, chunk: int = WALK_CHUNK) -> Walk:
    """Runs a policy in order over rows, its position fed back; each segment starts flat and is closed at its end.

    A policy here is a function of window and position alone. So it is asked in batches, for all three positions at
    each row, and the answers are then followed row by row: the same walk, without a batch of one at every bar.

    Args:
        policy: its greedy choice.
        series: prices, costs, features.
        rows_N: decision rows, ascending; those that cannot be paid are left out.
        lookback: rows of a window.
        chunk: rows asked at once.
    """
    rows = series.payable(rows_N)
    _check(rows, rows, lookback=lookback, num_envs=1, episode_length=1)
    choices_N3 = np.empty((len(rows), len(POSITIONS)), dtype=np.int64)
    offsets = np.arange(1 - lookback, 1)
    for begin in range(0, len(rows), chunk):
        asked = rows[begin : begin + chunk]
        windows_NTF = series.rows_RF[asked[:, None] + offsets]
        for held in POSITIONS:
            actions = policy(windows_NTF, np.full(len(asked), held, dtype=np.float32))
            choices_N3[begin : begin + chunk, held + 1] = np.asarray(actions, dtype=np.int64) - 1
    starts = segment_starts(rows)
    positions, held_N = _followed(choices_N3, starts)
    return _paid(series, rows, positions, held_N)


def greedy_walk(
    predict: Callable[[Floats32, Floats32], np.ndarray], series: TradingSeries, rows_N: Ints, *, lookback: int
) -> Walk:
    """A walk of the greedy policy over the outputs (N, 3) that `predict` gives."""
    return walk(lambda *asked: greedy_actions(predict(*asked)), series, rows_N, lookback=lookback)


def _followed(choices_N3: Ints, starts_N: Bools) -> tuple[Ints, Ints]:
    held, positions, before = 0, [], []
    for choices, starts in zip(choices_N3.tolist(), starts_N.tolist(), strict=True):
        held = 0 if starts else held
        before.append(held)
        held = choices[held + 1]
        positions.append(held)
    return np.array(positions, dtype=np.int64), np.array(before, dtype=np.int64)


def _paid(series: TradingSeries, rows: Ints, positions: Ints, held_N: Ints) -> Walk:
    entry = rows + series.delay
    ends = np.append(segment_starts(rows)[1:], True)
    swap = np.where(positions > 0, series.swap_long_R[entry], np.where(positions < 0, series.swap_short_R[entry], 0.0))
    closing = np.where(ends, series.unit_cost_R[entry + 1] * np.abs(positions), 0.0)
    return Walk(
        rows_N=rows,
        positions_N=positions,
        rewards_N=step_rewards(series, rows, held_N=held_N, position_N=positions),
        costs_N=series.unit_cost_R[entry] * np.abs(positions - held_N) + swap + closing,
        gross_N=np.log1p(positions * series.move_R[entry]),
    )


def generator_words(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator as six uint64: state and increment (high, low), and the kept half of a word."""
    state = generator.bit_generator.state
    inner = state["state"]
    words = [inner["state"] >> 64, inner["state"] & _WORD, inner["inc"] >> 64, inner["inc"] & _WORD]
    return np.array([*words, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def generator_of(words: np.ndarray) -> np.random.Generator:
    """The generator that goes on where `generator_words` was taken."""
    state_high, state_low, inc_high, inc_low, has_half, half = (int(word) for word in words)
    generator = np.random.Generator(np.random.PCG64(0))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state_high << 64 | state_low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_half,
        "uinteger": half,
    }
    return generator


def _check(starts: Ints, allowed: Ints, *, lookback: int, num_envs: int, episode_length: int) -> None:
    if len(starts) == 0:
        raise DataValidationError.at(
            "rows", "No row is left in which a decision could be paid; give a longer part or bars without gaps."
        )
    if int(allowed.min()) < lookback - 1:
        raise DataValidationError.at("rows", "A window would begin before the first row; give the part's windows.")
    if min(lookback, num_envs, episode_length) < 1:
        raise DataValidationError.at("lanes", "Lookback, environments and episode length must be at least 1.")
