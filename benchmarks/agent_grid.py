"""The preset q_learning_grid on a recording: ours beside the same agent in a plain Python loop.

    python -m benchmarks.agent_grid

27 settings with five seeds each over 20,000 hours of two symbols, once: predictions with a weak signal, abstentions
among them. Both begin with the recording's arrays and end with the tables and what each run earned: every table must
be equal to the bit, and so must the agent's reward.

The loop is what one writes for a Q-learning agent: one setting after the other, a step at a time, NumPy's generator.
It comes in two forms, with a NumPy table as in most tutorials, and with lists of floats, which is as fast as we could
make it in Python; bins and costs are computed once, beforehand. Ours is everything from the recording to the ranking,
here on one thread. Timed by processor time: what a busy machine does meanwhile is nobody's.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.agents.q_table import FLAT, StateBins
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.recordings import SAMPLES, Recording
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import default_costs, swap_cost, unit_cost
from ml_workbench_service.reinforcement.agent_simulator import NET, walk_runs
from ml_workbench_service.reinforcement.agent_sweep import grid_settings, records_of, run_grid
from ml_workbench_service.reinforcement.tabular_q import QSettings
from tools.interleaved_rounds import Goal, Rounds, conclude, show

SYMBOLS = ("EUR/USD", "GBP/USD")
NUM_BARS, SEEDS, NUM_ROUNDS = 20_000, (0, 1, 2, 3, 4), 3
DEVIATION, SIGNAL = 0.001, 0.1
"""Of an hour's log return; correlation of prediction and next move: R² = 1 %."""
START_MS = 1_577_916_000_000  # 1 January 2020, 22:00 UTC
OURS, NUMPY_LOOP, LIST_LOOP = "ours", "Python loop, NumPy table", "Python loop, lists"


def recording() -> Recording:
    """Hours of two symbols in the order in which they became known."""
    chance = np.random.default_rng(0)
    every = START_MS + np.arange(2 * NUM_BARS) * calendar.HOUR_MS
    available_at_ms = every[calendar.is_open(every)][:NUM_BARS] + calendar.HOUR_MS
    moves_NS = chance.normal(0, DEVIATION, (NUM_BARS, 2))
    close_NS = np.array([1.1, 1.3]) * np.exp(np.cumsum(moves_NS, axis=0))
    noise_NS = chance.normal(0, DEVIATION, close_NS.shape)
    predicted_NS = SIGNAL * (SIGNAL * np.roll(moves_NS, -1, axis=0) + math.sqrt(1 - SIGNAL**2) * noise_NS)
    num = close_NS.size
    abstained = chance.random(num) < 0.02
    costs = [list(default_costs(symbol).model_dump().values()) for symbol in SYMBOLS]
    return Recording(
        model_id="benchmark",
        version="1.0.0",
        timeframe="1h",
        symbols=SYMBOLS,
        fill="next_open",
        data_source="simulated",
        as_of_ms_M=np.repeat(available_at_ms, 2),
        symbol_M=np.tile([0, 1], NUM_BARS),
        price_M=close_NS.ravel(),
        prediction_M=np.where(abstained, np.nan, predicted_NS.ravel()),
        volatility_M=np.full(num, DEVIATION),
        width_M=DEVIATION * chance.uniform(2.0, 5.0, num),
        strength_M=np.full(num, np.nan),
        abstained_M=abstained,
        sample_M=np.full(num, SAMPLES.index("test")),
        costs_M5=np.tile(costs, (NUM_BARS, 1)),
    )


@dataclass(frozen=True)
class Column:
    """What the loops read, a list an attribute, one entry a record."""

    symbol: list[int]
    market_bin: list[int]
    idle: list[bool]
    move: list[float]
    cost: list[float]
    swap_long: list[float]
    swap_short: list[float]


def columns(spoken: Recording, bins: StateBins) -> Column:
    """The agent's bins and the step that each record settles, by its own functions."""
    found: list[tuple[int, int, bool, float, float, float, float]] = []
    last: dict[int, tuple[float, int]] = {}
    costs = {place: default_costs(symbol) for place, symbol in enumerate(SYMBOLS)}
    for symbol, price, at_ms, prediction, scale, width, abstains in zip(
        *(
            column.tolist()
            for column in (
                spoken.symbol_M, spoken.price_M, spoken.as_of_ms_M, spoken.prediction_M, spoken.volatility_M,
                spoken.width_M, spoken.abstained_M,
            )
        ),
        strict=True,
    ):  # fmt: skip
        strength = None if abstains else prediction / scale
        market_bin = bins.state_of(strength, None if abstains else width / scale, -1) // 3
        before, before_ms = last.get(symbol, (price, at_ms))
        name, charged = SYMBOLS[symbol], costs[symbol]
        long, short = (swap_cost(charged, name, before, position, before_ms, at_ms) for position in (1, -1))
        cost = unit_cost(charged, name, before)
        found.append((symbol, market_bin, abstains, price / before - 1.0, cost, long, short))
        last[symbol] = (price, at_ms)
    return Column(*(list(column) for column in zip(*found, strict=True)))


