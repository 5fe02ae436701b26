"""What plain answers say of classes, against scikit-learn and counts made by hand."""

from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression

from ml_workbench_service.evaluation.class_baselines import PRIOR_ROWS, class_baselines
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.data.windows import SymbolRows, Windows, build
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.testing.probes.classification import ClassificationProbe
from ml_workbench_service.testing.synthetic import DEVIATION, FEATURES, IS_LEVEL, problem, symbol_rows
from tests.evaluation.test_ridge import design


def classed(windows: Windows) -> TrainingProblem:
    return problem(windows, "direction_1h")


def held_by_volatility(num: int = 4000, *, seed: int = 0) -> SymbolRows:
    """Moves that are larger where the volatility, known beforehand, is."""
    chance = np.random.default_rng(seed)
    rows = symbol_rows(num=num, r2=0.0, seed=seed)
    deviation = DEVIATION * np.exp(chance.standard_normal(num))
    moves = deviation * chance.standard_normal(num)
    classes = np.where(np.abs(moves) < DEVIATION, 1.0, np.where(moves > 0, 2.0, 0.0))
    classes[-1] = np.nan
    return replace(rows, labels_NK=classes[:, None], bar_volatility_N=deviation)


def in_classes(*tables: SymbolRows) -> Windows:
    return build(tables, features=FEATURES, is_level=IS_LEVEL, lookback=8, split=0.4, scales_labels=[False])


def test_the_frequencies_at_this_volatility_know_when_nothing_is_worth_its_costs() -> None:
    windows = in_classes(held_by_volatility())
    work, test = classed(windows), windows.parts["test"]
    plain, by_volatility, _ = class_baselines(work, test)
    labels = windows.own_labels_RK[test, 0]
    assert (plain.name, by_volatility.name) == ("majority_class", "volatility_frequencies")
    losses = [each.figures(labels)["log_loss"] for each in (plain, by_volatility)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[1] < 0.9 * losses[0]
    train = windows.parts["train"]
    edges = np.quantile(windows.bar_volatility_R[train], np.linspace(0, 1, 11)[1:-1])
    calm = train[windows.bar_volatility_R[train] <= edges[0]]
    overall = class_frequencies(windows.own_labels_RK[train, 0], 3)
    counts = np.bincount(windows.own_labels_RK[calm, 0].astype(int), minlength=3) + PRIOR_ROWS * overall
    asked = int(np.argmin(windows.bar_volatility_R[test]))
    np.testing.assert_allclose(by_volatility.probabilities_NC[asked], counts / counts.sum(), atol=0.01)
    np.testing.assert_allclose(by_volatility.probabilities_NC.sum(axis=1), 1.0)


def test_an_unknown_volatility_is_answered_by_the_symbols_frequencies() -> None:
    windows = in_classes(held_by_volatility())
    test = windows.parts["test"]
    unknown = windows.bar_volatility_R.copy()
    unknown[test] = np.nan
    _, found, _ = class_baselines(classed(replace(windows, bar_volatility_R=unknown)), test)
    overall = class_frequencies(windows.own_labels_RK[windows.parts["train"], 0], 3)
    np.testing.assert_allclose(found.probabilities_NC, np.tile(overall, (len(test), 1)))


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
