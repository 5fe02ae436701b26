"""Agent definition: what an agent is, apart from what has become of it, and the agent that begins or continues so.

STATE_DIR/agents/<id>/
    agent.json        the AgentDefinition: what was asked for, and whether it shall run; the autostarted agent `default`
                      needs none
    beginning.json    the table that a copy begins with
    checkpoint …      what has become of it since; in shard<k>of<K>/ where the prediction queue has K streams
A definition is written whole, after its beginning and before the first process starts: what has one can be started.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from common_lib.exceptions import ConflictError, DataValidationError
from common_lib.storage import make_folder
from ml_workbench_service.agents.agent import Agent
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.learnt_table import learnt_table
from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.q_table import StateBins
from ml_workbench_service.agents.signal_agent import SignalAgent
from ml_workbench_service.contracts.agents import (
    AgentDefinition,
    AgentRequest,
    Beginning,
    QLearningHyperparameters,
    RewardSettings,
)
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.durable_files import write_whole

DEFINITION_FILE = "agent.json"
BEGINNING_FILE = "beginning.json"
AnyContract = TypeVar("AnyContract", bound=Contract)
_KINDS: Mapping[str, type[QLearningAgent | PolicyAgent | SignalAgent]] = {
    "q_learning": QLearningAgent, "signal": SignalAgent,
}  # fmt: skip
"""By family; the others execute a policy."""

log = logging.getLogger(__name__)


def open_agent(folder: Path, agent_id: str) -> Agent:
    """The agent whose checkpoint lies in the folder, exactly where it stood; a new one of its definition otherwise.

    Args:
        folder: of the agent's process: the agent's own, or the shard's inside it.
        agent_id: of the agent; without a definition it is a Q-learning agent with every default.

    Raises:
        DataValidationError: a file cannot be read.
    """
    checkpoint = Checkpoint.load(folder)
    if checkpoint is not None:
        log.info("agent %s goes on after %d applied entries", agent_id, checkpoint.counters.num_applied)
        return _KINDS.get(checkpoint.family, PolicyAgent).restored(checkpoint)
    return new_agent(folder.parent if re.fullmatch(r"shard\d+of\d+", folder.name) else folder, agent_id)


def new_agent(home: Path, agent_id: str) -> Agent:
    """The agent as its definition has it begin; without one, a Q-learning agent with every default.

    Raises:
        DataValidationError: a file cannot be read.
    """
    definition = read_definition(home)
    if definition is None:
        return QLearningAgent(agent_id)
    if definition.family == "signal":
        assert definition.model_id is not None, "no signal is defined without its model"
        return SignalAgent(agent_id, model_id=definition.model_id, mode=definition.mode, costs=definition.costs)
    if definition.family != "q_learning":
        assert definition.model_id is not None, "no policy is defined without its model"
        return PolicyAgent(
            agent_id,
            family=definition.family,
            model_id=definition.model_id,
            mode=definition.mode,
            costs=definition.costs,
        )
    beginning = _read(Beginning, home / BEGINNING_FILE)
    agent = QLearningAgent(
        agent_id,
        mode=definition.mode,
        hyperparameters=definition.hyperparameters,
        costs=definition.costs,
        bins=None if beginning is None else StateBins(beginning.strength_edges, beginning.width_edges),
        model_id=definition.model_id,
        reward=definition.reward,
    )
    if beginning is not None:
        agent.table.values_SA[:] = beginning.values_SA
        agent.table.visits_SA[:] = beginning.visits_SA
    return agent


def define(
    request: AgentRequest, *, agent_id: str, created_at: datetime, copied: Sequence[Checkpoint] = ()
) -> tuple[AgentDefinition, Beginning | None]:
    """The definition behind a request, and the table that it begins with.

    Args:
        agent_id: the request's, or a derived one.
        created_at: now.
        copied: checkpoints of the agent that `copy_of` names, one for each of its processes.

    Raises:
        DataValidationError: settings that do not go together, or that such an agent would have to ignore.
        ConflictError: the agent to be copied has learnt nothing yet.
    """
    learns_here = request.family == "q_learning"
    mode = request.mode or ("learn" if learns_here else "shadow")
    _check_mode(request, mode)
    beginning = None if request.copy_of is None else beginning_of(request.copy_of, copied)
    hyperparameters = request.hyperparameters
    if learns_here and hyperparameters is None:
        hyperparameters = copied[0].hyperparameters if copied and mode != "learn" else QLearningHyperparameters()
    return AgentDefinition(
        id=agent_id,
        family=request.family,
        mode=mode,
        model_id=request.model_id,
        hyperparameters=hyperparameters,
        costs=request.costs,
        reward=request.reward or RewardSettings(),
        copy_of=request.copy_of,
        created_at=created_at,
    ), beginning


def beginning_of(agent_id: str, copied: Sequence[Checkpoint]) -> Beginning:
    """The table that an agent's processes have learnt: the one, or of several the mean weighted by visits.

    Raises:
        DataValidationError: the agent learns no table.
        ConflictError: it has not learnt from any step yet, or its processes sort records into different bins.
    """
    if any(each.family != "q_learning" for each in copied):
        raise DataValidationError.at(
            "body.copy_of",
            f"{agent_id} learns no table that could be copied; start another agent of its family and model_id",
        )
    if not any(num for each in copied for visits in each.visits_SA for num in visits):
        raise ConflictError(
            f"{agent_id} has not learnt from any step yet, so there is nothing to copy; let it run on live predictions "
            "or on a replay first"
        )
    return learnt_table(agent_id, copied)


def read_definition(home: Path) -> AgentDefinition | None:
    """The agent's definition; None where it has none.

    Raises:
        DataValidationError: the file is no definition.
    """
    return _read(AgentDefinition, home / DEFINITION_FILE)


def write_definition(home: Path, definition: AgentDefinition, beginning: Beginning | None = None) -> None:
    """Writes the definition, after its beginning; on return both survive a power cut.

    Raises:
        UnavailableError: the disk is full.
    """
    make_folder(home)
    if beginning is not None:
        write_whole(home / BEGINNING_FILE, beginning.model_dump_json().encode(), durable=True)
    write_whole(home / DEFINITION_FILE, definition.model_dump_json().encode(), durable=True)


def _check_mode(request: AgentRequest, mode: str) -> None:
    """Refuses what an agent of this family and mode would have to ignore, or could never do."""
    executes = request.family != "q_learning"
    refused: dict[str, str] = {}
    if executes and request.model_id is None:
        refused["model_id"] = f"a {request.family} agent executes a deployed model; name it as `model_id`"
    if executes and mode == "learn":
        refused["mode"] = (
            f"a {request.family} agent executes what its model learnt in training and cannot learn on the stream; send "
            "`shadow` or `frozen`, and train the next version with POST /api/v1/models/train"
        )
    if executes and request.copy_of is not None:
        refused["copy_of"] = f"a {request.family} agent has no table to begin with; leave `copy_of` out"
    if not executes and mode != "learn" and request.copy_of is None:
        refused["copy_of"] = (
            f"an agent that is {mode} from the start would always stay flat, for its table is empty; name as `copy_of` "
            "an agent that has learnt"
        )
    if mode != "learn":
        for name in ("hyperparameters", "reward"):
            if getattr(request, name) is not None:
                refused.setdefault(name, f"only an agent that learns has `{name}`; leave it out, or send mode `learn`")
    if request.costs is not None:
        refused |= {f"costs.{name}": said for name, said in request.costs.nonsense().items()}
    if refused:
        errors = [{"path": f"body.{each}", "message": said, "code": "invalid"} for each, said in refused.items()]
        raise DataValidationError(errors[0]["message"], details={"errors": errors})


def _read(kind: type[AnyContract], file: Path) -> AnyContract | None:
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        faults = error.strerror if isinstance(error, OSError) else f"{error.error_count()} faults"
        raise DataValidationError.at(
            f"agents/{file.parent.name}/{file.name}",
            f"{file.name} of agent {file.parent.name} cannot be read ({faults}); restore a copy of "
            f"agents/{file.parent.name}/{file.name} in STATE_DIR, or move that folder away.",
        ) from error
