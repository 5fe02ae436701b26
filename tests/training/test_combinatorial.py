"""Combinations: each leaves tested time out of everything it learns, paths are one answer of each group, end to end."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.evaluation import CombinatorialReport
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import CrossValidation
from ml_workbench_service.evaluation.signal_backtest import daily_net
from ml_workbench_service.learning.data.splits import PartSpan
from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder, problem_for
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market import performance
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from ml_workbench_service.training.combinatorial import (
    combinatorial,
    cut_around,
    groups_of,
    labelled_until,
    split_around,
)
from tests.training.test_walk_forward import kind_of, order_for, prepared, tables, wild_after

CV = CrossValidation(scheme="combinatorial_purged", groups=4, test_groups=2)
TYPES = ("number", "quantiles", "class")
every_type = pytest.mark.parametrize("name", TYPES)


def validated(
    order: TrainingOrder,
    data: TrainingData,
    *,
    cv: CrossValidation = CV,
    report: Recorder | None = None,
    checkpoint: Checkpoint | None = None,
) -> CombinatorialReport:
    return combinatorial(
        order, data, cv=cv, accelerator=OneThread(), report=report or Recorder(), kind_of=kind_of,
        checkpoint=checkpoint,
    )  # fmt: skip


@cache
def found(name: str) -> CombinatorialReport:
    order = order_for(name)
    return validated(order, prepared(order))


def altered_inside(groups: Sequence[PartSpan], tested: Sequence[int], *, embargo_bars: int) -> list[FeatureTable]:
    """The same bars, but absurd ones in the tested groups and in the bars of the embargo behind each."""
    changed = []
    for table in tables():
        inside = np.zeros(len(table), dtype=bool)
        for place in tested:
            known = table.available_at_ms
            inside |= (known > groups[place].start_ms) & (known <= groups[place].end_ms)
            inside[np.flatnonzero(known > groups[place].end_ms)[:embargo_bars]] = True
        chance = np.random.default_rng(5)
        signal, close = (np.asarray(table.columns[each]) for each in ("signal", "close"))
        wild = {
            "signal": np.where(inside, 9 * chance.standard_normal(len(inside)) + 4, signal),
            "close": np.where(inside, close * np.exp(0.2 * chance.standard_normal(len(inside))), close),
        }
        changed.append(replace(table, columns=wild))
    return changed


@pytest.mark.parametrize(("name", "embargo"), [("number", 0), ("quantiles", 0), ("class", 130)])
@pytest.mark.parametrize("weights", ["none", "uniqueness"])
def test_nothing_that_is_learnt_from_moves_with_the_tested_bars(name: str, embargo: int, weights: str) -> None:
    """Rows, labels, weights, scaling and fitted rules, in every combination; regimes remember a while.

    To rounding: running sums over the whole table add the tested bars up, and take them away again.
    """
    order = order_for(name, sample_weights=weights)
    data = prepared(order)
    groups = groups_of(data, num_groups=4)
    for tested in combinations(range(4), 2):
        split = split_around(groups, tested, embargo_bars=embargo)
        other = replace(data, tables=tuple(altered_inside(groups, tested, embargo_bars=0)))
        true, again = (
            cut_around(order, labelled_until(order, each, groups[-1].end_ms), split, kind_of=kind_of)
            for each in (data, other)
        )
        one, two = (each.windows.scaler.to_json()["symbols"]["EUR/USD"] for each in (true, again))
        assert one == {name: pytest.approx(values, rel=1e-9) for name, values in two.items()}
        assert true.labelling.regimes == again.labelling.regimes
        for part in ("train", "validation", "calibration"):
            ends = true.windows.parts[part]
            assert np.array_equal(ends, again.windows.parts[part])
            np.testing.assert_allclose(true.windows.gather(ends), again.windows.gather(ends), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(true.windows.labels_RK[ends], again.windows.labels_RK[ends], rtol=1e-5)
            if weights != "none" and part != "calibration":
                heavy, again_heavy = true.windows.weights_R, again.windows.weights_R
                assert heavy is not None
                assert again_heavy is not None
                assert np.array_equal(heavy[ends], again_heavy[ends])
        ends = true.windows.parts["test"]
        assert not np.allclose(true.windows.gather(ends), again.windows.gather(ends))


@pytest.mark.parametrize("name", ["number", "quantiles", pytest.param("class", marks=pytest.mark.more)])
def test_nothing_of_the_test_part_reaches_any_combination(name: str) -> None:
    order = order_for(name)
    border = prepared(order).windows.borders_ms["test"]
    changed = prepared(order, wild_after(border))
    assert validated(order, changed).model_dump_json() == found(name).model_dump_json()


@every_type
def test_groups_tile_the_time_before_the_test_part_and_each_is_answered_as_often(name: str) -> None:
    report, data = found(name), prepared(order_for(name))
    assert (report.num_trainings, len(report.paths), len(report.groups)) == (6, 3, 4)
    assert [each.end for each in report.groups[:-1]] == [each.start for each in report.groups[1:]]
    assert to_ms(report.groups[-1].end) == data.windows.borders_ms["test"]
    assert 0 < report.num_train[0] <= report.num_train[1]
    assert {name for each in report.paths for name in each.skill} == set(report.skill)
    if name == "number":
        assert report.sharpe is not None
        ratios = [each.sharpe for each in report.paths if each.sharpe is not None]
        assert report.sharpe.maximum == max(ratios)
        assert report.sharpe.median == np.median(ratios)
        nets = [each.net_log_return for each in report.paths if each.net_log_return is not None]
        assert report.share_losing == np.mean([each <= 0 for each in nets])
    else:  # a volatility and a regime are not traded
        assert report.sharpe is None
        assert report.paths[0].net_log_return is None


def test_a_path_is_one_answer_of_each_group_end_to_end() -> None:
    """Written out: train each combination, lay the first answers of all groups end to end."""
    order = order_for()
    data = prepared(order)
    groups, answers = groups_of(data, num_groups=4), {}
    known = labelled_until(order, data, groups[-1].end_ms)
    for tested in combinations(range(4), 2):
        cut = cut_around(order, known, split_around(groups, tested, embargo_bars=0), kind_of=kind_of)
        problem, windows = problem_for(order, cut), cut.windows
        trained = order.family.train(problem, accelerator=OneThread(), report=Recorder())
        for place in tested:
            if place in answers:
                continue
            moments = windows.available_at_ms_R[windows.parts["test"]]
            ends = windows.parts["test"][(moments > groups[place].start_ms) & (moments <= groups[place].end_ms)]
            labels = windows.own_labels_RK[ends, 0]
            forecasts = trained.predict(windows.gather(ends)).outputs_NK[:, 0] * windows.label_scale_RK[ends, 0]
            asked = windows.decisions["test"]
            moments = windows.available_at_ms_R[asked]
            asked = asked[(moments > groups[place].start_ms) & (moments <= groups[place].end_ms)]
            held = order.task.positions(Predict(trained, None), asked, problem)
            assert held is not None
            scale = windows.label_scale_RK[ends, 0]
            answers[place] = (labels / scale, forecasts / scale, daily_net(held, asked, problem))
    y, m = (np.concatenate([answers[place][each] for place in range(4)]) for each in (0, 1))
    path = found("number").paths[0]
    assert path.skill["random_walk"] == pytest.approx(1 - np.mean((y - m) ** 2) / np.mean(y**2), rel=1e-9)
    days: dict[str, float] = {}
    for place in range(4):
        for date, value in answers[place][2].items():
            days[date] = days.get(date, 0.0) + value
    daily = np.array([days[each] for each in sorted(days)])
    assert path.net_log_return == pytest.approx(daily.sum(), rel=1e-9)
    assert path.sharpe == pytest.approx(performance.annual(performance.sharpe(daily)), rel=1e-9)


def test_an_injected_signal_is_found_on_every_path_and_noise_on_none() -> None:
    order = order_for(target="price_change_1h", hyperparameters={"lookback": 6, "epochs": 20, "learning_rate": 0.01})
    signal = validated(order, prepared(order)).skill["random_walk"]
    noise = validated(order, prepared(order, tables(r2=0.0))).skill["random_walk"]
    assert signal.minimum > 0.1
    assert noise.maximum < 0.01


def test_an_embargo_leaves_training_windows_out_and_no_tested_one() -> None:
    order = order_for()
    data = prepared(order)
    kept = validated(order, data, cv=CV.model_copy(update={"embargo": 20}))
    assert (kept.embargo_bars, kept.purged_bars) == (20, 3)
    assert [each.num_test for each in kept.groups] == [each.num_test for each in found("number").groups]
    assert kept.num_train[0] < found("number").num_train[0]


def test_several_symbols_are_one_account() -> None:
    order = order_for(symbols=["EUR/USD", "GBP/USD"])
    report = validated(order, prepared(order, tables(symbols=("EUR/USD", "GBP/USD"))))
    assert report.groups[0].num_test > 1.9 * found("number").groups[0].num_test


def test_features_that_were_selected_on_the_groups_are_warned_of() -> None:
    order, report = order_for(), Recorder()
    data = prepared(order)
    first = groups_of(data, num_groups=4)[0].start_ms
    for until_ms in (first, first + HOUR_MS):
        derivation = replace(order.derivation, selected_until_ms=until_ms)
        validated(replace(order, derivation=derivation), data, report=report)
    assert len(report.warnings) == 1
    assert "selected on data that combinations" in report.warnings[0]


def test_groups_that_are_too_short_are_refused_before_anything_is_trained() -> None:
    order, report = order_for(validation_split=0.5), Recorder()
    cv = CrossValidation(scheme="combinatorial_purged", groups=12, test_groups=2)
    with pytest.raises(DataValidationError, match="12 groups do not fit into these data; send fewer") as caught:
        validated(order, prepared(order, tables(num=500)), cv=cv, report=report)
    (error,) = caught.value.details["errors"]
    assert (error["path"], error["code"]) == ("body.cv.groups", "too_many_groups")
    assert report.messages == []


@pytest.mark.parametrize("name", ["policy", "anomaly"])
def test_types_that_cannot_learn_from_stretches_apart_are_refused(name: str) -> None:
    order = order_for(name)
    with pytest.raises(DataValidationError, match="forecasts and classes alone") as caught:
        validated(order, prepared(order))
    assert caught.value.details["errors"][0]["path"] == "body.cv.scheme"


@pytest.mark.parametrize(
    ("cv", "words"),
    [
        ({"scheme": "combinatorial_purged", "folds": 4}, "`folds` is not of the scheme combinatorial_purged"),
        ({"scheme": "none", "folds": 3}, "`folds` is not of the scheme none, which has none of its own"),
        ({"scheme": "walk_forward", "groups": 7}, "`groups` is not of the scheme walk_forward"),
        ({"scheme": "combinatorial_purged", "groups": 4, "test_groups": 3}, "two groups at least"),
        ({"scheme": "combinatorial_purged", "groups": 16, "test_groups": 4}, "are 1820 trainings, and 100 is the most"),
    ],
)
def test_a_scheme_has_its_own_settings_and_an_end(cv: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CrossValidation.model_validate(cv)


def test_a_request_that_was_stored_before_reads_as_a_walk_forward() -> None:
    stored = {"scheme": "walk_forward", "folds": 3, "purge": "auto", "embargo": 4}
    cv = CrossValidation.model_validate(stored)
    assert (cv.num_trainings, cv.scheme) == (3, "walk_forward")
    again = CrossValidation(scheme="combinatorial_purged")
    assert (again.num_trainings, again.num_paths) == (15, 5)


def test_a_killed_validation_repeats_no_finished_combination(tmp_path: Path) -> None:
    order = order_for("class")
    data, whole = prepared(order), Recorder()
    uninterrupted = validated(order, data, report=whole)
    halfway = Recorder(cancel_at_check=int(whole.num_checks * 0.8))
    with pytest.raises(JobCancelled):
        validated(order, data, report=halfway, checkpoint=Checkpoint(tmp_path, fingerprint={}))
    last, checkpoint = Recorder(), Checkpoint(tmp_path, fingerprint={})
    assert validated(order, data, report=last, checkpoint=checkpoint) == uninterrupted
    assert "going on after epoch 2 (combination 1 of 6)" in last.messages
    assert last.num_checks < whole.num_checks * 0.7
    checkpoint.clear()
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))
