"""Expressions against pandas: every function, and every formula of Alpha158, made again by other means.

Qlib's operators are methods of pandas' rolling windows (Slope, Rsquare and Resi an ordinary least squares fit on
1 … d), so its published formulas are evaluated here as they are printed, `$` and capital letters and all.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.features.expressions.alpha158 import WINDOWS, alpha158, alpha158_price
from ml_workbench_service.market.features.expressions.evaluation import evaluate
from ml_workbench_service.market.features.expressions.named_sets import NAMED_SETS, named_set
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import kind
from ml_workbench_service.market.features.indicators import kind_of

pytestmark = pytest.mark.processor

NUM, NUM_MOMENTS = 900, 200


def bars(num: int = NUM) -> pd.DataFrame:
    """Hourly bars rounded as quotes are, so that ties and bars without a range occur."""
    chance = np.random.default_rng(5)
    close = np.round(1.1 * np.exp(np.cumsum(chance.normal(size=num) * 4e-4)), 4)
    opened = np.concatenate([close[:1], close[:-1]])
    reach = chance.integers(0, 4, size=(2, num)) * 1e-4
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) + reach[0],
            "low": np.minimum(opened, close) - reach[1],
            "close": close,
            "volume": np.round(np.exp(chance.normal(size=num) + 5)),
            "signal": chance.normal(size=num),
        }
    )


def ours(texts: list[str], frame: pd.DataFrame) -> dict[str, Floats]:
    opened_ms = 1_704_664_800_000 + 3_600_000 * np.arange(len(frame))
    columns = {str(name): frame[name].to_numpy() for name in frame}
    expressions = [parse(text) for text in texts]
    found = evaluate(expressions, columns, opened_ms=opened_ms, runs=np.zeros(len(frame), dtype=np.int64))
    return {text: found[each.text] for text, each in zip(texts, expressions, strict=True)}


def fitted(series: pd.Series, bars: int, of: str) -> pd.Series:
    """A rolling least squares line on 1 … bars: its slope, its R², or the last residual."""

    def one(values: Floats) -> float:
        place = np.arange(1.0, bars + 1)
        slope, start = np.polyfit(place, values, 1)
        if of == "slope":
            return float(slope)
        if of == "resi":
            return float(values[-1] - (slope * bars + start))
        return float(np.corrcoef(place, values)[0, 1] ** 2)

    with np.errstate(invalid="ignore"):
        return series.rolling(bars).apply(one, raw=True)


def definitions(frame: pd.DataFrame) -> dict[str, Any]:
    """Every function of the grammar in pandas."""
    close, signal, opened = frame.close, frame.signal, frame.open
    weights = np.arange(1.0, 22)
    return {
        "lag(signal, 5)": signal.shift(5),
        "delay(signal, 7)": signal.shift(7),
        "diff(close, 3) / close": close.diff(3) / close,
        "ret(close, 3)": close.pct_change(3),
        "close / delay(close, 24) - 1": close / close.shift(24) - 1,
        "log_return(close, 7)": np.log(close / close.shift(7)),
        "ratio(close, open)": close / opened,
        "mean(signal, 21)": signal.rolling(21).mean(),
        "sum(signal, 21)": signal.rolling(21).sum(),
        "wma(signal, 21)": signal.rolling(21).apply(lambda x: (x * weights).sum() / weights.sum(), raw=True),
        "std(signal, 30)": signal.rolling(30).std(),
        "zscore(close, 50)": (close - close.rolling(50).mean()) / close.rolling(50).std(),
        "max(signal, 29)": signal.rolling(29).max(),
        "min(signal, 16)": signal.rolling(16).min(),
        "idxmax(close, 30)": close.rolling(30).apply(lambda x: x.argmax() + 1, raw=True),
        "idxmin(close, 30)": close.rolling(30).apply(lambda x: x.argmin() + 1, raw=True),
        "rank(signal, 250)": signal.rolling(250).rank(pct=True),
        "rank(close, 44)": close.rolling(44).rank(pct=True),
        "quantile(signal, 31, 0.3)": signal.rolling(31).quantile(0.3),
        "slope(signal, 25)": fitted(signal, 25, "slope"),
        "rsquare(signal, 26)": fitted(signal, 26, "rsquare"),
        "resi(signal, 27)": fitted(signal, 27, "resi"),
        "corr(close, signal, 40)": close.rolling(40).corr(signal),
        "greater(signal, 0)": signal.clip(lower=0),
        "less(signal, lag(signal, 1))": np.minimum(signal, signal.shift(1)),
        "abs(signal)": signal.abs(),
        "sign(close - open)": np.sign(close - opened),
        "log(abs(signal) + 1)": np.log(signal.abs() + 1),
        "close > open": (close > opened).astype(float),
        "close >= open": (close >= opened).astype(float),
        "close < open": (close < opened).astype(float),
        "close <= open": (close <= opened).astype(float),
        "signal + 2": signal + 2,
        "-signal * 3 - 0.5": -signal * 3 - 0.5,
        "signal / 4e-1": signal / 0.4,
    }


def test_every_function_is_what_pandas_makes_of_it_at_200_moments_each() -> None:
    frame, chance = bars(), np.random.default_rng(0)
    expected = definitions(frame)
    found = ours(list(expected), frame)
    for text, series in expected.items():
        wanted = np.asarray(series, dtype=np.float64)
        known = np.flatnonzero(np.isfinite(wanted[300:])) + 300
        moments = chance.choice(known, NUM_MOMENTS, replace=False)
        np.testing.assert_allclose(found[text][moments], wanted[moments], rtol=1e-9, atol=1e-10, err_msg=text)


class Qlib:
    """Qlib's operators over pandas, as it documents them."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.names: dict[str, Any] = {f"_{name}": frame[name] for name in frame}
        self.names |= {
            "Ref": lambda x, d: x.shift(d),
            "Mean": lambda x, d: x.astype(float).rolling(d).mean(),
            "Std": lambda x, d: x.rolling(d).std(),
            "Sum": lambda x, d: x.rolling(d).sum(),
            "Max": lambda x, d: x.rolling(d).max(),
            "Min": lambda x, d: x.rolling(d).min(),
            "Quantile": lambda x, d, share: x.rolling(d).quantile(share),
            "Rank": lambda x, d: x.rolling(d).rank(pct=True),
            "IdxMax": lambda x, d: x.rolling(d).apply(lambda window: window.argmax() + 1, raw=True),
            "IdxMin": lambda x, d: x.rolling(d).apply(lambda window: window.argmin() + 1, raw=True),
            "Slope": lambda x, d: fitted(x, d, "slope"),
            "Rsquare": lambda x, d: fitted(x, d, "rsquare"),
            "Resi": lambda x, d: fitted(x, d, "resi"),
            "Corr": lambda x, y, d: x.rolling(d).corr(y),
            "Greater": np.maximum,
            "Less": np.minimum,
            "Abs": np.abs,
            "Log": np.log,
        }

    def __call__(self, formula: str) -> Floats:
        return np.asarray(eval(formula.replace("$", "_"), {"__builtins__": {}}, self.names), dtype=np.float64)


