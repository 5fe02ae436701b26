"""TreeSHAP of boosted trees: what is added up is what the graph's trees say; each column belongs to its feature."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.families.lightgbm import LightGbm
from ml_workbench_service.families.lightgbm_classifier import LightGbmClassifier
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.manifest import NETWORK_FILE, RECIPE_FILE, write_manifest
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.ensemble import train_seeds
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.networks.boosted_trees.explanations import TreeExplainer
from ml_workbench_service.learning.networks.boosted_trees.training import _Boosters
from ml_workbench_service.testing.probes import probe_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder, cut, problem, symbol_rows
from tests.learning.networks.test_boosted_trees import (
    LOOKBACK,
    QUICK,
    boosters,
    grown,
    matrix_of,
    random_windows,
)

TOLERANCE = 1e-6
CLOSE_QUANTILES = (0.45, 0.5, 0.55)
"""Near enough for trees to cross."""


@pytest.fixture(scope="module")
def windows() -> Windows:
    return cut(symbol_rows(num=2000))


def published(model: Trained, windows: Windows, folder: Path) -> TreeExplainer:
    """The explainer of a bundle that holds what one needs of it."""
    folder.mkdir(exist_ok=True)
    export(model, folder, num_features=len(windows.features), lengths=(3, LOOKBACK), seed=0)
    (folder / RECIPE_FILE).write_text(json.dumps({"scaler": windows.scaler.to_json()}))
    (folder / NETWORK_FILE).write_text(json.dumps(dict(model.network)))
    return TreeExplainer(folder, write_manifest(folder))


def sums_of(model: Trained, windows: Windows, rows_NTF: Floats32) -> Floats:
    """(N, K) LightGBM's own sums, before they are sorted or shifted."""
    return np.asarray(_Boosters([each.model_to_string() for each in boosters(model)])(matrix_of(rows_NTF, windows)))


def assert_adds_up(told_NKF: Floats, wanted_NK: Floats) -> None:
    found_NK = told_NKF.sum(axis=2)
    assert float(np.abs(found_NK - wanted_NK).max()) <= TOLERANCE * max(1.0, float(np.abs(wanted_NK).max()))


@pytest.mark.parametrize("length", [LOOKBACK, 3])
def test_contributions_and_base_of_a_forecast_add_up_to_its_graphs_answer(
    windows: Windows, tmp_path: Path, length: int
) -> None:
    model = grown(LightGbm(QUICK), windows)
    rows_NTF = random_windows()[:, -length:]
    told_NKF = published(model, windows, tmp_path).contributions(rows_NTF)
    assert told_NKF.shape == (len(rows_NTF), 1, len(windows.features) + 1)
    assert_adds_up(told_NKF, model.predict(rows_NTF).outputs_NK)
    assert np.ptp(told_NKF[:, 0, -1]) == 0, "all windows begin from the same base"


def test_quantiles_are_explained_before_they_are_sorted(windows: Windows, tmp_path: Path) -> None:
    model = grown(LightGbm(QUICK), windows, quantiles=CLOSE_QUANTILES)
    rows_NTF = 3 * random_windows(num=400)
    told_NKF = published(model, windows, tmp_path).contributions(rows_NTF)
    sums_NK = sums_of(model, windows, rows_NTF)
    assert (np.diff(sums_NK, axis=1) < 0).any(), "else nothing would be sorted"
    assert_adds_up(told_NKF, sums_NK)
    np.testing.assert_allclose(
        np.sort(told_NKF.sum(axis=2), axis=1), model.predict(rows_NTF).outputs_NK, atol=TOLERANCE * 10
    )


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_classes_are_explained_in_logits_without_their_weights(tmp_path: Path, weights: str) -> None:
    probe = probe_of(LightGbmClassifier)
    windows = probe.windows()
    model = probe.train(LightGbmClassifier({**QUICK, "class_weights": weights}), windows)
    rows_NTF = random_windows(len(windows.features))
    told_NKF = published(model, windows, tmp_path).contributions(rows_NTF)
    assert_adds_up(told_NKF, model.predict(rows_NTF).outputs_NK)


def test_seeds_are_averaged(windows: Windows, tmp_path: Path) -> None:
    asked = problem(windows)
    model = train_seeds(LightGbm(QUICK), asked, [1, 2, 3], accelerator=OneThread(), report=Recorder())
    rows_NTF = random_windows()
    told_NKF = published(model, windows, tmp_path / "all").contributions(rows_NTF)
    assert_adds_up(told_NKF, model.predict(rows_NTF).outputs_NK)
    alone = [
        published(each, windows, tmp_path / str(place)).contributions(rows_NTF)
        for place, each in enumerate(model.members)
    ]
    np.testing.assert_allclose(told_NKF, np.mean(alone, axis=0), atol=1e-9)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3, "else one seed would do"


def test_a_constant_is_its_base_and_nothing_else(windows: Windows, tmp_path: Path) -> None:
    noise = cut(symbol_rows(num=2000, r2=0.0, seed=5))
    model = grown(LightGbm({**QUICK, "num_iterations": 5, "min_data_in_leaf": 700}), noise)
    assert model.best_epoch == 0
    rows_NTF = random_windows()
    told_NKF = published(model, noise, tmp_path).contributions(rows_NTF)
    assert not told_NKF[:, :, :-1].any()
    assert_adds_up(told_NKF, model.predict(rows_NTF).outputs_NK)


@pytest.mark.parametrize("columns", ["window_and_summary", "window", "summary"])
def test_every_column_counts_for_its_own_feature(windows: Windows, tmp_path: Path, columns: str) -> None:
    model = grown(LightGbm({**QUICK, "columns": columns}), windows)
    rows_NTF = random_windows(num=50)
    told_NKF = published(model, windows, tmp_path).contributions(rows_NTF)
    (booster,) = boosters(model)
    plain_ND = np.asarray(booster.predict(matrix_of(rows_NTF, windows, columns), pred_contrib=True, num_threads=1))
    for place, feature in enumerate(windows.features):
        own = [number for number, name in enumerate(booster.feature_name()) if feature_of(name, windows) == feature]
        assert own
        np.testing.assert_allclose(told_NKF[:, 0, place], plain_ND[:, own].sum(axis=1), atol=1e-5)
    assert np.abs(told_NKF[:, 0, :-1]).sum(axis=0).min() > 0, "else a swap of two features would go unnoticed"


def feature_of(column: str, windows: Windows) -> str:
    """By the column's own name."""
    found = [feature for feature in windows.features if column.startswith(f"{feature}_")]
    return max(found, key=len)


def test_another_bundle_than_was_published_is_refused(windows: Windows, tmp_path: Path) -> None:
    published(grown(LightGbm({**QUICK, "num_iterations": 2}), windows), windows, tmp_path)
    with pytest.raises(BundleDamagedError, match="was changed"):
        TreeExplainer(tmp_path, "sha256:other")


def test_a_bundle_without_trees_is_refused(windows: Windows, tmp_path: Path) -> None:
    network: dict[str, Any] = {"kind": "linear_forecaster"}
    (tmp_path / NETWORK_FILE).write_text(json.dumps(network))
    (tmp_path / RECIPE_FILE).write_text("{}")
    with pytest.raises(BundleDamagedError, match="no boosted trees"):
        TreeExplainer(tmp_path, write_manifest(tmp_path))
