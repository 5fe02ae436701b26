"""Expression grammar: total, canonical and bounded; every error names its character."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.feature_names import LONGEST_TEXT, is_column, split_features
from ml_workbench_service.contracts.feature_sets import FEATURE_NAME_PATTERN
from ml_workbench_service.market.features.expressions.functions import (
    ALIASES,
    ELSEWHERE,
    FUNCTIONS,
    LONGEST_REACH,
    OPERATORS,
)
from ml_workbench_service.market.features.expressions.nodes import Call, Column, Elsewhere, Expression, Node, Number
from ml_workbench_service.market.features.expressions.parser import DEEPEST, MOST_WORK, parse

COLUMNS = st.sampled_from(["close", "sma_50", "rsi_14", "signal", "open", "My.column_2"])
NUMBERS = st.integers(-50, 50).map(float) | st.floats(-1e9, 1e9, allow_nan=False) | st.sampled_from([1e-12, 0.8, -0.5])
EVERYWHERE = st.sampled_from([("GBP/USD", ""), ("USD/JPY", ""), ("", "1d"), ("", "4h")])


def refusal(text: str) -> DataValidationError | None:
    """The error that parsing the text raises, if it does."""
    try:
        parse(text)
    except DataValidationError as error:
        return error
    return None


@st.composite
def nodes(draw: st.DrawFn, depth: int = 4) -> Node:
    """Any tree of the grammar, as `parse` would build it or not."""
    kind = draw(st.integers(0, 9))
    if depth == 1 or kind < 3:
        return Column(draw(COLUMNS))
    if kind == 3:
        return Number(draw(NUMBERS))
    if kind == 4:
        return Elsewhere(draw(nodes(depth - 1)), *draw(EVERYWHERE))
    function = draw(st.sampled_from([*OPERATORS, *(name for name in FUNCTIONS if name != "ratio")]))
    known = FUNCTIONS.get(function)
    num = 2 if known is None else known.num_expressions
    fewest = 0 if known is None else known.fewest_bars
    operands = tuple(draw(nodes(depth - 1)) for _ in range(num))
    bars = draw(st.integers(fewest, 50)) if fewest else 0
    return Call(function, operands, bars, 0.25 if known is not None and known.takes_share else 0.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(nodes())
def test_writing_what_was_parsed_changes_nothing(root: Node) -> None:
    text = str(root)
    error = refusal(text)
    if error is not None:  # over a bound: of length, depth, reach or work
        assert "at most" in error.message or "are possible" in error.message
        return
    parsed = parse(text)
    assert parse(parsed.text) == parsed
    assert parse(parsed.text).text == parsed.text
    assert parse(parsed.text.replace(" ", "")) == parsed
    assert set(parsed.leaves) == set(Expression(root).leaves)
    assert parsed.history == Expression(root).history
    assert re.fullmatch(FEATURE_NAME_PATTERN, parsed.name)


WORDS = (
    "lag", "zscore", "rank", "quantile", "greater", "close", "a_1", "at", "of", "(", ")", "(", ")", ",", ", ", "+", "-",
    "*", "/", "<", ">=", " ", "3", "50", "0.8", "1e-12", "1e999", ".", '"1d"', '"GBP/USD"', "'x'", '"', "\n", "é",
)  # fmt: skip
"""Pieces of the grammar, and of what is none of it."""


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=24).map("".join))
def test_any_text_is_an_expression_or_a_sentence_with_a_position(text: str) -> None:
    error = refusal(text)
    assert error is None or (
        error.message.startswith("at character ") and 1 <= error.details["position"] <= len(text) + 1
    )


@pytest.mark.parametrize(
    ("text", "canonical", "name", "history"),
    [
        ("rsi_14", "rsi_14", "rsi_14", 0),
        (" lag( close ,3 ) ", "lag(close, 3)", "lag.close.3", 3),
        ("ratio(close, sma_50)", "close / sma_50", "close.over.sma_50", 0),
        ("b + a", "a + b", "a.plus.b", 0),
        ("b - a", "b - a", "b.minus.a", 0),
        ("(a - b) - c", "a - b - c", None, 0),
        ("zscore(return_1, 48)", "zscore(return_1, 48)", "zscore.return_1.48", 47),
        ("lag(diff(a, 2), 3)", "lag(diff(a, 2), 3)", None, 5),
        ("sin_hour()", "sin_hour()", "sin_hour", 0),
        ("close / delay(close, 24) - 1", "close / lag(close, 24) - 1", None, 24),
        ("1 + rsi_14", "rsi_14 + 1", None, 0),
        ("close*2.0", "2 * close", None, 0),
        ("-close", "-1 * close", None, 0),
        ("a - -3", "a - -3", None, 0),
        ("a-(b>c)", "a - (b > c)", None, 0),
        ("(a < b) < c", "(a < b) < c", None, 0),
        ("ret('gbp_usd', 1)", 'ret(of("GBP/USD", close), 1)', None, 1),
        ("at('D1', zscore(close, 20))", 'at("1d", zscore(close, 20))', None, 0),
        ("lag(at('1d', lag(close, 9)), 2)", 'lag(at("1d", lag(close, 9)), 2)', None, 2),
        ("quantile(close, 20, .80)", "quantile(close, 20, 0.8)", None, 19),
        ("ts_rank(my_signal, 250)", "rank(my_signal, 250)", "rank.my_signal.250", 249),
    ],
)
def test_canonical_text_name_and_history(text: str, canonical: str, name: str | None, history: int) -> None:
    parsed = parse(text)
    assert (parsed.text, parsed.history) == (canonical, history)
    assert name is None or parsed.name == name


def test_names_are_safe_and_tell_apart_what_only_brackets_tell_apart() -> None:
    long = "zscore(mean(lag(a_rather_long_column_name_of_somebody, 3), 12) / another_rather_long_column_name, 96)"
    texts = [
        "a - b - c",
        "a - (b - c)",
        "a - b / c",
        "(a - b) / c",
        long,
        long.replace("96", "97"),
        "x.y / z",
        "x / y.z",
    ]
    names = [parse(text).name for text in texts]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(FEATURE_NAME_PATTERN, name) for name in names), names


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 1, "found the end"),
        ("lag(close", 10, "lag(x, bars)"),
        ("lagg(close, 3)", 1, "did you mean lag(x, bars)?"),
        ("rsi_14 + lag(close, 0)", 21, "from 1 to 1000"),
        ("zscore(close, 2)", 15, "from 3 to 1000"),
        ("lag(close, 1001)", 12, "from 1 to 1000"),
        ("lag(close, x)", 12, "whole number"),
        ("close + 3 4", 11, "operator"),
        ("zscore(close, 50.5)", 15, "whole number"),
        ("zscore(close, -5)", 15, "whole number"),
        ("delay(close, 0)", 14, "from 1 to 1000"),
        ("delay(close, -1)", 14, "from 1 to 1000"),
        ("quantile(close, 20, 1.5)", 21, "between 0 and 1"),
        ("quantile(close, 20)", 19, "quantile(x, bars, share)"),
        ("a < b < c", 7, "brackets"),
        ("1e15 * close", 1, "at most 1e+12"),
        ("at(1d, close)", 4, 'such as "1d"'),
        ('at("3d", close)', 4, "one of 1m, 5m"),
        ('of("GBP", close)', 4, "EUR/USD"),
        ('"1d" + close', 1, "two currency codes"),
        ('close + "GBP/USD', 9, "not closed"),
        ("rank(close, 1000) + rank(open, 1000) + rank(low, 1000)", 1, "operations a bar"),
        ("at('1d', lag(lag(a, 600), 600))", 1, "1200 bars"),
        ("close close", 7, "operator"),
        ("close $", 7, "`$`"),
        ("sin_hour(close)", 10, "sin_hour()"),
        ("ratio(a)", 8, "ratio(x, y)"),
        ("__import__('os')", 1, "`_`"),
        ("a.__class__ (b)", 1, "no function"),
        ("lag(lag(a, 600), 600)", 1, "1200 bars"),
        ("(" * 11 + "a" + ")" * 11, 12, "brackets"),
        ("-" * 12 + "a", 12, "brackets"),
        ("+".join("abcdefghijk"), 1, "deep"),
        ("a" * 201, 1, "200 characters"),
        ("a" * 65, 1, "64"),
    ],
)
def test_errors_name_the_character_and_the_next_step(text: str, position: int, says: str) -> None:
    with pytest.raises(DataValidationError) as caught:
        parse(text, path="body.features.0")
    assert says in caught.value.message
    assert caught.value.details["position"] == position
    assert caught.value.details["errors"][0]["path"] == "body.features.0"


def test_bounds_are_those_that_the_constants_say() -> None:
    assert parse(f"lag(a, {LONGEST_REACH})").history == LONGEST_REACH
    assert parse("+".join("abcdefghijklmn"[:DEEPEST]))
    assert parse("rank(a, 1000) + rank(b, 1000)").work < MOST_WORK
    longest = " + ".join(["a" * 64, "b" * 64, "c" * 64])
    assert len(longest) == LONGEST_TEXT - 2
    assert parse(longest).text == longest


def test_every_alias_means_a_function() -> None:
    for alias, name in ALIASES.items():
        assert name in FUNCTIONS
        assert alias not in FUNCTIONS


def test_nothing_written_reads_a_later_bar() -> None:
    """No function has a negative reach, and no number of bars can be one: the only way into time is back."""
    for function in FUNCTIONS.values():
        assert function.reach(max(function.fewest_bars, 1)) >= 0
        if function.fewest_bars:
            operands = ", ".join(["close", "open"][: function.num_expressions])
            share = ", 0.5" * function.takes_share
            for bars in (0, -1, -5):
                assert refusal(f"{function.name}({operands}, {bars}{share})") is not None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rsi_14, sma_20", ["rsi_14", "sma_20"]),
        ("rsi_14,zscore(close, 50),at('1d', rsi_14)", ["rsi_14", "zscore(close, 50)", "at('1d', rsi_14)"]),
        ("ratio(a, mean(b, 3)),c", ["ratio(a, mean(b, 3))", "c"]),
        ("a,,b,", ["a", "", "b", ""]),
        ("zscore(close, 50", ["zscore(close, 50"]),
        (")a,b", [")a", "b"]),
    ],
)
def test_a_list_is_split_at_its_own_commas_alone(text: str, parts: list[str]) -> None:
    assert split_features(text) == parts
    assert [is_column(part) for part in parts] == [part.replace("_", "").isalnum() for part in parts]


def test_every_function_is_documented_as_it_is_written() -> None:
    page = (Path(__file__).parents[4] / "docs" / "expressions.md").read_text(encoding="utf-8")
    grammar = page.partition("## Grammar")[2].partition("## Other series")[0]
    for usage in [*(each.usage for each in FUNCTIONS.values()), *(usage for usage, _ in ELSEWHERE.values())]:
        assert f"`{usage}`" in grammar, usage
    for alias in ALIASES:
        assert f"`{alias}`" in grammar, alias
