"""Listing of a folder of bars: which files hold which series, and why the others are not read.

A file's name says symbol and timeframe (`bar_names`); where it says no timeframe, the spacing of its first rows does.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.integrations.feature_store.bar_columns import RawBars, bad_file
from ml_workbench_service.integrations.feature_store.bar_file import stem_of, suffix_of
from ml_workbench_service.integrations.feature_store.bar_formats import known_formats, read_bars
from ml_workbench_service.integrations.feature_store.bar_names import (
    FEWEST_GAPS,
    BarName,
    Series,
    coarser_rows,
    length_text,
    name_of_bars,
    timeframe_of_rows,
)

HEAD_ROWS = 100  # rows read to learn a file's own columns, and how far its bars lie apart
_LISTED = 3  # ignored files in a message
_NOT_TEXT = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "is a spreadsheet; save it as CSV"),
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".bz2", ".xz", ".zst", ".tar"), "is packed; unpack it, or pack it as .csv.gz"
    ),
    **dict.fromkeys((".hst", ".fxt", ".bi5", ".hcc"), "is a program's own store; export it as CSV"),
}

Fingerprint = tuple[tuple[str, int, int], ...]


class FolderListing:
    """The files of a folder, itself only; what a file's rows told is kept until the file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spacings: dict[Path, tuple[Fingerprint, BarName]] = {}

    def by_series(self) -> tuple[dict[Series, list[Path]], list[tuple[str, str]]]:
        """The files of each series, and the files of none with their reasons."""
        if not self._folder.is_dir():
            raise DataValidationError.at(
                "FEATURE_STORE_URL", "the folder of bars does not exist; correct FEATURE_STORE_URL", code="no_folder"
            )
        index: dict[Series, list[Path]] = {}
        ignored = []
        for path in sorted(self._folder.iterdir()):
            name = self._named(path)
            if name.symbol is None or name.timeframe is None or name.reason is not None:
                ignored.append((path.name, name.reason or "its name says no timeframe"))
            else:
                index.setdefault((name.symbol, name.timeframe), []).append(path)
        return index, ignored

    def _named(self, path: Path) -> BarName:
        """What the name says, completed by the spacing of the first rows."""
        name = bar_name(path.name)
        if not path.is_file():
            return BarName(None, reason="is a folder; only files directly in the folder of bars are read")
        if re.fullmatch(r"DAT_.*\.txt", path.name, re.IGNORECASE) and path.with_suffix(".csv").exists():
            return BarName(None, reason="is HistData's list of gaps, no bars")
        if name.reason is not None or name.timeframe is not None:
            return name
        stamp = fingerprint([path])
        kept = self._spacings.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._spacings[path] = stamp, _spaced(path, name)
        return kept[1]


def bar_name(name: str) -> BarName:
    """What a file's name says, its suffix included."""
    suffix = suffix_of(name)
    if name.startswith("."):
        return BarName(None, reason="is hidden")
    if all(suffix not in kind.suffixes for kind in known_formats()):
        known = ", ".join(sorted({each for kind in known_formats() for each in kind.suffixes}))
        what = _NOT_TEXT.get(Path(name.lower()).suffix, f"has none of the suffixes that are read ({known}, .csv.gz)")
        return BarName(None, reason=what)
    return name_of_bars(stem_of(name))


def _spaced(path: Path, name: BarName) -> BarName:
    """The name with the timeframe that its first rows lie apart."""
    try:
        local_ms = head_of(path).times.local_ms
    except DataValidationError as error:
        return replace(name, reason=f"its name says no timeframe, and its rows cannot be read: {error.message}")
    timeframe = timeframe_of_rows(local_ms)
    if timeframe is None and name.is_daily and len(local_ms) <= FEWEST_GAPS:
        timeframe = "1d"
    if timeframe is None:
        have = ", ".join(TIMEFRAMES_MS)
        return replace(name, reason=f"its name says no timeframe, and its rows lie apart like none of {have}")
    return replace(name, timeframe=timeframe)


def as_named(raw: RawBars, timeframe: str) -> RawBars:
    """The bars, with a word where only their spacing says the timeframe.

    Raises:
        DataValidationError: their rows lie further apart than the timeframe says, or closer, all or a part of them.
    """
    local_ms = raw.times.local_ms
    coarser = coarser_rows(local_ms, timeframe)
    if coarser is not None:
        row, gap = coarser
        raise bad_file(
            raw.where(row),
            f"from here its rows lie {length_text(gap)} apart, its name says {timeframe}; rename the file, or keep "
            "bars of one length in it",
        )
    found = timeframe_of_rows(local_ms)
    if found is not None and TIMEFRAMES_MS[found] < TIMEFRAMES_MS[timeframe]:
        length = length_text(TIMEFRAMES_MS[found])
        raise bad_file(raw.file, f"its rows lie {length} apart, its name says {timeframe}; rename the file")
    name = bar_name(raw.file)
    unsaid = () if name.timeframe else (f"its name says no timeframe; its rows lie {timeframe} apart",)
    return replace(raw, notes=(*raw.notes, *name.notes, *unsaid))


def head_of(path: Path) -> RawBars:
    """The first rows of a file, or all of it where a part cannot be read alone: days and months, marks of thousands.

    Raises:
        DataValidationError: the file cannot be read.
    """
    try:
        return read_bars(path, max_rows=HEAD_ROWS)
    except DataValidationError:
        return read_bars(path)


def in_words(ignored: Sequence[tuple[str, str]]) -> str:
    """The first ones with their reasons, for a message."""
    first = "; ".join(f"{name} ({reason})" for name, reason in ignored[:_LISTED])
    return f": {first}{' …' if len(ignored) > _LISTED else ''}"


def fingerprint(files: Sequence[Path]) -> Fingerprint:
    """By which a change of files is seen: names, times and sizes."""
    stats = ((path, path.stat()) for path in files)
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in stats)
