"""`/agents`: agents on the prediction stream: start, stop, reset, remove them; what they have applied and earned."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from common_lib.exceptions import ConflictError, DataValidationError, UnavailableError
from ml_workbench_service.agents.definition import define
from ml_workbench_service.agents.status import (
    agent_folder,
    checkpoints_of,
    known_definition,
    read_agent,
    read_agents,
)
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.pages import Cursor, Limit, page
from ml_workbench_service.contracts.agents import Agent, AgentDefinition, AgentList, AgentRequest, Beginning
from ml_workbench_service.contracts.contract import NAME_PATTERN, utc_now
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.runners import AgentRunner
from ml_workbench_service.contracts.training import parse_target

router = APIRouter(prefix="/agents", tags=["agents"])
AgentIdPath = Annotated[str, Path(pattern=NAME_PATTERN, description="Such as `default`.")]
EXAMPLES = {
    "learns": {
        "summary": "An agent that learns on the stream, more slowly and with an aversion to risk",
        "value": {
            "id": "careful",
            "hyperparameters": {"learning_rate": 0.05, "exploration_rate": 0.5, "discount_factor": 0.9},
            "reward": {"risk_aversion": 1000},
        },
    },
    "frozen": {
        "summary": "What another agent has learnt, for trading",
        "value": {"id": "trading", "mode": "frozen", "copy_of": "careful"},
    },
    "policy": {
        "summary": "A deployed policy on the stream, only watched",
        "value": {"id": "trader", "family": "dqn", "model_id": "eur_usd_trader", "mode": "shadow"},
    },
    "signal": {
        "summary": "A deployed forecast, or classifier, traded by its own position rule",
        "value": {"id": "follower", "family": "signal", "model_id": "lstm_price_predictor", "mode": "frozen"},
    },
}


@router.get("", summary="List the agents", responses=failures())
async def list_agents(service: AppStateDep, limit: Limit = 50, cursor: Cursor = None) -> AgentList:
    """Every agent that was started once, by id; one whose files cannot be read is left out, and a 422 by itself."""
    agents = await asyncio.to_thread(read_agents, service.workbench.state_dir)
    shown, following = page(agents, limit=limit, cursor=cursor, name=lambda agent: agent.id)
    return AgentList(agents=shown, next_cursor=following)


@router.post("", status_code=201, summary="Start a new agent", responses=failures(404, 409, 413, 415, 503))
async def create_agent(
    body: Annotated[AgentRequest, Body(openapi_examples=EXAMPLES)], service: AppStateDep, response: Response
) -> Agent:
    """One more process with a group of its own: it gets what waits in the queue and what is predicted from now on.

    Whatever other agents do.
    """
    agent_supervisor = _agent_supervisor(service)
    definition, beginning = await asyncio.to_thread(_defined, body, service)
    agent_id = await agent_supervisor.start_agent(definition, beginning, is_named=body.id is not None)
    response.headers["Location"] = f"/api/v1/agents/{agent_id}"
    return await _shown(service, agent_id)


@router.get("/{agent_id}", summary="Show an agent", responses=failures(404))
async def show_agent(agent_id: AgentIdPath, service: AppStateDep) -> Agent:
    """What it is, its counters, cumulative reward and cost, exploration, positions; as of its last checkpoint."""
    return await _shown(service, agent_id)


@router.post("/{agent_id}/start", summary="Start a stopped agent", responses=failures(404, 409, 503))
async def start_agent(agent_id: AgentIdPath, service: AppStateDep) -> Agent:
    """It goes on with what it knows and holds, and gets what waits in the queue and what is predicted from now on.

    A running one is left alone.
    """
    await _agent_supervisor(service).resume(agent_id)
    return await _shown(service, agent_id)


@router.post("/{agent_id}/stop", summary="Stop an agent", responses=failures(404, 503))
async def stop_agent(agent_id: AgentIdPath, service: AppStateDep) -> Agent:
    """Ends its process after the batch at hand and gives its consumer group up; it stays stopped until it is started.

    What it has learnt and what it holds stay in its checkpoint.
    """
    await _agent_supervisor(service).dismiss(agent_id)
    return await _shown(service, agent_id)


@router.post("/{agent_id}/reset", summary="Begin an agent anew", responses=failures(404, 409, 503))
async def reset_agent(agent_id: AgentIdPath, service: AppStateDep) -> Agent:
    """Table, positions, rewards and counters are as at its start; its checkpoint so far is kept beside.

    `num_applied` goes on: what the queue has handed out is counted once. A running agent runs again when this returns.
    """
    await _agent_supervisor(service).reset(agent_id)
    return await _shown(service, agent_id)


@router.delete("/{agent_id}", status_code=204, summary="Remove an agent", responses=failures(404, 409, 503))
async def delete_agent(agent_id: AgentIdPath, service: AppStateDep) -> None:
    """Removes a stopped agent with all that it has learnt; `default` not while AGENT_AUTOSTART would bring it back."""
    await _agent_supervisor(service).remove(agent_id)


async def _shown(service: AppState, agent_id: str) -> Agent:
    return await asyncio.to_thread(read_agent, agent_folder(service.workbench.state_dir, agent_id))


def _agent_supervisor(service: AppState) -> AgentRunner:
    if service.agent_supervisor is None:
        service.workbench.required_queue()  # says why there is none
        raise UnavailableError("agents need the prediction queue; set REDIS_URL", retry_after_s=30)
    return service.agent_supervisor


def _defined(body: AgentRequest, service: AppState) -> tuple[AgentDefinition, Beginning | None]:
    """The definition behind a body, its model and the agent that it copies looked up."""
    copied = []
    if body.copy_of is not None:
        folder = agent_folder(service.workbench.state_dir, body.copy_of)
        known_definition(folder)  # 404 where there is none
        copied = checkpoints_of(folder)
    stem = body.id or (body.family if body.model_id is None else f"{body.family}-{body.model_id}")
    defined = define(body, agent_id=stem, created_at=utc_now(), copied=copied)
    if body.model_id is not None:
        _check_model(body.model_id, body, service)
    return defined


def _check_model(model_id: str, body: AgentRequest, service: AppState) -> None:
    """That there is such a model, and for an agent that executes it, that it is live and of the agent's family."""
    served = service.workbench.registry.served_card(model_id)
    if body.family == "q_learning":
        return
    if body.family == "signal":
        _check_signal(served)
    elif served.family != body.family:
        raise DataValidationError.at(
            "body.model_id",
            f"{model_id} is a {served.family} model of the type {served.type}; a {body.family} agent executes a "
            f"reinforcement-learning model of the family {body.family}",
        )
    if service.workbench.history.live(model_id) is None:
        raise ConflictError(
            f"{model_id} is not deployed, so none of its predictions is acted on; deploy it first: POST "
            f"/api/v1/models/{model_id}/deploy"
        )


def _check_signal(served: ModelCard) -> None:
    """That the model says something of the price that a position earns."""
    target = None if served.target is None else parse_target(served.target)
    delay = int(served.label_start == "fill")
    if target is None or not target.model_copy(update={"delay": delay}).is_traded(served.fill):
        raise DataValidationError.at(
            "body.model_id",
            f"{served.id} forecasts {served.target or 'nothing'}, which no position earns; a signal agent takes the "
            "positions of a model of price_change, log_return, direction or triple_barrier",
        )
