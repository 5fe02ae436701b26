"""The user's own bars: a folder of Parquet and CSV files, read as exported, checked, and resampled where needed.

A file's name says symbol and timeframe (`bar_names`); where it says no timeframe, the spacing of its rows does. Several
files of one series (one a year, say) are joined. Layouts: `bar_formats`. Each file is checked by `bar_checks`; an error
names file and line.

Law: a file of the folder is read, or `ignored` says why not.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, OutsideThing
from ml_workbench_service.contracts.reading_reports import IgnoredFile, ReadingReport, SeriesList
from ml_workbench_service.contracts.reading_reports import Series as ReportedSeries
from ml_workbench_service.integrations.feature_store.bar_columns import SPREADS, RawBars
from ml_workbench_service.integrations.feature_store.bar_fixings import Fixings, ecb_fixings
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.integrations.feature_store.bar_listing import (
    Fingerprint,
    FolderListing,
    as_named,
    bar_name,
    fingerprint,
    head_of,
    in_words,
)
from ml_workbench_service.integrations.feature_store.bar_names import Series
from ml_workbench_service.integrations.feature_store.bar_pins import PinStore
from ml_workbench_service.integrations.feature_store.bar_readings import SeriesReader
from ml_workbench_service.integrations.feature_store.bar_time_zones import parse_zone
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache, bars_bytes

CACHE_BYTES = 256 * 2**20


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
        self._listing = FolderListing(folder)
        self._reader = SeriesReader(_raw, setting=bars_timezone, pins=PinStore(pins), fixings=fixings)
        self._reports: dict[Series, tuple[Fingerprint, tuple[ReadingReport, ...] | str]] = {}
        self._series: SeriesCache[tuple[Fingerprint, Bars]] = SeriesCache(max_bytes=CACHE_BYTES)
        self._own: tuple[Fingerprint, list[str]] | None = None
        self._lock = threading.Lock()

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series, resampled from the next finer timeframe where the folder lacks it.

        Raises:
            DataValidationError: no such series, or a file that fails the checks; says which file and what to do.
        """
        index, ignored = self._listing.by_series()
        finer = _sources(index, symbol, timeframe, ignored)
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
        files = [path for paths in self._listing.by_series()[0].values() for path in paths]
        stamp = fingerprint(files)
        if self._own is None or self._own[0] != stamp:
            names = {name for path in files for name in _extra_names(path)}
            self._own = stamp, sorted(names - {"volume", *SPREADS})
        return list(self._own[1])

    def ignored(self) -> list[tuple[str, str]]:
        """Each file of the folder that is not read, by name, with the reason."""
        return self._listing.by_series()[1]

    def now_ms(self) -> int | None:
        """None: the folder's bars live by the clock."""
        return None

    def check(self) -> OutsideThing:
        """How many series the folder holds."""
        try:
            index, ignored = self._listing.by_series()
        except (DataValidationError, OSError) as error:
            return OutsideThing(mode="folder", state="down", detail=str(error))
        passed_over = (
            f"{len(ignored)} file{'' if len(ignored) == 1 else 's'} ignored{in_words(ignored)}" if ignored else ""
        )
        if not index:
            detail = "no file named like EURUSD_1h.csv in the folder" + (f"; {passed_over}" if ignored else "")
            return OutsideThing(mode="folder", state="degraded", detail=detail)
        detail = f"{len(index)} series of bars" + (f", {passed_over}" if ignored else "")
        return OutsideThing(mode="folder", state="ok", detail=detail)

    def series(self, on_read: Callable[[int, int, str], None] | None = None) -> SeriesList:
        """Each file by its report, in the order of names; and each that gives no bars, with the reason.

        Args:
            on_read: hears before each series which one of how many it is, and its name.
        """
        index, passed_over = self._listing.by_series()
        reports: list[ReadingReport] = []
        ignored = [IgnoredFile(origin=name, reason=reason) for name, reason in passed_over]
        for number, (series, files) in enumerate(index.items(), 1):
            if on_read is not None:
                on_read(number, len(index), " ".join(series))
            found = self._reported(series, files, index)
            if isinstance(found, str):
                ignored += [IgnoredFile(origin=path.name, reason=found) for path in files]
            else:
                reports += found
        reports.sort(key=lambda each: each.file)
        return SeriesList(
            series=tuple(ReportedSeries.of(each, source="file") for each in reports),
            ignored=tuple(sorted(ignored, key=lambda each: each.origin)),
        )

    def _reported(
        self, series: Series, files: list[Path], index: dict[Series, list[Path]]
    ) -> tuple[ReadingReport, ...] | str:
        """The reports of a series, or why it is refused; the files are read again only when they change."""
        stamp = fingerprint(files)
        kept = self._reports.get(series)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        try:
            with self._lock:
                self._kept(series, files, partial(self._read, series, index))
        except DataValidationError as error:
            self._reports[series] = stamp, error.message
        return self._reports[series][1]

    def _read(self, series: Series, index: dict[Series, list[Path]]) -> Bars:
        bars = self._reader.read(series, index)
        self._reports[series] = fingerprint(index[series]), bars.reports
        return bars

    def _kept(self, key: Hashable, files: list[Path], make: Callable[[], Bars]) -> Bars:
        """What was made last time, unless the files have changed."""
        stamp = fingerprint(files)
        kept = self._series.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        bars = make()
        self._series.put(key, (stamp, bars), num_bytes=bars_bytes(bars))
        return bars


def _raw(path: Path, timeframe: str) -> RawBars:
    """A file's rows, as far apart as the timeframe says."""
    return as_named(read_bars(path), timeframe)


def series_of_name(name: str) -> Series | None:
    """Symbol and timeframe of a file's name, or None where it does not say both."""
    told = bar_name(name)
    return None if told.symbol is None or told.timeframe is None else (told.symbol, told.timeframe)


def _extra_names(path: Path) -> Iterable[str]:
    """The further columns of one file; none of a file that is refused, which its own series says."""
    try:
        return head_of(path).extra.keys()
    except DataValidationError:
        return ()


def _sources(
    index: dict[Series, list[Path]], symbol: str, timeframe: str, ignored: Sequence[tuple[str, str]]
) -> list[str]:
    """Timeframes to make the bars from: the asked one itself, or the finer ones, coarsest first."""
    there = [name for known, name in index if known == symbol]
    if not there:
        symbols = sorted({known for known, _ in index})
        listed = f"it has {', '.join(symbols)}" if symbols else "it has no file named like EURUSD_1h.csv"
        listed += f"; not read{in_words(ignored)}" if ignored else ""
        raise DataValidationError.at(
            "symbols", f"the folder has no bars of {symbol}; {listed}", code="unknown_symbol", symbols=symbols
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
