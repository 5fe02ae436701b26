"""Sanity checks of reinforcement learning: oracle, flipped signs, rewards; made before a policy is registered.

    oracle    tomorrow's return is one more feature: at least half of the perfect policy's net profit out of sample
    flipped   returns whose signs are thrown anew: the gross mean out of sample within three standard errors of zero
    rewards   what training pays for a series of decisions is what the backtest says of the same decisions

Out of sample is the calibration part, which a policy does not learn from: the untouched test part stays untouched, not
even its returns enter these runs.

Each of 20 seeds trains the same family with the same hyper-parameters, on fewer rows and epochs (`Budget`). A correct
family fails `flipped` by chance about once in 135 trainings: that is what three standard errors of 20 values mean
(Student's t of 19 degrees of freedom).
`rewards` must hold exactly; the other two warn.

Legend: R rows, N decisions, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from common_lib.exceptions import DataValidationError, TrainingError
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.jobs import Report, SilentReport
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market.trading_series import FILL_PRICES, TradingSeries, segment_starts, step_table
from ml_workbench_service.reinforcement.policy_family import AnyPolicyFamily, Market, decision_rows, series_of

if TYPE_CHECKING:
    from ml_workbench_service.reinforcement.environment import Walk

NUM_SEEDS = 20
LEAST_SHARE = 0.5
MOST_STANDARD_ERRORS = 3.0
"""finance.md, "RL sanity"."""
MOST_DIFFERENCE = 1e-9
"""Of two log returns that come from the same formula in another order of operations."""
ORACLE = "tomorrow"
OUT_OF_SAMPLE: Part = "calibration"
PART_SHARES: Mapping[Part, float] = {"train": 1.0, "validation": 0.25, OUT_OF_SAMPLE: 0.5, "test": 0.0}
"""Rows of the other parts, in the budget's rows of the training part."""
REWARD_ROWS = 500
"""Decisions whose rewards are compared one by one."""


