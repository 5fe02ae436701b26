"""Figures of a version: each one card, drawn once it is looked at; those that say nothing of it are named with why."""

import asyncio
from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import card, note
from ml_workbench_client.page.components.figure import DrawnFigure, show_figure, untitled
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.shell import Visit
from ml_workbench_service.contracts.models import ModelCard

IN_THE_SUMMARY = ("Verdict ", "After costs ")
AT_ONCE = 3
"""Figures asked for at a time: one process draws them all."""


def figures(visit: Visit, found: ModelCard) -> None:
    """All figures of a version that apply, and what the others lack."""
    turn = asyncio.Semaphore(AT_ONCE)
    Part(
        lambda: visit.bench.model(found.id, found.version).figures(),
        lambda listed: _all(visit, found, listed.get("figures", ()), turn),
        empty="This version has no figures.",
    )


def _all(visit: Visit, found: ModelCard, listed: list[dict[str, Any]], turn: asyncio.Semaphore) -> None:
    with ui.element("div").classes("cards wide"):
        for each in listed:
            if each["applies"]:
                _one(visit, found, each, turn)
    missing = [each for each in listed if not each["applies"]]
    if missing:
        with card("Not drawn"):
            for each in missing:
                note(f"{each['title']}: {each['why_not']}.")


def _one(visit: Visit, found: ModelCard, listed: dict[str, Any], turn: asyncio.Semaphore) -> None:
    async def fetch() -> DrawnFigure:
        """As text, which is kept while the page is open: with lists of numbers 26 views came to rest 11 MiB higher."""
        async with turn:
            return DrawnFigure.of(untitled(await visit.bench.model(found.id, found.version).figure(listed["name"])))

    with card(words.readable(listed["title"]), anchor=listed["name"]):
        note(f"{listed['about']}.")
        Part(fetch, lambda figure: show_figure(figure, but=IN_THE_SUMMARY))
