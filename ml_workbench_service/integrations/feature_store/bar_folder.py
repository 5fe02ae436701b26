"""The user's own bars: a folder of Parquet and CSV files, read as exported, checked, and resampled where needed.

A file's name says symbol and timeframe (`bar_names`); where it says no timeframe, the spacing of its rows does. Several
files of one series (one a year, say) are joined. Layouts: `bar_formats`. Each file is checked by `bar_checks`; an error
names file and line.

Law: a file of the folder is read, or `ignored` says why not.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, OutsideThing
from ml_workbench_service.integrations.feature_store.bar_checks import checked_bars
from ml_workbench_service.integrations.feature_store.bar_columns import SPREADS, RawBars, bad_file
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
from ml_workbench_service.integrations.feature_store.bar_time_zones import parse_zone
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache, bars_bytes

CACHE_BYTES = 256 * 2**20
_HEAD_ROWS = 100  # rows read to learn a file's own columns
_LISTED = 3  # ignored files in a message
_NOT_TEXT = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "is a spreadsheet; save it as CSV"),
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".bz2", ".xz", ".zst", ".tar"), "is packed; unpack it, or pack it as .csv.gz"
    ),
    **dict.fromkeys((".hst", ".fxt", ".bi5", ".hcc"), "is a program's own store; export it as CSV"),
}

Fingerprint = tuple[tuple[str, int, int], ...]


def folder_of_url(url: str) -> Path:
    """The folder of `file:///absolute/folder` or `file://relative/folder`."""
    return Path(unquote(url.removeprefix("file://"))).expanduser()


class FolderBars:
    """A `BarSource` over a folder; files are read at first use and again when they change.

    Args:
        folder: where the files lie, itself only.
        bars_timezone: the clock of files that do not say theirs, as `BARS_TIMEZONE` names it.
    """

    def __init__(self, folder: Path, *, bars_timezone: str | None = None) -> None:
        if bars_timezone is not None:
            parse_zone(bars_timezone)
        self._folder = folder
        self._zone = bars_timezone
        self._series: SeriesCache[tuple[Fingerprint, Bars]] = SeriesCache(max_bytes=CACHE_BYTES)
        self._own: tuple[Fingerprint, list[str]] | None = None
        self._spacings: dict[Path, tuple[Fingerprint, BarName]] = {}
        self._lock = threading.Lock()

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series, resampled from the next finer timeframe where the folder lacks it.

        Raises:
            DataValidationError: no such series, or a file that fails the checks; says which file and what to do.
        """
        index, ignored = self._sorted()
        finer = _sources(index, symbol, timeframe, ignored)
        with self._lock:
            for source in finer:
                files = index[symbol, source]
                bars = self._kept((symbol, source), files, partial(self._read, files, symbol, source))
                if source != timeframe:
                    bars = self._kept((symbol, source, timeframe), files, partial(resample, bars, timeframe))
                if len(bars):
                    return bars
        raise DataValidationError.at(
            "timeframe",
            f"no whole {timeframe} bar of {symbol} can be made of the folder's {' or '.join(finer)} bars; add more",
            code="no_bars",
        )

    def own_columns(self) -> list[str]:
        """Names of the further numeric columns of any file, sorted."""
        files = [path for paths in self._index().values() for path in paths]
        stamp = _fingerprint(files)
        if self._own is None or self._own[0] != stamp:
            names = {name for path in files for name in _extra_names(path)}
            self._own = stamp, sorted(names - {"volume", *SPREADS})
        return list(self._own[1])

    def ignored(self) -> list[tuple[str, str]]:
        """Each file of the folder that is not read, by name, with the reason."""
        return self._sorted()[1]

    def now_ms(self) -> int | None:
        """None: the folder's bars live by the clock."""
        return None

    def check(self) -> OutsideThing:
        """How many series the folder holds."""
        try:
            index, ignored = self._sorted()
        except (DataValidationError, OSError) as error:
            return OutsideThing(mode="folder", state="down", detail=str(error))
        passed_over = (
            f"{len(ignored)} file{'' if len(ignored) == 1 else 's'} ignored{_listed(ignored)}" if ignored else ""
        )
        if not index:
            detail = "no file named like EURUSD_1h.csv in the folder" + (f"; {passed_over}" if ignored else "")
            return OutsideThing(mode="folder", state="degraded", detail=detail)
        detail = f"{len(index)} series of bars" + (f", {passed_over}" if ignored else "")
        return OutsideThing(mode="folder", state="ok", detail=detail)

    def _index(self) -> dict[Series, list[Path]]:
        return self._sorted()[0]

    def _sorted(self) -> tuple[dict[Series, list[Path]], list[tuple[str, str]]]:
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
        if name.reason is not None or name.timeframe is not None:
            return name
        stamp = _fingerprint([path])
        kept = self._spacings.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._spacings[path] = stamp, _spaced(path, name)
        return kept[1]

    def _read(self, files: list[Path], symbol: str, timeframe: str) -> Bars:
        raw = [_spaced_as_named(read_bars(path), timeframe) for path in files]
        return checked_bars(raw, symbol=symbol, timeframe=timeframe, zone=self._zone)

    def _kept(self, key: Hashable, files: list[Path], make: Callable[[], Bars]) -> Bars:
        """What was made last time, unless the files have changed."""
        stamp = _fingerprint(files)
        kept = self._series.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        bars = make()
        self._series.put(key, (stamp, bars), num_bytes=bars_bytes(bars))
        return bars


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


