"""The backtest against vectorbt: the same signal, prices and costs, shorts and weekends among them, to rounding.

Our position is a share of the capital at each bar, so vectorbt is given the sizes that this means (capital x position ÷
price, the rebalancing free of charge) and the fee of each change; its own cash and unit bookkeeping then has to arrive
at our capital at every bar. It is lent idle cash, since it refuses to buy with what it still owes as a fee.

Left to size its orders itself it differs in second order, which is shown too: it buys capital ÷ (1 + cost) where we pay
the cost beside the whole position. It knows no swap; `tests/evaluation/test_signal_backtest.py` has that by hand.

vectorbt runs in a process of its own without its compiler: compiling takes half a minute, a few hundred bars do not.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import FillRule, Floats, Ints
from ml_workbench_service.market.backtest import Backtest, backtest
from ml_workbench_service.market.trading_series import TradingSeries, build_trading_series
from tests.market.series_for_tests import COSTS, HOUR_MS, hours, stacked

pytestmark = pytest.mark.more

NUM = 600
IDLE_CASH = 9.0
VECTORBT = """
import json, sys
import numpy as np
import vectorbt as vbt
answers = []
for orders in json.load(sys.stdin):
    arrays = {name: np.array(each, dtype=float) if isinstance(each, list) else each for name, each in orders.items()}
    portfolio = vbt.Portfolio.from_orders(**arrays, min_size=0.0)
    answers.append({"value": portfolio.value().tolist(), "fees": portfolio.orders.records["fees"].tolist()})
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Case:
    """A series with its signal, what the backtest makes of it, and the orders that vectorbt is given."""

    series: TradingSeries
    rows: Ints
    positions: Ints
    judged: Backtest
    orders: dict[str, Any]
    ours: Floats  # what our account holds at each bar, fees just paid; NaN out of the market's segments


