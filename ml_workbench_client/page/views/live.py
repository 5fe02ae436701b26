"""Live: predictions as they come with what came true, the queue's accounting, its delays and its dead letters."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, figure_of, grid, note
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.figure import FigureView, show_figure, untitled
from ml_workbench_client.page.components.part import Part, nothing
from ml_workbench_client.page.components.predictions import predictions_table
from ml_workbench_client.page.components.table import Cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_figures import FigureInputs, draw
from ml_workbench_figures.theme import PALETTES
from ml_workbench_service.contracts.outcomes import RecordedPrediction
from ml_workbench_service.contracts.queue import DeadLetter, GroupAccounting, LatencyHistogram, QueueAccounting

EVERY_S = 2.0
NUM_PREDICTIONS = 100
_GROUP = {
    "group": "Group", "enqueued": "Enqueued", "acked": "Acknowledged", "pending": "Pending",
    "undelivered": "Undelivered", "dropped_oldest": "Dropped", "expired": "Expired", "dead_lettered": "Dead",
    "duplicates": "Twice", "balance": "Balance",
}  # fmt: skip


@view("/live", "Live")
def live(visit: Visit) -> None:
    """Everything that moves."""
    Part(lambda: visit.bench.queue, _queue, every_s=EVERY_S)
    Part(
        lambda: visit.bench.predictions().first(NUM_PREDICTIONS),
        lambda found: _predictions(list(found)),
        every_s=EVERY_S,
    )
    with card("Dead letters", aside="entries that an agent gave up", anchor="dead"):
        dead = Part(
            lambda: visit.bench.dead_letters().first(NUM_PREDICTIONS),
            lambda found: _dead_letters(visit, list(found), again),
            empty="No entry was given up.",
            every_s=EVERY_S * 2,
        )

    async def again() -> None:
        await dead.refresh()


def _queue(found: QueueAccounting) -> None:
    with card("Queue", aside=f"policy {words.readable(found.policy)}", anchor="queue"):
        with ui.element("div").classes("headlines"):
            figure_of(f"{found.length} / {found.capacity}", "entries")
            figure_of(words.duration(found.oldest_age_s), "age of the oldest")
            figure_of(str(found.outbox), "waiting in the outbox")
            lost = found.outbox_dropped + found.refused
            figure_of(str(lost), "lost before the queue", kind="bad" if lost else "")
        if not found.groups:
            nothing("No agent reads the queue. What is predicted waits there until one does.")
            return
        table(
            _GROUP,
            [_group(each) for each in found.groups],
            label="The queue's accounting by group",
            numeric=[name for name in _GROUP if name != "group"],
        )
        note("Enqueued is the sum of acknowledged, pending, undelivered, dropped, expired and dead; balance is what is "
             "missing, and 0.")  # fmt: skip
    with grid("wide"):
        for each in found.groups:
            with card(f"Delay of {each.group}", aside="enqueued to acknowledged"):
                _delays(each.latency)


def _group(each: GroupAccounting) -> dict[str, Any]:
    return {
        **{name: getattr(each, name) for name in _GROUP},
        "balance": Cell(each.balance, str(each.balance), tone="good" if each.balance == 0 else "bad"),
    }


def _delays(found: LatencyHistogram) -> None:
    if not found.num:
        note("Nothing has been acknowledged yet.")
        return
    colours = PALETTES["light"]
    names = [f"≤ {words.duration(bound / 1000)}" for bound in found.bounds_ms] + ["longer"]
    used = [index for index, count in enumerate(found.counts) if count]
    first, last = max(used[0] - 1, 0), min(used[-1] + 2, len(names))
    axis = {"gridcolor": colours.grid, "tickfont": {"color": colours.muted, "size": 10}, "automargin": True}
    layout = {
        "title": {"text": "Delay"}, "height": 240, "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": colours.paper, "plot_bgcolor": colours.paper, "font": {"color": colours.text},
        "xaxis": {**axis, "type": "category"}, "yaxis": {**axis, "title": {"text": "entries"}}, "bargap": 0.1,
    }  # fmt: skip
    bars = {
        "type": "bar", "x": names[first:last], "y": list(found.counts[first:last]), "marker": {"color": colours.model},
    }  # fmt: skip
    FigureView(untitled({"data": [bars], "layout": layout}))
    facts({"entries": found.num, "mean": words.duration(found.sum_ms / found.num / 1000)})


def _predictions(found: list[RecordedPrediction]) -> None:
    by_model: dict[str, list[RecordedPrediction]] = {}
    for each in found:
        by_model.setdefault(each.model_id, []).append(each)
    with grid("wide"):
        for model_id, rows in by_model.items():
            if any(each.prediction is not None and each.label is None for each in rows):
                with card(f"{model_id}", aside="newest predictions and outcomes"):
                    show_figure(draw("live_outcomes", FigureInputs(predictions=columns_of(rows))))
    with card("Predictions and outcomes", aside=f"newest {NUM_PREDICTIONS}"):
        if found:
            predictions_table(found)
        else:
            note("No live prediction yet. Deploy a model, then ask it or replay a range.")


def columns_of(found: list[RecordedPrediction]) -> dict[str, list[Any]]:
    """Predictions as the figures read them, oldest first."""
    rows = sorted(found, key=lambda each: each.as_of)
    return {
        "as_of": [each.as_of for each in rows],
        "symbol": [each.symbol for each in rows],
        "prediction": [each.prediction for each in rows],
        "interval.level": [each.interval.level if each.interval else None for each in rows],
        "interval.lower": [each.interval.lower if each.interval else None for each in rows],
        "interval.upper": [each.interval.upper if each.interval else None for each in rows],
        "outcome.realised": [each.outcome.realised for each in rows],
        "direction": [each.direction for each in rows],
        "confidence": [each.confidence for each in rows],
    }


def _dead_letters(visit: Visit, found: list[DeadLetter], again: Any) -> None:
    async def requeue(letter: DeadLetter) -> None:
        await attempted(lambda: visit.bench.requeue(letter.id), "Back in the queue")
        await again()

    async def discard(letter: DeadLetter) -> None:
        if await confirmed("Throw it away?", "The entry is gone for good.", "Throw away", is_grave=True):
            await attempted(lambda: visit.bench.discard(letter.id), "Thrown away")
            await again()

    for letter in found[:20]:
        with ui.element("div").classes("entry"):
            badge("given up", "bad")
            note(f"{letter.group}, {letter.symbol or 'no symbol'}, {words.moment(letter.at)}: {letter.reason}")
            button("Put back", on_click=lambda each=letter: requeue(each), is_small=True)
            button("Throw away", on_click=lambda each=letter: discard(each), kind="quiet", is_small=True)
    if len(found) > 20:
        table(
            {"at": "When", "group": "Group", "symbol": "Symbol", "reason": "Reason"},
            [{"at": time_cell(each.at), "group": each.group, "symbol": each.symbol, "reason": each.reason}
             for each in found],
            label="Dead letters",
        )  # fmt: skip
