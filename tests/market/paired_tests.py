"""Diebold-Mariano and Clark-West of plain arrays, made of the product's parts, for tests to compare with."""

from ml_workbench_service.contracts.evaluation import SignificanceTest
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.significance import clark_west_gains, hac_mean, mean_by_moment


def diebold_mariano(
    baseline_losses_N: Floats, model_losses_N: Floats, *, moments_N: Ints, horizon: int
) -> SignificanceTest:
    """Whether the model's mean loss is below the baseline's."""
    return hac_mean(mean_by_moment(baseline_losses_N - model_losses_N, moments_N), horizon=horizon)


def clark_west(outcomes: Floats, *, baseline: Floats, model: Floats, moments_N: Ints, horizon: int) -> SignificanceTest:
    """Whether the model knows something that the baseline does not."""
    gains_N = clark_west_gains(outcomes, baseline=baseline, model=model)
    return hac_mean(mean_by_moment(gains_N, moments_N), horizon=horizon)
