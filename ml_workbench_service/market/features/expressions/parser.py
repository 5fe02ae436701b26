"""Expression grammar: `zscore(close, 50)`, `close / delay(close, 24) - 1`, `at("1d", rsi_14)`. Parsed, never run.

    expression = sum [ ("<" | "<=" | ">" | ">=") sum ]
    sum        = product { ("+" | "-") product }
    product    = factor  { ("*" | "/") factor }
    factor     = "(" expression ")" | "-" factor | number | column | symbol
               | function "(" [ arguments ] ")"
               | "at" "(" timeframe "," expression ")" | "of" "(" symbol "," expression ")"

A column is any feature that the store serves: an indicator, the bars' own `close`, a column of the user's files. A
symbol ("GBP/USD") and a timeframe ("1d") stand in quotes; a symbol alone is its close. `FUNCTIONS` lists the functions:
expressions, then, where the function takes it, a whole number of bars, then a share between 0 and 1.

`parse` answers any text with an expression or an error that names the character. Length, depth, reach into the past and
work are bounded. No function reads a later bar, and no number of bars is negative or zero, so that a look into the
future cannot be written.
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import normal_symbol, normal_timeframe
from ml_workbench_service.contracts.feature_names import LONGEST_TEXT
from ml_workbench_service.contracts.strict_numbers import TOO_SMALL, is_denormal
from ml_workbench_service.market.features.expressions.functions import (
    ALIASES,
    COMPARISONS,
    ELSEWHERE,
    FUNCTIONS,
    LONGEST_REACH,
    Function,
)
from ml_workbench_service.market.features.expressions.nodes import (
    LONGEST_NAME,
    Call,
    Column,
    Elsewhere,
    Expression,
    Node,
    Number,
    depth,
    longest_reach,
    pair,
)

DEEPEST = 10
MOST_WORK = 5_000
"""Operations a bar of one expression: a rank over a thousand bars and something beside it."""
LARGEST_NUMBER = 1e12

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z][A-Za-z0-9_.]*)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<quoted>\"[^\"]*\"|'[^']*')"
    r"|(?P<sign><=|>=|[-+*/(),<>]))"
)


def parse(text: str, *, path: str = "expression") -> Expression:
    """The expression that a text says.

    Raises:
        DataValidationError: not of the grammar or over a bound; says at which character, and the nearest known name.
    """
    return Expression(_Parser(text, path).parse())


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
        node = self._comparison()
        kind, text, _ = self._peek()
        if kind != "end":
            raise self._error(f"`{text}` follows a whole expression; write an operator + - * / between, or end there")
        if depth(node) > DEEPEST:
            raise self._error(f"functions and operators nest at most {DEEPEST} deep; write a simpler expression", at=1)
        if longest_reach(node) > LONGEST_REACH:
            raise self._error(f"it looks back {longest_reach(node)} bars; at most {LONGEST_REACH} are possible", at=1)
        work = Expression(node).work
        if work > MOST_WORK:
            raise self._error(f"it costs {work} operations a bar, and {MOST_WORK} are possible; shorten `rank`, "
                              "`quantile`, `idxmax` and `idxmin`", at=1)  # fmt: skip
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
                sign = text[start]
                message = f'`{sign}` has no meaning here; use names, numbers, + - * / < > ( ) , and "…" for a symbol'
                if sign in "\"'":
                    message = 'the quotation mark is not closed; write a symbol as "GBP/USD", a timeframe as "1d"'
                raise self._error(message, at=start + 1)
            kind = match.lastgroup or ""
            yield kind, match[kind], match.start(kind) + 1
            position = match.end()
        yield "end", "the end", end + 1

    def _comparison(self) -> Node:
        node = self._sum()
        if self._peek()[0] == "sign" and self._peek()[1] in COMPARISONS:
            _, sign, position = self._take()
            node = Call(sign, (node, self._sum()), position=position)
            if self._peek()[1] in COMPARISONS:
                raise self._error("comparisons do not follow one another; put one of them in brackets")
        return node

    def _sum(self) -> Node:
        return self._chain("+-", self._product)

    def _product(self) -> Node:
        return self._chain("*/", self._factor)

    def _chain(self, signs: str, operand: Callable[[], Node]) -> Node:
        node = operand()
        while self._peek()[1] in tuple(signs):
            _, sign, position = self._take()
            node = pair(sign, node, operand(), position)
        return node

    def _factor(self) -> Node:
        kind, text, position = self._take()
        if kind == "name":
            return self._named(text, position)
        if kind == "number":
            return Number(self._value(text, position), position)
        if kind == "quoted":
            return Elsewhere(Column("close", position), symbol=self._symbol(text, position), position=position)
        if text == "(":
            return self._inside(self._comparison)
        if text == "-":
            return self._negated(position)
        raise self._error(f"expected a column or a function, found {_quoted(kind, text)}", at=position)

    def _named(self, text: str, position: int) -> Node:
        if self._peek()[1] == "(":
            return self._elsewhere(text, position) if text in ELSEWHERE else self._call(text, position)
        if len(text) > LONGEST_NAME:
            raise self._error(f"a column's name has at most {LONGEST_NAME} characters", at=position)
        return Column(text, position)

    def _negated(self, position: int) -> Node:
        """What stands behind a minus sign."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"signs and brackets nest at most {DEEPEST} deep; write a simpler expression")
        node = self._factor()
        self._depth -= 1
        if isinstance(node, Number):
            return Number(-node.value, position)
        return pair("*", Number(-1.0, position), node, position)

    def _value(self, text: str, position: int) -> float:
        value = float(text)
        if not math.isfinite(value) or value > LARGEST_NUMBER:
            raise self._error(f"a number is at most {LARGEST_NUMBER:g}", at=position)
        if is_denormal(value) or (not value and re.search("[1-9]", re.split("[eE]", text)[0])):
            raise self._error(TOO_SMALL, at=position)
        return value

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
        function = FUNCTIONS.get(ALIASES.get(name, name))
        if function is None:
            near = difflib.get_close_matches(name.lower(), [*FUNCTIONS, *ALIASES, *ELSEWHERE], n=1, cutoff=0.5)
            known = ", ".join([*FUNCTIONS, *ELSEWHERE])
            hint = f"did you mean {_usage(near[0])}?" if near else f"there are {known}"
            raise self._error(f"there is no function `{name[:32]}`; {hint}", at=position)
        self._take()
        return self._inside(lambda: self._arguments(function, position))

    def _arguments(self, function: Function, position: int) -> Node:
        operands = []
        for number in range(function.num_expressions):
            if number:
                self._expect(",", function.usage)
            operands.append(self._comparison())
        bars, share = 0, 0.0
        if function.fewest_bars:
            self._expect(",", function.usage)
            bars = self._bars(function)
        if function.takes_share:
            self._expect(",", function.usage)
            share = self._share(function)
        if self._peek()[1] != ")":
            raise self._error(f"write it as {function.usage}")
        if function.name == "ratio":
            return pair("/", operands[0], operands[1], position)
        return Call(function.name, tuple(operands), bars, share, position)

    def _bars(self, function: Function) -> int:
        kind, text, position = self._take()
        if kind != "number" or not text.isdigit() or not function.fewest_bars <= int(text) <= LONGEST_REACH:
            message = f"{function.usage} takes a whole number of bars from {function.fewest_bars} to {LONGEST_REACH}"
            raise self._error(message, at=position)
        return int(text)

    def _share(self, function: Function) -> float:
        kind, text, position = self._take()
        if kind != "number" or not sys.float_info.min <= float(text) < 1.0:
            raise self._error(f"{function.usage} takes a share between 0 and 1, such as 0.8", at=position)
        return float(text)

    def _elsewhere(self, word: str, position: int) -> Node:
        """`at("1d", x)` and `of("GBP/USD", x)`."""
        usage, _ = ELSEWHERE[word]
        self._take()

        def content() -> Node:
            kind, text, at = self._take()
            if kind != "quoted":
                example = '"1d"' if word == "at" else '"GBP/USD"'
                raise self._error(f"write it as {usage} with the {usage[3:-4]} in quotes, such as {example}", at=at)
            symbol = self._symbol(text, at) if word == "of" else ""
            timeframe = self._timeframe(text, at) if word == "at" else ""
            self._expect(",", usage)
            return Elsewhere(self._comparison(), symbol, timeframe, position)

        return self._inside(content)

    def _symbol(self, quoted: str, position: int) -> str:
        try:
            return normal_symbol(quoted[1:-1])
        except ValueError as error:
            raise self._error(f"{error}", at=position) from error

    def _timeframe(self, quoted: str, position: int) -> str:
        try:
            return normal_timeframe(quoted[1:-1])
        except ValueError as error:
            raise self._error(f"{error}", at=position) from error

    def _expect(self, sign: str, usage: str = "") -> None:
        kind, text, position = self._take()
        if text != sign or kind != "sign":
            hint = f"; write it as {usage}" if usage else ""
            raise self._error(f"expected `{sign}`, found {_quoted(kind, text)}{hint}", at=position)

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


def _usage(name: str) -> str:
    return ELSEWHERE[name][0] if name in ELSEWHERE else FUNCTIONS[ALIASES.get(name, name)].usage


def _quoted(kind: str, text: str) -> str:
    return text if kind == "end" else f"`{text}`"
