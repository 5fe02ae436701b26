"""Expression grammar: `log_return(close, 4)`, `close / sma_50`, `zscore(rsi_14, 48)`, as text. Parsed, never run.

    expression = product { ("+" | "-") product }
    product    = factor  { ("*" | "/") factor }
    factor     = "(" expression ")" | function "(" [ arguments ] ")" | column

A column is any feature that the store serves: an indicator, the bars' own `close`, a column of the user's files.
`FUNCTIONS` lists the functions. Arguments are expressions, then, where the function takes it, a whole number of bars;
there are no other numbers. `parse` answers any text with an expression or an error that names the character; depth,
length and reach into the past are bounded. The canonical text is a fixed point: parsing it and writing it changes
nothing, and two expressions are one if their canonical texts are.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union

from common_lib.exceptions import DataValidationError

LONGEST_TEXT = 200
DEEPEST = 8
LONGEST_REACH = 1000
"""Bars an expression may look back, all its functions together; as far as the longest indicator period."""
LONGEST_NAME = 64

Node = Union["Column", "Call"]


@dataclass(frozen=True)
class Function:
    """One function of the grammar: how many expressions it takes, and its fewest bars (0: it takes no number)."""

    name: str
    num_expressions: int
    fewest_bars: int
    description: str

    @property
    def usage(self) -> str:
        """How it is written, such as `lag(x, bars)`."""
        names = ["x", "y"][: self.num_expressions] + ["bars"] * (self.fewest_bars > 0)
        return f"{self.name}({', '.join(names)})"


_CALENDAR = {
    "hour": "the FX day's phase from 17:00 New York",
    "weekday": "the week's phase from Sunday 17:00 New York",
    "month": "the calendar month's phase, UTC",
    "year": "the calendar year's phase, UTC",
}
FUNCTIONS = {
    each.name: each
    for each in (
        Function("lag", 1, 1, "The value that many bars ago."),
        Function("diff", 1, 1, "The value less the value that many bars ago."),
        Function("log_return", 1, 1, "Logarithm of a level over the level that many bars ago."),
        Function("ratio", 2, 0, "Another spelling of `x / y`."),
        Function("mean", 1, 2, "Mean of the last bars, this one included."),
        Function("std", 1, 2, "Sample standard deviation of the last bars."),
        Function("zscore", 1, 3, "The value less the last bars' mean, in their standard deviations."),
        *(Function(f"sin_{word}", 0, 0, f"Sine of {meaning}.") for word, meaning in _CALENDAR.items()),
        *(Function(f"cos_{word}", 0, 0, f"Cosine of {meaning}.") for word, meaning in _CALENDAR.items()),
    )
}
OPERATORS = {"+": ("plus", 1), "-": ("minus", 1), "*": ("times", 2), "/": ("over", 2)}
"""Word for a short name, and binding strength."""


@dataclass(frozen=True)
class Column:
    """A feature of the store, by its name; `position` counts the text's characters from 1."""

    name: str
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """A function or an operator (`function` is its sign) with its operands; `bars` is 0 where it takes none."""

    function: str
    operands: tuple[Node, ...] = ()
    bars: int = 0
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """Canonical text."""
        if self.function not in OPERATORS:
            numbers = [str(self.bars)] if self.bars else []
            return f"{self.function}({', '.join([*map(str, self.operands), *numbers])})"
        left, right = self.operands
        strength = OPERATORS[self.function][1]
        before = f"({left})" if _strength(left) < strength else str(left)
        after = f"({right})" if _strength(right) <= strength else str(right)
        return f"{before} {self.function} {after}"


def _strength(node: Node) -> int:
    return OPERATORS[node.function][1] if isinstance(node, Call) and node.function in OPERATORS else 3


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

    @property
    def base_columns(self) -> tuple[str, ...]:
        """The columns it reads, each once, in the order of the text."""
        return tuple(dict.fromkeys(column.name for column in _columns(self.root)))

    @property
    def history(self) -> int:
        """Bars before a row that its value depends on, besides those that the columns themselves need."""
        return _reach(self.root)

    @property
    def name(self) -> str:
        """A short safe name: the column's own, `lag.close.3`, `close.over.sma_50`; nested ones end in a digest."""
        if isinstance(self.root, Column):
            return self.root.name
        words = re.sub(r"[^A-Za-z0-9_.]+", ".", _spoken(self.root)).strip(".")
        if len(words) <= LONGEST_NAME and _is_plain(self.root):
            return words
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:10]
        return f"{words[: LONGEST_NAME - len(digest) - 1].rstrip('.')}.{digest}"


def parse(text: str, *, path: str = "expression") -> Expression:
    """The expression that a text says.

    Raises:
        DataValidationError: not of the grammar or over a bound; says at which character, and the nearest known name.
    """
    return Expression(_Parser(text, path).parse())


def _columns(node: Node) -> Iterator[Column]:
    if isinstance(node, Column):
        yield node
        return
    for operand in node.operands:
        yield from _columns(operand)


def _reach(node: Node) -> int:
    if isinstance(node, Column):
        return 0
    own = node.bars - (node.function in ("mean", "std", "zscore"))
    return own + max(map(_reach, node.operands), default=0)


def _depth(node: Node) -> int:
    return 1 if isinstance(node, Column) else 1 + max(map(_depth, node.operands), default=0)


