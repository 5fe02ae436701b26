"""int8's rule: faster and close enough, on the processor that trains and again on another one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.accelerators.processor import processor_features
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.bundle.quantization import (
    NUM_KEPT,
    CalibrationWindows,
    measure_agreement,
    measure_quantization,
)
from ml_workbench_service.testing.synthetic import cut, symbol_rows
from tests.learning.bundle.formula import Formula
from tests.learning.bundle.test_export import rows

pytestmark = pytest.mark.processor


def judged(exact: Any, rough: Any, *, dead_zone: float = 0.0) -> Any:
    windows_NTF = rows(400, 3)

    def directions(outputs_NK: Floats) -> np.ndarray:
        assert len(outputs_NK) == 400
        return np.where(np.abs(outputs_NK[:, 0]) <= dead_zone, 0, np.sign(outputs_NK[:, 0]))

    return measure_quantization(exact, rough, windows_NTF, decide=directions)


SLOW = 0.0004


def test_int8_serves_when_it_is_faster_and_agrees() -> None:
    verdict = judged(Formula(lambda x: x, pause_s=SLOW), Formula(lambda x: 1.01 * x))
    assert verdict.accepted
    assert verdict.processor == processor_features()
    assert verdict.speedup > 1.15
    assert verdict.direction_agreement == 1.0
    assert verdict.mean_delta_std == pytest.approx(0.008, abs=0.002)
    assert verdict.max_delta_std == pytest.approx(0.035, abs=0.015)


def test_int8_that_is_not_faster_is_refused_and_the_reason_says_so() -> None:
    verdict = judged(Formula(lambda x: x), Formula(lambda x: x, pause_s=SLOW))
    assert not verdict.accepted
    assert "times as fast, needs 1.15" in verdict.reason
    assert "decisions" not in verdict.reason


def test_int8_that_is_far_off_is_refused() -> None:
    verdict = judged(Formula(lambda x: x, pause_s=SLOW), Formula(lambda x: 1.1 * x))
    assert not verdict.accepted
    assert "of a deviation, at most 5%" in verdict.reason
    assert verdict.direction_agreement == 1.0


def test_int8_that_is_far_off_in_one_output_of_many_is_refused() -> None:
    exact = [lambda x: x] * 4 + [lambda x: 0.5]  # the last never varies: nothing to measure it by
    verdict = judged(Formula(*exact, pause_s=SLOW), Formula(*exact[:3], lambda x: 1.1 * x, lambda x: 0.5))
    assert not verdict.accepted
    assert "of a deviation, at most 5%" in verdict.reason
    assert verdict.mean_delta_std == pytest.approx(0.08, abs=0.02)


def test_int8_that_turns_directions_is_refused() -> None:
    verdict = judged(Formula(lambda x: x, pause_s=SLOW), Formula(lambda x: x + 0.04 if x < 0 else x - 0.05))
    assert not verdict.accepted
    assert "decisions agree on" in verdict.reason
    assert verdict.direction_agreement < 0.98
    assert verdict.mean_delta_std < 0.05


def test_the_dead_zone_decides_what_is_a_direction() -> None:
    """Small forecasts are `hold` either way, so that turning their sign turns no direction."""
    turned = Formula(lambda x: -x if abs(x) < 0.05 else x)
    assert judged(Formula(lambda x: x, pause_s=SLOW), turned).direction_agreement < 0.98
    assert judged(Formula(lambda x: x, pause_s=SLOW), turned, dead_zone=0.05).direction_agreement == 1.0


def test_forecasts_that_do_not_vary_cannot_be_compared() -> None:
    verdict = judged(Formula(lambda x: 0.1, pause_s=SLOW), Formula(lambda x: 0.1))
    assert not verdict.accepted
    assert "do not vary" in verdict.reason


def test_speed_is_not_asked_where_agreement_is_measured_again() -> None:
    found = measure_agreement(
        Formula(lambda x: x),
        Formula(lambda x: 1.01 * x, pause_s=SLOW),
        rows(40, 3),
        decide=lambda out: np.sign(out[:, 0]),
    )
    assert found.failures == []
    (failure,) = measure_agreement(
        Formula(lambda x: x), Formula(lambda x: 1.1 * x), rows(40, 3), decide=lambda out: np.sign(out[:, 0])
    ).failures
    assert "of a deviation, at most 5%" in failure


def test_a_bundle_keeps_calibration_windows_of_every_symbol_as_the_network_reads_them(tmp_path: Path) -> None:
    windows = cut(symbol_rows("GBP/USD", num=1500), symbol_rows("EUR/USD", num=1500, seed=1))
    CalibrationWindows.choose(windows).save(tmp_path)
    kept = CalibrationWindows.load(tmp_path)
    assert kept is not None
    part = windows.parts["calibrate"]
    assert kept.rows_NTF.shape == (NUM_KEPT, windows.lookback, len(windows.features))
    assert len(part) > NUM_KEPT
    every = {row.tobytes(): end for row, end in zip(windows.gather(part), part.tolist(), strict=True)}
    ends = [every[row.tobytes()] for row in kept.rows_NTF]
    assert len(set(ends)) == NUM_KEPT
    symbols = sorted(windows.scaler.symbols)
    assert [symbols[place] for place in kept.symbol_N] == [windows.symbols[place] for place in windows.symbol_R[ends]]
    assert set(kept.symbol_N.tolist()) == {0, 1}
    assert kept.close_N.tolist() == windows.close_R[ends].tolist()


def test_a_bundle_of_before_keeps_none(tmp_path: Path) -> None:
    assert CalibrationWindows.load(tmp_path) is None
