"""Bar formats: which program wrote a file of bars, and how its cells are read. A format registers by being defined.

Law: one file has one format. Those that know a program's mark go before the general ones; two that recognise the same
file are an error, never a matter of order.

Formats of other packages are named by the entry point `ml_workbench.bar_formats` (the class, or a module that defines
it) and loaded at the first question. A broken one is left out, with a loud line in the log.
`ml_workbench_service.testing.bar_formats` is the suite that holds every format to what is promised of it.
"""

import csv
import re
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from common_lib.exceptions import DataValidationError
from common_lib.plugins import Plugins
from ml_workbench_service.integrations.feature_store.bar_cells.headers import headings
from ml_workbench_service.integrations.feature_store.bar_cells.prices import PRICES
from ml_workbench_service.integrations.feature_store.bar_columns import Conventions, RawBars, bad_file, raw_bars
from ml_workbench_service.integrations.feature_store.bar_file import BarFile, suffix_of

if TYPE_CHECKING:
    import polars as pl

_OURS = "ml_workbench_service."
_MISSING = ["", "NaN", "nan", "NA", "null", "NULL", "None", "N/A", "#N/A", "<NA>"]
_DUKASCOPY_TIME = r"\d{2}\.\d{2}\.\d{4} \d{2}:\d{2}:\d{2}\.\d{3}"

plugins = Plugins("ml_workbench.bar_formats", "bar format", lambda: BarFormat.known)


