"""The user's own bars: a folder of Parquet and CSV files, read as exported, checked, and resampled where needed.

A file's name says symbol and timeframe: `EURUSD_1h.csv`, `EUR_USD-H1.parquet`, `FOREX_EURUSD_1H_ASK.csv`,
`DAT_ASCII_EURUSD_M1_2023.csv`; several files of one series (one a year, say) are joined. Layouts:
`integrations.feature_store.bar_formats`.

Every file is checked by `integrations.feature_store.bar_checks`; an error names file and line.
"""

import re
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, normal_symbol, normal_timeframe
from ml_workbench_service.contracts.market import Bars, OutsideThing
from ml_workbench_service.contracts.reading_reports import IgnoredFile, ReadingReport, Series, SeriesList
from ml_workbench_service.integrations.feature_store.bar_columns import RawBars
from ml_workbench_service.integrations.feature_store.bar_fixings import Fixings, ecb_fixings
from ml_workbench_service.integrations.feature_store.bar_formats import known_formats, read_bars
from ml_workbench_service.integrations.feature_store.bar_pins import PinStore
from ml_workbench_service.integrations.feature_store.bar_readings import SeriesReader
from ml_workbench_service.integrations.feature_store.bar_time_zones import parse_zone
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache, bars_bytes

CACHE_BYTES = 256 * 2**20
_HEAD_ROWS = 100  # rows read to learn a file's own columns
_CURRENCIES = frozenset(
    re.findall(
        "...",
        "AUDBGNBRLBTCCADCHFCLPCNHCNYCOPCZKDKKETHEURGBP"
        "HKDHUFIDRILSINRISKJPYKRWMXNMYRNOKNZDPHPPLNRON"
        "RUBSARSEKSGDTHBTRYTWDUSDXAGXAUXPDXPTZAR",
    )
)
_TIMEFRAME = re.compile(
    r"(?<![a-z0-9])(?:(?P<count>\d{1,4})[_ ]?(?P<unit>minutes?|mins?|m|hours?|hrs?|h|days?|d)"
    r"|(?P<mt_unit>m|h|d)(?P<mt_count>\d{1,3})|(?P<word>daily|hourly))(?![a-z0-9])",
    re.IGNORECASE,
)

SeriesKey = tuple[str, str]
Fingerprint = tuple[tuple[str, int, int], ...]


def folder_of_url(url: str) -> Path:
    """The folder of `file:///absolute/folder` or `file://relative/folder`."""
    return Path(unquote(url.removeprefix("file://"))).expanduser()


