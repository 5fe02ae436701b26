"""`lightgbm`: gradient-boosted trees over the window and its summary; what the literature compares networks with."""

from collections.abc import Mapping

from pydantic import Field

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.networks.boosted_trees.family import BoostedTreesFamily
from ml_workbench_service.learning.networks.boosted_trees.hyperparameters import BoostedTreesHyperparameters, Direction


class LightGbmHyperparameters(BoostedTreesHyperparameters):
    """Hyper-parameters of boosted trees, and which features may push the forecast in one direction only."""

    monotone: dict[str, Direction] = Field(
        default={},
        description="Features whose newest value, mean and slope may move the forecast in one direction only, such as "
        '{"rsi_14": "falling"}.',
    )

    @property
    def monotone_directions(self) -> Mapping[str, Direction]:
        """`monotone`."""
        return self.monotone


class LightGbm(BoostedTreesFamily[LightGbmHyperparameters]):
    """Gradient-boosted trees by LightGBM (Ke et al., NeurIPS 2017) over the flattened window and its summary.

    Finds thresholds and interactions of a few columns in seconds, and needs no scaling. Fails where the signal is a
    smooth sum over many bars, and forecasts nothing beyond what the training part held. Cost per round grows with
    windows x columns. Of quantiles one booster each, sorted so that they never cross (Chernozhukov, Fernandez-Val and
    Galichon, Econometrica 78(3), 2010).
    """

    name = "lightgbm"
    model_type = ModelType.TIME_SERIES
