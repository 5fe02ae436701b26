"""Expression evaluation: an expression's kind, and its column over one symbol's bars, by polars.

Causal: a row's value reads this bar and earlier ones of the same run, so a lag over a missing bar is missing. Missing
stays missing, and so does what has no value: a division by zero, the logarithm of nothing, a z-score of a constant.

A row's value is the same to the bit whatever range is evaluated, once `Expression.history` earlier bars are there.
Running sums do not have that property (what left the window stays in the rounding), so windows are folded by doubling,
always the same tree over the same bars, with the moments merged as in Chan, Golub and LeVeque (1983), "Algorithms for
computing the sample variance". That takes log2(bars) steps and loses no digits on prices.

Kinds: `level` scales with the price, `stationary` does not. A difference of levels is a `move`: it has the price's
unit, so it may stand inside an expression (`(close - low) / (high - low)`) and is refused as a whole one.

Legend: N bars.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import add, mul, sub, truediv
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureKind, Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, trading_day_opening, week_opening
from ml_workbench_service.market.features.expression_grammar import OPERATORS, Call, Column, Expression, Node

if TYPE_CHECKING:
    from polars import Series

Kind = Literal["stationary", "level", "move"]
KindOf = Callable[[str], FeatureKind]
ROUNDING = 1e-13
"""A deviation smaller than this share of the mean is a constant's rounding error, as in `learning.data.scaling`."""


def kind(expression: Expression, kind_of: KindOf, *, path: str = "expression") -> FeatureKind:
    """`level` or `stationary`, from the kinds of the columns.

    Raises:
        DataValidationError: units that do not fit, a result in the price's unit, or a column for which `kind_of`
            raises; says at which character, and what to write instead.
    """
    found = _kind(expression.root, kind_of, path)
    if found == "move":
        message = "a price difference has the price's unit; divide it by a price, or write log_return(close, bars)"
        raise _refused(path, expression.root, message)
    return found


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
    evaluation = _Evaluation(columns, opened_ms, runs)
    return {each.text: evaluation.column(each) for each in expressions}


def _kind(node: Node, kind_of: KindOf, path: str) -> Kind:
    if isinstance(node, Column):
        try:
            return kind_of(node.name)
        except DataValidationError as error:
            message = f"at character {node.position}: {node.name}: {error.message}"
            raise DataValidationError.at(path, message, code="unknown_feature") from error
    kinds = [_kind(operand, kind_of, path) for operand in node.operands]
    if node.function in OPERATORS:
        return _kind_of_pair(node, kinds[0], kinds[1], path)
    if node.function == "log_return" and kinds[0] != "level":
        raise _refused(path, node, "log_return takes a price level such as close; for others write diff(x, bars)")
    if node.function in ("diff", "std") and kinds[0] == "level":
        return "move"
    return kinds[0] if node.function in ("lag", "mean", "diff", "std") else "stationary"


def _kind_of_pair(node: Call, left: Kind, right: Kind, path: str) -> Kind:
    sign, priced = node.function, (left != "stationary", right != "stationary")
    if (sign == "/" and priced[0] == priced[1]) or (sign == "*" and not any(priced)):
        return "stationary"
    if sign in "+-" and left == right:
        return "move" if sign == "-" and left == "level" else left
    rule = {"/": "divide price by price, or stationary by stationary", "*": "multiply stationary columns only"}
    advice = rule.get(sign, "add and subtract columns of one kind")
    message = f"`{left} {sign} {right}` has no unit; {advice}; a price enters as a ratio such as close / sma_50"
    raise _refused(path, node, message)


def _refused(path: str, node: Node, message: str) -> DataValidationError:
    return DataValidationError.at(path, f"at character {node.position}: {message}", code="unit_mismatch")


