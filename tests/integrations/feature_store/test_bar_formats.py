"""Every bar format under the suite that ships for plug-ins; the registry, and formats of other packages."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.integrations.feature_store import bar_formats
from ml_workbench_service.integrations.feature_store.bar_columns import Conventions, RawBars
from ml_workbench_service.integrations.feature_store.bar_file import BarFile
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.bar_formats import BarFormat, TextFormat, format_of
from ml_workbench_service.testing.bar_formats import (
    BUILT_IN,
    SAMPLE_ROWS,
    BarFormatConformance,
    Change,
    Row,
    write_sample,
)

NAMES = [kind.name for kind in bar_formats.known_formats()]


class BuiltIn(BarFormatConformance):
    """A format that comes with the service, on the sample that comes with the suite."""

    def sample(self, tmp_path: Path) -> tuple[Path, Sequence[Row]]:
        return write_sample(self.format.name, tmp_path), SAMPLE_ROWS


class TestPlainText(BuiltIn):
    format = bar_formats.PlainText


class TestDukascopy(BuiltIn):
    format = bar_formats.Dukascopy


class TestHistData(BuiltIn):
    format = bar_formats.HistData


class TestHistDataForMetaTrader(BuiltIn):
    format = bar_formats.HistDataForMetaTrader


class TestMetaTrader4(BuiltIn):
    format = bar_formats.MetaTrader4
    bars_timezone: ClassVar[str | None] = "America/New_York+7"


class TestMetaTrader5(BuiltIn):
    format = bar_formats.MetaTrader5
    bars_timezone: ClassVar[str | None] = "America/New_York+7"


class TestMetaTraderPython(BuiltIn):
    format = bar_formats.MetaTraderPython


class TestParquet(BuiltIn):
    format = bar_formats.Parquet

    def edit(self, file: Path, num_rows: int, change: Change) -> list[str]:
        table = pl.read_parquet(file)
        rows = change([list(row) for row in table.rows()])
        pl.DataFrame(rows, schema=table.schema, orient="row").write_parquet(file)
        return [f"{file.name}, row {number}" for number in range(1, len(rows) + 1)]

    def tear(self, file: Path, num_rows: int) -> str:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        return file.name


@pytest.fixture
def _registry_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test defines is unknown after it."""
    monkeypatch.setattr(BarFormat, "known", dict(BarFormat.known))


def test_every_format_stands_under_the_suite() -> None:
    assert {suite.format.name for suite in BuiltIn.__subclasses__()} == set(NAMES) == set(BUILT_IN)


WITHOUT_NAME = {"__doc__": "A program.", "first_cell": ".*"}
ILL_FORMED = {
    "no name": (TextFormat, WITHOUT_NAME, "needs a `name`"),
    "no docstring": (TextFormat, {"name": "mine"}, "docstring"),
    "no sentence": (TextFormat, {"name": "mine", "__doc__": "a program"}, "docstring"),
    "a name that is taken": (TextFormat, {**WITHOUT_NAME, "name": "plain"}, "two bar formats are called plain"),
    "no methods": (BarFormat, {**WITHOUT_NAME, "name": "mine"}, "lacks recognises and read"),
    "no reading": (BarFormat, {**WITHOUT_NAME, "name": "mine", "recognises": lambda *_: True}, "lacks read$"),
}


