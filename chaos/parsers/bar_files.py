"""Files of bars: whatever bytes lie in the folder, rows or a sentence; and rows that were written are those read.

A file may be ignored or refused with its name and line; it never stops the listing of the folder.
"""

import gzip
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from chaos.parsers.promise import mutations, promise
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.testing.bar_formats import BUILT_IN, write_sample

MONDAY = datetime(2023, 1, 2, tzinfo=UTC)
PRICES = ("open", "high", "low", "close")
NAMES = (
    "EURUSD_1h.csv",
    "EURUSD_1h.txt",
    "EURUSD.tsv",
    "EURUSD_1h.csv.gz",
    "EURUSD_1h.parquet",
    "DAT_MT_EURUSD_M1.csv",
)
WORDS = (
    "timestamp,open,high,low,close", "<DATE>\t<TIME>", "Gmt time", "sep=;", "#", "\n", "\r\n", ",", ";", "\t", '"',
    "\0", "2023-07-03T10:00:00Z", "20230703 100000", "03.07.2023 10:00:00.000", "1688378400", "1.09123", "1,09", "-1",
    "1e999", "nan", "0", "bid", "ask", "spread", "available_at", "é", "\ufeff", "Price", "Ticker",
    "99999999999999999999",
)  # fmt: skip
TICKS = "timestamp,bid,ask\n" + "".join(
    f"2023-07-03T10:{second // 60:02d}:{second % 60:02d}.123Z,1.09{second:03d},1.09{second + 2:03d}\n"
    for second in range(300)
)


def _samples() -> dict[str, bytes]:
    """One real file of each format by its name, and some of them packed or in another encoding."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(BUILT_IN):
            home = Path(folder, str(number))
            home.mkdir()
            file = write_sample(name, home)
            found[f"{number}/{file.name}"] = file.read_bytes()
    plain = next(content for name, content in found.items() if name.endswith("/EURUSD_1h.csv"))
    return found | {
        "packed/EURUSD_1h.csv.gz": gzip.compress(plain, mtime=0),
        "utf16/EURUSD_1h.csv": plain.decode().encode("utf-16"),
        "ticks/EURUSD_1h.csv": TICKS.encode(),
        "typed/EURUSD_1h.parquet": _parquet(_Frame.of(0, 3, 5), "us", "Decimal"),
    }


@dataclass(frozen=True)
class _Frame:
    """Bars that somebody has: openings within one week in UTC, prices of so many digits, volumes, a column of one's own
    with holes."""

    opened: list[datetime]
    prices_N4: np.ndarray
    volume: list[int]
    own: list[float | None]
    digits: int

    @classmethod
    def of(cls, seed: int, num: int, digits: int) -> "_Frame":
        """A random walk from 1.1, whose high and low are the bar's."""
        chance = np.random.default_rng(seed)
        first = MONDAY + timedelta(weeks=int(chance.integers(0, 150)))
        walk = np.round(1.1 * np.exp(np.cumsum(chance.normal(0, 0.0008, (num, 4)), axis=0)), digits)
        prices = np.stack([walk[:, 0], walk.max(axis=1), walk.min(axis=1), walk[:, 3]], axis=1)
        own = [None if hole else float(value) for hole, value in zip(chance.random(num) < 0.2, chance.normal(size=num))]  # noqa: B905
        volume = [int(each) for each in chance.integers(0, 2**31, num)]
        return cls([first + timedelta(hours=row) for row in range(num)], prices, volume, own, digits)

    @property
    def opened_ms(self) -> list[int]:
        """Openings in milliseconds."""
        return [int(each.timestamp() * 1000) for each in self.opened]


Write = Callable[[_Frame], bytes]


def _text(frame: _Frame, separator: str, time: str) -> str:
    lines = [separator.join(["timestamp", *PRICES, "volume", "mine"])]
    for row, moment in enumerate(frame.opened):
        cells = [f"{price:.{frame.digits}f}" for price in frame.prices_N4[row]]
        mine = frame.own[row]
        told = str(int(moment.timestamp())) if time == "epoch" else moment.strftime(time)
        lines.append(separator.join([told, *cells, str(frame.volume[row]), "" if mine is None else repr(mine)]))
    return "\n".join([*lines, ""])


