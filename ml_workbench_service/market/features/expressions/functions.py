"""Functions of the expression grammar: how each is written, what it costs, how far back it reads.

`FUNCTIONS` is the whole list; docs/expressions.md and `GET /features` are made of it. `ALIASES` are the words that
other libraries use for some of them; the canonical text has ours.
"""

from dataclasses import dataclass
from typing import Literal

LONGEST_REACH = 1000
"""Bars an expression may look back, all its functions together; as far as the longest indicator period."""

Window = Literal["none", "lag", "folded", "sorted"]
"""What of the past it reads: nothing, one bar, a window put together from halves, or a window's values in order."""


@dataclass(frozen=True)
class Function:
    """One function of the grammar.

    Attributes:
        num_expressions: how many expressions it takes, before any number.
        fewest_bars: the least number of bars; 0: it takes none.
        window: what it reads of the past, which decides what it costs.
        takes_share: whether a number between 0 and 1 follows the bars.
        once: operations a bar, whatever its number of bars.
    """

    name: str
    num_expressions: int
    fewest_bars: int
    description: str
    window: Window = "none"
    takes_share: bool = False
    once: int = 1

    @property
    def usage(self) -> str:
        """How it is written, such as `lag(x, bars)`."""
        names = ["x", "y"][: self.num_expressions] + ["bars"] * (self.fewest_bars > 0) + ["share"] * self.takes_share
        return f"{self.name}({', '.join(names)})"

    def reach(self, bars: int) -> int:
        """Bars before a row that it reads: a window holds the row's own bar."""
        return bars if self.window == "lag" else max(bars - 1, 0)

    def work(self, bars: int) -> int:
        """Operations a bar, about an addition each: a function counts as the dearest of its kind does
        (`benchmarks/expressions.py` measures them)."""
        return self.once + {"none": 0, "lag": 1, "folded": 8 * bars.bit_length(), "sorted": 8 + 2 * bars}[self.window]


_CALENDAR = {
    "hour": "the FX day's phase from 17:00 New York",
    "weekday": "the week's phase from Sunday 17:00 New York",
    "month": "the calendar month's phase, UTC",
    "year": "the calendar year's phase, UTC",
}
FUNCTIONS = {
    each.name: each
    for each in (
        Function("lag", 1, 1, "The value that many bars ago.", "lag"),
        Function("diff", 1, 1, "The value less the value that many bars ago.", "lag"),
        Function("ret", 1, 1, "The value over the value that many bars ago, less 1.", "lag"),
        Function("log_return", 1, 1, "Logarithm of a level over the level that many bars ago.", "lag", once=10),
        Function("ratio", 2, 0, "Another spelling of `x / y`."),
        Function("mean", 1, 2, "Mean of the last bars, this one included.", "folded"),
        Function("sum", 1, 2, "Sum of the last bars.", "folded"),
        Function("wma", 1, 2, "Mean of the last bars, weighted 1, 2, 3, … up to this one.", "folded"),
        Function("std", 1, 2, "Sample standard deviation of the last bars.", "folded"),
        Function("zscore", 1, 3, "The value less the last bars' mean, in their standard deviations.", "folded"),
        Function("max", 1, 2, "Largest of the last bars.", "folded"),
        Function("min", 1, 2, "Smallest of the last bars.", "folded"),
        Function("idxmax", 1, 2, "Place of the first largest among the last bars: 1 the oldest.", "sorted"),
        Function("idxmin", 1, 2, "Place of the first smallest among the last bars: 1 the oldest.", "sorted"),
        Function("rank", 1, 2, "Share of the last bars up to the value: 1 the largest, ties halved.", "sorted"),
        Function("quantile", 1, 2, "Value below which that share of the last bars lies, between two.", "sorted", True),
        Function("slope", 1, 2, "Slope a bar of the line fitted through the last bars.", "folded"),
        Function("rsquare", 1, 3, "Share of the last bars' variance on that line.", "folded"),
        Function("resi", 1, 3, "The value less that line's.", "folded"),
        Function("corr", 2, 3, "Correlation of two columns over the last bars.", "folded"),
        Function("greater", 2, 0, "The larger of two values."),
        Function("less", 2, 0, "The smaller of two values."),
        Function("abs", 1, 0, "The value without its sign."),
        Function("sign", 1, 0, "-1, 0 or 1."),
        Function("log", 1, 0, "Natural logarithm of a number without unit.", once=10),
        *(Function(f"sin_{word}", 0, 0, f"Sine of {meaning}.", once=30) for word, meaning in _CALENDAR.items()),
        *(Function(f"cos_{word}", 0, 0, f"Cosine of {meaning}.", once=30) for word, meaning in _CALENDAR.items()),
    )
}
ALIASES = {
    "delay": "lag", "ref": "lag", "delta": "diff", "stddev": "std", "correlation": "corr", "decay_linear": "wma",
    "ts_max": "max", "ts_min": "min", "ts_rank": "rank", "ts_argmax": "idxmax", "ts_argmin": "idxmin",
}  # fmt: skip
"""Words of WorldQuant's and Qlib's formulas that mean one of ours."""
OPERATORS = {
    "<": ("below", 0), "<=": ("upto", 0), ">": ("above", 0), ">=": ("from", 0),
    "+": ("plus", 1), "-": ("minus", 1), "*": ("times", 2), "/": ("over", 2),
}  # fmt: skip
"""Word for a short name, and binding strength; a comparison is 1 where it holds and 0 where not."""
COMPARISONS = ("<", "<=", ">", ">=")
ELSEWHERE = {
    "at": ("at(timeframe, x)", "Of the newest bar of that coarser timeframe that was over by then."),
    "of": ("of(symbol, x)", "Of another symbol, at the same bar; a symbol alone is its close."),
}
"""The two words that read another series, how they are written and what they mean."""
