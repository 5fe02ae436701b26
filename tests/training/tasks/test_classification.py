"""The task of classification: which targets it takes, what it measures, and how its decoder answers."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import CLASSES, TrainRequest, parse_target
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.decoders.classes import ClassDecoder
from ml_workbench_service.learning.decoders.decoder import Decoder, DecodingContext
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict, task_for
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.testing.probes.classification import ClassificationProbe
from ml_workbench_service.training import tasks as tasks  # registers them
from ml_workbench_service.training.tasks.classification import Classification

CONTEXT = DecodingContext(label_scale_K=np.ones(1), bar_volatility=0.001, dead_zone=0.0)
NO_NETWORK: Any = None


def request(target: Any) -> TrainRequest:
    return TrainRequest.model_validate(
        {
            "name": "Classes", "model_type": "classification", "features": ["rsi_14"], "target": target,
            "symbols": ["EUR/USD"], "start_date": "2023-01-01T00:00:00Z", "end_date": "2025-01-01T00:00:00Z",
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", ["direction_1h", "triple_barrier_24", "market_regime", "market_regime_5d"])
def test_a_target_with_classes_is_taken(name: str) -> None:
    (target,) = task_for(request(name).model_type).check(request(name))
    assert target.classes == CLASSES[target.measure]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "needs a target"),
        ("price_change_1h", "send model_type time_series"),
        (["direction_1h", "direction_2h"], "one target at a time"),
    ],
)
def test_other_targets_are_refused_with_what_to_send(target: Any, message: str) -> None:
    with pytest.raises(DataValidationError, match=message) as caught:
        Classification().check(request(target))
    assert caught.value.details["errors"][0]["path"] == "body.target"


def decoder_of(measure: str, temperature: float = 1.0) -> ClassDecoder:
    classes = CLASSES[measure]
    return ClassDecoder(ClassCalibration(classes, np.full(len(classes), 1 / len(classes)), temperature))


def test_a_judgement_names_the_class_and_every_probability() -> None:
    judged = decoder_of("direction").decode(np.log(np.array([0.2, 0.1, 0.7], dtype=np.float32)), CONTEXT)
    assert (judged.prediction, judged.label, judged.direction) == (1.0, "buy", "buy")
    assert judged.outputs == pytest.approx({"sell": 0.2, "hold": 0.1, "buy": 0.7})
    assert judged.confidence == judged.outputs["buy"]
    assert judged.interval is None
    assert judged.strength == pytest.approx(0.5 * np.sqrt(np.pi / 2))


def test_strength_is_that_of_a_forecast_with_the_same_odds() -> None:
    """A standard normal move with mean 0.1 is up in 53.98 % of cases and down in 46.02 %."""
    judged = decoder_of("triple_barrier").decode(np.log(np.array([0.4602, 1e-9, 0.5398], dtype=np.float32)), CONTEXT)
    assert judged.strength == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("sure", [0, 1, 2, 3])
def test_a_regime_leans_to_no_side(sure: int) -> None:
    judged = decoder_of("market_regime").decode(np.eye(4, dtype=np.float32)[sure] * 50, CONTEXT)
    assert (judged.prediction, judged.label, judged.direction) == (float(sure), CLASSES["market_regime"][sure], "hold")
    assert judged.strength == 0.0


def test_certainty_has_a_strength_of_one_at_most() -> None:
    assert decoder_of("direction").decode(np.array([0.0, 0.0, 90.0], dtype=np.float32), CONTEXT).strength == 1.0


def test_a_judge_survives_its_own_json() -> None:
    decoder = decoder_of("direction", temperature=2.5)
    plain = json.loads(json.dumps(decoder.to_json()))
    again = Decoder.known[plain["kind"]].from_json(plain, NO_NETWORK)
    outputs = np.array([0.3, -0.2, 0.9], dtype=np.float32)
    assert again.decode(outputs, CONTEXT) == decoder.decode(outputs, CONTEXT)


def trained(problem: TrainingProblem) -> Trained:
    """Only its names are asked for: the outputs are made up here."""
    return Trained(
        outputs=problem.targets[0].classes, weights={}, network={}, graph=dict, predict=NO_NETWORK, epochs_run=1,
        best_epoch=1,
    )  # fmt: skip


class Told(Predict):
    """A network that has said these outputs at every row."""

    def __init__(self, outputs_RK: np.ndarray) -> None:
        super().__init__(None, None)
        self._outputs_RK = outputs_RK

    def over(self, windows: Windows, ends: Ints) -> Floats:
        """Those of these windows."""
        return self._outputs_RK[ends]


def evaluated(problem: TrainingProblem, logits_RC: np.ndarray) -> tuple[ClassDecoder, Any]:
    task, model, windows = Classification(), trained(problem), problem.windows
    calibrate, test = windows.parts["calibration"], windows.parts["test"]
    decoder = task.calibrate(model, logits_RC[calibrate], calibrate, problem)
    predict = Told(logits_RC)
    return decoder, task.evaluate(
        model, decoder, logits_RC[test], test, problem, is_simulated=False, predict=predict
    )  # fmt: skip


def test_the_judge_knows_how_frequent_the_classes_were_in_the_training_part() -> None:
    probe = ClassificationProbe()
    problem = probe.problem(probe.windows())
    train = problem.windows.parts["train"]
    decoder, _ = evaluated(problem, np.zeros((len(problem.windows.rows_RF), 3)))
    frequencies = class_frequencies(problem.windows.own_labels_RK[train, 0], 3)
    assert decoder.calibration.frequencies_C.tolist() == frequencies.tolist()


def test_outputs_without_signal_end_at_the_baseline() -> None:
    probe = ClassificationProbe()
    problem = probe.problem(probe.windows())
    noise = 3 * np.random.default_rng(1).standard_normal((len(problem.windows.rows_RF), 3))
    decoder, found = evaluated(problem, noise)
    assert decoder.calibration.temperature > 50
    assert abs(found.skill["log_loss_against_majority_class"]) < 0.01
    assert found.test["num_windows"] == len(problem.windows.parts["test"])
    assert set(found.baselines) == {"majority_class", "linear", "undirected"}
    assert found.verdict == "not_judged"


def right_outputs(windows: Windows) -> np.ndarray:
    return 2.0 * np.eye(3)[np.nan_to_num(windows.own_labels_RK[:, 0]).astype(int)]


def test_a_signal_is_seen_and_beats_the_majority() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    _, found = evaluated(probe.problem(windows), right_outputs(windows))
    assert found.test["accuracy"] == found.test["f1_score"] == found.test["balanced_accuracy"] == 1.0
    assert found.skill["log_loss_against_majority_class"] > 0.9
    assert found.baselines["majority_class"]["accuracy"] < 0.5


def test_every_baseline_is_compared_and_the_side_taken_is_traded() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    _, found = evaluated(probe.problem(windows), right_outputs(windows))
    names = ["majority_class", "linear", "undirected"]
    assert [each.baseline for each in found.comparisons] == names
    for each in found.comparisons:
        assert each.loss == "brier"
        assert each.decisive.p_value is not None
        assert each.decisive.p_value < 1e-6
        assert each.decisive.num_moments == len(windows.parts["test"])
    assert found.backtest is not None
    assert found.backtest.hit_rate == 1.0
    assert found.backtest.net_log_return > 0


def test_outputs_without_signal_are_not_significant() -> None:
    probe = ClassificationProbe()
    problem = probe.problem(probe.windows())
    noise = np.random.default_rng(1).standard_normal((len(problem.windows.rows_RF), 3))
    _, found = evaluated(problem, noise)
    assert max(each.decisive.p_value or 1.0 for each in found.comparisons) > 0.025


@pytest.mark.parametrize(
    ("target", "sides"),
    [("direction_1h", [-1, 0, 1]), ("triple_barrier_24", [-1, 0, 1]), ("market_regime", None)],
)
def test_a_class_stands_for_a_side_of_the_market_and_a_regime_for_none(target: str, sides: list[int] | None) -> None:
    probe = ClassificationProbe()
    windows = probe.windows(num=700)
    problem = replace(probe.problem(windows), targets=(parse_target(target),))
    num_classes = len(problem.targets[0].classes)

    class Answers:
        def predict(self, rows_NTF: np.ndarray, positions_N: None) -> RawPrediction:
            return RawPrediction(np.eye(num_classes, dtype=np.float32)[: len(rows_NTF)], rows_NTF[:, -1])

    ends = windows.parts["test"][:num_classes]
    found = Classification().positions(Predict(Answers(), None), ends, problem)
    assert (None if found is None else found.tolist()) == sides


def test_who_knows_how_far_the_price_goes_but_not_where_beats_everything_but_itself_without_a_side() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    chance = np.random.default_rng(3)
    labels = np.where(chance.random(len(windows.rows_RF)) < 0.5, 1.0, 2.0 * (chance.random(len(windows.rows_RF)) < 0.5))
    windows = replace(windows, own_labels_RK=labels[:, None], labels_RK=labels[:, None].astype(np.float32))
    size = np.where(labels == 1.0, 1.5, -1.5) + chance.standard_normal(len(labels))
    knows_size = np.column_stack([np.zeros(len(labels)), size, np.zeros(len(labels))])
    knows_size[:, 2] += 0.5 * chance.standard_normal(len(labels))
    p_values = {
        each.baseline: each.decisive.p_value for each in evaluated(probe.problem(windows), knows_size)[1].comparisons
    }
    assert max(p_values[name] for name in ("majority_class", "linear")) < 1e-6
    assert p_values["undirected"] > 0.025
    knows_side = knows_size + 0.5 * (np.eye(3)[labels.astype(int)] - 1 / 3)
    _, found = evaluated(probe.problem(windows), knows_side)
    assert max(each.decisive.p_value for each in found.comparisons) < 1e-6


def test_the_backtest_trades_the_classes_that_records_state() -> None:
    probe = ClassificationProbe()
    problem = probe.problem(probe.windows())
    windows, test = problem.windows, problem.windows.parts["test"]
    labels = np.nan_to_num(windows.own_labels_RK[:, 0]).astype(int)
    frequencies = class_frequencies(windows.own_labels_RK[windows.parts["train"], 0], 3)
    loud = 1.5 * np.random.default_rng(2).standard_normal((len(labels), 3)) + np.eye(3)[labels]
    outputs = np.log(frequencies) + loud
    decoder, found = evaluated(problem, outputs)
    decided = windows.decisions["test"]
    assert len(decided) > len(test), "the newest rows are decided on, though their label is not known"
    said = np.array([decoder.decode(row.astype(np.float32), CONTEXT).prediction for row in outputs[decided]])
    assert (said != outputs[decided].argmax(axis=1) - 1.0).any(), "cooling changes what is stated"
    assert found.backtest == signal_backtest.report(said.astype(np.int64), decided, problem)


def test_a_trial_is_ranked_by_the_log_loss_that_is_gone() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    problem, stop = probe.problem(windows), windows.parts["validation"]
    frequencies = class_frequencies(windows.own_labels_RK[windows.parts["train"], 0], 3)

    def score(logits_NC: np.ndarray) -> float:
        answers = iter(np.array_split(logits_NC.astype(np.float32), 1))
        model = replace(trained(problem), predict=lambda rows, _=None: RawPrediction(next(answers), rows[:, -1]))
        return Classification().score(model, stop, problem)

    nothing = np.tile(np.log(frequencies), (len(stop), 1))
    assert score(nothing) == pytest.approx(0.0, abs=1e-6)
    assert score(nothing + right_outputs(windows)[stop]) > 0.5
    assert score(nothing - right_outputs(windows)[stop]) < -0.5


def test_several_seeds_are_each_measured_alone_and_their_mean_is_judged() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    problem = probe.problem(windows)
    right = right_outputs(windows)

    def member(strength: float) -> Trained:
        def predict(rows_NTF: np.ndarray, _: None = None) -> RawPrediction:
            part = "calibration" if len(rows_NTF) == len(windows.parts["calibration"]) else "test"
            return RawPrediction((strength * right[windows.parts[part]]).astype(np.float32), rows_NTF[:, -1])

        return replace(trained(problem), predict=predict)

    both = replace(trained(problem), members=(member(1.0), member(0.0)))
    test = windows.parts["test"]
    decoder = Classification().calibrate(
        both, right[windows.parts["calibration"]], windows.parts["calibration"], problem
    )
    found = Classification().evaluate(
        both, decoder, right[test], test, problem, is_simulated=False, predict=Told(right)
    )
    assert found.seeds is not None
    assert found.test["accuracy"] == found.seeds["accuracy"].maximum == 1.0
    assert found.seeds["accuracy"].minimum < 0.5
    assert found.seeds["accuracy"].std > 0


def test_a_regime_stands_beside_persistence_by_each_symbols_own_rule() -> None:
    probe = ClassificationProbe()
    windows = probe.windows()
    classes_R, rules = np.full(len(windows.close_R), np.nan), {}
    for number, symbol in enumerate(windows.symbols):
        own = windows.symbol_R == number
        trend, volatility = regime_features(windows.close_R[own], windows.runs_R[own])
        rules[symbol] = RegimeRule.fit(trend, volatility)
        classes_R[own] = rules[symbol].classify(trend, volatility)
    nexts_RK = np.nan_to_num(np.append(classes_R[1:], 0.0))[:, None]
    problem = replace(
        probe.problem(windows),
        windows=replace(windows, own_labels_RK=nexts_RK),
        targets=(parse_target("market_regime"),),
        regimes=rules,
    )
    _, found = evaluated(problem, np.zeros((len(classes_R), 4)))
    test = windows.parts["test"]
    stays = float(np.mean(nexts_RK[test, 0] == classes_R[test]))
    assert stays > 0.7
    assert found.baselines["persistence"]["accuracy"] == pytest.approx(stays)
    assert found.skill["log_loss_against_persistence"] < -0.5 < found.skill["log_loss_against_majority_class"]
    assert [each.baseline for each in found.comparisons] == [
        "majority_class",
        "persistence",
        "present_statistics",
        "linear",
    ]
