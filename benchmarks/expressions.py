"""Expressions: Alpha158 over many hours beside pandas' rolling windows, one live answer's part of it, each function.

    python -m benchmarks.expressions

20,000 hours on one core. pandas makes those formulas of Alpha158 for which its windows have a method in C (means,
deviations, extremes, quantiles, ranks, sums, correlations); both make the same columns, which are compared first. The
live figure is all 157 columns from the bars that one answer reads. Each function's time is in additions of two columns,
which is what `Function.work` says of it. Interleaved rounds.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.features.expressions.alpha158 import WINDOWS, alpha158
from ml_workbench_service.market.features.expressions.evaluation import evaluate
from ml_workbench_service.market.features.expressions.functions import FUNCTIONS
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.features.expressions.parser import parse
from tools.interleaved_rounds import Goal, Rounds, conclude, show

NUM_BARS, NUM_ROUNDS, NUM_REPEATS = 20_000, 7, 20
LIVE_BARS = 24 + 60 + 8
"""Of one answer: a lookback of 24, the longest window, and what is fetched to spare."""
OURS, PANDAS = "expressions", "pandas"
IN_C = ("ROC", "MA", "STD", "MAX", "MIN", "QTLU", "QTLD", "RANK", "RSV", "CNTP", "CNTN", "SUMP", "VMA", "VSTD", "CORR")
RANKED_BARS = 250
"""Of each function's window."""


def bars(num: int) -> pd.DataFrame:
    """A walk of hours with a range and volumes."""
    chance = np.random.default_rng(0)
    close = 1.1 * np.exp(np.cumsum(chance.normal(size=num) * 1e-3))
    opened = np.concatenate([close[:1], close[:-1]])
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) * (1 + chance.random(num) * 1e-3),
            "low": np.minimum(opened, close) * (1 - chance.random(num) * 1e-3),
            "close": close,
            "volume": np.round(np.exp(chance.normal(size=num) + 5)) + 1,
        }
    )


def evaluated(expressions: list[Expression], frame: pd.DataFrame) -> dict[str, Floats]:
    """Our columns, by text."""
    opened_ms = 1_704_664_800_000 + 3_600_000 * np.arange(len(frame))
    columns = {str(name): frame[name].to_numpy() for name in frame}
    return evaluate(expressions, columns, opened_ms=opened_ms, runs=np.zeros(len(frame), dtype=np.int64))


def in_pandas(frame: pd.DataFrame) -> dict[str, Any]:
    """The same columns by pandas' own methods."""
    close, volume, before = frame.close, frame.volume, frame.close.shift(1)
    moved, found = (close - before).abs(), {}
    for bars_ in WINDOWS:
        of = close.rolling(bars_)
        highest, lowest = frame.high.rolling(bars_).max(), frame.low.rolling(bars_).min()
        found |= {
            f"ROC{bars_}": close.shift(bars_) / close,
            f"MA{bars_}": of.mean() / close,
            f"STD{bars_}": of.std() / close,
            f"MAX{bars_}": highest / close,
            f"MIN{bars_}": lowest / close,
            f"QTLU{bars_}": of.quantile(0.8) / close,
            f"QTLD{bars_}": of.quantile(0.2) / close,
            f"RANK{bars_}": of.rank(pct=True),
            f"RSV{bars_}": (close - lowest) / (highest - lowest + 1e-12),
            f"CNTP{bars_}": (close > before).astype(float).rolling(bars_).mean(),
            f"CNTN{bars_}": (close < before).astype(float).rolling(bars_).mean(),
            f"SUMP{bars_}": (close - before).clip(lower=0).rolling(bars_).sum() / (moved.rolling(bars_).sum() + 1e-12),
            f"VMA{bars_}": volume.rolling(bars_).mean() / (volume + 1e-12),
            f"VSTD{bars_}": volume.rolling(bars_).std() / (volume + 1e-12),
            f"CORR{bars_}": of.corr(np.log(volume + 1)),
        }
    return found


def compare(named: dict[str, Expression], frame: pd.DataFrame) -> None:
    """Ends the benchmark where both do not make the same columns."""
    ours, theirs = evaluated(list(named.values()), frame), in_pandas(frame)
    for name, each in named.items():
        if not np.allclose(ours[each.text][100:], theirs[name][100:], rtol=1e-6, atol=1e-7, equal_nan=True):
            raise SystemExit(f"{name} is another column in pandas")


def seconds(make: Callable[[], object], repeats: int = 1) -> float:
    """Of one of so many repeats, of the processor: everything here runs in one thread."""
    begun = time.process_time()
    for _ in range(repeats):
        make()
    return (time.process_time() - begun) / repeats


def costs(frame: pd.DataFrame) -> list[list[str]]:
    """A row a function: its time over an addition's, and what `work` says."""

    def beyond(text: str, *columns: str) -> float:
        """What an expression costs beyond reading its columns."""
        read = min(seconds(lambda: evaluated([parse(name) for name in columns], frame)) for _ in range(15))
        return min(seconds(lambda: evaluated([parse(text)], frame)) for _ in range(15)) - read

    addition = beyond("volume + close", "volume", "close")
    rows = []
    for function in FUNCTIONS.values():
        bars_ = RANKED_BARS if function.fewest_bars else 0
        columns = ["volume", "close"][: function.num_expressions]
        numbers = [str(bars_)] * (bars_ > 0) + ["0.8"] * function.takes_share
        expression = parse(f"{function.name}({', '.join([*columns, *numbers])})")
        measured = beyond(expression.text, *columns) / addition
        rows.append([expression.text, f"{measured:.1f}", str(expression.work)])
    return rows


def main(*, num_bars: int = NUM_BARS, num_rounds: int = NUM_ROUNDS, repeats: int = NUM_REPEATS) -> None:
    """Runs it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    frame, live = bars(num_bars), bars(LIVE_BARS)
    every = [parse(text) for text in alpha158().values()]
    named = {f"{word}{bars_}": parse(alpha158()[f"{word}{bars_}"]) for word in IN_C for bars_ in WINDOWS}
    compare(named, frame)
    rounds, live_s = Rounds(bigger_is_better=False), []
    for number in range(num_rounds):
        turns = [(OURS, lambda: evaluated(list(named.values()), frame)), (PANDAS, lambda: in_pandas(frame))]
        for name, make in turns[:: 1 if number % 2 else -1]:
            rounds.add(name, seconds(make))
        live_s.append(seconds(lambda: evaluated(every, live), repeats))
    show(
        f"{len(named)} columns of Alpha158 over {num_bars:,} hours, milliseconds",
        ["", "ms", "we are faster by"],
        [
            [name, f"{1000 * rounds.median(name):,.0f}", f"{rounds.times_better(OURS, name):.2f}"]
            for name in (OURS, PANDAS)
        ],
    )
    print(f"\n  all 157 columns of one live answer: {1000 * float(np.median(live_s)):.1f} ms")
    table = costs(frame)
    show("Each function, in additions of two columns", ["", "measured", "`work`"], table)
    goals = [Goal("as fast as pandas' rolling windows", rounds.times_better(OURS, PANDAS), 1.0)]
    conclude("expressions", goals, {"seconds": rounds.figures, "live_s": live_s, "costs": table})


if __name__ == "__main__":
    main()
