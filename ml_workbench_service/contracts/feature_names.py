"""Feature names on the wire: a column's name, a set's (`@my_set`), or an expression; lists of them between commas.

What an expression may say stands in docs/expressions.md; here it is text, which whoever reads it parses.
"""

import re
from typing import Annotated

from pydantic import Field

LONGEST_TEXT = 200
"""Characters of an expression, as it is written and as it is kept."""
FeatureText = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_TEXT,
        pattern=r"^[ -~]*[!-~][ -~]*$",
        description="A column's name, an expression such as `zscore(close, 50)`, or `@` and the id of a set.",
    ),
]
_COLUMN, _DASHED = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}"), re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def is_column(feature: str) -> bool:
    """Whether it is a column's name, and neither an expression nor a set."""
    return _COLUMN.fullmatch(feature) is not None


def may_be_column(feature: str) -> bool:
    """Whether it is a column's name or a difference of two: `my-signal` is whichever the store has."""
    return _DASHED.fullmatch(feature) is not None


def split_features(text: str) -> list[str]:
    """What stands between commas, those inside brackets and quotes left alone: `rsi_14,zscore(close, 50)` is two.

    Whoever reads an unclosed bracket says so.
    """
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign == "(") - (sign == ")")
        if sign == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]
