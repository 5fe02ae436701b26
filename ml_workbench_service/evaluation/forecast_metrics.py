"""Forecast metrics of the test part beside the baselines' on the same rows, and the comparisons a verdict rests on.

Against the random walk (Meese and Rogoff, Journal of International Economics 14, 1983): a price target's best plain
forecast is "no change", a volatility's is built on its own past. Here everything is measured and nothing decided: the
rule that turns comparisons into a verdict is `evaluation/verdict.py`'s; until it has spoken an evaluation says
`not_judged`, or `not_applicable` on simulated data.

Legend: N rows of all symbols, C classes, T moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.evaluation import Evaluation, IntervalReport, Verdict
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.evaluation import plausibility
from ml_workbench_service.evaluation.baselines import NESTED, SEASONAL_BLEND
from ml_workbench_service.learning.interfaces.differentials import Differentials, relative_skill
from ml_workbench_service.market.significance import scaled_errors, wilson

TERCILES = ("low", "middle", "high")
SIMULATED = "the prices are simulated without drift: whatever a model finds in them is chance"


@dataclass(frozen=True)
class ForecastRows:
    """One target's forecasts of some rows, what happened, and what else could have been said.

    Attributes:
        labels_N: realised values, in the target's own unit.
        predictions_N: forecasts, by the network that serves single predictions.
        baselines: each baseline's forecasts.
        moments_N: when each row is known, ms; symbols at one moment are one observation.
        units_N: the typical size of each row's label: losses of several symbols are compared in it, so that the
            most volatile one does not decide alone.
        naive_mae_N: the naive forecast's errors on the training part, of each row's symbol; `naive_rmse_N` likewise.
    """

    target: Target
    labels_N: Floats
    predictions_N: Floats
    baselines: Mapping[str, Floats]
    moments_N: Ints
    units_N: Floats
    naive_mae_N: Floats
    naive_rmse_N: Floats


def errors(labels_N: Floats, predictions_N: Floats) -> dict[str, float]:
    """Mean squared and absolute error, their root, in the target's own unit."""
    residuals = labels_N - predictions_N
    mse = float(np.mean(residuals**2))
    return {"mse": mse, "rmse": float(np.sqrt(mse)), "mae": float(np.mean(np.abs(residuals)))}


def direction_accuracy(labels_N: Floats, predictions_N: Floats) -> float | None:
    """Share of the rows that moved on which the forecast had the sign right; a forecast of exactly zero is wrong."""
    moved = labels_N != 0
    if not moved.any():
        return None
    return float(np.mean(np.sign(labels_N[moved]) == np.sign(predictions_N[moved])))


def information_coefficient(labels_N: Floats, predictions_N: Floats) -> float | None:
    """Pearson correlation of forecast and outcome; None where either is constant."""
    if np.ptp(labels_N) == 0 or np.ptp(predictions_N) == 0:
        return None
    return float(np.corrcoef(labels_N, predictions_N)[0, 1])


def evaluate(
    rows: ForecastRows, *, is_simulated: bool, differentials: Sequence[Differentials] | None = None
) -> Evaluation:
    """The evaluation of one target's point forecasts: errors, directions, and a comparison with each baseline.

    `differentials` are made of the rows unless they were before.
    """
    test: dict[str, float | None] = dict(errors(rows.labels_N, rows.predictions_N))
    test |= scaled_errors(
        rows.labels_N - rows.predictions_N, naive_mae_N=rows.naive_mae_N, naive_rmse_N=rows.naive_rmse_N
    )
    if rows.target.needs_price:
        test |= _directions(rows)
    test["information_coefficient"] = information_coefficient(rows.labels_N, rows.predictions_N)
    test["num_windows"] = float(len(rows.labels_N))
    baselines: dict[str, dict[str, float | None]] = {
        name: dict(errors(rows.labels_N, forecast_N)) for name, forecast_N in rows.baselines.items()
    }
    verdict, reason = verdict_of(is_simulated)
    if differentials is None:
        differentials = forecast_differentials(rows)
    return Evaluation(
        test=test,
        baselines=baselines,
        skill={f"mse_against_{name}": relative_skill(test["mse"], each["mse"]) for name, each in baselines.items()},
        verdict=verdict,
        reason=reason,
        comparisons=tuple(each.comparison() for each in differentials),
        lower_bounds=_lower_bounds(rows, differentials, test),
    )