class BarFormat(ABC):
    """One program's way of writing bars; the first line of its docstring says what exports it.

    Attributes:
        name: for messages; a plug-in's is its entry point's name too.
        suffixes: of the files that it is asked about.
        is_general: whether it takes only what no other format recognises.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".txt", ".tsv")
    is_general: ClassVar[bool] = False
    known: ClassVar[dict[str, type["BarFormat"]]] = {}

    def __init_subclass__(cls, *, registers: bool = True) -> None:
        super().__init_subclass__()
        if not registers:
            return
        if "name" not in cls.__dict__ or not (cls.__doc__ or "").partition("\n")[0].endswith("."):
            raise TypeError(f"{cls.__name__} needs a `name` and a docstring whose first line says what exports it")
        if missing := [each for each in ("recognises", "read") if getattr(cls, each) is getattr(BarFormat, each)]:
            raise TypeError(f"{cls.__name__} lacks {' and '.join(missing)}")
        if cls.name in BarFormat.known:
            raise TypeError(f"two bar formats are called {cls.name}")
        BarFormat.known[cls.name] = cls

    @abstractmethod
    def recognises(self, file: BarFile) -> bool:
        """Whether this program wrote the file, as its name and beginning show; any beginning has an answer."""

    @abstractmethod
    def read(self, file: BarFile, *, max_rows: int | None) -> RawBars:
        """The file's bars, or the first `max_rows` of them, mostly by `raw_bars`.

        Raises:
            DataValidationError: names file and line, as `bad_file` does.
        """


def read_bars(path: Path, *, max_rows: int | None = None) -> RawBars:
    """The file's bars, or the first `max_rows` of them.

    Raises:
        DataValidationError: not a known format, or a cell that is no number or time; names file and line.
    """
    import polars as pl

    try:
        file = BarFile.of(path)
        return _read(format_of(file), file, max_rows=max_rows)
    except (pl.exceptions.PolarsError, UnicodeError, EOFError, OSError, zlib.error) as error:
        raise bad_file(path.name, "cannot be read as bars; export it again as CSV or Parquet") from error


def format_of(file: BarFile) -> BarFormat:
    """The one format that recognises the file.

    Raises:
        DataValidationError: there is none, or there are several, or a plug-in fails over it; names them.
    """
    claims = [each for kind in _formats_of(file) if _recognises(each := kind(), file)]
    claims = [each for each in claims if not each.is_general] or claims
    if not claims:
        raise _unknown(file)
    if len(claims) > 1:
        names = ", ".join(each.name for each in claims)
        raise bad_file(file.path.name, f"is recognised by several formats: {names}; remove the package of one")
    return claims[0]


def _recognises(kind: BarFormat, file: BarFile) -> bool:
    try:
        return kind.recognises(file)
    except Exception as error:
        raise _broken(kind, file, error) from error


def _read(kind: BarFormat, file: BarFile, *, max_rows: int | None) -> RawBars:
    import polars as pl

    try:
        return kind.read(file, max_rows=max_rows)
    except (DataValidationError, pl.exceptions.PolarsError, UnicodeError, EOFError, OSError, zlib.error):
        raise
    except Exception as error:
        if type(kind).__module__.startswith(_OURS):
            raise
        raise _broken(kind, file, error) from error


def _broken(kind: BarFormat, file: BarFile, error: Exception) -> DataValidationError:
    """Of one file alone: another one, which the plug-in can judge, is read."""
    what = f"the bar format {kind.name} ({type(kind).__module__}) fails over it"
    return bad_file(file.path.name, f"{what}, {type(error).__name__}: {error}; repair or remove its package")


def known_formats() -> list[type[BarFormat]]:
    """Every format by name; those of other packages are loaded at the first call."""
    plugins.faults()
    return [BarFormat.known[name] for name in sorted(BarFormat.known)]


def _formats_of(file: BarFile) -> list[type[BarFormat]]:
    return [kind for kind in known_formats() if file.suffix in kind.suffixes]


def _unknown(file: BarFile) -> DataValidationError:
    problem = "has no header and no known layout; give it timestamp,open,high,low,close as first line"
    known = ", ".join(kind.name for kind in _formats_of(file))
    return bad_file(file.path.name, f"{problem}, or export it as one of {known}")


class TextFormat(BarFormat, registers=False):
    """Separated cells, recognised by the first of them.

    Attributes:
        first_cell: a pattern of all of it, in any case.
        file_name: a pattern of all of it, in any case.
        columns: of a file without header; those after `close` may be missing.
    """

    first_cell: ClassVar[str]
    file_name: ClassVar[str] = ".*"
    columns: ClassVar[tuple[str, ...]] = ("timestamp", *PRICES, "volume", "spread")
    conventions: ClassVar[Conventions] = Conventions()

    def recognises(self, file: BarFile) -> bool:
        """By file name, first cell and number of cells."""
        pairs = ((self.file_name, file.path.name), (self.first_cell, "".join(file.cells[:1])))
        is_its_own = all(re.fullmatch(pattern, text, re.IGNORECASE) for pattern, text in pairs)
        return is_its_own and (file.has_header or self._has_width(len(file.cells)))

    def read(self, file: BarFile, *, max_rows: int | None) -> RawBars:
        """Every cell as text; an empty one is missing."""
        if not file.has_header and not self._has_width(len(file.cells)):
            raise _unknown(file)
        names = file.cells if file.has_header else self.columns[: len(file.cells)]
        return raw_bars(
            file.path,
            _text_cells(file, names, max_rows=max_rows),
            first_line=1 + file.num_above,
            conventions=self.conventions,
            separator=file.separator,
            format_name=self.name,
        )

    def _has_width(self, num_cells: int) -> bool:
        return self.columns.index("close") < num_cells <= len(self.columns)


def _text_cells(file: BarFile, names: tuple[str, ...], *, max_rows: int | None) -> "pl.DataFrame":
    """Every cell below the header as text; an empty one is null."""
    import polars as pl

    unique = [name if name.strip() else " " * (1 + position) for position, name in enumerate(names)]
    if twice := sorted({name for name in unique if unique.count(name) > 1}):
        raise bad_file(file.path.name, f"has two columns of the same name, `{twice[0]}`; rename one")
    is_plain = file.encoding == "utf-8" and suffix_of(file.path.name) == file.path.suffix.lower()
    try:
        cells = pl.read_csv(
            file.path if is_plain else file.content(),
            separator=file.separator,
            has_header=False,
            skip_lines=file.num_above,
            schema=dict.fromkeys(unique, pl.String),
            null_values=_MISSING,
            n_rows=max_rows,
            encoding="utf8-lossy",
        )
    except pl.exceptions.PolarsError as error:
        raise _too_wide(file, len(names)) or error from error
    return cells.with_columns(pl.all().str.strip_chars().str.strip_chars('"')) if _keeps_quotes(cells) else cells


def _keeps_quotes(cells: "pl.DataFrame") -> bool:
    """Whether quotes stand behind a blank, as in `"a", "b"`, where a reader takes them for a part of the cell."""
    return any(str(cell).lstrip().startswith('"') for row in cells.head(1).rows() for cell in row)


def _too_wide(file: BarFile, num_cells: int) -> DataValidationError | None:
    """The first line with more cells than the header, as decimal commas make them between commas."""
    lines = file.content().decode(errors="replace").splitlines()
    for number, row in enumerate(csv.reader(lines, delimiter=file.separator), 1):
        if number > file.num_above and len(row) > num_cells:
            where = f"{file.path.name}, line {number}"
            return bad_file(
                where,
                f"has {len(row)} cells where {num_cells} are named; export it with ; between cells if its numbers "
                "have commas",
            )
    return None


class MetaTrader5(TextFormat):
    """MetaTrader 5: `<DATE>`, `<TIME>`, `<OPEN>` … `<SPREAD>` on the broker's clock, the spread in points."""

    name = "metatrader5"
    first_cell = "<DATE>"
    conventions = Conventions(
        is_broker_time=True, price_side="bid", is_spread_in_points=True, ignored=("vol",), decimal_mark="."
    )


