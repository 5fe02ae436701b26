"""Clean pipelines, twenty in which nothing is wrong: all families, targets of every measure, three kinds of bars.

Whatever the certificate finds here is a false alarm. Settings are small: nobody asks what these models know.
"""

from dataclasses import dataclass, field
from typing import Any

from ml_workbench_service.contracts.models import ModelCard
from studies.fits import bench_on, train_once, training_request
from studies.series import injected_series, null_series

NUM_BARS = 3_000
SHORT = {"lookback": 6, "epochs": 2, "batch_size": 256}
INDICATORS = ["return_1", "volatility_24", "rsi_14"]
LEVELS = ["close", "sma_20", "bb_upper", "hour_sin"]
FIXINGS = ["EUR/USD", "GBP/USD", "USD/JPY"]


@dataclass(frozen=True)
class Pipeline:
    """A training on bars of some kind.

    Attributes:
        bars: `null`, `injected` (with a ready-made column) or `embedded` (the sample: real by day, else simulated).
        more: further keys of the request.
    """

    family: str
    model_type: str
    target: str | list[str] | None
    features: list[str]
    hyperparameters: dict[str, Any]
    bars: str = "null"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Family, targets and kind of bars, as the table names it."""
        targets = [self.target] if isinstance(self.target, str) else self.target or [self.model_type]
        return f"{self.family}, {' and '.join(targets)}, {self.bars} bars"


DAILY = {"symbols": FIXINGS, "start_date": "2008-01-01T00:00:00Z", "end_date": "2024-01-01T00:00:00Z"}
HOURLY = {"symbols": FIXINGS[:2], "start_date": "2023-01-01T00:00:00Z", "end_date": "2023-07-01T00:00:00Z"}
POLICY = {"lookback": 6, "epochs": 1}
PIPELINES = (
    Pipeline("linear", "time_series", "price_change_1h", INDICATORS, SHORT),
    Pipeline("linear", "time_series", "price_change_24h", LEVELS, SHORT),
    Pipeline("linear", "time_series", "volatility_4h", INDICATORS, SHORT),
    Pipeline("linear", "time_series", "log_return_3", ["signal", *INDICATORS], SHORT, "injected", {"timeframe": "1h"}),
    Pipeline("linear", "time_series", "price_change_1d", INDICATORS, SHORT, "embedded", DAILY),
    Pipeline("linear", "time_series", "volatility_5d", INDICATORS, SHORT, "embedded", DAILY),
    Pipeline("linear", "time_series", "price_change_1h", LEVELS, SHORT, "embedded", HOURLY),
    Pipeline(
        "lstm", "time_series", "price_change_1h", INDICATORS, {**SHORT, "lstm_units": 4}, "null",
        {"quantiles": [0.05, 0.5, 0.95]},
    ),
    Pipeline("gru", "time_series", ["price_change_1h", "price_change_4h"], LEVELS, {**SHORT, "gru_units": 4}),
    Pipeline(
        "transformer", "time_series", "price_change_1h", INDICATORS, {**SHORT, "transformer_units": 8, "heads": 2}
    ),
    Pipeline("lstm_classifier", "classification", "direction_1h", INDICATORS, {**SHORT, "lstm_units": 4}),
    Pipeline("gru_classifier", "classification", "triple_barrier_12h", LEVELS, {**SHORT, "gru_units": 4}),
    Pipeline(
        "gru_classifier", "classification", "direction_1d", INDICATORS, {**SHORT, "gru_units": 4}, "embedded", DAILY
    ),
    Pipeline(
        "transformer_classifier", "classification", "market_regime", INDICATORS,
        {**SHORT, "transformer_units": 8, "heads": 2}, "null", {"timeframe": "1h"},
    ),
    Pipeline("q_learning", "reinforcement_learning", None, ["return_1", "rsi_14"], POLICY),
    Pipeline("linear_policy", "reinforcement_learning", None, INDICATORS, POLICY),
    Pipeline("dqn", "reinforcement_learning", None, INDICATORS, {**POLICY, "dqn_units": 8}),
    Pipeline("ppo", "reinforcement_learning", None, INDICATORS, {**POLICY, "ppo_units": 8}),
    Pipeline("autoencoder", "anomaly_detection", None, INDICATORS, {**SHORT, "autoencoder_units": 8}),
    Pipeline("isolation_forest", "anomaly_detection", None, LEVELS, {"lookback": 6}),
    Pipeline("feature_search", "feature_engineering", "price_change_1h", [], {"max_candidates": 40}),
)  # fmt: skip


def request_of(pipeline: Pipeline) -> dict[str, Any]:
    """The training request."""
    return training_request(
        "Clean", pipeline.features, model_type=pipeline.model_type, family=pipeline.family, target=pipeline.target,
        hyperparameters=pipeline.hyperparameters, **pipeline.more,
    )  # fmt: skip


def train(number: int, seed: int) -> ModelCard:
    """Trains pipeline `number`; its card."""
    pipeline = PIPELINES[number]
    write = None
    if pipeline.bars == "null":
        write = null_series(NUM_BARS, seed=seed, number=1000 + number).write
    elif pipeline.bars == "injected":
        write = injected_series(NUM_BARS, seed=seed, number=1000 + number, r2=0.05).write
    with bench_on(write) as workbench:
        return train_once(workbench, request_of(pipeline))