class _Evaluation:
    """Columns of one table by node; a polars null is a missing value."""

    def __init__(self, columns: Mapping[str, Floats], opened_ms: Ints, runs: Ints) -> None:
        self._columns = columns
        self._opened_ms = opened_ms
        num = len(runs)
        starts = np.ones(num, dtype=bool)
        starts[1:] = runs[1:] != runs[:-1]
        self._age_N = np.arange(num) - np.maximum.accumulate(np.where(starts, np.arange(num), 0))
        self._known: dict[Node, Series] = {}

    def column(self, expression: Expression) -> Floats:
        """The expression's values, NaN where there is none."""
        return np.array(self._value(expression.root).fill_null(np.nan).to_numpy(), dtype=np.float64)

    def _value(self, node: Node) -> "Series":
        if node not in self._known:
            self._known[node] = self._base(node) if isinstance(node, Column) else self._called(node)
        return self._known[node]

    def _base(self, node: Column) -> "Series":
        from polars import Series

        values = self._columns.get(node.name)
        if values is None:
            raise DataValidationError.at(
                "features", f"the column {node.name} of an expression was not fetched; ask the feature store for it"
            )
        return _finite(Series(np.asarray(values, dtype=np.float64)))

    def _called(self, node: Call) -> "Series":
        operands = [self._value(operand) for operand in node.operands]
        if node.function in OPERATORS:
            return _combined(node.function, operands[0], operands[1])
        if not operands:
            return self._phase(node.function)
        if node.function in ("mean", "std", "zscore"):
            return self._windowed(node.function, operands[0], node.bars)
        past = self._lag(operands[0], node.bars)
        if node.function == "diff":
            return _finite(operands[0] - past)
        return past if node.function == "lag" else _log_ratio(operands[0], past)

    def _lag(self, values: "Series", bars: int) -> "Series":
        """The value that many bars ago in the same run."""
        from polars import Series

        return _where(Series(self._age_N >= bars), values.shift(bars))

    def _windowed(self, function: str, values: "Series", bars: int) -> "Series":
        mean, squares = self._moments(values, bars)
        if function == "mean":
            return mean
        deviation = (squares / (bars - 1)).sqrt()
        if function == "std":
            return deviation
        return _where(deviation > ROUNDING * mean.abs(), _combined("/", values - mean, deviation))

    def _moments(self, values: "Series", bars: int) -> tuple["Series", "Series"]:
        """Mean, and sum of squared deviations from it, of the last `bars` values.

        Windows of 1, 2, 4, … bars each merge two of the half; the wanted one is put together from those that the
        binary digits of `bars` name, the smallest nearest to the row.
        """
        piece, width = (values, values * 0.0), 1
        whole, reach = piece, 0
        while True:
            if bars & width:
                whole = self._merged(whole, reach, piece, width) if reach else piece
                reach += width
            if reach == bars:
                return _finite(whole[0]), _finite(whole[1])
            piece, width = self._merged(piece, width, piece, width), 2 * width

    def _merged(
        self, newer: tuple["Series", "Series"], num_newer: int, older: tuple["Series", "Series"], num_older: int
    ) -> tuple["Series", "Series"]:
        """Moments over the newer window and, right before it, the older one."""
        mean, squares = (self._lag(each, num_newer) for each in older)
        share = num_older / (num_newer + num_older)
        step = mean - newer[0]
        return newer[0] + step * share, newer[1] + squares + step * step * (num_newer * share)

    def _phase(self, function: str) -> "Series":
        """Sine or cosine of a calendar's phase; polars' are taken element by element, numpy's by position."""
        from polars import Series

        wave, _, unit = function.partition("_")
        angle = Series(2 * np.pi * _PHASES[unit](self._opened_ms))
        return angle.sin() if wave == "sin" else angle.cos()


def _where(condition: "Series", values: "Series") -> "Series":
    """The values where the condition holds, missing elsewhere."""
    from polars import Float64, Series

    return values.zip_with(condition, Series([None], dtype=Float64))


def _finite(values: "Series") -> "Series":
    return _where(values.is_finite(), values)


def _combined(sign: str, left: "Series", right: "Series") -> "Series":
    results: dict[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": truediv}
    return _finite(results[sign](left, right))


def _log_ratio(now: "Series", past: "Series") -> "Series":
    return _where((now > 0) & (past > 0), _finite((now / past).log()))


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
