"""Desk report of a version on the page: a card for each of its tables, and what they cannot say."""

from ml_workbench_client.page.components.blocks import card, note
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.table import table
from ml_workbench_client.page.shell import Visit
from ml_workbench_figures.desk_tables import desk_tables
from ml_workbench_service.contracts.desk_report import DeskReport
from ml_workbench_service.contracts.models import ModelCard

PAGE_ROWS = 100


def desk(visit: Visit, found: ModelCard) -> None:
    """What a desk asks of the version's test part."""
    Part(lambda: visit.bench.model(found.id, found.version).desk_report(), _tables)


def _tables(report: DeskReport) -> None:
    with card("How to read it"):
        note(f"Test part, {report.first:%Y-%m-%d} to {report.last:%Y-%m-%d}, {report.num_rows:,} rows.")
        for sentence in report.notes:
            note(sentence)
    for each in desk_tables(report):
        columns = {str(place): head for place, head in enumerate(each.heads)}
        rows = [{str(place): cell for place, cell in enumerate(row)} for row in each.rows]
        with card(each.title, anchor=each.name):
            table(columns, rows, label=each.title, numeric=list(columns)[1:], page_rows=PAGE_ROWS)
