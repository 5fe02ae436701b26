"""Feature tables: from bars and feature names to a `FeatureTable`, whole and sliced; what every local store does.

Legend: N bars.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, normal_symbol, normal_timeframe
from ml_workbench_service.contracts.market import Bars, FeatureTable, Floats
from ml_workbench_service.market.features.indicators import Indicator, resolve, unknown_feature

SYNTHETIC_RANGE = "synthetic_range"
"""The warning on features that need high and low, computed from bars whose high and low were not observed."""
SPREAD = "spread"
"""The column of the bars' own spread, in price units."""
SPREADS = frozenset({SPREAD, "spread_open", "spread_close"})
"""That, and those of the bars' ends."""


def normal_request(symbols: Sequence[str], timeframe: str) -> tuple[tuple[str, ...], str]:
    """Symbols and timeframe as we spell them; raises DataValidationError."""
    path = "timeframe"
    try:
        normal = normal_timeframe(timeframe)
        path = "symbols"
        return tuple(normal_symbol(symbol) for symbol in symbols), normal
    except ValueError as error:
        raise DataValidationError.at(path, str(error), code=f"unknown_{path.removesuffix('s')}") from error


def known_by(as_of_ms: int | None, now_ms: int) -> int:
    """The moment whose knowledge counts: never later than now, when bars are still forming."""
    return now_ms if as_of_ms is None else min(as_of_ms, now_ms)


def whole_table(
    bars: Bars,
    features: Sequence[str],
    *,
    own_columns: Callable[[], list[str]],
    computed: Callable[[Indicator], Floats],
) -> FeatureTable:
    """All bars with the asked columns; the bars' own extra columns win over indicators of the same name.

    A spread column comes along unasked: it is what trading these bars costs.

    Args:
        own_columns: names the user's files have, for the error about a name nobody has.
        computed: an indicator's column over these bars; a place for a cache.

    Raises:
        DataValidationError: an unknown feature, by its position; names the nearest known ones.
    """
    columns: dict[str, Floats] = {}
    needs_range = False
    for position, name in enumerate(features):
        if name in bars.extra:
            columns[name] = bars.extra[name]
            continue
        indicator = _resolved(name, bars, f"features.{position}", own_columns)
        columns[name] = computed(indicator)
        needs_range |= indicator.needs_range
    for name in SPREADS & bars.extra.keys():
        columns.setdefault(name, bars.extra[name])
    return FeatureTable(
        symbol=bars.symbol,
        timeframe=bars.timeframe,
        opened_ms=bars.opened_ms,
        available_at_ms=bars.available_at_ms,
        columns=columns,
        data_source=bars.data_source,
        calendar=bars.calendar,
        fill=bars.fill,
        price_side=bars.price_side,
        spread_time=bars.spread_time,
        reports=bars.reports,
        declares_times=bars.declares_times,
        warnings=(SYNTHETIC_RANGE,) if needs_range and bars.synthetic_range else (),
    )


def _resolved(name: str, bars: Bars, path: str, own_columns: Callable[[], list[str]]) -> Indicator:
    try:
        return resolve(name, path=path)
    except DataValidationError as error:
        own = own_columns()
        if name in own:
            message = f"the bars of {bars.symbol} {bars.timeframe} lack this column; only other files have it"
            raise DataValidationError.at(path, message, code="unknown_feature") from error
        if own and error.details["errors"][0]["code"] == "unknown_feature":
            raise unknown_feature(name, own, path=path) from error
        raise


def sliced(
    table: FeatureTable, *, start_ms: int | None, end_ms: int | None, as_of_ms: int, last: int | None
) -> FeatureTable:
    """The rows asked for; may be empty."""
    wanted = table.available_at_ms <= as_of_ms
    if start_ms is not None:
        wanted &= table.opened_ms >= start_ms
    if end_ms is not None:
        wanted &= table.opened_ms < end_ms
    rows = np.flatnonzero(wanted)
    rows = rows if last is None else rows[max(0, len(rows) - last) :]
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):  # as ever, unless bars became known out of their order
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        columns = {name: column[span].copy() for name, column in table.columns.items()}
        return replace(
            table, opened_ms=table.opened_ms[span].copy(), available_at_ms=table.available_at_ms[span].copy(),
            columns=columns,
        )  # fmt: skip
    columns = {name: column[rows] for name, column in table.columns.items()}
    return replace(table, opened_ms=table.opened_ms[rows], available_at_ms=table.available_at_ms[rows], columns=columns)


def no_bars(bars: Bars, as_of_ms: int) -> DataValidationError:
    """The error about a range without a known bar; says which range there is."""
    first, last = iso_of_ms(int(bars.opened_ms[0])), iso_of_ms(int(bars.opened_ms[-1]))
    return DataValidationError.at(
        "start_date",
        f"no bar of {bars.symbol} {bars.timeframe} lies in this range and is known at {iso_of_ms(as_of_ms)}; "
        f"there are bars from {first} to {last}",
        code="empty_range",
        first=first,
        last=last,
    )
