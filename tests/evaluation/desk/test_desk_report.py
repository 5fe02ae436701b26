"""Desk report: planted relations come back, parts add up, errors hold, and money is the account's."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from ml_workbench_figures.desk_tables import desk_tables
from ml_workbench_service.contracts.desk_report import DeskReport
from ml_workbench_service.evaluation.desk.money import DeskAccount, capacity, drawdowns, months, turnover
from ml_workbench_service.evaluation.desk.ranking import HORIZONS, rank_ic, ranking
from ml_workbench_service.evaluation.desk.report import report_of
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.evaluation.desk.slices import SESSIONS
from tests.evaluation.desk.planted_rows import correlation_of_ranks, kept, planted
from tests.integrations.model_cards import model_card


@pytest.fixture(scope="module")
def pair() -> DeskRows:
    """Two symbols with a signal."""
    return planted(seed=3, symbols=("EUR/USD", "GBP/USD"))


@pytest.fixture(scope="module")
def report(pair: DeskRows) -> DeskReport:
    """Of them."""
    return report_of(pair)


def test_the_rank_correlation_is_spearmans_within_symbols(pair: DeskRows, report: DeskReport) -> None:
    alone = [
        correlation_of_ranks(pair.columns["prediction"][own], pair.columns["realised"][own])
        for own in (pair.of_symbol(0), pair.of_symbol(1))
    ]
    assert report.ranking is not None
    assert report.ranking.rank_ic is not None
    assert report.ranking.rank_ic.value == pytest.approx(np.mean(alone), abs=1e-12)


@pytest.mark.parametrize("lead", [1, 3])
def test_the_decay_finds_the_bar_that_is_known(lead: int) -> None:
    found = ranking(planted(3_000, seed=5, strength=0.3, lead=lead))
    assert found is not None
    by_bars = {each.bars: each.of_the_bar for each in found.decay}
    assert tuple(by_bars) == HORIZONS
    for bars, each in by_bars.items():
        assert each.value is not None
        assert each.error is not None
        if bars == lead:
            assert each.value == pytest.approx(0.29, abs=4 * each.error)
            assert each.p_value is not None
            assert each.p_value < 1e-4
        else:
            assert abs(each.value) < 4.5 * each.error


def test_an_error_holds_where_labels_overlap() -> None:
    """Without a relation the true correlation lies beyond two errors about once in twenty samples."""
    outside = 0
    for seed in range(100):
        rows = planted(600, seed=seed, strength=0.0, horizon=8, num_before=1)
        smooth = np.convolve(rows.signal_N, np.ones(8), mode="full")[: len(rows.signal_N)]  # a forecast that lasts
        found = rank_ic(rows, smooth, rows.columns["realised"])
        assert found is not None
        estimate = found.estimate(horizon=8)
        assert estimate.error is not None
        outside += abs(found.value) > 2.2 * estimate.error
    assert outside <= 14  # a binomial of 5 % exceeds it once in ten thousand; without HAC errors it is about half


def test_fifths_rise_and_their_difference_has_an_error_of_its_own(report: DeskReport) -> None:
    found = report.quantiles
    assert found is not None
    means = [each.outcome.value or 0.0 for each in found.quantiles]
    assert means[0] < 0 < means[-1]
    assert found.spread.value == pytest.approx(means[-1] - means[0])
    assert found.spread.p_value is not None
    assert found.spread.p_value < 1e-6
    forecasts = [each.mean_forecast for each in found.quantiles]
    assert all(low < high for low, high in pairwise(forecasts))
    assert max(each.outcome.num_rows for each in found.quantiles) - min(
        each.outcome.num_rows for each in found.quantiles
    ) <= len(report.slices)


def test_nothing_is_found_where_nothing_is() -> None:
    found = report_of(planted(seed=11, strength=0.0))
    assert found.quantiles is not None
    assert found.quantiles.spread.p_value is not None
    assert 0.001 < found.quantiles.spread.p_value < 0.999
    every = [*found.slices, *(found.stability.periods if found.stability else ())]
    stated = [each.adjusted_p_value for each in every if each.adjusted_p_value is not None]
    assert len(stated) > len(SESSIONS)
    assert min(stated) > 0.05


def test_sessions_symbols_and_spans_part_the_rows_and_the_money(report: DeskReport, pair: DeskRows) -> None:
    account = DeskAccount.of(pair)
    assert report.stability is not None
    kinds = {each.kind for each in report.slices}
    assert kinds == {"symbol", "session", "regime"}
    for slices in (
        [each for each in report.slices if each.kind == "symbol"],
        [each for each in report.slices if each.kind == "session"],
        report.stability.periods,
    ):
        assert sum(each.num_rows for each in slices) == len(pair.as_of_N)
        assert sum(each.net or 0.0 for each in slices) == pytest.approx(float(account.net_M.sum()), abs=2e-3)
    regimes = [each for each in report.slices if each.kind == "regime"]
    assert sum(each.num_rows for each in regimes) == len(pair.as_of_N)


def test_p_values_bear_every_slice(report: DeskReport) -> None:
    assert report.stability is not None
    every = [*report.slices, *report.stability.periods]
    plain = [each.rank_ic.p_value if each.rank_ic else None for each in every]
    pairs = sorted(
        (p_value, each.adjusted_p_value)
        for p_value, each in zip(plain, every, strict=True)
        if p_value is not None and each.adjusted_p_value is not None
    )
    assert len(pairs) == len(every)
    assert pairs[0][1] == pytest.approx(min(len(pairs) * pairs[0][0], 1.0))
    adjusted = [each for _, each in pairs]
    assert adjusted == sorted(adjusted)
    assert all(after >= before for before, after in pairs)


def test_a_forecast_that_dies_halfway_is_told() -> None:
    alive = planted(2_000, seed=7, strength=0.4)
    signal = alive.columns["prediction"].copy()
    half = len(signal) // 2
    signal[half:] = np.random.default_rng(1).permutation(signal[half:])
    found = report_of(DeskRows(alive.card, {**alive.columns, "prediction": signal}, alive.before)).stability
    assert found is not None
    assert found.change_of_ic is not None
    assert found.change_of_ic.value is not None
    assert found.change_of_ic.value < -0.25
    assert found.change_of_ic.p_value is not None
    assert found.change_of_ic.p_value < 0.001
    first, last = (found.periods[place].rank_ic for place in (0, -1))
    assert first is not None
    assert last is not None
    assert (first.value or 0) > 0.25 > abs(last.value or 0)


def test_turnover_counts_every_change_and_what_is_closed_before_a_gap() -> None:
    rows = planted(300, seed=2)
    position = rows.columns["position"]
    found = turnover(DeskAccount.of(rows))
    assert found.total == np.abs(np.diff(position, prepend=0.0)).sum() + 1
    is_kept = np.ones(len(position), dtype=bool)
    is_kept[100] = False  # a bar that serving was not asked about: closed before it, opened anew behind it
    apart = kept(rows, is_kept)
    changes = np.abs(np.diff(position, prepend=0.0))
    changes[[100, 101]] = 1.0
    assert turnover(DeskAccount.of(apart)).total == changes.sum() + 1
    assert found.share_long + found.share_short + found.share_flat == pytest.approx(1)
    changed = int((np.diff(position, prepend=0.0) != 0).sum())
    assert found.mean_holding_bars == pytest.approx(len(position) / changed)


def test_drawdowns_are_pandas_own(pair: DeskRows) -> None:
    account = DeskAccount.of(pair)
    equity = pd.Series(np.exp(np.concatenate([[0.0], np.cumsum(account.net_M)])))
    below = equity / equity.cummax() - 1
    found = drawdowns(account)
    assert found[0].depth == pytest.approx(-below.min())
    assert [each.depth for each in found] == sorted((each.depth for each in found), reverse=True)
    spells = below[below < 0].groupby((below == 0).cumsum()[below < 0]).min()
    assert [each.depth for each in found] == pytest.approx((-spells).nlargest(len(found)).tolist())
    for each in found:
        assert each.peak_at < each.trough_at
        assert each.recovered_at is None or each.trough_at < each.recovered_at
    assert sum(each.recovered_at is None for each in found) <= 1


def test_months_are_pandas_own_and_add_up(pair: DeskRows) -> None:
    account = DeskAccount.of(pair)
    daily = pd.Series(account.daily(account.net_M))
    daily.index = pd.to_datetime(daily.index)
    found = months(account)
    monthly = daily.groupby([daily.index.year, daily.index.month]).sum()
    assert [each.net for each in found] == pytest.approx(monthly.tolist())
    assert [(each.year, each.month) for each in found] == monthly.index.tolist()
    assert sum(each.net for each in found) == pytest.approx(float(account.net_M.sum()))
    assert all(each.cost == pytest.approx(each.gross - each.net) for each in found)


def test_at_the_break_even_spread_nothing_is_left(pair: DeskRows) -> None:
    found = capacity(DeskAccount.of(pair))
    assert found is not None
    assert found.break_even_multiple is not None
    nets = [each.net_log_return for each in found.points]
    assert nets == sorted(nets, reverse=True)
    by_spread = {each.spread_multiple: each.net_log_return for each in found.points}
    account = DeskAccount.of(pair)
    assert by_spread[1.0] == pytest.approx(float(account.net_M.sum()))
    assert by_spread[0.0] == pytest.approx(float(account.gross_M.sum()), abs=2e-5)  # its spread is all that it pays
    there = DeskAccount.of(_paying(pair, found.break_even_multiple))
    assert float(there.net_M.sum()) == pytest.approx(0.0, abs=2e-5)


def test_a_version_without_money_or_forecast_says_so(pair: DeskRows) -> None:
    untraded = model_card(target="volatility_4h", horizon=4)
    columns = {**pair.columns, **{name: np.full(len(pair.as_of_N), np.nan) for name in ("position", "gross", "net")}}
    found = report_of(DeskRows(untraded, columns, pair.before))
    assert found.turnover is None
    assert found.months == found.drawdowns == ()
    assert any("Nothing is traded" in each for each in found.notes)
    assert found.ranking is not None
    assert found.ranking.decay_of == "size_of_return"
    bare = report_of(DeskRows(model_card(target=None, type="anomaly_detection"), columns, pair.before))
    assert bare.ranking is bare.quantiles is None
    assert all(each.rank_ic is None for each in bare.slices)
    assert any("forecasts nothing" in each for each in bare.notes)


def test_a_position_may_have_any_size(pair: DeskRows) -> None:
    half = DeskRows(pair.card, {**pair.columns, "position": pair.columns["position"] / 2}, pair.before)
    whole = turnover(DeskAccount.of(pair))
    assert turnover(DeskAccount.of(half)).total == pytest.approx(whole.total / 2)


def test_every_table_has_as_many_cells_as_heads(report: DeskReport) -> None:
    tables = desk_tables(report)
    assert [each.name for each in tables] == [
        "statistics", "drawdowns", "months", "capacity", "ranking", "quantiles", "slices", "stability",
    ]  # fmt: skip
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.heads)}


def _paying(pair: DeskRows, multiple: float) -> DeskRows:
    """The same rows at another spread, paid row by row."""
    gross, net = (np.expm1(pair.columns[name]) for name in ("gross", "net"))
    return DeskRows(pair.card, {**pair.columns, "net": np.log1p(gross - multiple * (gross - net))}, pair.before)
