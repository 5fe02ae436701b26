"""Expression evaluation: an expression's column over one symbol's bars.

Causal: a row's value reads this bar and earlier ones of the same run, so a lag over a missing bar is missing. Missing
stays missing, and so does what has no value: a division by zero, the logarithm of nothing, a z-score of a constant.

A row's value is the same to the bit whatever range is evaluated, once `Expression.history` earlier bars are there:
windows are folded (`windows`), sums, products and roots are IEEE's own, and logarithms, sines and cosines are polars',
which are taken element by element; numpy's depend on the place in the array.

What several expressions share is computed once, and let go after its last use.

Legend: N bars.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, trading_day_opening, week_opening
from ml_workbench_service.market.features.expressions import windows
from ml_workbench_service.market.features.expressions.functions import FUNCTIONS, OPERATORS
from ml_workbench_service.market.features.expressions.nodes import Call, Column, Elsewhere, Expression, Node, Number
from ml_workbench_service.market.features.expressions.windows import Moments, shifted


def evaluate(
    expressions: Sequence[Expression], columns: Mapping[str, Floats], *, opened_ms: Ints, runs: Ints
) -> dict[str, Floats]:
    """Each expression's column (N,) by its canonical text; NaN where there is no value.

    Args:
        expressions: what to evaluate; parts that they share are computed once.
        columns: the base columns of one symbol, (N,) each, oldest bar first; NaN is missing.
        opened_ms: openings of the bars.
        runs: the run of consecutive bars that each bar belongs to (`market.calendar.runs`).

    Raises:
        DataValidationError: a base column is not there.
    """
    evaluation = _Evaluation(columns, opened_ms, runs, expressions)
    with np.errstate(all="ignore"):
        return {each.text: np.array(evaluation.taken(each.root)) for each in expressions}


class _Evaluation:
    """Columns of one table by node's text."""

    def __init__(
        self, columns: Mapping[str, Floats], opened_ms: Ints, runs: Ints, expressions: Sequence[Expression]
    ) -> None:
        self._columns = columns
        self._opened_ms = opened_ms
        num = self._num = len(runs)
        starts = np.ones(num, dtype=bool)
        starts[1:] = runs[1:] != runs[:-1]
        self._age_N = np.arange(num) - np.maximum.accumulate(np.where(starts, np.arange(num), 0))
        self._known: dict[str, Floats] = {}
        self._moments: dict[tuple[str, ...], Moments] = {}
        self._uses = _uses(expressions)

    def taken(self, node: Node) -> Floats:
        """A node's values; it is let go with its last use."""
        key = node.text
        if key not in self._known:
            self._known[key] = self._value(node)
        self._uses[key] -= 1
        if self._uses[key]:
            return self._known[key]
        for kept in [each for each in self._moments if key in each[1:]]:
            del self._moments[kept]
        return self._known.pop(key)

    def _value(self, node: Node) -> Floats:
        if isinstance(node, Number):
            return np.full(self._num, node.value)
        if isinstance(node, Column | Elsewhere):
            return self._base(node.text)
        if not node.operands:
            return self._phase(node.function)
        if node.function in OPERATORS or FUNCTIONS[node.function].window == "none":
            return _finite(_PLAIN[node.function](*[self.taken(operand) for operand in node.operands]))
        if FUNCTIONS[node.function].window == "lag":
            return self._lagged(node)
        return np.where(self._age_N >= node.bars - 1, _finite(self._windowed(node)), np.nan)

    def _base(self, name: str) -> Floats:
        values = self._columns.get(name)
        if values is None:
            raise DataValidationError.at(
                "features", f"the column {name} of an expression was not fetched; ask the feature store for it"
            )
        return _finite(np.asarray(values, dtype=np.float64))

    def _lagged(self, node: Call) -> Floats:
        """Of a value and the one that many bars ago in the same run."""
        now_N = self.taken(node.operands[0])
        past_N = np.where(self._age_N >= node.bars, shifted(now_N, node.bars), np.nan)
        if node.function == "lag":
            return past_N
        if node.function == "log_return":
            return _log(np.where((now_N > 0) & (past_N > 0), now_N / past_N, np.nan))
        return _finite(now_N - past_N if node.function == "diff" else now_N / past_N - 1.0)

    def _windowed(self, node: Call) -> Floats:
        """Of whole windows, the gaps in them not looked at."""
        if node.function in _OF_MOMENTS:
            make, finish = _OF_MOMENTS[node.function]
            operands = tuple(operand.text for operand in node.operands)
            key = (make.__name__, *operands)
            moments = self._moments.get(key)
            values = [self.taken(operand) for operand in node.operands]
            moments = moments or make(*values)
            if all(each in self._known for each in operands):
                self._moments[key] = moments
            return finish(moments.of(node.bars), node.bars, values[0])
        values_N = self.taken(node.operands[0])
        return _OF_WINDOWS[node.function](values_N, node)

    def _phase(self, function: str) -> Floats:
        """Sine or cosine of a calendar's phase."""
        from polars import Series

        wave, _, unit = function.partition("_")
        angle = Series(2 * np.pi * _PHASES[unit](self._opened_ms))
        return np.asarray((angle.sin() if wave == "sin" else angle.cos()).to_numpy(), dtype=np.float64)


