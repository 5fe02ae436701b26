"""Six hourly bars as text, by a template of their cells, and what is read of them."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.integrations.feature_store.bar_columns import RawBars
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.integrations.feature_store.bar_time_zones import to_utc

PLAIN = "{o:.5f},{h:.5f},{l:.5f},{c:.5f}"
FIRST = datetime(2024, 7, 1, 22, tzinfo=UTC)  # a Monday evening: the day changes, day and month stay in doubt
HOURS = [FIRST + timedelta(hours=hour) for hour in range(6)]
OPENED_MS = [int(moment.timestamp() * 1000) for moment in HOURS]
PRICES = [
    (1.10000, 1.10054, 1.09963, 1.10038),
    (1.10038, 1.10161, 1.09995, 1.10128),
    (1.10128, 1.10201, 1.10127, 1.10165),
    (1.10165, 1.10178, 1.09919, 1.10021),
    (1.10021, 1.10050, 1.09991, 1.10007),
    (1.10007, 1.10031, 1.09970, 1.09975),
]


def write(folder: Path, lines: Sequence[str], name: str = "EURUSD_1h.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def rows(template: str, *, clock: Callable[[datetime], datetime] = lambda moment: moment) -> list[str]:
    """The bars by a template of `t` (the time), `e` (its epoch), `p` (its half day), `n` (the row), o, h, l, c."""
    return [
        template.format(t=clock(moment), e=int(moment.timestamp()), n=number, p=_half(moment), o=o, h=h, l=low, c=c)
        for number, (moment, (o, h, low, c)) in enumerate(zip(HOURS, PRICES, strict=True))
    ]


def _half(moment: datetime) -> str:
    return "a.m." if moment.hour < 12 else "p.m."


def opened(raw: RawBars) -> list[int]:
    """Openings in UTC by what the file says; UTC where it says nothing."""
    return [int(moment) for moment in to_utc(raw.times.local_ms, raw.times.zone or "UTC")]


def values(raw: RawBars) -> list[tuple[float, ...]]:
    return list(zip(*(raw.prices[name].tolist() for name in ("open", "high", "low", "close")), strict=True))


def refusal(path: Path) -> str:
    with pytest.raises(DataValidationError) as caught:
        read_bars(path)
    return caught.value.message