class MetaTraderPython(TextFormat):
    """MetaTrader's package for Python: `time,open,high,low,close,tick_volume,spread,real_volume`, times as epochs."""

    name = "metatrader_python"
    conventions = Conventions(price_side="bid", is_spread_in_points=True, decimal_mark=".")

    def recognises(self, file: BarFile) -> bool:
        """By three names that only it has together."""
        names = {head.name for head in headings(list(file.cells))} if file.has_header else set()
        return names >= {"tick_volume", "spread", "real_volume"}


class MetaTrader4(TextFormat):
    """MetaTrader 4: `2017.01.02,00:00,o,h,l,c,v` without header, on the broker's clock."""

    name = "metatrader4"
    file_name = "(?!DAT_MT).*"  # HistData's
    first_cell = r"\d{4}\.\d{2}\.\d{2}"
    columns = ("date", "time", *PRICES, "volume")
    conventions = Conventions(is_broker_time=True, price_side="bid", decimal_mark=".")


class HistData(TextFormat):
    """HistData for ASCII: `20170102 000000;o;h;l;c;v` without header, in UTC-5 all the year."""

    name = "histdata"
    first_cell = r"\d{8} \d{6}"
    columns = ("timestamp", *PRICES, "volume")
    conventions = Conventions(zone="UTC-5", price_side="bid", decimal_mark=".")


class HistDataForMetaTrader(MetaTrader4):
    """HistData for MetaTrader: `DAT_MT_….csv` with MetaTrader 4's cells, in UTC-5 all the year."""

    name = "histdata_metatrader"
    file_name = "DAT_MT.*"
    conventions = HistData.conventions


class Dukascopy(TextFormat):
    """Dukascopy: `Gmt time`, `Local time`, `UTC` or `Time (EET)` first, or `02.01.2017 22:00:00.000` without header."""

    name = "dukascopy"
    first_cell = rf"(gmt|local) time|utc|(local )?time \([^()]+\)|{_DUKASCOPY_TIME}.*"


class PlainText(TextFormat):
    """Any program's text: `timestamp,open,high,low,close[,volume][,spread][,own columns]`.

    ISO 8601, epochs, or day and month in either order, told from the whole column.
    """

    name = "plain"
    is_general = True

    def recognises(self, file: BarFile) -> bool:
        """Always; `read` refuses what has neither header nor the usual number of cells."""
        return True


class Parquet(BarFormat):
    """Any program's Parquet, under plain text's column names."""

    name = "parquet"
    suffixes = (".parquet",)
    is_general = True

    def recognises(self, file: BarFile) -> bool:
        """Always, by its suffix."""
        return True

    def read(self, file: BarFile, *, max_rows: int | None) -> RawBars:
        """Its columns as they are typed."""
        import polars as pl

        frame = pl.read_parquet(file.path, n_rows=max_rows)
        return raw_bars(file.path, frame, first_line=0, conventions=Conventions(), format_name=self.name)
