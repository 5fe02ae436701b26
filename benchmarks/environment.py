"""Environment steps per second: ours beside gym-anytrading and gym-trading-env, with equal equity curves.

    python -m benchmarks.environment

The same hourly EUR/USD closes (the file that gym-anytrading ships), the same window of 10 rows of price and difference,
the same flat or long decisions, the same fee of one basis point a side. The peers fill differently, and ours can do
both, so each is compared under its own rule: gym-anytrading's StocksEnv fills an action at the next close, as we do for
fixings; gym-trading-env fills it at the price it was decided on, as we do for bars. StocksEnv and not ForexEnv, because
the latter pays nothing for longs or nothing for shorts; flat and long alone, because gym-trading-env keeps a short's
units where we keep its share of the capital.

One convention differs: on entry they take the fee out of the units bought, so that it moves with the first bar; we take
it out of the capital. That is fee * move, about 1e-8 a trade, and exactly known. So the logarithms of the curves are
compared without fee as they are, and with fee after that term; both must agree to 1e-9 at every step at which the
position is flat (gym-anytrading accounting a trade when it is closed).

Each peer runs in a process of its own without wrappers, logs or rendering. Ours runs on one thread, 1024 environments
at random rows with random actions; with fewer environments, and behind Gymnasium's interface with its copies, it is
shown beside. All are timed by processor time: nobody waits for anything, and what a busy machine does meanwhile is not
theirs.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training_speed import Contestant
from ml_workbench_service.contracts.market import Costs, FillRule, Floats, Ints
from ml_workbench_service.market.trading_series import StackedBars, TradingSeries, build_trading_series
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment
from ml_workbench_service.reinforcement.gym_environment import TradingVectorEnv
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show
from tools.peer_environments import python_with

WINDOW, FEE = 10, 1e-4
NUM_ROUNDS, NUM_STEPS = 7, 4000
NUM_ENVS = (1024, 64, 1)
MOST_DIFFERENCE = 1e-9
HOUR_MS, START_MS = 3_600_000, 1_483_308_000_000
ANYTRADING, TRADING_ENV = "gym-anytrading 2.0", "gym-trading-env 0.3.5"
OURS, GYMNASIUM = "ours, 1024 environments", "ours, 1024 environments, as Gymnasium's VectorEnv"


@dataclass(frozen=True)
class Peer:
    """A contestant, when it fills, and how many times faster we want to be."""

    name: str
    script: str
    fill: FillRule
    first_row: int
    goal: float
    requirements: tuple[str, ...]


PEERS = (
    Peer(ANYTRADING, "anytrading_environment", "next_close", WINDOW, 100, ("gym-anytrading==2.0.*",)),
    Peer(
        TRADING_ENV,
        "trading_env_environment",
        "next_open",
        WINDOW - 1,
        1000,
        ("gym-trading-env==0.3.5",),
    ),
)


def closes() -> Floats:
    """Hourly EUR/USD of 2017, from the package's file; the package itself stays out."""
    spec = find_spec("gym_anytrading")
    if spec is None or spec.origin is None:
        raise SystemExit("gym-anytrading is not installed; run `make install` for the development dependencies")
    path = Path(spec.origin).parent / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv"
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=4)


def series_of(close: Floats, *, fill: FillRule, costs: Costs) -> TradingSeries:
    """The bars as one run; the features are the peers' own, price and difference."""
    num, zeros = len(close), np.zeros(len(close), dtype=np.int64)
    return build_trading_series(
        StackedBars(
            np.column_stack([close, np.insert(np.diff(close), 0, 0)]).astype(np.float32),
            open_R=np.concatenate([close[:1], close[:-1]]),
            close_R=close,
            opened_ms_R=START_MS + np.arange(num) * HOUR_MS - HOUR_MS,
            available_at_ms_R=START_MS + np.arange(num) * HOUR_MS,
            runs_R=zeros,
            symbol_R=zeros,
            symbols=("EUR/USD",),
            spread_R=np.full(len(close), np.nan),
            spread_open_R=np.full(len(close), np.nan),
        ),
        costs={"EUR/USD": costs},
        fill=fill,
    )


def our_curve(series: TradingSeries, actions: Ints, *, first_row: int, fee: float) -> Floats:
    """Log of the account after each decision, through the environment; all environments do the same and must agree.

    The term by which the peers' way to take the fee on entry differs is added.
    """
    rows = series.payable(np.arange(first_row, series.num_rows))
    start = np.array([first_row])
    envs = VectorTradingEnvironment(
        series, rows, lookback=WINDOW, num_envs=8, episode_length=len(rows), seed=0, starts_N=start
    )
    envs.reset()
    rewards = []
    for action in actions:
        answer = envs.step(np.full(8, action + 1))
        rewards.append(answer.rewards_N.copy())
    earned = np.array(rewards)
    if not answer.truncated_N.all() or np.ptp(earned, axis=1).max() > 0:
        raise SystemExit("our environments disagree with each other")
    entries = np.diff(actions, prepend=0) > 0
    growth = 1.0 + series.move_R[rows + series.delay]
    term = np.log((1 - fee) * growth / (growth - fee))
    return np.cumsum(earned[:, 0] + np.where(entries, term, 0.0))


