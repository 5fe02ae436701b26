"""Reading report: how one file of bars was read, decision by decision, and what about it is doubtful.

A report is made once a file, kept with the bars, served by `GET /series`, and stands on the card of every model that
was trained on them. What was decided on evidence is a note; what stays open is a warning, and makes the file doubtful.
"""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Symbol, Timeframe, UtcDatetime

PriceSide = Literal["bid", "ask", "mid"]
SpreadTime = Literal["open", "close", "average", "minimum", "unknown"]
"""When in the bar its spread was taken: only a close-time one turns the close of one side into a mid."""
TimeZoneSource = Literal["file", "setting", "inferred", "none"]
"""Who said the zone: the file itself, `BARS_TIMEZONE`, the week's close, or nobody (dates alone)."""


class ReadingReport(Contract):
    """One file's reading report."""

    file: str = Field(description="The file's name, never its folder.")
    symbol: Symbol
    timeframe: Timeframe
    num_rows: int = Field(description="Bars that are used.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Rows and bars left out, by reason.")
    time_zone: str | None = None
    time_zone_from: TimeZoneSource = "none"
    price_side: PriceSide = "mid"
    price_unit: str = Field(default="", description="What a price of one means, such as USD for one EUR.")
    spread_unit: str | None = Field(default=None, description="As the file writes it; null without a spread.")
    spread_time: SpreadTime = "unknown"
    first: UtcDatetime | None = Field(default=None, description="Opening of the first bar.")
    last: UtcDatetime | None = Field(default=None, description="Opening of the last bar.")
    columns: tuple[str, ...] = Field(default=(), description="The bars' own columns, spread and volume among them.")
    notes: tuple[str, ...] = Field(default=(), description="What was decided, in words.")
    warnings: tuple[str, ...] = Field(default=(), description="What is doubtful, in words.")

    @property
    def is_doubtful(self) -> bool:
        """Whether anything about it stays open."""
        return bool(self.warnings)


class Series(Contract):
    """One file, or one series of another source, as `GET /series` shows it."""

    symbol: Symbol
    timeframe: Timeframe
    source: str = Field(description="As `data_source` elsewhere.")
    origin: str = Field(description="The file's name, never its folder.")
    first: UtcDatetime | None
    last: UtcDatetime | None
    num_rows: int
    dropped: dict[str, int]
    time_zone: str | None
    time_zone_from: TimeZoneSource
    price_side: PriceSide
    price_unit: str
    spread_unit: str | None
    spread_time: SpreadTime = "unknown"
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, report: ReadingReport, *, source: str) -> "Series":
        """From the file's reading report."""
        fields = report.model_dump()
        return cls(source=source, origin=fields.pop("file"), **fields)


class IgnoredFile(Contract):
    """A file that gives no bars, and why."""

    origin: str
    reason: str


class SeriesList(Contract):
    """`GET /series`: what is read, and what is not, each with its reason."""

    series: tuple[Series, ...] = ()
    ignored: tuple[IgnoredFile, ...] = ()
    next_cursor: str | None = None
