"""Headers: the names in a file's first line, made comparable, and what those of times say about their zone.

`Time (UTC)`, `utc_time` and a column called `UTC` are in UTC; `Time (EET)`, `est_time` and `Time (America/New_York)`
name another zone; `Local time` names none, and only BARS_TIMEZONE can say whose.
"""

import re
from dataclasses import dataclass

from ml_workbench_service.integrations.feature_store.bar_times import NAMED_ZONES

TIME_WORDS = (
    *("timestamp", "datetime", "date_time", "time", "date", "open_time", "opened_at", "time_open", "date_and_time"),
    *("unix", "unix_timestamp", "unix_time", "epoch", "ts", "t", "start", "start_time", "bar_start", "dtyyyymmdd"),
    *("time_stamp", "opentime", "starttime", "bar_time", "candle_time", "period_start", "dt", "day"),
)
END_WORDS = ("close_time", "time_close", "end", "end_time", "closed_at", "bar_end", "etime")
ZONE_WORDS = ("timezone", "time_zone", "tz", "zone", "utc_offset", "gmt_offset")
_LATER_MADE = ("adj_close", "adjclose", "adjusted_close")
_UNITS = {"ms", "s", "us", "ns", "sec", "seconds", "milliseconds", "unix", "epoch", "open", "start"}
_BROKER = {"broker", "server", "exchange", "mt4", "mt5"}


@dataclass(frozen=True)
class Heading:
    """One column's name.

    Attributes:
        name: lower case; letters, digits and underscores; unique in its file.
        written: as it stands there.
        time_rank: for a column of times: the smaller, the better its name; None for any other column.
        zone: the zone that the name says, as it is written there.
        is_local: whether the name says "local time".
    """

    name: str
    written: str
    time_rank: int | None = None
    zone: str | None = None
    is_local: bool = False

    @property
    def is_unnamed(self) -> bool:
        """An index without a name, as pandas writes it."""
        return self.name.startswith(("column_", "unnamed", "index_level", "level_0"))

    @property
    def is_foreign(self) -> bool:
        """A name in letters of which none is Latin."""
        return re.search(r"[^\W\d_]", self.written) is not None and re.search("[A-Za-z]", self.written) is None

    @property
    def is_index(self) -> bool:
        """An index that may have become a column under that name."""
        return self.is_unnamed or self.name == "index"

    @property
    def is_made_later(self) -> bool:
        """Prices that are adjusted afterwards."""
        return self.name in _LATER_MADE


def headings(names: list[str]) -> list[Heading]:
    """What each name says, in their order."""
    return [_heading(written, position) for position, written in enumerate(names)]


def _heading(written: str, position: int) -> Heading:
    text = re.sub(r"^\s*\d+[.)]\s+", "", written).strip().strip('"').strip()
    text = re.sub(r"^[<\[{](.*)[>\]}]$", r"\1", text)
    name = _normal(text)
    if not re.match(r"[a-z]", name):
        return Heading(f"column_{name or position}", written)
    word, zone, is_local = _time_word(text, name)
    if word is None:
        return Heading(name, written)
    return Heading(name, written, TIME_WORDS.index(word), zone, is_local)


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _time_word(text: str, name: str) -> tuple[str | None, str | None, bool]:
    """Which word of times a name has, the zone that it says, and whether it says "local"."""
    match = re.fullmatch(r"(?P<base>[^()\[\]]*?)\s*[(\[](?P<zone>[^()\[\]]+)[)\]]\s*", text)
    if match:
        word, _, is_local = _time_word(match["base"], _normal(match["base"]))
        note = match["zone"].strip()
        if word is None or note.lower() in _UNITS | _BROKER:
            return word, None, is_local
        return (word, None, True) if note.lower() in ("local", "local time") else (word, note, False)
    if name in TIME_WORDS:
        return name, None, False
    words = re.sub(r"(?<=[a-z])(utc|gmt)$|^(utc|gmt)(?=[a-z])", r"_\1\2_", name).strip("_").split("_")
    if words[-1] in _UNITS and "_".join(words[:-1]) in TIME_WORDS:
        return "_".join(words[:-1]), None, False
    for zone, rest in ((words[0], words[1:]), (words[-1], words[:-1])):
        base = "_".join(rest) or ("time" if zone in ("utc", "gmt", "local") else "")
        if base in TIME_WORDS and zone == "local":
            return base, None, True
        if base in TIME_WORDS and zone.upper() in NAMED_ZONES:
            return base, zone.upper(), False
    return None, None, False
