"""Policy rates: the largest difference of a range bounds what carry could have been."""

import pytest

from ml_workbench_service.market.policy_rates import _BY_YEAR_END, FIRST_YEAR, largest_differential


def test_the_largest_difference_counts_both_ends_of_each_year_and_either_side() -> None:
    assert largest_differential("EUR/USD", 2015, 2015) == pytest.approx(0.0045), "0.50 at its end against 0.05"
    assert largest_differential("USD/EUR", 2015, 2015) == largest_differential("EUR/USD", 2015, 2015)
    assert largest_differential("EUR/USD", 2015, 2019) == pytest.approx(0.025)
    assert largest_differential("USD/JPY", 2023, 2024) == pytest.approx(0.056)
    assert largest_differential("AUD/JPY", 2004, 2008) == pytest.approx(0.0665), (
        "6.75 at the beginning of 2008 against 0.1 at its end"
    )


def test_what_the_table_does_not_know_has_no_bound() -> None:
    assert largest_differential("XAU/USD", 2020, 2021) is None
    assert largest_differential("USD/MXN", 2005, 2012) is None
    assert largest_differential("EUR/TRY", 2000, 2003) is None
    assert largest_differential("EUR/USD", 1995, 2003) is None
    newest = FIRST_YEAR + len(_BY_YEAR_END["USD"]) - 1
    assert largest_differential("EUR/USD", newest + 1, newest + 1) == pytest.approx(
        abs(_BY_YEAR_END["USD"][-1] - _BY_YEAR_END["EUR"][-1]) / 100, abs=0.03
    )
    assert len({len(rates) for rates in _BY_YEAR_END.values()}) == 1
