"""Estimates of memory beside the peak of real workers, short; `python -m benchmarks.estimates` has every family."""

from pathlib import Path

import pytest

from benchmarks.estimates import FORECAST, POLICY, SYMBOLS, Case, measured, write_bars
from benchmarks.running_service import RunningService
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

MARGIN = 0.35
"""Wider than what is promised: another processor has other kernels, and another build of torch other libraries."""
WEEKS = 300
CASES = (
    Case("linear", FORECAST, sizes={"epochs": 1}, num_weeks=WEEKS, num_symbols=2, num_features=24),
    Case("lstm", FORECAST, sizes={"epochs": 1, "lookback": 96, "lstm_units": 128, "batch_size": 1024}, num_weeks=24),
    Case("lightgbm", FORECAST, sizes={"num_iterations": 10}, num_weeks=WEEKS),
    Case("q_learning", POLICY, sizes={"epochs": 1}, num_weeks=24),
)


def test_estimates_are_near_the_peaks(tmp_path: Path) -> None:
    bars = tmp_path / "bars"
    bars.mkdir()
    for number, symbol in enumerate(SYMBOLS):
        write_bars(bars / f"{symbol.replace('/', '')}_1h.csv", num_weeks=WEEKS, seed=number)
    running = ServiceProcess(tmp_path, FEATURE_STORE_URL=bars.as_uri(), AGENT_AUTOSTART="false").start()
    try:
        service = RunningService(running.url)
        found = [measured(service, tmp_path / "state" / "jobs", case.body(number)) for number, case in enumerate(CASES)]
    finally:
        running.close()
    for case, each in zip(CASES, found, strict=True):
        print(f"{case.name}: {each.estimated} of {each.peak:.3f} GB")  # noqa: T201
    assert [case.name for case, each in zip(CASES, found, strict=True) if abs(each.ratio - 1) > MARGIN] == []
    linear, lstm, *_ = found
    assert linear.peak < lstm.peak, "more is held where more is asked for"
