"""The reading matrix in part: every corner, and cells drawn from all the others; see `reading_matrix`."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tests.integrations.feature_store.reading_matrix import CLOCKS, INSTRUMENTS, LAYOUTS, WEEKS, Cell, cells, outcome

NUM_DRAWN = 60
SEED = 12


@pytest.mark.parametrize("clock", CLOCKS)
def test_hours_of_fx_are_read_right_on_every_clock(clock: str) -> None:
    for is_end in (False, True):
        assert outcome(Cell(clock, "1h", "plain", "EURUSD", is_end, "utc")) == "right"


@pytest.mark.parametrize("timeframe", ["5m", "15m", "2h"])
@pytest.mark.parametrize("layout", ["plain", "metatrader4"])
def test_other_timeframes_that_begin_with_the_week_are_read_right(timeframe: str, layout: str) -> None:
    aligned = "roll" if timeframe == "2h" else "utc"
    for clock, is_end in product(("New York+7", "Athens"), (False, True)):
        assert outcome(Cell(clock, timeframe, layout, "EURUSD", is_end, aligned)) == "right"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (Cell("UTC", "4h", "plain", "EURUSD", False, "utc"), "fit several: UTC, Europe/London"),
        (Cell("UTC", "1h", "plain", "XAUUSD", False, "utc"), "XAU/USD cannot prove it; set BARS_TIMEZONE"),
        (Cell("Berlin", "1h", "dukascopy_local", "EURUSD", False, "utc"), "says local time"),
        (Cell("Athens", "15m", "plain", "EURUSD", False, "utc", setting="Europe/Berlin"), "BARS_TIMEZONE="),
        (Cell("New York+7", "1h", "zulu", "EURUSD", False, "utc"), "they do as America/New_York+7: correct its times"),
        (Cell("New York+7", "15m", "plain", "XAUUSD", False, "utc", with_fx=True), "fit several"),
        (Cell("UTC", "1d", "plain", "EURUSD", True, "utc"), "not the trading days"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.clock} {value.timeframe} {value.layout}",
)
def test_what_the_weeks_do_not_prove_is_refused_with_the_next_step(cell: Cell, says: str) -> None:
    found = outcome(cell)
    assert found.startswith("refused")
    assert says in found


def test_gold_takes_the_clock_of_fx_files_beside_it() -> None:
    assert outcome(Cell("Athens", "1h", "metatrader5", "XAUUSD", False, "utc", with_fx=True)) == "right"
    assert outcome(Cell("Athens", "1h", "metatrader5", "XAUUSD", True, "utc", with_fx=True)) == "right"


def test_of_cells_drawn_from_the_whole_matrix_none_is_silently_wrong() -> None:
    everything = list(cells())
    assert len(everything) > len(CLOCKS) * len(WEEKS) * len(LAYOUTS) * len(INSTRUMENTS) * 2
    drawn = np.random.default_rng(SEED).choice(len(everything), NUM_DRAWN, replace=False)
    found = {everything[at]: outcome(everything[at]) for at in drawn.tolist() if everything[at].timeframe != "1m"}
    assert [(cell, what) for cell, what in found.items() if what.startswith("WRONG")] == []
    counts = Counter(what.partition(":")[0] for what in found.values())
    assert counts["right"] > NUM_DRAWN / 10
