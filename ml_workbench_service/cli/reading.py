"""`data check`: every file of a folder, read by the service's own feature store, decision by decision."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common_lib.command_line import CommandFailed, CommandLine, UsageMistake
from common_lib.exceptions import DataValidationError

if TYPE_CHECKING:
    from ml_workbench_service.contracts.reading_reports import Series, SeriesList


def check_folder(line: CommandLine, folder: Path, *, bars_timezone: str | None, strict: bool) -> None:
    """Says of each file how it is read, or why not.

    Raises:
        CommandFailed: a file gives no bars; `strict`: or leaves something open.
        UsageMistake: it is no folder.
    """
    if folder.is_file():
        raise UsageMistake(
            f"{folder} is one file; name its folder ({folder.parent}), for clocks are proven by all files of a program "
            "together"
        )
    if not folder.is_dir():
        raise UsageMistake(f"{folder} is no folder; name the one that holds your bars")
    found = _read(line, folder, bars_timezone)
    refused = [each for each in found.ignored if not each.origin.startswith(".")]
    doubtful = [each for each in found.series if each.warnings]
    if line.as_json:
        line.screen.document(found)
    else:
        _show(line, found)
    if refused or not found.series:
        num = len(refused) + len(found.series)
        told = f"{len(refused)} of {num} files give no bars; each says why"
        raise CommandFailed(told if num else f"there is no file in {folder}; put your bars there")
    if strict and doubtful:
        raise CommandFailed(f"{len(doubtful)} of {len(found.series)} files leave something open; each says what")


def _read(line: CommandLine, folder: Path, bars_timezone: str | None) -> "SeriesList":
    from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars

    try:
        bars = FolderBars(folder, bars_timezone=bars_timezone)
    except DataValidationError as error:
        raise UsageMistake(f"BARS_TIMEZONE, or --bars-timezone: {error.message}") from error
    with line.screen.bar(f"reading {folder.name}") as bar:
        return bars.series(lambda done, total, name: bar.step(done, total, name))


def _show(line: CommandLine, found: "SeriesList") -> None:
    for each in found.series:
        line.screen.facts(f"{each.origin}: {'read' if not each.warnings else 'read, with doubts'}", _facts(each))
    for ignored in found.ignored:
        line.screen.facts(f"{ignored.origin}: not read", {"reason": ignored.reason})


def _facts(series: "Series") -> dict[str, Any]:
    return {
        "series": f"{series.symbol} {series.timeframe}",
        "bars": f"{series.num_rows:,}",
        "from": series.first,
        "to": series.last,
        "clock": None if series.time_zone is None else f"{series.time_zone} ({_zone_source(series.time_zone_from)})",
        "prices": ", ".join(each for each in (series.price_side, series.price_unit) if each),
        "spread": series.spread_unit and f"{series.spread_unit}, at the bar's {series.spread_time}",
        "columns": series.columns,
        "left out": series.dropped,
        "decided": "\n".join(series.notes),
        "doubtful": "\n".join(series.warnings),
    }


def _zone_source(source: str) -> str:
    return {
        "file": "the file says so",
        "setting": "as BARS_TIMEZONE says",
        "inferred": "proven by the weeks of the files",
        "none": "dates alone",
    }[source]
