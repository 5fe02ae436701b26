"""Figures of a version, drawn: a figure as JSON, the report as a page, both in pieces; or all of them as files.

The table process draws for the service, the tracker for MLflow: rows are read here, and never in the service itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from common_lib.exceptions import SeriesNotFoundError
from ml_workbench_figures import FigureInputs, draw
from ml_workbench_figures.inputs import Columns
from ml_workbench_figures.report import drawn_figures, report
from ml_workbench_service.contracts.desk_report import DESK_FILE, DeskReport
from ml_workbench_service.contracts.figures import FigureTask, SentFigureTask
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE

REPORT_FILE = "report.html"
NOT_IN_CURVES = {"at"}
"""When a step was reported; a learning curve is drawn by epoch."""


def drawn(task: FigureTask | SentFigureTask) -> Iterator[bytes]:
    """What is asked for: a figure as Plotly's JSON, or the report's HTML."""
    if isinstance(task, SentFigureTask):
        sent = FigureInputs(
            trials=task.trials, importance=task.importance, decisions=task.decisions, q_table=task.q_table
        )
        yield orjson.dumps(draw(task.name, sent, theme=task.theme))
        return
    path = None if task.rows_path is None else Path(task.rows_path)
    given = FigureInputs(
        card=task.card, rows=read_rows(path), curves=task.curves, importance=task.importance,
        measured_importance=task.measured_importance,
    )  # fmt: skip
    if task.name is None:
        given = replace(given, desk=read_desk(task.card, path))
        for piece in report(given, theme=task.theme):
            yield piece.encode()
        return
    yield orjson.dumps(draw(task.name, given, theme=task.theme or "light"))


def write_figures(
    folder: Path, card: ModelCard, bundle: Path, *, curves: Columns, importance: Mapping[str, float]
) -> None:
    """The report, the desk report's numbers, and each figure that says something of the version as `<name>.json`."""
    path = bundle / EVALUATION_FILE
    desk = read_desk(card, path)
    given = FigureInputs(card=card, rows=read_rows(path), curves=curves, importance=importance, desk=desk)
    if desk is not None:
        (folder / DESK_FILE).write_text(desk.model_dump_json(indent=1) + "\n", encoding="utf-8")
    with (folder / REPORT_FILE).open("w", encoding="utf-8") as file:
        file.writelines(report(given))
    figures, _ = drawn_figures(given)
    for name, figure in figures.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(figure))


def read_desk(card: ModelCard, path: Path | None) -> DeskReport | None:
    """What a desk asks of the test part; None of a version that keeps no rows of it."""
    if path is None or not path.is_file():
        return None
    from ml_workbench_service.evaluation.desk.report import desk_report  # with what reads tables

    try:
        return desk_report(card, path)
    except SeriesNotFoundError:
        return None


def read_rows(path: Path | None) -> Columns:
    """`evaluation.parquet` by column, times in milliseconds; nothing where the version keeps none."""
    if path is None or not path.is_file():
        return {}
    import pyarrow as pa  # neither the service nor a worker's beginning needs it
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {
        name: (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for name, column in zip(table.schema.names, table.columns, strict=True)
    }


def by_column(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A training's steps as figures read them."""
    known = list(rows)
    names = dict.fromkeys(name for each in known for name in each if name not in NOT_IN_CURVES)
    return {name: [each.get(name) for each in known] for name in names}
