"""Units of expressions: whether a value scales with a price, and may so be read by a model.

A unit is a product of powers of price scales, one scale a symbol: `close` has the asking symbol's, `rsi_14` none, and
`close / of("GBP/USD", close)` one over another. What has no unit is `stationary`. What has one is a `level` if it is
positive wherever prices are (a model reads its log ratio to the window's mean), else a *move*: a difference of prices
has the price's unit, so it may stand inside an expression (`(close - low) / (high - low)`) and is refused as a whole
one, because a model would read last decade's pips as this one's.

Zero and numbers up to `GUARD` fit every unit: `greater(close - open, 0)`, `x / (high - low + 1e-12)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureKind
from ml_workbench_service.market.features.expressions.functions import COMPARISONS, OPERATORS
from ml_workbench_service.market.features.expressions.nodes import Call, Column, Elsewhere, Expression, Node, Number

KindOf = Callable[[str], FeatureKind]
GUARD = 1e-9
"""A number no larger than this is added against a division by zero, and means nothing beside any price or volume."""


@dataclass(frozen=True)
class Unit:
    """Powers of price scales by symbol, "" the asking one's; and whether what has them is a level."""

    scales: frozenset[tuple[str, int]] = frozenset()
    is_level: bool = False

    def __str__(self) -> str:
        return "level" if self.is_level else "move" if self.scales else "stationary"

    def times(self, other: "Unit", power: int, *, is_level: bool) -> "Unit":
        """Of a product with the other's power."""
        powers = dict(self.scales)
        for symbol, own in other.scales:
            powers[symbol] = powers.get(symbol, 0) + power * own
        scales = frozenset((symbol, own) for symbol, own in powers.items() if own)
        return Unit(scales, is_level and bool(scales))


NONE = Unit()
_KEEPING = ("lag", "mean", "sum", "wma", "max", "min", "quantile", "abs")
"""Functions whose value is of what they read."""
_DIFFERING = ("diff", "std", "slope", "resi")
"""Functions whose value is a difference of it."""


def kind(expression: Expression, kind_of: KindOf, *, path: str = "expression") -> FeatureKind:
    """`level` or `stationary`, from the kinds of the columns.

    Raises:
        DataValidationError: units that do not fit, a result in the price's unit, no column, or a column for which
            `kind_of` raises; says at which character, and what to write instead.
    """
    found = _unit(expression.root, kind_of, path)
    if found.scales and not found.is_level:
        message = "a price difference has the price's unit; divide it by a price, or write log_return(close, bars)"
        raise _refused(path, expression.root, message)
    if not _varies(expression.root):
        raise _refused(path, expression.root, "it reads no column, and so is the same at every bar; name one")
    return "level" if found.is_level else "stationary"


def _varies(node: Node) -> bool:
    if isinstance(node, Call):
        return not node.operands or any(map(_varies, node.operands))
    return not isinstance(node, Number)


def _unit(node: Node, kind_of: KindOf, path: str) -> Unit:
    if isinstance(node, Number):
        return NONE
    if isinstance(node, Elsewhere):
        inner = _unit(node.inner, kind_of, path)
        return replace(inner, scales=frozenset((symbol or node.symbol, power) for symbol, power in inner.scales))
    if isinstance(node, Column):
        return _unit_of_column(node, kind_of, path)
    units = [_unit(operand, kind_of, path) for operand in node.operands]
    if node.function in OPERATORS or len(units) == 2:
        return _unit_of_pair(node, units[0], units[1], path)
    return _unit_of_call(node, units[0], path) if units else NONE


def _unit_of_column(node: Column, kind_of: KindOf, path: str) -> Unit:
    try:
        found = kind_of(node.name)
    except DataValidationError as error:
        message = f"at character {node.position}: {node.name}: {error.message}"
        raise DataValidationError.at(path, message, code="unknown_feature") from error
    return Unit(frozenset({("", 1)}), is_level=True) if found == "level" else NONE


def _unit_of_call(node: Call, operand: Unit, path: str) -> Unit:
    """Of a function of one expression."""
    if node.function == "log_return" and not operand.is_level:
        raise _refused(path, node, "log_return takes a price level such as close; for others write diff(x, bars)")
    if node.function == "log" and operand.scales:
        message = "log takes a number without unit; write log(close / delay(close, 1)), or log_return(close, bars)"
        raise _refused(path, node, message)
    if node.function in _KEEPING:
        return operand
    return replace(operand, is_level=False) if node.function in _DIFFERING else NONE


def _unit_of_pair(node: Call, left: Unit, right: Unit, path: str) -> Unit:
    """Of an operator, or of a function of two expressions."""
    if node.function == "corr":
        return NONE
    if node.function in "*/":
        levels = [
            unit.is_level or _is_positive(operand) for unit, operand in zip((left, right), node.operands, strict=True)
        ]
        return left.times(right, 1 if node.function == "*" else -1, is_level=all(levels))
    guards = [isinstance(each, Number) and abs(each.value) <= GUARD for each in node.operands]
    if any(guards):
        kept = right if guards[0] else left
        is_level = kept.is_level and node.function == "+" and not guards[0]
        return NONE if node.function in COMPARISONS else replace(kept, is_level=is_level)
    if left.scales != right.scales:
        verb = {"+": "add", "-": "subtract"}.get(node.function, "compare")
        message = (
            f"`{left} {node.function} {right}` has no unit; {verb} columns of one kind; a price enters as a ratio "
            "such as close / sma_50"
        )
        raise _refused(path, node, message)
    if node.function in COMPARISONS:
        return NONE
    return replace(left, is_level=node.function != "-" and left.is_level and right.is_level)


def _is_positive(node: Node) -> bool:
    return isinstance(node, Number) and node.value > 0


def _refused(path: str, node: Node, message: str) -> DataValidationError:
    return DataValidationError.at(path, f"at character {node.position}: {message}", code="unit_mismatch")