@dataclass(frozen=True)
class Sanity:
    """What the runs found.

    Attributes:
        oracle_shares: of the perfect policy's net profit out of sample, one a seed.
        flipped_gross: mean gross return of a decision out of sample, one a seed.
        largest_difference: between a training reward and the backtest's, over all decisions compared.
        num_rows: rows of the training part that were used.
        epochs: most epochs of each training.
    """

    oracle_shares: tuple[float, ...]
    flipped_gross: tuple[float, ...]
    largest_difference: float
    num_rows: int
    epochs: int

    @property
    def oracle_passed(self) -> bool:
        """At least half of the perfect policy's net profit, in the mean."""
        return float(np.mean(self.oracle_shares)) >= LEAST_SHARE

    @property
    def flipped_passed(self) -> bool:
        """Within three standard errors of zero."""
        return abs(float(np.mean(self.flipped_gross))) <= MOST_STANDARD_ERRORS * _standard_error(self.flipped_gross)

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the card."""
        failed = {"sanity_oracle_failed": self.oracle_passed, "sanity_flipped_failed": self.flipped_passed}
        return tuple(name for name, passed in failed.items() if not passed)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that the card shows beside the test part's."""
        return {
            "sanity_oracle_share": float(np.mean(self.oracle_shares)),
            "sanity_flipped_gross": float(np.mean(self.flipped_gross)),
            "sanity_flipped_standard_error": _standard_error(self.flipped_gross),
            "sanity_reward_difference": self.largest_difference,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for the card."""
        return {
            "num_seeds": len(self.oracle_shares),
            "num_rows": self.num_rows,
            "epochs": self.epochs,
            "oracle": _figures(self.oracle_shares) | {"passed": self.oracle_passed, "least": LEAST_SHARE},
            "flipped": _figures(self.flipped_gross) | {"passed": self.flipped_passed},
            "rewards": {"largest_difference": self.largest_difference, "passed": True},
        }


def run(family: AnyPolicyFamily, problem: TrainingProblem, *, report: Report, num_seeds: int = NUM_SEEDS) -> Sanity:
    """All three runs.

    Raises:
        TrainingError: training pays something else than the backtest.
        JobCancelled: somebody asked for it.
    """
    difference = reward_difference(problem)
    if not difference <= MOST_DIFFERENCE:
        raise TrainingError(
            f"a training reward differs from the backtest of the same decision by {difference:.2g}; nothing was "
            "published; please report this with the request"
        )
    small = replace(problem, windows=_fewer(problem.windows, family.budget.rows), checkpoint=None)
    agent = family.with_budget(epochs=family.budget.epochs)
    told = with_oracle(small, family)
    shares, gross = [], []
    for number in range(num_seeds):
        seed = problem.seed + number
        report.say(f"sanity runs: seed {number + 1} of {num_seeds}")
        shares.append(_oracle_share(_trained(agent, told, seed=seed, report=report), told))
        blind = flipped(small, seed=seed)
        _, walked = _walked(_trained(agent, blind, seed=seed, report=report), blind)
        gross.append(float(np.mean(np.expm1(walked.gross_N))))
    num_rows = len(small.windows.parts["train"])
    return Sanity(tuple(shares), tuple(gross), difference, num_rows, agent.hyperparameters.epochs)


def with_oracle(problem: TrainingProblem, family: AnyPolicyFamily) -> TrainingProblem:
    """The same market, with the return that a decision will earn as the last feature, in the symbol's own unit.

    A family that takes no more features loses its last one for it.
    """
    market, windows = Market.of(problem), problem.windows
    entry = np.minimum(np.arange(market.series.num_rows) + market.series.delay, market.series.num_rows - 1)
    oracle_R = (market.series.move_R[entry] * market.units_R).astype(np.float32)
    num_kept = len(windows.features)
    try:
        family.check_features(num_kept + 1)
    except DataValidationError:
        num_kept -= 1
    scaler = replace(
        windows.scaler,
        features=(*windows.features[:num_kept], ORACLE),
        is_level_F=(*windows.scaler.is_level_F[:num_kept], False),
    )
    rows_RF = np.column_stack([windows.rows_RF[:, :num_kept], oracle_R])
    return replace(problem, windows=replace(windows, rows_RF=rows_RF, scaler=scaler))


def flipped(problem: TrainingProblem, *, seed: int) -> TrainingProblem:
    """The same features, beside fill prices whose returns have signs thrown anew; their sizes and all gaps stay.

    Simple returns are flipped, so that whatever is held earns zero in expectation: of log returns with even signs a
    short position would lose a variance a bar. Prices that are known after the test part begins stay as they are.
    """
    windows, chance = problem.windows, np.random.default_rng((seed, 1))  # training draws from (seed,)
    filled_at = FILL_PRICES[problem.fill]
    price_R = getattr(windows, filled_at).copy()
    priced_at_ms_R = windows.opened_ms_R if problem.fill == "next_open" else windows.available_at_ms_R
    before_test_R = priced_at_ms_R <= windows.borders_ms["test"]  # the last decision before is paid at such a price
    for run_number in np.unique(windows.runs_R[before_test_R]):
        rows = np.flatnonzero((windows.runs_R == run_number) & before_test_R)
        moves = price_R[rows[1:]] / price_R[rows[:-1]] - 1.0
        signs = chance.choice((-1.0, 1.0), len(moves))
        signs[np.abs(moves) >= 1.0] = 1.0  # no price falls by all of itself
        price_R[rows[1:]] = price_R[rows[0]] * np.cumprod(1.0 + signs * moves)
    return replace(problem, windows=replace(windows, **{filled_at: price_R}))


def perfect_net(series: TradingSeries, rows_N: Ints) -> float:
    """Net log return of the best positions there were, costs included: by dynamic programming, exact.

    Args:
        series: prices and costs.
        rows_N: decision rows, payable and ascending; each segment begins flat and is closed at its end.
    """
    rewards, starts = step_table(series, rows_N).tolist(), segment_starts(rows_N).tolist()
    total, later = 0.0, [0.0, 0.0, 0.0]
    for rewards_33, starts_here in zip(reversed(rewards), reversed(starts), strict=True):
        later = [max(earned + value for earned, value in zip(row, later, strict=True)) for row in rewards_33]
        if starts_here:
            total += later[1]
            later = [0.0, 0.0, 0.0]
    return total


def reward_difference(problem: TrainingProblem) -> float:
    """The largest difference between what the environment, the table of steps and the backtest pay.

    Random decisions over the newest rows of the training part, each segment an episode of its own.
    """
    from ml_workbench_service.market.backtest import backtest
    from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment

    series = series_of(problem)
    rows = decision_rows(series, problem, "train")[-REWARD_ROWS:]
    chance = np.random.default_rng(problem.seed)
    worst = 0.0
    for segment in np.split(rows, np.flatnonzero(segment_starts(rows))[1:]):
        positions = chance.integers(-1, 2, len(segment))
        judged = backtest(series, segment, positions, bars_per_year=1.0).net_N
        envs = VectorTradingEnvironment(
            series, segment, lookback=problem.windows.lookback, num_envs=1, episode_length=len(segment),
            seed=0, starts_N=segment[:1],
        )  # fmt: skip
        envs.reset()
        paid = np.array([envs.step(np.array([position + 1])).rewards_N[0] for position in positions])
        held = np.concatenate([[0], positions[:-1]])
        tabled = step_table(series, segment)[np.arange(len(segment)), held + 1, positions + 1]
        worst = max(worst, float(np.abs(paid - judged).max()), float(np.abs(tabled - judged).max()))
    return worst


def _trained(family: AnyPolicyFamily, problem: TrainingProblem, *, seed: int, report: Report) -> Trained:
    quiet = SilentReport(report.check, report.warn)  # the epochs of a sanity run are not the job's
    return family.train(replace(problem, seed=seed), accelerator=Cpu(), report=quiet)


def _oracle_share(model: Trained, problem: TrainingProblem) -> float:
    series, done = _walked(model, problem)
    perfect = perfect_net(series, done.rows_N)
    return float(np.sum(done.rewards_N)) / perfect if perfect > 0 else 1.0


def _walked(model: Trained, problem: TrainingProblem) -> tuple[TradingSeries, "Walk"]:
    from ml_workbench_service.reinforcement.environment import greedy_walk

    series = series_of(problem)
    rows = decision_rows(series, problem, OUT_OF_SAMPLE)
    return series, greedy_walk(Predict(model, None), series, rows, lookback=problem.windows.lookback)


def _fewer(windows: Windows, num_rows: int) -> Windows:
    """The newest windows of each part, as many of each symbol; none of the test part."""
    parts = {}
    for part, ends in windows.parts.items():
        if not PART_SHARES[part]:
            parts[part] = ends[:0]
            continue
        most = max(1, round(num_rows * PART_SHARES[part] / len(windows.symbols)))
        symbols = windows.symbol_R[ends]
        parts[part] = np.concatenate([np.sort(ends[symbols == each])[-most:] for each in np.unique(symbols)])
    return replace(windows, parts=parts, decisions=parts)


def _figures(values: tuple[float, ...]) -> dict[str, Any]:
    return {"values": list(values), "mean": float(np.mean(values)), "standard_error": _standard_error(values)}


def _standard_error(values: tuple[float, ...]) -> float:
    floats: Floats = np.array(values)
    return float(floats.std(ddof=1) / len(floats) ** 0.5) if len(floats) > 1 else 0.0
