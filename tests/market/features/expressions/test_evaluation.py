"""Expression values: causal, honest about gaps, and the same to the bit whatever range is evaluated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.features.expressions.evaluation import evaluate
from ml_workbench_service.market.features.expressions.parser import parse

pytestmark = pytest.mark.processor

HOUR_MS = 3_600_000
START_MS = 1_704_664_800_000  # Sunday 17:00 New York


def columns_of(num: int, *, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    close = 1.1 * np.exp(np.cumsum(rng.normal(size=num) * 1e-3))
    return {"close": close, "signal": rng.normal(size=num), "sma_50": close * 1.01, "rsi_14": rng.random(num) * 100}


def opened(num: int) -> Ints:
    return np.asarray(START_MS + HOUR_MS * np.arange(num))


def values(text: str, columns: dict[str, Floats], *, runs: Ints | None = None) -> Floats:
    num = len(next(iter(columns.values())))
    expression = parse(text)
    at = opened(num)
    return evaluate([expression], columns, opened_ms=at, runs=np.zeros(num, dtype=np.int64) if runs is None else runs)[
        expression.text
    ]


def test_values_are_what_their_definitions_say() -> None:
    columns = columns_of(300)
    close, signal, row = columns["close"], columns["signal"], 250
    window = close[row - 47 : row + 1]
    expected = {
        "lag(signal, 3)": signal[row - 3],
        "diff(signal, 2)": signal[row] - signal[row - 2],
        "log_return(close, 4)": np.log(close[row] / close[row - 4]),
        "close / sma_50": 1 / 1.01,
        "signal * rsi_14": signal[row] * columns["rsi_14"][row],
        "rsi_14 + signal": signal[row] + columns["rsi_14"][row],
        "signal - (rsi_14 - signal)": 2 * signal[row] - columns["rsi_14"][row],
        "mean(signal, 37)": signal[row - 36 : row + 1].mean(),
        "std(close, 48)": window.std(ddof=1),
        "zscore(close, 48)": (close[row] - window.mean()) / window.std(ddof=1),
        "zscore(signal, 64)": (signal[row] - signal[row - 63 : row + 1].mean())
        / signal[row - 63 : row + 1].std(ddof=1),
    }
    for text, value in expected.items():
        assert values(text, columns)[row] == pytest.approx(value, rel=1e-9), text


def test_the_calendar_runs_with_the_market_and_the_civil_year() -> None:
    at = {
        name: values(name, columns_of(24 * 31)) for name in ("sin_hour()", "cos_hour()", "cos_weekday()", "cos_year()")
    }
    assert at["sin_hour()"][[0, 6, 18, 24]] == pytest.approx([0, 1, -1, 0], abs=1e-12)
    assert at["cos_hour()"][[0, 12, 24]] == pytest.approx([1, -1, 1], abs=1e-12)
    assert at["cos_weekday()"][[0, 84, 168]] == pytest.approx([1, -1, 1], abs=1e-12)
    elapsed = (opened(1)[0] - 1_704_067_200_000) / (366 * 24 * HOUR_MS)  # of the leap year 2024
    assert at["cos_year()"][0] == pytest.approx(np.cos(2 * np.pi * elapsed), abs=1e-12)


EVERYTHING = (
    "lag(signal, 5)", "diff(rsi_14, 3)", "log_return(close, 7)", "close / sma_50", "zscore(close, 48)",
    "zscore(signal, 37)", "std(log_return(close, 1), 24) / std(log_return(close, 1), 96)", "mean(signal, 13)",
    "sin_hour()", "cos_weekday()", "sin_month()", "cos_year()", "zscore(lag(close, 2), 21)", "rsi_14 * signal",
    "ret(close, 3)", "sum(signal, 21)", "wma(close, 19) / close", "max(signal, 29)", "min(close, 16) / close",
    "idxmax(signal, 30)", "idxmin(close, 7)", "rank(signal, 44)", "quantile(close, 31, 0.3) / close",
    "slope(close, 25) / close", "rsquare(signal, 26)", "resi(signal, 27)", "corr(close, signal, 40)",
    "greater(signal, rsi_14)", "less(signal, 0)", "abs(signal) - 2", "sign(diff(close, 1))",
    "log(abs(signal) + 1)", "mean(close > sma_50, 9)", "rsi_14 <= signal", "-signal / 3e-3",
)  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(min_value=150, max_value=900), st.integers(min_value=0, max_value=9))
def test_a_rows_value_is_the_same_to_the_bit_whatever_range_is_evaluated(end: int, spare: int) -> None:
    columns, at = columns_of(900), opened(900)
    columns["signal"][100:103] = np.nan
    runs = (np.arange(900) // 333).astype(np.int64)
    expressions = [parse(text) for text in EVERYTHING]
    whole = evaluate(expressions, columns, opened_ms=at, runs=runs)
    for each in expressions:
        tail = slice(max(0, end - 1 - each.history - spare), end)
        part = {name: column[tail] for name, column in columns.items()}
        last = evaluate([each], part, opened_ms=at[tail], runs=runs[tail])[each.text][-1]
        assert np.array_equal(last, whole[each.text][end - 1], equal_nan=True), each.text


def test_nothing_before_a_changed_future_moves() -> None:
    columns, other = columns_of(400), columns_of(400, seed=9)
    changed = {name: np.where(np.arange(400) <= 300, column, 3 * other[name]) for name, column in columns.items()}
    for text in EVERYTHING:
        before, after = values(text, columns), values(text, changed)
        assert np.array_equal(before[:301], after[:301], equal_nan=True), text
    assert not np.array_equal(values("mean(signal, 13)", columns)[301:], values("mean(signal, 13)", changed)[301:])


def test_nothing_reaches_over_a_missing_bar() -> None:
    columns = columns_of(100)
    runs = (np.arange(100) >= 60).astype(np.int64)
    for text, first in {"lag(close, 3)": 63, "mean(signal, 13)": 72, "zscore(diff(signal, 2), 8)": 69}.items():
        column = values(text, columns, runs=runs)
        assert np.isnan(column[60:first]).all(), text
        assert np.isfinite(column[first:]).all(), text
        assert np.isfinite(column[first - 60 : 60]).all(), text


def test_missing_stays_missing_as_long_as_it_is_in_reach() -> None:
    columns = columns_of(100)
    columns["signal"][50] = np.nan
    assert list(np.flatnonzero(np.isnan(values("mean(signal, 5)", columns)))) == [0, 1, 2, 3, 50, 51, 52, 53, 54]
    assert list(np.flatnonzero(np.isnan(values("lag(signal, 2)", columns)))) == [0, 1, 52]
    assert list(np.flatnonzero(np.isnan(values("signal - rsi_14", columns)))) == [50]


def test_what_has_no_value_is_missing_and_never_infinite() -> None:
    num = 40
    columns = {
        "rounding": np.where(np.arange(num) % 2 == 0, 1 / 3, np.nextafter(1 / 3, 1)),
        "zero": np.zeros(num),
        "one": np.ones(num),
        "third": np.full(num, 1 / 3),
        "negative": -np.ones(num),
        "huge": np.full(num, 1e300),
        "infinite": np.full(num, np.inf),
    }
    for text in ("one / zero", "zero / zero", "log_return(negative, 1)", "log_return(zero, 1)", "huge * huge",
                 "zscore(third, 9)",
        "zscore(rounding, 9)",
        "infinite - one",
):  # fmt: skip
        assert np.isnan(values(text, columns)[20:]).all(), text
    assert (values("std(third, 9)", columns)[8:] == 0).all()
    assert (values("diff(one, 2)", columns)[2:] == 0).all()


def test_a_z_score_keeps_its_digits_on_a_price_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    moves = rng.normal(size=200) * 1e-4
    got = values("zscore(close, 50)", {"close": 1e4 + moves})[-1]
    rounded = (1e4 + moves) - 1e4
    assert got == pytest.approx((rounded[-1] - rounded[-50:].mean()) / rounded[-50:].std(ddof=1), rel=1e-6)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_too_few_bars_are_missing_values_and_no_failure(num: int) -> None:
    columns = columns_of(num)
    for text in EVERYTHING:
        assert len(values(text, columns)) == num
    assert np.isnan(values("zscore(close, 48)", columns)).all()


def test_a_column_that_was_not_fetched_is_said_so() -> None:
    with pytest.raises(DataValidationError, match="the column volume of an expression was not fetched"):
        values("zscore(volume, 9)", columns_of(20))
