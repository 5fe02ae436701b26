"""Models: every model on one line with its verdict; filtered, sorted, several chosen to be compared."""

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import button, card, row
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.set_aside import set_aside
from ml_workbench_client.page.components.table import Cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.models import ModelSummary

COLUMNS = {
    "name": "Model", "version": "Version", "verdict": "Verdict", "status": "Status", "type": "Type",
    "symbols": "Symbols", "timeframe": "Bars", "target": "Target", "source": "Data", "created": "Trained",
}  # fmt: skip
MOST_COMPARED = 6


@view("/models", "Models")
def models(visit: Visit, verdict: str = "") -> None:
    """All of them; the archived ones when asked for."""
    Part(lambda: visit.bench.set_aside, set_aside)
    with card():
        with row("top-line"):
            words_sought = ui.input("Filter").props("outlined dense clearable").classes("grow")
            archived = ui.switch("Show archived")
            compare = button("Compare", kind="main")
        chosen: list[str] = []

        async def fetch() -> list[ModelSummary]:
            found = list(await visit.bench.models().all())
            if archived.value:
                found += await visit.bench.models(status="archived").all()
            return list({each.id: each for each in found if verdict in ("", each.verdict)}.values())

        def draw(found: list[ModelSummary]) -> None:
            listed = table(
                COLUMNS,
                [_row(each) for each in found],
                label="Models",
                key="id",
                select=True,
            )
            listed.bind_filter_from(words_sought, "value", backward=lambda value: value or "")

            def select() -> None:
                chosen[:] = [each["_key"] for each in listed.selected][:MOST_COMPARED]
                compare.text = f"Compare {len(chosen)}" if chosen else "Compare"
                compare.set_enabled(len(chosen) > 1)

            listed.on_select(lambda _: select())

        found = Part(
            fetch, draw, empty="No model yet. Train the first one (menu, Train)." if not verdict else "None like that."
        )
        archived.on_value_change(found.refresh)
        compare.set_enabled(False)
        compare.on_click(lambda: ui.navigate.to(words.path("compare", versions=",".join(chosen))))


def _row(each: ModelSummary) -> dict[str, Cell | str | None]:
    return {
        "id": f"{each.id}@{each.version}",
        "name": Cell(each.name, href=words.path("models", each.id)),
        "version": each.version,
        "verdict": status_cell(each.verdict),
        "status": status_cell(each.status),
        "type": f"{words.readable(each.type)}, {words.readable(each.family)}",
        "symbols": ", ".join(each.symbols),
        "timeframe": each.timeframe,
        "target": each.target or words.NOTHING,
        "source": words.readable(each.data_source),
        "created": time_cell(each.created_at),
    }
