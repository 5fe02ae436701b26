"""Selection finds what was injected, each thing once; says so where there is only chance; and looks at no future."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.contracts.feature_sets import FeatureSet, SelectionWindow, is_reference, parse_reference
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.feature_search.scores import EMBARGO, NUM_FOLDS, SelectionRows, labelled
from ml_workbench_service.learning.feature_search.selection import (
    NO_BETTER_THAN_CHANCE,
    NUM_BEST_OF_NOISE,
    Selection,
    SelectionSettings,
    mrmr,
    select,
)
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.testing.synthetic import HOUR_MS, START_MS, Recorder

NUM = 1600
TEXTS = (
    "signal", "lag(signal, 1)", "lag(signal, 2)", "lag(signal, 3)", "diff(signal, 1)", "zscore(signal, 24)", "noise",
    "lag(noise, 1)", "lag(noise, 2)", "diff(noise, 1)", "zscore(noise, 24)", "close / average",
    "lag(close / average, 4)", "log_return(close, 1)", "log_return(close, 8)", "zscore(close, 24)", "abundance",
    "std(log_return(close, 1), 12)", "diff(abundance, 2)", "lag(abundance, 1)", "sin_hour()", "cos_weekday()",
)  # fmt: skip


def columns_of(*, seed: int, num: int = NUM) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    close = 1.1 * np.exp(np.cumsum(rng.normal(size=num) * 1e-3))
    average = np.convolve(close, np.full(20, 1 / 20))[:num]
    average[:19] = np.nan
    signal, noise, abundance = rng.normal(size=(3, num))
    return {"close": close, "average": average, "signal": signal, "noise": noise, "abundance": abundance}


def rows_of(columns: Mapping[str, Floats], labels: Floats, *, horizon: int = 1) -> SelectionRows:
    num = len(labels)
    known = START_MS + HOUR_MS * np.arange(num)
    labels = np.where(np.arange(num) < num - horizon, labels, np.nan)
    return SelectionRows(
        columns=columns,
        opened_ms=known - HOUR_MS,
        available_at_ms=known,
        runs=np.zeros(num, dtype=np.int64),
        labels=labels,
        label_available_at_ms=np.where(np.isfinite(labels), known + horizon * HOUR_MS, -1),
    )


def noise_of(*, seed: int, num: int = NUM) -> Floats:
    return np.random.default_rng(1000 + seed).normal(size=num)


def lagged(values: Floats, bars: int) -> Floats:
    return np.concatenate([np.zeros(bars), values[:-bars]])


def search(
    *tables: SelectionRows,
    texts: Sequence[str] = TEXTS,
    end_ms: int | None = None,
    seed: int = 0,
    report: Recorder | None = None,
    **options: Any,
) -> Selection:
    settings = SelectionSettings(**{"is_move": True, "num_shuffles": 40, "num_samples": 20, **options})
    end_ms = int(tables[0].available_at_ms[-1]) if end_ms is None else end_ms
    candidates = [parse(text) for text in texts]
    return select(candidates, tables, settings, end_ms=end_ms, seed=seed, report=report or Recorder())


def chosen(selection: Selection) -> list[str]:
    return [each.expression.text for each in selection.chosen]


def injected(*, seed: int = 0, horizon: int = 1) -> SelectionRows:
    """Labels that a lag of `signal` and the close over its average explain, by a quarter and a fifth."""
    columns = columns_of(seed=seed)
    ratio = np.nan_to_num(columns["close"] / columns["average"] - 1)
    labels = 0.5 * lagged(columns["signal"], 2) + 0.45 * ratio / ratio[20:].std() + noise_of(seed=seed)
    return rows_of(columns, labels, horizon=horizon)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_lag_and_a_ratio_that_move_the_target_are_found(seed: int) -> None:
    selection = search(injected(seed=seed), seed=seed)
    assert not selection.warnings
    assert "lag(signal, 2)" in chosen(selection)[:3]
    assert {"close / average", "zscore(close, 24)"} & set(chosen(selection)[:3])
    assert not {"noise", "lag(noise, 1)", "abundance", "signal", "sin_hour()"} & set(chosen(selection))
    for each in selection.chosen:
        assert each.score > selection.chance_level > 0
        assert each.score == pytest.approx(np.mean(each.score_by_fold))
        assert each.stability >= 0.5


def test_pure_noise_gives_the_best_few_and_says_that_none_beats_chance() -> None:
    found = [search(rows_of(columns_of(seed=seed), noise_of(seed=seed)), seed=seed) for seed in range(10)]
    honest = [selection for selection in found if selection.warnings == (NO_BETTER_THAN_CHANCE,)]
    assert len(honest) >= 9
    assert all(len(selection.chosen) == NUM_BEST_OF_NOISE for selection in honest)
    assert all(each.reason == "below_chance" for selection in honest for each in selection.rejected)


def test_persistent_columns_and_overlapping_labels_are_no_signal() -> None:
    honest = 0
    for seed in range(16):
        steps = np.random.default_rng(seed).normal(size=(2, 3000))
        walk, returns = np.convolve(steps[0], np.full(50, 0.1))[:3000], steps[1]
        labels = np.convolve(returns, np.ones(12))[11:]
        table = rows_of({"walk": walk[: len(labels)]}, labels, horizon=12)
        honest += search(table, texts=("walk", "diff(walk, 9)", "mean(walk, 24)"), seed=seed).warnings != ()
    assert honest >= 13


def test_of_two_columns_that_say_the_same_one_is_chosen_and_the_other_names_it() -> None:
    columns = columns_of(seed=0)
    columns["twin"] = 3 * columns["signal"] + 1
    columns["monotone"] = np.exp(columns["signal"])
    selection = search(
        rows_of(columns, 0.5 * columns["signal"] + noise_of(seed=0)), texts=("noise", "signal", "twin", "monotone")
    )
    assert chosen(selection) == ["signal"]
    copies = {each.expression: each for each in selection.rejected if each.reason == "near_copy"}
    assert set(copies) == {"twin", "monotone"}
    assert {each.near_copy_of for each in copies.values()} == {"signal"}
    assert all(each.shared == pytest.approx(1, abs=0.01) for each in copies.values())


def test_what_tells_only_how_large_a_move_is_counts_for_its_size_alone() -> None:
    columns = columns_of(seed=3)
    rows = rows_of(columns, noise_of(seed=3) * np.exp(columns["signal"]))
    assert search(rows, is_move=True).warnings == (NO_BETTER_THAN_CHANCE,)
    assert chosen(search(rows, is_move=False))[0] == "signal"


def test_classes_are_told_apart_by_their_numbers() -> None:
    columns = columns_of(seed=4)
    classes = np.digitize(columns["signal"] + noise_of(seed=4), [-0.5, 0.5]).astype(float)
    selection = search(rows_of(columns, classes), num_classes=3, is_move=False)
    assert chosen(selection)[0] == "signal"
    assert not selection.warnings


def test_symbols_are_ranked_apart_and_shuffled_together() -> None:
    first, second = injected(seed=0), injected(seed=1)
    moved = {name: column * 100 + 7 for name, column in second.columns.items() if name in ("signal", "noise")}
    second = replace(second, columns={**second.columns, **moved}, labels=second.labels * 50)
    assert "lag(signal, 2)" in chosen(search(first, second))[:3]
    rows = labelled([first, first], num_classes=0, is_move=True)
    half = len(rows.target_R) // 2
    for seed in range(3):
        shuffled = rows.shuffled(np.random.default_rng(seed))
        assert (shuffled[:half] == shuffled[half:]).all()
        assert (np.sort(shuffled) == np.sort(rows.target_R)).all()
        assert (shuffled != rows.target_R).mean() > 0.3


def test_a_shuffle_puts_blocks_of_time_in_another_order() -> None:
    rows = labelled(
        [rows_of(columns_of(seed=0), (np.arange(NUM) // 32).astype(np.float64))], num_classes=50, is_move=False
    )
    assert rows.block == 31
    steps = np.diff(rows.shuffled(np.random.default_rng(0)).astype(int)) % 50
    assert (steps > 1).sum() > 30
    assert (steps > 1).sum() < rows.num_blocks


def test_noise_scores_below_nothing_since_nothing_is_learnt_from_what_is_held_out() -> None:
    selection = search(rows_of(columns_of(seed=0), noise_of(seed=0)))
    assert np.mean([each.score or 0.0 for each in selection.rejected]) < -0.0005


def test_nothing_after_the_training_part_changes_anything() -> None:
    whole, border = injected(horizon=5), START_MS + HOUR_MS * 1200
    before = search(whole, end_ms=border)
    late = whole.available_at_ms > border
    columns = {name: np.where(late, 7 * column[::-1] + 1, column) for name, column in whole.columns.items()}
    unknown = whole.label_available_at_ms > border
    other = replace(whole, columns=columns, labels=np.where(unknown, -whole.labels, whole.labels))
    assert search(other, end_ms=border) == before
    cut = SelectionRows(
        **{name: value[:1201] for name, value in vars(whole).items() if name != "columns"},
        columns={name: column[:1201] for name, column in whole.columns.items()},
    )
    assert search(cut, end_ms=border) == before
    assert before.end_ms == border
    assert before.num_rows == 1200 - 5 + 1
    assert search(other) != search(whole)


def test_a_seed_fixes_everything_and_another_one_moves_only_chance() -> None:
    first, again, other = (search(injected(), seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert other.chance_level != first.chance_level
    assert chosen(other)[0] == chosen(first)[0]
    assert other.chosen[0].score == first.chosen[0].score


def test_a_fold_learns_from_no_row_whose_label_reaches_into_it_nor_from_its_embargo() -> None:
    rows = labelled([injected(horizon=7)], num_classes=0, is_move=True)
    purged, purged_from = rows.purged()
    embargo_ms = round(EMBARGO * len(rows.moments_ms_T)) * HOUR_MS
    for fold in range(NUM_FOLDS):
        held = rows.fold_R == fold
        learnt = ~held
        learnt[purged[purged_from == fold]] = False
        first_ms, last_ms = rows.available_at_ms_R[held].min(), rows.label_available_at_ms_R[held].max()
        before = rows.available_at_ms_R < first_ms
        assert (rows.label_available_at_ms_R[learnt & before] <= first_ms).all()
        assert (rows.available_at_ms_R[learnt & ~before] >= last_ms + embargo_ms).all()
        assert learnt.sum() >= (~held).sum() - 2 * 7 - 2 * round(EMBARGO * NUM)
    assert len(purged) > 4 * 7


def test_columns_without_values_or_without_variation_are_set_aside() -> None:
    columns = columns_of(seed=0)
    columns["empty"] = np.where(np.arange(NUM) % 5 == 0, columns["signal"], np.nan)
    columns["still"] = np.full(NUM, 3.0)
    rows = rows_of(columns, 0.5 * columns["signal"] + noise_of(seed=0))
    selection = search(rows, texts=("empty", "still", "signal", "diff(still, 2)"))
    assert chosen(selection) == ["signal"]
    assert {each.expression: each.reason for each in selection.rejected} == dict.fromkeys(
        ("empty", "still", "diff(still, 2)"), "constant"
    )
    with pytest.raises(DataValidationError, match="no candidate has values"):
        search(rows, texts=("empty", "still"))


def test_too_few_rows_for_the_horizon_are_refused_with_a_way_out() -> None:
    with pytest.raises(DataValidationError, match=r"10 labelled bars, and 250 are needed.*longer range"):
        search(injected(), end_ms=START_MS + 10 * HOUR_MS)
    with pytest.raises(DataValidationError, match="shorter horizon"):
        search(injected(horizon=60))


def test_at_most_so_many_are_chosen_and_the_rest_is_not_needed() -> None:
    columns = columns_of(seed=0)
    names = ("signal", "noise", "abundance")
    labels = np.asarray(sum(columns[name] for name in names)) + noise_of(seed=0)
    assert set(chosen(search(rows_of(columns, labels), texts=names))) == set(names)
    selection = search(rows_of(columns, labels), texts=names, max_features=2)
    assert len(selection.chosen) == 2
    assert [each.reason for each in selection.rejected] == ["not_needed"]


def test_what_resampled_data_do_not_choose_is_unstable() -> None:
    """Of 30 columns that tell the same much, each sample chooses another dozen."""
    columns = {f"part_{number}": noise_of(seed=number, num=4000) for number in range(30)}
    labels = np.asarray(sum(columns.values())) + noise_of(seed=99, num=4000)
    selection = search(rows_of(columns, labels), texts=tuple(columns))
    assert {each.reason for each in selection.rejected} == {"unstable"}
    for each in selection.rejected:
        assert each.score is not None
        assert each.stability is not None
        assert each.score > selection.chance_level
        assert each.stability < 0.5


def test_a_search_reports_its_steps_and_stops_when_cancelled() -> None:
    recorder = Recorder()
    search(injected(), report=recorder)
    assert recorder.steps[-1][:2] == (2, 2)
    assert recorder.messages == ["evaluating candidates", "scoring candidates", "resampling"]
    with pytest.raises(JobCancelled):
        search(injected(), report=Recorder(cancel_at_check=10))


def test_mrmr_prefers_what_says_something_new_and_never_takes_a_copy() -> None:
    relevance = np.array([1.0, 0.9, 0.6, 0.95, 0.0])
    alike = np.eye(5)
    alike[0, 1] = alike[1, 0] = 0.4
    alike[0, 3] = alike[3, 0] = 0.8
    everything = np.ones(5, dtype=bool)
    assert mrmr(relevance, alike, eligible_C=everything, most=5) == [0, 2, 1]
    assert mrmr(relevance, alike, eligible_C=everything, most=2) == [0, 2]
    assert mrmr(relevance, alike, eligible_C=relevance < 0.95, most=5) == [1, 2]


def test_a_selection_becomes_a_feature_set() -> None:
    selection = search(injected())
    expressions = selection.features(lambda name: "level" if name in ("close", "average") else "stationary")
    assert [each.expression for each in expressions] == chosen(selection)
    assert {each.kind for each in expressions} == {"stationary"}
    parsed: list[Expression] = [parse(each.expression) for each in expressions]
    feature_set = FeatureSet(
        id="injected_v1",
        version="1.0.0",
        symbols=("EURUSD",),
        timeframe="1h",
        target="price_change_1h",
        expressions=expressions,
        base_columns=("signal", "close", "average"),
        history=max(each.history for each in parsed),
        selection=SelectionWindow.model_validate(
            {
                "start": "2020-09-13T12:26:40Z",
                "end": "2020-11-19T03:26:40Z",
                "num_rows": selection.num_rows,
                "num_candidates": selection.num_candidates,
                "chance_level": selection.chance_level,
                "seed": 0,
            }
        ),
        rejected=selection.rejected,
    )
    assert FeatureSet.model_validate_json(feature_set.model_dump_json()) == feature_set
    assert feature_set.names[0] == expressions[0].name
    twice = {**feature_set.model_dump(), "expressions": [expressions[0], expressions[0]]}
    with pytest.raises(ValidationError, match="stands twice"):
        FeatureSet.model_validate(twice)


def test_a_reference_names_a_set_and_perhaps_a_version() -> None:
    assert is_reference("@eurusd_features_v1")
    assert not is_reference("rsi_14")
    assert parse_reference("@eurusd_features_v1") == ("eurusd_features_v1", None)
    assert parse_reference("@eurusd:1.2.0") == ("eurusd", "1.2.0")
    for bad in ("@", "eurusd", "@Eurusd", "@eurusd:1.2", "@eurusd:", "@a/../b", "@a..b"):
        with pytest.raises(ValueError, match="@id:version"):
            parse_reference(bad)
