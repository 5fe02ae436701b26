"""Train: the form of a training, what is estimated once it is sent, and the bars with their reading reports."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import button, card, facts, heading, link, note
from ml_workbench_client.page.components.dialogs import attempted
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.proof import reading
from ml_workbench_client.page.components.request_form import RequestForm, offered
from ml_workbench_client.page.components.table import Cell, table
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.reading_reports import SeriesList


@view("/train", "Train")
def train(visit: Visit) -> None:
    """The form, and below it the bars with their reading reports."""
    Part(lambda: offered(visit), lambda found: TrainingForm(visit, found))


class TrainingForm(RequestForm):
    """The form and what it sends."""

    def _below(self) -> None:
        with card():
            button("Start the training", on_click=self._start, kind="main")
            self._outcome = ui.element("div").classes("part").props("aria-live=polite")
        _catalogue(self._offer.series)

    async def _start(self) -> None:
        async def send() -> Any:
            return await self._visit.bench.train(**self.request)

        job = await attempted(send)
        if job is None:
            return
        self._outcome.clear()
        with self._outcome:
            heading(f"{job.accepted.get('model_id')} {job.accepted.get('version')} is on its way", 3)
            estimate = job.accepted.get("estimate") or {}
            facts(
                {
                    "about": words.duration(estimate.get("duration_s")),
                    "memory": f"{words.number(estimate.get('memory_gb'))} GB",
                    "windows": estimate.get("num_windows"),
                    "power": words.percent(estimate.get("power"), 0),
                }
            )
            power = estimate.get("power")
            if power is not None and power < 0.8:
                note(
                    "Under a power of 80 % the verdict may be that there are too few data; a longer range or shorter "
                    "horizons raise it."
                )
            link("Watch it, or cancel it", words.path("jobs", job.id))


def _catalogue(found: SeriesList) -> None:
    with card("Bars that there are", aside="how each was read", anchor="catalogue"):
        if not found.series:
            note("There are no bars. Put files into the folder that FEATURE_STORE_URL names.")
            return
        table(
            {
                "symbol": "Symbol", "timeframe": "Bars", "source": "Source", "origin": "File", "rows": "Rows",
                "first": "From", "last": "To", "clock": "Clock", "doubts": "Doubts",
            },
            [
                {
                    "symbol": each.symbol, "timeframe": each.timeframe, "source": words.readable(each.source),
                    "origin": each.origin, "rows": Cell(each.num_rows, f"{each.num_rows:,}"),
                    "first": words.day(each.first), "last": words.day(each.last), "clock": each.time_zone,
                    "doubts": Cell(len(each.warnings), str(len(each.warnings)), tone="warn" if each.warnings else None),
                }
                for each in found.series
            ],
            label="Series of bars",
            numeric=("rows",),
            page_rows=10,
        )  # fmt: skip
        with ui.expansion("Reading reports").classes("full"):
            for each in found.series[:50]:
                reading(each)
        if found.ignored:
            heading("Files that give no bars", 3)
            for ignored in found.ignored:
                note(f"{ignored.origin}: {ignored.reason}")
