"""Return statistics: quantstats' and pyfolio's published formulas by pandas, and vectorbt's port of empyrical.

quantstats and pyfolio themselves are no dependency: the first is recomputed here by its formulas, the second's library
(empyrical) is asked through vectorbt, which carries it and is installed.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation.desk.statistics import return_statistics

VECTORBT = """
import json, sys
import pandas as pd
import vectorbt as vbt
found = []
for values in json.load(sys.stdin):
    returns = pd.Series(values, index=pd.date_range("2020-01-01", periods=len(values), freq="D"))
    of = returns.vbt.returns(freq="1D", year_freq="252 days")
    found.append({
        "cumulative_return": of.total(), "cagr": of.annualized(), "volatility": of.annualized_volatility(),
        "sharpe": of.sharpe_ratio(), "sortino": of.sortino_ratio(), "calmar": of.calmar_ratio(),
        "omega": of.omega_ratio(), "max_drawdown": -of.max_drawdown(), "tail_ratio": of.tail_ratio(),
        "value_at_risk": of.value_at_risk(), "conditional_value_at_risk": of.cond_value_at_risk(),
    })
json.dump(found, sys.stdout)
"""


def drawn(seed: int, num: int) -> Floats:
    """Simple daily returns with fat tails, some days flat."""
    chance = np.random.default_rng(seed)
    found = 0.0003 + 0.006 * chance.standard_t(4, num)
    found[chance.random(num) < 0.1] = 0.0
    return np.asarray(np.maximum(found, -0.5))


def by_pandas(returns: "pd.Series[float]") -> dict[str, float]:
    """quantstats.stats, formula by formula (risk-free rate 0, 252 periods a year)."""
    prices = (1 + returns).cumprod()
    from_the_start = pd.concat([pd.Series([1.0]), prices], ignore_index=True)
    deepest = (from_the_start / from_the_start.cummax() - 1).min()
    cagr = prices.iloc[-1] ** (252 / len(returns)) - 1
    return {
        "cumulative_return": prices.iloc[-1] - 1,
        "cagr": cagr,
        "volatility": returns.std() * np.sqrt(252),
        "sharpe": returns.mean() / returns.std() * np.sqrt(252),
        "sortino": returns.mean() / np.sqrt((returns[returns < 0] ** 2).sum() / len(returns)) * np.sqrt(252),
        "calmar": cagr / abs(deepest),
        "omega": returns[returns > 0].sum() / -returns[returns < 0].sum(),
        "max_drawdown": -deepest,
        "skewness": returns.skew(),
        "excess_kurtosis": returns.kurtosis(),
        "value_at_risk": returns.quantile(0.05),
        "tail_ratio": abs(returns.quantile(0.95) / returns.quantile(0.05)),
        "best_day": returns.max(),
        "worst_day": returns.min(),
        "share_of_days_up": (returns > 0).sum() / (returns != 0).sum(),
        "stability": pd.Series(range(len(returns))).corr(pd.Series(np.log(prices).to_numpy())) ** 2,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(30, 600))
def test_they_are_quantstats_formulas_on_the_same_returns(seed: int, num: int) -> None:
    simple = drawn(seed, num)
    found = return_statistics(np.log1p(simple))
    assert found is not None
    for name, value in by_pandas(pd.Series(simple)).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.more
def test_they_are_empyricals_as_vectorbt_carries_it() -> None:
    samples = [drawn(seed, num) for seed, num in ((1, 40), (2, 260), (3, 521))]
    done = subprocess.run(
        [sys.executable, "-c", VECTORBT],
        input=json.dumps([each.tolist() for each in samples]),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for simple, theirs in zip(samples, json.loads(done.stdout), strict=True):
        ours = return_statistics(np.log1p(simple))
        assert ours is not None
        for name, value in theirs.items():
            assert getattr(ours, name) == pytest.approx(value, rel=1e-9), name


def test_what_cannot_be_said_is_missing() -> None:
    assert return_statistics(np.zeros(1)) is None
    flat = return_statistics(np.zeros(60))
    assert flat is not None
    assert flat.sharpe is flat.sortino is flat.omega is flat.tail_ratio is flat.stability is None
    assert flat.max_drawdown == flat.cumulative_return == 0
    short = return_statistics(np.array([0.01, -0.01, 0.02]))
    assert short is not None
    assert short.cagr is short.calmar is None
