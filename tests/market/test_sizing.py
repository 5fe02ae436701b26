"""Sizing rules: properties of what is wanted and of what is taken, for whatever forecast, volatility and cost."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.sizing import DEFAULTS, PositionRule
from ml_workbench_service.market.sizing import (
    FLAT,
    Held,
    Sizing,
    calibration_slope,
    equal_risk_weights,
    next_held,
    side,
    sides,
)

FORECASTS = st.floats(-0.1, 0.1, allow_subnormal=False)
VOLATILITIES = st.floats(1e-6, 0.2, allow_subnormal=False)
COSTS = st.floats(0.0, 0.01, allow_subnormal=False)
LEVERAGES = st.floats(0.1, 20.0, allow_subnormal=False)
SLOPES = st.floats(-2.0, 3.0, allow_subnormal=False)
SETTINGS = {
    "full_ratio": st.floats(0.01, 10, allow_subnormal=False),
    "annual_volatility": st.floats(0.01, 1, allow_subnormal=False),
    "fraction": st.floats(0.01, 1, allow_subnormal=False),
}
NAMES = ("sign_after_costs", "proportional", "volatility_target", "kelly")


@st.composite
def rules(draw: st.DrawFn) -> PositionRule:
    """Any rule with any of its settings."""
    rule, most = draw(st.sampled_from(NAMES)), draw(LEVERAGES)
    own = {name: draw(SETTINGS[name]) for of, (name, _) in DEFAULTS.items() if of == rule}
    band = 0.0 if rule == "sign_after_costs" else draw(st.floats(0, most * 0.9, allow_subnormal=False))
    kept = {"band": band, "decide": draw(st.sampled_from(["each_bar", "horizon", "reversal"]))}
    return PositionRule.model_validate({"rule": rule, "max_leverage": most, **own, **kept})


@st.composite
def sizings(draw: st.DrawFn) -> Sizing:
    return Sizing.of(
        draw(rules()), horizon=draw(st.integers(1, 12)), timeframe=draw(st.sampled_from(["15m", "1h", "1d"])),
        slope=draw(SLOPES),
    )  # fmt: skip


@given(sizings(), FORECASTS, VOLATILITIES, COSTS)
def test_no_position_exceeds_its_bound_and_the_opposite_forecast_wants_the_opposite(
    sizing: Sizing, forecast: float, volatility: float, cost: float
) -> None:
    wanted = float(sizing.wanted(forecast, volatility=volatility, dead_zone=cost))
    assert abs(wanted) <= sizing.rule.max_leverage
    assert wanted * forecast >= 0 or sizing.slope < 0
    assert float(sizing.wanted(-forecast, volatility=volatility, dead_zone=cost)) == -wanted


@given(sizings(), st.lists(st.tuples(FORECASTS, VOLATILITIES, COSTS), min_size=1, max_size=20))
def test_one_forecast_is_sized_as_among_many_to_the_bit(
    sizing: Sizing, asked: list[tuple[float, float, float]]
) -> None:
    forecast_N, volatility_N, cost_N = np.array(asked).T
    together_N = sizing.wanted(forecast_N, volatility=volatility_N, dead_zone=cost_N)
    alone = [sizing.wants(one, volatility=two, dead_zone=three).wanted for one, two, three in asked]
    assert together_N.tolist() == alone


@given(FORECASTS, st.sampled_from([0.0, 1e-5, 1e-4]) | COSTS)
def test_the_side_of_one_forecast_is_that_among_many(forecast: float, cost: float) -> None:
    for each in (forecast, cost, -cost):
        assert side(each, cost) == sides(np.array([each]), np.array([cost]))[0]


@given(sizings(), FORECASTS, FORECASTS, VOLATILITIES, COSTS)
def test_a_larger_forecast_never_wants_less(
    sizing: Sizing, one: float, other: float, volatility: float, cost: float
) -> None:
    low, high = sorted((one, other))
    wanted = [float(sizing.wanted(each, volatility=volatility, dead_zone=cost)) for each in (low, high)]
    assert wanted[0] <= wanted[1]


@given(sizings(), FORECASTS, VOLATILITIES, VOLATILITIES, COSTS, COSTS)
def test_more_volatility_or_cost_never_wants_more(
    sizing: Sizing, forecast: float, one: float, other: float, cheap: float, dear: float
) -> None:
    calm, storm = sorted((one, other))
    cheap, dear = sorted((cheap, dear))
    sizes = [
        abs(float(sizing.wanted(forecast, volatility=volatility, dead_zone=cost)))
        for volatility, cost in ((calm, cheap), (storm, cheap), (storm, dear))
    ]
    assert sizes == sorted(sizes, reverse=True)


@given(sizings(), FORECASTS, st.sampled_from([0.0, -0.01, math.nan, math.inf]))
def test_a_volatility_that_is_none_is_refused(sizing: Sizing, forecast: float, volatility: float) -> None:
    with pytest.raises(DataValidationError):
        sizing.wanted(forecast, volatility=volatility, dead_zone=0.0)


@given(sizings(), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_forecast_that_is_no_number_is_refused_and_so_is_a_cost_below_zero(sizing: Sizing, forecast: float) -> None:
    with pytest.raises(DataValidationError):
        sizing.wanted(forecast, volatility=0.01, dead_zone=0.0)
    for cost in (-1e-4, math.nan, math.inf):
        with pytest.raises(DataValidationError):
            sizing.wanted(0.001, volatility=0.01, dead_zone=cost)


@given(
    rules(),
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(-1, 1, allow_subnormal=False), st.booleans()), min_size=1, max_size=60),
)
def test_inside_the_band_nothing_is_traded_and_outside_what_is_wanted_is_taken(
    rule: PositionRule, horizon: int, rows: list[tuple[float, bool]]
) -> None:
    sizing = Sizing.of(rule, horizon=horizon, timeframe="1h")
    wanted_N, starts_N = np.array([each for each, _ in rows]), np.array([True, *(starts for _, starts in rows[1:])])
    taken_N = sizing.follow(wanted_N, starts_N)
    before_N = np.where(starts_N, 0.0, np.concatenate([[0.0], taken_N[:-1]]))
    changed = taken_N != before_N
    assert (np.abs(taken_N - before_N)[changed] > rule.band).all()
    assert (taken_N[changed] == wanted_N[changed]).all()
    if rule.decide == "each_bar":
        assert (changed == (np.abs(wanted_N - before_N) > rule.band)).all()
    if rule.decide == "reversal":
        assert not (changed & (wanted_N == 0.0)).any()


@given(st.integers(1, 9), st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
def test_a_position_is_held_for_the_forecasts_horizon(horizon: int, wanted: list[float]) -> None:
    sizing = Sizing.of(PositionRule(decide="horizon"), horizon=horizon, timeframe="1h")
    starts_N = np.zeros(len(wanted), dtype=bool)
    starts_N[0] = True
    taken, expected, left = sizing.follow(np.array(wanted), starts_N).tolist(), [], 0
    held = 0.0
    for each in wanted:
        if not left or not held:
            held, left = each, horizon
        left -= 1
        expected.append(held)
    assert taken == expected


@given(rules(), st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=40), st.integers(1, 39))
def test_a_segment_that_begins_anew_knows_nothing_of_the_one_before(
    rule: PositionRule, wanted: list[float], place: int
) -> None:
    assume(place < len(wanted))
    sizing, wanted_N = Sizing.of(rule, horizon=4, timeframe="1h"), np.array(wanted)
    starts_N = np.zeros(len(wanted), dtype=bool)
    starts_N[[0, place]] = True
    again_N = starts_N[place:]
    assert sizing.follow(wanted_N, starts_N)[place:].tolist() == sizing.follow(wanted_N[place:], again_N).tolist()


def test_the_rules_by_hand() -> None:
    def wanted(forecast: float, slope: float = 1.0, **rule: object) -> float:
        sizing = Sizing.of(PositionRule.model_validate(rule), horizon=4, timeframe="1h", slope=slope)
        return float(sizing.wanted(forecast, volatility=0.002, dead_zone=0.0001))

    yearly = 0.002 * math.sqrt(365.25 * 5 / 7 * 24 / 4)
    assert sides(0.0001, 0.0001) == 0.0
    assert wanted(-0.0002) == -1.0
    assert wanted(0.0001, rule="proportional", full_ratio=0.2) == pytest.approx(0.25)
    assert wanted(0.0002, rule="volatility_target", annual_volatility=0.02) == pytest.approx(0.02 / yearly)
    assert wanted(0.0001, rule="volatility_target") == 0.0
    assert wanted(0.0001, 0.2, rule="kelly", max_leverage=10.0) == pytest.approx(0.5 * 0.2 * 0.0001 / 0.002**2)
    assert wanted(0.0001, -0.2, rule="kelly") == 0.0
    assert next_held(0.3, Held(0.5, 1), band=0.2, decide="each_bar", horizon=1).position == 0.5
    assert next_held(0.0, FLAT, band=0.0, decide="reversal", horizon=1).position == 0.0


def test_a_slope_is_that_of_the_regression_through_the_origin() -> None:
    chance = np.random.default_rng(0)
    forecast = chance.normal(0, 1e-3, 500)
    realised = 0.4 * forecast + chance.normal(0, 1e-3, 500)
    (slope,) = np.linalg.lstsq(forecast[:, None], realised, rcond=None)[0]
    assert calibration_slope(forecast, realised) == pytest.approx(slope)
    assert calibration_slope(np.zeros(5), np.ones(5)) == 0.0


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0.01, 0.5, allow_subnormal=False))
def test_every_symbol_contributes_alike_to_the_risk_budget(num: int, seed: int, budget: float) -> None:
    chance = np.random.default_rng(seed)
    mixed = chance.standard_normal((num, num + 2)) * chance.lognormal(-5, 1, num)[:, None]
    covariance = mixed @ mixed.T
    weights = equal_risk_weights(covariance, budget)
    assert (weights > 0).all()
    contributions = weights * (covariance @ weights)
    np.testing.assert_allclose(contributions, budget**2 / num, rtol=1e-6)


def test_a_symbol_that_never_moves_has_no_part_in_the_budget() -> None:
    weights = equal_risk_weights(np.diag([0.04, 0.0, 0.01]), 0.1)
    np.testing.assert_allclose(weights, [0.5 * 0.5**0.5, 1.0, 0.5**0.5], rtol=1e-9)
    assert equal_risk_weights(np.zeros((2, 2)), 0.1).tolist() == [1.0, 1.0]


@given(sizings())
def test_a_recipe_keeps_a_sizing_and_one_without_keeps_the_old_rule(sizing: Sizing) -> None:
    assert Sizing.from_json(sizing.to_json()) == sizing
    assert Sizing.from_json(None).is_plain
    assert Sizing.from_json(None).rule.rule == "sign_after_costs"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "proportional", "fraction": 0.5},
        {"rule": "kelly", "full_ratio": 0.1},
        {"full_ratio": 0.1},
        {"rule": "proportional", "band": 1.0},
        {"rule": "sign_after_costs", "band": 0.1},
        {"rule": "kelly", "fraction": 2},
        {"rule": "kelly", "max_leverage": 0},
        {"rule": "all_in"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PositionRule.model_validate(wrong)
