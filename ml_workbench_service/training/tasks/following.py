"""Meta-labelling: when to follow a primary's side. A classifier of two classes, judged by what following it earns.

A row's label is 1 where the move over the horizon paid for a round trip in the primary's direction, 0 where not, by the
rule of `direction_<h>` labels (`market/class_labels.py`); rows at which the primary has no side have none and stay
flat. What is judged is money, by the one rule for fills: the primary's side where it is followed, beside

    primary    its side at every bar
    thinned    its side at every bar, as large as the share of its sides that is followed: whoever skips a losing
               primary blindly loses less than it, and no more than this

so that skipping by chance is no skill, whether the primary earns or loses (López de Prado, "Advances in financial
machine learning", 2018, section 3.6).

Legend: N windows, K outputs, C = 2 classes.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.forecast_metrics import verdict_of
from ml_workbench_service.evaluation.policy_evidence import PRIMARY, THINNED
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies, figures, log_losses, stated
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.decoders.follow import FOLLOW, NUM_CLASSES, FollowDecoder
from ml_workbench_service.learning.fitting.ensemble import seed_spread
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market import performance
from ml_workbench_service.market.trading_series import Positions
from ml_workbench_service.training.position_rules import dead_zones
from ml_workbench_service.training.tasks.network_task import NetworkTask, Served


class Following(NetworkTask, follows=True):
    """Whether to act on another version's side."""

    model_type: ClassVar[ModelType] = ModelType.CLASSIFICATION

    def check_targets(self, targets: Sequence[Target]) -> None:
        """The primary's horizon alone."""
        if [each.measure for each in targets] != ["follow"]:
            raise DataValidationError.at(
                "body.target", "with `meta` the target is whether the primary's side pays; leave `target` out"
            )

    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """The side taken, before any temperature."""
        return _taken(outputs_NK[:, :NUM_CLASSES], outputs_NK, ends, problem)

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> FollowDecoder:
        """The temperature with the least log loss, around the primary's own decoder."""
        windows = problem.windows
        assert problem.primary is not None, "an order of this task has a primary"
        calibration = ClassCalibration.fit(
            outputs_NK[:, :NUM_CLASSES],
            windows.own_labels_RK[ends, 0],
            classes=trained.outputs[:NUM_CLASSES],
            train_labels_N=windows.own_labels_RK[windows.parts["train"], 0],
        )
        return FollowDecoder.of(calibration, problem.primary.decoding())

    def positions(self, predict: Predict, ends: Ints, problem: TrainingProblem) -> Ints | None:
        """The primary's side where following is the more probable, before any temperature; None of a label that no
        position earns.
        """
        if not problem.targets[0].is_traded(problem.fill):
            return None
        return np.asarray(self.decisions(predict.over(problem.windows, ends), ends, problem), dtype=np.int64)

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """1 - log loss ÷ that of the training part's frequencies, before any temperature."""
        windows = problem.windows
        labels_N = windows.own_labels_RK[ends, 0]
        frequencies_C = class_frequencies(windows.own_labels_RK[windows.parts["train"], 0], NUM_CLASSES)
        outputs_NK = Predict(trained, None).over(windows, ends)
        said_NC = ClassCalibration(trained.outputs[:NUM_CLASSES], frequencies_C).probabilities(
            outputs_NK[:, :NUM_CLASSES]
        )
        plain_NC = np.broadcast_to(frequencies_C, said_NC.shape)
        return 1 - float(np.mean(log_losses(labels_N, said_NC)) / np.mean(log_losses(labels_N, plain_NC)))

    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: Predict,
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """Precision and share followed, and what was earned beside the primary's own."""
        assert isinstance(decoder, FollowDecoder)
        is_traded = problem.targets[0].is_traded(problem.fill)
        rows = problem.windows.decisions["test"]
        held = _held(decoder, predict, rows, problem)
        test = _figures(decoder, outputs_NK, problem.windows.own_labels_RK[ends, 0])
        earned = {name: _earned(each, rows, problem) for name, each in held.items()} if is_traded else {}
        own = earned.pop("own", {})
        has_side_N = held[PRIMARY] != 0
        test |= own | {"share_followed": float(np.mean(held["own"][has_side_N] != 0)) if has_side_N.any() else None}
        net = own.get("net_log_return") or 0.0
        verdict, reason = verdict_of(is_simulated)
        differentials = differentials_of(held, rows, problem) if is_traded else []
        if not is_traded:
            verdict, reason = "not_applicable", "its label is not what a position earns; leave `label.start` out"
        found = Evaluation(
            test=test,
            baselines=earned,
            skill={f"net_over_{name}": net - (each["net_log_return"] or 0.0) for name, each in earned.items()},
            verdict=verdict,
            reason=reason,
            comparisons=tuple(each.comparison() for each in differentials),
            backtest=signal_backtest.report(held["own"], rows, problem) if is_traded else None,
            seeds=seed_spread(trained, lambda member: self._member_figures(member, ends, problem)),
        )
        return found, differentials

    def columns(
        self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem
    ) -> dict[str, np.ndarray]:
        """The side taken, and the classes' probabilities."""
        assert isinstance(decoder, FollowDecoder)
        said_NC = decoder.calibration.probabilities(outputs_NK[:, :NUM_CLASSES])
        taken_N = _taken(said_NC, outputs_NK, ends, problem)
        return {
            "prediction": taken_N.astype(np.float64),
            "direction": taken_N,
            "confidence": said_NC.max(axis=1),
            **{f"p_{name}": said_NC[:, number] for number, name in enumerate(decoder.calibration.classes)},
        }

    def held(self, served: Served, outputs_NK: Floats, ends: Ints) -> Positions | None:
        """The sides that records state."""
        assert isinstance(served.decoder, FollowDecoder)
        if not served.problem.targets[0].is_traded(served.problem.fill):
            return None
        said_NC = served.decoder.calibration.probabilities(outputs_NK[:, :NUM_CLASSES])
        return _taken(said_NC, outputs_NK, ends, served.problem)

    def differentials(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, predict: Predict,
    ) -> list[Differentials]:  # fmt: skip
        """What the comparisons are made of, to be pooled with those of other segments of time."""
        assert isinstance(decoder, FollowDecoder)
        if not problem.targets[0].is_traded(problem.fill):
            return []
        rows = problem.windows.decisions["test"]
        return differentials_of(_held(decoder, predict, rows, problem), rows, problem)

    def _member_figures(self, member: Trained, ends: Ints, problem: TrainingProblem) -> dict[str, float | None]:
        """One seed alone, with a temperature of its own."""
        predict, calibration = Predict(member, None), problem.windows.parts["calibration"]
        decoder = self.calibrate(member, predict.over(problem.windows, calibration), calibration, problem)
        return _figures(decoder, predict.over(problem.windows, ends), problem.windows.own_labels_RK[ends, 0])