class FolderBars:
    """A `BarSource` over a folder; files are read at first use and again when they change.

    Args:
        folder: where the files lie, itself only.
        bars_timezone: the clock of files that do not say theirs, as `BARS_TIMEZONE` names it.
        pins: the file that keeps what was decided about the clocks of files; None: memory alone.
        fixings: gives what prices are held against; of None nothing is, as bars that are made up need it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bars_timezone: str | None = None,
        pins: Path | None = None,
        fixings: Callable[[], Fixings | None] = ecb_fixings,
    ) -> None:
        if bars_timezone is not None:
            parse_zone(bars_timezone)
        self._folder = folder
        self._reader = SeriesReader(_raw, setting=bars_timezone, pins=PinStore(pins), fixings=fixings)
        self._reports: dict[SeriesKey, tuple[Fingerprint, tuple[ReadingReport, ...] | str]] = {}
        self._series: SeriesCache[tuple[Fingerprint, Bars]] = SeriesCache(max_bytes=CACHE_BYTES)
        self._own: tuple[Fingerprint, list[str]] | None = None
        self._lock = threading.Lock()

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series, resampled from the next finer timeframe where the folder lacks it.

        Raises:
            DataValidationError: no such series, or a file that fails the checks; says which file and what to do.
        """
        index = self._index()
        finer = _sources(index, symbol, timeframe)
        with self._lock:
            for source in finer:
                files = index[symbol, source]
                bars = self._kept((symbol, source), files, partial(self._read, (symbol, source), index))
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
            names = {name for path in files for name in read_bars(path, max_rows=_HEAD_ROWS).extra}
            self._own = stamp, sorted(names - {"volume", "spread"})
        return list(self._own[1])

    def now_ms(self) -> int | None:
        """None: the folder's bars live by the clock."""
        return None

    def check(self) -> OutsideThing:
        """How many series the folder holds."""
        try:
            index = self._index()
        except (DataValidationError, OSError) as error:
            return OutsideThing(mode="folder", state="down", detail=str(error))
        if not index:
            detail = "no file named like EURUSD_1h.csv in the folder"
            return OutsideThing(mode="folder", state="degraded", detail=detail)
        return OutsideThing(mode="folder", state="ok", detail=f"{len(index)} series of bars")

    def _index(self) -> dict[SeriesKey, list[Path]]:
        if not self._folder.is_dir():
            raise DataValidationError.at(
                "FEATURE_STORE_URL", "the folder of bars does not exist; correct FEATURE_STORE_URL", code="no_folder"
            )
        index: dict[SeriesKey, list[Path]] = {}
        for path in sorted(self._folder.iterdir()):
            named = series_of_name(path.name)
            if named is not None and path.is_file():
                index.setdefault(named, []).append(path)
        return index

    def series(self) -> SeriesList:
        """Each file by its report, in the order of names; and each that gives no bars, with the reason."""
        index = self._index()
        reports: list[ReadingReport] = []
        ignored: list[IgnoredFile] = []
        for series, files in index.items():
            found = self._reported(series, files, index)
            if isinstance(found, str):
                ignored += [IgnoredFile(origin=path.name, reason=found) for path in files]
            else:
                reports += found
        return SeriesList(
            series=tuple(Series.of(each, source="file") for each in sorted(reports, key=lambda each: each.file)),
            ignored=tuple(sorted(ignored, key=lambda each: each.origin)),
        )

    def _reported(
        self, series: SeriesKey, files: list[Path], index: dict[SeriesKey, list[Path]]
    ) -> tuple[ReadingReport, ...] | str:
        """The reports of a series, or why it is refused; the files are read again only when they change."""
        stamp = _fingerprint(files)
        kept = self._reports.get(series)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        try:
            with self._lock:
                self._kept(series, files, partial(self._read, series, index))
        except DataValidationError as error:
            self._reports[series] = stamp, error.message
        return self._reports[series][1]

    def _read(self, series: SeriesKey, index: dict[SeriesKey, list[Path]]) -> Bars:
        bars = self._reader.read(series, index)
        self._reports[series] = _fingerprint(index[series]), bars.reports
        return bars

    def _kept(self, key: Hashable, files: list[Path], make: Callable[[], Bars]) -> Bars:
        """What was made last time, unless the files have changed."""
        stamp = _fingerprint(files)
        kept = self._series.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        bars = make()
        self._series.put(key, (stamp, bars), num_bytes=bars_bytes(bars))
        return bars


def _raw(path: Path, timeframe: str) -> RawBars:
    """A file's rows."""
    return read_bars(path)


def series_of_name(name: str) -> SeriesKey | None:
    """Symbol and timeframe of a file's name, or None where it names no series."""
    stem, dot, suffix = name.rpartition(".")
    if all(f"{dot}{suffix}".lower() not in kind.suffixes for kind in known_formats()):
        return None
    for match in re.finditer(r"(?<![A-Za-z])(?=([A-Za-z]{3})[_\-. ]?([A-Za-z]{3})(?![A-Za-z]))", stem):
        if match[1].upper() in _CURRENCIES and match[2].upper() in _CURRENCIES and match[1].upper() != match[2].upper():
            rest = re.sub(rf"{match[1]}[_\-. ]?{match[2]}", " ", stem, count=1)
            timeframe = next(_timeframes(rest), None)
            return None if timeframe is None else (normal_symbol(match[1] + match[2]), timeframe)
    return None


def _timeframes(text: str) -> Iterator[str]:
    for match in _TIMEFRAME.finditer(text):
        unit = (match["unit"] or match["mt_unit"] or match["word"])[0].lower()
        try:
            yield normal_timeframe(f"{int(match['count'] or match['mt_count'] or 1)}{unit}")
        except ValueError:
            continue


def _sources(index: dict[SeriesKey, list[Path]], symbol: str, timeframe: str) -> list[str]:
    """Timeframes to make the bars from: the asked one itself, or the finer ones, coarsest first."""
    there = [name for known, name in index if known == symbol]
    if not there:
        symbols = sorted({known for known, _ in index})
        listed = f"it has {', '.join(symbols)}" if symbols else "it has no file named like EURUSD_1h.csv"
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
