"""Volume and spread of a file: the spread in price units, and when in the bar it was taken, as far as the file says.

Legend: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.reading_reports import SpreadTime
from ml_workbench_service.integrations.feature_store.bar_cells import marks
from ml_workbench_service.integrations.feature_store.bar_cells.file_cells import FileCells
from ml_workbench_service.integrations.feature_store.bar_cells.marks import Mark
from ml_workbench_service.integrations.feature_store.bar_cells.prices import (
    VOLUME_NAMES,
    PriceColumns,
    SpreadUnit,
    spread_times,
)

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Extra:
    """Volume and spread under their own names, and which of the file's columns they are."""

    columns: dict[str, Floats]
    used: list[str]
    spread_unit: SpreadUnit | None = None
    spread_time: SpreadTime = "unknown"

    @classmethod
    def of(cls, cells: FileCells, rest: "pl.DataFrame", chosen: PriceColumns, *, is_in_points: bool) -> "Extra":
        """Out of the columns that are neither prices nor times.

        Args:
            is_in_points: whether the program writes its spreads so, whatever its cells look like.

        Raises:
            DataValidationError: a cell of either is no number, or an ask lies below its bid; names file and line.
        """
        columns, used = {}, []
        volume = next((name for name in VOLUME_NAMES if name in rest.columns), None)
        if volume is not None and not rest[volume].is_null().all():
            used.append(volume)
            columns["volume"] = _numbers(cells, volume, marks.amounts)
        spreads = {} if chosen.has_both else _told_spreads(cells, rest, is_in_points=is_in_points)
        unused = [name for name in spread_times(rest.columns) if chosen.has_both]
        if unused:
            used += unused
            cells.notes.append(f"its spread is its ask less its bid; not read: {', '.join(unused)}")
        used += [told.column for told in spreads.values()]
        made = {
            f"spread_{word}": cells.spread_between(chosen.pairs[word])
            for word in ("open", "close")
            if word in chosen.pairs
        }
        unit: SpreadUnit | None = "price" if made else None
        time: SpreadTime = "close" if "spread_close" in made else "open" if made else "unknown"
        main = made.get("spread_close", made.get("spread_open"))
        for name, told in spreads.items():
            columns[name] = told.values
            if name == "spread":
                main, unit, time = told.values, told.unit, told.time
        columns |= made | ({} if main is None else {"spread": main})
        return cls(columns, used, unit, time)


@dataclass(frozen=True)
class _ToldSpread:
    """A column of spreads in price units."""

    column: str
    values: Floats
    unit: SpreadUnit
    time: SpreadTime


def _told_spreads(cells: FileCells, rest: "pl.DataFrame", *, is_in_points: bool) -> dict[str, _ToldSpread]:
    """The file's own columns of spreads: `spread`, and those at open and close if they say so."""
    times = {name: time for name, time in spread_times(rest.columns).items() if not rest[name].is_null().all()}
    told = {name: _told_spread(cells, name, time, is_in_points=is_in_points) for name, time in times.items()}
    found = {f"spread_{each.time}": each for each in told.values() if each.time in ("open", "close")}
    by_time = {each.time: each for each in told.values()}
    order: tuple[SpreadTime, ...] = ("unknown", "close", "average", "minimum", "open")
    main = next((by_time[time] for time in order if time in by_time), None)
    return found | ({} if main is None else {"spread": main})


def _told_spread(cells: FileCells, name: str, time: SpreadTime, *, is_in_points: bool) -> _ToldSpread:
    """In price units: whole numbers beside decimal prices are points of the prices' last digit."""
    values = _numbers(cells, name)
    present = values[np.isfinite(values)]
    is_whole = bool((present == np.round(present)).all())
    if not is_in_points and not (is_whole and cells.digits != 0):
        return _ToldSpread(name, values, "price", time)
    if cells.point is None:
        cells.doubts.append(f"`{name}` may be in points, but the prices' last digit is not told; it is left as it is")
        return _ToldSpread(name, values, "price", time)
    cells.notes.append(f"`{name}` is in points of {cells.point:.10g}")
    return _ToldSpread(name, values * cells.point, "points", time)


def _numbers(cells: FileCells, name: str, parse: "Callable[[pl.Series, Mark], pl.Series]" = marks.numbers) -> Floats:
    """(N,) a column with the prices' mark, or with its own where they show none."""
    import polars as pl

    mark: Mark | None = cells.mark
    if cells.frame[name].dtype == pl.String and not cells.is_marked:
        mark = cells.mark_alone(cells.frame[name])
        if mark is None:
            raise cells.fail(0, f"`{name}` has a point or comma that may be of thousands; write it without")
    values = cells.numbers(name, parse=parse, mark=mark)
    return np.where(np.isfinite(values), values, np.nan)