def numpy_loop(data: Column, setting: QLearningHyperparameters, num_states: int) -> tuple[Floats, float]:
    """One run with a NumPy table; the table and the log return earned."""
    rng = np.random.default_rng(setting.seed)
    table = np.zeros((num_states, 3))
    idle_bins = {market_bin for market_bin, idle in zip(data.market_bin, data.idle, strict=True) if idle}
    epsilon, total = setting.exploration_rate, 0.0
    pending: dict[int, tuple[int, int, int]] = {}
    for row, symbol in enumerate(data.symbol):
        held = pending[symbol][1] if symbol in pending else FLAT
        state = data.market_bin[row] * 3 + held
        if symbol in pending:
            old_state, action, before = pending[symbol]
            position = action - 1
            swap = data.swap_long[row] if position > 0 else data.swap_short[row] if position < 0 else 0.0
            reward = math.log(1.0 + position * data.move[row] - data.cost[row] * abs(action - before) - swap)
            best = table[state, FLAT] if data.market_bin[row] in idle_bins else np.max(table[state])
            target = reward + setting.discount_factor * best
            table[old_state, action] += setting.learning_rate * (target - table[old_state, action])
            total += reward
        if data.idle[row]:
            chosen = FLAT
        else:
            if rng.random() < epsilon:
                chosen = int(rng.integers(3))
            else:
                chosen = int(np.argmax(table[state]))
                if table[state, FLAT] == table[state, chosen]:
                    chosen = FLAT
            epsilon = min(epsilon, max(setting.exploration_minimum, epsilon * setting.exploration_decay))
        pending[symbol] = (state, chosen, held)
    return table, total


def list_loop(data: Column, setting: QLearningHyperparameters, num_states: int) -> tuple[Floats, float]:
    """The same with lists, local names and one pass over zipped columns."""
    rng = np.random.default_rng(setting.seed)
    random, integers, log = rng.random, rng.integers, math.log
    rate, discount, decay = setting.learning_rate, setting.discount_factor, setting.exploration_decay
    minimum, epsilon, total = setting.exploration_minimum, setting.exploration_rate, 0.0
    table = [[0.0, 0.0, 0.0] for _ in range(num_states)]
    values: list[list[float] | None] = [None] * len(SYMBOLS)  # the row of the table that the pending step updates
    chosen, before = [FLAT] * len(SYMBOLS), [FLAT] * len(SYMBOLS)
    for symbol, market_bin, idle, move, cost, long, short in zip(
        data.symbol, data.market_bin, data.idle, data.move, data.cost, data.swap_long, data.swap_short, strict=True
    ):
        action = chosen[symbol]
        row, old = table[market_bin * 3 + action], values[symbol]
        if old is not None:
            growth = 1.0 + (action - 1) * move - cost * abs(action - before[symbol])
            if action != FLAT:
                growth -= long if action > FLAT else short
            reward = log(growth)
            old[action] += rate * (reward + discount * (row[FLAT] if idle else max(row)) - old[action])
            total += reward
        following = FLAT
        if not idle:
            if random() < epsilon:
                following = int(integers(3))
            else:
                best = max(row)
                following = FLAT if row[FLAT] == best else row.index(best)
            epsilon = min(epsilon, max(minimum, epsilon * decay))
        values[symbol], before[symbol], chosen[symbol] = row, action, following
    return np.array(table), total


Loop = Callable[[Column, QLearningHyperparameters, int], tuple[Floats, float]]


def their_turn(loop: Loop, spoken: Recording, runs: Sequence[QLearningHyperparameters]) -> tuple[Floats, Floats, float]:
    """Tables and log returns of all runs, one after the other, and the seconds they took."""
    bins = StateBins()
    begun = time.process_time()
    data = columns(spoken, bins)
    learnt = [loop(data, run, bins.num_states) for run in runs]
    seconds = time.process_time() - begun
    return np.stack([table for table, _ in learnt]), np.array([total for _, total in learnt]), seconds


def our_turn(spoken: Recording) -> tuple[Floats, float]:
    """The whole grid, ranked; every run's log return in the grid's order, and the seconds it took."""
    begun = time.process_time()
    outcome = run_grid(spoken, grid_settings(), seeds=SEEDS, bins=StateBins(), num_threads=1)
    seconds = time.process_time() - begun
    rows = sorted(outcome.ranking, key=lambda row: row.number)
    return np.array([net for row in rows for net in row.net_by_seed]), seconds


def main() -> None:
    """Compares the tables, measures, prints."""
    spoken = recording()
    runs = [setting.model_copy(update={"seed": seed}) for _, setting in grid_settings() for seed in SEEDS]
    walked = walk_runs(records_of(spoken, bins=StateBins())[0], QSettings.of(runs))
    our_turn(spoken)  # compiles
    rounds = Rounds(bigger_is_better=False)
    for _ in range(NUM_ROUNDS):
        for name, loop in ((NUMPY_LOOP, numpy_loop), (LIST_LOOP, list_loop)):
            tables, nets, seconds = their_turn(loop, spoken, runs)
            rounds.add(name, seconds)
            if not np.array_equal(tables, walked.values_LSA) or not np.array_equal(nets, walked.figures_LK[:, NET]):
                sys.exit(f"the tables of the {name} differ from ours")
        nets, seconds = our_turn(spoken)
        rounds.add(OURS, seconds)
        if not np.array_equal(nets, walked.figures_LK[:, NET]):
            sys.exit("what our runs earned differs from one run to the next")
    table = [rounds.row(OURS, name, digits=3) for name in (OURS, LIST_LOOP, NUMPY_LOOP)]
    title = f"{len(runs)} runs over {len(spoken):,} records; tables and rewards equal to the bit"
    show(title, ["contestant", "seconds", "ours is times faster"], table)
    goal = Goal("against the Python loop, times faster", rounds.times_better(OURS, NUMPY_LOOP), 300)
    figures = rounds.medians() | {
        f"times faster than the {name}": rounds.times_better(OURS, name) for name in (NUMPY_LOOP, LIST_LOOP)
    }
    conclude("agent_grid", [goal], figures)


if __name__ == "__main__":
    main()
