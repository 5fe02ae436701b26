"""What a trial is handed: nothing that was known only after its validation part, and everything fetched and cut
once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.search.space import choice_label
from ml_workbench_service.search.trial import TrialMaker, TrialReport, without_future
from ml_workbench_service.testing.synthetic import cut, problem, symbol_rows
from tests.trained_models import injected_bars


def table_of(symbol: str, available_at_ms: np.ndarray) -> FeatureTable:
    close = np.arange(len(available_at_ms), dtype=float)
    return FeatureTable(symbol, "1h", available_at_ms - 3_600_000, available_at_ms, {"close": close}, "file")


def test_rows_and_labels_that_come_after_the_validation_part_are_not_there() -> None:
    rows = [symbol_rows("EUR/USD", horizon=5), symbol_rows("GBP/USD", num=1200, seed=1, horizon=5, gaps=[700])]
    windows = cut(*rows)
    tables = tuple(table_of(each.symbol, each.available_at_ms_N) for each in rows)
    whole = problem(windows, "price_change_5h", tables=tables)
    blind = without_future(whole)
    border_ms = windows.borders_ms["calibration"]
    seen = blind.windows
    assert seen.available_at_ms_R.max() <= border_ms < windows.available_at_ms_R.max()
    assert all(table.available_at_ms.max() <= border_ms for table in blind.tables)
    assert sum(map(len, blind.tables)) == len(seen.rows_RF) == len(seen.close_R) == len(seen.symbol_R)
    reaches_over = seen.label_available_at_ms_R > border_ms
    assert 0 < reaches_over.sum() <= 10
    assert np.isnan(seen.own_labels_RK[reaches_over]).all()
    assert (seen.labels_RK[reaches_over] == 0).all()
    assert [len(seen.parts[part]) for part in ("calibration", "test")] == [0, 0]
    for part in ("train", "validation"):
        before, after = windows.parts[part], seen.parts[part]
        assert len(before) == len(after) > 0
        np.testing.assert_array_equal(windows.gather(before), seen.gather(after))
        np.testing.assert_array_equal(windows.own_labels_RK[before], seen.own_labels_RK[after])
        np.testing.assert_array_equal(windows.symbol_R[before], seen.symbol_R[after])
    assert whole.windows is windows
    assert np.isfinite(windows.own_labels_RK[windows.parts["test"]]).all(), "the winner's own data are untouched"


def test_what_rows_count_is_cut_with_them() -> None:
    windows = cut(symbol_rows("EUR/USD", horizon=5))
    weighted = dataclasses.replace(windows, uniqueness_R=np.linspace(0.2, 1.0, len(windows.rows_RF)))
    seen = without_future(problem(weighted, "price_change_5h")).windows
    assert seen.uniqueness_R is not None
    assert weighted.uniqueness_R is not None
    np.testing.assert_array_equal(
        seen.uniqueness_R[seen.parts["train"]], weighted.uniqueness_R[weighted.parts["train"]]
    )
    assert len(seen.uniqueness_R) == len(seen.rows_RF) < len(windows.rows_RF)


class CountingStore(LocalFeatureStore):
    """Counts, and can be away."""

    num_fetches = 0
    is_away = False

    def fetch(self, symbols: Sequence[str], timeframe: str, **options: Any) -> list[FeatureTable]:
        """As ever."""
        if self.is_away:
            raise UnavailableError("the feature store is away")
        self.num_fetches += 1
        return super().fetch(symbols, timeframe, **options)


@pytest.fixture
def store(tmp_path: Any) -> CountingStore:
    (tmp_path / "bars").mkdir()
    injected_bars(1200, seed=1, r2=0.2).write(tmp_path / "bars", "EUR/USD")
    return CountingStore(FolderBars(tmp_path / "bars", fixings=no_fixings))


def maker_of(store: CountingStore) -> TrialMaker:
    base = {
        "name": "Base", "model_type": "time_series", "family": "linear", "features": ["signal"],
        "target": "price_change_1h", "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z",
        "end_date": "2020-06-01T00:00:00Z", "hyperparameters": {"epochs": 2, "lookback": 3},
    }  # fmt: skip
    request = TrainRequest.model_validate(base)
    choices = {choice_label(each): {"features": each} for each in (["signal"], ["signal", "return_1"])}
    plan = {"model_id": "m", "version": "1.0.0", "features": ["signal"], "feature_choices": choices}
    return TrialMaker(request, plan, job_id="job", store=store, accelerator=Cpu(), open_primary=lambda plan: None)


def test_data_are_fetched_once_for_each_choice_of_features(store: CountingStore) -> None:
    maker = maker_of(store)
    for number, features in enumerate([["signal"], ["signal", "return_1"]] * 2):
        for horizon in (1, 2):
            params = {"features": features, "lookback": 3 + number, "horizon": horizon}
            end = maker.make(number, params, TrialReport(lambda: None, lambda step, value: ""))
            assert end.state == "complete", end.message
    assert store.num_fetches == 2


def test_a_feature_store_that_is_away_is_no_trials_fault(store: CountingStore) -> None:
    store.is_away = True
    with pytest.raises(UnavailableError):
        maker_of(store).make(0, {}, TrialReport(lambda: None, lambda step, value: ""))


def test_a_surprise_is_the_trials_own_end_with_its_words(store: CountingStore) -> None:
    def hear(step: int, value: float) -> str:
        raise ZeroDivisionError("by nothing")

    end = maker_of(store).make(7, {}, TrialReport(lambda: None, hear))
    assert (end.state, end.message, end.value) == ("failed", "ZeroDivisionError: by nothing", None)
    assert end.noted is not None
    assert end.noted.read.id == "job/7", "it had read the validation part"
