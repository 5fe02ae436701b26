"""Costs: defaults for known pairs, units, swap over the roll, and the one step formula."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.market.costs import (
    UNITS_PER_EUR,
    ResolvedCosts,
    default_costs,
    pip_size,
    resolved_costs,
    round_trip_cost,
    session_factor,
    session_spread,
    session_spread_at,
    spot_lag_days,
    step_log_return,
    swap_cost,
    unit_cost,
)

OWN = Costs(spread_pips=1.0, commission_bp=0.5, slippage_bp=0.25, swap_long_pips=0.6, swap_short_pips=-0.2)


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def test_every_cross_of_the_known_currencies_has_plausible_costs_above_zero() -> None:
    for base in UNITS_PER_EUR:
        for quote in UNITS_PER_EUR:
            if base == quote:
                continue
            costs = default_costs(f"{base}/{quote}")
            assert all(value > 0 for value in costs.model_dump().values()), f"{base}/{quote}"
            price = UNITS_PER_EUR[quote] / UNITS_PER_EUR[base]
            cost = unit_cost(costs, f"{base}/{quote}", price)
            assert 0.4e-4 < cost < 40e-4, f"{base}/{quote} costs {cost}"
            night = swap_cost(costs, f"{base}/{quote}", price, 1.0, ms("2025-03-03T12:00"), ms("2025-03-04T12:00"))
            assert night == pytest.approx(0.008 / 365, rel=0.01)


def test_every_currency_of_the_sample_still_published_has_costs() -> None:
    currencies = pytest.importorskip("currency_converter").CurrencyConverter().bounds
    current = {code for code, (_, last) in currencies.items() if last.year >= 2022}
    assert current <= set(UNITS_PER_EUR)


def test_pips_follow_the_quote_currency() -> None:
    assert pip_size("EUR/USD") == 0.0001
    assert pip_size("USD/JPY") == pip_size("EUR/HUF") == 0.01


def test_an_unknown_pair_needs_all_its_costs() -> None:
    with pytest.raises(DataValidationError, match="all five fields") as caught:
        resolved_costs("EUR/XAU", Costs(spread_pips=1))
    assert caught.value.details["errors"][0]["code"] == "unknown_costs"
    assert resolved_costs("EUR/XAU", OWN).model_dump() == {**OWN.model_dump(), "by_session": False}


def test_an_override_wins_field_by_field() -> None:
    costs = resolved_costs("EURUSD", Costs(spread_pips=0.0, swap_long_pips=-1.0))
    defaults = default_costs("EUR/USD")
    assert (costs.spread_pips, costs.swap_long_pips) == (0.0, -1.0)
    assert (costs.commission_bp, costs.swap_short_pips) == (defaults.commission_bp, defaults.swap_short_pips)
    assert resolved_costs("EUR/USD", None).model_dump() == {**defaults.model_dump(), "by_session": True}


def test_only_a_spread_that_nobody_named_follows_the_session() -> None:
    assert resolved_costs("EUR/USD", Costs(commission_bp=1.0)).by_session
    assert not resolved_costs("EUR/USD", Costs(spread_pips=0.2)).by_session
    for costs in (resolved_costs("EUR/USD"), resolved_costs("EUR/USD", Costs(spread_pips=0.2))):
        assert resolved_costs("EUR/USD", costs) == costs, "resolved once is resolved"
        assert ResolvedCosts.model_validate(costs.model_dump()) == costs, "and survives the recipe"


@pytest.mark.parametrize(
    ("moment", "factor"),
    [
        ("2025-01-08T20:59", 1.2),  # winter: 17:00 New York is 22:00 UTC
        ("2025-01-08T21:30", 5.0),
        ("2025-01-08T22:00", 5.0),
        ("2025-01-08T22:29", 5.0),
        ("2025-01-08T22:30", 1.5),
        ("2025-01-09T07:59", 1.5),
        ("2025-01-09T08:00", 1.0),
        ("2025-01-09T16:59", 1.0),
        ("2025-01-09T17:00", 1.2),
        ("2025-07-09T20:29", 1.2),  # summer: 21:00 UTC
        ("2025-07-09T21:00", 5.0),
        ("2025-07-10T06:59", 1.5),
        ("2025-07-10T07:00", 1.0),
        ("2025-01-12T22:00", 5.0),  # Sunday's opening
    ],
)
def test_the_sessions_follow_new_yorks_clock(moment: str, factor: float) -> None:
    assert session_factor(ms(moment)) == factor


def test_sessions_of_many_moments_and_of_one_are_the_same_number() -> None:
    costs = resolved_costs("USD/JPY")
    moments = np.arange(ms("2025-03-01T00:07"), ms("2025-04-02T00:00"), 900_000)
    spreads = session_spread(costs, "USD/JPY", moments, calendar="fx")
    assert spreads.tolist() == [session_spread_at(costs, "USD/JPY", int(at), calendar="fx") for at in moments]
    assert spreads.min() == pytest.approx(0.5 * 0.01)
    for held, calendar in ((costs, "fixings"), (resolved_costs("USD/JPY", OWN), "fx"), (OWN, "fx")):
        assert np.isnan(session_spread(held, "USD/JPY", moments, calendar=calendar)).all()
        assert session_spread_at(held, "USD/JPY", int(moments[0]), calendar=calendar) is None


def test_a_unit_pays_half_the_spread_commission_and_slippage() -> None:
    assert unit_cost(OWN, "EUR/USD", 1.25) == pytest.approx(0.0001 / 2 / 1.25 + 0.75e-4)
    assert unit_cost(OWN, "USD/JPY", 150.0) == pytest.approx(0.01 / 2 / 150 + 0.75e-4)
    assert round_trip_cost(OWN, "EUR/USD", 1.25) == 2 * unit_cost(OWN, "EUR/USD", 1.25)


@pytest.mark.parametrize(
    ("start", "end", "nights"),
    [
        ("2025-01-07T12:00", "2025-01-07T21:59", 0),  # Tuesday, before 17:00 New York
        ("2025-01-07T12:00", "2025-01-07T22:00", 1),  # the roll belongs to the interval that ends with it
        ("2025-01-07T22:00", "2025-01-08T21:00", 0),
        ("2025-01-08T12:00", "2025-01-09T12:00", 3),  # Wednesday pays for the weekend
        ("2025-01-10T12:00", "2025-01-13T12:00", 1),  # over the weekend: Friday's roll alone
        ("2025-07-09T20:00", "2025-07-09T21:00", 3),  # summer: 17:00 New York is 21:00 UTC
        ("2025-01-06T12:00", "2025-01-13T12:00", 7),
    ],
)
def test_swap_counts_the_nights(start: str, end: str, nights: int) -> None:
    long = swap_cost(OWN, "EUR/USD", 1.25, 1.0, ms(start), ms(end))
    short = swap_cost(OWN, "EUR/USD", 1.25, -0.5, ms(start), ms(end))
    assert long == pytest.approx(nights * 0.6e-4 / 1.25)
    assert short == pytest.approx(-0.5 * nights * 0.2e-4 / 1.25), "a swap received is a negative cost"
    assert swap_cost(OWN, "EUR/USD", 1.25, 0.0, ms(start), ms(end)) == 0.0


@pytest.mark.parametrize("symbol", ["USD/CAD", "CAD/USD", "USD/TRY", "USD/PHP", "USD/RUB"])
def test_pairs_that_settle_a_day_earlier_pay_for_the_weekend_on_thursday(symbol: str) -> None:
    nights = [
        swap_cost(OWN, symbol, 1.0, 1.0, ms(f"2025-01-{day:02d}T12:00"), ms(f"2025-01-{day + 1:02d}T12:00")) / 0.6e-4
        for day in range(6, 13)
    ]
    assert nights == pytest.approx([1, 1, 1, 3, 1, 0, 0])
    assert spot_lag_days(symbol) == 1 < spot_lag_days("EUR/CAD") == spot_lag_days("USD/JPY") == 2


def test_a_step_is_the_log_of_what_is_left() -> None:
    assert step_log_return(1.0, 1.0, 1.01, cost=0.0) == pytest.approx(math.log(1.01))
    assert step_log_return(-1.0, 1.0, 1.01, cost=0.001, swap=0.0005) == pytest.approx(math.log(0.9885))
    assert step_log_return(0.0, 1.0, 2.0, cost=0.0) == 0.0


@pytest.mark.parametrize(("position", "price", "next_price"), [(-1.0, 1.0, 2.1), (1.0, 1e-300, 1e300), (1.0, 0.0, 1.0)])
def test_a_ruined_step_is_an_error_that_says_so(position: float, price: float, next_price: float) -> None:
    with pytest.raises(DataValidationError, match=r"lost the whole capital|must be positive"):
        step_log_return(position, price, next_price, cost=0.0)


def test_unresolved_costs_are_refused() -> None:
    with pytest.raises(DataValidationError, match="resolved_costs"):
        unit_cost(Costs(spread_pips=1.0), "EUR/USD", 1.1)
