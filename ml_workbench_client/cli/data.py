"""`data`, `features`, `labels`: what the service reads, and what a training would see."""

from typing import Annotated, Any

import typer

from common_lib.command_line import CommandLine, UsageMistake
from common_lib.screen import shown
from ml_workbench_client.cli import opening, tables

data = typer.Typer(no_args_is_help=True)
app = typer.Typer()
PANEL = "Data"
app.add_typer(data, name="data", help="Bars: what there is, and how it was read.", rich_help_panel=PANEL)
Start = Annotated[str | None, typer.Option(help="First bar, 2025-01-06T00:00:00Z.")]
End = Annotated[str | None, typer.Option(help="Bars before this.")]
AsOf = Annotated[str | None, typer.Option(help="As it was known at this moment; default: now.")]


@data.command("list")
def list_(line: CommandLine) -> None:
    """List the series that the service has, how each file was read, and which files are not."""
    with opening.workbench(line) as bench, line.screen.waiting("the service reads its files"):
        found = bench.data
    line.screen.rows(
        "series",
        found.series,
        {
            "symbol": "symbol",
            "timeframe": "timeframe",
            "rows": "num_rows",
            "first": "first",
            "last": "last",
            "from": "origin",
            "zone": "time_zone",
            "warnings": "warnings",
        },
        nothing="no bars; set FEATURE_STORE_URL to a folder of them",
        ignored=found.ignored,
    )
    if not line.as_json:
        for each in found.ignored:
            line.screen.note(f"not read: {each.origin}: {each.reason}")


@app.command("features", rich_help_panel=PANEL)
def features(
    line: CommandLine,
    symbols: Annotated[list[str] | None, typer.Argument(metavar="[SYMBOL …]", help="Default: list the names.")] = None,
    features: Annotated[list[str] | None, typer.Option(help="Such as rsi_14,sma_20; default: the bars.")] = None,
    timeframe: Annotated[str, typer.Option(help="Such as 1h.")] = "1h",
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    output: tables.Output = None,
) -> None:
    """List the features there are; with symbols, get their values point in time."""
    tables.check_suffix(output)
    if not symbols:
        if features or output:
            raise UsageMistake("name a symbol, such as `ml-workbench features EUR/USD --features rsi_14`")
        _list_names(line)
        return
    when: dict[str, Any] = opening.given(start_date=start, end_date=end, as_of=as_of)
    wanted = opening.listed(features) or None
    asked = opening.listed(symbols)
    with opening.workbench(line) as bench, line.screen.waiting("the service makes the features"):
        table = bench.features(asked[0] if len(asked) == 1 else asked, wanted, timeframe=timeframe, **when)
    tables.put_out(line, table, output)


@app.command("labels", rich_help_panel=PANEL)
def labels(
    line: CommandLine,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Such as price_change_1h.")],
    timeframe: Annotated[str | None, typer.Option(help="Default: the target's own unit.")] = None,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    k: Annotated[float | None, typer.Option(help="Barriers of triple_barrier, in volatilities.")] = None,
) -> None:
    """Show the labels that a training over this range would see, and when each is known."""
    when: dict[str, Any] = opening.given(start_date=start, end_date=end, as_of=as_of)
    with opening.workbench(line) as bench:
        found = bench.labels(symbol, target, timeframe=timeframe, k=k, **when)
    if line.as_json:
        line.screen.document(found)
        return
    rows = [list(row) for row in zip(found.timestamps, found.labels, found.available_at, strict=True)]
    line.screen.table(["timestamp", found.target, "known at"], rows)
    dropped = {reason: num for reason, num in found.num_dropped.items() if num}
    if dropped:
        line.screen.note(f"without a label: {shown(dropped)}")


def _list_names(line: CommandLine) -> None:
    with opening.workbench(line) as bench:
        found = bench.feature_names
    columns = {"name": "name", "example": "example", "kind": "kind", "description": "description"}
    line.screen.rows("features", found, columns)
