"""A label counts by how much of its time is its own, part by part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_workbench_service.contracts.market import FeatureTable, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.data.label_overlap import average_uniqueness
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.windows import LEARNT, Windows, build
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import resolved_costs
from tests.trained_models import injected_bars


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=40))
def test_it_is_the_mean_share_of_a_labels_bars(spans: list[tuple[int, int]]) -> None:
    """Written out, bar by bar."""
    begins, ends = np.array([begin for begin, _ in spans]), np.array([begin + more for begin, more in spans])
    found = average_uniqueness(begins, ends)
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        shares = [1 / np.sum((begins <= bar) & (ends >= bar)) for bar in range(begin, end + 1)]
        assert found[number] == pytest.approx(np.mean(shares), rel=1e-12)


def test_labels_that_share_no_bar_count_whole_and_twins_half() -> None:
    assert average_uniqueness(np.array([0, 4, 8]), np.array([3, 7, 11])).tolist() == [1, 1, 1]
    assert average_uniqueness(np.array([5, 5]), np.array([9, 9])).tolist() == [0.5, 0.5]
    assert average_uniqueness(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_overlapping_labels_of_one_horizon_are_worth_as_many_as_share_no_bar() -> None:
    begins = np.arange(1000)
    assert average_uniqueness(begins, begins + 9).sum() == pytest.approx(1000 / 10, rel=0.03)


def cut(target: str, *, by_uniqueness: bool = True, drop: Ints | None = None) -> Windows:
    """Hourly bars; `drop`: rows whose feature is missing, so that no window holds them."""
    bars = injected_bars(1500, seed=4, r2=0.2)
    signal = bars.signal.copy()
    if drop is not None:
        signal[drop] = np.nan
    table = FeatureTable(
        "EUR/USD", "1h", bars.opened_ms, bars.opened_ms + HOUR_MS, {"signal": signal, "close": bars.close}, "file"
    )
    labelled = label_tables(
        [table], features=["signal"], columns=[{"signal": signal}], targets=(parse_target(target),),
        costs={"EUR/USD": resolved_costs("EUR/USD")}, by_uniqueness=by_uniqueness,
    )  # fmt: skip
    return build(
        labelled.rows, features=["signal"], is_level=[False], lookback=1, split=0.4, scales_labels=[True],
        finish_rows=labelled.finish,
    )  # fmt: skip


def test_weights_are_one_in_the_mean_of_each_learnt_part_and_there_are_none_unless_asked_for() -> None:
    windows = cut("price_change_12h")
    assert cut("price_change_12h", by_uniqueness=False).weights_R is None
    assert windows.weights_R is not None
    for part in LEARNT:
        assert windows.weights_R[windows.parts[part]].mean() == pytest.approx(1, rel=1e-6)
    assert windows.weights_R.min() > 0


def test_a_part_counts_its_own_labels_alone() -> None:
    """Windows that are missing in the later parts change nothing of what the training part's count."""
    windows = cut("price_change_12h")
    validation = windows.parts["validation"]
    later = cut("price_change_12h", drop=np.arange(validation[0], len(windows.symbol_R) - 300, 2))
    train = windows.parts["train"]
    assert np.array_equal(train, later.parts["train"])
    assert windows.uniqueness_R is not None
    assert later.uniqueness_R is not None
    assert np.array_equal(windows.uniqueness_R[train], later.uniqueness_R[train])
    shared = np.intersect1d(validation, later.parts["validation"])
    assert (later.uniqueness_R[shared] > windows.uniqueness_R[shared]).mean() > 0.9


def test_rare_rows_count_more_than_dense_ones() -> None:
    rare = np.array([row for row in range(400) if row % 12])
    windows = cut("price_change_12h", drop=rare)
    assert windows.uniqueness_R is not None
    train = windows.parts["train"]
    assert windows.uniqueness_R[train[train < 380]].mean() > 5 * windows.uniqueness_R[train[train > 420]].mean()


def test_a_barriers_label_ends_where_it_is_touched() -> None:
    """Barriers that are touched at once overlap less than those that wait for the horizon's end."""
    near, far = (cut(f"triple_barrier_{bars}h") for bars in (2, 24))
    assert near.uniqueness_R is not None
    assert far.uniqueness_R is not None
    touched = far.own_labels_RK[far.parts["train"], 0] != 1
    unique = far.uniqueness_R[far.parts["train"]]
    assert 0.1 < touched.mean() < 0.95
    assert unique[touched].mean() > 1.1 * unique[~touched].mean()
    assert unique.mean() > 1 / 24
    assert near.uniqueness_R[near.parts["train"]].mean() > unique.mean()
