"""What plain answers say of classes, against scikit-learn and counts made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ml_workbench_service.evaluation.class_baselines import NUM_BINS, PRIOR_ROWS, class_baselines
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.data.windows import SymbolRows, Windows, build
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.testing.probes.classification import ClassificationProbe
from ml_workbench_service.testing.synthetic import DEVIATION, FEATURES, IS_LEVEL, problem, symbol_rows
from tests.evaluation.test_ridge import design


@pytest.fixture(scope="module")
def regimes() -> TrainingProblem:
    """The regime of the next bar of a random walk in storms, by each symbol's own rule."""
    tables, rules = [], {}
    for seed, symbol in enumerate(("EUR/USD", "USD/JPY")):
        rows = symbol_rows(symbol, num=4000, r2=0.0, seed=seed)
        moves = DEVIATION * np.exp(0.5 * np.sin(np.arange(4000) / 60)) * np.random.default_rng(seed).standard_t(5, 4000)
        close = np.exp(np.cumsum(moves))
        trend, volatility = regime_features(close, rows.runs_N)
        rules[symbol] = RegimeRule.fit(trend[:2000], volatility[:2000])
        classes = rules[symbol].classify(trend, volatility)
        labels = np.append(classes[1:], np.nan)
        tables.append(replace(rows, close_N=close, labels_NK=labels[:, None]))
    return replace(problem(in_classes(*tables), "market_regime"), regimes=rules)


def in_classes(*tables: SymbolRows) -> Windows:
    return build(tables, features=FEATURES, is_level=IS_LEVEL, lookback=8, split=0.4, scales_labels=[False])


def test_the_frequencies_at_the_rules_statistics_know_when_a_regime_is_about_to_end(regimes: TrainingProblem) -> None:
    windows = regimes.windows
    test, labels = windows.parts["test"], windows.own_labels_RK[windows.parts["test"], 0]
    found = {each.name: each for each in class_baselines(regimes, test)}
    assert list(found) == ["majority_class", "persistence", "present_statistics", "linear"]
    brier = {name: each.figures(labels)["brier"] or 0.0 for name, each in found.items()}
    assert brier["present_statistics"] < 0.97 * brier["persistence"] < 0.9 * brier["majority_class"]
    np.testing.assert_allclose(found["present_statistics"].probabilities_NC.sum(axis=1), 1.0)


def test_a_cell_has_its_own_frequencies_beside_a_prior(regimes: TrainingProblem) -> None:
    windows = regimes.windows
    first = windows.symbol_R == 0
    trend, volatility = regime_features(windows.close_R[first], windows.runs_R[first])
    train = windows.parts["train"][windows.symbol_R[windows.parts["train"]] == 0]
    test = windows.parts["test"][windows.symbol_R[windows.parts["test"]] == 0]
    edges = [
        np.quantile(each[train][np.isfinite(trend[train])], np.linspace(0, 1, num + 1)[1:-1])
        for each, num in ((trend, NUM_BINS[0]), (volatility, NUM_BINS[1]))
    ]
    cells = np.stack([np.searchsorted(e, each) for e, each in zip(edges, (trend, volatility), strict=True)])
    asked = int(test[5])
    alike = train[(cells[:, train] == cells[:, [asked]]).all(axis=0) & np.isfinite(trend[train])]
    found = {each.name: each.probabilities_NC[0] for each in class_baselines(regimes, np.array([asked]))}
    prior = PRIOR_ROWS * found["persistence"]
    counts = np.bincount(windows.own_labels_RK[alike, 0].astype(int), minlength=4) + prior
    np.testing.assert_allclose(found["present_statistics"], counts / counts.sum())


def test_unknown_statistics_are_answered_by_persistence(regimes: TrainingProblem) -> None:
    windows, test = regimes.windows, regimes.windows.parts["test"]
    close = windows.close_R.copy()
    close[test] = np.nan
    blind = replace(regimes, windows=replace(windows, close_R=close))
    found = {each.name: each.probabilities_NC for each in class_baselines(blind, test)}
    np.testing.assert_array_equal(found["present_statistics"], found["persistence"])


def test_directions_know_the_training_frequencies_and_a_regression() -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=700)
    found = class_baselines(probe.problem(windows), windows.parts["test"])
    assert [each.name for each in found] == ["majority_class", "linear"]


def test_logistic_regression_is_scikit_learns_and_finds_the_signal() -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=1200)
    work, test = probe.problem(windows), windows.parts["test"]
    found = {each.name: each for each in class_baselines(work, test)}["linear"]
    labels = windows.own_labels_RK[:, 0]
    train, stop = windows.parts["train"], windows.parts["validation"]
    losses = {}
    for penalty in (10.0, 1.0, 0.1, 0.01, 0.001):
        peer = LogisticRegression(C=1 / (penalty * len(train)), max_iter=1000).fit(
            design(windows, train), labels[train]
        )
        said = peer.predict_proba(design(windows, stop))
        losses[penalty] = -np.mean(np.log(said[np.arange(len(stop)), labels[stop].astype(int)])), peer
    best = min(losses.values(), key=lambda each: each[0])[1]
    np.testing.assert_allclose(found.probabilities_NC, best.predict_proba(design(windows, test)), atol=0.01)
    assert found.figures(labels[test])["accuracy"] > 0.5  # type: ignore[operator]


def test_of_one_class_alone_and_of_noise_the_frequencies_answer() -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=700)
    test, train = windows.parts["test"], windows.parts["train"]
    alone = windows.own_labels_RK.copy()
    alone[train] = 1.0
    constant = replace(windows, own_labels_RK=alone)
    found = {each.name: each for each in class_baselines(probe.problem(constant), test)}["linear"]
    frequencies = class_frequencies(alone[train, 0], 3)
    np.testing.assert_allclose(found.probabilities_NC, np.tile(frequencies, (len(test), 1)))


def test_a_class_that_training_lacks_keeps_its_small_share() -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=700)
    two = windows.own_labels_RK.copy()
    train = windows.parts["train"]
    two[train[two[train, 0] == 1], 0] = 2.0
    found = {each.name: each for each in class_baselines(probe.problem(replace(windows, own_labels_RK=two)), train)}
    probabilities = found["linear"].probabilities_NC
    np.testing.assert_allclose(probabilities[:, 1], 1 / (len(train) + 3))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_class_baselines_know_nothing_of_later_parts() -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=700)
    later = windows.available_at_ms_R > windows.borders_ms["calibration"]
    labels = windows.own_labels_RK.copy()
    labels[later] = 0.0
    rows = windows.rows_RF.copy()
    rows[later] = 3.0
    blind = replace(windows, own_labels_RK=labels, rows_RF=rows)
    stop = windows.parts["validation"]
    for before, after in zip(
        class_baselines(probe.problem(windows), stop), class_baselines(probe.problem(blind), stop), strict=True
    ):
        np.testing.assert_array_equal(before.probabilities_NC, after.probabilities_NC)
