"""Secrets never leave a process in words: one redactor for log lines, errors, events and readiness.

Two things are taken out of a text: whatever stands before the `@` of an address, and every value that was named as a
secret (`keep_secret`), wherever it turns up. A redacted text is safe to show, not to parse.
"""

import json
import re
from json.encoder import encode_basestring as _encoded
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MARK = "***"
SHORTEST = 6
"""Shorter values are left alone, but for their place in an address: every text would have holes."""

_USERINFO = re.compile(r"://[^/\s\"'<>]*@")  # begins with a literal: linear in any text
_secrets: list[str] = []


def keep_secret(*values: str) -> None:
    """From now on no redacted text of this process has these values in it, as they are or as JSON and addresses write
    them; longer ones go first."""
    kept = [value for value in values if len(value) >= SHORTEST]
    spelt = {
        each
        for value in kept
        for each in (value, json.dumps(value)[1:-1], _encoded(value)[1:-1], quote(value, safe=""))
    }
    _secrets[:] = sorted({*_secrets, *spelt}, key=len, reverse=True)


def keep_address_secret(address: str) -> None:
    """Keeps what stands before an address's `@` secret, as it is written there and as it is meant.

    The name alone is none: `default` and `mlflow` are words of many texts.
    """
    try:
        password = urlsplit(address).password
    except ValueError:  # no address: there is nothing to keep
        return
    if password:
        keep_secret(password, unquote(password))


def redacted(text: str) -> str:
    """The text without anything secret; most texts have nothing, and cost a fraction of a microsecond."""
    if "@" in text:
        text = _USERINFO.sub(f"://{MARK}@", text)
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, MARK)
    return text


def redacted_lines(lines: list[str]) -> list[str]:
    """`redacted` of each; all are looked at in one go, since nearly all have nothing."""
    whole = "\n".join(lines)
    if "@" not in whole and not any(secret in whole for secret in _secrets):
        return lines
    return [redacted(line) for line in lines]


def redacted_tree(value: Any) -> Any:
    """The same for every text within lists and mappings, keys included."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_tree(key): redacted_tree(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(each) for each in value]
    return value
