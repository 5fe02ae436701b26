"""Too few windows: the message names the cause, each cause alone, and what it costs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.learning.data.window_losses import column_losses, quality_warnings
from ml_workbench_service.learning.data.windows import SymbolRows
from ml_workbench_service.testing.synthetic import cut, symbol_rows


def emptied(table: SymbolRows, column: int, rows: Sequence[int] | np.ndarray) -> SymbolRows:
    x_NF = table.x_NF.copy()
    x_NF[rows, column] = np.nan
    return replace(table, x_NF=x_NF)


def message_of(table: SymbolRows) -> str:
    with pytest.raises(DataValidationError) as caught:
        cut(table)
    return str(caught.value.message)


EMPTY_IN_EVERY_SEVENTH = np.arange(0, 1500, 7)
FILLED_IN_EVERY_FIFTIETH = np.flatnonzero(np.arange(1500) % 50)


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("rows", [EMPTY_IN_EVERY_SEVENTH, FILLED_IN_EVERY_FIFTIETH])
def test_a_column_with_holes_is_named_with_what_it_costs(column: int, rows: np.ndarray) -> None:
    message = message_of(emptied(symbol_rows(num=1500), column, rows))
    assert ("signal", "noise", "close")[column] + f" has no value in {len(rows):,} of 1,500 rows" in message
    assert "leaves 0 of 1,493 windows" in message
    assert "leave it out" in message
    assert "longer range" not in message


def test_bars_with_gaps_are_named() -> None:
    message = message_of(symbol_rows(num=1500, gaps=range(5, 1500, 5)))
    assert "bars are missing between its 1,500" in message
    assert "longer range" not in message


def test_labels_that_are_hardly_ever_known_are_named() -> None:
    table = symbol_rows(num=1500)
    labels_NK = table.labels_NK.copy()
    labels_NK[np.arange(1500) % 30 > 0] = np.nan
    message = message_of(replace(table, labels_NK=labels_NK))
    assert "only 50 of 1,500 rows have a label" in message
    assert "shorter horizon" in message


def test_a_range_that_is_too_short_is_called_that() -> None:
    assert "longer range" in message_of(symbol_rows(num=60))


def test_losses_are_each_column_s_own() -> None:
    table = emptied(emptied(symbol_rows(num=100), 0, [50]), 1, [10, 90])
    losses = column_losses([table], [table.x_NF], ("signal", "noise", "close"), 8)
    assert [(each.cause, each.num_left, each.num_possible) for each in losses] == [
        ("signal", 93 - 8, 93),
        ("noise", 93 - 8 - 8, 93),
        ("close", 93, 93),
    ]


def test_costly_and_constant_columns_are_warned_of_by_name() -> None:
    table = emptied(symbol_rows(num=100), 0, range(20, 40))
    x_NF = table.x_NF.copy()
    x_NF[:80, 1] = 3.0  # and something else after the training part
    table = replace(table, x_NF=x_NF)
    found = quality_warnings(
        [table], [table.x_NF], ("signal", "noise", "close"), lookback=8, train=[np.arange(100) < 80]
    )
    assert found == [
        "column_costs_windows: signal alone costs 29% of the 93 windows",
        "constant_column: noise of EUR/USD is 3 all through the training part",
    ]
    clean, everywhere = symbol_rows(num=100), np.ones(100, dtype=bool)
    assert quality_warnings([clean], [clean.x_NF], ("a", "b", "c"), lookback=8, train=[everywhere]) == []
