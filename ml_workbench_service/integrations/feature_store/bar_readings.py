"""Reading the series of a folder: files together, their clock decided by all that can tell it, decisions kept.

A file whose clock nobody says is decided with the FX files of the same layout and source in the folder. A source is
what the files' names hold beside symbol, timeframe, side and dates. Each file is read once for what it tells about its
clock; what was decided is pinned (`bar_pins`) and never moves rows that were read already.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.integrations.feature_store.bar_checks import checked_bars
from ml_workbench_service.integrations.feature_store.bar_clocks import Decision, Evidence, contradicts, decide, moved
from ml_workbench_service.integrations.feature_store.bar_columns import RawBars, bad_file
from ml_workbench_service.integrations.feature_store.bar_file import BarFile
from ml_workbench_service.integrations.feature_store.bar_fixings import Fixings
from ml_workbench_service.integrations.feature_store.bar_formats import format_of
from ml_workbench_service.integrations.feature_store.bar_pins import Pin, PinStore
from ml_workbench_service.integrations.feature_store.bar_weeks import Clock

MOST_POOL_BYTES = 256 * 2**20
"""Of files that are read for their clock alone, the smallest first."""
_WORDS_OF_ANY = re.compile(
    r"bid|ask|mid|candlestick|daily|hourly|minutes?|mins?|hours?|hrs?|days?|(?<![a-z])[mhd](?![a-z])|\d+|(?<![a-z])[a-z](?![a-z])"
)

Series = tuple[str, str]
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Files that one program wrote in one layout, as far as names and beginnings show."""

    layout: str
    words: str

    @classmethod
    def of(cls, path: Path, symbol: str) -> "Source":
        """Of a file that holds this symbol's bars."""
        base, quote = symbol.lower().split("/")
        name = re.sub(rf"{base}[^a-z0-9]?{quote}", " ", path.stem.lower(), count=1)
        words = " ".join(sorted(re.findall("[a-z]+", _WORDS_OF_ANY.sub(" ", name))))
        return cls(format_of(BarFile.of(path)).name, words)


class SeriesReader:
    """Reads the series of one folder.

    Args:
        read: a file's rows, which lie apart as this timeframe says.
        setting: `BARS_TIMEZONE`.
        pins: what was decided before.
        fixings: gives what prices are held against at the first reading, or None.
    """

    def __init__(
        self,
        read: Callable[[Path, str], RawBars],
        *,
        setting: str | None,
        pins: PinStore,
        fixings: Callable[[], Fixings | None],
    ) -> None:
        self._read = read
        self._setting = setting
        self._pins = pins
        self._fixings = fixings
        self._evidence: dict[Path, tuple[Stamp, Evidence | None]] = {}
        self._lock = threading.Lock()

    def read(self, series: Series, index: Mapping[Series, Sequence[Path]]) -> Bars:
        """One series of the folder.

        Raises:
            DataValidationError: a file that fails a check; says which and what to do.
        """
        symbol, timeframe = series
        files = index[series]
        raw = [self._read(path, timeframe) for path in files]
        decisions = [self._decision(path, each, series, index) for path, each in zip(files, raw, strict=True)]
        bars = checked_bars(raw, decisions, symbol=symbol, timeframe=timeframe, fixings=self._fixings())
        for path, each, decision in zip(files, raw, decisions, strict=True):
            if decision.source != "file":
                self._keep(path, each, decision)
        return bars

    def _decision(self, path: Path, raw: RawBars, series: Series, index: Mapping[Series, Sequence[Path]]) -> Decision:
        own = Evidence.of(raw, series[0], TIMEFRAMES_MS[series[1]])
        self._remember(path, own)
        pin = None if own.said is not None else self._pins.of(path)
        if pin is None:
            return decide(own, self._pool(path, own, series, index), setting=self._setting)
        return self._pinned(pin, own, lambda: self._pool(path, own, series, index))

    def _pinned(self, pin: Pin, own: Evidence, pool: Callable[[], Sequence[Evidence]]) -> Decision:
        """What was decided before, or what says the same of the rows that were read then."""
        kept = Clock(pin.time_zone, pin.is_end)
        try:
            now = decide(own, pool(), setting=self._setting)
        except DataValidationError:
            if self._setting is not None or contradicts(kept, own):
                raise
            return Decision(kept, "inferred", notes=(f"{kept}, as it was decided when the file was first read",))
        change = moved(kept, now.clock, own, pin.until_ms)
        if change is not None:
            raise bad_file(
                own.file,
                f"was read as {kept} and now speaks for {now.clock}, which would move rows that are in use: {change}; "
                "put the new rows into another file, or delete the file's line in bar_readings.jsonl in the state "
                "folder to read all of it anew",
            )
        return now

    def _keep(self, path: Path, raw: RawBars, decision: Decision) -> None:
        until_ms = int(raw.times.local_ms.max())
        pin, clock = self._pins.of(path), decision.clock
        if pin is None or (pin.time_zone, pin.is_end, pin.until_ms) != (clock.zone, clock.is_end, until_ms):
            self._pins.put(path, time_zone=clock.zone, is_end=clock.is_end, until_ms=until_ms)

    def _pool(
        self, path: Path, own: Evidence, series: Series, index: Mapping[Series, Sequence[Path]]
    ) -> list[Evidence]:
        """The FX files of the same layout and source that do not say their clock."""
        if own.said is not None or self._setting is not None or own.is_local:
            return []
        source = Source.of(path, series[0])
        others = [(each.stat().st_size, each, name) for name, files in index.items() for each in files if each != path]
        pool, left = [own] if own.is_fx else [], MOST_POOL_BYTES
        for size, each, name in sorted(others, key=lambda other: (other[0], other[1].name)):
            left -= size
            if left < 0:
                break
            evidence = self._evidence_of(each, name, source)
            if evidence is not None and evidence.is_fx and evidence.said is None and not evidence.is_local:
                pool.append(evidence)
        return pool

    def _evidence_of(self, path: Path, series: Series, source: Source) -> Evidence | None:
        """What another file tells; None where it is of another source, or cannot be read: its own reading says why."""
        stamp = _stamp(path)
        with self._lock:
            known = self._evidence.get(path)
        if known is not None and known[0] == stamp:
            return known[1] if known[1] is None or Source.of(path, series[0]) == source else None
        try:
            if Source.of(path, series[0]) != source:
                return None
            raw = self._read(path, series[1])
            evidence = Evidence.of(raw, series[0], TIMEFRAMES_MS[series[1]])
        except (DataValidationError, OSError):
            evidence = None
        self._remember(path, evidence)
        return evidence

    def _remember(self, path: Path, evidence: Evidence | None) -> None:
        with self._lock:
            self._evidence[path] = _stamp(path), evidence


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
