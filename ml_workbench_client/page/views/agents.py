"""Agents: what each holds, has earned and has learnt; start, stop, reset."""

from datetime import datetime
from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, figure_of, grid, note, row, text
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.figure import FigureView, untitled
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.table import Cell, amount_cell, share_cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_figures.theme import PALETTES
from ml_workbench_service.contracts.agents import Agent

EVERY_S = 2.0
MOST_POINTS = 2000
POSITIONS = {-1: "short", 0: "flat", 1: "long"}


@view("/agents", "Agents")
def agents(visit: Visit) -> None:
    """All of them."""
    with card():
        Part(
            lambda: visit.bench.agents().all(),
            lambda found: _list(list(found)),
            empty="No agent. AGENT_AUTOSTART starts one with the service; POST /api/v1/agents starts more.",
            every_s=EVERY_S,
        )


def _list(found: list[Agent]) -> None:
    table(
        {
            "id": "Agent", "status": "Status", "mode": "Mode", "family": "Family", "applied": "Read",
            "reward": "Cumulative reward", "exploring": "Explores", "positions": "Positions", "updated": "Updated",
        },
        [
            {
                "id": Cell(each.id, href=words.path("agents", each.id)),
                "status": status_cell(each.status),
                "mode": each.mode,
                "family": words.readable(each.family),
                "applied": amount_cell(each.num_applied),
                "reward": share_cell(each.cumulative_reward, signed=True),
                "exploring": share_cell(each.exploration_rate),
                "positions": _positions(each),
                "updated": time_cell(each.updated_at),
            }
            for each in found
        ],
        label="Agents",
        numeric=("applied", "reward", "exploring"),
    )  # fmt: skip


def _positions(found: Agent) -> str:
    return ", ".join(f"{name} {POSITIONS.get(held, held)}" for name, held in found.positions.items()) or "none"


@view("/agents/{agent_id}", "Agent", named="agent_id")
def agent(visit: Visit, agent_id: str) -> None:
    """Its figures, and its reward as it grows while this page is open."""
    seen: list[tuple[datetime, float]] = []
    Part(lambda: visit.bench.agent(agent_id).state, lambda found: _one(visit, found, seen), every_s=EVERY_S)


def _one(visit: Visit, found: Agent, seen: list[tuple[datetime, float]]) -> None:
    if found.updated_at is not None and (not seen or seen[-1][0] < found.updated_at):
        seen.append((found.updated_at, found.cumulative_reward))
        del seen[:-MOST_POINTS]
    with card():
        with row():
            text(f"{found.id} ({words.readable(found.family)}, {found.mode})", "strong")
            badge(found.status)
        with ui.element("div").classes("headlines"):
            kind = "good" if found.cumulative_reward > 0 else "bad" if found.cumulative_reward < 0 else ""
            figure_of(words.percent(found.cumulative_reward, 3, signed=True), "cumulative reward, net", kind=kind)
            figure_of(words.percent(found.cumulative_cost, 3), "costs")
            figure_of(f"{found.num_applied:,}", "predictions read")
            figure_of(f"{found.num_actions:,}", "decisions")
            figure_of(words.percent(found.exploration_rate), "explores")
        _buttons(visit, found)
    with grid("wide"):
        with card("Positions"):
            if found.positions:
                facts({name: POSITIONS.get(held, held) for name, held in found.positions.items()})
            else:
                note("It holds nothing.")
        with card("Counters"):
            facts(
                {
                    "realised steps": found.num_settled, "approximate": found.num_approximate,
                    "observed without acting": found.num_observed, "late": found.num_late,
                    "acts on": found.model_id or "every live model", "processes": found.num_processes,
                    "updated": words.moment(found.updated_at), "last entry": found.last_applied_id,
                }
            )  # fmt: skip
    with card("Cumulative reward", aside="since this page was opened"):
        _reward(seen)
    if found.hyperparameters is not None:
        with card("How it learns"):
            facts({words.readable(name): value for name, value in found.hyperparameters.model_dump().items()})


def _reward(seen: list[tuple[datetime, float]]) -> None:
    if len(seen) < 2:
        note("It grows here while predictions come in: each checkpoint of the agent is a point.")
        return
    colours = PALETTES["light"]
    axis = {"gridcolor": colours.grid, "tickfont": {"color": colours.muted, "size": 10}, "automargin": True}
    line = {
        "type": "scatter", "mode": "lines", "x": [each.isoformat() for each, _ in seen],
        "y": [value for _, value in seen], "line": {"color": colours.model, "width": 2, "shape": "hv"},
    }  # fmt: skip
    layout: dict[str, Any] = {
        "title": {"text": "Cumulative reward"}, "height": 260, "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": colours.paper, "plot_bgcolor": colours.paper, "font": {"color": colours.text},
        "xaxis": {**axis, "type": "date"}, "yaxis": {**axis, "tickformat": ".2%"},
    }  # fmt: skip
    FigureView(untitled({"data": [line], "layout": layout}))


def _buttons(visit: Visit, found: Agent) -> None:
    handle = visit.bench.agent(found.id)

    async def start() -> None:
        await attempted(lambda: handle.start(), f"{found.id} starts")

    async def stop() -> None:
        sentence = "It ends after the batch at hand. What it has learnt stays, and predictions wait in the queue."
        if await confirmed("Stop the agent?", sentence, "Stop"):
            await attempted(lambda: handle.stop(), f"{found.id} stops")

    async def reset() -> None:
        sentence = "It forgets everything that it has learnt and holds. This cannot be undone."
        if await confirmed("Reset the agent?", sentence, "Reset", is_grave=True):
            await attempted(lambda: handle.reset(), f"{found.id} begins anew")

    with row():
        if found.wanted == "running":
            button("Stop", on_click=stop)
        else:
            button("Start", on_click=start, kind="main")
        button("Reset", on_click=reset, kind="quiet")
