"""Candidates are different, causal in kind, bounded, and the same each time; the plainest of each group come first."""

import pytest

from ml_workbench_service.contracts.market import FeatureDescription, FeatureParameter
from ml_workbench_service.learning.feature_search.candidates import Grid, candidates
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import kind
from ml_workbench_service.market.features.indicators import describe, kind_of

OWN = FeatureDescription(
    name="my_signal", example="my_signal", kind="stationary", description="A column of your files."
)
SMA = FeatureDescription(
    name="sma_{period}", example="sma_20", kind="level", description="",
    parameters=(FeatureParameter(name="period", default=20, minimum=10, maximum=50),),
)  # fmt: skip


def texts(*available: FeatureDescription, timeframe: str = "1h", **options: object) -> list[str]:
    found = candidates(available, timeframe=timeframe, **{"max_candidates": 10_000, **options})  # type: ignore[arg-type]
    return [each.text for each in found]


def test_each_candidate_is_another_stationary_expression_of_the_stores_columns() -> None:
    found = candidates(describe(), timeframe="1h", max_candidates=10_000)
    assert len(found) > 200
    assert len({each.text for each in found}) == len({each.name for each in found}) == len(found)
    assert all(parse(each.text) == each for each in found)
    assert {kind(each, kind_of) for each in found} == {"stationary"}


def test_every_group_of_the_search_is_there() -> None:
    found = texts(*describe())
    for example in (
        "rsi_14", "rsi_28", "log_return(close, 24)", "close / sma_20", "sma_7 / sma_28", "zscore(close, 96)",
        "zscore(macd, 24)", "diff(rsi_14, 1)", "lag(log_return(close, 1), 2)", "(close - low) / (high - low)",
        "cos_hour()", "sin_year()",
    ):  # fmt: skip
        assert example in found


def test_a_smaller_bound_keeps_the_plainest_of_every_group() -> None:
    whole, few = texts(*describe()), texts(*describe(), max_candidates=12)
    assert few == whole[:12]
    assert {"macd", "log_return(close, 1)", "close / sma_20", "sin_hour()"} < set(few)


def test_the_users_own_columns_come_first_with_their_lags_and_scores() -> None:
    found = texts(OWN, SMA)
    assert found[0] == "my_signal"
    assert {"lag(my_signal, 4)", "diff(my_signal, 1)", "zscore(my_signal, 24)"} < set(found)


def test_parameters_stay_within_the_stores_bounds() -> None:
    found = texts(SMA, grid=Grid(periods=(5, 15, 60)))
    assert [text for text in found if text.startswith("close / sma")] == ["close / sma_20", "close / sma_15"]


def test_daily_bars_have_no_hour_and_an_unobserved_range_is_not_read() -> None:
    daily = candidates(describe(), timeframe="1d", has_range=False, max_candidates=10_000)
    names = {name for each in daily for name in each.base_columns}
    assert not {"high", "low", "atr_14", "adx_14", "high_low_range"} & names
    assert not [each for each in daily if "_hour" in each.text]
    assert "sin_weekday()" in {each.text for each in daily}


@pytest.mark.parametrize("column", ["volume", "spread"])
def test_columns_that_some_files_lack_are_used_only_when_asked_for(column: str) -> None:
    assert not [text for text in texts(*describe()) if column in text]
    assert column in texts(*describe(), without=())