def series_of_name(name: str) -> Series | None:
    """Symbol and timeframe of a file's name, or None where it does not say both."""
    told = bar_name(name)
    return None if told.symbol is None or told.timeframe is None else (told.symbol, told.timeframe)


def _spaced(path: Path, name: BarName) -> BarName:
    """The name with the timeframe that its first rows lie apart."""
    try:
        local_ms = read_bars(path, max_rows=_HEAD_ROWS).times.local_ms
    except DataValidationError as error:
        return replace(name, reason=f"its name says no timeframe, and its rows cannot be read: {error.message}")
    timeframe = timeframe_of_rows(local_ms)
    if timeframe is None and name.is_daily and len(local_ms) <= FEWEST_GAPS:
        timeframe = "1d"
    if timeframe is None:
        have = ", ".join(TIMEFRAMES_MS)
        return replace(name, reason=f"its name says no timeframe, and its rows lie apart like none of {have}")
    return replace(name, timeframe=timeframe)


def _spaced_as_named(raw: RawBars, timeframe: str) -> RawBars:
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
    if bar_name(raw.file).timeframe is None:
        return replace(raw, notes=(*raw.notes, f"its name says no timeframe; its rows lie {timeframe} apart"))
    return raw


def _extra_names(path: Path) -> Iterable[str]:
    """The further columns of one file; none of a file that is refused, which its own series says."""
    try:
        return read_bars(path, max_rows=_HEAD_ROWS).extra.keys()
    except DataValidationError:
        return ()


def _listed(ignored: Sequence[tuple[str, str]]) -> str:
    """The first ones with their reasons, for a message."""
    first = "; ".join(f"{name} ({reason})" for name, reason in ignored[:_LISTED])
    return f": {first}{' …' if len(ignored) > _LISTED else ''}"


def _sources(
    index: dict[Series, list[Path]], symbol: str, timeframe: str, ignored: Sequence[tuple[str, str]]
) -> list[str]:
    """Timeframes to make the bars from: the asked one itself, or the finer ones, coarsest first."""
    there = [name for known, name in index if known == symbol]
    if not there:
        symbols = sorted({known for known, _ in index})
        listed = f"it has {', '.join(symbols)}" if symbols else "it has no file named like EURUSD_1h.csv"
        listed += f"; not read{_listed(ignored)}" if ignored else ""
        raise DataValidationError.at(
            "symbols", f"the folder has no bars of this symbol; {listed}", code="unknown_symbol", symbols=symbols
        )
    if timeframe in there:
        return [timeframe]
    finer = [name for name in there if TIMEFRAMES_MS[name] < TIMEFRAMES_MS.get(timeframe, 0)]
    if not finer:
        raise DataValidationError.at(
            "timeframe",
            f"the folder has {symbol} in {', '.join(there)} only, from which this timeframe cannot be made",
            code="unknown_timeframe",
            timeframes=there,
        )
    return sorted(finer, key=lambda name: -TIMEFRAMES_MS[name])


def _fingerprint(files: list[Path]) -> Fingerprint:
    stats = ((path, path.stat()) for path in files)
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in stats)
