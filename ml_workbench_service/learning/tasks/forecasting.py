"""`Forecasting`: time series. One named output for each target, or for each target and quantile.

Legend: N windows, K outputs.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target, TrainRequest
from ml_workbench_service.learning import evaluation
from ml_workbench_service.learning.family import Assignment, Trained
from ml_workbench_service.learning.judge import Judge
from ml_workbench_service.learning.judges.forecast import ForecastJudge, headline_column
from ml_workbench_service.learning.task import Predict, Task
from ml_workbench_service.learning.windows import Windows
from ml_workbench_service.market.class_labels import break_even
from ml_workbench_service.market.targets import target_volatility


class Forecasting(Task):
    """Numbers about the next bars: price changes, log returns, volatilities."""

    model_type: ClassVar[ModelType] = ModelType.TIME_SERIES

    def check(self, request: TrainRequest) -> tuple[Target, ...]:
        """As every task, and quantiles hold the median."""
        targets = super().check(request)
        if request.quantiles is not None and 0.5 not in request.quantiles:
            raise DataValidationError.at(
                "body.quantiles", "quantiles need 0.5 among them: the median is the prediction; add it"
            )
        return targets

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Numbers only, and at least one."""
        if not targets:
            raise DataValidationError.at(
                "body.target", "time_series needs a target, such as price_change_1h", code="missing"
            )
        for target in targets:
            if target.classes:
                raise DataValidationError.at(
                    "body.target",
                    f"{target.name} is a class, not a number; send model_type classification, or a target such as "
                    "price_change_1h",
                )

    def decisions(self, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> np.ndarray:
        """The headline's direction, 0 inside the round-trip cost."""
        target, windows = assignment.targets[0], assignment.windows
        values_N = outputs_NK[:, headline_column(assignment.quantiles)]
        if not target.needs_price:
            return np.sign(values_N)
        dead_zones_N = np.empty(len(ends))
        for number, symbol in enumerate(windows.symbols):
            here = windows.symbol_R[ends] == number
            rows = ends[here]
            dead_zones_N[here] = break_even(
                assignment.costs[symbol], symbol, windows.close_R[rows], windows.spread_R[rows]
            )
        dead_zones_N /= windows.label_scale_RK[ends, 0]
        return np.where(np.abs(values_N) <= dead_zones_N, 0, np.sign(values_N))

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> ForecastJudge:
        """Residuals of the headline."""
        windows, target = assignment.windows, assignment.targets[0]
        return ForecastJudge.fit(
            outputs_NK,
            targets=assignment.targets,
            names=trained.outputs,
            quantiles=assignment.quantiles,
            labels_N=windows.own_labels_RK[ends, 0],
            label_scale_N=windows.label_scale_RK[ends, 0],
            volatility_N=target_volatility(windows.bar_volatility_R[ends], target),
        )

    def evaluate(
        self, trained: Trained, judge: Judge, outputs_NK: Floats, ends: Ints, assignment: Assignment,
        *, is_simulated: bool, predict: Predict,
    ) -> Evaluation:  # fmt: skip
        """Errors beside the baseline's on the same rows; further targets under their own names."""
        assert isinstance(judge, ForecastJudge)
        windows, target = assignment.windows, assignment.targets[0]
        labels_N, scale_N = windows.own_labels_RK[ends, 0], windows.label_scale_RK[ends, 0]
        volatility_N = target_volatility(windows.bar_volatility_R[ends], target)
        whole = evaluation.evaluate(
            target,
            labels_N=labels_N,
            predictions_N=outputs_NK[:, headline_column(assignment.quantiles)] * scale_N,
            volatility_N=volatility_N,
            covered_N=judge.covers(outputs_NK, labels_N, label_scale_N=scale_N, volatility_N=volatility_N),
            is_simulated=is_simulated,
        )
        test, baselines, skill = dict(whole.test), dict(whole.baselines), dict(whole.skill)
        if assignment.quantiles:
            test |= _pinball(outputs_NK[:, : len(assignment.quantiles)], labels_N / scale_N, assignment.quantiles)
        for number in range(1, len(assignment.targets)):
            further = _further(number, outputs_NK, ends, windows, assignment, is_simulated=is_simulated)
            name = assignment.targets[number].name
            test |= {f"{name}_{key}": value for key, value in further.test.items() if key != "num_windows"}
            baselines |= {f"{name}_{key}": value for key, value in further.baselines.items()}
            skill |= {f"{name}_{key}": value for key, value in further.skill.items()}
        return whole.model_copy(update={"test": test, "baselines": baselines, "skill": skill})


def _further(
    number: int, outputs_NK: Floats, ends: Ints, windows: Windows, assignment: Assignment, *, is_simulated: bool
) -> Evaluation:
    """The figures of one more target, without an interval."""
    target, per_target = assignment.targets[number], max(len(assignment.quantiles), 1)
    column = number * per_target + headline_column(assignment.quantiles)
    return evaluation.evaluate(
        target,
        labels_N=windows.own_labels_RK[ends, number],
        predictions_N=outputs_NK[:, column] * windows.label_scale_RK[ends, number],
        volatility_N=target_volatility(windows.bar_volatility_R[ends], target),
        covered_N=None,
        is_simulated=is_simulated,
    )


def _pinball(outputs_NQ: Floats, labels_N: Floats, quantiles: Sequence[float]) -> dict[str, float | None]:
    """Mean pinball loss over all quantiles, in units of the label scale, and the share below each quantile."""
    beyond_NQ = labels_N[:, None] - outputs_NQ
    share_Q = np.array(quantiles)
    figures: dict[str, float | None] = {
        "pinball_loss": float(np.maximum(share_Q * beyond_NQ, (share_Q - 1) * beyond_NQ).mean())
    }
    for quantile, below in zip(quantiles, (beyond_NQ < 0).mean(axis=0), strict=True):
        figures[f"share_below_q{quantile:g}"] = float(below)
    return figures