UP, DOWN = "Greater({x}-Ref({x}, 1), 0)", "Greater(Ref({x}, 1)-{x}, 0)"
MOVED = "(Sum(Abs({x}-Ref({x}, 1)), {d})+1e-12)"
PUBLISHED = {
    "KMID": "($close-$open)/$open",
    "KLEN": "($high-$low)/$open",
    "KMID2": "($close-$open)/($high-$low+1e-12)",
    "KUP": "($high-Greater($open, $close))/$open",
    "KUP2": "($high-Greater($open, $close))/($high-$low+1e-12)",
    "KLOW": "(Less($open, $close)-$low)/$open",
    "KLOW2": "(Less($open, $close)-$low)/($high-$low+1e-12)",
    "KSFT": "(2*$close-$high-$low)/$open",
    "KSFT2": "(2*$close-$high-$low)/($high-$low+1e-12)",
    "OPEN0": "$open/$close",
    "HIGH0": "$high/$close",
    "LOW0": "$low/$close",
    "ROC": "Ref($close, {d})/$close",
    "MA": "Mean($close, {d})/$close",
    "STD": "Std($close, {d})/$close",
    "BETA": "Slope($close, {d})/$close",
    "RSQR": "Rsquare($close, {d})",
    "RESI": "Resi($close, {d})/$close",
    "MAX": "Max($high, {d})/$close",
    "MIN": "Min($low, {d})/$close",
    "QTLU": "Quantile($close, {d}, 0.8)/$close",
    "QTLD": "Quantile($close, {d}, 0.2)/$close",
    "RANK": "Rank($close, {d})",
    "RSV": "($close-Min($low, {d}))/(Max($high, {d})-Min($low, {d})+1e-12)",
    "IMAX": "IdxMax($high, {d})/{d}",
    "IMIN": "IdxMin($low, {d})/{d}",
    "IMXD": "(IdxMax($high, {d})-IdxMin($low, {d}))/{d}",
    "CORR": "Corr($close, Log($volume+1), {d})",
    "CORD": "Corr($close/Ref($close,1), Log($volume/Ref($volume, 1)+1), {d})",
    "CNTP": "Mean($close>Ref($close, 1), {d})",
    "CNTN": "Mean($close<Ref($close, 1), {d})",
    "CNTD": "Mean($close>Ref($close, 1), {d})-Mean($close<Ref($close, 1), {d})",
    "SUMP": f"Sum({UP}, {{d}})/{MOVED}".replace("{x}", "$close"),
    "SUMN": f"Sum({DOWN}, {{d}})/{MOVED}".replace("{x}", "$close"),
    "SUMD": f"(Sum({UP}, {{d}})-Sum({DOWN}, {{d}}))/{MOVED}".replace("{x}", "$close"),
    "VMA": "Mean($volume, {d})/($volume+1e-12)",
    "VSTD": "Std($volume, {d})/($volume+1e-12)",
    "WVMA": "Std(Abs($close/Ref($close, 1)-1)*$volume, {d})/(Mean(Abs($close/Ref($close, 1)-1)*$volume, {d})+1e-12)",
    "VSUMP": f"Sum({UP}, {{d}})/{MOVED}".replace("{x}", "$volume"),
    "VSUMN": f"Sum({DOWN}, {{d}})/{MOVED}".replace("{x}", "$volume"),
    "VSUMD": f"(Sum({UP}, {{d}})-Sum({DOWN}, {{d}}))/{MOVED}".replace("{x}", "$volume"),
}
"""As Qlib's data loader prints them (microsoft/qlib, qlib/contrib/data/loader.py); VWAP0 is left out by both."""


