"""Probabilities that hold: over-confidence is cooled, weights are undone, noise ends at the training frequencies."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import CLASSES
from ml_workbench_service.learning.calibration.class_metrics import figures, majority, stated
from ml_workbench_service.learning.calibration.class_probabilities import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    ClassCalibration,
    ClassWeights,
    class_counts,
    class_weights,
)
from ml_workbench_service.learning.decoders.classes import ClassDecoder
from ml_workbench_service.learning.decoders.decoder import Decoded, DecodingContext

pytestmark = pytest.mark.processor

DIRECTION = CLASSES["direction"]
UNEVEN = np.array([0.2, 0.1, 0.7])
EVEN = np.full(3, 1 / 3)


def drawn(num: int, *, frequencies: Floats, strength: float, seed: int) -> tuple[Floats, Ints, Ints]:
    """Evidence about classes, labels drawn by it, and the training part's labels."""
    chance = np.random.default_rng(seed)
    train = chance.choice(3, size=4000, p=frequencies)
    labels = chance.choice(3, size=num, p=frequencies)
    evidence = strength * chance.standard_normal((num, 3)) + strength**2 * np.eye(3)[labels]  # its own likelihood ratio
    return evidence, labels, train


def decoded(probabilities: Floats, classes: Sequence[str]) -> Decoded:
    """What the decoder says where these are the calibrated probabilities."""
    even = ClassCalibration(tuple(classes), np.full(len(classes), 1 / len(classes)))
    outputs = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
    return ClassDecoder(even).decode(outputs, DecodingContext(np.ones(1), None, 0.0))


def fitted(logits: Floats, labels: Ints, train: Ints) -> ClassCalibration:
    return ClassCalibration.fit(logits, labels, classes=DIRECTION, train_labels_N=train)


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def of(found: dict[str, float | None], name: str) -> float:
    value = found[name]
    assert value is not None
    return value


@pytest.mark.parametrize("frequencies", [EVEN, UNEVEN])
def test_over_confident_answers_are_cooled_by_what_they_exaggerate(frequencies: Floats) -> None:
    evidence, labels, train = drawn(6000, frequencies=frequencies, strength=1.0, seed=1)
    logits = 3 * evidence + np.log(frequencies)
    calibration = fitted(logits[:3000], labels[:3000], train)
    assert calibration.temperature == pytest.approx(3.0, rel=0.08)
    before = figures(labels[3000:], softmax(logits[3000:]))
    probabilities = calibration.probabilities(logits[3000:])
    after = figures(labels[3000:], probabilities)
    assert of(after, "log_loss") < of(before, "log_loss") - 0.1
    assert of(after, "calibration_error") < 0.03 < of(before, "calibration_error")
    np.testing.assert_allclose(probabilities.mean(axis=0), frequencies, atol=0.03)


def test_timid_answers_are_sharpened() -> None:
    evidence, labels, train = drawn(3000, frequencies=EVEN, strength=1.0, seed=2)
    assert fitted(evidence / 2, labels, train).temperature == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("frequencies", [EVEN, UNEVEN])
def test_calibrated_answers_are_left_alone(frequencies: Floats) -> None:
    evidence, labels, train = drawn(6000, frequencies=frequencies, strength=1.0, seed=3)
    logits = evidence + np.log(frequencies)
    calibration = fitted(logits, labels, train)
    assert calibration.temperature == pytest.approx(1.0, abs=0.06)
    np.testing.assert_allclose(calibration.probabilities(logits), softmax(logits), atol=0.03)


def test_without_weights_and_temperature_the_answer_is_the_plain_softmax() -> None:
    evidence, _, _ = drawn(50, frequencies=UNEVEN, strength=1.0, seed=4)
    calibration = ClassCalibration(DIRECTION, UNEVEN)
    np.testing.assert_allclose(calibration.probabilities(evidence), softmax(evidence), rtol=1e-12)


