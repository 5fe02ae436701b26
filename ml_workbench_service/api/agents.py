"""`/agents`: what the agents on the prediction stream have applied, earned and decided."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from ml_workbench_service.agents.state import agent_folder, read_agent, read_agents
from ml_workbench_service.api.pages import Cursor, Limit, page
from ml_workbench_service.api.service import ServiceDep
from ml_workbench_service.contracts.agents import Agent, AgentList
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.contracts.errors import failures

router = APIRouter(prefix="/agents", tags=["agents"])


@router.get("", summary="List the agents", responses=failures())
async def list_agents(service: ServiceDep, limit: Limit = 50, cursor: Cursor = None) -> AgentList:
    """Every agent that has begun, by id."""
    agents = await asyncio.to_thread(read_agents, service.workbench.state_dir)
    shown, following = page(agents, limit=limit, cursor=cursor, name=lambda agent: agent.id)
    return AgentList(agents=shown, next_cursor=following)


@router.get("/{agent_id}", summary="Show an agent", responses=failures(404))
async def show_agent(
    agent_id: Annotated[str, Path(pattern=NAME_PATTERN, description="Such as `default`.")], service: ServiceDep
) -> Agent:
    """Mode, counters, cumulative reward and cost, exploration, positions; as of its last checkpoint."""
    return await asyncio.to_thread(read_agent, agent_folder(service.workbench.state_dir, agent_id))
