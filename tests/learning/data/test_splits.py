"""Parts that lie apart: nothing that is learnt from tells of a tested bar, or of the embargo behind it."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_workbench_service.learning.data.splits import PARTS, Borders, PartSpan, ScatteredParts
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.training.combinatorial import split_around

NUM_BARS = 240


def groups(num: int) -> list[PartSpan]:
    length = NUM_BARS * HOUR_MS // num
    return [PartSpan("test", place * length, (place + 1) * length) for place in range(num)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_learnt_window_and_no_label_of_it_meets_a_test_or_its_embargo(data: st.DataObject) -> None:
    num = data.draw(st.integers(4, 8))
    tested = data.draw(st.sampled_from(list(combinations(range(num), data.draw(st.integers(2, num - 2))))))
    embargo, lookback, horizon = (data.draw(st.integers(low, 12)) for low in (0, 1, 1))
    missing = data.draw(st.sets(st.integers(0, NUM_BARS - 1), max_size=30))
    known = np.array([bar for bar in range(NUM_BARS) if bar not in missing], dtype=np.int64) * HOUR_MS + 1
    split = split_around(groups(num), tested, embargo_bars=embargo)
    ends = np.arange(lookback - 1, len(known) - horizon)
    barred = split.barred(known, lookback)[ends]
    masks = split.masks(known[ends], known[ends + horizon], barred)

    num_parts = np.sum([masks[part] for part in PARTS], axis=0)
    assert num_parts.max(initial=0) <= 1
    for group in (groups(num)[place] for place in tested):
        behind = known[known > group.end_ms][:embargo]
        until_ms = behind[-1] if len(behind) else group.end_ms
        for end in ends[masks["train"] | masks["validation"] | masks["calibration"]]:
            first_ms, label_ms = known[end - lookback + 1], known[end + horizon]
            assert label_ms <= group.start_ms or first_ms > until_ms
        inside = ends[masks["test"] & (known[ends] > group.start_ms) & (known[ends] <= group.end_ms)]
        assert (known[inside + horizon] <= group.end_ms).all()
    learnt = split.learnt(known)
    assert not learnt[split.barred(known, lookback=1)].any()
    assert all(not (learnt & (known > each.start_ms) & (known <= each.end_ms)).any() for each in split.of("test"))


def test_stretches_tile_the_time_and_the_last_group_left_stops_and_calibrates() -> None:
    split = split_around(groups(6), (1, 5), embargo_bars=0)
    assert [each.part for each in split.in_time] == ["train", "test", "train", "validation", "calibration", "test"]
    assert all(one.end_ms == other.start_ms for one, other in zip(split.in_time, split.in_time[1:], strict=False))
    assert split.in_time[2].end_ms - split.in_time[2].start_ms == 2 * (groups(6)[0].end_ms - groups(6)[0].start_ms)
    assert split.at_ms == {
        "validation": groups(6)[4].start_ms,
        "calibration": (groups(6)[4].start_ms + groups(6)[4].end_ms) // 2,
        "test": groups(6)[1].start_ms,
    }


def test_a_label_may_reach_from_one_learnt_group_into_the_next() -> None:
    split = split_around(groups(6), (4, 5), embargo_bars=0)
    border = groups(6)[0].end_ms
    known = np.array([border])
    assert split.masks(known, known + HOUR_MS, np.array([False]))["train"].all()


def test_what_comes_next_is_the_end_of_the_own_stretch() -> None:
    split = split_around(groups(6), (1, 3), embargo_bars=0)
    for each in split.in_time:
        assert split.end_after(each.end_ms) == each.end_ms
        assert split.end_after(each.start_ms + 1) == each.end_ms
    assert split.end_after(split.in_time[-1].end_ms + 1) is None
    borders = Borders({"validation": 10, "calibration": 20, "test": 30})
    assert [borders.end_after(moment) for moment in (1, 10, 11, 30, 31)] == [10, 10, 20, 30, None]


def test_a_test_behind_a_test_is_whole() -> None:
    split = ScatteredParts(
        (PartSpan("test", 0, 10), PartSpan("test", 10, 20), PartSpan("train", 20, 40)), embargo_bars=3
    )
    known = np.arange(1, 41)
    assert known[split.barred(known, lookback=4)].tolist() == [21, 22, 23, 24, 25, 26]
