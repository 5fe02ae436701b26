"""What figures are made of, by real trainings on injected bars: a forecast, classes, a policy, a feature set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ml_workbench_figures import FigureInputs
from ml_workbench_figures.inputs import Columns
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.testing.synthetic import Recorder
from tests.trained_models import injected_bars, open_bench, train_model

NUM_BARS = 3000
REQUESTS: dict[str, dict[str, Any]] = {
    "forecast": {"family": "linear", "hyperparameters": {"lookback": 3, "epochs": 12}},
    "classes": {
        "model_type": "classification", "target": "direction_1h", "family": "gru_classifier",
        "hyperparameters": {"lookback": 4, "gru_units": 4, "epochs": 5, "batch_size": 128},
    },
    "policy": {
        "model_type": "reinforcement_learning", "target": None, "family": "q_learning",
        "hyperparameters": {"lookback": 3, "epochs": 6, "bins": 5},
    },
    "columns": {
        "model_type": "feature_engineering", "features": [], "family": "feature_search",
        "hyperparameters": {"max_candidates": 40},
    },
}  # fmt: skip


@dataclass(frozen=True)
class TrainedVersions:
    """A workbench with a version of each kind, and what figures of it are made of."""

    bench: Workbench
    inputs: dict[str, FigureInputs]


def train_all(folder: Path) -> TrainedVersions:
    """Trains every kind."""
    bench = open_bench(folder)
    injected_bars(NUM_BARS, seed=5).write(folder / "bars", "EUR/USD")
    return TrainedVersions(bench, {name: _trained(bench, name, folder / name) for name in REQUESTS})


def trained_forecast(folder: Path) -> FigureInputs:
    """The forecast alone, in a few seconds."""
    bench = open_bench(folder)
    injected_bars(NUM_BARS, seed=5).write(folder / "bars", "EUR/USD")
    return _trained(bench, "forecast", folder / "forecast")


def _trained(bench: Workbench, name: str, checkpoint: Path) -> FigureInputs:
    report = Recorder()
    request = {"features": ["signal"], "symbols": ["EUR/USD"], "validation_split": 0.4, **REQUESTS[name]}
    card = train_model(bench, name, checkpoint=checkpoint, report=report, **request)
    return FigureInputs(card=card, rows=rows_of(bench, card), curves=curves_of(report))


def rows_of(bench: Workbench, card: ModelCard) -> Columns:
    """`evaluation.parquet`, times in milliseconds; nothing of a version without."""
    path = bench.registry.folder(card.id, card.version) / EVALUATION_FILE
    if not path.exists():
        return {}
    return pl.read_parquet(path).with_columns(pl.col("as_of").cast(pl.Int64)).to_dict(as_series=False)


def curves_of(report: Recorder) -> Columns:
    """The steps with figures, by column."""
    steps = [(step, figures) for step, _, figures in report.steps if figures]
    names = dict.fromkeys(name for _, figures in steps for name in figures)
    return {"epoch": [step for step, _ in steps], **{name: [each.get(name) for _, each in steps] for name in names}}