def _uses(expressions: Sequence[Expression]) -> Counter[str]:
    """How often each node is asked for: once by each different node above it, and by each expression."""
    uses: Counter[str] = Counter()

    def count(node: Node) -> None:
        uses[node.text] += 1
        if uses[node.text] == 1 and isinstance(node, Call):
            for operand in node.operands:
                count(operand)

    for each in expressions:
        count(each.root)
    return uses


def _finite(values_N: Floats) -> Floats:
    return np.where(np.isfinite(values_N), values_N, np.nan)


def _log(values_N: Floats) -> Floats:
    """(N,) natural logarithms of what is positive."""
    from polars import Series

    logs_N = Series(np.where(values_N > 0, values_N, np.nan)).log().to_numpy()
    return _finite(np.asarray(logs_N, dtype=np.float64))


def _compared(compare: Callable[[Floats, Floats], Bools]) -> Callable[[Floats, Floats], Floats]:
    """1 where it holds, 0 where not, missing where a side is."""
    return lambda left, right: np.where(np.isnan(left) | np.isnan(right), np.nan, compare(left, right))


_PLAIN: Mapping[str, Callable[..., Floats]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
    "<": _compared(np.less), "<=": _compared(np.less_equal),
    ">": _compared(np.greater), ">=": _compared(np.greater_equal),
    "greater": np.maximum, "less": np.minimum, "abs": np.abs, "sign": np.sign, "log": _log,
}  # fmt: skip


def _zscore(piece: windows.Piece, bars: int, now_N: Floats) -> Floats:
    mean_N, squares_N = piece[:2]
    return np.where(
        windows.varies(mean_N, squares_N, bars), (now_N - mean_N) / windows.deviation(squares_N, bars), np.nan
    )


def _slope(piece: windows.Piece, bars: int, now_N: Floats) -> Floats:
    return piece[2] / _time_squares(bars)


def _rsquare(piece: windows.Piece, bars: int, now_N: Floats) -> Floats:
    mean_N, squares_N, trend_N = piece
    share_N = np.minimum(trend_N * trend_N / (squares_N * _time_squares(bars)), 1.0)
    return np.where(windows.varies(mean_N, squares_N, bars), share_N, np.nan)


def _residual(piece: windows.Piece, bars: int, now_N: Floats) -> Floats:
    return now_N - (piece[0] + piece[2] / _time_squares(bars) * ((bars - 1) / 2))


def _correlation(piece: windows.Piece, bars: int, now_N: Floats) -> Floats:
    mean_N, squares_N, other_N, other_squares_N, products_N = piece
    both = windows.varies(mean_N, squares_N, bars) & windows.varies(other_N, other_squares_N, bars)
    share_N = products_N / (np.sqrt(squares_N) * np.sqrt(other_squares_N))
    return np.where(both, np.clip(share_N, -1.0, 1.0), np.nan)


def _time_squares(bars: int) -> float:
    """Sum of squared deviations of 1 … bars from their mean."""
    return bars * (bars * bars - 1) / 12


_OF_MOMENTS: Mapping[str, tuple[Callable[..., Moments], Callable[[windows.Piece, int, Floats], Floats]]] = {
    "mean": (Moments.plain, lambda piece, bars, now_N: piece[0]),
    "std": (Moments.plain, lambda piece, bars, now_N: windows.deviation(piece[1], bars)),
    "zscore": (Moments.plain, _zscore),
    "wma": (Moments.with_time, lambda piece, bars, now_N: piece[0] + 2.0 * piece[2] / (bars * (bars + 1))),
    "slope": (Moments.with_time, _slope),
    "rsquare": (Moments.with_time, _rsquare),
    "resi": (Moments.with_time, _residual),
    "corr": (Moments.of_two, _correlation),
}
"""Of a function the moments that it needs, and what it makes of those of its windows and the newest values."""
_OF_WINDOWS: Mapping[str, Callable[[Floats, Call], Floats]] = {
    "sum": lambda values_N, node: windows.total(values_N, node.bars),
    "max": lambda values_N, node: windows.largest(values_N, node.bars),
    "min": lambda values_N, node: -windows.largest(-values_N, node.bars),
    "rank": lambda values_N, node: windows.rank(values_N, node.bars),
    "quantile": lambda values_N, node: windows.quantile(values_N, node.bars, node.share),
    "idxmax": lambda values_N, node: windows.place_of_largest(values_N, node.bars),
    "idxmin": lambda values_N, node: windows.place_of_largest(-values_N, node.bars),
}


def _since(start: Callable[[Ints], Ints], length_ms: int) -> Callable[[Ints], Floats]:
    return lambda opened_ms: np.asarray((opened_ms - start(opened_ms)) / length_ms, dtype=np.float64)


def _civil(unit: Literal["M", "Y"]) -> Callable[[Ints], Floats]:
    """How much of the month or year, in UTC, has passed."""

    def phase(opened_ms: Ints) -> Floats:
        starts = opened_ms.astype("datetime64[ms]").astype(f"datetime64[{unit}]")
        start_ms, end_ms = ((starts + step).astype("datetime64[ms]").astype(np.int64) for step in (0, 1))
        return np.asarray((opened_ms - start_ms) / (end_ms - start_ms), dtype=np.float64)

    return phase


_PHASES: dict[str, Callable[[Ints], Floats]] = {
    "hour": _since(trading_day_opening, DAY_MS),
    "weekday": _since(week_opening, 168 * HOUR_MS),
    "month": _civil("M"),
    "year": _civil("Y"),
}
