"""Whatever program writes known bars, in whatever marks, times and columns: read back exactly, or refused."""

import csv
import io
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.integrations.feature_store.bar_columns import RawBars
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.integrations.feature_store.bar_time_zones import to_utc

MONDAY = datetime(2023, 1, 2, tzinfo=UTC)  # bars lie within a week: the hour that a clock repeats is a Sunday's
TWO_WAYS = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
INSTRUMENTS = {"EURUSD": 1.1, "USDJPY": 157.0, "USDKRW": 1310.0, "USDIDR": 15817.0, "XAUUSD": 2650.0, "BTCUSD": 61000.0}
ZONES = (None, "UTC", "America/New_York", "Europe/London", "UTC+2")
TIMES = {
    "%Y-%m-%d %H:%M:%S": ("time", "Datetime", "Open time"),
    "%Y.%m.%d %H:%M": ("time", "timestamp"),
    "%d.%m.%Y %H:%M:%S.000": ("time", "date"),
    "%d-%b-%Y %H:%M": ("Date",),
    "%b %d, %Y %I:%M %p": ("Date",),
    "%Y%m%d  %H:%M:%S": ("date",),
    "%Y%m%d %H%M%S": ("timestamp",),
    "%Y-%m-%dT%H:%M:%S%z": ("time", "Local time"),
    "%s": ("unix", "time"),
    "%s000": ("timestamp",),
}
NAMES = {
    "plain": ("open", "high", "low", "close"),
    "capitals": ("Open", "High", "Low", "Close"),
    "letters": ("o", "h", "l", "c"),
    "bid": ("BidOpen", "BidHigh", "BidLow", "BidClose"),
    "mid": ("mid.o", "mid.h", "mid.l", "mid.c"),
}


@dataclass(frozen=True)
class Writer:
    """How a program writes bars."""

    separator: str
    decimal: str
    thousands: str
    digits: int
    time: str
    header: str
    zone: str | None
    names: str
    above: tuple[str, ...]
    order: tuple[int, ...]
    has_index: bool
    num_blank: int

    def number(self, value: float, digits: int) -> str:
        text = f"{value:,.{digits}f}"
        return text.translate(str.maketrans({",": self.thousands, ".": self.decimal}))

    def moment(self, utc: datetime) -> str:
        if self.time.startswith("%s"):
            return self.time.replace("%s", str(int(utc.timestamp())))
        added = timedelta(hours=2) if self.zone == "UTC+2" else timedelta()
        clock = utc + added if added or self.zone in (None, "UTC") else utc.astimezone(ZoneInfo(self.zone or "UTC"))
        return clock.strftime(self.time)

    def text(self, moments: list[datetime], prices: np.ndarray, volumes: list[int]) -> str:
        says = self.zone is not None and "%z" not in self.time and "%s" not in self.time
        time = f"{self.header} ({self.zone})" if says else self.header
        columns: list[tuple[str, list[str]]] = [(time, [self.moment(moment) for moment in moments])]
        for name, column in zip(NAMES[self.names], prices.T, strict=True):
            columns.append((name, [self.number(value, self.digits) for value in column]))
        columns.append(("volume", [self.number(value, 0) for value in volumes]))
        columns = [columns[at] for at in self.order]
        if self.has_index:
            columns.insert(0, ("", [str(row) for row in range(len(moments))]))
        out = io.StringIO()
        out.writelines(line + "\n" for line in self.above)
        rows = csv.writer(out, delimiter=self.separator, lineterminator="\n")
        rows.writerow([name for name, _ in columns])
        rows.writerows(zip(*(cells for _, cells in columns), strict=True))
        return out.getvalue() + "\n" * self.num_blank


@st.composite
def writers(draw: st.DrawFn) -> Writer:
    decimal = draw(st.sampled_from(".,"))
    time = draw(st.sampled_from(sorted(TIMES)))
    zone = draw(st.sampled_from(ZONES))
    separator = draw(st.sampled_from(",;\t|"))
    groups = [mark for mark in ("", " ", "'", ",", ".") if mark != decimal and (mark, separator) != (".", ",")]
    return Writer(
        separator=separator,
        decimal=decimal,
        thousands=draw(st.sampled_from(groups)),
        digits=draw(st.integers(0, 5)),
        time=time,
        header=draw(st.sampled_from(TIMES[time])),
        zone="America/New_York" if "%z" in time else zone,
        names=draw(st.sampled_from(sorted(NAMES))),
        above=draw(st.sampled_from([(), ("# bars",), ("https://example.com",), ("",)])),
        order=tuple(draw(st.permutations(range(6)))),
        has_index=draw(st.booleans()),
        num_blank=draw(st.integers(0, 2)),
    )


def in_utc(raw: RawBars) -> list[int]:
    return [int(moment) for moment in to_utc(raw.times.local_ms, raw.times.zone or "UTC")]


@settings(max_examples=100, deadline=None)
@given(
    writer=writers(),
    pair=st.sampled_from(sorted(INSTRUMENTS)),
    seed=st.integers(0, 2**16),
    week=st.integers(0, 150),
    hour=st.integers(0, 70),
)
def test_bars_are_read_back_exactly_or_refused(writer: Writer, pair: str, seed: int, week: int, hour: int) -> None:
    generator = np.random.default_rng(seed)
    first = MONDAY + timedelta(weeks=week, hours=hour)
    moments = [first + timedelta(hours=row) for row in range(40)]
    steps = generator.normal(0, 0.002, (40, 4))
    prices = np.round(INSTRUMENTS[pair] * np.exp(np.cumsum(steps, axis=0)), writer.digits)
    volumes = [int(volume) for volume in generator.integers(0, 20_000, 40)]
    text = writer.text(moments, prices, volumes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pair}_1h.csv"
        path.write_text(text, encoding="utf-8")
        try:
            raw = read_bars(path)
        except DataValidationError:
            assert may_be_refused(writer, pair, prices)
            return
    assert [raw.prices[name].tolist() for name in ("open", "high", "low", "close")] == prices.T.tolist()
    assert raw.extra["volume"].tolist() == volumes
    assert raw.extra.keys() == {"volume"}
    assert raw.price_side == ("bid" if writer.names == "bid" else "mid")
    assert in_utc(raw) == [int(moment.timestamp() * 1000) for moment in moments]
    assert (raw.times.zone is None) is (writer.zone is None and "%s" not in writer.time)


def may_be_refused(writer: Writer, pair: str, prices: np.ndarray) -> bool:
    """Where every price that has a mark can be read in two ways, and the usual price does not tell which."""
    cells = [writer.number(value, writer.digits) for value in prices.ravel()]
    marked = [cell for cell in cells if "." in cell or "," in cell]
    if not marked:
        return writer.thousands in (".", ",")  # the volume alone has a mark
    return pair == "BTCUSD" and all(TWO_WAYS.fullmatch(cell) for cell in marked)
