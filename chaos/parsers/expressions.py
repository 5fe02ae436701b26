"""Expressions: any text is a tree or a sentence that points at a character, and a tree that is written is that tree."""

from hypothesis import strategies as st

from chaos.parsers.promise import mutations, promise
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.feature_names import LONGEST_TEXT
from ml_workbench_service.market.features.expressions.alpha158 import alpha158
from ml_workbench_service.market.features.expressions.functions import ALIASES, ELSEWHERE, FUNCTIONS, OPERATORS
from ml_workbench_service.market.features.expressions.parser import parse

VALID = (
    "close / delay(close, 24) - 1", "zscore(return_1, 48)", 'of("GBP/USD", close) - close', 'at("1d", rsi_14)',
    "quantile(close, 20, .80)", "(a < b) < c", "-(-(close - 1e-12))", "lag(at('1d', lag(close, 9)), 2)",
    "1 + rsi_14 * 3",
)  # fmt: skip
WORDS = (
    *FUNCTIONS, *ALIASES, *ELSEWHERE, *OPERATORS, "close", "rsi_14", "a_1", "(", ")", ",", " ", "0", "3", "50",
    "1001", "0.8", "1e-12", "1e999", "1e-320", "1e-400", "00000000000000000003", ".", "-", '"1d"', '"GBP/USD"',
    "'eur_usd'", '"', "'", "\n", "é", "\u0663", "\ud800", "\0", "1_0",
)  # fmt: skip
"""Pieces of the grammar, and of what is none of it."""


def _texts() -> st.SearchStrategy[str]:
    valid = [each.encode() for each in (*VALID, *alpha158().values())]
    return st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(WORDS), max_size=60).map("".join),
        st.tuples(st.sampled_from(["(", "-", "lag(", "1+", "((", "at('1d',"]), st.integers(0, 2 * LONGEST_TEXT)).map(
            lambda case: case[0] * case[1]
        ),
        mutations(valid).map(lambda content: content.decode("utf-8", "replace")),
        st.sampled_from([each.decode() for each in valid]),
    )


@promise("expressions", _texts())
def any_text(text: str) -> None:
    """Parsed and written as often as one likes it is one expression; refused, the character is one of the text."""
    try:
        parsed = parse(text)
    except DataValidationError as error:
        assert error.message.startswith("at character ")
        assert 1 <= error.details["position"] <= len(text) + 1
        return
    again = parse(parsed.text)
    assert again == parsed
    assert again.text == parsed.text
    assert again.leaves == parsed.leaves
    assert (again.history, again.work, again.name) == (parsed.history, parsed.work, parsed.name)
