"""`/agents/{id}/q-table` and `/agents/{id}/decisions`: what an agent has learnt and what it has decided, row by row."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.learnt_table import check_tabular, learnt_table, table_rows
from ml_workbench_service.agents.status import agent_folder, checkpoints_of, known_definition
from ml_workbench_service.api.agents import AgentIdPath
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.pages import Cursor, Symbol, cursor_of, named_by
from ml_workbench_service.api.tables.answering import (
    ROWS_OF_A_PAGE,
    AcceptedFormat,
    Asked,
    AskedTable,
    answer_rows,
    table_of,
)
from ml_workbench_service.contracts.agent_tables import AgentDecisionRow, AgentDecisions, AgentQTable
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.contract import MarketDatetime, iso
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.series import columns_of
from ml_workbench_service.contracts.tables import TableFormat
from ml_workbench_service.integrations.decision_stream import FoundDecisions, WantedDecisions, written_at

router = APIRouter(prefix="/agents", tags=["agents"])
COLUMNS = tuple(each.name for each in columns_of(AgentDecisionRow))
ENTRY_ID = re.compile(r"\d{1,19}-\d{1,20}")


@router.get(
    "/{agent_id}/q-table",
    summary="Read an agent's Q table",
    response_class=Response,
    responses={**table_of(AgentQTable), **failures(404, 406, 409, 503)},
)
async def read_q_table(agent_id: AgentIdPath, service: AppStateDep, asked: AskedTable) -> Response:
    """Every state in words, how often it was learnt from, and the value of each action there; of its last checkpoint.

    Of several processes the values are means, weighted by visits. An agent that executes a policy has no table (404).
    """
    checkpoints = await asyncio.to_thread(_checkpoints, service, agent_id)
    table = learnt_table(agent_id, checkpoints)
    about = {
        "agent_id": agent_id,
        "family": checkpoints[0].family,
        "saved_at": iso(max(each.saved_at for each in checkpoints)),
        "exploration_rate": sum(each.exploration_rate for each in checkpoints) / len(checkpoints),
        "strength_edges": table.strength_edges,
        "width_edges": table.width_edges,
        "warnings": [],
    }
    name = f"{agent_id}-q-table"
    return await answer_rows(service.tables, "q_table", table_rows(table), asked, about=about, name=name)


async def _wanted(
    agent_id: AgentIdPath,
    symbol: Symbol,
    from_: Annotated[MarketDatetime | None, Query(alias="from", description="First `as_of`, inclusive.")] = None,
    to: Annotated[MarketDatetime | None, Query(description="Last `as_of`, inclusive.")] = None,
) -> WantedDecisions:
    return WantedDecisions(agent_id, symbol, from_, to)


@router.get(
    "/{agent_id}/decisions",
    summary="Read an agent's decisions",
    response_class=Response,
    responses={**table_of(AgentDecisions), **failures(404, 406, 503)},
)
async def read_decisions(
    service: AppStateDep,
    wanted: Annotated[WantedDecisions, Depends(_wanted)],
    format: AcceptedFormat,
    limit: Annotated[
        int | None, Query(ge=1, le=200, description="At most this many rows; JSON: 50 unless it is sent, else all.")
    ] = None,
    cursor: Cursor = None,
) -> Response:
    """What it asked for, with the reward and cost of the step that each record settled; newest first.

    The stream keeps about the newest 10,000 decisions of all agents; `kept` says what it holds.
    """
    before = None if cursor is None else _entry_named_by(cursor)
    await asyncio.to_thread(known_definition, agent_folder(service.workbench.state_dir, wanted.agent_id))
    most = limit or (ROWS_OF_A_PAGE if format is TableFormat.JSON else None)
    stream = service.workbench.required_decisions()
    found = await service.queue_threads.run(stream.find, wanted, limit=most, before=before)
    rows = [decision_row(*each) for each in found.decisions]
    about = {"agent_id": wanted.agent_id, "kept": found.kept.model_dump(mode="json"), "warnings": _warnings(found)}
    following = {
        "num_rows": found.num_wanted,
        "next_cursor": cursor_of(found.decisions[-1][0]) if found.has_more else None,
    }
    whole = Asked(format, 0, most)
    name = f"{wanted.agent_id}-decisions"
    return await answer_rows(service.tables, "decision", rows, whole, about=about, name=name, page=following)


def decision_row(entry_id: str, decision: Decision) -> dict[str, Any]:
    """The row of an entry."""
    return {"decided_at": written_at(entry_id), **{name: getattr(decision, name) for name in COLUMNS[1:]}}


def _entry_named_by(cursor: str) -> str:
    named = named_by(cursor)
    if not ENTRY_ID.fullmatch(named):
        raise DataValidationError.at("query.cursor", "not a cursor of this list; start without one")
    return named


def _checkpoints(service: AppState, agent_id: str) -> list[Checkpoint]:
    folder = agent_folder(service.workbench.state_dir, agent_id)
    definition = known_definition(folder)
    found = checkpoints_of(folder)
    check_tabular(definition, found)
    return found


def _warnings(found: FoundDecisions) -> list[str]:
    if found.kept.num_entries < found.kept.most_entries:
        return []
    since = "" if found.kept.oldest_at is None else f", those written since {iso(found.kept.oldest_at)}"
    return [
        f"the stream holds the newest {found.kept.num_entries:,} decisions of all agents{since}; older ones are gone"
    ]
