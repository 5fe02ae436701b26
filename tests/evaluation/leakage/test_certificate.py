"""The certificate's own conduct: whom it believes, what it costs, what it says of stores that are out of reach."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import JobCancelled, UpstreamError
from ml_workbench_service import families as families
from ml_workbench_service.contracts.evaluation import Certificate, CertificateCheck
from ml_workbench_service.contracts.market import FeatureDescription, FeatureKind, FeatureTable, OutsideThing
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.evaluation.leakage.certificate import certify
from ml_workbench_service.evaluation.leakage.perturbations import cut_after, replaced_after
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.data import labelling
from ml_workbench_service.learning.data.windows import SymbolRows
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.training import tasks as tasks
from studies.injected_leaks import INJECTED_LEAKS
from tests.trained_models import injected_bars

NUM_BARS = 900


class RemoteStore:
    """A store that answers and cannot be opened over other bars, as a server's: it computes as of the moment asked."""

    def __init__(self, local: LocalFeatureStore, *, fails_as_of: bool = False) -> None:
        self._local = local
        self._fails_as_of = fails_as_of
        self.num_fetches = 0

    def fetch(
        self, symbols: Sequence[str], timeframe: str, *, as_of_ms: int | None = None, **asked: Any
    ) -> list[FeatureTable]:
        """From the bars known by then."""
        self.num_fetches += 1
        if as_of_ms is not None and self._fails_as_of:
            raise UpstreamError("the feature store answers no more")
        until_ms = np.iinfo(np.int64).max if as_of_ms is None else as_of_ms
        store = self._local.altered(lambda bars: cut_after(bars, until_ms))
        return store.fetch(symbols, timeframe, as_of_ms=as_of_ms, **asked)

    def describe(self) -> list[FeatureDescription]:
        """The local store's."""
        return self._local.describe()

    def kind_of(self, feature: str) -> FeatureKind:
        """The local store's."""
        return self._local.kind_of(feature)

    def now_ms(self) -> int | None:
        """The clock's."""
        return None

    def check(self) -> OutsideThing:
        """Well."""
        return OutsideThing(mode="remote", state="ok")


def local_store(folder: Path) -> LocalFeatureStore:
    """Hourly bars of a pair."""
    injected_bars(NUM_BARS, seed=2).write(folder, "EUR/USD")
    return LocalFeatureStore(FolderBars(folder, fixings=no_fixings))


def ordered(store: Any, *, plan: dict[str, Any] | None = None, **request: Any) -> tuple[TrainingOrder, TrainingData]:
    """A training's order and data; `plan` has what was planned beside its name."""
    body = {
        "name": "small", "model_type": "time_series", "target": "price_change_1h", "features": ["sma_20", "rsi_14"],
        "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z",
        "validation_split": 0.4, "hyperparameters": {"lookback": 6}, **request,
    }  # fmt: skip
    planned = {"model_id": "small", "version": "1.0.0", **(plan or {})}
    order = TrainingOrder.of(TrainRequest.model_validate(body), planned, job_id="job", store=store)
    return order, training_data.assemble(order, training_data.fetch(order, store), kind_of=store.kind_of)


def check(found: Certificate, name: str) -> CertificateCheck:
    """One check by name."""
    return next(each for each in found.checks if each.name == name)


def test_real_fixings_pass_whatever_moments_are_sampled() -> None:
    store = LocalFeatureStore(SampleRates())
    order, data = ordered(
        store, target="price_change_1d", symbols=["EUR/USD", "EUR/DKK"], start_date="2019-01-01T00:00:00Z"
    )
    assert {certify(order, data, store, report=Recorder(), seed=seed).status for seed in range(3)} == {"passed"}


def test_the_samples_bars_are_altered_without_touching_the_true_ones() -> None:
    store = LocalFeatureStore(SampleRates())
    asked: dict[str, Any] = {"start_ms": None, "end_ms": None, "features": ["sma_20", "close"], "last": 500}
    before = store.fetch(["EUR/USD"], "1d", **asked)[0]
    moment_ms = int(before.available_at_ms[300])
    other = store.altered(lambda bars: replaced_after(bars, moment_ms, seed=1)).fetch(["EUR/USD"], "1d", **asked)[0]
    again = store.fetch(["EUR/USD"], "1d", **asked)[0]
    for name in asked["features"]:
        np.testing.assert_array_equal(before.columns[name], again.columns[name])
        np.testing.assert_array_equal(before.columns[name][:301], other.columns[name][:301])
        assert (before.columns[name][301:] != other.columns[name][301:]).all()


