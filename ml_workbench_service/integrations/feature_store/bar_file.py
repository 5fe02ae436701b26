"""A file of bars and how it begins: encoding, separator, what stands above its header, the header itself.

Above a header may stand empty lines, comments (`#`, `//`), an address (CryptoDataDownload) and `sep=,` (spreadsheets);
yfinance writes a header of three lines. A first line of which no cell is a number or a time is a header, in whatever
language. `.csv.gz` is read as what is packed in it.
"""

import csv
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

from ml_workbench_service.integrations.feature_store.bar_times import is_time

_HEAD_BYTES = 4096
_PACKED = ".gz"
_SEPARATORS = "\t;|,"
_ABOVE = re.compile(r"\s*(?:$|#|//|(?:https?://|www\.)\S*[\s,;\"]*$)", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*[,;]*\s*$", re.IGNORECASE)
_NUMBER = re.compile(
    r"[+-]?[\d.,' \u00a0\u202f\u2019]*\d[\d.,]*(?:[eE][+-]?\d+)?[%KMB]?|[+-]?(?:nan|inf)", re.IGNORECASE
)


@dataclass(frozen=True)
class BarFile:
    """A file and how it begins.

    Attributes:
        head: its first bytes, unpacked.
        cells: of the header, or of the first row where there is none.
        num_above: lines before the first row, the header among them.
    """

    path: Path
    head: bytes
    encoding: str
    separator: str
    has_header: bool
    cells: tuple[str, ...]
    num_above: int = 0

    @classmethod
    def of(cls, path: Path) -> "BarFile":
        """Reads the beginning."""
        head = _first_bytes(path)
        encoding = _encoding(head)
        text = head[: len(head) // 2 * 2].decode(encoding, errors="replace").lstrip("\ufeff")
        lines = text.splitlines()
        num_above, separator = _above(lines)
        lines = lines[num_above:] or [""]
        separator = separator or _separator(lines[0])
        cells = _cells(lines[0], separator)
        if (commented := _commented_header(text.splitlines()[:num_above], separator, cells)) is not None:
            return cls(path, head, encoding, separator, True, commented, num_above)
        if not any(cells):
            return cls(path, head, encoding, separator, False, (), num_above)
        if not _is_header(cells):
            return cls(path, head, encoding, separator, False, cells, num_above)
        rows = [_cells(line, separator) for line in lines[:4]]
        named, num_lines = _whole_header(rows[:3])
        named = _as_wide_as(rows[num_lines], named) if len(rows) > num_lines else named
        return cls(path, head, encoding, separator, True, named, num_above + num_lines)

    @property
    def suffix(self) -> str:
        """Of what is in the file: `.csv` of `EURUSD_1h.csv.gz`."""
        return suffix_of(self.path.name)

    def content(self) -> bytes:
        """All of it, unpacked, in UTF-8 but for what is in no encoding that is known."""
        packed = self.path.read_bytes()
        content = gzip.decompress(packed) if self.path.name.lower().endswith(_PACKED) else packed
        return content if self.encoding == "utf-8" else content.decode(self.encoding, errors="replace").encode()


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case, that of the packing apart."""
    return Path(name.lower().removesuffix(_PACKED)).suffix


def stem_of(name: str) -> str:
    """The name without suffix and packing."""
    stem = name[: -len(_PACKED)] if name.lower().endswith(_PACKED) else name
    return stem.rpartition(".")[0] or stem


def _first_bytes(path: Path) -> bytes:
    if path.name.lower().endswith(_PACKED):
        with gzip.open(path) as packed:
            return packed.read(_HEAD_BYTES)
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _encoding(head: bytes) -> str:
    """UTF-16, which MetaTrader writes, by its mark or by its zeros; else UTF-8."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    ascii_pairs = min(len(head) // 2, 100)
    if (
        ascii_pairs >= 8
        and head[1 : 2 * ascii_pairs : 2] == bytes(ascii_pairs)
        and b"\0" not in head[: 2 * ascii_pairs : 2]
    ):
        return "utf-16-le"
    return "utf-8"


def _above(lines: list[str]) -> tuple[int, str | None]:
    """How many lines stand above header or first row, and the separator that one of them names."""
    separator = None
    for number, line in enumerate(lines):
        if match := _SEPARATOR_LINE.match(line):
            separator = match[1]
        elif not _ABOVE.match(line):
            return number, separator
    return len(lines), separator


def _separator(line: str) -> str:
    """The first of tab, semicolon, bar and comma that stands outside quotes."""
    unquoted = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in _SEPARATORS if mark in unquoted), ",")


def _cells(line: str, separator: str) -> tuple[str, ...]:
    return tuple(next(csv.reader([line], delimiter=separator), []))


def _is_header(cells: tuple[str, ...]) -> bool:
    """Whether the cells are words: some have letters, none is a time, and hardly one a number."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    num_numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in filled)
    has_letters = any(re.search(r"[^\W\d_]", cell) for cell in filled)
    return has_letters and 3 * num_numbers < len(filled) and not any(map(is_time, filled))


def _commented_header(above: list[str], separator: str, first: tuple[str, ...]) -> tuple[str, ...] | None:
    """A header behind `#`, as numpy writes it: as wide as the first row, which is none itself."""
    if not above or _is_header(first):
        return None
    cells = _cells(re.sub(r"^\s*(#|//)\s*", "", above[-1]), separator)
    words = {cell.strip().lower() for cell in cells}
    return cells if len(cells) == len(first) and {"open", "close"} <= words else None


def _whole_header(rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], int]:
    """The names and how many lines hold them: yfinance has prices, then the ticker, then the name of the times."""
    if len(rows) == 3 and rows[1][:1] == ("Ticker",) and not any(rows[2][1:]):
        return (*rows[2][:1], *rows[0][1:]), 3
    return rows[0], 1


def _as_wide_as(row: tuple[str, ...], named: tuple[str, ...]) -> tuple[str, ...]:
    """The header with one more name without letters, where rows end with a separator or begin with R's row numbers."""
    if len(row) != len(named) + 1:
        return named
    if not row[-1].strip():
        return (*named, "")
    return ("", *named) if re.fullmatch(r"\d{1,7}", row[0].strip()) and is_time(row[1]) else named
