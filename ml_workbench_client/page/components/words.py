"""Numbers, times and verdicts as a reader wants them; what is missing is a dash."""

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

NOTHING = "\u2013"
DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{32,64}")
TONES = {
    "skill": "good", "profitable": "good", "live": "good", "running": "good", "succeeded": "good", "passed": "good",
    "deployed": "good", "ok": "good", "complete": "good", "stable": "good", "yes": "good", "known": "good",
    "leak": "bad", "implausible": "bad", "failed": "bad", "unprofitable": "bad", "major": "bad", "down": "bad",
    "unverified": "warn", "insufficient_data": "warn", "degraded": "warn", "unprovable": "warn", "cancelling": "warn",
    "damaged": "bad", "tampered": "bad", "unsigned": "bad", "moderate": "warn",
    "unproven": "warn", "abstain": "warn", "starting": "warn", "pending": "warn",
}  # fmt: skip
"""What a status word means for whoever looks; all others are neutral."""


def tone(word: str) -> str:
    """`good`, `warn`, `bad` or `calm`."""
    return TONES.get(word, "calm")


def readable(word: str | None) -> str:
    """An identifier as words: `no_skill` is `no skill`."""
    return NOTHING if not word else word.replace("_", " ")


def number(value: Any, digits: int = 3) -> str:
    """Significant digits; whole numbers with thousands apart."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.{digits}g}" if abs(value) < 1e5 else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A fraction in percent."""
    return NOTHING if value is None else f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def moment(value: datetime | None) -> str:
    """To the second, in UTC."""
    return NOTHING if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def day(value: datetime | None) -> str:
    """The date in UTC."""
    return NOTHING if value is None else value.astimezone(UTC).strftime("%Y-%m-%d")


def duration(seconds: float | None) -> str:
    """Roughly, in its largest unit."""
    if seconds is None:
        return NOTHING
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * 1.5:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def ago(value: datetime | None) -> str:
    """How long it is since then."""
    if value is None:
        return NOTHING
    seconds = (datetime.now(tz=UTC) - value).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def plain(value: Any) -> str:
    """Any JSON value on one line."""
    if isinstance(value, float | int) or value is None:
        return number(value, 5)
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, dict):
        return ", ".join(f"{readable(str(name))} {plain(each)}" for name, each in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or NOTHING
    return str(value)


def is_digest(value: str) -> bool:
    """Whether it is one of those long numbers that nobody reads to the end."""
    return DIGEST.fullmatch(value) is not None


def shortened(value: Any) -> Any:
    """A digest by its beginning, anything else as it is."""
    return f"{value[:19]}…" if isinstance(value, str) and is_digest(value) else value


def cut(sentence: str, most: int) -> str:
    """At most so many letters, whole words, and a sign that there was more."""
    return sentence if len(sentence) <= most else f"{sentence[:most].rsplit(' ', 1)[0]} …"


def path(*parts: str, **query: str) -> str:
    """An address of this page, its parts encoded."""
    asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
    return "/" + "/".join(quote(part, safe="") for part in parts) + (f"?{asked}" if asked else "")
