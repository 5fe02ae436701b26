"""Figures of the test part, beside the baselines' on the same rows.

Against the random walk (Meese and Rogoff, Journal of International Economics 14, 1983): a price target's best plain
forecast is "no change", a volatility's is its ex-ante EWMA estimate. The full verdict with its tests of significance
is not part of this file: until then a card says `not_judged`, or `not_applicable` on simulated data.
"""

from collections.abc import Mapping

import numpy as np

from ml_workbench_service.contracts.evaluation import Evaluation, Verdict
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.training import Target

RANDOM_WALK = "random_walk"
EWMA = "ewma"


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
    target: Target,
    *,
    labels_N: Floats,
    predictions_N: Floats,
    volatility_N: Floats,
    covered_N: np.ndarray | None,
    is_simulated: bool,
) -> Evaluation:
    """The card's evaluation block from the test part's rows of all symbols.

    Args:
        target: what was forecast.
        labels_N: realised values.
        predictions_N: forecasts, by the network that serves single predictions.
        volatility_N: ex-ante volatility of the target, NaN where unknown.
        covered_N: whether the interval held the realised value; None where there is no interval.
        is_simulated: whether the prices are simulated.
    """
    test: dict[str, float | None] = dict(errors(labels_N, predictions_N))
    name, baseline_N = RANDOM_WALK, np.zeros_like(labels_N)
    if not target.needs_price:
        name = EWMA
        typical = float(np.nanmedian(volatility_N)) if np.isfinite(volatility_N).any() else 0.0
        baseline_N = np.where(np.isfinite(volatility_N), volatility_N, typical)
    baseline = errors(labels_N, baseline_N)
    if target.needs_price:
        test["direction_accuracy"] = direction_accuracy(labels_N, predictions_N)
        ups = direction_accuracy(labels_N, np.ones_like(labels_N))
        baseline_accuracy = None if ups is None else max(ups, 1 - ups)
        test["majority_direction"] = baseline_accuracy
    test["information_coefficient"] = information_coefficient(labels_N, predictions_N)
    if covered_N is not None:
        test["interval_coverage"] = float(np.mean(covered_N))
    test["num_windows"] = float(len(labels_N))
    skill = {
        f"mse_against_{name}": 1.0 - test["mse"] / baseline["mse"]
        if baseline["mse"] > 0 and test["mse"] is not None
        else None
    }
    verdict, reason = verdict_of(is_simulated)
    return Evaluation(test=test, baselines={name: _nullable(baseline)}, skill=skill, verdict=verdict, reason=reason)


def verdict_of(is_simulated: bool) -> tuple[Verdict, str]:
    """The verdict as far as it goes today, with the sentence that says why."""
    if is_simulated:
        return (
            "not_applicable",
            "the prices are simulated without drift: whatever a model finds in them is chance",
        )
    return (
        "not_judged",
        "figures stand beside the baseline's on the same rows; no test of significance has been made",
    )


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


def _nullable(figures: Mapping[str, float]) -> dict[str, float | None]:
    return dict(figures)
