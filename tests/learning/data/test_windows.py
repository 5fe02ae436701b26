"""Windows and parts: no window over a gap, no label over a border, nothing learnt from what comes later."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.learning.data.window_losses import streaks
from ml_workbench_service.learning.data.windows import (
    FEWEST_WINDOWS,
    PARTS,
    SAMPLES,
    Borders,
    SymbolRows,
    Windows,
    build,
    describe_borders,
    from_wire,
    part_of,
    to_wire,
)
from ml_workbench_service.testing.synthetic import FEATURES, HOUR_MS, IS_LEVEL, cut, symbol_rows, with_holes

steady = settings(deadline=None, derandomize=True, max_examples=40)
NUM = 900

PAIRS = ("EUR/USD", "GBP/USD", "USD/JPY")


@dataclass(frozen=True)
class Case:
    """A history to cut, small enough to print."""

    seed: int
    gaps: list[int]
    holes: list[int]
    horizon: int
    lookback: int
    split: float

    def cut(self) -> tuple[SymbolRows, Windows]:
        """The rows and their windows; a case with too few windows is no example."""
        table = with_holes(symbol_rows(num=NUM, seed=self.seed, gaps=self.gaps, horizon=self.horizon), self.holes)
        try:
            return table, cut(table, lookback=self.lookback, validation_split=self.split)
        except DataValidationError:
            reject()


cases = st.builds(
    Case,
    seed=st.integers(0, 1000),
    gaps=st.lists(st.integers(1, NUM - 1), max_size=4, unique=True),
    holes=st.lists(st.integers(0, NUM - 1), max_size=4, unique=True),
    horizon=st.integers(1, 5),
    lookback=st.integers(3, 16),
    split=st.sampled_from([0.3, 0.4, 0.6]),
)


def label_known(windows: Windows, *tables: SymbolRows) -> Ints:
    return np.concatenate([table.label_available_at_ms_N for table in tables])


@steady
@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.lists(st.integers(0, 1), min_size=30, max_size=30),
)
def test_a_streak_counts_complete_rows_of_one_run(complete: list[bool], starts: list[int]) -> None:
    runs = np.cumsum(starts[: len(complete)])
    wanted = []
    for row in range(len(complete)):
        count, at = 0, row
        while at >= 0 and complete[at] and runs[at] == runs[row]:
            count, at = count + 1, at - 1
        wanted.append(count)
    assert streaks(np.array(complete), runs).tolist() == wanted


@steady
@given(cases)
def test_every_window_is_complete_and_within_one_run(case: Case) -> None:
    table, windows = case.cut()
    for part in PARTS:
        for end in windows.parts[part]:
            rows = slice(end + 1 - case.lookback, end + 1)
            assert end + 1 - case.lookback >= 0
            assert len(set(table.runs_N[rows].tolist())) == 1
            assert np.isfinite(table.x_NF[rows]).all()
            assert np.isfinite(table.labels_NK[end]).all()


@steady
@given(cases)
def test_no_label_is_known_after_its_parts_border(case: Case) -> None:
    table, windows = case.cut()
    edges = [-1, *(windows.borders_ms[part] for part in PARTS[1:]), 2**62]
    known, closing = windows.available_at_ms_R, label_known(windows, table)
    for number, part in enumerate(PARTS):
        ends = windows.parts[part]
        assert (known[ends] > edges[number]).all()
        assert (closing[ends] <= edges[number + 1]).all()
    for earlier, later in pairwise(PARTS):
        assert closing[windows.parts[earlier]].max() < known[windows.parts[later]].min()


@steady
@given(cases)
def test_only_windows_whose_label_crosses_a_border_are_purged(case: Case) -> None:
    table, windows = case.cut()
    kept = np.concatenate([windows.parts[part] for part in PARTS])
    complete = np.flatnonzero(
        (streaks(np.isfinite(table.x_NF).all(axis=1), table.runs_N) >= case.lookback)
        & np.isfinite(table.labels_NK[:, 0])
    )
    purged = np.setdiff1d(complete, kept)
    assert len(purged) == windows.num_purged
    assert np.setdiff1d(kept, complete).size == 0
    borders = np.array(list(windows.borders_ms.values()))
    crosses = (table.available_at_ms_N[purged, None] <= borders) & (
        borders < table.label_available_at_ms_N[purged, None]
    )
    assert crosses.any(axis=1).all()


@steady
@given(cases, st.integers(1, 30))
def test_an_embargo_takes_the_first_bars_after_each_border_and_nothing_else(case: Case, embargo_bars: int) -> None:
    table, free = case.cut()
    try:
        kept = build(
            [table], features=FEATURES, is_level=IS_LEVEL, lookback=case.lookback,
            split=Borders(free.borders_ms, embargo_bars),
        )  # fmt: skip
    except DataValidationError:
        reject()
    assert kept.borders_ms == free.borders_ms
    num_taken = 0
    for part in PARTS:
        border = free.borders_ms.get(part)
        later = [] if border is None else np.flatnonzero(table.available_at_ms_N > border)[:embargo_bars].tolist()
        assert kept.parts[part].tolist() == [end for end in free.parts[part].tolist() if end not in later]
        num_taken += len(free.parts[part]) - len(kept.parts[part])
    assert kept.num_purged == free.num_purged + num_taken
    assert num_taken > 0


def test_an_embargo_counts_each_symbols_own_bars() -> None:
    """A symbol whose bars are missing after the border waits for as many bars as the others, not as many hours."""
    whole, gappy = symbol_rows("EUR/USD", num=1500), symbol_rows("GBP/USD", num=1500, seed=1)
    free = cut(whole, gappy)
    border = free.borders_ms["test"]
    late = gappy.available_at_ms_N > border
    gappy = replace(
        gappy,
        available_at_ms_N=gappy.available_at_ms_N + np.where(late, 40 * HOUR_MS, 0),
        label_available_at_ms_N=gappy.label_available_at_ms_N
        + np.where(gappy.label_available_at_ms_N > border, 40 * HOUR_MS, 0),
    )
    kept = build([whole, gappy], features=FEATURES, is_level=IS_LEVEL, lookback=8, split=Borders(free.borders_ms, 24))
    for number, table in enumerate((whole, gappy)):
        ends = kept.parts["test"][kept.symbol_R[kept.parts["test"]] == number]
        assert (
            kept.available_at_ms_R[ends].min() == np.sort(table.available_at_ms_N[table.available_at_ms_N > border])[24]
        )


def test_borders_may_be_given_in_place_of_a_share() -> None:
    table = symbol_rows(num=1500)
    shared = cut(table, validation_split=0.4)
    given_ = build([table], features=FEATURES, is_level=IS_LEVEL, lookback=8, split=Borders(shared.borders_ms))
    assert given_.borders_ms == shared.borders_ms
    assert all(given_.parts[part].tolist() == shared.parts[part].tolist() for part in PARTS)
    later = {name: moment + 50 * HOUR_MS for name, moment in shared.borders_ms.items()}
    moved = build([table], features=FEATURES, is_level=IS_LEVEL, lookback=8, split=Borders(later))
    assert len(moved.parts["train"]) == len(shared.parts["train"]) + 50


def test_parts_have_the_shares_of_the_time_that_were_asked_for() -> None:
    windows = cut(symbol_rows(num=4000), validation_split=0.4)
    sizes = [len(windows.parts[part]) / 4000 for part in PARTS]
    np.testing.assert_allclose(sizes, [0.6, 0.1, 0.1, 0.2], atol=0.005)


def test_borders_are_the_same_for_any_features_and_lookback() -> None:
    rows, late = symbol_rows(num=900), with_holes(symbol_rows(num=900), range(120))
    found = [
        build([table], features=FEATURES, is_level=IS_LEVEL, lookback=lookback, split=0.4).borders_ms
        for table, lookback in ((rows, 3), (rows, 96), (late, 8))
    ]
    assert found[0] == found[1] == found[2]


def test_borders_are_the_same_moments_for_all_symbols() -> None:
    early = symbol_rows("EUR/USD", num=1500)
    late = replace(symbol_rows("GBP/USD", num=1200, seed=1))
    shift = 300 * HOUR_MS
    late = replace(
        late,
        available_at_ms_N=late.available_at_ms_N + shift,
        label_available_at_ms_N=np.where(late.label_available_at_ms_N < 0, -1, late.label_available_at_ms_N + shift),
    )
    windows = cut(early, late)
    for part, border in zip(PARTS[1:], windows.borders_ms.values(), strict=True):
        for symbol in (0, 1):
            ends = windows.parts[part][windows.symbol_R[windows.parts[part]] == symbol]
            assert (
                windows.available_at_ms_R[ends].min()
                == border + HOUR_MS - (border - windows.available_at_ms_R[0]) % HOUR_MS
            )
    assert windows.symbols == ("EUR/USD", "GBP/USD")
    assert windows.label_scale_RK[0] == windows.scaler.symbols["EUR/USD"].label_scale_K
    assert windows.label_scale_RK[-1] == windows.scaler.symbols["GBP/USD"].label_scale_K


def test_nothing_after_the_first_border_reaches_the_scaler_or_the_training_rows() -> None:
    table = with_holes(symbol_rows(num=1500, horizon=3, gaps=[200]), [50])
    windows = cut(table)
    after = table.available_at_ms_N > windows.borders_ms["validation"]
    x_NF, labels = table.x_NF.copy(), table.labels_NK.copy()
    x_NF[after] *= np.random.default_rng(9).uniform(0.01, 100, x_NF[after].shape)
    labels[table.label_available_at_ms_N > windows.borders_ms["validation"]] *= -17
    changed = cut(replace(table, x_NF=x_NF, labels_NK=labels))
    assert changed.scaler.to_json() == windows.scaler.to_json()
    assert changed.parts["train"].tolist() == windows.parts["train"].tolist()
    trained = ~after
    assert changed.rows_RF[trained].tobytes() == windows.rows_RF[trained].tobytes()
    ends = windows.parts["train"]
    assert changed.labels_RK[ends].tobytes() == windows.labels_RK[ends].tobytes()
    assert not np.array_equal(changed.rows_RF[after], windows.rows_RF[after])


def test_a_run_has_a_number_that_no_other_symbol_has() -> None:
    """A gap is seen where the number changes, at the seam between two symbols too."""
    first, second = symbol_rows(num=600, gaps=[100]), symbol_rows("GBP/USD", num=600, seed=1, gaps=[50, 300])
    windows = cut(first, second)
    starts = np.flatnonzero(np.diff(windows.runs_R)) + 1
    assert starts.tolist() == [100, 600, 650, 900]
    assert len(set(windows.runs_R.tolist())) == 5


def test_a_training_row_does_reach_the_scaler() -> None:
    table = symbol_rows(num=1500)
    x_NF = table.x_NF.copy()
    x_NF[100] *= 2
    assert cut(replace(table, x_NF=x_NF)).scaler.to_json() != cut(table).scaler.to_json()


def test_gathering_cuts_the_rows_before_and_at_the_end() -> None:
    windows = cut(symbol_rows("EUR/USD", num=600), symbol_rows("GBP/USD", num=600, seed=1))
    ends = windows.parts["test"][[0, 5, -1]]
    for length in (3, 8):
        found = windows.gather(ends, length)
        assert found.shape == (3, length, 3)
        for number, end in enumerate(ends):
            assert np.array_equal(found[number], windows.rows_RF[end + 1 - length : end + 1])
    assert windows.gather(ends).shape == (3, 8, 3)


@pytest.mark.parametrize(("num", "part"), [(90, "train"), (190, "validation"), (10, "train"), (2, "train")])
def test_too_few_windows_are_refused_with_what_to_do(num: int, part: str) -> None:
    with pytest.raises(DataValidationError, match=f"the {part} part has .* complete windows of 8 bars") as caught:
        cut(symbol_rows(num=num), validation_split=0.2)
    assert str(FEWEST_WINDOWS[part]) in caught.value.message  # type: ignore[index]
    assert "longer range" in caught.value.message
    assert caught.value.details["errors"][0]["code"] == "too_few_windows"


def test_a_symbol_without_a_training_window_is_named() -> None:
    late = symbol_rows("GBP/USD", num=300, seed=1)
    late = replace(
        late,
        available_at_ms_N=late.available_at_ms_N + 1200 * HOUR_MS,
        label_available_at_ms_N=np.where(
            late.label_available_at_ms_N < 0, -1, late.label_available_at_ms_N + 1200 * HOUR_MS
        ),
    )
    with pytest.raises(DataValidationError, match="GBP/USD has no complete window in the training part"):
        cut(symbol_rows("EUR/USD", num=1500), late)


def test_a_moment_belongs_to_the_part_its_windows_belong_to() -> None:
    table = symbol_rows(num=1500)
    windows = cut(table)
    last_ms = int(table.available_at_ms_N.max())
    for part in PARTS:
        found = {
            part_of(int(known), windows.borders_ms, last_ms=last_ms)
            for known in table.available_at_ms_N[windows.parts[part]]
        }
        assert found == {SAMPLES[part]}
    assert part_of(last_ms, windows.borders_ms, last_ms=last_ms) == "test"
    assert part_of(last_ms + 1, windows.borders_ms, last_ms=last_ms) == "live"
    assert part_of(0, windows.borders_ms, last_ms=last_ms) == "train"


def test_bars_of_one_time_that_are_delivered_seconds_apart_share_a_moment() -> None:
    first, second, third = (symbol_rows(name, num=600, seed=number) for number, name in enumerate(PAIRS))
    at_once = cut(first, second, third)
    ends = np.concatenate([at_once.parts["test"], at_once.parts["train"]])
    assert np.array_equal(at_once.moments(ends), at_once.available_at_ms_R[ends])
    late = [
        replace(
            table,
            available_at_ms_N=table.available_at_ms_N + delay,
            label_available_at_ms_N=table.label_available_at_ms_N + delay,
        )
        for table, delay in ((first, 0), (second, 7_000), (third, 20 * 60_000))
    ]
    windows = cut(*late)
    assert len(np.unique(windows.available_at_ms_R[windows.parts["test"]])) == len(windows.parts["test"])
    moments = windows.moments(windows.parts["test"])
    counts = np.unique(moments, return_counts=True)[1]
    assert np.median(counts) == 3
    assert len(counts) <= len(windows.parts["test"]) / 3 + 2, "at the part's ends a symbol may be alone"


def test_borders_are_told_in_iso_8601_by_the_names_that_cards_have_always_had() -> None:
    assert describe_borders({"validation": 1_600_000_000_000}) == {"stop": "2020-09-13T12:26:40Z"}


def test_what_was_written_with_the_old_names_is_read_with_the_new_ones() -> None:
    recipe = {"stop": 1, "calibrate": 2, "test": 3}
    assert from_wire(recipe) == {"validation": 1, "calibration": 2, "test": 3}
    assert to_wire(from_wire(recipe)) == recipe