def _parquet(frame: _Frame, time: str, price: str) -> bytes:
    opened: dict[str, Callable[[], pl.Series]] = {
        **{
            unit: lambda unit=unit: pl.Series(frame.opened, dtype=pl.Datetime(unit, "UTC"))
            for unit in ("ms", "us", "ns")
        },
        "naive": lambda: pl.Series([each.replace(tzinfo=None) for each in frame.opened], dtype=pl.Datetime("us")),
        "text": lambda: pl.Series([each.isoformat() for each in frame.opened]),
        "new york": lambda: pl.Series(frame.opened, dtype=pl.Datetime("us", "UTC")).dt.convert_time_zone(
            "America/New_York"
        ),
        "seconds": lambda: pl.Series([each // 1000 for each in frame.opened_ms], dtype=pl.Int32),
        "milliseconds": lambda: pl.Series(frame.opened_ms, dtype=pl.UInt64),
        "nanoseconds": lambda: pl.Series([each * 1_000_000 for each in frame.opened_ms], dtype=pl.Int64),
        "float seconds": lambda: pl.Series([each / 1000 for each in frame.opened_ms], dtype=pl.Float64),
    }
    columns: dict[str, pl.Series] = {"timestamp": opened[time]()}
    for place, name in enumerate(PRICES):
        plain = pl.Series(frame.prices_N4[:, place])
        texts = pl.Series([f"{each:.{frame.digits}f}" for each in frame.prices_N4[:, place]])
        columns[name] = {
            "Float64": lambda plain=plain: plain,
            "Float32": lambda plain=plain: plain.cast(pl.Float32),
            "Decimal": lambda texts=texts: texts.cast(pl.Decimal(18, frame.digits)),
            "String": lambda texts=texts: texts,
        }[price]()
    columns["volume"] = pl.Series(frame.volume, dtype=pl.UInt32)
    columns["mine"] = pl.Series(frame.own, dtype=pl.Float64)
    out = io.BytesIO()
    pl.DataFrame(columns).write_parquet(out)
    return out.getvalue()


TIMES = ("ms", "us", "ns", "naive", "text", "new york", "seconds", "milliseconds", "nanoseconds", "float seconds")
CSV_TIMES = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y.%m.%d %H:%M", "%Y%m%d %H%M%S", "epoch")
WRITERS: Mapping[str, tuple[str, Write]] = {
    **{
        f"parquet, {time}, {price}": (
            "EURUSD_1h.parquet",
            lambda frame, time=time, price=price: _parquet(frame, time, price),
        )
        for time in TIMES
        for price in ("Float64", "Float32", "Decimal", "String")
    },
    **{
        f"text, {separator!r}, {time}": (
            "EURUSD_1h.csv",
            lambda frame, s=separator, time=time: _text(frame, s, time).encode(),
        )
        for separator in ",;\t|"
        for time in CSV_TIMES
    },
    "packed": ("EURUSD_1h.csv.gz", lambda frame: gzip.compress(_text(frame, ",", CSV_TIMES[0]).encode(), mtime=0)),
    "utf-16": ("EURUSD_1h.csv", lambda frame: _text(frame, "\t", CSV_TIMES[0]).encode("utf-16")),
    "with a mark": ("EURUSD_1h.csv", lambda frame: _text(frame, ",", CSV_TIMES[0]).encode("utf-8-sig")),
}
"""Every way in which the frame is written: the file's name, and its bytes."""


@contextmanager
def _folder(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        yield file


def _look(file: Path) -> Bars | None:
    """Everything that the service asks of a folder; the bars, or None where the file has none to give."""
    store = FolderBars(file.parent, bars_timezone="UTC")
    listed, passed_over = store.series(), [name for name, _ in store.ignored()]
    named = {each.origin for each in (*listed.series, *listed.ignored)} | set(passed_over)
    assert file.name in named, f"{file.name} is neither read nor ignored"
    assert store.check().state in ("ok", "degraded")
    store.own_columns()
    try:
        return store.bars("EUR/USD", "1h")
    except DataValidationError as error:
        assert error.message
        return None


def _is_sound(bars: Bars) -> None:
    """What every bar that is read keeps, whatever it was read from."""
    assert len(bars) > 0
    assert np.all(np.diff(bars.opened_ms) > 0)
    prices = np.stack([getattr(bars, name) for name in PRICES])
    assert np.isfinite(prices).all()
    assert (prices > 0).all()
    assert sum(each.num_rows for each in bars.reports) == len(bars)


def _damaged(samples: Mapping[str, bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    each = [st.tuples(st.just(name.rpartition("/")[2]), mutations([content])) for name, content in samples.items()]
    return st.one_of(each)


ANYTHING = st.tuples(
    st.sampled_from(NAMES),
    st.binary(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=40).map(lambda words: "".join(words).encode()),
)


@promise("bar files: any bytes", ANYTHING | _damaged(_samples()))
def any_bytes(case: tuple[str, bytes]) -> None:
    """Rows that keep what bars keep, or a sentence."""
    name, content = case
    with _folder(name, content) as file:
        try:
            read_bars(file)
        except DataValidationError as error:
            assert file.name in error.message
        bars = _look(file)
        if bars is not None:
            _is_sound(bars)


@promise(
    "bar files: a round trip",
    st.tuples(st.sampled_from(sorted(WRITERS)), st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 6)),
)
def round_trip(case: tuple[str, int, int, int]) -> None:
    """What was written is read, to the bit; what is not there is counted by its report."""
    kind, seed, num, digits = case
    frame, (name, write) = _Frame.of(seed, num, digits), WRITERS[kind]
    with _folder(name, write(frame)) as file:
        bars = FolderBars(file.parent, bars_timezone="UTC").bars("EUR/USD", "1h")
    (report,) = bars.reports
    assert bars.opened_ms.tolist() == frame.opened_ms, report
    prices = frame.prices_N4.astype(np.float32).astype(float) if "Float32" in kind else frame.prices_N4
    assert np.stack([getattr(bars, each) for each in PRICES], axis=1).tolist() == prices.tolist(), report
    assert bars.extra["volume"].tolist() == frame.volume, report
    own: Any = bars.extra.get("mine", np.full(num, np.nan)).tolist()
    wanted = [np.nan if each is None else each for each in frame.own]
    assert np.array_equal(own, wanted, equal_nan=True), report
    assert sum(report.dropped.values()) == 0
