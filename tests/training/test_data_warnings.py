"""Warnings about a training's data: a range that the store does not have is said with both ranges."""

from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.training.data_warnings import clipped

HOUR_MS = 3_600_000


def request(start: str, end: str, **changes: Any) -> TrainRequest:
    body = {
        "name": "clipped", "model_type": "time_series", "features": ["return_1"], "target": "price_change_1h",
        "symbols": ["EUR/USD"], "start_date": f"{start}T00:00:00Z", "end_date": f"{end}T00:00:00Z",
    }  # fmt: skip
    return TrainRequest.model_validate(body | changes)


def table(start: str, end: str, *, calendar: Any = "fx", timeframe: str = "1h", step_ms: int = HOUR_MS) -> FeatureTable:
    """Bars from a moment to another, the weekends left out by nobody: only the ends count."""
    first, last = (int(np.datetime64(each, "ms").astype(np.int64)) for each in (start, end))
    opened_ms = np.arange(first, last, step_ms)
    return FeatureTable("EUR/USD", timeframe, opened_ms, opened_ms + step_ms, {}, "file", calendar)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (("2024-01-06", "2024-03-02"), ("2024-01-07T22:00", "2024-03-01T22:00")),  # a weekend at each end
        (("2023-12-30", "2024-03-02"), ("2024-01-02T06:00", "2024-03-01T15:00")),  # New Year, and a feed's short days
        (("2024-01-08", "2099-01-01"), ("2024-01-08T00:00", "2030-01-01T00:00")),  # nobody has what is to come
    ],
)
def test_what_the_market_leaves_out_is_no_clipping(asked: tuple[str, str], there: tuple[str, str]) -> None:
    assert clipped(table(*there), request(*asked)) == []


@pytest.mark.parametrize("there", [("2024-01-10T00:00", "2024-03-01T22:00"), ("2024-01-07T22:00", "2024-02-28T22:00")])
def test_two_days_less_at_either_end_are_said_with_both_ranges(there: tuple[str, str]) -> None:
    [line] = clipped(table(*there), request("2024-01-06", "2024-03-02"))
    assert line.startswith("range_clipped: EUR/USD was asked for from 2024-01-06T00:00:00Z to 2024-03-02T00:00:00Z")
    assert there[0] in line
    assert there[1][:13] in line
