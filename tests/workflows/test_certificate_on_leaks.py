"""Leaks injected at run time into the objects that make the matrix: the certificate finds each, and only those."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ml_workbench_service import families as families
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.evaluation import Certificate
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.evaluation.leakage.certificate import certify
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.training import tasks as tasks
from studies.injected_leaks import FEATURES, INJECTED_LEAKS, InjectedLeak, columns
from tests.trained_models import injected_bars

NUM_BARS = 1400
CLASSES = {"model_type": "classification", "family": "gru_classifier"}
CLEAN: dict[str, dict[str, Any]] = {
    "price change": {},
    "two targets": {"target": ["price_change_3h", "volatility_7h"]},
    "directions": {"target": "direction_4h", **CLASSES},
    "barriers": {"target": "triple_barrier_5h", "label": {"k": 2.0}, **CLASSES},
    "regimes": {"target": "market_regime_3h", **CLASSES},
    "policy": {"target": None, "model_type": "reinforcement_learning"},
    "anomalies": {"target": None, "model_type": "anomaly_detection"},
}
WHERE = {
    "backward fill of missing values": "features_future_replaced",
    "bars left in the file": "features_future_cut",
    "global scaler": "scaling",
    "rows smoothed on both sides": "scaling",
    "label of the bar before": "labels_own_bars",
    "class label shifted by one bar": "labels_own_bars",
    "label of the bar after": "labels_known",
    "contiguous split with a long horizon": "purged_borders",
    "search on all parts": "selection",
    "bars known at their opening": "bar_times",
}
"""The check that has to find a leak, where just one kind can."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hourly bars."""
    made = tmp_path_factory.mktemp("bars")
    injected_bars(NUM_BARS, seed=1).write(made, "EUR/USD")
    return made


def certificate(folder: Path, request: Mapping[str, Any]) -> Certificate:
    """Of a training on these bars, as a job would make it."""
    body = {
        "name": "injected", "model_type": "time_series", "target": "price_change_1h", "features": list(FEATURES),
        "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z",
        "validation_split": 0.4, **request,
    }  # fmt: skip
    if body["model_type"] == "feature_engineering":
        body |= {"features": [], "hyperparameters": {"num_shuffles": 40, "num_samples": 10, "max_candidates": 20}}
    store = LocalFeatureStore(FolderBars(folder, fixings=no_fixings))
    asked = TrainRequest.model_validate({name: value for name, value in body.items() if value is not None})
    plan = {"model_id": "injected", "version": "1.0.0"}
    order = training_data.TrainingOrder.of(asked, plan, job_id="job", store=store)
    return certify(
        order,
        training_data.assemble(order, training_data.fetch(order, store), kind_of=store.kind_of),
        store,
        report=Recorder(),
    )


def failed(found: Certificate) -> dict[str, str]:
    """The failed checks and their sentences."""
    return {each.name: each.detail for each in found.checks if each.status == "failed"}


@pytest.mark.parametrize("injected", INJECTED_LEAKS, ids=lambda injected: injected.name)
def test_an_injected_leak_is_found(injected: InjectedLeak, folder: Path) -> None:
    with injected.inject():
        found = certificate(folder, injected.request)
    assert found.status == "failed"
    assert WHERE.get(injected.name, next(iter(failed(found)))) in failed(found)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_pipeline_passes(name: str, folder: Path) -> None:
    found = certificate(folder, CLEAN[name])
    assert failed(found) == {}
    assert found.status == "passed"
    has_labels = name not in ("policy", "anomalies")
    assert ("labels_own_bars" in {each.name for each in found.checks}) == has_labels


def test_the_injected_leaks_are_gone_afterwards(folder: Path) -> None:
    for injected in INJECTED_LEAKS:
        with injected.inject():
            pass
    assert certificate(folder, {}).status == "passed"


def test_an_honest_signal_of_the_users_is_unprovable_and_nothing_worse(folder: Path) -> None:
    found = certificate(folder, {"features": ["signal", "rsi_14"]})
    assert found.status == "unprovable"
    assert [each.name for each in found.checks if each.status == "unprovable"] == ["ready_made_columns"]


def with_column(folder: Path, column: np.ndarray) -> Path:
    """The bars again with a column of the user's called `own`."""
    bars = injected_bars(NUM_BARS, seed=1)
    opened = np.append(bars.close[:1], bars.close[:-1])
    table = {"timestamp": [iso_of_ms(int(each)) for each in bars.opened_ms], "open": opened, "close": bars.close}
    table |= {"high": np.maximum(opened, bars.close), "low": np.minimum(opened, bars.close), "own": column}
    pl.DataFrame(table).write_csv(folder / "EURUSD_1h.csv")
    return folder


@pytest.mark.parametrize("name", ["noisy", "monotone", "centred_price", "close_of_the_day"])
def test_a_near_copy_of_the_target_among_the_users_columns_is_found(name: str, tmp_path: Path) -> None:
    bars = injected_bars(NUM_BARS, seed=1)
    own = columns(bars.close, bars.opened_ms, seed=2)[name]
    sentences = failed(certificate(with_column(tmp_path, own), {"features": ["own", "rsi_14"]}))
    assert sentences.keys() <= {"near_copies", "look_ahead_joins"}
    assert all("own of EUR/USD tells" in each for each in sentences.values())
    assert sentences


def test_holes_in_a_users_column_that_something_fills_from_behind_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ml_workbench_service.market.features.derivation import Derivation

    own = np.random.default_rng(4).standard_normal(NUM_BARS)
    own[700:708] = np.nan
    read = Derivation.read_table

    def filled(self: Derivation, table: Any) -> dict[str, np.ndarray]:
        found = read(self, table)
        found["own"] = pl.Series(found["own"]).fill_nan(None).fill_null(strategy="backward").to_numpy()
        return found

    monkeypatch.setattr(Derivation, "read_table", filled)
    found = certificate(with_column(tmp_path, own), {"features": ["own", "rsi_14"]})
    assert "own of EUR/USD moved" in failed(found)["features_future_replaced"]
