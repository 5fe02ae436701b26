"""Every feature store under the conformance suite, and what ours keep besides."""

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.testing.feature_stores import FeatureStoreConformance, StoredBars


class TestEveryStore(FeatureStoreConformance):
    """The sample, a folder, and a server that is spoken to in three ways (`stored` in conftest.py)."""


def test_hours_make_no_minutes(stored: StoredBars) -> None:
    with pytest.raises(DataValidationError):
        stored.fetch(timeframe="1m")


def test_every_indicator_is_described_and_any_period_has_its_kind(stored: StoredBars) -> None:
    assert len(stored.store.describe()) > 25
    assert stored.store.kind_of("ema_50") == "level"
    assert stored.store.kind_of("rsi_7") == "stationary"
