"""Agent checkpoint: everything an agent knows, in one JSON file that is replaced in one step.

STATE_DIR/agents/<id>/checkpoint.<term>.json holds the Q table, its bins and visits, the random state, every series, the
counters and the last applied stream entry together: whoever reads it sees the agent after a whole number of entries,
and an agent that continues from it behaves as if it had never stopped. JSON keeps every float to the bit.

The term is that of the lease under which it was written. The highest counts: a process that was frozen, lost its lease
and wakes up may still write its own file, and changes nothing by it.

Files of earlier formats are read through `UPGRADES`, step by step. A file of a newer format is refused with a sentence.
Keys that this version does not know are left out, with a line in the log. Each process writes under a term of its own,
so what was not of the present form is never overwritten: it stays beside as `checkpoint.<term>.json.bak`.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from common_lib.exceptions import DataValidationError
from common_lib.storage import make_folder
from ml_workbench_service.agents.positions import Position
from ml_workbench_service.contracts.agents import (
    AgentFamily,
    AgentMode,
    QLearningHyperparameters,
    RewardSettings,
    Size,
    Visits,
    check_table,
)
from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.jobs.durable_files import sync_folder
from ml_workbench_service.jobs.guarded_reading import json_object

CHECKPOINT_PATTERN = re.compile(r"checkpoint(?:\.(\d+))?\.json")
"""Without a term: of a version that had none."""
FORMAT = 2
UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # It knew one family, no filter by model, no reward settings, and one count of late bars (whose kinds begin at 0).
    1: lambda plain: {"family": "q_learning", "model_id": None, "reward": {}, **plain},
}
"""By the format that a file is of, what makes it one of the next."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What an agent has counted since it began; a value: each entry makes a new one."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    num_applied: int = 0
    num_before_reset: int = 0
    num_actions: int = 0
    num_observed: int = 0
    num_late: int = 0  # those of before the two kinds were told apart included
    num_repeated: int = 0
    num_out_of_order: int = 0
    num_settled: int = 0
    num_approximate: int = 0
    cumulative_reward: Finite = 0.0
    cumulative_cost: Finite = 0.0


class Checkpoint(Contract):
    """An agent after its last applied entry. What only a Q table has is empty for an agent that executes a policy."""

    format: int = FORMAT
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
    visits_SA: list[list[Visits]] = Field(default_factory=list)
    exploration_rate: Finite = 0.0
    random_state: dict[str, Any] = Field(default_factory=dict)
    lanes: dict[str, Position]  # in the order of their last use
    positions: dict[str, Size]
    counters: Counters = Field(default_factory=Counters)
    last_applied_id: str | None
    given_up: dict[str, str] = Field(default_factory=dict)  # entries passed over, not yet dead letters, with the reason
    term: int = 0
    reset_at: UtcDatetime | None = None  # when it last began anew
    stream_epoch: str = ""  # of the stream that `last_applied_id` belongs to
    saved_at: UtcDatetime

    @model_validator(mode="after")
    def _table_fits_its_bins(self) -> "Checkpoint":
        """A file that lost a row is still JSON, and every field of it is what it may be."""
        if self.family == "q_learning":
            for table_SA in (self.values_SA, self.visits_SA):
                check_table(table_SA, strength_edges=self.strength_edges, width_edges=self.width_edges)
        return self

    def save(self, folder: Path) -> None:
        """Replaces the folder's checkpoint of this term, and removes earlier terms'; it survives a power cut.

        Raises:
            OSError: the disk is full; what was there is untouched.
        """
        make_folder(folder)
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
            if term < self.term:
                _retire(earlier)
        sync_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint | None":
        """The folder's checkpoint; None where the agent has not begun.

        Raises:
            DataValidationError: the file is no checkpoint, or of a newer version of the service.
        """
        while True:
            files = _files(folder)
            if not files:
                return None
            file = files[-1][1]
            try:
                return _read(json_object(file.read_bytes()), file)
            except FileNotFoundError:  # a later term has just taken its place
                continue
            except (ValueError, TypeError, KeyError, ArithmeticError) as error:
                faults = f"{error.error_count()} faults" if isinstance(error, ValidationError) else repr(error)
                next_step = "move it away to begin anew, or restore it"
                raise _refused(file, f"cannot be read ({faults})", next_step) from error


def _read(plain: dict[str, Any], file: Path) -> Checkpoint:
    """The checkpoint in the file, whatever its format."""
    found = int(plain.get("format", FORMAT))
    if found > FORMAT:
        why = f"is of format {found}, written by a newer version of this service, which reads up to {FORMAT}"
        raise _refused(file, why, "upgrade the service, or restore a backup from before the upgrade (make restore)")
    for number in range(found, FORMAT):
        plain = UPGRADES[number](plain) | {"format": number + 1}
    try:
        return Checkpoint.model_validate(plain)
    except ValidationError as error:
        places = tuple(each["loc"] for each in error.errors() if each["type"] in _UNKNOWN)
        if len(places) < error.error_count():
            raise
    for *path, name in places:
        parent: Any = plain
        for key in path:
            parent = parent[key]
        del parent[name]
    _say_unknown(file, places)
    return Checkpoint.model_validate(plain)


@lru_cache(maxsize=1024)
def _say_unknown(file: Path, places: tuple[tuple[int | str, ...], ...]) -> None:
    """Once for each file: lists of agents are read again and again."""
    names = ", ".join(".".join(map(str, place)) for place in places)
    log.warning("%s of agent %s has keys that this version does not know: %s", file.name, file.parent.name, names)


def _retire(earlier: Path) -> None:
    """Removes an earlier term's file; one that is not of the present form stays beside as a copy."""
    try:
        is_present_form = Checkpoint.model_validate_json(earlier.read_bytes()).format == FORMAT
    except FileNotFoundError:
        return
    except ValidationError:
        is_present_form = False
    if is_present_form:
        earlier.unlink(missing_ok=True)
    else:
        earlier.replace(earlier.with_name(f"{earlier.name}.bak"))


def _refused(file: Path, why: str, next_step: str) -> DataValidationError:
    name, place = file.parent.name, f"agents/{file.parent.name}/{file.name}"
    return DataValidationError.at(place, f"The checkpoint of agent {name} ({place} in STATE_DIR) {why}; {next_step}.")


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Every term's file, the one that counts last."""
    if not folder.is_dir():
        return []
    found = [(match, name) for name in os.listdir(folder) if (match := CHECKPOINT_PATTERN.fullmatch(name))]
    return sorted(((-1 if match[1] is None else int(match[1])), folder / name) for match, name in found)
