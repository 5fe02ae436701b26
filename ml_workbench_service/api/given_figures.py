"""`/agents/{id}/figures` and `/experiments/{id}/figures`: what an agent or a search achieved, to be looked at.

Their tables are small and lie here; the table process draws, as it does for versions.
"""

import asyncio
import itertools
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from common_lib.exceptions import NotFoundError
from ml_workbench_figures.figure import MISSING, Figure, Source, figure_named
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.learnt_table import learnt_table
from ml_workbench_service.agents.status import agent_folder, checkpoints_of, read_agent
from ml_workbench_service.api.agents import AgentIdPath
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.experiments import experiment_shown, trial_row
from ml_workbench_service.api.figures import FigureName, drawn
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.contracts.agents import Agent
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.figures import (
    AgentFigureList,
    ExperimentFigureList,
    FigureDescription,
    FigureTheme,
    SentFigureTask,
)
from ml_workbench_service.integrations.decision_stream import WantedDecisions
from ml_workbench_service.workflows.draw_figures import by_column

router = APIRouter(tags=["figures"])
Theme = Annotated[FigureTheme, Query(description="Colours for a light or a dark page.")]
OF_AGENTS = ("agent_reward", "q_table")
OF_EXPERIMENTS = ("trials", "importance", "parallel_coordinates")
"""`importance` is a version's too."""
DRAWN_COLUMNS = ("as_of", "cumulative_reward", "cost", "exploration_rate")
DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A figure as Plotly reads it; its caption as sentences in `layout.meta.caption`.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **failures(404, 503),
}


@router.get("/agents/{agent_id}/figures", summary="List an agent's figures", responses=failures(404))
async def list_agent_figures(agent_id: AgentIdPath, service: AppStateDep) -> AgentFigureList:
    """Every figure of an agent, and whether it says something of this one."""
    agent, _ = await asyncio.to_thread(_agent, service, agent_id)
    has: list[Source] = ["decisions"] if agent.num_actions else []
    if agent.family == "q_learning" and agent.updated_at is not None:
        has.append("q_table")
    figures = _described(OF_AGENTS, has, place=f"/api/v1/agents/{agent_id}")
    return AgentFigureList(agent_id=agent_id, figures=figures)


@router.get(
    "/agents/{agent_id}/figures/{name}", summary="Draw an agent's figure", response_class=Response, responses=DRAWN
)
async def draw_agent_figure(
    agent_id: AgentIdPath, name: FigureName, service: AppStateDep, theme: Theme = "light"
) -> Response:
    """A figure of the agent since it began or was last reset; where something is missing, a sentence that says so."""
    _check_named(name, OF_AGENTS)
    agent, checkpoints = await asyncio.to_thread(_agent, service, agent_id)
    task = SentFigureTask(name=name, theme=theme)
    if name != "q_table":
        task = task.model_copy(update={"decisions": await _decisions(service, agent, checkpoints)})
    elif checkpoints and agent.family == "q_learning":
        task = task.model_copy(update={"q_table": learnt_table(agent_id, checkpoints)})
    return await drawn(service, task)


@router.get("/experiments/{experiment_id}/figures", summary="List an experiment's figures", responses=failures(404))
async def list_experiment_figures(experiment_id: JobIdPath, service: AppStateDep) -> ExperimentFigureList:
    """Every figure of a search, and whether it says something of this one."""
    found = await asyncio.to_thread(experiment_shown, service, experiment_id)
    has: list[Source] = ["trials"] if found.trials else []
    if found.importance:
        has.append("importance")
    figures = _described(OF_EXPERIMENTS, has, place=f"/api/v1/experiments/{experiment_id}")
    return ExperimentFigureList(experiment_id=experiment_id, figures=figures)


@router.get(
    "/experiments/{experiment_id}/figures/{name}",
    summary="Draw an experiment's figure",
    response_class=Response,
    responses=DRAWN,
)
async def draw_experiment_figure(
    experiment_id: JobIdPath, name: FigureName, service: AppStateDep, theme: Theme = "light"
) -> Response:
    """A figure of the trials so far; where something is missing, a sentence that says so."""
    _check_named(name, OF_EXPERIMENTS)
    found = await asyncio.to_thread(experiment_shown, service, experiment_id)
    trials = by_column(map(trial_row, found.trials))
    return await drawn(
        service, SentFigureTask(name=name, theme=theme, trials=trials, importance=dict(found.importance))
    )


def _described(names: Sequence[str], has: Collection[Source], *, place: str) -> tuple[FigureDescription, ...]:
    """Each figure, and what it lacks where it cannot be drawn."""
    return tuple(
        FigureDescription(
            name=each.name,
            title=each.title,
            about=each.about,
            applies=each.reads in has,
            why_not="" if each.reads in has else MISSING[each.reads],
            href=f"{place}/figures/{each.name}",
        )
        for each in map(figure_named, names)
    )


def _check_named(name: str, known: Sequence[str]) -> None:
    """Raises NotFoundError for a figure of something else, or of nothing."""
    if name in known:
        return
    if name in Figure.known:
        raise NotFoundError(f"{name} is a figure of something else; here there are {', '.join(known)}")
    figure_named(name)


def _agent(service: AppState, agent_id: str) -> tuple[Agent, list[Checkpoint]]:
    folder = agent_folder(service.workbench.state_dir, agent_id)
    return read_agent(folder), checkpoints_of(folder)


async def _decisions(service: AppState, agent: Agent, checkpoints: Sequence[Checkpoint]) -> dict[str, list[Any]]:
    """Since the agent was last reset, oldest first; of several processes the rewards are added up here."""
    resets = [each.reset_at for each in checkpoints if each.reset_at is not None]
    wanted = WantedDecisions(agent.id, decided_after=max(resets, default=None))
    found = await service.queue_threads.run(service.workbench.required_decisions().find, wanted)
    oldest_first = found.decisions[::-1]
    columns: dict[str, list[Any]] = {name: [getattr(each, name) for _, each in oldest_first] for name in DRAWN_COLUMNS}
    if agent.num_processes > 1:
        columns["cumulative_reward"] = list(itertools.accumulate(each.reward or 0.0 for _, each in oldest_first))
    return columns