def costs_of(fee: float) -> Costs:
    """The peers' costs: a fee a side, and nothing else."""
    return Costs(spread_pips=0, commission_bp=fee * 1e4, slippage_bp=0, swap_long_pips=0, swap_short_pips=0)


def process_of(peer: Peer) -> Contestant:
    """The peer in its own environment."""
    return Contestant(python_with(peer.script.removesuffix("_environment"), *peer.requirements), peer.script)


def compare(peer: Peer, contestant: Contestant, close: Floats) -> tuple[dict[str, Any], float]:
    """What the peer is asked to play: random decisions; and how far its curve then lies from ours.

    That is the largest difference between the curves' logarithms while flat, with fee; raises where they differ.
    """
    num = len(series_of(close, fill=peer.fill, costs=costs_of(FEE)).payable(np.arange(peer.first_row, len(close))))
    actions = np.random.default_rng(peer.first_row).integers(0, 2, num)
    actions[-1] = 0
    files = {name: str(WORKPLACE / f"{peer.script}_{name}.npy") for name in ("bars", "actions", "curve")}
    np.save(files["bars"], np.column_stack([close, close, np.insert(np.diff(close), 0, 0)]))
    np.save(files["actions"], actions)
    request, flat = {**files, "window": WINDOW, "fee": FEE}, actions == 0
    for fee in (0.0, FEE):
        contestant.turn(**{**request, "fee": fee})
        theirs, series = np.load(files["curve"]), series_of(close, fill=peer.fill, costs=costs_of(fee))
        ours = our_curve(series, actions, first_row=peer.first_row, fee=fee)
        worst = float(np.abs(theirs - ours)[flat].max())
        if worst > MOST_DIFFERENCE or np.ptp(ours) < 0.01:
            raise SystemExit(f"{peer.name}: the equity curves differ by {worst:.2g} at a fee of {fee}")
    return request, worst


def our_speed(series: TradingSeries, *, num_envs: int, gymnasium: bool = False) -> float:
    """Steps per second over all environments, random starts and actions, episodes of 500 steps."""
    envs = VectorTradingEnvironment(
        series, np.arange(WINDOW, series.num_rows), lookback=WINDOW, num_envs=num_envs, episode_length=500, seed=1
    )
    step = TradingVectorEnv(envs).step if gymnasium else envs.step
    actions = np.random.default_rng(2).integers(1, 3, (16, num_envs))
    envs.reset()
    for number in range(10):
        step(actions[number])
    num_steps = NUM_STEPS if num_envs == NUM_ENVS[0] else 4 * NUM_STEPS
    begun = time.process_time()
    for number in range(num_steps):
        step(actions[number % 16])
    return num_steps * num_envs / (time.process_time() - begun)


def main() -> None:
    """Compares the curves, measures, prints the table."""
    close, rounds = closes(), Rounds(bigger_is_better=True)
    series = series_of(close, fill=PEERS[-1].fill, costs=costs_of(FEE))
    contestants, requests, worst = {}, {}, {}
    with ExitStack() as stack:
        for peer in PEERS:
            contestants[peer.name] = stack.enter_context(closing(process_of(peer)))
            requests[peer.name], worst[peer.name] = compare(peer, contestants[peer.name], close)
        for _ in range(NUM_ROUNDS):
            for name, each in contestants.items():
                rounds.add(name, each.turn(**requests[name])["steps_per_s"])
            for num_envs in NUM_ENVS:
                name = OURS if num_envs == NUM_ENVS[0] else f"ours, {num_envs} environments"
                rounds.add(name, our_speed(series, num_envs=num_envs))
            rounds.add(GYMNASIUM, our_speed(series, num_envs=NUM_ENVS[0], gymnasium=True))
    table = [[*rounds.row(OURS, name), f"{worst[name]:.1e}" if name in worst else ""] for name in rounds.figures]
    columns = ["contestant", "steps/s", f"{OURS}, is times faster", "equity differs by"]
    show(f"EUR/USD hours, window {WINDOW}, fee {FEE:g}", columns, table)
    goals = [
        Goal(f"against {peer.name}, times faster", rounds.times_better(OURS, peer.name), peer.goal) for peer in PEERS
    ]
    conclude("environment", goals, rounds.medians() | {"differences": worst})


if __name__ == "__main__":
    main()
