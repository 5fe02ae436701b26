"""One small model of two symbols, really trained and published, for all tests of serving."""

from dataclasses import replace
from pathlib import Path

import pytest

from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import SymbolHistory, columns_needed, read_history
from ml_workbench_service.serving.model import ServedModel
from tests.trained_models import injected_bars, loaded, open_bench, train_model

SYMBOLS = ("EUR/USD", "GBP/USD")
FEATURES = ("signal", "close", "rsi_14")
LOOKBACK = 10
NUM_BARS = 2400
R2 = 0.3


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Two symbols' bars, and a registry with versions 1.0.0 and 1.1.0 of the model `small`."""
    home: Path = tmp_path_factory.mktemp("serving")
    bench = open_bench(home)
    for number, symbol in enumerate(SYMBOLS):
        injected_bars(NUM_BARS, seed=20 + number, r2=R2, level=1.1 + number / 5).write(home / "bars", symbol)
    for version, units in (("1.0.0", 6), ("1.1.0", 4)):
        train_model(
            bench, "small", checkpoint=home, version=version, family="lstm", features=list(FEATURES),
            symbols=list(SYMBOLS), validation_split=0.4,
            hyperparameters={
                "lstm_units": units, "epochs": 4, "batch_size": 64, "lookback": LOOKBACK, "learning_rate": 0.02,
                "dropout": 0.0,
            },
        )  # fmt: skip
    return bench


@pytest.fixture(scope="session")
def card(bench: Workbench) -> ModelCard:
    """The card of version 1.0.0."""
    return bench.registry.card("small", "1.0.0")


@pytest.fixture(scope="session")
def model(bench: Workbench, card: ModelCard) -> ServedModel:
    """Version 1.0.0 in float32, whichever precision was faster on this machine."""
    served = loaded(bench, card)
    return replace(served, single=served.float32, card=card.model_copy(update={"precision": "fp32"}))


@pytest.fixture(scope="session")
def tables(bench: Workbench, model: ServedModel) -> dict[str, FeatureTable]:
    """All bars of both symbols, as a replay fetches them."""
    fetched = bench.feature_store.fetch(SYMBOLS, "1h", start_ms=None, end_ms=None, features=columns_needed(model))
    return {table.symbol: table for table in fetched}


@pytest.fixture(scope="session")
def history(model: ServedModel, tables: dict[str, FeatureTable]) -> SymbolHistory:
    """The bars of EUR/USD as the model reads them."""
    return read_history(model, tables["EUR/USD"])
