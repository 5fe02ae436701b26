"""The regression in closed form against scikit-learn's, block by block, narrow and wide."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as ScikitRidge

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation import ridge
from ml_workbench_service.evaluation.ridge import Ridge, WindowColumns, evenly
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.testing.synthetic import IS_LEVEL, cut, symbol_rows

pytestmark = pytest.mark.processor


def design(windows: Windows, ends: Any) -> Floats:
    """Windows flattened, level columns less their mean."""
    values = windows.gather(ends).astype(float)
    level = list(IS_LEVEL).index(True)
    values[:, :, level] -= values[:, :, level].mean(axis=1, keepdims=True)
    return np.asarray(values.reshape(len(ends), -1))


def test_the_regression_is_scikit_learns_at_the_penalty_it_chose() -> None:
    windows = cut(symbol_rows(num=900, r2=0.1), symbol_rows("USD/JPY", num=900, seed=1, r2=0.1))
    labels = windows.labels_RK[:, 0].astype(float)
    train, stop, test = (windows.parts[part] for part in ("train", "validation", "test"))
    found = Ridge.fit(windows, labels)
    x = design(windows, train)
    unit = float(np.sum((x - x.mean(axis=0)) ** 2)) / x.shape[1]
    losses = {}
    for penalty in ridge.PENALTIES:
        peer = ScikitRidge(alpha=penalty * unit).fit(x, labels[train])
        losses[penalty] = np.mean((labels[stop] - peer.predict(design(windows, stop))) ** 2)
        if penalty == found.penalty:
            np.testing.assert_allclose(found.forecasts(test), peer.predict(design(windows, test)), atol=1e-8)
    assert losses[found.penalty] <= min(losses.values()) * (1 + 1e-4)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = cut(symbol_rows(num=600))
    labels, test = windows.labels_RK[:, 0].astype(float), windows.parts["test"]
    whole = Ridge.fit(windows, labels).forecasts(test)
    monkeypatch.setattr(ridge, "BLOCK_VALUES", 7 * 24)
    np.testing.assert_allclose(Ridge.fit(windows, labels).forecasts(test), whole, atol=1e-10)


def test_of_noise_next_to_nothing_is_forecast_and_of_a_signal_nearly_all() -> None:
    noise, signal = (cut(symbol_rows(num=3000, r2=r2)) for r2 in (0.0, 0.5))
    quiet = Ridge.fit(noise, noise.labels_RK[:, 0].astype(float)).forecasts(noise.parts["test"])
    assert quiet.std() < 0.1
    loud = Ridge.fit(signal, signal.labels_RK[:, 0].astype(float))
    labels = signal.labels_RK[signal.parts["test"], 0]
    assert 1 - np.mean((labels - loud.forecasts(signal.parts["test"])) ** 2) / np.mean(labels**2) > 0.45


def test_a_window_of_too_many_values_enters_with_its_newest_rows_and_its_means() -> None:
    windows = cut(symbol_rows(num=600), lookback=8)
    ends = windows.parts["test"][:5]
    whole, short = WindowColumns.of(windows), WindowColumns.of(windows, most=12)
    assert (whole.num, whole.has_means) == (24, False)
    assert (short.num, short.num_rows, short.has_means) == (12, 3, True)
    values, flat = short.values(ends), design(windows, ends)
    np.testing.assert_allclose(values[:, :9], flat[:, -9:])
    np.testing.assert_allclose(values[:, 9:], flat.reshape(5, 8, 3).mean(axis=1) * [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(whole.values(ends), flat)
    assert WindowColumns.of(windows, most=2).num_rows == 1


def test_windows_are_thinned_evenly() -> None:
    assert evenly(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert evenly(np.arange(3), 5).tolist() == [0, 1, 2]
