"""Classification: which of a few classes comes; one target, one calibrated probability for each class.

Legend: N windows, R rows of all symbols, C classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import BacktestReport, Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.evaluation import plausibility, signal_backtest
from ml_workbench_service.evaluation.baselines import left_out
from ml_workbench_service.evaluation.class_baselines import NESTED, class_baselines, undirected
from ml_workbench_service.evaluation.forecast_metrics import verdict_of
from ml_workbench_service.learning.calibration.class_metrics import (
    ClassBaseline,
    class_frequencies,
    figures,
    log_losses,
    skill,
    stated,
)
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.decoders.classes import ClassDecoder
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.fitting.ensemble import seed_spread
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.training.tasks.network_task import NetworkTask, Served

SIDE_OF = {"sell": -1, "lower": -1, "buy": 1, "upper": 1}
"""The side of the market that a class speaks for; the others for none. A regime names the state of the market up to its
bar, most of which has happened when it is forecast: its records say `hold`, so nothing is traded."""


class Classification(NetworkTask):
    """The next move's direction, the first barrier touched, the regime to come."""

    model_type: ClassVar[ModelType] = ModelType.CLASSIFICATION

    def check_targets(self, targets: Sequence[Target]) -> None:
        """One, and it has classes."""
        if not targets:
            raise DataValidationError.at(
                "body.target", "classification needs a target, such as direction_1h", code="missing"
            )
        if len(targets) > 1:
            raise DataValidationError.at(
                "body.target", "classification learns one target at a time; train a model for each"
            )
        if not targets[0].classes:
            raise DataValidationError.at(
                "body.target",
                f"{targets[0].name} is a number, not a class; send model_type time_series, or direction_<h>, "
                "triple_barrier_<h> or market_regime",
            )

    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """The most probable class, before any temperature."""
        return stated(outputs_NK)

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> ClassDecoder:
        """The temperature with the least log loss."""
        windows = problem.windows
        return ClassDecoder(
            ClassCalibration.fit(
                outputs_NK,
                windows.own_labels_RK[ends, 0],
                classes=trained.outputs,
                train_labels_N=windows.own_labels_RK[windows.parts["train"], 0],
            )
        )

    def positions(self, predict: Predict, ends: Ints, problem: TrainingProblem) -> Ints | None:
        """Short where a fall is the most probable class, before any temperature, long where a rise is, else flat.

        None of a regime, which speaks for no side, and of a label that no position earns.
        """
        if not problem.targets[0].is_traded(problem.fill):
            return None
        return _positions(predict.over(problem.windows, ends), problem)

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """1 - log loss ÷ that of the training part's frequencies, before any temperature."""
        windows, (target,) = problem.windows, problem.targets
        labels_N = windows.own_labels_RK[ends, 0]
        frequencies_C = class_frequencies(windows.own_labels_RK[windows.parts["train"], 0], len(target.classes))
        calibration = ClassCalibration(trained.outputs, frequencies_C)
        said_NC = calibration.probabilities(Predict(trained, None).over(problem.windows, ends))
        plain_NC = np.broadcast_to(frequencies_C, said_NC.shape)
        return 1 - float(np.mean(log_losses(labels_N, said_NC)) / np.mean(log_losses(labels_N, plain_NC)))

    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: Predict,
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """Every figure beside each baseline's on the same rows, Brier scores compared, and what the signal earned."""
        assert isinstance(decoder, ClassDecoder)
        labels_N = problem.windows.own_labels_RK[ends, 0]
        said_NC = decoder.calibration.probabilities(outputs_NK)
        plain = _plain(said_NC, trained, ends, problem)
        test = _figures(decoder, said_NC, labels_N)
        baselines = {each.name: each.figures(labels_N) for each in plain}
        differentials = _differentials(said_NC, ends, problem, baselines=plain)
        verdict, reason = verdict_of(is_simulated)
        found = Evaluation(
            test=test,
            baselines=baselines,
            skill={
                key: value for name, each in baselines.items() for key, value in skill(test, each, name=name).items()
            },
            verdict=verdict,
            reason=reason,
            comparisons=tuple(each.comparison() for each in differentials),
            lower_bounds=self._lower_bounds(said_NC, ends, problem),
            backtest=_backtest(decoder, predict, problem),
            seeds=seed_spread(trained, lambda member: self._member_figures(member, ends, problem)),
        )
        return found, differentials

    def said(self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> dict[str, np.ndarray]:
        """The most probable class as records state it, its direction and probability, and every class's."""
        assert isinstance(decoder, ClassDecoder)
        classes, said_NC = problem.targets[0].classes, decoder.calibration.probabilities(outputs_NK)
        numbers_N, sides_C = stated(said_NC), _sides(problem)
        values_C = sides_C if sides_C.any() else np.arange(len(classes))
        return {
            "prediction": values_C[numbers_N],
            "direction": sides_C[numbers_N],
            "confidence": said_NC.max(axis=1),
            **{f"p_{name}": said_NC[:, number] for number, name in enumerate(classes)},
        }

    def held(self, served: Served, outputs_NK: Floats, ends: Ints) -> Ints | None:
        """The sides of the classes that records state."""
        assert isinstance(served.decoder, ClassDecoder)
        return _positions(served.decoder.calibration.probabilities(outputs_NK), served.problem)

    def differentials(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, predict: Predict,
    ) -> list[Differentials]:  # fmt: skip
        """What the comparisons are made of, to be pooled with those of other segments of time."""
        assert isinstance(decoder, ClassDecoder)
        said_NC = decoder.calibration.probabilities(outputs_NK)
        plain = _plain(said_NC, trained, ends, problem)
        return _differentials(said_NC, ends, problem, baselines=plain)

    def _lower_bounds(self, said_NC: Floats, ends: Ints, problem: TrainingProblem) -> dict[str, float]:
        """Of the share of sides that were right, among rows where one was stated and one came."""
        sides_C, windows = _sides(problem), problem.windows
        stated_N = sides_C[stated(said_NC)]
        came_N = sides_C[windows.own_labels_RK[ends, 0].astype(np.int64)]
        return plausibility.of_sides(stated_N, came_N, windows.moments(ends), horizon=problem.targets[0].horizon)

    def _member_figures(self, member: Trained, ends: Ints, problem: TrainingProblem) -> dict[str, float | None]:
        """One seed alone, with a temperature of its own."""
        predict, calibration = Predict(member, None), problem.windows.parts["calibration"]
        decoder = self.calibrate(member, predict.over(problem.windows, calibration), calibration, problem)
        said_NC = decoder.calibration.probabilities(predict.over(problem.windows, ends))
        return _figures(decoder, said_NC, problem.windows.own_labels_RK[ends, 0])


def _plain(said_NC: Floats, trained: Trained, ends: Ints, problem: TrainingProblem) -> list[ClassBaseline]:
    """The baselines of these rows; where classes have sides, the model's own answers without theirs among them."""
    found = class_baselines(problem, ends, without=left_out(trained.network))
    if _sides(problem).any():
        windows = problem.windows
        found.append(undirected(said_NC, windows.own_labels_RK[windows.parts["train"], 0]))
    return found


def _sides(problem: TrainingProblem) -> Ints:
    """(C,) of each class."""
    return np.array([SIDE_OF.get(name, 0) for name in problem.targets[0].classes], dtype=np.int64)


def _positions(scores_NC: Floats, problem: TrainingProblem) -> Ints | None:
    """The side of each row's most probable class; None where no class speaks for one."""
    sides_C = _sides(problem)
    return np.asarray(sides_C[stated(scores_NC)]) if sides_C.any() else None


def _backtest(decoder: ClassDecoder, predict: Predict, problem: TrainingProblem) -> BacktestReport | None:
    """Of what records state: the class that is the most probable one once the temperature has spoken.

    Every row of the test part that would have been answered decides, whether its label is known or not.
    """
    if not _sides(problem).any() or not problem.targets[0].is_traded(problem.fill):
        return None
    ends = problem.windows.decisions["test"]
    positions = _positions(decoder.calibration.probabilities(predict.over(problem.windows, ends)), problem)
    return None if positions is None else signal_backtest.report(positions, ends, problem)


def _figures(decoder: ClassDecoder, said_NC: Floats, labels_N: Floats) -> dict[str, float | None]:
    found = figures(labels_N, said_NC)
    return {**found, "temperature": decoder.calibration.temperature, "num_windows": float(len(labels_N))}


def _differentials(
    said_NC: Floats, ends: Ints, problem: TrainingProblem, *, baselines: Sequence[ClassBaseline]
) -> list[Differentials]:
    windows, (target,) = problem.windows, problem.targets
    outcomes_NC = np.eye(len(target.classes))[windows.own_labels_RK[ends, 0].astype(np.int64)]
    return [
        Differentials.of_squares(
            each.name, outcomes_NC, model=said_NC, baseline=each.probabilities_NC, moments_N=windows.moments(ends),
            horizon=target.reach, is_nested=each.name in NESTED,
        )
        for each in baselines
    ]  # fmt: skip
