"""`Checkpoint`: everything an agent knows, in one JSON file that is replaced in one step.

STATE_DIR/agents/<id>/checkpoint.json holds the Q table, its bins and visits, the random state, every lane, the
counters and the last applied stream entry together: whoever reads it sees the agent after a whole number of entries,
and an agent that continues from it behaves as if it had never stopped. JSON keeps every float to the bit.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.lanes import Lane
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, QLearningHyperparameters, RewardSettings
from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.market import Costs

CHECKPOINT_FILE = "checkpoint.json"


@dataclass(slots=True)
class Counters:
    """What an agent has counted since it began; a value: each entry makes a new one."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    num_applied: int = 0
    num_actions: int = 0
    num_observed: int = 0
    num_late: int = 0  # those of before the two kinds were told apart included
    num_repeated: int = 0
    num_out_of_order: int = 0
    num_settled: int = 0
    cumulative_reward: Finite = 0.0
    cumulative_cost: Finite = 0.0


class Checkpoint(Contract):
    """An agent after its last applied entry. What only a Q table has is empty for an agent that executes a policy."""

    format: Literal[1, 2] = 2  # 1 knew one family, no filter by model, no reward settings and one count of late bars
    agent_id: str
    family: AgentFamily = "q_learning"
    mode: AgentMode
    model_id: str | None = None
    hyperparameters: QLearningHyperparameters | None = None
    costs: Costs | None  # the agent's own costs; None: each pair's defaults
    reward: RewardSettings = RewardSettings()
    strength_edges: tuple[Finite, ...] = ()
    width_edges: tuple[Finite, ...] = ()
    values_SA: list[list[Finite]] = Field(default_factory=list)
    visits_SA: list[list[int]] = Field(default_factory=list)
    exploration_rate: Finite = 0.0
    random_state: dict[str, Any] = Field(default_factory=dict)
    lanes: dict[str, Lane]  # in the order of their last use
    positions: dict[str, int]
    counters: Counters = Field(default_factory=Counters)
    last_applied_id: str | None
    saved_at: UtcDatetime

    def save(self, folder: Path) -> None:
        """Replaces the folder's checkpoint; on return it survives a power cut."""
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{CHECKPOINT_FILE}"
        with staged.open("wb") as file:
            file.write(self.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        staged.replace(folder / CHECKPOINT_FILE)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint | None":
        """The folder's checkpoint; None where the agent has not begun.

        Raises:
            DataValidationError: the file is not a checkpoint of this version.
        """
        file = folder / CHECKPOINT_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataValidationError(
                f"The checkpoint of agent {folder.name} cannot be read ({error.error_count()} faults); move "
                f"agents/{folder.name}/{CHECKPOINT_FILE} in STATE_DIR away to begin anew, or restore a copy of it."
            ) from error
