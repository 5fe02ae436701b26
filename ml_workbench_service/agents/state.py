"""What the API shows of an agent: read from its folder alone, whether or not its process or Redis runs.

STATE_DIR/agents/<id>/
    checkpoint.<term>.json   everything it knows, after its last read batch
    process.json             which process it is, whether that one ended in an orderly way; touched as a heartbeat
"""

from pathlib import Path
from typing import Literal

from common_lib.exceptions import AgentNotFoundError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.agents import Agent
from ml_workbench_service.processes import ProcessRecord

PROCESS_FILE = "process.json"
GROUP_PREFIX = "agent:"


def agent_folder(state_dir: Path, agent_id: str) -> Path:
    """Where an agent's files lie."""
    return state_dir / "agents" / agent_id


def shard_folder(state_dir: Path, agent_id: str, *, shard: int, num_shards: int) -> Path:
    """Where the files of an agent's process on one shard lie: in the agent's folder itself where there is one shard."""
    folder = agent_folder(state_dir, agent_id)
    return folder if num_shards == 1 else folder / f"shard{shard}of{num_shards}"


def agent_group(agent_id: str) -> str:
    """The agent's consumer group on the prediction stream."""
    return GROUP_PREFIX + agent_id


def read_agent(folder: Path) -> Agent:
    """The agent as `GET /agents/{id}` shows it.

    Raises:
        AgentNotFoundError: no agent of that id has begun.
        DataValidationError: its checkpoint cannot be read.
    """
    checkpoint = Checkpoint.load(folder)
    if checkpoint is None:
        raise AgentNotFoundError(f"There is no agent {folder.name}; GET /api/v1/agents lists the known ones.")
    counters = checkpoint.counters
    return Agent(
        id=checkpoint.agent_id,
        mode=checkpoint.mode,
        status=_status(folder / PROCESS_FILE),
        hyperparameters=checkpoint.hyperparameters,
        num_applied=counters.num_applied,
        num_actions=counters.num_actions,
        num_observed=counters.num_observed,
        num_late=counters.num_late,
        num_settled=counters.num_settled,
        cumulative_reward=counters.cumulative_reward,
        cumulative_cost=counters.cumulative_cost,
        exploration_rate=checkpoint.exploration_rate,
        last_applied_id=checkpoint.last_applied_id,
        positions=checkpoint.positions,
        updated_at=checkpoint.saved_at,
    )


def read_agents(state_dir: Path) -> list[Agent]:
    """Every agent that has begun, by id."""
    root = state_dir / "agents"
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    return [read_agent(folder) for folder in folders if Checkpoint.load(folder) is not None]


def _status(file: Path) -> Literal["running", "stopped", "failed"]:
    record = ProcessRecord.read(file)
    if record is None or record.ended:
        return "stopped"
    return "running" if record.is_alive else "failed"
