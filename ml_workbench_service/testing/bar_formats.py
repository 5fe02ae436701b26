"""Conformance suite of bar formats: what the service promises of every file of bars, whatever program wrote it.

    class TestTickstory(BarFormatConformance):
        format = Tickstory

        def sample(self, tmp_path):
            file = tmp_path / "EURUSD_1h.csv"
            file.write_text(...)
            return file, [(1688378400000, 1.09123, 1.09201, 1.09087, 1.0915), ...]

The sample holds three bars or more, ascending; its name says symbol and timeframe. A format that is no separated
text with one line a bar says in `edit` and `tear` how such a file is changed and torn. `write_sample` writes the same
four bars as every built-in format has them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.integrations.feature_store.bar_file import BarFile
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars, series_of_name
from ml_workbench_service.integrations.feature_store.bar_formats import (
    BarFormat,
    format_of,
    known_formats,
    read_bars,
)

Row = tuple[int, float, float, float, float]
"""Opening in milliseconds of UTC; open, high, low, close."""
Change = Callable[[list[list[Any]]], list[list[Any]]]
"""From a file's rows of cells to other ones."""

_FIRST = datetime(2023, 7, 3, 10, tzinfo=UTC)  # a Monday in summer, when UTC-5 is not New York
_PRICES = (
    (1.09123, 1.09201, 1.09087, 1.0915),
    (1.09151, 1.09188, 1.0904, 1.09062),
    (1.09062, 1.0911, 1.0899, 1.09004),
    (1.09004, 1.09077, 1.08951, 1.0907),
)
SAMPLE_ROWS: tuple[Row, ...] = tuple(
    (int((_FIRST + timedelta(hours=hour)).timestamp() * 1000), *prices) for hour, prices in enumerate(_PRICES)
)


@dataclass(frozen=True)
class _Layout:
    """How a program writes the sample; `row` is a template, `hours` its clock's distance from UTC."""

    file: str
    header: str | None
    row: str
    hours: int = 0


_LAYOUTS = {
    "dukascopy": _Layout(
        "EURUSD_Candlestick_1_Hour_BID_03.07.2023-03.07.2023.csv",
        "Gmt time,Open,High,Low,Close,Volume",
        "{time:%d.%m.%Y %H:%M:%S}.000,{o},{h},{l},{c},5.1",
    ),
    "histdata": _Layout("DAT_ASCII_EURUSD_H1_2023.csv", None, "{time:%Y%m%d %H%M%S};{o};{h};{l};{c};0", -5),
    "histdata_metatrader": _Layout("DAT_MT_EURUSD_H1_2023.csv", None, "{time:%Y.%m.%d,%H:%M},{o},{h},{l},{c},0", -5),
    "metatrader4": _Layout("EURUSD_H1.csv", None, "{time:%Y.%m.%d,%H:%M},{o},{h},{l},{c},240", 3),
    "metatrader_python": _Layout(
        "EURUSD_M60_rates.csv",
        ",time,open,high,low,close,tick_volume,spread,real_volume",
        "{number},{epoch},{o},{h},{l},{c},240,12,0",
    ),
    "metatrader5": _Layout(
        "EURUSD_H1_2023.csv",
        "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
        "{time:%Y.%m.%d\t%H:%M:%S}\t{o}\t{h}\t{l}\t{c}\t240\t0\t12",
        3,
    ),
    "plain": _Layout("EURUSD_1h.csv", "timestamp,open,high,low,close", "{time:%Y-%m-%dT%H:%M:%SZ},{o},{h},{l},{c}"),
}
BUILT_IN = (*_LAYOUTS, "parquet")


