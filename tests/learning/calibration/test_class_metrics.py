"""Figures of classes against scikit-learn and plain loops, also where classes are missing or there is no row."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.calibration.class_metrics import (
    MAJORITY,
    NUM_BINS,
    PERSISTENCE,
    calibration_error,
    class_frequencies,
    figures,
    log_losses,
    majority,
    persistence,
    skill,
    stated,
)

THREE = np.array([0, 1, 2])


def answers(num: int, *, num_classes: int = 3, seed: int = 0) -> tuple[Ints, Floats]:
    """Labels drawn from probabilities, and those probabilities made too sure of themselves."""
    chance = np.random.default_rng(seed)
    probabilities = chance.dirichlet(np.ones(num_classes), size=num)
    labels = np.array([chance.choice(num_classes, p=row) for row in probabilities], dtype=np.int64)
    sharper = probabilities**2
    return labels, np.asarray(sharper / sharper.sum(axis=1, keepdims=True))


def by_scikit_learn(labels: Ints, probabilities: Floats) -> dict[str, float]:
    classes, every = probabilities.argmax(axis=1), np.arange(probabilities.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that were stated and never happened
        return {
            "accuracy": metrics.accuracy_score(labels, classes),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, classes),
            "f1_score": metrics.f1_score(labels, classes, average="macro"),
            "log_loss": metrics.log_loss(labels, probabilities, labels=every),
            "brier": metrics.brier_score_loss(labels, probabilities, labels=every, scale_by_half=False),
        }


def binned_by_hand(labels: Ints, probabilities: Floats) -> float:
    bins: dict[int, list[float]] = {}
    for label, row in zip(labels, probabilities, strict=True):
        confidence = float(row.max())
        number = next(n for n in range(NUM_BINS) if confidence <= (n + 1) / NUM_BINS)
        bins.setdefault(number, []).append(float(row.argmax() == label) - confidence)
    return sum(len(each) / len(labels) * abs(sum(each) / len(each)) for each in bins.values())


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("num", [1, 7, 400])
def test_figures_equal_scikit_learns(num: int, num_classes: int) -> None:
    labels, probabilities = answers(num, num_classes=num_classes, seed=num)
    found = figures(labels, probabilities)
    wanted = by_scikit_learn(labels, probabilities)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert found["calibration_error"] == pytest.approx(binned_by_hand(labels, probabilities), rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12))
def test_figures_equal_scikit_learns_where_classes_are_missing(rows: list[tuple[int, int, int]]) -> None:
    labels = np.array([label for label, _, _ in rows])
    probabilities = np.full((len(rows), 4), 0.1)
    for number, (_, said, weight) in enumerate(rows):
        probabilities[number, said] += weight
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found, wanted = figures(labels.astype(float), probabilities), by_scikit_learn(labels, probabilities)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_a_single_class_that_is_always_right_is_right() -> None:
    found = figures(np.zeros(5), np.tile([1.0, 0.0, 0.0], (5, 1)))
    assert found == {
        "accuracy": 1.0, "balanced_accuracy": 1.0, "f1_score": 1.0, "log_loss": 0.0, "brier": 0.0,
        "calibration_error": 0.0,
    }  # fmt: skip


def test_what_was_called_impossible_costs_much_but_not_infinitely_much() -> None:
    found = figures(np.array([2]), np.array([[1.0, 0.0, 0.0]]))
    assert found["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps))
    assert (found["brier"], found["calibration_error"], found["balanced_accuracy"]) == (2.0, 1.0, 0.0)


def test_without_a_row_there_is_no_figure() -> None:
    found = figures(np.zeros(0), np.zeros((0, 3)))
    assert set(found) == set(figures(*answers(3)))
    assert set(found.values()) == {None}
    assert skill(found, found, name=MAJORITY) == {
        "log_loss_against_majority_class": None, "brier_against_majority_class": None,
    }  # fmt: skip
    assert majority(THREE, num_rows=0, num_classes=3).figures(np.zeros(0))["accuracy"] is None


def test_a_label_that_is_none_is_refused() -> None:
    with pytest.raises(AssertionError):
        figures(np.array([np.nan]), np.array([[0.5, 0.5]]))
    with pytest.raises(AssertionError):
        figures(np.array([2.0]), np.array([[0.5, 0.5]]))


def test_of_equally_probable_classes_the_first_is_stated() -> None:
    assert stated(np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])).tolist() == [0, 1]


def test_a_calibrated_answer_has_no_calibration_error() -> None:
    chance = np.random.default_rng(1)
    confidence = chance.uniform(0.5, 1.0, 20_000)
    labels = (chance.uniform(size=20_000) > confidence).astype(int)
    found = figures(labels, np.column_stack([confidence, 1 - confidence]))
    sure = figures(labels, np.tile([0.999, 0.001], (20_000, 1)))
    assert found["calibration_error"] is not None
    assert sure["calibration_error"] is not None
    assert found["calibration_error"] < 0.015
    assert sure["calibration_error"] == pytest.approx(0.249, abs=0.01)


def test_a_confidence_is_compared_with_how_often_it_came_true() -> None:
    confidence, is_hit = np.array([0.9, 0.9, 0.3, 0.3]), np.array([True, True, False, False])
    assert calibration_error(confidence, is_hit_N=is_hit) == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)


def test_losses_of_single_rows_average_to_the_log_loss() -> None:
    labels, probabilities = answers(50)
    assert log_losses(labels, probabilities).mean() == pytest.approx(figures(labels, probabilities)["log_loss"])
    assert log_losses(labels, probabilities)[3] == pytest.approx(-math.log(probabilities[3, labels[3]]))


def test_the_majority_is_the_training_parts_not_the_test_parts() -> None:
    train, test = np.array([0, 0, 0, 0, 1, 2, 2]), np.array([2, 2, 2, 0])
    baseline = majority(train, num_rows=4, num_classes=3)
    assert baseline.name == MAJORITY
    np.testing.assert_allclose(baseline.probabilities_NC, np.tile([5 / 10, 2 / 10, 3 / 10], (4, 1)))
    found = baseline.figures(test)
    assert (found["accuracy"], found["balanced_accuracy"]) == (0.25, 0.5)
    assert found["log_loss"] == pytest.approx(-(3 * math.log(0.3) + math.log(0.5)) / 4)


def test_a_class_that_training_never_saw_is_not_impossible() -> None:
    frequencies = class_frequencies(np.zeros(98), 2)
    np.testing.assert_allclose(frequencies, [0.99, 0.01])
    np.testing.assert_allclose(class_frequencies(np.zeros(0), 4), 0.25)


def test_persistence_states_the_present_and_knows_how_often_it_fails() -> None:
    present = np.array([0, 0, 0, 0, 1, 1, np.nan])
    nexts = np.array([0, 0, 0, 1, 1, 0, 1])
    baseline = persistence(nexts, present, present_N=np.array([1.0, 0.0, np.nan]), num_classes=2)
    assert baseline.name == PERSISTENCE
    frequencies = class_frequencies(nexts, 2)
    assert baseline.stated_N.tolist() == [1, 0, int(np.argmax(frequencies))]
    from_0, from_1 = (np.array([3.0, 1.0]) + frequencies) / 5, (np.array([1.0, 1.0]) + frequencies) / 3
    np.testing.assert_allclose(baseline.probabilities_NC, [from_1, from_0, frequencies])
    assert baseline.figures(np.array([1, 0, 1]))["accuracy"] == pytest.approx(2 / 3)


def test_persistence_states_the_present_even_where_leaving_it_is_likelier() -> None:
    baseline = persistence(np.ones(10), np.zeros(10), present_N=np.zeros(2), num_classes=2)
    assert baseline.probabilities_NC[0, 1] > 0.9
    assert baseline.stated_N.tolist() == [0, 0]
    assert baseline.figures(np.ones(2))["accuracy"] == 0.0


def test_persistence_beats_the_majority_where_regimes_last() -> None:
    chance = np.random.default_rng(3)
    regimes = np.zeros(4000)
    for number in range(1, 4000):
        regimes[number] = regimes[number - 1] if chance.uniform() < 0.9 else chance.integers(4)
    now, then = regimes[:-1], regimes[1:]
    stays = persistence(then[:2000], now[:2000], present_N=now[2000:], num_classes=4).figures(then[2000:])
    largest = majority(then[:2000], num_rows=1999, num_classes=4).figures(then[2000:])
    assert stays["accuracy"] == pytest.approx(0.925, abs=0.02)
    gain = skill(stays, largest, name=MAJORITY)["log_loss_against_majority_class"]
    assert gain is not None
    assert gain > 0.6


def test_skill_is_the_share_of_the_baselines_loss_that_is_gone() -> None:
    labels, probabilities = answers(500)
    base = majority(labels, num_rows=500, num_classes=3).figures(labels)
    found = figures(labels, probabilities)
    gained = skill(found, base, name=MAJORITY)
    for score in ("log_loss", "brier"):
        mine, theirs = found[score], base[score]
        assert mine is not None
        assert theirs is not None
        assert gained[f"{score}_against_majority_class"] == pytest.approx(1 - mine / theirs)
    assert set(skill(base, base, name=MAJORITY).values()) == {0.0}
