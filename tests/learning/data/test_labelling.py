"""Labels of several targets at once: side by side, known together, and nothing fitted on what comes after `train`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, FeatureTable, Floats
from ml_workbench_service.contracts.training import LabelOptions, parse_target
from ml_workbench_service.learning.data.labelling import Labelling, label_tables
from ml_workbench_service.learning.data.splits import Borders
from ml_workbench_service.learning.data.window_losses import streaks
from ml_workbench_service.learning.data.windows import PARTS, Windows, build
from ml_workbench_service.market import calendar
from ml_workbench_service.market.class_labels import price_moves, triple_barrier_labels
from ml_workbench_service.market.costs import resolved_costs, round_trip_cost, session_factor
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility
from ml_workbench_service.market.targets import ewma_volatility, log_returns

HOUR_MS, DAY_MS = TIMEFRAMES_MS["1h"], TIMEFRAMES_MS["1d"]
SUNDAY_MS = int(np.datetime64("2024-01-07T22:00", "ms").astype(np.int64))
EVERY_KIND = (
    "price_change_1h",
    "log_return_3h",
    "volatility_4h",
    "direction_2h",
    "triple_barrier_5h",
    "market_regime_2h",
)
LOOKBACK = 6


def table(
    symbol: str = "EUR/USD", *, num: int = 900, seed: int = 0, missing: Sequence[int] = (), spread: float | None = None
) -> FeatureTable:
    """Hourly bars of the FX week with the feature `noise`; those at `missing` never came."""
    hours = SUNDAY_MS + HOUR_MS * np.arange(2 * (num + len(missing)))
    opened = np.delete(hours[calendar.is_open(hours)][: num + len(missing)], list(missing))
    chance = np.random.default_rng(seed)
    columns = {
        "noise": chance.standard_normal(num),
        "close": 1.1 * np.exp(np.cumsum(chance.normal(0, 0.001, num) * np.exp(0.3 * chance.standard_normal(num)))),
    }
    if spread is not None:
        columns["spread"] = np.full(num, spread)
    return FeatureTable(symbol, "1h", opened, opened + HOUR_MS, columns, data_source="file")


def with_closes(of: FeatureTable, close: Floats) -> FeatureTable:
    return replace(of, columns={**of.columns, "close": close})


def labelled(*tables: FeatureTable, targets: Sequence[str], costs: Costs | None = None, k: float = 1.0) -> Labelling:
    return label_tables(
        tables,
        features=["noise"],
        columns=[each.columns for each in tables],
        targets=tuple(parse_target(name) for name in targets),
        costs={each.symbol: resolved_costs(each.symbol, costs) for each in tables},
        barrier_width=k,
    )


def windows_of(labelling: Labelling) -> Windows:
    return build(
        labelling.rows,
        features=["noise"],
        is_level=[False],
        lookback=LOOKBACK,
        split=0.4,
        scales_labels=[not target.classes for target in labelling.targets],
        finish_rows=labelling.finish,
    )


def labels_of(labelling: Labelling) -> Floats:
    return labelling.rows[0].labels_NK


def test_each_target_has_its_column_as_if_it_were_alone() -> None:
    bars = table(missing=[200, 201, 500])
    together = labels_of(labelled(bars, targets=EVERY_KIND))
    assert together.shape == (900, len(EVERY_KIND))
    for column, name in enumerate(EVERY_KIND):
        np.testing.assert_array_equal(together[:, column], labels_of(labelled(bars, targets=[name]))[:, 0])


def test_a_window_ends_only_where_every_target_has_a_label() -> None:
    bars = table(missing=[200, 201, 500])
    labelling = labelled(bars, targets=EVERY_KIND)
    windows = windows_of(labelling)
    finite = np.isfinite(labels_of(labelling))
    assert (finite.sum(axis=0) > finite.all(axis=1).sum()).any()  # some targets have labels where others have none
    kept = np.concatenate([windows.parts[part] for part in PARTS])
    assert np.isfinite(windows.own_labels_RK[kept]).all()
    runs = calendar.runs(bars.opened_ms, HOUR_MS, "fx")
    complete = (streaks(np.ones(900, dtype=bool), runs) >= LOOKBACK) & finite.all(axis=1)
    assert len(kept) + windows.num_purged == complete.sum()


def test_a_row_is_known_when_the_last_of_its_labels_is() -> None:
    bars = table()
    rows = labelled(bars, targets=["price_change_1h", "log_return_24h"]).rows[0]
    complete = np.isfinite(rows.labels_NK).all(axis=1)
    assert complete.any()
    np.testing.assert_array_equal(rows.label_available_at_ms_N[complete], bars.available_at_ms[complete] + 24 * HOUR_MS)


def test_the_longest_horizon_is_purged_at_every_border() -> None:
    bars = table(num=1400)
    windows = windows_of(labelled(bars, targets=["price_change_1h", "log_return_24h"]))
    borders = [*windows.borders_ms.values(), 2**62]
    for part, border in zip(PARTS, borders, strict=True):
        assert (windows.available_at_ms_R[windows.parts[part]] + 24 * HOUR_MS <= border).all()
    short = windows_of(labelled(bars, targets=["price_change_1h"]))
    assert windows.num_purged > short.num_purged


def test_what_fixings_fill_is_labelled_from_the_fill_on_unless_it_is_asked_otherwise() -> None:
    target = parse_target("price_change_5d")
    options = [LabelOptions(start=start) for start in ("fill", "close")]
    begun = [target.filled("next_close", each) for each in (None, *options)]
    assert [each.delay for each in begun] == [1, 1, 0]
    assert [each.is_traded("next_close") for each in begun] == [True, True, False]
    assert [target.filled("next_open", each).delay for each in options] == [0, 0]
    assert target.is_traded("next_open")
    volatility = parse_target("volatility_5d").filled("next_close")
    assert (volatility.delay, volatility.is_traded("next_open")) == (0, False)


def test_without_a_target_every_complete_window_counts_and_none_is_purged() -> None:
    bars = table(missing=[200])
    labelling = labelled(bars, targets=[])
    windows = windows_of(labelling)
    assert windows.labels_RK.shape == windows.label_scale_RK.shape == (900, 0)
    np.testing.assert_array_equal(labelling.rows[0].label_available_at_ms_N, bars.available_at_ms)
    assert windows.num_purged == 0
    assert sum(len(windows.parts[part]) for part in PARTS) == 900 - 2 * (LOOKBACK - 1)  # two runs


def test_classes_keep_their_numbers_and_only_numbers_are_scaled() -> None:
    windows = windows_of(labelled(table(), targets=EVERY_KIND))
    train = windows.parts["train"]
    for column, name in enumerate(EVERY_KIND):
        classes = parse_target(name).classes
        labels, own = windows.labels_RK[train, column], windows.own_labels_RK[train, column]
        if classes:
            assert set(own.tolist()) == set(range(len(classes)))
            np.testing.assert_array_equal(labels, own)
            assert (windows.label_scale_RK[:, column] == 1.0).all()
            continue
        assert float(np.sqrt(np.mean(labels.astype(float) ** 2))) == pytest.approx(1.0)
        np.testing.assert_allclose(labels * windows.label_scale_RK[train, column], own, rtol=1e-5)


@pytest.mark.parametrize("spread", [None, 0.0006])
def test_a_direction_is_worth_its_costs_and_the_bars_own_spread_wins(spread: float | None) -> None:
    bars = table(spread=spread)
    close = bars.columns["close"]
    costs = resolved_costs("EUR/USD")
    session = costs.spread_pips * session_factor(bars.available_at_ms)
    pips = session if spread is None else np.full(len(close), spread / 1e-4)
    found = labels_of(labelled(bars, targets=["direction_1h"]))[:, 0]
    rows = np.flatnonzero(np.isfinite(found))
    zones = np.array(
        [
            round_trip_cost(costs.model_copy(update={"spread_pips": pips[row]}), "EUR/USD", float(close[row]))
            for row in rows
        ]
    )
    moves = close[rows + 1] / close[rows] - 1
    np.testing.assert_array_equal(found[rows], 1.0 + (moves > zones) - (moves < -zones))
    assert len(set(found[rows].tolist())) == 3


def test_dearer_trading_makes_more_bars_a_hold() -> None:
    shares = []
    for pips in (0.1, 10.0):
        labels = labels_of(labelled(table(), targets=["direction_1h"], costs=Costs(spread_pips=pips)))
        shares.append(np.mean(labels[np.isfinite(labels)] == 1))
    assert shares[1] > 2 * shares[0] > 0


def test_the_requests_k_sets_the_barriers_apart() -> None:
    shares = []
    for k in (0.5, 1.0, 3.0):
        labels = labels_of(labelled(table(), targets=["triple_barrier_4h"], k=k))
        shares.append(np.mean(labels[np.isfinite(labels)] == 1))
    assert shares == sorted(set(shares))


def rule_and_training_labels(bars: FeatureTable) -> tuple[RegimeRule, Floats, Windows]:
    labelling = labelled(bars, targets=["market_regime_2h", "price_change_1h"])
    windows = windows_of(labelling)
    return labelling.regimes["EUR/USD"], windows.own_labels_RK[windows.parts["train"]], windows


def test_the_regimes_rule_knows_no_bar_after_the_end_of_train() -> None:
    bars = table(num=1400)
    rule, labels, windows = rule_and_training_labels(bars)
    after = bars.available_at_ms > windows.borders_ms["validation"]
    stormy = bars.columns["close"] * np.where(after, np.exp(np.random.default_rng(5).normal(0, 0.05, 1400)), 1.0)
    again, same, other = rule_and_training_labels(with_closes(bars, stormy))
    assert again == rule
    np.testing.assert_array_equal(same, labels)
    assert not np.array_equal(
        other.own_labels_RK[other.parts["test"], 0], windows.own_labels_RK[windows.parts["test"], 0]
    )
    last = int(np.flatnonzero(~after)[-1])
    close = bars.columns["close"].copy()
    close[last - 60 : last + 1] *= np.linspace(1.0, 1.1, 61)
    assert rule_and_training_labels(with_closes(bars, close))[0] != rule


def test_the_rule_is_fitted_on_all_bars_known_by_the_end_of_train_and_labels_look_ahead() -> None:
    bars = table(num=1400, missing=[300])
    rule, _, windows = rule_and_training_labels(bars)
    runs = calendar.runs(bars.opened_ms, HOUR_MS, "fx")
    trend, volatility = regime_features(bars.columns["close"], runs)
    known = bars.available_at_ms <= windows.borders_ms["validation"]
    assert rule == RegimeRule.fit(trend[known], volatility[known])
    kept = np.concatenate([windows.parts[part] for part in PARTS])
    np.testing.assert_array_equal(windows.own_labels_RK[kept, 0], rule.classify(trend, volatility)[kept + 2])


def test_finishing_gives_every_labelled_row_a_label_and_leaves_the_other_targets_alone() -> None:
    labelling = labelled(table(missing=[300]), targets=EVERY_KIND)
    (rows,) = labelling.finish(Borders({"validation": int(labelling.rows[0].available_at_ms_N[500])}))
    finished, before, regime = rows.labels_NK, labels_of(labelling), EVERY_KIND.index("market_regime_2h")
    fitted = [column for column, name in enumerate(EVERY_KIND) if name.startswith(("market_regime", "triple_barrier"))]
    np.testing.assert_array_equal(np.isfinite(finished), np.isfinite(before))
    np.testing.assert_array_equal(np.delete(finished, fitted, axis=1), np.delete(before, fitted, axis=1))
    assert set(finished[np.isfinite(finished[:, regime]), regime].tolist()) <= {0.0, 1.0, 2.0, 3.0}


def seasonal_table(num: int = 2400) -> FeatureTable:
    """London's mornings move four times as much, but only until three fifths of the bars have passed."""
    bars = table(num=num)
    hours = bars.opened_ms // HOUR_MS % 24
    season = np.where((hours >= 8) & (hours < 12) & (np.arange(num) < 3 * num // 5), 4.0, 1.0)
    return with_closes(bars, np.exp(np.cumsum(0.001 * season * np.random.default_rng(5).standard_normal(num))))


def test_the_season_is_fitted_on_the_training_part_and_sets_volatility_and_barriers() -> None:
    bars = seasonal_table()
    labelling = labelled(bars, targets=["triple_barrier_5h"], k=0.7)
    windows = windows_of(labelling)
    known = bars.available_at_ms <= windows.borders_ms["validation"]
    returns = log_returns(bars.columns["close"])
    profile = SeasonalProfile.fit(bars.opened_ms[known], returns[known], HOUR_MS)
    assert labelling.profiles == {"EUR/USD": profile}
    assert profile.factor(bars.opened_ms).max() > 2.0
    volatility = seasonal_volatility(profile, bars.opened_ms, returns, horizon=5)
    np.testing.assert_array_equal(windows.bar_volatility_R, volatility)
    target = parse_target("triple_barrier_5h")
    by_hand = triple_barrier_labels(
        target,
        price_moves(
            target, close=bars.columns["close"], opened_ms=bars.opened_ms, available_at_ms=bars.available_at_ms,
            runs=windows.runs_R, timeframe="1h",
        ),
        close=bars.columns["close"], bar_volatility=volatility, width=0.7,
    )  # fmt: skip
    np.testing.assert_array_equal(windows.own_labels_RK[:, 0], by_hand.values)


def test_bars_after_the_training_part_move_no_season() -> None:
    bars = seasonal_table()
    before = labelled(bars, targets=["log_return_3h"])
    windows = windows_of(before)
    later = bars.available_at_ms > windows.borders_ms["validation"]
    close = np.where(later, bars.columns["close"] * 1.01 ** np.arange(len(bars)), bars.columns["close"])
    after = labelled(with_closes(bars, close), targets=["log_return_3h"])
    again = windows_of(after)
    assert after.profiles == before.profiles
    np.testing.assert_array_equal(again.bar_volatility_R[~later], windows.bar_volatility_R[~later])
    assert not np.array_equal(again.bar_volatility_R, windows.bar_volatility_R)


def test_daily_bars_have_no_season() -> None:
    bars = table(num=600)
    opened = int(np.datetime64("2020-01-06", "ms").astype(np.int64)) + DAY_MS * np.arange(900)
    opened = opened[calendar.is_open(opened)][:600]
    daily = replace(bars, timeframe="1d", opened_ms=opened, available_at_ms=opened + DAY_MS)
    labelling = labelled(daily, targets=["log_return_1d"])
    windows = windows_of(labelling)
    assert labelling.profiles == {}
    np.testing.assert_array_equal(windows.bar_volatility_R, ewma_volatility(bars.columns["close"]))


def test_every_symbol_has_a_rule_of_its_own() -> None:
    labelling = labelled(table(), table("GBP/USD", seed=1), targets=["market_regime"])
    windows = windows_of(labelling)
    assert set(labelling.regimes) == {"EUR/USD", "GBP/USD"}
    assert labelling.regimes["EUR/USD"] != labelling.regimes["GBP/USD"]
    alone = labelled(table("GBP/USD", seed=1), targets=["market_regime"])
    assert windows_of(alone).borders_ms == windows.borders_ms
    assert alone.regimes["GBP/USD"] == labelling.regimes["GBP/USD"]


def test_too_few_bars_for_a_rule_are_refused() -> None:
    labelling = labelled(table(), targets=["market_regime"])
    with pytest.raises(DataValidationError, match="a rule for market regimes needs 60 bars"):
        labelling.finish(Borders({"validation": int(labelling.rows[0].available_at_ms_N[80])}))


def test_dropped_rows_are_counted_over_symbols_and_targets() -> None:
    first, second = table(missing=[200]), table("GBP/USD", seed=1, missing=[300, 301])
    alone = [
        labelled(each, targets=[name]).num_dropped
        for each in (first, second)
        for name in ("price_change_1h", "direction_5h")
    ]
    both = labelled(first, second, targets=["price_change_1h", "direction_5h"]).num_dropped
    assert both == {reason: sum(each[reason] for each in alone) for reason in both}
    assert set(both) == {"label_spans_closure", "label_meets_missing_bar"}
    assert all(both.values())


def test_rows_carry_one_bars_volatility_the_close_and_the_spread() -> None:
    bars = table(spread=0.0002)
    rows = labelled(bars, targets=["log_return_24h"]).rows[0]
    np.testing.assert_array_equal(rows.bar_volatility_N, ewma_volatility(bars.columns["close"]))
    np.testing.assert_array_equal(rows.close_N, bars.columns["close"])
    np.testing.assert_array_equal(rows.spread_N, np.full(900, 0.0002))
    session = labelled(table(), targets=[]).rows[0].spread_N
    np.testing.assert_array_equal(session, 0.2 * 1e-4 * session_factor(bars.available_at_ms))
    assert np.isnan(labelled(table(), targets=[], costs=Costs(spread_pips=0.2)).rows[0].spread_N).all()


def test_a_feature_without_any_value_is_refused_by_name() -> None:
    bars = table()
    with pytest.raises(DataValidationError, match="noise has no value for EUR/USD in this range; leave it out"):
        labelled(replace(bars, columns={**bars.columns, "noise": np.full(900, np.nan)}), targets=["price_change_1h"])


@settings(deadline=None, derandomize=True, max_examples=15)
@given(cut=st.integers(300, 880), seed=st.integers(0, 50), is_cut=st.booleans())
def test_what_is_known_at_a_moment_does_not_move_when_the_future_does(cut: int, seed: int, is_cut: bool) -> None:
    """All kinds but the regimes' classes, which wait for the borders: those only have to exist at the same rows."""
    bars = table(seed=seed, missing=[250])
    close = bars.columns["close"].copy()
    close[cut:] *= np.exp(np.random.default_rng(seed).normal(0, 0.1, len(close) - cut))
    future = with_closes(bars, close)
    if is_cut:
        columns = {name: column[:cut] for name, column in bars.columns.items()}
        future = replace(
            bars, opened_ms=bars.opened_ms[:cut], available_at_ms=bars.available_at_ms[:cut], columns=columns
        )
    before, after = (labelled(each, targets=EVERY_KIND).rows[0] for each in (bars, future))
    known = np.flatnonzero(
        np.isfinite(before.labels_NK).all(axis=1) & (before.label_available_at_ms_N <= bars.available_at_ms[cut - 1])
    )
    assert len(known) > 50
    numbers = [column for column, name in enumerate(EVERY_KIND) if "regime" not in name]
    np.testing.assert_array_equal(after.labels_NK[known][:, numbers], before.labels_NK[known][:, numbers])
    assert np.isfinite(after.labels_NK[known]).all()
    np.testing.assert_array_equal(after.label_available_at_ms_N[known], before.label_available_at_ms_N[known])
    np.testing.assert_array_equal(after.bar_volatility_N[:cut], before.bar_volatility_N[:cut])
