"""Samples per second of PPO and DQN: ours beside stable-baselines3 on gym-anytrading.

    python -m benchmarks.policies

The same hourly EUR/USD closes, the same window of 10 rows of price and difference, a fee of one basis point a side, and
stable-baselines3's default network, batch and number of gradient steps for each sample on both sides: two layers of 64
units, PPO 10 passes in batches of 64 over rollouts of 2,048, DQN a batch of 32 for every fourth decision. Ours reads
the position held and may also be short, which makes 2 to 3 % more weights. That the rewards mean the same is shown
first: random decisions give equal equity curves in both environments (`benchmarks.environment.compare`).

The peer trains on in its own process, set-up not counted. Ours is the family's whole `train`: set-up, checks for a
cancellation at every step and batch, the walk over the validation part after each epoch. Both use one thread, and
processor time is counted, so that a busy machine slows nobody.
"""

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.environment import FEE, HOUR_MS, PEERS, START_MS, WINDOW, closes, compare, costs_of, process_of
from benchmarks.training_speed import TORCH, Contestant
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.data.windows import SymbolRows, build
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from tools.interleaved_rounds import Goal, Rounds, conclude, show
from tools.peer_environments import python_with

NUM_ROUNDS = 5
EPOCHS = 2
THEIRS, OURS = "stable-baselines3 2.9 on gym-anytrading 2.0", "ours"
GOALS = {"PPO": 4.0, "DQN": 3.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {"batch_size": 64, "passes": 10, "ppo_units": 64, "layers": 2, "lanes": 32, "rollout_steps": 64},
    "DQN": {"batch_size": 32, "decisions_per_update": 4, "dqn_units": 64, "layers": 2, "lanes": 16},
}
MOST_EXTRA_WEIGHTS = 0.03


def problem_of(close: Floats) -> TrainingProblem:
    """The peers' bars as a training job cuts them; costs as theirs."""
    num = len(close)
    known = START_MS + np.arange(num) * HOUR_MS
    table = SymbolRows(
        symbol="EUR/USD",
        x_NF=np.column_stack([close, np.insert(np.diff(close), 0, 0)]),
        labels_NK=np.empty((num, 0)),
        label_available_at_ms_N=known,
        available_at_ms_N=known,
        runs_N=np.zeros(num, dtype=np.int64),
        bar_volatility_N=np.full(num, np.nan),
        opened_ms_N=known - HOUR_MS,
        open_N=np.concatenate([close[:1], close[:-1]]),
        close_N=close,
        spread_N=np.full(num, np.nan),
        spread_open_N=np.full(num, np.nan),
    )
    windows = build([table], features=("price", "diff"), is_level=(False, False), lookback=WINDOW, split=0.1)
    return TrainingProblem(windows=windows, targets=(), costs={"EUR/USD": costs_of(FEE)}, fill="next_close")


def our_turn(algorithm: str, problem: TrainingProblem) -> tuple[float, Trained]:
    """Decisions a second of processor time over a whole training, and what it made."""
    name = algorithm.lower()
    family = Family.known[name]({**SETTINGS[algorithm], "lookback": WINDOW, "epochs": EPOCHS, "patience": EPOCHS})
    begun = time.process_time()
    trained = family.train(problem, accelerator=Cpu(), report=SilentReport())
    seconds = time.process_time() - begun
    return EPOCHS * len(problem.windows.parts["train"]) / seconds, trained


def same_work(algorithm: str, answer: dict[str, Any], ours: Trained) -> None:
    """About the same number of weights, the same batch and as many gradient steps a sample; raises otherwise."""
    settings = SETTINGS[algorithm]
    # The policy alone is published; the critic has its sizes, with one output.
    num_ours = sum(each.size for each in ours.weights.values())
    if algorithm == "PPO":
        num_ours += num_ours - 2 * (settings["ppo_units"] + 1)
        ratio = round(settings["passes"] / settings["batch_size"], 2)
    else:
        ratio = round(1 / settings["decisions_per_update"], 2)
    extra = num_ours / answer["num_parameters"] - 1
    if not 0 <= extra <= MOST_EXTRA_WEIGHTS or answer["batch_size"] != settings["batch_size"]:
        raise SystemExit(f"{algorithm}: the networks differ: ours has {num_ours} weights, theirs {answer}")
    if abs(answer["updates_per_step"] - ratio) > 0.01:
        raise SystemExit(f"{algorithm}: gradient steps a sample differ: ours {ratio}, theirs {answer}")


def main() -> None:
    """Compares rewards and work, measures, prints the table."""
    close, anytrading = closes(), PEERS[0]
    problem = problem_of(close)
    with closing(process_of(anytrading)) as peer:
        played, worst = compare(anytrading, peer, close)
    python = python_with("anytrading_sb3", *anytrading.requirements, "stable-baselines3==2.9.*", TORCH)
    goals, figures, table = [], {}, []
    with closing(Contestant(python, "anytrading_policies")) as contestant:
        for algorithm, wanted in GOALS.items():
            request = {"algorithm": algorithm, "bars": played["bars"], "window": WINDOW, "fee": FEE}
            answer = contestant.turn(**request)
            same_work(algorithm, answer, our_turn(algorithm, problem)[1])
            rounds = Rounds(bigger_is_better=True)
            for number in range(NUM_ROUNDS):
                rounds.add(THEIRS, contestant.turn(**request)["steps_per_s"])
                rounds.add(OURS, our_turn(algorithm, replace(problem, seed=number))[0])
            ratio = rounds.times_better(OURS, THEIRS)
            for name, *shown in (rounds.row(OURS, each) for each in (OURS, THEIRS)):
                table.append([f"{algorithm}, {name}", *shown])
            goals.append(Goal(f"{algorithm}, times faster", ratio, wanted))
            figures[algorithm] = rounds.medians() | {"times": ratio}
    show(
        f"Training a policy, 2 x 64 units; equity curves differ by {worst:.1e}",
        ["contestant", "samples/s", "ours is times faster"],
        table,
    )
    conclude("policies", goals, figures)


if __name__ == "__main__":
    main()
