"""Other bars after a border change nothing that was learnt before it: from the delivered files to the published bundle.

Prices, spreads and features of every bar that is known after a border are replaced; the same request is trained again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from ml_workbench_service.learning.bundle import quantization
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.training.tasks.reinforcement_learning import Control
from tests.trained_models import injected_bars, open_bench, train_model

NUM_BARS = 1400
QUICK = {"lookback": 6, "epochs": 2}
REQUESTS: dict[str, dict[str, Any]] = {
    "quantiles": {"family": "linear", "target": ["price_change_3h", "volatility_7h"], "quantiles": [0.05, 0.5, 0.95]},
    "ensemble": {"family": "linear", "target": "price_change_5h", "seeds": [0, 1], "cv": {"folds": 2, "embargo": 3}},
    "regimes": {"model_type": "classification", "family": "gru_classifier", "target": "market_regime_3h"},
    "barriers": {
        "model_type": "classification",
        "family": "gru_classifier",
        "target": "triple_barrier_5h",
        "sample_weights": "uniqueness",
    },
    "policy": {"model_type": "reinforcement_learning", "family": "q_learning", "target": None, "features": ["signal"]},
    "trees": {
        "family": "lightgbm",
        "target": "price_change_3h",
        "sample_weights": "uniqueness",
        "cv": {"scheme": "combinatorial_purged", "groups": 4, "embargo": 3},
    },
    "forest": {"model_type": "anomaly_detection", "family": "isolation_forest", "target": None},
    "search": {"model_type": "feature_engineering", "target": "volatility_4h"},
}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "trees": {"lookback": 6, "num_iterations": 20},
    "forest": {"lookback": 6, "trees": 10},
    "search": {"max_candidates": 40, "num_shuffles": 40, "num_samples": 10},
}
FITTED_ON_TRAIN = ("scaler", "regimes", "novelty", "feature_set")
FITTED_BEFORE_CALIBRATION = (*FITTED_ON_TRAIN, "weights", "epochs")
FITTED_BEFORE_TEST = (*FITTED_BEFORE_CALIBRATION, "decoder", "precision", "folds", "validation")


def written(folder: Path, *, wild_after_ms: int | None) -> None:
    """The same bars, and after the moment wild ones."""
    bars = injected_bars(NUM_BARS, seed=21, r2=0.1)
    chance = np.random.default_rng(7)
    late = bars.opened_ms + HOUR_MS > (np.inf if wild_after_ms is None else wild_after_ms)
    moves = np.where(late, 0.004 * chance.standard_normal(NUM_BARS), 0.0)
    factor = np.exp(np.cumsum(moves))
    table = {
        "timestamp": bars.opened_ms,
        "open": np.append(bars.close[:1], (bars.close * factor)[:-1]),
        "close": bars.close * factor,
        "spread": np.where(late, 5.0, 1.0) * chance.uniform(1e-5, 3e-5, NUM_BARS),
        "signal": np.where(late, 3 * chance.standard_normal(NUM_BARS) + 1, bars.signal),
    }
    table["high"] = np.maximum(table["open"], table["close"]) * np.where(late, 1.002, 1.0001)
    table["low"] = np.minimum(table["open"], table["close"]) / np.where(late, 1.002, 1.0001)
    frame = pl.DataFrame(table).with_columns(pl.from_epoch("timestamp", time_unit="ms").dt.strftime("%FT%TZ"))
    frame.write_csv(folder / "bars" / "EURUSD_1h.csv")


def product_of(name: str, folder: Path, *, wild_after_ms: int | None = None) -> dict[str, Any]:
    """What a training on these bars publishes, by what it was learnt from."""
    folder.mkdir()
    bench = open_bench(folder)
    written(folder, wild_after_ms=wild_after_ms)
    body = {
        "features": ["signal", "rsi_14", "close"], "symbols": ["EUR/USD"], "validation_split": 0.4,
        "hyperparameters": HYPERPARAMETERS.get(name, QUICK), **REQUESTS[name],
    }  # fmt: skip
    card = train_model(bench, "model", checkpoint=folder / "checkpoint", **body)
    published = bench.registry.folder(card.id, card.version)
    recipe: Mapping[str, Any] = json.loads((published / "recipe.json").read_text(encoding="utf-8"))
    weights, chosen = published / "weights.safetensors", published / "feature_set.json"
    uncertainty = dict(recipe["uncertainty"])
    return {
        "borders": recipe["borders_ms"],
        "scaler": recipe["scaler"],
        "regimes": recipe["regimes"],
        "novelty": uncertainty.pop("novelty", None),
        "feature_set": chosen.read_text(encoding="utf-8") if chosen.exists() else None,
        "weights": {key: value.tobytes() for key, value in load_file(weights).items()} if weights.exists() else None,
        "epochs": card.epochs_run,
        "decoder": uncertainty,
        "precision": card.precision,
        "folds": (card.evaluation.walk_forward, card.evaluation.combinatorial),
        "validation": card.evaluation.validation,
        "test": card.evaluation.test,
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_other_bars_after_a_border_move_nothing_that_was_learnt_before_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Control, "sanity_seeds", 1)
    monkeypatch.setattr(quantization, "_speedup", lambda *_: 2 * quantization.LEAST_SPEEDUP)  # no matter of the bars
    before = product_of(name, tmp_path / "true")
    kept = {"stop": FITTED_ON_TRAIN, "calibrate": FITTED_BEFORE_CALIBRATION, "test": FITTED_BEFORE_TEST}
    for border, fitted in kept.items():
        after = product_of(name, tmp_path / border, wild_after_ms=before["borders"][border])
        assert after["borders"] == before["borders"]
        assert [each for each in fitted if after[each] != before[each]] == []
        assert name == "search" or after["test"] != before["test"], "the bars were not wild enough to tell"
