"""Feature names resolve without TA-Lib, compute causally, and say what is wrong with a name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.market.features import indicators

pytestmark = pytest.mark.processor

NAMES = [entry.example for entry in indicators.describe() if entry.name not in ("volume", "spread")]
HOUR_MS = 3_600_000


def random_bars(num: int = 400, *, seed: int = 0) -> Bars:
    rng = np.random.default_rng(seed)
    close = 1.1 * np.exp(np.cumsum(rng.normal(size=num) * 1e-3))
    open_ = np.concatenate([[1.1], close[:-1]])
    reach = np.abs(rng.normal(size=(2, num))) * 5e-4
    opened = 1_704_664_800_000 + np.arange(num) * HOUR_MS
    return Bars(
        symbol="EUR/USD",
        timeframe="1h",
        opened_ms=opened,
        available_at_ms=opened + HOUR_MS,
        open=open_,
        high=np.maximum(open_, close) + reach[0],
        low=np.minimum(open_, close) - reach[1],
        close=close,
        data_source="file",
        extra={"my_signal": np.arange(num, dtype=float)},
    )


def with_other_future(bars: Bars, row: int) -> Bars:
    """The same bars up to and with `row`, others afterwards."""
    other = random_bars(len(bars), seed=99)
    keep = np.arange(len(bars)) <= row
    merged = {
        side: np.where(keep, getattr(bars, side), getattr(other, side) * 3) for side in ("open", "high", "low", "close")
    }
    return Bars(**{**vars(bars), **merged})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(min_value=60, max_value=380))
def test_nothing_before_a_changed_future_moves(row: int) -> None:
    bars = random_bars()
    before = indicators.compute(NAMES, bars)
    after = indicators.compute(NAMES, with_other_future(bars, row))
    for name in NAMES:
        assert np.array_equal(before[name][: row + 1], after[name][: row + 1], equal_nan=True), name
    assert not np.array_equal(before["sma_20"], after["sma_20"], equal_nan=True)


def test_cutting_the_future_off_changes_nothing_either() -> None:
    bars = random_bars()
    short = random_bars()
    cut = Bars(
        **{
            **vars(short),
            **{
                name: getattr(short, name)[:200]
                for name in ("opened_ms", "available_at_ms", "open", "high", "low", "close")
            },
        }
    )
    whole, part = indicators.compute(NAMES, bars), indicators.compute(NAMES, cut)
    for name in NAMES:
        assert np.array_equal(whole[name][:200], part[name], equal_nan=True), name


def test_values_are_what_their_definitions_say() -> None:
    bars = random_bars()
    names = [
        "sma_20",
        "bb_width",
        "return_3",
        "log_return_1",
        "volatility_24",
        "bb_percent_10",
        "roc_5",
        "high_low_range",
    ]
    got, close, row = indicators.compute(names, bars), bars.close, 300
    window = close[row - 19 : row + 1]
    assert got["sma_20"][row] == pytest.approx(window.mean(), rel=1e-12)
    assert got["bb_width"][row] == pytest.approx(4 * window.std() / window.mean(), rel=1e-6)
    assert got["return_3"][row] == pytest.approx(close[row] / close[row - 3] - 1, rel=1e-12)
    assert got["log_return_1"][row] == pytest.approx(np.log(close[row] / close[row - 1]), rel=1e-12)
    returns = np.diff(np.log(close))
    assert got["volatility_24"][row] == pytest.approx(returns[row - 24 : row].std(ddof=1), rel=1e-9)
    assert got["roc_5"][row] == pytest.approx(100 * (close[row] / close[row - 5] - 1), rel=1e-9)
    assert got["high_low_range"][row] == pytest.approx((bars.high[row] - bars.low[row]) / close[row], rel=1e-12)
    ten = close[row - 9 : row + 1]
    assert got["bb_percent_10"][row] == pytest.approx(
        (close[row] - ten.mean() + 2 * ten.std()) / (4 * ten.std()), rel=1e-6
    )


def test_rows_before_there_are_enough_bars_are_missing_and_all_later_ones_are_numbers() -> None:
    for name, column in indicators.compute(NAMES, random_bars()).items():
        first = int(np.argmax(np.isfinite(column)))
        assert np.isnan(column[:first]).all(), name
        assert np.isfinite(column[first:]).all(), name
    assert np.argmax(np.isfinite(indicators.compute(["sma_50"], random_bars())["sma_50"])) == 49


@pytest.mark.parametrize("num", [0, 1, 5])
def test_too_few_bars_are_missing_values_and_no_failure(num: int) -> None:
    columns = indicators.compute(NAMES, random_bars(num))
    assert all(len(column) == num for column in columns.values())
    assert np.isnan(columns["sma_20"]).all()


def test_a_price_that_stands_still_yields_numbers_or_missing_values_only() -> None:
    bars = random_bars(100)
    still = Bars(**{**vars(bars), **{side: np.full(100, 1.5) for side in ("open", "high", "low", "close")}})
    columns = indicators.compute(NAMES, still)
    assert not any(np.isinf(column).any() for column in columns.values())
    assert np.isnan(columns["bb_percent_20"]).all()
    assert columns["bb_width_20"][-1] == 0


def test_the_bars_own_columns_win_and_keep_their_values() -> None:
    bars = random_bars()
    named_alike = Bars(**{**vars(bars), "extra": {"sma_20": np.zeros(len(bars))}})
    assert indicators.compute(["my_signal"], bars)["my_signal"][7] == 7
    assert not indicators.compute(["sma_20"], named_alike)["sma_20"].any()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smaa_20", "sma_20"),
        ("volatilty_12", "volatility_12"),
        ("rsi_1", "from 2 to 1000"),
        ("sma_100000", "from 2 to 1000"),
        ("macd_3", "macd"),
        ("SMA_20", "sma_20"),
        ("zzz", "lists what there is"),
        ("sma_020", "sma_20"),
        ("__class__", "lists what there is"),
        ("", "lists what there is"),
    ],
)
def test_a_name_nobody_has_is_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(DataValidationError, match=says) as caught:
        indicators.resolve(name, path="features.3")
    assert caught.value.details["errors"][0]["path"] == "features.3"


def test_absent_volume_is_refused_by_name() -> None:
    with pytest.raises(DataValidationError, match="volume"):
        indicators.compute(["volume"], random_bars())


def test_kinds_follow_the_scale_of_the_price() -> None:
    kinds = {
        name: indicators.kind_of(name) for name in ("close", "sma_20", "bb_upper", "rsi_14", "macd", "bb_width", "atr")
    }
    assert kinds == {
        "close": "level",
        "sma_20": "level",
        "bb_upper": "level",
        "rsi_14": "stationary",
        "macd": "stationary",
        "bb_width": "stationary",
        "atr": "stationary",
    }
    doubled = random_bars()
    doubled = Bars(
        **{**vars(doubled), **{side: getattr(doubled, side) * 2 for side in ("open", "high", "low", "close")}}
    )
    one, two = indicators.compute(NAMES, random_bars()), indicators.compute(NAMES, doubled)
    for name in NAMES:
        if indicators.kind_of(name) == "level":
            np.testing.assert_allclose(two[name], 2 * one[name], rtol=1e-9)


def test_what_needs_the_range_says_so() -> None:
    bars = random_bars()
    other = Bars(**{**vars(bars), "high": bars.high * 1.01, "low": bars.low * 0.99})
    one, two = indicators.compute(NAMES, bars), indicators.compute(NAMES, other)
    for entry in indicators.describe():
        if entry.example in one:
            moved = not np.array_equal(one[entry.example], two[entry.example], equal_nan=True)
            assert moved == entry.needs_range, entry.name


def test_warm_ups_are_where_the_first_value_stands() -> None:
    bars = random_bars()
    described = [entry for entry in indicators.describe() if entry.name not in indicators.NOT_OF_PRICES]
    others = [f"{entry.name.partition('_{')[0]}_7" for entry in described if entry.parameters]
    for name in [*NAMES, *others]:
        assert int(np.argmax(np.isfinite(indicators.resolve(name)(bars)))) == indicators.warm_up(name), name
    assert indicators.warm_up("my_signal") == 0