def _spoken(node: Node) -> str:
    """The text with operators as words."""
    if isinstance(node, Call) and node.function in OPERATORS:
        left, right = node.operands
        return f"{_spoken(left)}.{OPERATORS[node.function][0]}.{_spoken(right)}"
    if isinstance(node, Call):
        return ".".join([node.function, *map(_spoken, node.operands), *([str(node.bars)] if node.bars else [])])
    return node.name


def _is_plain(node: Call) -> bool:
    """Whether the spoken form can mean nothing else: one function or operator over columns without dots."""
    return all(isinstance(operand, Column) and "." not in operand.name for operand in node.operands)


_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z][A-Za-z0-9_.]*)|(?P<number>[0-9]+)|(?P<sign>[-+*/(),]))")


class _Parser:
    """Recursive descent over tokens (kind, text, position)."""

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        if len(text) > LONGEST_TEXT:
            raise self._error(f"an expression has at most {LONGEST_TEXT} characters; split it in two")
        self._tokens = list(self._read(text))
        self._next = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._sum()
        kind, text, _ = self._peek()
        if kind != "end":
            raise self._error(f"`{text}` follows a whole expression; write an operator + - * / between, or end there")
        if _depth(node) > DEEPEST:
            raise self._error(f"functions and operators nest at most {DEEPEST} deep; write a simpler expression", at=1)
        if _reach(node) > LONGEST_REACH:
            raise self._error(f"it looks back {_reach(node)} bars; at most {LONGEST_REACH} are possible", at=1)
        if len(str(node)) > LONGEST_TEXT:
            raise self._error(f"written out it has more than {LONGEST_TEXT} characters; split it in two", at=1)
        return node

    def _read(self, text: str) -> Iterator[tuple[str, str, int]]:
        position = 0
        end = len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                start = len(text) - len(text[position:].lstrip())
                message = f"`{text[start]}` has no meaning here; use names, + - * / ( ) , and whole numbers of bars"
                raise self._error(message, at=start + 1)
            kind = match.lastgroup or ""
            yield kind, match[kind], match.start(kind) + 1
            position = match.end()
        yield "end", "the end", end + 1

    def _sum(self) -> Node:
        return self._chain("+-", self._product)

    def _product(self) -> Node:
        return self._chain("*/", self._factor)

    def _chain(self, signs: str, operand: Callable[[], Node]) -> Node:
        node = operand()
        while self._peek()[1] in tuple(signs):
            _, sign, position = self._take()
            node = _pair(sign, node, operand(), position)
        return node

    def _factor(self) -> Node:
        kind, text, position = self._take()
        if kind == "name":
            if self._peek()[1] == "(":
                return self._call(text, position)
            if len(text) > LONGEST_NAME:
                raise self._error(f"a column's name has at most {LONGEST_NAME} characters", at=position)
            return Column(text, position)
        if text == "(":
            return self._inside(self._sum)
        if kind == "number":
            raise self._error("a number stands only as a function's last argument, such as lag(close, 3)", at=position)
        raise self._error(f"expected a column or a function, found {_quoted(kind, text)}", at=position)

    def _inside(self, content: Callable[[], Node]) -> Node:
        """What stands before the closing bracket; the opening one is taken."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"brackets nest at most {DEEPEST} deep; write a simpler expression")
        node = content()
        self._expect(")")
        self._depth -= 1
        return node

    def _call(self, name: str, position: int) -> Node:
        function = FUNCTIONS.get(name)
        if function is None:
            near = difflib.get_close_matches(name.lower(), FUNCTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {FUNCTIONS[near[0]].usage}?" if near else f"there are {', '.join(FUNCTIONS)}"
            raise self._error(f"there is no function `{name[:32]}`; {hint}", at=position)
        self._take()
        return self._inside(lambda: self._arguments(function, position))

    def _arguments(self, function: Function, position: int) -> Node:
        operands = []
        for number in range(function.num_expressions):
            if number:
                self._expect(",", function)
            operands.append(self._sum())
        bars = 0
        if function.fewest_bars:
            self._expect(",", function)
            bars = self._bars(function)
        if self._peek()[1] != ")":
            raise self._error(f"write it as {function.usage}")
        if function.name == "ratio":
            return _pair("/", operands[0], operands[1], position)
        return Call(function.name, tuple(operands), bars, position)

    def _bars(self, function: Function) -> int:
        kind, text, position = self._take()
        if kind != "number" or not function.fewest_bars <= int(text) <= LONGEST_REACH:
            message = f"{function.usage} takes a whole number of bars from {function.fewest_bars} to {LONGEST_REACH}"
            raise self._error(message, at=position)
        return int(text)

    def _expect(self, sign: str, function: Function | None = None) -> None:
        kind, text, position = self._take()
        if text != sign or kind != "sign":
            usage = f"; write it as {function.usage}" if function else ""
            raise self._error(f"expected `{sign}`, found {_quoted(kind, text)}{usage}", at=position)

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._next]

    def _take(self) -> tuple[str, str, int]:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _error(self, message: str, *, at: int | None = None) -> DataValidationError:
        where = at if at is not None else (self._peek()[2] if hasattr(self, "_tokens") else 1)
        return DataValidationError.at(
            self._path, f"at character {where}: {message}", code="bad_expression", position=where
        )


def _pair(sign: str, left: Node, right: Node, position: int) -> Call:
    """Sums and products with their operands in the texts' order: `b + a` and `a + b` are one expression."""
    if sign in "+*" and str(right) < str(left):
        left, right = right, left
    return Call(sign, (left, right), position=position)


def _quoted(kind: str, text: str) -> str:
    return text if kind == "end" else f"`{text}`"
