"""Prints the sanity runs of reinforcement learning for every family: `python -m tools.rl_sanity [family …]`.

On real daily EUR/USD reference rates since 1999 (the embedded sample), and on a random walk of the same length. The
table of docs/reinforcement_learning.md comes from here.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np

from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import build
from ml_workbench_service.learning.interfaces.family import TrainingProblem, families_of
from ml_workbench_service.market.costs import resolved_costs
from ml_workbench_service.reinforcement.policy_family import PolicyFamily
from ml_workbench_service.reinforcement.sanity_checks import Sanity, run

SYMBOL = "EUR/USD"
FEATURES = ("rsi_14", "macd", "return_1", "volatility_24")
START_MS, END_MS = 0, 4_102_444_800_000  # 1970 to 2100: all there is
VALIDATION_SPLIT = 0.2


def real_rates(lookback: int) -> TrainingProblem:
    """Daily EUR/USD fixings with four indicators."""
    store = LocalFeatureStore(SampleRates())
    (table,) = store.fetch(
        [SYMBOL], "1d", start_ms=START_MS, end_ms=END_MS, features=[*FEATURES, "close"], as_of_ms=None
    )
    is_level = [store.kind_of(each) == "level" for each in FEATURES]
    return problem_of(table, features=FEATURES, is_level=is_level, lookback=lookback, split=VALIDATION_SPLIT)


def random_walk(lookback: int) -> TrainingProblem:
    """Normal daily returns without drift, beside four features of noise."""
    chance, real = np.random.default_rng(3), real_rates(lookback).windows
    num = len(real.close_R)
    columns = {name: chance.standard_normal(num) for name in FEATURES}
    columns["close"] = np.exp(np.cumsum(0.006 * chance.standard_normal(num)))
    table = FeatureTable(
        SYMBOL, "1d", real.available_at_ms_R - 86_400_000, real.available_at_ms_R, columns, "simulated", "fixings"
    )
    is_level = [False] * len(FEATURES)
    return problem_of(table, features=FEATURES, is_level=is_level, lookback=lookback, split=VALIDATION_SPLIT)


def problem_of(
    table: FeatureTable, *, features: Sequence[str], is_level: list[bool], lookback: int, split: float,
    targets: tuple[Target, ...] = (),
) -> TrainingProblem:  # fmt: skip
    """Windows, parts and costs, as a training job cuts them."""
    costs = {table.symbol: resolved_costs(table.symbol)}
    labelling = label_tables([table], features=features, columns=[table.columns], targets=targets, costs=costs)
    windows = build(
        labelling.rows, features=features, is_level=is_level, lookback=lookback, split=split,
        scales_labels=[not target.classes for target in targets], finish_rows=labelling.finish,
    )  # fmt: skip
    return TrainingProblem(windows=windows, targets=targets, costs=costs, fill=table.fill)


def row(name: str, data: str, found: Sanity, seconds: float) -> str:
    """One line of the table."""
    plain = found.to_json()
    oracle, blind = plain["oracle"], plain["flipped"]
    cells = [
        name,
        data,
        f"{oracle['mean']:.2f} ({min(oracle['values']):.2f} to {max(oracle['values']):.2f})",
        f"{1e4 * blind['mean']:+.2f} ± {1e4 * blind['standard_error']:.2f}",
        f"{found.largest_difference:.0e}",
        f"{seconds:.0f}",
        ", ".join(found.warnings) or "passed",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Every family, or those named."""
    print("| family | prices | oracle: share of the perfect net | signs flipped: gross, bp a day | rewards | s | |")
    print("|---|---|---|---|---|---|---|")
    for kind in families_of(ModelType.REINFORCEMENT_LEARNING):
        if sys.argv[1:] and kind.name not in sys.argv[1:]:
            continue
        family = kind({})
        assert isinstance(family, PolicyFamily)
        for data, make in (("ECB, daily EUR/USD", real_rates), ("random walk", random_walk)):
            begun = time.process_time()
            found = run(family, make(family.lookback), report=SilentReport())
            print(row(kind.name, data, found, time.process_time() - begun), flush=True)


if __name__ == "__main__":
    main()