def _lower_bounds(
    rows: ForecastRows, differentials: Sequence[Differentials], test: Mapping[str, float | None]
) -> dict[str, float]:
    """Of the figures that have a band."""
    if not rows.target.needs_price:
        return plausibility.of_volatilities(differentials, blend=SEASONAL_BLEND)
    found = plausibility.of_prices(
        rows.labels_N / rows.units_N, rows.predictions_N / rows.units_N, rows.moments_N, differentials,
        horizon=rows.target.horizon,
    )  # fmt: skip
    accuracy = test.get("direction_accuracy_low")
    return found if accuracy is None else {**found, "direction_accuracy": accuracy}


def forecast_differentials(rows: ForecastRows) -> list[Differentials]:
    """Losses beside each baseline's, in units of the labels: squared errors, and QLIKE of a volatility."""
    labels_N, model_N = rows.labels_N / rows.units_N, rows.predictions_N / rows.units_N
    return [
        Differentials.of_squares(
            name, labels_N, model=model_N, baseline=forecast_N / rows.units_N, moments_N=rows.moments_N,
            horizon=rows.target.reach, is_nested=name in NESTED,
        )
        if rows.target.needs_price
        else Differentials.of_volatilities(
            name, labels_N, model=model_N, baseline=forecast_N / rows.units_N, moments_N=rows.moments_N,
            horizon=rows.target.reach,
        )
        for name, forecast_N in rows.baselines.items()
    ]  # fmt: skip


def interval_report(
    labels_N: Floats, lower_N: Floats, upper_N: Floats, *, level: float, terciles_N: Ints
) -> IntervalReport:
    """Coverage overall and by tercile of a volatility that is not the interval's own (-1: unknown)."""
    covered_N: Bools = (lower_N <= labels_N) & (labels_N <= upper_N)
    return IntervalReport(
        level=level,
        coverage=float(np.mean(covered_N)),
        coverage_by_tercile={
            name: float(np.mean(covered_N[terciles_N == number])) if (terciles_N == number).any() else None
            for number, name in enumerate(TERCILES)
        },
        mean_width=float(np.mean(upper_N - lower_N)),
    )


def verdict_of(is_simulated: bool) -> tuple[Verdict, str]:
    """What may be said before the rule is applied, with the sentence that says why."""
    if is_simulated:
        return "not_applicable", SIMULATED
    return "not_judged", "measured beside its baselines; the rule that makes a verdict of it has not been applied"


def headline(evaluation: Evaluation) -> dict[str, float | None]:
    """The card's `metrics`: the test part's errors, `accuracy` (of direction), and the baseline's error beside them."""
    metrics = dict(evaluation.test)
    if "direction_accuracy" in metrics:
        metrics["accuracy"] = metrics["direction_accuracy"]
    for name, figures in evaluation.baselines.items():
        metrics |= {f"{name}_{figure}": value for figure, value in figures.items() if figure != "rmse"}
    for name, value in evaluation.skill.items():
        metrics[f"skill_{name}"] = value
    return metrics


def _directions(rows: ForecastRows) -> dict[str, float | None]:
    """Accuracy of the sign with Wilson's interval, by as many trials as there are independent moments."""
    accuracy = direction_accuracy(rows.labels_N, rows.predictions_N)
    ups = direction_accuracy(rows.labels_N, np.ones_like(rows.labels_N))
    if accuracy is None or ups is None:
        names = ("direction_accuracy", "direction_accuracy_low", "direction_accuracy_high", "majority_direction")
        return dict.fromkeys(names)
    num_moments = len(np.unique(rows.moments_N[rows.labels_N != 0]))
    low, high = wilson(accuracy, num_moments / rows.target.horizon)
    return {
        "direction_accuracy": accuracy,
        "direction_accuracy_low": low,
        "direction_accuracy_high": high,
        "majority_direction": max(ups, 1 - ups),
    }