def test_where_the_evidence_is_noise_the_training_frequencies_remain() -> None:
    chance = np.random.default_rng(5)
    train, labels = chance.choice(3, size=4000, p=UNEVEN), chance.choice(3, size=4000, p=UNEVEN)
    logits = 2 * chance.standard_normal((4000, 3)) + np.log(UNEVEN)
    calibration = fitted(logits[:2000], labels[:2000], train)
    probabilities = calibration.probabilities(logits[2000:])
    np.testing.assert_allclose(probabilities, np.tile(UNEVEN, (2000, 1)), atol=0.05)
    baseline = majority(train, num_rows=2000, num_classes=3).figures(labels[2000:])
    assert of(figures(labels[2000:], probabilities), "log_loss") < of(baseline, "log_loss") + 0.002
    assert of(figures(labels[2000:], softmax(logits[2000:])), "log_loss") > of(baseline, "log_loss") + 0.5


@pytest.mark.parametrize("scheme", ["none", "balanced"])
def test_probabilities_match_the_frequencies_whatever_the_weights_were(scheme: ClassWeights) -> None:
    rng = np.random.default_rng(6)
    labels = rng.choice(3, size=9000, p=UNEVEN)
    x = rng.standard_normal((9000, 2)) + np.array([[-0.7, 0.0], [0.0, 0.5], [0.7, 0.0]])[labels]
    weights = class_weights(class_counts(labels[:3000], 3), scheme)
    model = LogisticRegression(class_weight=dict(enumerate(weights)), C=1e6).fit(x[:3000], labels[:3000])
    weighted = model.decision_function(x)
    logits = weighted - np.log(weights)  # a network learns to answer with these, since its loss adds log w
    calibration = fitted(logits[3000:6000], labels[3000:6000], labels[:3000])
    probabilities = calibration.probabilities(logits[6000:])
    test = labels[6000:]
    np.testing.assert_allclose(probabilities.mean(axis=0), np.bincount(test) / 3000, atol=0.025)
    for name in range(3):  # and not only on average: also among the rows that lean most to a class
        leaning = probabilities[:, name] >= np.quantile(probabilities[:, name], 0.8)
        assert probabilities[leaning, name].mean() == pytest.approx(np.mean(test[leaning] == name), abs=0.06)
    assert calibration.temperature == pytest.approx(1.0, abs=0.2)
    if scheme == "balanced":  # the test would not be one if the weights had moved nothing
        assert np.abs(softmax(weighted[6000:]).mean(axis=0) - np.bincount(test) / 3000).max() > 0.1


def test_a_rows_answer_does_not_depend_on_its_neighbours() -> None:
    for num_classes in (2, 3, 4, 11):
        logits = (30 * np.random.default_rng(7).standard_normal((257, num_classes))).astype(np.float32)
        frequencies = np.linspace(0.5, 1.5, num_classes) / num_classes
        calibration = ClassCalibration(tuple(map(str, range(num_classes))), frequencies, 1.7)
        together = calibration.probabilities(logits)
        alone = np.stack([calibration.probabilities(row) for row in logits])
        pieces = np.concatenate([calibration.probabilities(logits[n : n + 5]) for n in range(0, 257, 5)])
        turned = calibration.probabilities(np.asfortranarray(logits))
        assert together.tobytes() == alone.tobytes() == pieces.tobytes() == np.ascontiguousarray(turned).tobytes()


def test_absurd_outputs_still_sum_to_one() -> None:
    calibration = ClassCalibration(DIRECTION, UNEVEN, 0.1)
    logits = np.array([[3e38, -3e38, 0], [-3e38, -3e38, -3e38], [800, 799, -800], [0, 0, 0]], dtype=np.float32)
    probabilities = calibration.probabilities(logits)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(probabilities[0], [1, 0, 0])


