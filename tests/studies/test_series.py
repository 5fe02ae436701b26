"""The simulated markets are what they say: nobody can forecast the one, the other's signal has the R² it is given."""

from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.learning.calibration.conformal import ResidualDistribution
from studies import intervals
from studies.series import DEVIATION, KINDS, SYMBOL, injected_series, null_series

pytestmark = pytest.mark.more

NUM_BARS = 6_000


def returns_of(close: np.ndarray) -> np.ndarray:
    return np.asarray(close[1:] / close[:-1] - 1)


def test_the_null_markets_have_no_drift_and_no_memory_of_direction() -> None:
    """Over 40 series, standardised by the deviation that was known before: means and autocorrelations of noise."""
    means, memories = [], []
    for number in range(40):
        series = null_series(NUM_BARS, seed=3, number=number)
        moves = np.clip(returns_of(series.close) / series.deviation[1:], -8, 8)
        means.append(moves.mean() / moves.std() * np.sqrt(len(moves)))
        memories.append(np.corrcoef(moves[1:], moves[:-1])[0, 1] * np.sqrt(len(moves)))
    for figures in (means, memories):
        assert abs(np.mean(figures)) < 4 / np.sqrt(len(figures))
        assert 0.7 < np.std(figures) < 1.35


def test_the_null_markets_have_heavy_tails_and_clustered_volatility() -> None:
    for number, kind in enumerate(KINDS):
        series = null_series(20_000, seed=5, number=number)
        moves = returns_of(series.close)
        assert series.kind == kind
        assert np.mean(moves**4) / np.mean(moves**2) ** 2 > 4
        assert np.corrcoef(np.abs(moves[1:]), np.abs(moves[:-1]))[0, 1] > 0.05
        assert series.close.min() > 0


def test_a_series_follows_from_its_seed_and_number_alone() -> None:
    one, again = (null_series(500, seed=1, number=2).close for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, null_series(500, seed=2, number=2).close)
    assert null_series(500, seed=1, number=6).kind == null_series(500, seed=1, number=2).kind
    assert not np.array_equal(one, null_series(500, seed=1, number=6).close)


def test_the_injected_mean_explains_what_it_is_said_to_and_is_known_a_bar_before() -> None:
    shares = []
    for number in range(12):
        series = injected_series(NUM_BARS, seed=0, number=number, r2=0.05)
        moves = returns_of(series.close)
        shares.append(np.corrcoef(moves, series.mean[:-1])[0, 1] ** 2)
        assert abs(np.corrcoef(moves, series.mean[1:])[0, 1]) < 4 / np.sqrt(NUM_BARS)
        assert series.mean.std() == pytest.approx(np.sqrt(0.05) * DEVIATION, rel=0.05)
    assert np.mean(shares) == pytest.approx(0.05, abs=0.006)


def test_the_service_reads_the_bars_as_they_were_made(tmp_path: Path) -> None:
    series = injected_series(800, seed=0, number=0, r2=0.01)
    series.write(tmp_path)
    bars = FolderBars(tmp_path, fixings=no_fixings).bars(SYMBOL, "1h")
    assert np.array_equal(bars.opened_ms, series.opened_ms)
    assert np.array_equal(bars.close, series.close)
    assert series.signal is not None
    assert np.array_equal(bars.extra["signal"], series.signal)
    assert bars.data_source == "file"


def test_live_intervals_cover_what_they_promise_where_published_ones_do() -> None:
    series = null_series(6_000, seed=2, number=0)
    block = next(intervals.blocks_of("garch", series.close, horizon=4, sizes=(1200, 2400)))
    fitted = ResidualDistribution.fit(block.calibration, block.calibration_scale)
    assert fitted is not None
    for covered in (intervals.published(block, fitted.radius), intervals.live(block, fitted.radius)):
        assert covered.inside.mean() == pytest.approx(0.9, abs=0.03)