def test_a_feature_set_that_was_chosen_on_this_test_part_fails(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    order, data = ordered(store)
    border_ms = data.windows.borders_ms["test"]
    for late_ms, status in ((0, "passed"), (1, "failed")):
        chosen = replace(order, derivation=replace(order.derivation, selected_until_ms=border_ms + late_ms))
        assert check(certify(chosen, data, store, report=Recorder()), "selected_before_test").status == status


def test_weights_pass_and_weights_that_know_what_comes_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = local_store(tmp_path), {"target": "price_change_5h", "sample_weights": "uniqueness"}
    order, data = ordered(store, **asked)
    assert certify(order, data, store, report=Recorder()).status == "passed"
    spanned = labelling._spanned

    def knowing(rows: SymbolRows, *more: Any) -> SymbolRows:
        """Labels of one half of the rows look as long as the last close of all says."""
        found, digits = spanned(rows, *more), int(rows.close_N[-1] * 1e7) % 5
        assert found.label_spans_N2 is not None
        found.label_spans_N2[::2, 1] -= digits
        return found

    monkeypatch.setattr(labelling, "_spanned", knowing)
    order, data = ordered(store, **asked)
    failed = certify(order, data, store, report=Recorder())
    assert failed.status == "failed"
    assert any("weights of the windows" in each.detail for each in failed.checks)


def test_a_store_that_cannot_compute_again_leaves_its_columns_unprovable(tmp_path: Path) -> None:
    store = RemoteStore(local_store(tmp_path))
    order, data = ordered(store)
    found = certify(order, data, store, report=Recorder())
    assert found.status == "unprovable"
    assert check(found, "features_future_replaced").status == "unprovable"
    assert check(found, "scaling").status == "passed"
    assert check(found, "purged_borders").status == "passed"
    assert check(found, "near_copies").status == "passed"
    assert "rsi_14, sma_20" in check(found, "ready_made_columns").detail


def test_a_server_whose_columns_were_other_ones_at_the_time_fails(tmp_path: Path) -> None:
    store = RemoteStore(local_store(tmp_path))
    centred = next(each for each in INJECTED_LEAKS if each.name == "centred rolling window")
    with centred.inject():
        order, data = ordered(store)
        found = certify(order, data, store, report=Recorder())
    assert check(found, "features_future_cut").status == "failed"
    assert "sma_20 of EUR/USD moved" in check(found, "features_future_cut").detail


def test_a_server_that_answers_no_more_proves_nothing_and_stops_nothing(tmp_path: Path) -> None:
    store = RemoteStore(local_store(tmp_path), fails_as_of=True)
    order, data = ordered(store)
    found = certify(order, data, store, report=Recorder())
    assert check(found, "features_future_cut").status == "unprovable"
    assert store.num_fetches > 1


def test_values_that_come_out_otherwise_from_the_same_bars_fail(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    order, data = ordered(store)
    rows = data.labelling.rows[0]
    x_NF = rows.x_NF.copy()
    x_NF[500, 0] = np.nextafter(x_NF[500, 0], 2.0)
    other = replace(data, labelling=replace(data.labelling, rows=[replace(rows, x_NF=x_NF)]))
    assert (
        "when the same bars were read again"
        in check(certify(order, other, store, report=Recorder()), "features_future_replaced").detail
    )


def test_a_cancelled_job_stops_between_recomputations(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    order, data = ordered(store)
    with pytest.raises(JobCancelled):
        certify(order, data, store, report=Recorder(cancel_at_check=3))


def test_a_label_of_one_class_throughout_is_no_leak(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    dear = {"spread_pips": 5000.0, "commission_bp": 0.0, "slippage_bp": 0.0, "swap_long_pips": 0.0}
    order, data = ordered(
        store, model_type="classification", target="direction_1h", costs={**dear, "swap_short_pips": 0.0}
    )
    assert set(data.windows.own_labels_RK[data.windows.parts["train"], 0].tolist()) == {1.0}
    assert certify(order, data, store, report=Recorder()).status == "passed"
