"""The row stage: z-scores, level features as centred logarithms, and what it refuses."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.data.scaling import RowScaler, fit_symbol, to_logs
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, cut, symbol_rows

pytestmark = pytest.mark.processor

LOOKBACK = 8


def test_stationary_features_become_z_scores_of_the_training_rows() -> None:
    table = symbol_rows(num=1500)
    windows = cut(table, lookback=LOOKBACK)
    ends = windows.parts["train"]
    used = slice(ends[0] + 1 - LOOKBACK, ends[-1] + 1)  # no gap in this table
    for column in (0, 1):
        values = table.x_NF[:, column]
        wanted = (values - values[used].mean()) / values[used].std()
        np.testing.assert_allclose(windows.rows_RF[:, column], wanted, rtol=1e-5, atol=1e-6)


def test_a_level_feature_is_a_log_ratio_in_units_of_its_typical_distance_from_the_windows_mean() -> None:
    table = symbol_rows(num=1500)
    windows = cut(table, lookback=LOOKBACK)
    ends = windows.parts["train"]
    logs = np.log(table.x_NF[:, 2])
    ratios = np.array([logs[end] - logs[end + 1 - LOOKBACK : end + 1].mean() for end in ends])
    scale = np.sqrt(np.mean(ratios**2))
    assert windows.scaler.symbols["EUR/USD"].scale_F[2] == pytest.approx(scale, rel=1e-9)
    gathered = windows.gather(ends)[:, :, 2]
    np.testing.assert_allclose(gathered[:, -1] - gathered.mean(axis=1), ratios / scale, atol=1e-4)


def test_the_label_unit_is_the_training_labels_root_mean_square() -> None:
    table = symbol_rows(num=1500)
    windows = cut(table, lookback=LOOKBACK)
    ends = windows.parts["train"]
    scale = windows.scaler.symbols["EUR/USD"].label_scale_K[0]
    assert scale == pytest.approx(np.sqrt(np.mean(table.labels_NK[ends] ** 2)))
    np.testing.assert_allclose(windows.labels_RK[ends] * scale, table.labels_NK[ends], rtol=1e-5)


def test_a_very_long_training_part_is_scaled_by_its_last_rows_alone() -> None:
    """Rows of windows overlap almost wholly; over four million of them only the ends are read."""
    table = symbol_rows(num=5200)
    logs = to_logs(table.x_NF, FEATURES, IS_LEVEL)
    ends = np.arange(1023, 5199)
    scale = fit_symbol(logs, table.labels_NK, ends, is_level_F=IS_LEVEL, lookback=1024, scales_K=[True])
    np.testing.assert_allclose(scale.center_F[:2], logs[ends, :2].mean(axis=0))


def test_a_row_does_not_depend_on_the_rows_around_it() -> None:
    table = symbol_rows(num=1500)
    scaler = cut(table).scaler
    whole = scaler.rows("EUR/USD", table.x_NF)
    for row in (0, 7, 1499):
        assert scaler.rows("EUR/USD", table.x_NF[row : row + 1]).tobytes() == whole[row].tobytes()
    assert whole.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, -1.1])
def test_a_level_that_is_not_positive_is_refused_by_name(value: float) -> None:
    table = symbol_rows(num=1500)
    scaler = cut(table).scaler
    x_NF = table.x_NF[:5].copy()
    x_NF[3, 2] = value
    with pytest.raises(DataValidationError, match="close is a price level and must be above zero") as caught:
        scaler.rows("EUR/USD", x_NF)
    assert caught.value.details["errors"][0]["path"] == "features.close"


def test_a_missing_value_stays_missing_and_the_callers_array_untouched() -> None:
    x_NF = np.array([[1.0, np.nan, 2.0], [3.0, 4.0, np.nan]])
    before = x_NF.copy()
    logs = to_logs(x_NF, FEATURES, IS_LEVEL)
    np.testing.assert_allclose(logs, [[1.0, np.nan, np.log(2.0)], [3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(x_NF, before)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1, 1e-9])
def test_a_constant_feature_becomes_zero_whatever_its_size(constant: float) -> None:
    table = symbol_rows(num=1500)
    table.x_NF[:, 1] = constant
    windows = cut(table)
    np.testing.assert_allclose(windows.rows_RF[:, 1], 0.0, atol=1e-6)


def test_a_constant_level_becomes_zero() -> None:
    table = symbol_rows(num=1500)
    table.x_NF[:, 2] = 1.95583
    gathered = cut(table).gather(np.array([100, 900]))[:, :, 2]
    np.testing.assert_allclose(gathered, 0.0, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-15, 1e-9, 1e9])
def test_the_unit_of_a_feature_does_not_matter(unit: float) -> None:
    table, other = symbol_rows(num=1500), symbol_rows(num=1500)
    other.x_NF[:, 1] *= unit
    np.testing.assert_allclose(cut(other).rows_RF, cut(table).rows_RF, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("absurd", [1e300, -1e300, 1e40])
def test_an_absurd_value_stays_a_finite_number(absurd: float) -> None:
    table = symbol_rows(num=1500)
    scaler = cut(table).scaler
    x_NF = table.x_NF[:1].copy()
    x_NF[0, 0] = absurd
    row = scaler.rows("EUR/USD", x_NF)
    assert np.isfinite(row).all()
    assert abs(row[0, 0]) > 1e6
    assert np.sign(row[0, 0]) == np.sign(absurd)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 2**31))
def test_json_gives_back_every_bit(seed: int) -> None:
    chance = np.random.default_rng(seed)
    table = symbol_rows(num=600, seed=seed, deviation=float(chance.uniform(1e-6, 1e-2)))
    scaler = cut(table).scaler
    again = RowScaler.from_json(json.loads(json.dumps(scaler.to_json())))
    x_NF: Floats = table.x_NF[:50]
    assert again.rows("EUR/USD", x_NF).tobytes() == scaler.rows("EUR/USD", x_NF).tobytes()
    assert again.to_json() == scaler.to_json()
    assert again.features == scaler.features
    assert again.is_level_F == scaler.is_level_F
