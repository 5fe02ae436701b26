"""Intervals of quantile outputs: they cover in calm and in storm, each tail by its own quantile."""

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.decoders.decoder import load_decoder
from tests.integrations.model_cards import model_card
from tests.learning.decoders.test_forecast import LABEL_SCALE, NUM, QUANTILES, asked, banded, covers, decoder_of, stormy

pytestmark = pytest.mark.processor


@pytest.mark.parametrize("calm_first", [True, False])
@pytest.mark.parametrize("knows_storms", [True, False])
def test_a_quantile_interval_covers_in_storm_and_calm_whatever_the_calibration_part_was(
    calm_first: bool, knows_storms: bool
) -> None:
    """A network that never heard of storms gives one width; the next part is four times as wild, or as calm."""

    def part(size: float, seed: int) -> tuple[Floats, Floats, Floats]:
        forecasts, labels, deviation = stormy(seed=seed)
        outputs = banded(forecasts, 1.6 * size * deviation if knows_storms else 1.6)
        return outputs, forecasts + size * (labels - forecasts), size * deviation

    sizes = (0.5, 2.0) if calm_first else (2.0, 0.5)
    outputs, labels, deviation = part(sizes[0], seed=1)
    decoder = decoder_of(outputs, labels, deviation_N=deviation, quantiles=QUANTILES)
    outputs, labels, deviation = part(sizes[1], seed=2)
    covered = covers(
        decoder,
        outputs,
        labels * LABEL_SCALE,
        label_scale_N=np.full(NUM, LABEL_SCALE),
        volatility_N=deviation * LABEL_SCALE,
    )
    for tercile in np.array_split(np.argsort(deviation), 3):
        assert np.mean(covered[tercile]) == pytest.approx(0.9, abs=0.02)


def test_each_tail_is_the_conformal_rank_of_its_own_quantile() -> None:
    """39 residuals of -19 to 19 volatilities; quantiles 0.1 and 0.95: ranks floor(40 x 0.1) = 4, 40 x 0.95 = 38."""
    deviation = np.random.default_rng(1).uniform(0.5, 2.0, 39)
    labels = np.random.default_rng(0).permutation(np.arange(-19.0, 20.0)) * deviation
    decoder = decoder_of(banded(np.zeros(39), 1.0), labels, deviation_N=deviation, quantiles=(0.1, 0.5, 0.95))
    assert decoder.tails == pytest.approx((-16.0, 18.0))
    few = np.where(np.arange(39) < 20, np.nan, deviation)
    assert decoder_of(banded(np.zeros(39), 1.0), labels, deviation_N=few, quantiles=QUANTILES).tails is None
    assert decoder_of(np.zeros((39, 1)), labels, deviation_N=deviation).tails is None


def test_a_band_published_without_tails_keeps_its_meaning() -> None:
    forecasts, labels, deviation = stormy(300)
    decoder = decoder_of(banded(forecasts, 1.0), labels, deviation_N=deviation, quantiles=QUANTILES)
    old = {name: value for name, value in decoder.to_json().items() if name != "tails"}
    again = load_decoder(old, model_card(quantiles=QUANTILES, outputs=decoder.names))
    for known in (1.3, None):
        told = asked(again, [-1, 0.1, 1], known)  # type: ignore[arg-type]
        assert told.interval is not None
        ends = [(-1 - decoder.margin) * LABEL_SCALE, (1 + decoder.margin) * LABEL_SCALE]
        assert [told.interval.lower, told.interval.upper] == pytest.approx(ends)
        assert told.warnings == ()
