"""Tabular Q-learning updates per second: ours beside the same algorithm in a Python loop over gym-anytrading.

    python -m benchmarks.q_learning

The 27 settings that the original specification's experimental pipeline tries (learning rate, exploration rate, discount
factor), ten epochs over hourly EUR/USD, the same market bins, costs (spread, commission, swap), actions and random
numbers. The tables must be the same: to 1e-15, since the peer takes its logarithms one by one with another routine.

The peer is as fast as we could make it: bins, costs and tables are lists, nothing is rendered or logged; the larger
part of its time is the library's own step. Ours is everything from the series on: rewards, tables, random numbers. Both
run on one thread and are timed by processor time.
"""

import sys
import time
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks.environment import PEERS, WINDOW, closes, series_of
from benchmarks.training_speed import Contestant
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.costs import default_costs
from ml_workbench_service.market.trading_series import TradingSeries, segment_starts, step_table
from ml_workbench_service.reinforcement.tabular_q import QSettings, VectorTabularQ
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

LEARNING_RATES, EXPLORATION_RATES, DISCOUNT_FACTORS = (0.01, 0.1, 0.5), (1.0, 0.8, 0.5), (0.9, 0.95, 0.99)
EPOCHS, NUM_ROUNDS, REPEATS = 10, 5, 10
EDGES = (-1.5, -0.75, -0.25, 0.25, 0.75, 1.5)
"""Of the last return and of the one before, in standard deviations: 49 market bins."""
NUM_BINS = (len(EDGES) + 1) ** 2
MOST_DIFFERENCE = 1e-15
OURS, ANYTRADING = "ours", "Python loop over gym-anytrading 2.0"


def hyperparameters() -> list[QLearningHyperparameters]:
    """The 27 settings, a seed each."""
    return [
        QLearningHyperparameters(
            learning_rate=learning_rate, exploration_rate=exploration_rate, discount_factor=discount, seed=number
        )
        for number, (learning_rate, exploration_rate, discount) in enumerate(
            (a, b, c) for a in LEARNING_RATES for b in EXPLORATION_RATES for c in DISCOUNT_FACTORS
        )
    ]


def market_bins(close: Floats, rows: Ints) -> Ints:
    """The last two returns, each in seven bins."""
    returns = np.diff(np.log(close), prepend=np.log(close[0]))
    strength = np.digitize(returns / returns.std(), EDGES)
    return strength[rows] * (len(EDGES) + 1) + strength[rows - 1]


def our_turn(series: TradingSeries, rows: Ints, bins: Ints, settings: QSettings) -> tuple[Floats, float]:
    """All tables, several times over; updates per second."""
    begun = time.process_time()
    for _ in range(REPEATS):
        runs = VectorTabularQ(
            step_table(series, rows), bins, segment_starts(rows), num_bins=NUM_BINS, settings=settings
        )
        for _ in range(EPOCHS):
            runs.epoch()
    seconds = time.process_time() - begun
    return runs.values_LSA, REPEATS * len(settings) * EPOCHS * len(rows) / seconds


def main() -> None:
    """Compares the tables, measures, prints."""
    close = closes()
    series = series_of(close, fill="next_open", costs=default_costs("EUR/USD"))
    rows = series.payable(np.arange(WINDOW, len(close)))
    bins, chosen = market_bins(close, rows), hyperparameters()
    settings = QSettings.of(chosen)
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    bars, tables = WORKPLACE / "q_learning_bars.npz", WORKPLACE / "q_learning_tables.npy"
    np.savez(
        bars,
        close=close,
        unit_cost=series.unit_cost_R,
        swap_long=series.swap_long_R,
        swap_short=series.swap_short_R,
        bins=bins,
    )
    request: dict[str, Any] = {
        "bars": str(bars),
        "tables": str(tables),
        "window": WINDOW,
        "num_bins": NUM_BINS,
        "epochs": EPOCHS,
        "settings": [each.model_dump() for each in chosen],
    }
    rounds = Rounds(bigger_is_better=True)
    with closing(Contestant(python_with("anytrading", *PEERS[0].requirements), "anytrading_q_learning")) as peer:
        ours, _ = our_turn(series, rows, bins, settings)  # compiles
        for _ in range(NUM_ROUNDS):
            rounds.add(ANYTRADING, peer.turn(**request)["updates_per_s"])
            ours, speed = our_turn(series, rows, bins, settings)
            rounds.add(OURS, speed)
            difference = float(np.abs(np.load(tables) - ours).max())
            if difference > MOST_DIFFERENCE or not np.any(ours):
                sys.exit(f"the tables differ by {difference:.2g}")
    table = [rounds.row(OURS, name) for name in (OURS, ANYTRADING)]
    title = f"{len(settings)} settings, {EPOCHS} epochs of {len(rows):,} hours; tables differ by {difference:.1e}"
    show(title, ["contestant", "updates/s", "ours is times faster"], table)
    goal = Goal("against the Python loop, times faster", rounds.times_better(OURS, ANYTRADING), 300)
    conclude("q_learning", [goal], rounds.medians() | {"difference": difference})


if __name__ == "__main__":
    main()
