"""Tables of the service on their way out: to a file by its suffix, to a terminal in short, to a pipe as CSV."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandLine, UsageMistake

if TYPE_CHECKING:
    from ml_workbench_client.frames import Table

SUFFIXES = (".csv", ".parquet", ".arrow", ".json")
SHOWN_ROWS = 20
UTC = "%Y-%m-%dT%H:%M:%SZ"
"""Moments as the service writes them; all of its tables are in UTC."""
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help=f"Write all rows to this file ({', '.join(SUFFIXES)}).", show_default=False),
]


def put_out(
    line: CommandLine,
    table: "Table",
    output: str | None,
    *,
    columns: tuple[str, ...] = (),
    most: tuple[str, ...] = (),
) -> None:
    """All rows to the file; else the newest to a terminal, all as CSV to a pipe, all as JSON for scripts.

    Args:
        columns: what a terminal gets of them; default: all.
        most: a terminal gets the rows with the most of these columns, first; default: the last rows.
    """
    if output is not None:
        num_rows = write(table, output)
        line.screen.note(f"{num_rows:,} rows are in {output}")
        if line.as_json:
            line.screen.document({"file": output, "num_rows": num_rows})
        return
    frame = table.to_polars()
    if line.as_json:
        line.screen.document({"rows": frame.rows(named=True)})
    elif not sys.stdout.isatty():
        line.screen.line(frame.write_csv(datetime_format=UTC).rstrip("\n"))
    else:
        shown = frame.sort(*most, descending=True).head(SHOWN_ROWS) if most else frame.tail(SHOWN_ROWS)
        shown = shown.select(columns or frame.columns)
        line.screen.table(shown.columns, [list(row) for row in shown.rows()])
        if len(frame) > SHOWN_ROWS:
            line.screen.note(f"{SHOWN_ROWS} of {len(frame):,} rows; -o FILE writes all of them")


def check_suffix(output: str | None) -> None:
    """Refuses a file that nothing is known to write, before anything is asked for."""
    if output is not None and Path(output).suffix.lower() not in SUFFIXES:
        raise UsageMistake(f"{output} ends in none of {', '.join(SUFFIXES)}; name the file so")


def write(table: "Table", output: str) -> int:
    """Writes all rows; their number."""
    suffix = Path(output).suffix.lower()
    frame: Any = table.to_polars()
    if suffix == ".arrow":
        Path(output).write_bytes(table.stream)
    elif suffix == ".parquet":
        frame.write_parquet(output)
    elif suffix == ".json":
        frame.write_json(output)
    else:
        frame.write_csv(output, datetime_format=UTC)
    return len(frame)
