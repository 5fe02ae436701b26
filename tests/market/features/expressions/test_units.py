"""Expression units: what scales with a price, what does not, and what no model may read."""

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureKind
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import kind

KINDS: dict[str, FeatureKind] = {"close": "level", "sma_50": "level", "rsi_14": "stationary", "signal": "stationary"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lag(close, 3)", "level"),
        ("mean(close, 3)", "level"),
        ("close + sma_50", "level"),
        ("close / sma_50", "stationary"),
        ("log_return(close, 4)", "stationary"),
        ("zscore(close, 24)", "stationary"),
        ("diff(close, 2) / std(close, 24)", "stationary"),
        ("(close - sma_50) / close", "stationary"),
        ("diff(rsi_14, 1) * signal", "stationary"),
        ("sin_hour()", "stationary"),
        ("close / delay(close, 24) - 1", "stationary"),
        ("2 * close + sma_50", "level"),
        ("(close + 2 * std(close, 20)) / close", "stationary"),
        ("greater(close, sma_50)", "level"),
        ("(2 * close - high - low) / close", "stationary"),
        ("(close - open) / (high - low + 1e-12)", "stationary"),
        ("sum(close * signal, 20) / sum(signal, 20) / close", "stationary"),
        ("greater(close - open, 0) / close", "stationary"),
        ("close > sma_50", "stationary"),
        ("sign(close - open)", "stationary"),
        ("rank(close, 20)", "stationary"),
        ("idxmax(high, 20) / 20", "stationary"),
        ("corr(close, rsi_14, 20)", "stationary"),
        ("slope(close, 20) / close", "stationary"),
        ("quantile(close, 20, 0.8)", "level"),
        ('ret("GBP/USD", 1)', "stationary"),
        ('at("1d", rsi_14)', "stationary"),
        ('at("1d", close)', "level"),
        ('close / at("1d", sma_50)', "stationary"),
        ('close / of("GBP/USD", close)', "level"),
        ('zscore(close / "GBP/USD", 50)', "stationary"),
        ('"GBP/USD" / of("GBP/USD", sma_50)', "stationary"),
        ('at("4h", of("GBP/USD", close)) / "GBP/USD"', "stationary"),
    ],
)
def test_kinds_follow_from_the_columns(text: str, expected: FeatureKind) -> None:
    assert kind(parse(text), lambda name: KINDS.get(name) or indicators.kind_of(name)) == expected


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("diff(close, 3)", 1, "log_return"),
        ("close - sma_50", 7, "divide it by a price"),
        ("std(close, 24)", 1, "price's unit"),
        ("close * rsi_14", 7, "divide it by a price"),
        ("close / rsi_14", 7, "divide it by a price"),
        ("close + 1", 7, "one kind"),
        ("close > 1", 7, "compare columns of one kind"),
        ("close - of('GBP/USD', close)", 7, "subtract columns of one kind"),
        ("log(close)", 1, "log(close / delay(close, 1))"),
        ("close + 2 * std(close, 20)", 7, "divide it by a price"),
        ("greater(close, 0)", 1, "divide it by a price"),
        ("-close", 1, "divide it by a price"),
        ("close - open", 7, "divide it by a price"),
        ("2 + 3", 3, "reads no column"),
        ("of('GBP/USD', diff(close, 2))", 1, "price's unit"),
        ("lag(close + rsi_14, 2)", 11, "one kind"),
        ("log_return(rsi_14, 2)", 1, "price level"),
        ("zscore(rsi_14, 9) + rsj_14", 21, "rsi_14"),
    ],
)
def test_units_that_do_not_fit_and_unknown_columns_are_refused(text: str, position: int, says: str) -> None:
    with pytest.raises(DataValidationError, match=f"at character {position}: ") as caught:
        kind(parse(text), lambda name: KINDS.get(name) or indicators.kind_of(name))
    assert says in caught.value.message
