"""Bars on which a primary's side pays in one regime alone, requests for it and its follower, and both trained.

    return(t + 1) = deviation x (edge(t) · signal(t) + noise(t + 1))     edge: `PAYS` where regime(t) > 0, else `COSTS`

`signal` is ± 1. The primary reads the signal, the follower the regime.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.resources import Workbench
from tests.trained_models import DEVIATION, injected_bars, open_bench, train_model

PAYS, COSTS, EVERYWHERE = 0.9, -0.4, 0.3
NUM_BARS = 9_000
PRIMARY: dict[str, Any] = {
    "name": "Primary", "model_id": "primary", "model_type": "time_series", "family": "linear",
    "features": ["signal"], "target": "price_change_1h", "symbols": ["EUR/USD"],
    "start_date": "2020-01-01T00:00:00Z", "end_date": "2020-09-01T00:00:00Z",
    "hyperparameters": {"lookback": 3, "epochs": 20}, "validation_split": 0.4,
}  # fmt: skip
FOLLOW: dict[str, Any] = {
    "name": "Follower", "model_id": "follower", "model_type": "classification", "family": "lightgbm_classifier",
    "features": ["regime"], "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z",
    "end_date": "2021-09-01T00:00:00Z", "hyperparameters": {"lookback": 3}, "meta": {"primary": "primary@1.0.0"},
    "validation_split": 0.4,
}  # fmt: skip


def write_bars(folder: Path, *, seed: int, is_planted: bool) -> None:
    """Half of the bars reward the signal and half punish it; where nothing is planted all reward it, a little."""
    opened_ms, chance = injected_bars(NUM_BARS, seed=seed).opened_ms, np.random.default_rng(seed)
    signal, regime = np.sign(chance.standard_normal(NUM_BARS)), chance.standard_normal(NUM_BARS)
    edge = np.where(regime > 0, PAYS, COSTS) if is_planted else np.full(NUM_BARS, EVERYWHERE)
    returns = np.zeros(NUM_BARS)
    returns[1:] = DEVIATION * ((edge * signal)[:-1] + chance.standard_normal(NUM_BARS)[1:])
    close = 1.1 * np.exp(np.cumsum(returns))
    opens = np.concatenate([close[:1], close[:-1]])
    columns = {"open": opens, "high": np.maximum(opens, close) * 1.0001, "low": np.minimum(opens, close) / 1.0001}
    stamps = {"timestamp": [iso_of_ms(int(each)) for each in opened_ms]}
    pl.DataFrame({**stamps, **columns, "close": close, "signal": signal, "regime": regime}).write_csv(
        folder / "EURUSD_1h.csv"
    )


def bench_with_primary(folder: Path, *, seed: int, is_planted: bool) -> Workbench:
    """Bars, and a linear forecast of the next bar by the signal, fitted on the first months."""
    bench = open_bench(folder)
    write_bars(folder / "bars", seed=seed, is_planted=is_planted)
    train_model(bench, "primary", checkpoint=folder / "primary", **unnamed(PRIMARY))
    return bench


def unnamed(body: dict[str, Any]) -> dict[str, Any]:
    """What `train_model` takes of a request."""
    return {name: value for name, value in body.items() if name not in ("name", "model_id")}


def train_follower(bench: Workbench, folder: Path, model_id: str = "follower", **changes: Any) -> ModelCard:
    """As `FOLLOW`, with changes."""
    return train_model(bench, model_id, checkpoint=folder / model_id, target=None, **unnamed({**FOLLOW, **changes}))