@pytest.mark.parametrize(("base", "attributes", "says"), ILL_FORMED.values(), ids=list(ILL_FORMED))
@pytest.mark.usefixtures("_registry_as_before")
def test_an_ill_formed_format_cannot_be_defined(base: type, attributes: dict[str, object], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        type(base)("Mine", (base,), dict(attributes))
    assert sorted(BarFormat.known) == NAMES


@pytest.mark.usefixtures("_registry_as_before")
def test_a_format_goes_before_the_general_ones_and_two_are_an_error(tmp_path: Path) -> None:
    file = write_sample("plain", tmp_path)

    class Mine(TextFormat):
        """My own program."""

        name = "mine"
        first_cell = "timestamp"

    assert type(format_of(BarFile.of(file))) is Mine

    class Another(TextFormat):
        """Another program."""

        name = "another"
        first_cell = "time.*"

    with pytest.raises(DataValidationError, match=r"EURUSD_1h\.csv: is recognised by several formats: another, mine;"):
        format_of(BarFile.of(file))


def test_an_unknown_layout_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "EURUSD_1h.csv"
    file.write_text("1,2,3\n")
    known = ", ".join(name for name in NAMES if name != "parquet")
    with pytest.raises(DataValidationError, match=rf"EURUSD_1h\.csv: has no header .* one of {known}$"):
        bar_formats.read_bars(file)
    with pytest.raises(DataValidationError, match="no known layout"):
        format_of(BarFile.of(file.rename(tmp_path / "EURUSD_1h.csv.bz2")))
    with pytest.raises(DataValidationError, match="cannot be read as bars"):
        bar_formats.read_bars((tmp_path / "EURUSD_1h.csv.bz2").rename(tmp_path / "EURUSD_1h.csv.gz"))


@pytest.mark.parametrize("method", ["recognises", "read"])
@pytest.mark.usefixtures("_registry_as_before")
def test_a_format_that_fails_over_a_file_is_named_and_stops_no_other_file(tmp_path: Path, method: str) -> None:
    class Fragile(TextFormat):
        """A program of another package."""

        name = "fragile"
        first_cell = "opens"

        def recognises(self, file: BarFile) -> bool:
            if method == "recognises":
                assert file.cells[0] != "opens", "no such cell"
            return super().recognises(file)

        def read(self, file: BarFile, *, max_rows: int | None) -> RawBars:
            raise ZeroDivisionError("no such cell")

    good = write_sample("plain", tmp_path)
    (tmp_path / "GBPUSD_1h.csv").write_text("opens,open,high,low,close\n1,1,1,1,1\n")
    folder = FolderBars(tmp_path)
    assert len(folder.bars("EUR/USD", "1h")) == len(SAMPLE_ROWS)
    assert folder.own_columns() == []
    says = rf"GBPUSD_1h\.csv: the bar format fragile \({__name__}\) fails over it, .*Error: no such cell"
    with pytest.raises(DataValidationError, match=says):
        folder.bars("GBP/USD", "1h")
    assert good.exists()


PLUG_IN = '''
from ml_workbench_service.integrations.feature_store.bar_columns import Conventions
from ml_workbench_service.integrations.feature_store.bar_formats import TextFormat
class Ticks(TextFormat):
    """A program of another package."""
    name = "ticks"
    suffixes = (".ticks",)
    first_cell = "opens"
    conventions = Conventions(zone="UTC-5", price_side="ask")
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _registry_as_before: None) -> Iterator[Install]:
    """`install(source, points_to)` makes a package with an entry point `ticks`, found at the next question."""
    site = tmp_path / "site"
    bar_formats.plugins.faults()  # what is really installed comes first
    monkeypatch.syspath_prepend(str(site))

    def make(source: str, points_to: str) -> None:
        about = site / "acme_ticks-1.0.dist-info"
        about.mkdir(parents=True)
        (site / "acme_ticks.py").write_text(source)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-ticks\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{bar_formats.plugins.group}]\nticks = {points_to}\n")
        importlib.invalidate_caches()
        bar_formats.plugins.load(entry_points(group=bar_formats.plugins.group, name="ticks"))

    yield make
    sys.modules.pop("acme_ticks", None)


@pytest.mark.parametrize("points_to", ["acme_ticks", "acme_ticks:Ticks"])
def test_a_format_of_another_package_is_read_under_its_own_suffix(
    tmp_path: Path, install: Install, points_to: str
) -> None:
    install(PLUG_IN, points_to)
    (tmp_path / "EURUSD_1h.ticks").write_text("opens,timestamp,open,high,low,close\n1,2023-07-03 05:00,1,2,1,2\n")
    bars = FolderBars(tmp_path).bars("EUR/USD", "1h")
    assert bars.opened_ms.tolist() == [SAMPLE_ROWS[0][0]]
    assert bars.price_side == "ask"


BROKEN = {
    "raises at its import": ("raise OSError('libticks.so is missing')", "acme_ticks", "libticks.so is missing"),
    "defines one and then raises": (PLUG_IN + "\n1 / 0", "acme_ticks", "ZeroDivisionError"),
    "names what is missing": (PLUG_IN, "acme_ticks:Tics", "has no attribute 'Tics'"),
    "defines none": ("", "acme_ticks", "is not, and does not define, the bar format"),
    "takes a name that is taken": (PLUG_IN.replace('"ticks"', '"plain"'), "acme_ticks", "two bar formats are called"),
}


@pytest.mark.parametrize(("source", "points_to", "reason"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_format_of_another_package_is_left_out_loudly(
    install: Install, caplog: pytest.LogCaptureFixture, source: str, points_to: str, reason: str
) -> None:
    install(source, points_to)
    assert [kind.name for kind in bar_formats.known_formats()] == NAMES
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage() == "bar format ticks of package acme-ticks==1.0 is left out"
    assert reason in caplog.text


@pytest.mark.usefixtures("_registry_as_before")
def test_the_suite_finds_what_is_wrong_with_a_format(tmp_path: Path) -> None:
    class Wrong(bar_formats.HistData):
        """A program whose clock is misread, and which takes files of others."""

        name = "wrong"
        first_cell = r"\d{8} \d{6}|Gmt time"
        conventions = Conventions(zone="UTC-4")

    class Suite(BarFormatConformance):
        format = Wrong

        def sample(self, tmp_path: Path) -> tuple[Path, Sequence[Row]]:
            return write_sample("histdata", tmp_path), SAMPLE_ROWS

    with pytest.raises(DataValidationError, match="histdata, wrong"):
        Suite().test_it_alone_recognises_its_files(tmp_path)
    del BarFormat.known["histdata"]
    Suite().test_prices_are_read_to_the_digit(tmp_path)
    with pytest.raises(AssertionError):
        Suite().test_bars_open_at_their_moment_in_utc(tmp_path)
    with pytest.raises(DataValidationError, match="dukascopy, wrong"):
        Suite().test_every_built_in_format_keeps_its_own_files(tmp_path, "dukascopy")