def write_sample(name: str, folder: Path) -> Path:
    """`SAMPLE_ROWS` as the built-in format of that name has them; MetaTrader's on the clock America/New_York+7."""
    if name == "parquet":
        table = pl.DataFrame(SAMPLE_ROWS, schema=["timestamp", "open", "high", "low", "close"], orient="row")
        times = pl.from_epoch("timestamp", "ms").dt.replace_time_zone("UTC")
        table.with_columns(times).write_parquet(folder / "EURUSD_1h.parquet")
        return folder / "EURUSD_1h.parquet"
    layout = _LAYOUTS[name]
    lines = [layout.header] if layout.header else []
    for hour, prices in enumerate(_PRICES):
        o, h, low, c = (f"{price:.5f}" for price in prices)
        time = _FIRST + timedelta(hours=hour + layout.hours)
        epoch = int(time.timestamp())
        lines.append(layout.row.format(time=time, epoch=epoch, number=hour, o=o, h=h, l=low, c=c))
    (folder / layout.file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / layout.file


class BarFormatConformance(ABC):
    """What every format keeps.

    Attributes:
        format: the class under test.
        bars_timezone: what BARS_TIMEZONE must say for the sample; None where its times tell their clock.
    """

    format: ClassVar[type[BarFormat]]
    bars_timezone: ClassVar[str | None] = None

    @abstractmethod
    def sample(self, tmp_path: Path) -> tuple[Path, Sequence[Row]]:
        """A file as the program writes it, alone in the folder, and its bars as they really were."""

    def edit(self, file: Path, num_rows: int, change: Change) -> list[str]:
        """Changes the cells of the file's rows; answers where each row then stands, as errors put it."""
        about = BarFile.of(file)
        lines = file.read_bytes().decode(about.encoding).splitlines()
        above, rows = lines[:-num_rows], [line.split(about.separator) for line in lines[-num_rows:]]
        rows = change(rows)
        lines = [*above, *(about.separator.join(map(str, row)) for row in rows)]
        file.write_bytes("\n".join([*lines, ""]).encode(about.encoding))
        return [f"{file.name}, line {len(above) + number}" for number in range(1, len(rows) + 1)]

    def tear(self, file: Path, num_rows: int) -> str:
        """Ends the file within its last row, as a download that broke off; answers what the error must name."""
        return self.edit(file, num_rows, lambda rows: [*rows[:-1], [rows[-1][0][:3]]])[-1]

    def test_it_is_registered(self) -> None:
        """Being defined is enough."""
        assert self.format in known_formats()
        assert BarFormat.known[self.format.name] is self.format

    def test_it_alone_recognises_its_files(self, tmp_path: Path) -> None:
        """No other format claims them."""
        assert type(format_of(BarFile.of(self.sample(tmp_path)[0]))) is self.format

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_every_built_in_format_keeps_its_own_files(self, tmp_path: Path, name: str) -> None:
        """It claims no file of theirs."""
        assert format_of(BarFile.of(write_sample(name, tmp_path))).name == name

    @pytest.mark.parametrize("head", [b"", b"\n\n", b",,,\n", b"\xff\xfe", bytes(range(256)) * 20, b"<" * 5000])
    def test_any_beginning_has_an_answer(self, tmp_path: Path, head: bytes) -> None:
        """Nobody knows what lies in a folder."""
        file = tmp_path / f"EURUSD_1h{self.format.suffixes[0]}"
        file.write_bytes(head)
        assert self.format().recognises(BarFile.of(file)) in (True, False)

    def test_prices_are_read_to_the_digit(self, tmp_path: Path) -> None:
        """The nearest float64 of what is written."""
        file, rows = self.sample(tmp_path)
        assert [row[1:] for row in self._rows(file)] == [row[1:] for row in rows]

    def test_bars_open_at_their_moment_in_utc(self, tmp_path: Path) -> None:
        """Whatever clock the file is written in."""
        file, rows = self.sample(tmp_path)
        assert [row[0] for row in self._rows(file)] == [row[0] for row in rows]

    def test_the_first_rows_can_be_read_alone(self, tmp_path: Path) -> None:
        """As columns are looked up in large files."""
        file, _ = self.sample(tmp_path)
        whole, first = read_bars(file), read_bars(file, max_rows=2)
        assert first.times.local_ms.tolist() == whole.times.local_ms[:2].tolist()
        assert first.prices["close"].tolist() == whole.prices["close"][:2].tolist()
        assert first.extra.keys() == whole.extra.keys()

    def test_reading_twice_gives_the_same_bars(self, tmp_path: Path) -> None:
        """Nothing is kept from the first reading."""
        file, _ = self.sample(tmp_path)
        assert self._rows(file) == self._rows(file)

    def test_reading_leaves_the_folder_as_it_was(self, tmp_path: Path) -> None:
        """The files are the user's."""
        file, _ = self.sample(tmp_path)
        before = file.read_bytes(), file.stat().st_mtime_ns, sorted(file.parent.iterdir())
        self._rows(file)
        assert (file.read_bytes(), file.stat().st_mtime_ns, sorted(file.parent.iterdir())) == before

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        """With its name."""
        file, _ = self.sample(tmp_path)
        file.write_bytes(b"")
        assert file.name in self._refusal(file)

    def test_a_torn_file_is_refused(self, tmp_path: Path) -> None:
        """With its name and, where it has lines, the torn one."""
        file, rows = self.sample(tmp_path)
        place = self.tear(file, len(rows))
        assert place in self._refusal(file)

    @pytest.mark.parametrize("price", [0.0, -1.5, math.inf])
    def test_what_cannot_be_a_price_is_refused(self, tmp_path: Path, price: float) -> None:
        """With file and line."""
        file, rows = self.sample(tmp_path)
        places = self.edit(file, len(rows), lambda cells: _with_high(cells, rows, price))
        assert f"{places[1]}:" in self._refusal(file)

    def test_a_high_below_the_low_is_refused(self, tmp_path: Path) -> None:
        """With file and line."""
        file, rows = self.sample(tmp_path)
        places = self.edit(file, len(rows), lambda cells: _with_high(cells, rows, rows[1][3] / 2))
        assert f"{places[1]}:" in self._refusal(file)

    def test_two_bars_of_one_time_are_refused(self, tmp_path: Path) -> None:
        """With both places, unless they are the same bar."""
        file, rows = self.sample(tmp_path)
        places = self.edit(file, len(rows), lambda cells: [*cells, _with_high(cells, rows, 2 * rows[1][2])[1]])
        refusal = self._refusal(file)
        assert f"{places[-1]}:" in refusal
        assert f"{places[1]}," in refusal

    def test_a_repeated_bar_counts_once(self, tmp_path: Path) -> None:
        """Yearly files overlap."""
        file, rows = self.sample(tmp_path)
        self.edit(file, len(rows), lambda cells: [*cells, cells[1]])
        assert self._rows(file) == list(rows)

    def test_descending_bars_are_put_in_order(self, tmp_path: Path) -> None:
        """Some programs write the newest first."""
        file, rows = self.sample(tmp_path)
        self.edit(file, len(rows), lambda cells: cells[::-1])
        assert self._rows(file) == list(rows)

    def test_a_bar_without_a_price_is_missing(self, tmp_path: Path) -> None:
        """It is never filled."""
        file, rows = self.sample(tmp_path)
        self.edit(file, len(rows), lambda cells: _with_high(cells, rows, math.nan))
        assert self._rows(file) == [rows[0], *rows[2:]]

    def _rows(self, file: Path) -> list[Row]:
        bars = self._bars(file)
        columns = (bars.opened_ms, bars.open, bars.high, bars.low, bars.close)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _bars(self, file: Path) -> Bars:
        series = series_of_name(file.name)
        assert series is not None, f"{file.name} names no symbol and timeframe, as EURUSD_1h.csv does"
        return FolderBars(file.parent, bars_timezone=self.bars_timezone).bars(*series)

    def _refusal(self, file: Path) -> str:
        with pytest.raises(DataValidationError) as caught:
            self._bars(file)
        return caught.value.message


def _with_high(cells: list[list[Any]], rows: Sequence[Row], price: float) -> list[list[Any]]:
    """The cells with another high in the second row."""
    at = next(index for index, cell in enumerate(cells[1]) if _number(cell) == rows[1][2])
    return [cells[0], [*cells[1][:at], price, *cells[1][at + 1 :]], *cells[2:]]


def _number(cell: Any) -> float | None:
    try:
        return float(str(cell).strip().replace(",", "."))
    except ValueError:
        return None
