"""Folds tile the time before the test part, know nothing of what comes later, and are judged together, row by row."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.evaluation import Comparison, WalkForwardReport
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable
from ml_workbench_service.contracts.training import CrossValidation, TrainRequest
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder, assemble
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from ml_workbench_service.training import tasks as tasks  # registers them
from ml_workbench_service.training.pipeline import problem_for
from ml_workbench_service.training.walk_forward import cut_at, spans_of, walk_forward
from tests.market.paired_tests import clark_west
from tests.trained_models import injected_bars

NUM_BARS = 1800
REQUESTS: dict[str, dict[str, Any]] = {
    "number": {"family": "linear", "target": "price_change_3h"},
    "quantiles": {"family": "linear", "target": "volatility_4h", "quantiles": [0.05, 0.5, 0.95]},
    "class": {"model_type": "classification", "family": "gru_classifier", "target": "market_regime_3h"},
    "policy": {"model_type": "reinforcement_learning", "family": "q_learning", "features": ["signal"]},
    "anomaly": {"model_type": "anomaly_detection", "family": "isolation_forest"},
}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "class": {"gru_units": 4, "batch_size": 128},
    "anomaly": {"trees": 10, "max_samples": 128},
}
every_type = pytest.mark.parametrize("name", list(REQUESTS))


def kind_of(feature: str) -> FeatureKind:
    return "level" if feature == "close" else "stationary"


def order_for(name: str = "number", **changes: Any) -> TrainingOrder:
    hyper = {"lookback": 6} | ({} if name == "anomaly" else {"epochs": 2}) | HYPERPARAMETERS.get(name, {})
    body: dict[str, Any] = {
        "name": "walked",
        "model_type": "time_series",
        "features": ["signal", "close"],
        "symbols": ["EUR/USD"],
        "start_date": "2020-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z",
        "hyperparameters": hyper,
        **REQUESTS[name],
        **changes,
    }
    request = TrainRequest.model_validate(body)
    plan = {"model_id": "walked", "version": "1.0.0"}
    return TrainingOrder.of(request, plan, job_id="job", store=LocalFeatureStore(SampleRates()))


@cache
def tables(num: int = NUM_BARS, r2: float = 0.2, symbols: tuple[str, ...] = ("EUR/USD",)) -> tuple[FeatureTable, ...]:
    made = []
    for number, symbol in enumerate(symbols):
        bars = injected_bars(num, seed=11 + number, r2=r2)
        columns = {"signal": bars.signal, "close": bars.close}
        made.append(FeatureTable(symbol, "1h", bars.opened_ms, bars.opened_ms + HOUR_MS, columns, "file"))
    return tuple(made)


def prepared(order: TrainingOrder, delivered: Sequence[FeatureTable] | None = None) -> TrainingData:
    return assemble(order, delivered or tables(), kind_of=kind_of)


def walk(
    order: TrainingOrder,
    data: TrainingData,
    *,
    folds: int = 3,
    embargo: int = 0,
    report: Recorder | None = None,
    checkpoint: Checkpoint | None = None,
) -> WalkForwardReport:
    return walk_forward(
        order, data, cv=CrossValidation(folds=folds, embargo=embargo), accelerator=OneThread(),
        report=report or Recorder(), kind_of=kind_of, checkpoint=checkpoint,
    )  # fmt: skip


@cache
def walked(name: str) -> WalkForwardReport:
    order = order_for(name)
    return walk(order, prepared(order))


def wild_after(moment_ms: int) -> list[FeatureTable]:
    """The same bars, but for absurd ones that become known after the moment."""
    changed = []
    for table in tables():
        late = table.available_at_ms > moment_ms
        chance = np.random.default_rng(5)
        close = table.columns["close"] * np.exp(np.cumsum(np.where(late, 0.01 * chance.standard_normal(len(late)), 0)))
        signal = np.where(late, 9 * chance.standard_normal(len(late)) + 4, table.columns["signal"])
        changed.append(replace(table, columns={"signal": signal, "close": close}))
    return changed


@every_type
def test_nothing_of_the_test_part_reaches_any_fold(name: str) -> None:
    order = order_for(name)
    border = prepared(order).windows.borders_ms["test"]
    changed = prepared(order, wild_after(border))
    assert changed.windows.borders_ms["test"] == border
    assert walk(order, changed).model_dump_json() == walked(name).model_dump_json()


@every_type
def test_a_fold_knows_nothing_of_the_next_one(name: str) -> None:
    order = order_for(name)
    first = spans_of(prepared(order), num_folds=3)[0]
    found = walk(order, prepared(order, wild_after(first.end_ms)))
    assert found.folds[0].model_dump_json() == walked(name).folds[0].model_dump_json()
    assert found.folds[1].model_dump_json() != walked(name).folds[1].model_dump_json()


@every_type
def test_folds_tile_the_second_half_before_the_test_part(name: str) -> None:
    data = prepared(order_for(name))
    windows = data.windows
    first_ms, until_ms = int(windows.available_at_ms_R[windows.parts["train"]].min()), windows.borders_ms["test"]
    folds = walked(name).folds
    assert [each.number for each in folds] == [1, 2, 3]
    assert to_ms(folds[-1].test_end) == until_ms
    assert [each.test_end for each in folds[:-1]] == [each.test_start for each in folds[1:]]
    lengths = {to_ms(each.test_end) - to_ms(each.test_start) for each in folds}
    assert len(lengths) == 1
    assert (until_ms - to_ms(folds[0].test_start)) / (until_ms - first_ms) == pytest.approx(0.5, abs=1e-6)
    assert folds[0].num_train < folds[1].num_train < folds[2].num_train
    assert all(np.isfinite([value for value in each.test.values() if value is not None]).all() for each in folds)


def test_a_folds_parts_lie_before_it_and_no_label_reaches_out_of_its_part() -> None:
    order = order_for()
    data = prepared(order)
    for span, fold in zip(spans_of(data, num_folds=3), walked("number").folds, strict=True):
        known = cut_at(order, data, span, embargo_bars=0, kind_of=kind_of)
        windows = known.windows
        edges = [0, *span.borders_ms.values(), span.end_ms]
        for number, part in enumerate(("train", "validation", "calibration", "test")):
            ends = windows.parts[part]
            assert windows.available_at_ms_R[ends].min() > edges[number]
            assert windows.label_available_at_ms_R[ends].max() <= edges[number + 1]
        assert max(table.available_at_ms.max() for table in known.tables) <= span.end_ms
        assert windows.available_at_ms_R.max() <= span.end_ms
        assert fold.num_train == len(windows.parts["train"])
        assert fold.num_test == len(windows.parts["test"])
        assert 0 < windows.num_purged <= 3 * 3  # a label of 3 bars reaches over each of three borders


def test_an_embargo_is_kept_at_each_border() -> None:
    order = order_for()
    data = prepared(order)
    free, kept = walked("number"), walk(order, data, embargo=10)
    assert (kept.embargo_bars, kept.purged_bars) == (10, 3)
    for before, after in zip(free.folds, kept.folds, strict=True):
        assert 0 < before.num_test - after.num_test <= 10
        assert before.num_train == after.num_train


def of(comparisons: Sequence[Comparison], baseline: str) -> Comparison:
    return next(each for each in comparisons if each.baseline == baseline)


def test_the_pooled_comparison_is_over_the_rows_of_all_folds() -> None:
    """Written out: train each fold, lay the rows end to end, test once."""
    order = order_for()
    data = prepared(order)
    labels, forecasts, moments = [], [], []
    for span in spans_of(data, num_folds=3):
        known = cut_at(order, data, span, embargo_bars=0, kind_of=kind_of)
        trained = order.family.train(problem_for(order, known), accelerator=OneThread(), report=Recorder())
        ends = known.windows.parts["test"]
        labels.append(known.windows.own_labels_RK[ends, 0] / known.windows.label_scale_RK[ends, 0])
        forecasts.append(trained.predict(known.windows.gather(ends)).outputs_NK[:, 0].astype(np.float64))
        moments.append(known.windows.available_at_ms_R[ends])
    y, m, t = map(np.concatenate, (labels, forecasts, moments))
    found = of(walked("number").pooled, "random_walk")
    wanted = clark_west(y, baseline=np.zeros_like(y), model=m, moments_N=t, horizon=3)
    assert found.clark_west is not None
    assert found.clark_west.model_dump() == pytest.approx(wanted.model_dump(), rel=1e-9)
    assert found.model_loss == pytest.approx(np.mean((y - m) ** 2), rel=1e-12)
    assert found.diebold_mariano.num_moments == sum(each.num_test for each in walked("number").folds)


def test_several_symbols_are_walked_together_and_count_once_at_a_moment() -> None:
    order = order_for(symbols=["EUR/USD", "GBP/USD"])
    found = walk(order, prepared(order, tables(symbols=("EUR/USD", "GBP/USD"))), folds=2)
    rows = sum(each.num_test for each in found.folds)
    assert of(found.pooled, "random_walk").diebold_mariano.num_moments == rows / 2


def test_every_type_is_compared_with_its_own_baselines() -> None:
    names = {name: {each.baseline for each in walked(name).pooled} for name in REQUESTS}
    assert names["number"] == {"random_walk", "drift"}  # `linear` is not compared with itself
    assert names["quantiles"] == {"seasonal_ewma", "seasonal_har", "seasonal_blend"}
    assert names["class"] == {"majority_class", "persistence", "present_statistics", "linear"}
    assert names["policy"] == {"flat", "buy_and_hold", "linear"}
    assert names["anomaly"] == set()


def test_an_injected_signal_is_found_and_noise_is_not() -> None:
    order = order_for(target="price_change_1h", hyperparameters={"lookback": 6, "epochs": 30, "learning_rate": 0.01})
    signal = of(walk(order, prepared(order)).pooled, "random_walk")
    noise = of(walk(order, prepared(order, tables(r2=0.0))).pooled, "random_walk")
    assert signal.decisive.p_value is not None
    assert signal.decisive.p_value < 0.001
    assert signal.skill is not None
    assert signal.skill > 0.1
    assert noise.decisive.p_value is not None
    assert noise.decisive.p_value > 0.025


def test_a_fold_reports_no_steps_of_its_own() -> None:
    report, order = Recorder(), order_for()
    walk(order, prepared(order), report=report)
    assert report.steps == []
    assert report.messages == [f"walking forward, fold {number} of 3" for number in (1, 2, 3)]


def test_features_that_were_selected_on_the_folds_are_warned_of() -> None:
    order, report = order_for(), Recorder()
    data = prepared(order)
    first = spans_of(data, num_folds=2)[0].start_ms
    for until_ms in (first, first + HOUR_MS):
        derivation = replace(order.derivation, selected_until_ms=until_ms)
        walk(replace(order, derivation=derivation), data, folds=2, report=report)
    assert len(report.warnings) == 1
    assert "selected on data that folds" in report.warnings[0]


def test_too_short_data_are_refused_with_the_number_of_folds_that_fit() -> None:
    order = order_for(validation_split=0.4)
    short = prepared(order, tables(num=1000))
    with pytest.raises(
        DataValidationError, match=r"15 folds do not fit .* send \d+. In fold 1 the \w+ part has"
    ) as caught:
        walk(order, short, folds=15)
    (error,) = caught.value.details["errors"]
    assert error["path"] == "body.cv.folds"
    fitting = int(error["message"].split("send ")[1].split(".")[0])
    assert 2 <= fitting < 15
    assert len(walk(order, short, folds=fitting).folds) == fitting
    with pytest.raises(DataValidationError, match=f"send {fitting}. In fold"):
        walk(order, short, folds=fitting + 1)


def test_data_that_hold_no_folds_at_all_are_refused_with_what_to_do() -> None:
    order = order_for(validation_split=0.6)
    with pytest.raises(DataValidationError, match="neither does any other number: leave `cv` out"):
        walk(order, prepared(order, tables(num=420)), folds=2)


def test_a_symbol_that_begins_late_is_named() -> None:
    order = order_for(symbols=["EUR/USD", "GBP/USD"])
    first, second = tables(symbols=("EUR/USD", "GBP/USD"))
    late = slice(len(second) // 2, None)
    second = replace(
        second, opened_ms=second.opened_ms[late], available_at_ms=second.available_at_ms[late],
        columns={name: column[late] for name, column in second.columns.items()},
    )  # fmt: skip
    with pytest.raises(DataValidationError, match="GBP/USD has no"):
        walk(order, prepared(order, (first, second)))


def test_a_search_for_features_has_nothing_to_walk_forward_with() -> None:
    search = {"model_type": "feature_engineering", "family": None, "hyperparameters": {}, "features": ["rsi_14"]}
    order = order_for(**search, target="volatility_4d", timeframe=None)
    with pytest.raises(DataValidationError, match="forecasts nothing") as caught:
        walk(order, prepared(order_for()))
    assert caught.value.details["errors"][0]["path"] == "body.cv"


def test_a_killed_walk_repeats_no_finished_fold(tmp_path: Path) -> None:
    order = order_for("class")
    data, whole = prepared(order), Recorder()
    uninterrupted = walk(order, data, report=whole)
    halfway = Recorder(cancel_at_check=int(whole.num_checks * 0.8))
    with pytest.raises(JobCancelled):
        walk(order, data, report=halfway, checkpoint=Checkpoint(tmp_path, fingerprint={}))
    last, checkpoint = Recorder(), Checkpoint(tmp_path, fingerprint={})
    assert walk(order, data, report=last, checkpoint=checkpoint) == uninterrupted
    assert "going on after epoch 2 (fold 1 of 3)" in last.messages
    assert last.num_checks < whole.num_checks * 0.7
    checkpoint.clear()
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))
