"""Which of a file's columns says when its bars open: the one that says its zone best.

An epoch goes before an offset in the cells or in a column of zones, that before a zone in the header, that before none,
and "local time" comes last. A date and a clock in two columns are one. Other columns of times are not read; those that
contradict are named.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ml_workbench_service.integrations.feature_store.bar_cells.headers import END_WORDS, ZONE_WORDS, Heading
from ml_workbench_service.integrations.feature_store.bar_times import (
    MISSING_MS,
    Fail,
    TimeColumn,
    has_zone,
    is_epoch,
    is_time,
    read_times,
)

if TYPE_CHECKING:
    import polars as pl

_CLOCK_ALONE = r"\d{1,2}:\d{2}(:\d{2})?([.,]\d+)?\s*([AaPp][Mm])?|\d{1,6}"
_EPOCH, _IN_CELLS, _IN_HEADER, _UNSAID, _UNNAMED, _LOCAL, _NO_TIME = range(7)


@dataclass(frozen=True)
class Openings:
    """Times of the rows; `used` are the columns that tell times, read or not."""

    times: TimeColumn
    used: frozenset[str]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A column of times, or a date and a clock that belong together."""

    column: "pl.Series"
    written: str
    rank: tuple[int, int]
    zone: str | None


def opening_times(frame: "pl.DataFrame", heads: Sequence[Heading], *, zone: str | None, fail: Fail) -> Openings:
    """The times at which the rows' bars open.

    Args:
        zone: of times that do not say theirs, by the program's habit.

    Raises:
        DataValidationError: no column tells them, or a cell is no time; names file and line.
    """
    candidates, used = _candidates(frame, heads)
    ends = [head.name for head in heads if head.name in END_WORDS]
    if not candidates:
        if ends:
            raise fail(None, f"its times, `{ends[0]}`, are the ends of its bars; write their openings")
        raise fail(None, "has no timestamp; it needs timestamp, open, high, low and close")
    best, *others = sorted(candidates, key=lambda each: each.rank)
    if best.rank[0] > _IN_CELLS and (zones := _zones(frame)) is not None:
        best, used = replace(best, column=_joined(best.column, zones)), [*used, zones.name]
    times = read_times(best.column, zone=best.zone, fail=fail)
    if times.zone is None and zone is not None and best.rank[0] != _LOCAL:
        times = replace(times, zone=zone, zone_from="format")
    is_local = times.zone is None and best.rank[0] == _LOCAL
    others = [each for each in others if each.rank[0] != _NO_TIME]
    notes = [f"its times are those of `{best.written}`"] if others else []
    doubts = [
        f"`{each.written}` says other times than `{best.written}`, which was read"
        for each in others
        if each.rank[0] <= _IN_CELLS and best.rank[0] <= _IN_CELLS and _differs(each, times, fail)
    ]
    times = replace(times, is_local=is_local)
    return Openings(times, frozenset([*used, *ends]), tuple(notes), tuple(doubts))


def _zones(frame: "pl.DataFrame") -> "pl.Series | None":
    """A column of zones beside the times, if there is one."""
    import polars as pl

    named = [frame[name] for name in ZONE_WORDS if name in frame.columns and frame[name].dtype == pl.String]
    return next((column for column in named if not column.is_null().any()), None)


def _differs(other: _Candidate, times: TimeColumn, fail: Fail) -> bool:
    read = read_times(other.column, zone=other.zone, fail=fail, is_optional=True)
    is_there = read.local_ms != MISSING_MS
    return read.zone == times.zone and not np.array_equal(read.local_ms[is_there], times.local_ms[is_there])


def _candidates(frame: "pl.DataFrame", heads: Sequence[Heading]) -> tuple[list[_Candidate], list[str]]:
    """The columns of times, and the names of all that take part."""
    named = [head for head in heads if head.time_rank is not None]
    clocks = [head for head in named if "time" in head.name and re.fullmatch(_CLOCK_ALONE, _sample(frame[head.name]))]
    dates = [head for head in named if head not in clocks and is_time(_sample(frame[head.name]))]
    found: list[_Candidate] = []
    joined: list[Heading] = []
    for clock in clocks:
        date = next((head for head in dates if not is_epoch(_sample(frame[head.name]))), None)
        if date is None or ":" in _sample(frame[date.name]):
            continue
        head = replace(clock, zone=clock.zone or date.zone, is_local=clock.is_local or date.is_local)
        written = f"{date.written.strip()} {clock.written.strip()}"
        found.append(_candidate(_joined(frame[date.name], frame[clock.name]), replace(head, written=written)))
        joined += [date, clock]
    single = [head for head in named if head not in joined]
    found += [_candidate(frame[head.name], head) for head in single]
    unnamed = [head for head in heads if head.is_index and is_time(_sample(frame[head.name]))]
    found += [_candidate(frame[head.name], head) for head in unnamed]
    told = [head for head in single if head in clocks or is_time(_sample(frame[head.name]))]
    return found, [head.name for head in (*joined, *told, *unnamed)]


def _candidate(column: "pl.Series", head: Heading) -> _Candidate:
    sample = _sample(column)
    kind = _IN_HEADER if head.zone else _LOCAL if head.is_local else _UNNAMED if head.is_index else _UNSAID
    if is_epoch(sample):
        kind = _EPOCH
    elif has_zone(sample):
        kind = _IN_CELLS
    elif not is_time(sample):
        kind = _NO_TIME
    written = head.written.strip() or "the column without name"
    return _Candidate(column, written, (kind, head.time_rank or 0), head.zone)


def _sample(column: "pl.Series") -> str:
    """The first cell that is not empty, as text; a zone that Parquet knows is part of it."""
    import polars as pl

    present = column.is_not_null()
    first = column[int(present.arg_max() or 0)] if present.any() else None
    if first is None:
        return ""
    if column.dtype.is_temporal() and column.dtype != pl.Time:
        return "2000-01-01Z" if getattr(column.dtype, "time_zone", None) else "2000-01-01"
    if column.dtype.is_float():
        return f"{first:.0f}"
    return str(first).strip()


def _joined(date: "pl.Series", clock: "pl.Series") -> "pl.Series":
    """Dates and clocks as one text; a clock of digits alone has lost its leading zeros."""
    import polars as pl

    clock = clock.cast(pl.String).str.strip_chars()
    if clock.str.contains(r"^\d+$").all():
        clock = clock.str.zfill(4 if (clock.str.len_chars().max() or 0) in (3, 4) else 6)
    days = date.cast(pl.String).str.strip_chars().alias("date")
    return pl.select(pl.concat_str(days, clock.alias("clock"), separator=" ").alias("timestamp")).to_series()