@dataclass(frozen=True)
class Answer:
    """vectorbt's account at each bar, and the fee of each order."""

    value: Floats
    fees: Floats


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Our sizes under both fill rules, and a long-only signal whose sizes are left to vectorbt."""
    return {
        "next_open": with_our_sizes("next_open"),
        "next_close": with_our_sizes("next_close"),
        "own_sizes": own_sizes(),
    }


@pytest.fixture(scope="module")
def answers(cases: dict[str, Case]) -> dict[str, Answer]:
    """What vectorbt says of each case."""
    done = subprocess.run(
        [sys.executable, "-c", VECTORBT], input=json.dumps([case.orders for case in cases.values()]), text=True,
        capture_output=True, check=False, env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {
        name: Answer(np.array(each["value"]), np.array(each["fees"])) for name, each in zip(cases, found, strict=True)
    }


def series_of(fill: FillRule = "next_open", *, seed: int = 0) -> TradingSeries:
    """Hours of EUR/USD over five weeks; every third bar has a spread of its own, nobody charges swap."""
    chance = np.random.default_rng(seed)
    opened = hours(NUM)
    free_nights = COSTS["EUR/USD"].model_copy(update={"swap_long_pips": 0.0, "swap_short_pips": 0.0})
    return build_trading_series(
        stacked(
            1.1 * np.exp(np.cumsum(chance.normal(0, 0.003, NUM))),
            opened,
            spread_R=np.where(np.arange(NUM) % 3 == 0, chance.uniform(0, 4e-4, NUM), np.nan),
            close_R=1.1 * np.exp(np.cumsum(chance.normal(0, 0.003, NUM))),
            available_at_ms_R=opened + HOUR_MS,
        ),
        costs={"EUR/USD": free_nights},
        fill=fill,
    )


def decisions(series: TradingSeries, *, seed: int = 1, lowest: int = -1) -> tuple[Ints, Ints]:
    """Positions held for some bars each, in three segments."""
    chance = np.random.default_rng(seed)
    rows = series.payable(np.concatenate([np.arange(3, 200), np.arange(220, 221), np.arange(240, NUM)]))
    return rows, np.repeat(chance.integers(lowest, 2, len(rows)), chance.integers(1, 6, len(rows)))[: len(rows)]


def with_our_sizes(fill: FillRule) -> Case:
    """Orders of capital x position ÷ price at each bar, with a fee for each change of position."""
    series = series_of(fill)
    rows, positions = decisions(series)
    judged = backtest(series, rows, positions, bars_per_year=1.0)
    capital = capital_of(judged)
    size, fee, ours = np.zeros(NUM), np.zeros(NUM), np.full(NUM, np.nan)
    units, held = 0.0, 0
    for number, row in enumerate(rows):
        entry, position = int(row) + series.delay, int(positions[number])
        wanted = position * capital[number] / series.price_R[entry]
        size[entry], units = wanted - units, wanted
        fee[entry] = series.unit_cost_R[entry] * abs(position - held) * capital[number]
        ours[entry] = capital[number] - fee[entry]
        held = position
        if number + 1 == len(rows) or rows[number + 1] != row + 1:
            worth = ours[entry] + units * (series.price_R[entry + 1] - series.price_R[entry])
            size[entry + 1], units, held = -units, 0.0, 0
            fee[entry + 1] = series.unit_cost_R[entry + 1] * abs(position) * worth
            ours[entry + 1] = capital[number + 1]
    orders = {
        "close": series.price_R.tolist(),
        "price": series.price_R.tolist(), "size": size.tolist(), "size_type": "amount",
        "direction": "both", "fees": 0.0, "fixed_fees": fee.tolist(), "init_cash": 1.0 + IDLE_CASH,
    }  # fmt: skip
    return Case(series, rows, positions, judged, orders, ours)


def own_sizes() -> Case:
    """One segment, long or flat: all of the capital at each entry, fees as a share of the order."""
    series = series_of()
    rows, positions = (each[-300:] for each in decisions(series, lowest=0))
    target = np.full(NUM, np.nan)
    changes = np.flatnonzero(np.diff(positions, prepend=0))
    target[rows[changes] + series.delay] = positions[changes]
    target[rows[-1] + series.delay + 1] = 0.0
    orders = {
        "close": series.price_R.tolist(),
        "price": series.price_R.tolist(), "size": target.tolist(),
        "size_type": "targetpercent", "direction": "longonly", "fees": series.unit_cost_R.tolist(), "init_cash": 1.0,
    }  # fmt: skip
    judged = backtest(series, rows, positions, bars_per_year=1.0)
    return Case(series, rows, positions, judged, orders, np.full(NUM, np.nan))


def capital_of(judged: Backtest) -> Floats:
    """What there is before each decision, and at the end."""
    return np.exp(np.concatenate([[0.0], np.cumsum(judged.net_N)]))


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_vectorbt_arrives_at_our_capital_at_every_bar(
    fill: str, cases: dict[str, Case], answers: dict[str, Answer]
) -> None:
    case, theirs = cases[fill], answers[fill].value - IDLE_CASH
    assert set(case.positions.tolist()) == {-1, 0, 1}
    assert (np.abs(np.diff(case.positions)) == 2).any(), "long to short at once"
    told = np.isfinite(case.ours)
    np.testing.assert_allclose(theirs[told], case.ours[told], rtol=0, atol=2e-14)
    assert np.ptp(theirs[told]) > 0.01, "something was earned or lost"


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_vectorbt_pays_what_we_count_as_cost(fill: str, cases: dict[str, Case], answers: dict[str, Answer]) -> None:
    judged, fees = cases[fill].judged, answers[fill].fees
    assert fees.sum() == pytest.approx((judged.cost_N * capital_of(judged)[:-1]).sum(), rel=1e-4)
    assert (fees > 0).sum() == judged.summary.num_trades


def test_left_to_its_own_sizes_vectorbt_differs_in_second_order(
    cases: dict[str, Case], answers: dict[str, Answer]
) -> None:
    case, series = cases["own_sizes"], cases["own_sizes"].series
    bought = case.rows[np.diff(case.positions, prepend=0) == 1] + series.delay
    cost, move = series.unit_cost_R[bought], series.move_R[bought]
    explained = float(np.sum(np.log((1 + move) / (1 + cost)) - np.log(1 + move - cost)))
    difference = float(np.log(answers["own_sizes"].value[-1])) - case.judged.summary.net_log_return
    assert len(bought) > 20
    assert difference == pytest.approx(explained, abs=1e-13)
    assert 0 < abs(difference) < (cost * (np.abs(move) + cost)).sum()
