"""Agent status: what the API shows of an agent, read from its folder alone, whether or not its process or Redis runs.

STATE_DIR/agents/<id>/
    agent.json               what it is (agents.definition)
    checkpoint.<term>.json   everything it knows, after its last read batch
    process.json             which process it is, whether that one ended in an orderly way; touched as a heartbeat
    shard<k>of<K>/           checkpoint and process of shard k, where the prediction queue has K > 1 streams
An agent with a process for each shard is shown as one: counters added up, positions put together. Where the number of
shards was changed, what was learnt under another number stays on disk and is not shown.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from common_lib.exceptions import AgentNotFoundError, DataValidationError
from ml_workbench_service.agents.agent import id_order
from ml_workbench_service.agents.checkpoint import CHECKPOINT_PATTERN, Checkpoint, Counters
from ml_workbench_service.agents.definition import DEFINITION_FILE, read_definition
from ml_workbench_service.contracts.agents import Agent, AgentDefinition, AgentStatus
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.jobs.guarded_reading import SET_ASIDE
from ml_workbench_service.jobs.process_record import ProcessRecord

PROCESS_FILE = "process.json"
GROUP_PREFIX = "agent:"
_SHARD_NAME = re.compile(r"shard\d+of(\d+)")
_WORST_FIRST: tuple[AgentStatus, ...] = ("failed", "starting", "stopped", "running")

log = logging.getLogger(__name__)


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


def checkpoints_of(folder: Path) -> list[Checkpoint]:
    """An agent's checkpoints, one for each process that has begun.

    Raises:
        DataValidationError: one cannot be read.
    """
    return list(_processes(folder).checkpoints)


def known_definition(folder: Path) -> AgentDefinition:
    """What an agent is: its definition, else what its checkpoint says, which is so for the autostarted one.

    Raises:
        AgentNotFoundError: no agent of that id was defined or has begun.
        DataValidationError: a file of it cannot be read.
    """
    definition = read_definition(folder)
    if definition is not None:
        return definition
    checkpoints = checkpoints_of(folder)
    if not checkpoints:
        raise AgentNotFoundError(f"There is no agent {folder.name}; GET /api/v1/agents lists the known ones.")
    first = checkpoints[0]
    return AgentDefinition(
        id=first.agent_id,
        family=first.family,
        mode=first.mode,
        model_id=first.model_id,
        hyperparameters=first.hyperparameters,
        costs=first.costs,
        reward=first.reward,
        created_at=utc_now(),
    )


def read_agent(folder: Path) -> Agent:
    """The agent as `GET /agents/{id}` shows it.

    Raises:
        AgentNotFoundError: no agent of that id was defined or has begun.
        DataValidationError: a file of it cannot be read.
    """
    processes = _processes(folder)
    definition = known_definition(folder)
    is_defined = (folder / DEFINITION_FILE).exists()
    checkpoints = processes.checkpoints
    explores = definition.hyperparameters if definition.mode == "learn" else None
    started = 0.0 if explores is None else explores.exploration_rate
    ids = [each.last_applied_id for each in checkpoints if each.last_applied_id is not None]
    return Agent(
        status=_status_of([_status(each, definition, is_defined=is_defined) for each in processes.folders]),
        num_processes=len(processes.folders),
        exploration_rate=sum(each.exploration_rate for each in checkpoints) / len(checkpoints)
        if checkpoints
        else started,
        last_applied_id=max(ids, key=id_order, default=None),
        positions={symbol: held for each in checkpoints for symbol, held in each.positions.items()},
        created_at=definition.created_at if is_defined else None,
        updated_at=max((each.saved_at for each in checkpoints), default=None),
        **{name: getattr(definition, name) for name in AgentDefinition.model_fields if name != "created_at"},
        **_counted(checkpoints),
    )


def read_agents(state_dir: Path) -> list[Agent]:
    """Every agent that was defined or has begun, by id; one that cannot be read is logged once and left out."""
    agents = []
    for folder in agent_folders(state_dir):
        try:
            agents.append(read_agent(folder))
            SET_ASIDE.mended(folder)
        except AgentNotFoundError:  # its folder was moved away in between
            continue
        except DataValidationError as error:
            SET_ASIDE.note(folder, error.message)
    return agents


def agent_folders(state_dir: Path) -> list[Path]:
    """The folders that hold a definition or a checkpoint, by id: whether or not these can be read."""
    root = state_dir / "agents"
    there = root.iterdir() if root.is_dir() else ()
    folders = sorted(folder for folder in there if folder.is_dir() and folder.name[0] != ".")
    return [folder for folder in folders if _holds_an_agent(folder)]


@dataclass(frozen=True)
class _Processes:
    """The processes of an agent that belong together: their folders, and the checkpoints of those that have begun."""

    folders: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]

    @property
    def newest(self) -> float:
        """When the last of them was saved; before any time where none has begun."""
        return max((each.saved_at.timestamp() for each in self.checkpoints), default=-math.inf)


def _processes(folder: Path) -> _Processes:
    """Those of one number of shards: the one under which the newest checkpoint was saved, else the largest."""
    by_number: dict[int, list[Path]] = {1: [folder]}
    for place in sorted(folder.glob("shard*of*")):
        if named := _SHARD_NAME.fullmatch(place.name):
            by_number.setdefault(int(named[1]), []).append(place)
    found = []
    for _, places in sorted(by_number.items(), reverse=True):
        loaded = [checkpoint for place in places if (checkpoint := _loaded(place)) is not None]
        found.append(_Processes(tuple(places), tuple(loaded)))
    return max(found, key=lambda each: each.newest)


def _holds_an_agent(folder: Path) -> bool:
    try:
        names = [name for place in (folder, *folder.glob("shard*of*")) for name in _names(place)]
    except PermissionError:
        return True  # of somebody else; its name is taken
    return any(name == DEFINITION_FILE or CHECKPOINT_PATTERN.fullmatch(name) for name in names)


def _names(place: Path) -> list[str]:
    try:
        return os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _loaded(place: Path) -> Checkpoint | None:
    try:
        return Checkpoint.load(place)
    except OSError as error:
        raise DataValidationError.at(
            f"agents/{place.name}",
            f"The checkpoint of agent {place.name} cannot be read ({error.strerror}); give the service the right to "
            f"read {place.name} under agents/ in STATE_DIR, or move that folder away.",
        ) from error


def _counted(checkpoints: Sequence[Checkpoint]) -> dict[str, float]:
    return {each.name: sum(getattr(one.counters, each.name) for one in checkpoints) for each in fields(Counters)}


def _status(folder: Path, definition: AgentDefinition, *, is_defined: bool) -> AgentStatus:
    record = ProcessRecord.read(folder / PROCESS_FILE)
    if record is not None and record.is_alive:
        return "running"
    if definition.wanted == "stopped":
        return "stopped"
    if record is None:
        return "starting" if is_defined else "stopped"
    return "stopped" if record.ended else "failed"


def _status_of(statuses: Sequence[AgentStatus]) -> AgentStatus:
    return min(statuses, key=_WORST_FIRST.index)