def _sides(outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Ints:
    """(N,) the primary's, at each row's costs."""
    assert problem.primary is not None, "an order of this task has a primary"
    scale_NK = problem.windows.label_scale_RK[ends]
    return problem.primary.sides(outputs_NK[:, NUM_CLASSES:], scale_NK, dead_zones(ends, problem))


def _taken(scores_NC: Floats, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Ints:
    """(N,) the primary's side where `follow` scores highest, else 0."""
    return np.where(stated(scores_NC) == FOLLOW, _sides(outputs_NK, ends, problem), 0)


def _held(decoder: FollowDecoder, predict: Predict, rows: Ints, problem: TrainingProblem) -> dict[str, Floats]:
    """(N,) positions at every row that decides: its own, and each baseline's."""
    outputs_NK = predict.over(problem.windows, rows)
    side_N = _sides(outputs_NK, rows, problem).astype(np.float64)
    follows_N = stated(decoder.calibration.probabilities(outputs_NK[:, :NUM_CLASSES])) == FOLLOW
    has_side_N = side_N != 0
    share = float(np.mean(follows_N[has_side_N])) if has_side_N.any() else 0.0
    return {"own": np.where(follows_N, side_N, 0.0), PRIMARY: side_N, THINNED: share * side_N}


def _earned(positions_N: Floats, rows: Ints, problem: TrainingProblem) -> dict[str, float | None]:
    account = signal_backtest.realise(positions_N, rows, problem)
    daily_D = np.array(list(performance.daily_returns(account.net_M, account.settled_ms_M).values()))
    return {
        "net_log_return": float(account.net_M.sum()),
        "sharpe": performance.annual(performance.sharpe(daily_D)),
        "turnover": float(account.turnover_M.sum()),
    }


def differentials_of(held: Mapping[str, Floats], rows: Ints, problem: TrainingProblem) -> list[Differentials]:
    """Net log returns of the account at each moment beside each baseline's.

    Args:
        held: (N,) positions of `own`, `primary` and `thinned`.
        rows: the windows that decide.
    """
    own = signal_backtest.realise(held["own"], rows, problem)
    return [
        Differentials.of_returns(
            name, own.net_M, signal_backtest.realise(held[name], rows, problem).net_M, moments_T=own.settled_ms_M
        )
        for name in (PRIMARY, THINNED)
    ]


def _figures(decoder: FollowDecoder, outputs_NK: Floats, labels_N: Floats) -> dict[str, float | None]:
    """Of the rows at which the primary has a side and its move is known."""
    said_NC = decoder.calibration.probabilities(outputs_NK[:, :NUM_CLASSES])
    followed_N, paid_N = stated(said_NC) == FOLLOW, labels_N == FOLLOW
    return {
        **figures(labels_N, said_NC),
        "precision": float(np.mean(paid_N[followed_N])) if followed_N.any() else None,
        "recall": float(np.mean(followed_N[paid_N])) if paid_N.any() else None,
        "primary_precision": float(np.mean(paid_N)) if len(paid_N) else None,
        "temperature": decoder.calibration.temperature,
        "num_windows": float(len(labels_N)),
    }