def test_a_handful_of_rows_that_all_came_true_is_no_certainty() -> None:
    labels = np.arange(20) % 3
    logits = 4.0 * np.eye(3)[labels]
    calibration = fitted(logits, labels, np.arange(300) % 3)
    assert LEAST_TEMPERATURE < calibration.temperature < MOST_TEMPERATURE
    assert 0.9 < calibration.probabilities(logits).max() < 0.99


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0)),
        (np.full((30, 3), np.nan), np.zeros(30)),
        (np.full((30, 3), 0.7), np.arange(30) % 3),
        (1e-11 * np.random.default_rng(8).standard_normal((30, 3)), np.zeros(30)),
    ],
)
def test_without_anything_to_learn_from_the_temperature_stays_one(logits: Floats, labels: Ints) -> None:
    assert fitted(logits, labels, np.arange(300) % 3).temperature == 1.0


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_calibration_part_of_one_class_is_survived(label: int) -> None:
    logits = np.random.default_rng(8).standard_normal((40, 3))
    for train in (np.full(300, label), np.arange(300) % 3, np.full(300, (label + 1) % 3)):
        calibration = fitted(logits, np.full(40, label), train)
        probabilities = calibration.probabilities(logits)
        assert LEAST_TEMPERATURE <= calibration.temperature <= MOST_TEMPERATURE
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_rows_without_a_number_are_left_out() -> None:
    evidence, labels, train = drawn(500, frequencies=EVEN, strength=1.0, seed=9)
    broken = evidence.copy()
    broken[400:] = np.nan
    assert fitted(broken, labels, train).temperature == fitted(evidence[:400], labels[:400], train).temperature


def test_a_calibration_survives_its_own_json() -> None:
    evidence, labels, train = drawn(500, frequencies=UNEVEN, strength=1.0, seed=10)
    calibration = fitted(2 * evidence, labels, train)
    again = ClassCalibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again.classes == DIRECTION
    assert again.probabilities(evidence).tobytes() == calibration.probabilities(evidence).tobytes()


def test_balanced_weights_are_scikit_learns_and_average_to_one_over_the_rows() -> None:
    labels = np.random.default_rng(11).choice(3, size=500, p=UNEVEN)
    weights = class_weights(class_counts(labels, 3), "balanced")
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert weights[labels].mean() == pytest.approx(1.0)
    assert class_weights(class_counts(labels, 3), "none").tolist() == [1.0, 1.0, 1.0]


def test_a_class_that_never_occurs_weighs_one_and_moves_no_other() -> None:
    weights = class_weights(class_counts(np.array([0, 0, 0, 2]), 4), "balanced")
    np.testing.assert_allclose(weights, [4 / 6, 1.0, 4 / 2, 1.0])
    assert class_weights(np.zeros(3, dtype=np.int64), "balanced").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("measure", "number", "label", "prediction", "direction"),
    [
        ("direction", 0, "sell", -1.0, "sell"),
        ("direction", 1, "hold", 0.0, "hold"),
        ("direction", 2, "buy", 1.0, "buy"),
        ("triple_barrier", 0, "lower", -1.0, "sell"),
        ("triple_barrier", 1, "neither", 0.0, "hold"),
        ("triple_barrier", 2, "upper", 1.0, "buy"),
        ("market_regime", 0, "trend_down", 0.0, "hold"),
        ("market_regime", 1, "calm", 1.0, "hold"),
        ("market_regime", 2, "volatile", 2.0, "hold"),
        ("market_regime", 3, "trend_up", 3.0, "hold"),
    ],
)
def test_the_most_probable_class_is_stated_with_its_own_probability(
    measure: str, number: int, label: str, prediction: float, direction: str
) -> None:
    probabilities = np.full(len(CLASSES[measure]), 0.1)
    probabilities[number] = 1 - probabilities.sum() + 0.1
    found = decoded(probabilities, CLASSES[measure])
    assert (found.label, found.prediction, found.direction) == (label, prediction, direction)
    assert found.confidence == pytest.approx(probabilities[number])


def test_what_is_judged_is_what_the_figures_count() -> None:
    probabilities = np.random.default_rng(12).dirichlet(np.ones(3), size=200).round(1)
    labels = [decoded(row, DIRECTION).label for row in probabilities]
    assert labels == [DIRECTION[number] for number in stated(probabilities)]
