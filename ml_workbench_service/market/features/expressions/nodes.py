"""Expression trees: columns, numbers, calls, other series; their canonical text, what they read and what they cost.

The canonical text is a fixed point: parsing it and writing it changes nothing, and two expressions are one if their
canonical texts are.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union

from ml_workbench_service.market.features.expressions.functions import FUNCTIONS, OPERATORS

LONGEST_NAME = 64
Node = Union["Column", "Number", "Call", "Elsewhere"]


@dataclass(frozen=True)
class Column:
    """A feature of the store, by its name; `position` counts the text's characters from 1."""

    name: str
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """Canonical text."""
        return self.name


@dataclass(frozen=True)
class Number:
    """A number without a unit."""

    value: float
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """Canonical text: `2`, `0.8`, `1e-12`."""
        is_whole = self.value == int(self.value) and abs(self.value) < 1e15
        return str(int(self.value)) if is_whole else repr(self.value)


@dataclass(frozen=True)
class Call:
    """A function or an operator (`function` is its sign) with its operands; `bars` is 0 where it takes none."""

    function: str
    operands: tuple[Node, ...] = ()
    bars: int = 0
    share: float = 0.0
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """Canonical text."""
        if self.function not in OPERATORS:
            return f"{self.function}({', '.join([*map(str, self.operands), *self.numbers])})"
        left, right = self.operands
        strength = OPERATORS[self.function][1]
        is_chained = strength > 0  # comparisons are not
        before = f"({left})" if _strength(left) < strength + (not is_chained) else str(left)
        after = f"({right})" if _strength(right) <= strength else str(right)
        return f"{before} {self.function} {after}"

    @property
    def numbers(self) -> list[str]:
        """What is written after the operands."""
        has_share = self.function in FUNCTIONS and FUNCTIONS[self.function].takes_share
        return [str(self.bars)] * (self.bars > 0) + [Number(self.share).text] * has_share


@dataclass(frozen=True)
class Elsewhere:
    """`inner` on another series: of another symbol, or of a coarser timeframe of the same; one of the two is named."""

    inner: Node
    symbol: str = ""
    timeframe: str = ""
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """Canonical text: the name of the column that it is on the asking series."""
        word, where = ("of", self.symbol) if self.symbol else ("at", self.timeframe)
        return f'{word}("{where}", {self.inner})'


def _strength(node: Node) -> int:
    return OPERATORS[node.function][1] if isinstance(node, Call) and node.function in OPERATORS else 3


@dataclass(frozen=True)
class Leaf:
    """A column of a series; symbol or timeframe are empty where they are the asking series' own."""

    name: str
    symbol: str = ""
    timeframe: str = ""


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    root: Node

    def __str__(self) -> str:
        return str(self.root)

    @property
    def text(self) -> str:
        """The canonical text."""
        return str(self.root)

    @cached_property
    def base_columns(self) -> tuple[str, ...]:
        """The columns it reads, each once, in the order of the text; one of another series is named by its text."""
        return tuple(dict.fromkeys(column.text for column in _columns(self.root)))

    @cached_property
    def elsewhere(self) -> Mapping[str, Elsewhere]:
        """What it reads of other series, by the name of the column that it is here."""
        return {each.text: each for each in _columns(self.root) if isinstance(each, Elsewhere)}

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every column of any series that it is made of, each once."""
        return tuple(dict.fromkeys(_leaves(self.root, "", "")))

    @property
    def history(self) -> int:
        """Bars before a row that its value depends on, besides those that the columns themselves need."""
        return reach(self.root)

    @property
    def work(self) -> int:
        """Operations a bar."""
        return _work(self.root)

    @property
    def name(self) -> str:
        """A short safe name: the column's own, `lag.close.3`, `close.over.sma_50`; nested ones end in a digest."""
        if isinstance(self.root, Column):
            return self.root.name
        words = re.sub(r"[^A-Za-z0-9_.]+", ".", _spoken(self.root)).strip(".")
        is_named = words[:1].isalpha()
        if is_named and len(words) <= LONGEST_NAME and _is_plain(self.root):
            return words
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:10]
        words = words if is_named else f"x.{words}"
        return f"{words[: LONGEST_NAME - len(digest) - 1].rstrip('.')}.{digest}"


def reach(node: Node) -> int:
    """Bars of the asking series before a row that a value depends on."""
    if not isinstance(node, Call):
        return 0
    return own_reach(node) + max(map(reach, node.operands), default=0)


def own_reach(node: Call) -> int:
    """Bars that a function itself looks back."""
    return 0 if node.function in OPERATORS else FUNCTIONS[node.function].reach(node.bars)


def depth(node: Node) -> int:
    """Functions and operators on top of each other, the column included."""
    if isinstance(node, Elsewhere):
        return 1 + depth(node.inner)
    return 1 + max(map(depth, node.operands), default=0) if isinstance(node, Call) else 1


def longest_reach(node: Node) -> int:
    """The most bars that it looks back on any series."""
    if isinstance(node, Elsewhere):
        return longest_reach(node.inner)
    operands = node.operands if isinstance(node, Call) else ()
    return max(reach(node), *map(longest_reach, operands), 0)


def pair(sign: str, left: Node, right: Node, position: int) -> Call:
    """Sums and products with their operands in the texts' order: `b + a` and `a + b` are one expression.

    A number stands last in a sum and first in a product.
    """
    if sign in "+*":
        first = isinstance(left, Number), isinstance(right, Number)
        is_turned = str(right) < str(left)
        if any(first) and not all(first):
            is_turned = first[0] if sign == "+" else first[1]
        left, right = (right, left) if is_turned else (left, right)
    return Call(sign, (left, right), position=position)


def _columns(node: Node) -> Iterator[Column | Elsewhere]:
    if isinstance(node, Column | Elsewhere):
        yield node
    elif isinstance(node, Call):
        for operand in node.operands:
            yield from _columns(operand)


def _leaves(node: Node, symbol: str, timeframe: str) -> Iterator[Leaf]:
    for column in _columns(node):
        if isinstance(column, Column):
            yield Leaf(column.name, symbol, timeframe)
        else:
            yield from _leaves(column.inner, column.symbol or symbol, column.timeframe or timeframe)


def _work(node: Node) -> int:
    if isinstance(node, Elsewhere):
        return 2 + _work(node.inner)
    if not isinstance(node, Call):
        return 0
    own = 1 if node.function in OPERATORS else FUNCTIONS[node.function].work(node.bars)
    return own + sum(map(_work, node.operands))


def _spoken(node: Node) -> str:
    """The text with operators as words."""
    if isinstance(node, Call) and node.function in OPERATORS:
        left, right = node.operands
        return f"{_spoken(left)}.{OPERATORS[node.function][0]}.{_spoken(right)}"
    if isinstance(node, Call):
        return ".".join([node.function, *map(_spoken, node.operands), *node.numbers])
    if isinstance(node, Elsewhere):
        return f"{node.timeframe and 'at'}{node.symbol and 'of'}.{node.symbol}{node.timeframe}.{_spoken(node.inner)}"
    return node.text


def _is_plain(node: Node) -> bool:
    """Whether the spoken form can mean nothing else: one function or operator over columns without dots."""
    return (
        isinstance(node, Call)
        and not node.share
        and all(isinstance(operand, Column) and "." not in operand.name for operand in node.operands)
    )
