"""Agents: what each holds, has earned and has learnt; start, stop, reset."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from nicegui import ui

from ml_workbench_client.agents import AgentHandle
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, figure_of, grid, note, row, text
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.figure import show_figure
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.table import Cell, amount_cell, share_cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_client.plans import Async
from ml_workbench_service.contracts.agent_tables import AgentDecisionRow
from ml_workbench_service.contracts.agents import Agent

EVERY_S = 2.0
T = TypeVar("T")
Handle = AgentHandle[Async]
NUM_DECISIONS = 25
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


def _position(held: float) -> str:
    return POSITIONS[int(held)] if held in POSITIONS else f"{held:+.2f}"


def _positions(found: Agent) -> str:
    return ", ".join(f"{name} {_position(held)}" for name, held in found.positions.items()) or "none"


@view("/agents/{agent_id}", "Agent", named="agent_id")
def agent(visit: Visit, agent_id: str) -> None:
    """Its figures, what its decisions came to, and what it has learnt."""
    handle: Handle = visit.bench.agent(agent_id)
    Part(lambda: handle.state, lambda found: _one(visit, found), every_s=EVERY_S)
    with card("Cumulative reward", aside="since it began or was reset, as far as its decisions are kept"):
        Part(_OnceItMoves(handle, lambda: handle.figure("agent_reward")), show_figure, every_s=EVERY_S)
    with card("What it has learnt", aside="as of its last checkpoint"):
        Part(_OnceItMoves(handle, lambda: handle.figure("q_table")), show_figure, every_s=EVERY_S)
    with card("Last decisions"):
        Part(
            _OnceItMoves(handle, lambda: handle.last_decisions(NUM_DECISIONS)),
            _decisions,
            empty="It has decided nothing yet. Deploy a model and ask it, or replay the past.",
            every_s=EVERY_S,
        )


class _OnceItMoves(Generic[T]):
    """Asks again only once the agent has: what is asked for is read from the whole stream of decisions."""

    def __init__(self, handle: Handle, ask: Callable[[], Awaitable[T]]) -> None:
        self._handle, self._ask = handle, ask
        self._seen: tuple[Any, ...] | None = None
        self._found: T

    async def __call__(self) -> T:
        state = await self._handle.state
        seen = (state.updated_at, state.num_applied)
        if seen != self._seen:
            self._found = await self._ask()
            self._seen = seen
        return self._found


def _decisions(found: Sequence[AgentDecisionRow]) -> None:
    table(
        {
            "as_of": "Bar", "symbol": "Symbol", "action": "Action", "how": "How", "model": "Model",
            "reward": "Reward", "cost": "Cost", "total": "Cumulative",
        },
        [
            {
                "as_of": time_cell(each.as_of),
                "symbol": each.symbol,
                "action": each.action,
                "how": f"{each.mode}, {'by chance' if each.explored else 'best known'}",
                "model": Cell(f"{each.model_id} {each.version}", href=words.path("models", each.model_id)),
                "reward": share_cell(each.reward, signed=True, digits=3),
                "cost": share_cell(each.cost, digits=3),
                "total": share_cell(each.cumulative_reward, signed=True, digits=3),
            }
            for each in found
        ],
        label="Last decisions",
        numeric=("reward", "cost", "total"),
    )  # fmt: skip


def _one(visit: Visit, found: Agent) -> None:
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
    with grid("wide even"):
        with card("Positions"):
            if found.positions:
                facts({name: _position(held) for name, held in found.positions.items()})
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
    if found.hyperparameters is not None:
        with card("How it learns"):
            facts({words.readable(name): value for name, value in found.hyperparameters.model_dump().items()})


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

    async def delete() -> None:
        sentence = "All that it has learnt and holds is removed with it. This cannot be undone."
        is_meant = await confirmed("Delete the agent?", sentence, "Delete", is_grave=True)
        if is_meant and await attempted(lambda: handle.delete(), f"{found.id} is deleted") is not None:
            ui.navigate.to("/agents")

    with row():
        if found.wanted == "running":
            button("Stop", on_click=stop)
        else:
            button("Start", on_click=start, kind="main")
            button("Delete", on_click=delete, kind="quiet")
        button("Reset", on_click=reset, kind="quiet")
