"""`Checkpoint`: everything an agent knows, in one JSON file that is replaced in one step.

STATE_DIR/agents/<id>/checkpoint.<term>.json holds the Q table, its bins and visits, the random state, every series, the
counters and the last applied stream entry together: whoever reads it sees the agent after a whole number of entries,
and an agent that continues from it behaves as if it had never stopped. JSON keeps every float to the bit.

The term is that of the lease under which it was written. The highest counts: a process that was frozen, lost its lease
and wakes up may still write its own file, and changes nothing by it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.positions import Position
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, QLearningHyperparameters, RewardSettings
from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.market import Costs

CHECKPOINT_PATTERN = re.compile(r"checkpoint(?:\.(\d+))?\.json")
"""Without a term: of a version that had none."""


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
    lanes: dict[str, Position]  # in the order of their last use
    positions: dict[str, int]
    counters: Counters = Field(default_factory=Counters)
    last_applied_id: str | None
    given_up: dict[str, str] = Field(default_factory=dict)  # entries passed over, not yet dead letters, with the reason
    term: int = 0
    stream_epoch: str = ""  # of the stream that `last_applied_id` belongs to
    saved_at: UtcDatetime

    def save(self, folder: Path) -> None:
        """Replaces the folder's checkpoint of this term, and removes earlier terms'; it survives a power cut.

        Raises:
            OSError: the disk is full; what was there is untouched.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"checkpoint.{self.term}.json"
        staged = folder / f".{file.name}"
        try:
            with staged.open("wb") as opened:
                opened.write(self.model_dump_json().encode())
                opened.flush()
                os.fsync(opened.fileno())
            staged.replace(file)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        for term, earlier in _files(folder):
            if term < self.term or earlier.name == "checkpoint.json":
                earlier.unlink(missing_ok=True)
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
        while True:
            files = _files(folder)
            if not files:
                return None
            file = files[-1][1]
            try:
                return cls.model_validate_json(file.read_bytes())
            except FileNotFoundError:  # a later term has just taken its place
                continue
            except ValidationError as error:
                raise DataValidationError.at(
                    f"agents/{folder.name}/{file.name}",
                    f"The checkpoint of agent {folder.name} cannot be read ({error.error_count()} faults); move "
                    f"{file.name} in agents/{folder.name} of STATE_DIR away to begin anew, or restore a copy of it.",
                ) from error


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Every term's file, the one that counts last."""
    if not folder.is_dir():
        return []
    found = [(match, name) for name in os.listdir(folder) if (match := CHECKPOINT_PATTERN.fullmatch(name))]
    return sorted(((-1 if match[1] is None else int(match[1])), folder / name) for match, name in found)
