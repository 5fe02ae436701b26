"""Time-series forecasting: one named output for each target, or for each target and quantile.

The first target is the headline: it is compared with every baseline, traded and judged; the others keep their figures.

Legend: N windows, K outputs.
"""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target, TrainRequest
from ml_workbench_service.evaluation import baselines, signal_backtest
from ml_workbench_service.evaluation import forecast_metrics as evaluation
from ml_workbench_service.evaluation.distribution_metrics import DecodedRows, train_quantiles
from ml_workbench_service.evaluation.forecast_metrics import ForecastRows
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder, headline_column
from ml_workbench_service.learning.fitting.ensemble import seed_spread
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict, SizingChoice
from ml_workbench_service.market.significance import pinball
from ml_workbench_service.market.sizing import sides
from ml_workbench_service.market.targets import target_volatility
from ml_workbench_service.market.trading_series import Positions
from ml_workbench_service.training import position_rules
from ml_workbench_service.training.tasks.network_task import NetworkTask, Served, decided_rows, is_judged

NOT_PLAIN = (baselines.DRIFT, baselines.SEASONAL_HAR, baselines.SEASONAL_BLEND, baselines.LINEAR)
"""Left out, they leave one baseline: the random walk, or a volatility's EWMA with its season."""


class Forecasting(NetworkTask):
    """Numbers about the next bars: price changes, log returns, volatilities."""

    model_type: ClassVar[ModelType] = ModelType.TIME_SERIES

    def check(self, request: TrainRequest) -> tuple[Target, ...]:
        """As every task, quantiles hold the median, and a position is sized by a forecast of the price."""
        targets = super().check(request)
        if request.position is not None and not targets[0].needs_price:
            raise DataValidationError.at(
                "body.position",
                f"`position` needs a forecast of the price; {targets[0].name} is none: leave it out, or forecast "
                "price_change_<h> or log_return_<h> first",
            )
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

    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """The headline's direction, 0 inside the round-trip cost."""
        values_N = position_rules.headline(outputs_NK, ends, problem)
        if not problem.targets[0].needs_price:
            return np.sign(values_N)
        return sides(values_N, position_rules.dead_zones(ends, problem))

    def positions(self, predict: Predict, ends: Ints, problem: TrainingProblem) -> Ints | None:
        """The signs after costs, before any rule was chosen; None of a volatility, and of a label that no position
        earns.
        """
        if not problem.targets[0].is_traded(problem.fill):
            return None
        return np.asarray(self.decisions(predict.over(problem.windows, ends), ends, problem), dtype=np.int64)

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """1 - MSE ÷ that of no change, or of a volatility's EWMA, in units of the labels.

        With quantiles 1 - pinball loss ÷ that of the training part's own quantiles.
        """
        outputs_NK, windows = Predict(trained, None).over(problem.windows, ends), problem.windows
        labels_N, quantiles = windows.labels_RK[ends, 0].astype(np.float64), problem.quantiles
        if quantiles:
            plain_NQ = np.broadcast_to(train_quantiles(windows, quantiles), (len(ends), len(quantiles)))
            model, plain = (
                float(np.mean(pinball(labels_N, each, quantiles=quantiles)))
                for each in (outputs_NK[:, : len(quantiles)], plain_NQ)
            )
            return 1 - model / plain
        (plain_N,) = baselines.forecasts(problem, ends, without=NOT_PLAIN).values()
        plain_N = plain_N / windows.label_scale_RK[ends, 0]
        return 1 - float(np.mean((labels_N - outputs_NK[:, 0]) ** 2) / np.mean((labels_N - plain_N) ** 2))

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> ForecastDecoder:
        """Residuals of the headline."""
        windows, target = problem.windows, problem.targets[0]
        return ForecastDecoder.fit(
            outputs_NK,
            targets=problem.targets,
            names=trained.outputs,
            quantiles=problem.quantiles,
            labels_N=windows.own_labels_RK[ends, 0],
            label_scale_N=windows.label_scale_RK[ends, 0],
            volatility_N=target_volatility(windows.bar_volatility_R[ends], target),
        )

    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: Predict,
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """Errors beside the baselines' on the same rows, what the intervals held, and what the signal earned.

        Further targets stand under their own names, beside the plainest baseline.
        """
        assert isinstance(decoder, ForecastDecoder)
        rows = _rows(0, outputs_NK, ends, problem, without=baselines.left_out(trained.network))
        differentials = evaluation.forecast_differentials(rows)
        whole = evaluation.evaluate(rows, is_simulated=is_simulated, differentials=differentials)
        judged = _judged(decoder, outputs_NK, ends, problem)
        interval = judged.interval(problem.windows, ends)
        test = {**whole.test, "crps": judged.crps(), "interval_coverage": interval.coverage, **judged.pinball()}
        if rows.target.needs_price:
            test["calibration_error"] = judged.calibration_error(position_rules.dead_zones(ends, problem))
        plain, skill = dict(whole.baselines), dict(whole.skill)
        for number in range(1, len(problem.targets)):
            further = evaluation.evaluate(
                _rows(number, outputs_NK, ends, problem, without=NOT_PLAIN), is_simulated=is_simulated
            )
            name = problem.targets[number].name
            test |= {f"{name}_{key}": value for key, value in further.test.items() if key != "num_windows"}
            plain |= {f"{name}_{key}": value for key, value in further.baselines.items()}
            skill |= {f"{name}_{key}": value for key, value in further.skill.items()}
        found = whole.model_copy(
            update={
                "test": test,
                "baselines": plain,
                "skill": skill,
                "interval": interval,
                **_earned(decoder, predict, problem),
                "seeds": seed_spread(trained, lambda member: _member_figures(member, ends, problem)),
            }
        )
        return found, differentials

    def answers(self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Bools:
        """Where the interval is not too wide."""
        assert isinstance(decoder, ForecastDecoder)
        return _judged(decoder, outputs_NK, ends, problem).is_stated()

    def columns(
        self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem
    ) -> dict[str, np.ndarray]:
        """Forecast, interval, and the direction that is worth its costs with its probability."""
        assert isinstance(decoder, ForecastDecoder)
        judged = _judged(decoder, outputs_NK, ends, problem)
        _, lower_N, upper_N = judged.bounds()
        found: dict[str, np.ndarray] = {"prediction": judged.predictions_N, "lower": lower_N, "upper": upper_N}
        if problem.targets[0].needs_price:
            directions_N, confidence_N = judged.directions(position_rules.dead_zones(ends, problem))
            found |= {"direction": directions_N, "confidence": confidence_N}
        return found

    def size(self, served: Served) -> tuple[Decoder, SizingChoice | None]:
        """Chosen on the calibration part's rows that serving answers."""
        assert isinstance(served.decoder, ForecastDecoder)
        windows, answers_N = served.problem.windows, self.answered("calibration", served)
        ends, judged_N = decided_rows(windows, "calibration"), is_judged(windows, "calibration")
        return position_rules.choose(
            served.decoder, served.outputs["calibration"][answers_N], ends[answers_N], judged_N[answers_N],
            served.problem,
        )  # fmt: skip

    def held(self, served: Served, outputs_NK: Floats, ends: Ints) -> Positions | None:
        """What the decoder's rule makes of these outputs."""
        if not served.problem.targets[0].is_traded(served.problem.fill):
            return None
        assert isinstance(served.decoder, ForecastDecoder)
        return position_rules.positions(served.decoder, outputs_NK, ends, served.problem)

    def differentials(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, predict: Predict,
    ) -> list[Differentials]:  # fmt: skip
        """What the headline's comparisons are made of, to be pooled with those of other segments of time."""
        rows = _rows(0, outputs_NK, ends, problem, without=baselines.left_out(trained.network))
        return evaluation.forecast_differentials(rows)


def _earned(decoder: ForecastDecoder, predict: Predict, problem: TrainingProblem) -> dict[str, Any]:
    """Backtest and positions of every row of the test part that would have been answered, its label known or not."""
    if not problem.targets[0].is_traded(problem.fill):
        return {"backtest": None, "position": None}
    ends = problem.windows.decisions["test"]
    outputs_NK = predict.over(problem.windows, ends)
    positions_N = position_rules.positions(decoder, outputs_NK, ends, problem)
    return {
        "backtest": signal_backtest.report(positions_N, ends, problem),
        "position": position_rules.position_report(decoder, positions_N, outputs_NK, ends, problem),
    }


def _rows(
    number: int, outputs_NK: Floats, ends: Ints, problem: TrainingProblem, *, without: Collection[str]
) -> ForecastRows:
    """One target's point forecasts, with what else could have been said."""
    windows, per_target = problem.windows, max(len(problem.quantiles), 1)
    column = number * per_target + headline_column(problem.quantiles)
    naive_mae_N, naive_rmse_N = baselines.naive_errors(problem, ends, number=number)
    units_N = windows.label_scale_RK[ends, number]
    return ForecastRows(
        target=problem.targets[number],
        labels_N=windows.own_labels_RK[ends, number],
        predictions_N=outputs_NK[:, column] * units_N,
        baselines=baselines.forecasts(problem, ends, number=number, without=without),
        moments_N=windows.moments(ends),
        units_N=units_N,
        naive_mae_N=naive_mae_N,
        naive_rmse_N=naive_rmse_N,
    )


def _judged(decoder: ForecastDecoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> DecodedRows:
    windows = problem.windows
    return DecodedRows(
        decoder=decoder,
        outputs_NK=outputs_NK,
        labels_N=windows.own_labels_RK[ends, 0],
        label_scale_N=windows.label_scale_RK[ends, 0],
        volatility_N=target_volatility(windows.bar_volatility_R[ends], problem.targets[0]),
    )


def _member_figures(member: Trained, ends: Ints, problem: TrainingProblem) -> dict[str, float | None]:
    """One seed's headline alone, beside the plainest baseline."""
    outputs_NK = Predict(member, None).over(problem.windows, ends)
    alone = evaluation.evaluate(_rows(0, outputs_NK, ends, problem, without=NOT_PLAIN), is_simulated=False)
    return {**alone.test, **alone.skill}
