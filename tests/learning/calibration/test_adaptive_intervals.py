"""A tracker drives the share of misses to what was promised, leans a nervous volatility, and keeps its bounds."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.calibration.adaptive_intervals import (
    LEVEL_STEP,
    MOST_LEVEL,
    PUBLISHED,
    SCALE_MEMORY,
    SLOPE_STEP,
    SLOPES,
    START_SLOPE,
    IntervalTracker,
)
from ml_workbench_service.learning.decoders.decoder import DecodingContext, IntervalScale
from tests.learning.decoders.test_forecast import LABEL_SCALE, QUANTILES, banded, decoder_of, stormy

RADIUS = 1.6449
FILE: TypeAdapter[IntervalTracker] = TypeAdapter(IntervalTracker)


def followed(tracker: IntervalTracker, moves: Floats, scales: Floats) -> tuple[np.ndarray, Floats]:
    """Whether each move lay within radius x scale x widening, and the widens; each outcome known before the next."""
    inside, widenings = np.empty(len(moves), dtype=bool), np.empty(len(moves))
    for number, (move, scale) in enumerate(zip(moves.tolist(), scales.tolist(), strict=True)):
        widening = tracker.widening(scale)
        inside[number] = abs(move) <= RADIUS * scale * widening.factor
        widenings[number] = widening.factor
        tracker.saw(scale)
        tracker.learn(widening.lean, is_covered=bool(inside[number]), promised=0.9)
    return inside, widenings


def wandering(num: int, seed: int, *, spread: float = 0.4) -> Floats:
    """A deviation whose log reverts to its mean within some fifty steps."""
    chance = np.random.default_rng(seed)
    logs = np.zeros(num)
    for row in range(1, num):
        logs[row] = 0.98 * logs[row - 1] + spread * 0.2 * chance.standard_normal()
    return np.asarray(np.exp(logs))


def test_until_the_first_outcome_the_interval_is_as_published() -> None:
    tracker = IntervalTracker()
    assert tracker.widening(0.7) == PUBLISHED
    tracker.saw(0.7)
    assert tracker.widening(1.4).factor == 1.0
    tracker.learn(0.0, is_covered=True, promised=0.9)
    assert tracker.widening(0.7).factor == pytest.approx(math.exp(-0.1 * LEVEL_STEP))


def test_one_outcome_moves_the_state_by_the_written_rule() -> None:
    tracker = IntervalTracker(usual=0.0, num_scales=SCALE_MEMORY)
    tracker.learn(0.5, is_covered=False, promised=0.9)
    assert (tracker.level, tracker.slope) == pytest.approx((0.9 * LEVEL_STEP, START_SLOPE + 0.9 * SLOPE_STEP * 0.5))
    tracker.learn(-0.5, is_covered=True, promised=0.8)
    assert tracker.level == pytest.approx((0.9 - 0.2) * LEVEL_STEP)
    assert tracker.slope == pytest.approx(START_SLOPE + SLOPE_STEP * (0.9 * 0.5 + 0.2 * 0.5))
    told = tracker.widening(math.exp(0.3))
    assert told.lean == pytest.approx(0.3)
    assert told.factor == pytest.approx(math.exp(tracker.level + 0.3 * tracker.slope))
    assert tracker.widening(math.exp(7.0)).lean == 1.0


def test_the_long_mean_is_of_all_scales_until_there_are_as_many_as_it_remembers() -> None:
    tracker, scales = IntervalTracker(), wandering(SCALE_MEMORY, 1)
    for scale in scales.tolist():
        tracker.saw(scale)
    assert tracker.usual == pytest.approx(np.log(scales).mean())
    before = tracker.usual
    tracker.saw(math.e**2)
    assert tracker.usual == pytest.approx(before + (2 - before) / SCALE_MEMORY)


@pytest.mark.parametrize("wrong_by", [0.5, 0.8, 1.4, 2.5])
def test_a_radius_that_is_wrong_is_made_right(wrong_by: float) -> None:
    scales = wandering(12_000, 2)
    moves = wrong_by * scales * np.random.default_rng(3).standard_normal(len(scales))
    inside, widenings = followed(IntervalTracker(slope=0.0), moves, scales)
    assert inside[-6000:].mean() == pytest.approx(0.9, abs=0.01)
    assert np.median(widenings[-3000:]) == pytest.approx(wrong_by, rel=0.12)


def test_a_volatility_that_overshoots_is_leaned_to_its_mean_until_calm_and_storm_cover_alike() -> None:
    """The stated scale has twice the truth's log; without the slope calm is covered far too little."""
    truth = wandering(16_000, 4)
    moves = truth * np.random.default_rng(5).standard_normal(len(truth))
    tracker = IntervalTracker(slope=0.0)
    inside, _ = followed(tracker, moves, truth**2)
    assert tracker.slope == pytest.approx(-0.5, abs=0.25)
    terciles = np.array_split(np.argsort(truth[-12_000:]), 3)
    shares = [inside[-12_000:][each].mean() for each in terciles]
    plainly = [(np.abs(moves) <= RADIUS * truth**2)[-12_000:][each].mean() for each in terciles]
    assert np.ptp(shares) < 0.25 * np.ptp(plainly)
    assert shares == pytest.approx([0.9] * 3, abs=0.03)


