"""`predict`: from columns of a file, or from those that the service fetches."""

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandFailed, CommandLine, UsageMistake
from common_lib.exceptions import PlatformError
from common_lib.screen import shown
from ml_workbench_client.cli import opening, request_files

if TYPE_CHECKING:
    from ml_workbench_service.contracts.explanations import Explanation
    from ml_workbench_service.contracts.prediction import PredictionRecord

app = typer.Typer()


@app.command("predict", rich_help_panel="Models")
def predict(
    line: CommandLine,
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]")],
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Columns (.csv, .parquet, oldest first), or a predict body (.json, -)."),
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="Where the model knows several.")] = None,
    timeframe: Annotated[str | None, typer.Option(help="Default: the model's.")] = None,
    as_of: Annotated[str | None, typer.Option(help="A moment in the past, 2025-02-12T15:00:00Z.")] = None,
    price: Annotated[float | None, typer.Option(help="What is traded at now.")] = None,
    position: Annotated[float | None, typer.Option(help="What is held, -1 to 1.")] = None,
    enqueue: Annotated[str | None, typer.Option(help="best_effort, guaranteed, or never: leave no trace.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also say what each feature added: of lightgbm.")] = False,
) -> None:
    """Ask a model for a prediction; without a file the service fetches the features.

    Of a file's columns those are sent that the model reads, and as many of the last rows as it looks back on. A JSON
    file holds a body of the API, or a list of them.
    """
    asked: dict[str, Any] = opening.given(
        symbol=symbol, timeframe=timeframe, as_of=as_of, price=price, position=position
    )
    sending: dict[str, Any] = opening.given(enqueue=enqueue)
    answers: list[PredictionRecord | PlatformError]
    with opening.workbench(line) as bench:
        chosen = opening.model_of(bench, model)
        if file is not None and (file == "-" or file.lower().endswith(".json")):
            bodies = _bodies(file)
            items = [{**each, **asked} for each in bodies]
            answers = [*(chosen.explain_batch if explain else chosen.predict_batch)(items, **sending)]
        else:
            columns = None if file is None else _columns(file, chosen.card)
            answers = [(chosen.explain if explain else chosen.predict)(columns, **sending, **asked)]
            bodies = [{}]
    _answer(line, answers, is_batch=isinstance(bodies, tuple))


def _bodies(file: str) -> list[dict[str, Any]] | tuple[dict[str, Any], ...]:
    """The predict bodies of a file: one as a list, several as a tuple."""
    try:
        found = json.loads(request_files.read_text(file))
    except ValueError as error:
        raise UsageMistake(f"{file} is no JSON ({error}); it takes a predict body, or a list of them") from error
    items = found.get("items") if isinstance(found, dict) and "items" in found else found
    if isinstance(items, dict):
        return [items]
    if isinstance(items, list) and items and all(isinstance(each, dict) for each in items):
        return tuple(items)
    raise UsageMistake(f"{file} holds no predict body; see `predict` in docs/api.md")


def _columns(file: str, card: Any) -> dict[str, list[float]]:
    """The columns that the model reads, their last rows."""
    found = _parquet(file) if file.lower().endswith((".parquet", ".pq")) else _csv(file)
    missing = [name for name in card.features if name not in found]
    if missing and card.base_columns and all(name in found for name in card.base_columns):
        num_rows = card.lookback + card.history
        return {name: _numbers(found[name][-num_rows:], file, name) for name in card.base_columns}
    if missing:
        raise UsageMistake(
            f"{file} has no column {', '.join(missing)}; {card.id} reads {', '.join(card.features)} "
            "(`ml-workbench features SYMBOL` gives them)"
        )
    return {name: _numbers(found[name][-card.lookback :], file, name) for name in card.features}


def _csv(file: str) -> dict[str, list[Any]]:
    text = request_files.read_text(file)
    try:
        dialect = csv.Sniffer().sniff(text[:4096], delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    rows = [row for row in csv.reader(io.StringIO(text), dialect) if row]
    if len(rows) < 2:
        raise UsageMistake(f"{file} has no rows below its header; it takes one column a feature, oldest first")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UsageMistake(f"{file}, row {number}: it has {len(row)} cells, and the header {len(header)}")
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(header)}


def _parquet(file: str) -> dict[str, list[Any]]:
    import polars

    if not Path(file).is_file():
        raise UsageMistake(f"{file} cannot be read (no such file); check the path")
    try:
        frame = polars.read_parquet(file)
    except polars.exceptions.PolarsError as error:
        raise UsageMistake(f"{file} is no Parquet ({error}); write it again, or as CSV") from error
    return {name: frame[name].to_list() for name in frame.columns}


def _numbers(cells: list[Any], file: str, name: str) -> list[float]:
    numbers = []
    for place, cell in enumerate(cells):
        try:
            number = float(cell)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UsageMistake(
                f"{file}, column {name}, row {place + 1} of the last {len(cells)}: {shown(cell) or 'an empty cell'} is "
                "no number; write every value out, with a decimal point"
            )
        numbers.append(number)
    return numbers


def _answer(line: CommandLine, answers: "list[PredictionRecord | PlatformError]", *, is_batch: bool) -> None:
    failed = [each for each in answers if isinstance(each, PlatformError)]
    if not is_batch:
        if failed:
            raise failed[0]
        record: Any = answers[0]
        line.screen.thing(
            record, f"{record.model_id} {record.version} {record.symbol} {_forecast(record)}", _facts(record)
        )
        _explain(line, getattr(record, "explanation", None))
        return
    line.screen.rows(
        "predictions",
        [
            each.body(each.correlation_id) if isinstance(each, PlatformError) else each.model_dump(mode="json")
            for each in answers
        ],
        {
            "symbol": lambda each: each.get("symbol", ""),
            "as of": lambda each: each.get("as_of", ""),
            "prediction": lambda each: each.get("prediction", ""),
            "direction": lambda each: each.get("direction", ""),
            "confidence": lambda each: each.get("confidence", ""),
            "said": lambda each: each.get("message") or ", ".join(each.get("abstain_reasons", ())),
        },
    )  # fmt: skip
    if failed:
        raise CommandFailed(f"{len(failed)} of {len(answers)} items failed; each says why")


def _explain(line: CommandLine, explanation: "Explanation | None") -> None:
    """A table an output: base, what each feature added, and what they come to; JSON has said it."""
    if explanation is None or line.screen.as_json:
        return
    for each in explanation.outputs:
        told = {"(base)": each.base, **each.contributions, "(together)": each.raw}
        line.screen.facts(f"What each feature added to {each.output}, unit: {explanation.unit}", {})
        line.screen.table(("feature", "adds"), [(name, f"{value:+.6g}") for name, value in told.items()])


def _forecast(record: "PredictionRecord") -> str:
    if record.status == "abstain":
        return f"abstains: {', '.join(record.abstain_reasons)}"
    return f"{record.direction} {shown(record.label or record.prediction)}"


def _facts(record: "PredictionRecord") -> dict[str, Any]:
    interval, novelty = record.interval, record.novelty
    return {
        "target": record.target,
        "as of": record.as_of,
        "valid until": record.valid_until,
        "confidence": record.confidence,
        "interval": interval and f"{interval.lower:.6g} to {interval.upper:.6g} ({interval.level:.0%})",
        "novelty": novelty and f"{novelty.score:.3g} of {novelty.threshold:.3g}",
        "price": record.price,
        "role": record.role,
        "sample": record.sample,
        "warnings": record.warnings,
        "prediction id": record.prediction_id,
    }
