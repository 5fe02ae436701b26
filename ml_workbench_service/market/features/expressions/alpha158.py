"""Alpha158: the feature set that Qlib's benchmarks train on, said in the expression grammar.

158 formulas of the bar's shape, prices and volumes over windows of 5 to 60 bars (Yang et al. 2020, "Qlib: An
AI-oriented Quantitative Investment Platform", arXiv:2009.11189; the formulas are those of its data loader). They are
sets by name: `"features": ["@alpha158"]`.

    @alpha158         157 of them: VWAP0 needs a volume-weighted price, which bars of foreign exchange lack; where your
                      files have one, add `vwap / close`
    @alpha158_price   the 117 that read no volume

What differs from Qlib: a window is whole or missing, where Qlib answers from its first bar on; a window that does not
vary has no correlation and no R², by a relative bound where Qlib's is 2e-5, wider than five quiet hours of EUR/USD.
"""

from collections.abc import Mapping
from functools import lru_cache

from ml_workbench_service.market.features.expressions.parser import parse

WINDOWS = (5, 10, 20, 30, 60)
_SHAPES = {
    "KMID": "(close - open) / open",
    "KLEN": "(high - low) / open",
    "KMID2": "(close - open) / (high - low + 1e-12)",
    "KUP": "(high - greater(open, close)) / open",
    "KUP2": "(high - greater(open, close)) / (high - low + 1e-12)",
    "KLOW": "(less(open, close) - low) / open",
    "KLOW2": "(less(open, close) - low) / (high - low + 1e-12)",
    "KSFT": "(2 * close - high - low) / open",
    "KSFT2": "(2 * close - high - low) / (high - low + 1e-12)",
    "OPEN0": "open / close",
    "HIGH0": "high / close",
    "LOW0": "low / close",
}
_UP, _DOWN, _MOVED = "greater({x} - lag({x}, 1), 0)", "greater(lag({x}, 1) - {x}, 0)", "abs({x} - lag({x}, 1))"
_ROLLING = {
    "ROC": "lag(close, {d}) / close",
    "MA": "mean(close, {d}) / close",
    "STD": "std(close, {d}) / close",
    "BETA": "slope(close, {d}) / close",
    "RSQR": "rsquare(close, {d})",
    "RESI": "resi(close, {d}) / close",
    "MAX": "max(high, {d}) / close",
    "MIN": "min(low, {d}) / close",
    "QTLU": "quantile(close, {d}, 0.8) / close",
    "QTLD": "quantile(close, {d}, 0.2) / close",
    "RANK": "rank(close, {d})",
    "RSV": "(close - min(low, {d})) / (max(high, {d}) - min(low, {d}) + 1e-12)",
    "IMAX": "idxmax(high, {d}) / {d}",
    "IMIN": "idxmin(low, {d}) / {d}",
    "IMXD": "(idxmax(high, {d}) - idxmin(low, {d})) / {d}",
    "CORR": "corr(close, log(volume + 1), {d})",
    "CORD": "corr(close / lag(close, 1), log(volume / lag(volume, 1) + 1), {d})",
    "CNTP": "mean(close > lag(close, 1), {d})",
    "CNTN": "mean(close < lag(close, 1), {d})",
    "CNTD": "mean(close > lag(close, 1), {d}) - mean(close < lag(close, 1), {d})",
    "SUMP": "sum(UP, {d}) / (sum(MOVED, {d}) + 1e-12)",
    "SUMN": "sum(DOWN, {d}) / (sum(MOVED, {d}) + 1e-12)",
    "SUMD": "(sum(UP, {d}) - sum(DOWN, {d})) / (sum(MOVED, {d}) + 1e-12)",
    "VMA": "mean(volume, {d}) / (volume + 1e-12)",
    "VSTD": "std(volume, {d}) / (volume + 1e-12)",
    "WVMA": "std(abs(close / lag(close, 1) - 1) * volume, {d})"
    " / (mean(abs(close / lag(close, 1) - 1) * volume, {d}) + 1e-12)",
    "VSUMP": "sum(VUP, {d}) / (sum(VMOVED, {d}) + 1e-12)",
    "VSUMN": "sum(VDOWN, {d}) / (sum(VMOVED, {d}) + 1e-12)",
    "VSUMD": "(sum(VUP, {d}) - sum(VDOWN, {d})) / (sum(VMOVED, {d}) + 1e-12)",
}
"""By the name's beginning; the number of bars follows it."""


@lru_cache(maxsize=1)
def alpha158() -> Mapping[str, str]:
    """Canonical text of each formula by its name, in Qlib's order."""
    texts = dict(_SHAPES)
    for word, formula in _ROLLING.items():
        texts |= {f"{word}{bars}": _filled(formula, bars) for bars in WINDOWS}
    return {name: parse(text).text for name, text in texts.items()}


@lru_cache(maxsize=1)
def alpha158_price() -> Mapping[str, str]:
    """Those of them that read no volume."""
    return {name: text for name, text in alpha158().items() if "volume" not in parse(text).base_columns}


def _filled(formula: str, bars: int) -> str:
    """With its moves written out and the bars put in."""
    for word, move in (("UP", _UP), ("DOWN", _DOWN), ("MOVED", _MOVED)):
        formula = formula.replace(f"(V{word},", f"({move.format(x='volume')},")
        formula = formula.replace(f"({word},", f"({move.format(x='close')},")
    return formula.replace("{d}", str(bars))