def published() -> dict[str, str]:
    named = {name: text for name, text in PUBLISHED.items() if "{d}" not in text}
    for word, text in PUBLISHED.items():
        named |= {f"{word}{bars}": text.replace("{d}", str(bars)) for bars in WINDOWS if "{d}" in text}
    return named


def test_alpha158_is_what_its_published_formulas_make_in_pandas() -> None:
    frame, formulas = bars(400), published()
    assert list(alpha158()) == list(formulas)
    found, qlib = ours(list(alpha158().values()), frame), Qlib(frame)
    for name, text in alpha158().items():
        wanted = qlib(formulas[name])
        first = max(map(int, re.findall(r"\d+$", name)), default=0) + 1
        both = np.isfinite(wanted[first:])
        np.testing.assert_array_equal(np.isfinite(found[text][first:])[both], True, err_msg=name)
        assert both.mean() > 0.99, name
        # pandas' running sums keep what left the window: some digits of a small difference are lost there, not here
        got = found[text][first:][both]
        np.testing.assert_allclose(got, wanted[first:][both], rtol=1e-6, atol=1e-7, err_msg=name)


def test_alpha158_has_no_unit_and_reads_an_hour_more_than_its_longest_window() -> None:
    assert (len(alpha158()), len(alpha158_price())) == (157, 117)
    parsed = {name: parse(text) for name, text in alpha158().items()}
    assert {kind(each, kind_of) for each in parsed.values()} == {"stationary"}
    assert max(each.history for each in parsed.values()) == 60
    assert {column for each in parsed.values() for column in each.base_columns} == {
        "open", "high", "low", "close", "volume",
    }  # fmt: skip
    assert all("volume" not in parse(text).base_columns for text in alpha158_price().values())


def test_sets_are_found_by_their_reference_alone() -> None:
    assert named_set("@alpha158") is NAMED_SETS["alpha158"]
    assert named_set("alpha158") is None
    assert named_set("@mine") is None
