"""Real data: every family on the ECB's daily fixings of three pairs, 1999 to 2025, and what its card says.

All rows are trained by one service with one pair of ledgers, in the order of the table. So each further bet on the
price reads the same test part once more, and its p-value is multiplied by the test-set evaluations so far.
"""

from dataclasses import dataclass, field
from typing import Any

from ml_workbench_service.contracts.evaluation import Comparison, Evaluation
from ml_workbench_service.contracts.models import ModelCard
from studies.fits import bench_on, train_once, training_request
from studies.tables import Run, Table
from studies.workers import in_workers

SYMBOLS = ["EUR/USD", "GBP/USD", "USD/JPY"]
FEATURES = ["return_1", "return_5", "volatility_20", "rsi_14", "bb_percent"]
NETWORK: dict[str, Any] = {"lookback": 12, "batch_size": 128, "epochs": 20, "patience": 5, "dropout": 0.1}
NAIVE = ("random_walk", "seasonal_ewma", "majority_class", "persistence", "flat")
"""What each kind of target is compared with first; finance.md."""


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    family: str
    model_type: str
    target: str | None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    features: list[str] = field(default_factory=lambda: list(FEATURES))


PRICE = "price_change_1d"
DIRECTION = "direction_1d"
VOLATILITY = "volatility_5d"
ATTENTION = {"transformer_units": 16, "heads": 2}
POLICY = {"lookback": 12}
BETS = (
    Entry("linear", "time_series", PRICE, {"lookback": 12}),
    Entry("lightgbm", "time_series", PRICE, {"lookback": 12}),
    Entry("lstm", "time_series", PRICE, {**NETWORK, "lstm_units": 16}),
    Entry("gru", "time_series", PRICE, {**NETWORK, "gru_units": 16}),
    Entry("transformer", "time_series", PRICE, {**NETWORK, **ATTENTION}),
    Entry("linear_classifier", "classification", DIRECTION, {"lookback": 12}),
    Entry("lightgbm_classifier", "classification", DIRECTION, {"lookback": 12}),
    Entry("lstm_classifier", "classification", DIRECTION, {**NETWORK, "lstm_units": 16}),
    Entry("gru_classifier", "classification", DIRECTION, {**NETWORK, "gru_units": 16}),
    Entry("transformer_classifier", "classification", DIRECTION, {**NETWORK, **ATTENTION}),
    Entry("q_learning", "reinforcement_learning", None, {**POLICY, "epochs": 3}, ["return_1", "rsi_14"]),
    Entry("dqn", "reinforcement_learning", None, {**POLICY, "epochs": 2, "dqn_units": 32}),
    Entry("ppo", "reinforcement_learning", None, {**POLICY, "epochs": 2, "ppo_units": 32}),
    Entry("linear_policy", "reinforcement_learning", None, POLICY),
)
OTHERS = (
    Entry("linear", "time_series", VOLATILITY, {"lookback": 12}),
    Entry("gru", "time_series", VOLATILITY, {**NETWORK, "gru_units": 16}),
    Entry("autoencoder", "anomaly_detection", None, {"lookback": 12, "autoencoder_units": 16, "epochs": 5}),
    Entry("isolation_forest", "anomaly_detection", None, {"lookback": 12}),
    Entry("feature_search", "feature_engineering", PRICE, {"max_candidates": 60}, []),
)


def request_of(entry: Entry) -> dict[str, Any]:
    """The training request of a row."""
    return training_request(
        f"Real {entry.family} {entry.target or entry.model_type}", entry.features, model_type=entry.model_type,
        family=entry.family, target=entry.target, symbols=SYMBOLS, start_date="1999-01-04T00:00:00Z",
        end_date="2026-01-01T00:00:00Z", validation_split=0.6, hyperparameters=entry.hyperparameters, timeframe="1d",
    )  # fmt: skip


def train_all(entries: tuple[Entry, ...]) -> list[ModelCard]:
    """Cards of these rows, trained one after the other by one service on the embedded sample."""
    with bench_on(None) as workbench:
        return [train_once(workbench, request_of(entry)) for entry in entries]


def tables(run: Run) -> list[Table]:
    """The table; bets on the price share one service, everything else another."""
    groups = [BETS, OTHERS] if not run.is_quick else [BETS[:1], OTHERS[3:4]]
    cards = in_workers(train_all, groups, progress=run.progress("real data"), num_workers=run.num_workers)
    rows = [
        row(entry, card)
        for group, trained in zip(groups, cards, strict=True)
        for entry, card in zip(group, trained, strict=True)
    ]
    caption = (
        f"Daily ECB fixings of {', '.join(SYMBOLS)}, 1999 to 2025, one model for all three, the last 30 % untouched "
        "until it is judged. *Skill* is 1 - loss ÷ baseline's loss (for policies the gain in net return a bar); "
        "*p* is that against the hardest baseline, adjusted for the test-set evaluations. One service trained all "
        "rows, from above to below."
    )
    columns = [
        "family",
        "target",
        "skill: naive",
        "skill: `linear`",
        "hardest",
        "p",
        "evaluations",
        "verdict",
        "net",
        "economic",
    ]
    return [Table("real_data", "Real data", caption, columns, rows)]


def row(entry: Entry, card: ModelCard) -> list[str]:
    """One row of the table."""
    evaluation = card.evaluation
    tested, traded = evaluation.significance, evaluation.backtest
    return [
        f"`{entry.family}`",
        "-" if entry.target is None else f"`{entry.target}`",
        _skill(_against(evaluation, NAIVE)),
        _skill(_against(evaluation, ("linear",))),
        "-" if tested is None else tested.baseline.replace("_", " "),
        "-" if tested is None or tested.adjusted_p_value is None else f"{tested.adjusted_p_value:.3f}",
        "-" if tested is None else str(tested.looks),
        f"`{evaluation.verdict}`",
        "-" if traded is None else f"{100 * traded.net_log_return:+.1f} %",
        f"`{evaluation.economic or 'none'}`",
    ]


def _against(evaluation: Evaluation, names: tuple[str, ...]) -> Comparison | None:
    found = {each.baseline: each for each in evaluation.comparisons}
    return next((found[name] for name in names if name in found), None)


def _skill(comparison: Comparison | None) -> str:
    if comparison is None or comparison.skill is None:
        return "-"
    against = "" if comparison.baseline == "linear" else f" ({comparison.baseline.replace('_', ' ')})"
    if comparison.loss == "net_return":
        return f"{1e4 * comparison.skill:+.2f} bp{against}"
    return f"{100 * comparison.skill:+.2f} %{against}"