def test_an_interval_without_a_volatility_follows_the_market_by_its_level() -> None:
    deviation = np.repeat([1.0, 2.5, 0.6], 3000)
    moves = deviation * np.random.default_rng(6).standard_normal(len(deviation))
    tracker = IntervalTracker(has_scale=False)
    inside, widenings = followed(tracker, moves, np.ones(len(moves)))
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    assert [np.median(part[-1500:]) for part in np.array_split(widenings, 3)] == pytest.approx([1, 2.5, 0.6], rel=0.15)
    assert (tracker.slope, tracker.usual) == (START_SLOPE, 0.0)


@pytest.mark.parametrize("is_covered", [True, False])
def test_a_state_never_leaves_its_bounds(is_covered: bool) -> None:
    tracker = IntervalTracker()
    tracker.saw(1e-9)
    for _ in range(8000):
        tracker.learn(1.0, is_covered=is_covered, promised=0.9)
        tracker.saw(1e9)
    assert abs(tracker.level) == MOST_LEVEL
    assert tracker.slope == (SLOPES[0] if is_covered else SLOPES[1])
    assert 0.05 < tracker.widening(1e9).factor < 20


def test_a_state_comes_back_from_json_to_the_bit_and_nonsense_does_not() -> None:
    tracker = IntervalTracker()
    followed(tracker, wandering(300, 7) - 1, wandering(300, 8))
    payload = FILE.dump_json(tracker)
    assert FILE.validate_json(payload) == tracker
    for wrong in (b'"slope":9.0', b'"slope":NaN', b'"slope":null', b'"slope":-0.4,"more":1'):
        broken = payload.replace(b'"slope":' + repr(tracker.slope).encode(), wrong)
        assert broken != payload
        with pytest.raises(ValidationError):
            FILE.validate_json(broken)


def test_a_widening_moves_both_ends_and_nothing_else_of_a_point_forecast() -> None:
    forecasts, labels, deviation = stormy(400)
    decoder = decoder_of(forecasts[:, None], labels, deviation_N=deviation)
    outputs = np.array([0.4], np.float32)
    plain, wide = (
        decoder.decode(outputs, DecodingContext(np.array([LABEL_SCALE]), 1.3 * LABEL_SCALE, 0.0, widening=widening))
        for widening in (1.0, 40.0)
    )
    assert plain.interval is not None
    assert wide.interval is not None
    assert wide.interval.upper - wide.prediction == pytest.approx(40 * (plain.interval.upper - plain.prediction))
    assert wide.interval.lower - wide.prediction == pytest.approx(40 * (plain.interval.lower - plain.prediction))
    assert vars(wide) | {"interval": None} == vars(plain) | {"interval": None}


@pytest.mark.parametrize("target", ["price_change_1h", "volatility_4h"])
def test_a_widening_moves_each_tail_of_a_quantile_band_from_its_median(target: str) -> None:
    forecasts, labels, deviation = stormy(400)
    forecasts, labels = (forecasts, labels) if target.startswith("price") else (np.abs(forecasts), np.abs(labels))
    decoder = decoder_of(banded(forecasts, 1.0), labels, deviation_N=deviation, targets=[target], quantiles=QUANTILES)
    outputs = np.array([-1.0, 0.2, 1.5], np.float32)
    ends = []
    for widening in (1.0, 0.5, 40.0):
        told = decoder.decode(
            outputs, DecodingContext(np.array([LABEL_SCALE]), 1.3 * LABEL_SCALE, 0.0, widening=widening)
        )
        assert told.interval is not None
        ends.append((told.interval.lower - told.prediction, told.interval.upper - told.prediction))
    assert ends[1] == pytest.approx((ends[0][0] / 2, ends[0][1] / 2))
    assert ends[2][1] == pytest.approx(40 * ends[0][1])
    assert ends[2][0] == pytest.approx(40 * ends[0][0] if target.startswith("price") else -0.2 * LABEL_SCALE)
    assert told.reasons == (), "an abstention is decided by the published width"


def test_a_judge_says_what_its_interval_is_stated_in() -> None:
    forecasts, labels, deviation = stormy(400)
    known, unknown = (DecodingContext(np.array([LABEL_SCALE]), each, 0.0) for each in (0.003, None))
    by_volatility = decoder_of(forecasts[:, None], labels, deviation_N=deviation, targets=["log_return_4h"])
    assert by_volatility.interval_scale(known) == IntervalScale(0.006, is_volatility=True)
    assert by_volatility.interval_scale(unknown) == IntervalScale(LABEL_SCALE, is_volatility=False)
    never_known = decoder_of(forecasts[:, None], labels)
    band = decoder_of(banded(forecasts, 1.0), labels, quantiles=QUANTILES)
    for decoder in (never_known, band):
        assert decoder.interval_scale(known) == IntervalScale(LABEL_SCALE, is_volatility=False)
