"""Zones by name, and from a clock's times to UTC.

A zone is `UTC`, `UTC+2`, `UTC-05:00`, an IANA name such as `Europe/Athens`, or an IANA name with hours added. The
last is how most MetaTrader brokers keep time: `America/New_York+7`, whose midnight is 17:00 New York all the year.

Legend: N bars; local times as in `bar_times`.
"""

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.market.calendar import HOUR_MS


@dataclass(frozen=True)
class _Zone:
    """An IANA zone, None for a fixed offset alone, and what is added to its clock."""

    iana: str | None
    added_ms: int


def parse_zone(name: str) -> _Zone:
    """Checks a zone's name.

    Raises:
        DataValidationError: no such zone; says how to write one.
    """
    match = re.fullmatch(r"\s*([A-Za-z_/]+?(?:/[A-Za-z_]+)*)?\s*(?:([+-])(\d{1,2})(?::?(\d{2}))?)?\s*", name)
    if match and (match[1] or match[2]):
        hours = int(match[3] or 0) + int(match[4] or 0) / 60
        added_ms = round(hours * HOUR_MS) * (-1 if match[2] == "-" else 1)
        if (match[1] or "UTC").upper() in ("UTC", "GMT", "Z"):
            return _Zone(None, added_ms)
        try:
            ZoneInfo(match[1])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
        else:
            return _Zone(match[1], added_ms)
    raise DataValidationError.at(
        "BARS_TIMEZONE",
        "there is no such timezone; write UTC+2, Europe/Athens or America/New_York+7",
        code="unknown_timezone",
    )


def to_utc(local_ms: Ints, zone: str) -> Ints:
    """(N,) UTC; an hour that the clock repeats is its first, one that it leaves out counts by the later offset."""
    parsed = parse_zone(zone)
    shifted = local_ms - parsed.added_ms
    if parsed.iana is None:
        return shifted
    import polars as pl

    wall = pl.from_numpy(shifted).to_series().cast(pl.Datetime("ms"))
    utc = wall.dt.replace_time_zone(parsed.iana, ambiguous="earliest", non_existent="null")
    skipped = utc.is_null()
    if skipped.any():
        later = wall.dt.offset_by("1h")
        late = later.dt.replace_time_zone(parsed.iana, ambiguous="earliest", non_existent="null").dt.offset_by("-1h")
        utc = utc.zip_with(~skipped, late)
    return utc.dt.epoch("ms").to_numpy().astype(np.int64)
