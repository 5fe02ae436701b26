"""Decoding a run: each row is what its window says alone, to the bit, however many are beside it."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.runs.columns import Nested
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.calibration.anomaly_score import AnomalyScale
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.calibration.conformal import NoveltyDetector, ResidualDistribution
from ml_workbench_service.learning.decoders.action import ActionDecoder
from ml_workbench_service.learning.decoders.anomaly import AnomalyDecoder
from ml_workbench_service.learning.decoders.classes import ClassDecoder
from ml_workbench_service.learning.decoders.decoder import DecodedRun, Decoder, DecodingRun
from ml_workbench_service.learning.decoders.features import FeaturesDecoder
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.market.sizing import Sizing

pytestmark = pytest.mark.processor

CHANCE = np.random.default_rng(17)
WIDE, NARROW = (
    ResidualDistribution(np.sort(CHANCE.standard_normal(301)) * scale, radius=1.7 * scale) for scale in (1.0, 0.8)
)


def forecast(target: str, *, num_targets: int = 1, quantiles: tuple[float, ...] = (), **more: Any) -> ForecastDecoder:
    targets = tuple(parse_target(each) for each in (target, "volatility_4h")[:num_targets])
    names = tuple(f"{each.name}{level}" for each in targets for level in quantiles or ("",))
    return ForecastDecoder(targets, names, quantiles, **{"conditional": NARROW, "unconditional": WIDE, **more})


def classes(*names: str) -> ClassDecoder:
    return ClassDecoder(ClassCalibration(names, CHANCE.dirichlet(np.ones(len(names))), temperature=1.7))


def anomaly() -> AnomalyDecoder:
    errors_NF = CHANCE.gamma(2.0, size=(300, 4))
    scale = AnomalyScale.fit(
        errors_NF.mean(axis=1), errors_NF, features=("a", "b", "c", "d"),
        calibration_errors_N=errors_NF[:50].mean(axis=1), expected_alarm_rate=0.05,
    )  # fmt: skip
    return AnomalyDecoder(("error", "a", "b", "c", "d"), scale)


SIZED = PositionRule(rule="kelly", fraction=0.1, band=0.2, max_leverage=3.0, decide="reversal")
DECODERS: dict[str, Decoder] = {
    "point": forecast("price_change_1h"),
    "point without a volatility": forecast("price_change_1h", conditional=None),
    "sized": forecast("price_change_4h", sizing=Sizing.of(SIZED, horizon=4, timeframe="1h", slope=0.3)),
    "sized quantiles": forecast(
        "price_change_1h",
        quantiles=(0.05, 0.5, 0.95),
        tails=(-1.4, 1.9),
        sizing=Sizing.of(PositionRule(rule="volatility_target"), horizon=1, timeframe="1h"),
    ),
    "logarithm of days": forecast("log_return_1d", num_targets=2),
    "volatility": forecast("volatility_4h"),
    "quantiles": forecast("price_change_4h", quantiles=(0.05, 0.5, 0.95), margin=-0.3),
    "quantiles with tails": forecast("price_change_4h", quantiles=(0.05, 0.5, 0.95), tails=(-1.4, 1.9)),
    "quantiles of two": forecast("price_change_4h", num_targets=2, quantiles=(0.1, 0.5, 0.9), margin=0.2),
    "quantiles of a volatility": forecast("volatility_4h", quantiles=(0.05, 0.5, 0.95), margin=0.4),
    "directions": classes("sell", "hold", "buy"),
    "barriers": classes("lower", "neither", "upper"),
    "regimes": classes("calm", "usual", "storm", "crash"),
    "anomaly": anomaly(),
    "action": ActionDecoder(("short", "flat", "long")),
    "features": FeaturesDecoder(("a", "b")),
}


def num_outputs(decoder: Decoder) -> int:
    return len(decoder.calibration.classes) if isinstance(decoder, ClassDecoder) else len(decoder.names)  # type: ignore[attr-defined]


def contexts(num: int, num_labels: int, chance: np.random.Generator) -> DecodingRun:
    """Of every kind: with and without a volatility, widened and as published, of wide and narrow dead zones."""
    volatility_N = chance.lognormal(-7, 1, num)
    volatility_N[chance.random(num) < 0.3] = np.nan
    volatility_N[chance.random(num) < 0.1] = 0.0
    return DecodingRun(
        label_scale_NK=chance.lognormal(-7, 0.3, (num, num_labels)),
        bar_volatility_N=volatility_N,
        dead_zone_N=chance.lognormal(-9, 2, num),
        position_N=chance.uniform(-1, 1, num),
        widening_N=np.where(chance.random(num) < 0.4, 1.0, chance.lognormal(0, 0.3, num)),
        size_weight_N=chance.lognormal(0, 0.5, num),
    )


def row_of(run: DecodedRun, row: int) -> dict[str, Any]:
    return {name: getattr(run, name).value(row) for name in DecodedRun.__dataclass_fields__}


@pytest.mark.parametrize("name", list(DECODERS))
def test_a_row_of_a_run_is_decoded_as_alone(name: str) -> None:
    decoder, chance = DECODERS[name], np.random.default_rng(len(name))
    num_labels = len(getattr(decoder, "targets", "x"))
    for num in (1, 2, 3, 7, 8, 9, 33, 200):
        outputs_NK = chance.standard_normal((num, num_outputs(decoder))).astype(np.float32)
        if num > 30:
            outputs_NK[::7] = outputs_NK[::7].round()  # equals, and zeros
        run = contexts(num, num_labels, chance)
        found = decoder.decode_run(outputs_NK, run)
        for row in range(num):
            wanted = decoder.decode(outputs_NK[row], run.context(row))
            told = row_of(found, row)
            assert told == {each: getattr(wanted, each) for each in told}
            assert repr(told) == repr({each: getattr(wanted, each) for each in told}), "to the sign of a zero"


def test_outputs_that_are_no_numbers_fail_as_alone() -> None:
    decoder = forecast("price_change_1h")
    run = contexts(3, 1, np.random.default_rng(0))
    outputs_NK = np.array([[0.1], [np.inf], [0.2]], dtype=np.float32)
    with pytest.raises(ValueError, match="finite") as alone:
        decoder.decode(outputs_NK[1], run.context(1))
    with pytest.raises(ValueError, match="finite") as together:
        decoder.decode_run(outputs_NK, run)
    assert str(together.value) == str(alone.value)


@pytest.mark.parametrize("num_features", [1, 2, 3, 4, 9, 50])
def test_novelty_is_the_same_alone_and_among_others(num_features: int) -> None:
    chance = np.random.default_rng(num_features)
    mixed = chance.standard_normal((num_features, num_features))
    names = [f"f{number}" for number in range(num_features)]
    detector = NoveltyDetector.fit((chance.standard_normal((400, num_features)) @ mixed).astype(np.float32), names)
    for num in (1, 2, 5, 8, 31, 257):
        rows_NF = (chance.standard_normal((num, num_features)) * chance.lognormal(0, 2, (num, 1))).astype(np.float32)
        rows_NF[0, :2] = 1e9 if num == 5 else 0.0  # beyond the most, and equals
        found: Nested = detector.novelties(rows_NF)
        alone = [detector.novelty(each) for each in rows_NF]
        assert list(map(repr, found.values())) == list(map(repr, alone))
        assert [min(each, 1e12) for each in detector.scores(rows_NF).tolist()] == [each.score for each in alone]
        assert asdict(detector)["features"] == tuple(names)
