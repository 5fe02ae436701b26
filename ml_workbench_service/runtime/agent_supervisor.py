"""Agent supervisor: keeps a process running for each wanted agent, or one for each of its prediction queue's shards.

Agents start and stop with the service; each is wanted running or stopped (`agent.json`), and every wanted one starts
again with the service. An agent that is stopped by a request gives its consumer group up, so that the queue keeps
nothing for it any more; one that ends with the service keeps it, and finds what came in between.

A group that nobody reads would hold every entry. Whatever fails or is killed between a group and the definition that
says whether it is wanted, `reconcile` gives it up later. It touches agents of this STATE_DIR alone: other services may
have groups of their own on the same Redis.

The marker of an agent that is being made: one whose making is cut short must not leave a consumer group behind.

    STATE_DIR/agents/<id>/hiring    empty; there from before the agent's group is made until its definition is written

A marker beside a definition is of an agent that was made, and only the marker's end was cut short. One without a
definition is of an agent that never was: its group is given up, until no request that was on its way can arrive any
more, and then the marker goes.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from common_lib.exceptions import AgentNotFoundError, ConflictError, DataValidationError, PlatformError
from common_lib.storage import make_folder
from ml_workbench_service.agents.definition import (
    BEGINNING_FILE,
    DEFINITION_FILE,
    read_definition,
    write_definition,
)
from ml_workbench_service.agents.ends import check_unled, finish_ends, finish_reset, remove_files, reset
from ml_workbench_service.agents.status import (
    PROCESS_FILE,
    agent_folder,
    agent_folders,
    agent_group,
    known_definition,
    shard_folder,
)
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID, AgentDefinition, Beginning, QLearningHyperparameters
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.jobs.durable_files import clear_disk_errors, write_whole
from ml_workbench_service.jobs.guarded_reading import SET_ASIDE
from ml_workbench_service.jobs.process_record import ProcessRecord, end_leftover
from ml_workbench_service.runtime.child_process import SupervisedProcess

MARKER_FILE = "hiring"


def mark_start(home: Path) -> None:
    """Leaves the marker, on disk when this returns.

    Raises:
        UnavailableError: the disk is full.
    """
    make_folder(home)
    write_whole(home / MARKER_FILE, b"", durable=True)


def unmark_start(home: Path) -> None:
    """The agent is made, or its group was given up."""
    (home / MARKER_FILE).unlink(missing_ok=True)
    with suppress(OSError):  # an agent's folder, which is not empty
        home.rmdir()


def undo_definition(home: Path) -> None:
    """Removes what was written of an agent that could not be made; its marker stays."""
    for name in (DEFINITION_FILE, BEGINNING_FILE):
        for file in (home / name, *home.glob(f".{name}*")):
            file.unlink(missing_ok=True)


def unfinished_starts(state_dir: Path) -> list[Path]:
    """The folders in which a marker lies."""
    return sorted(marker.parent for marker in (state_dir / "agents").glob(f"*/{MARKER_FILE}"))


MOST_PROCESSES = 16
"""A process takes some 75 MiB and half a second of a processor to start; and the queue keeps an entry until every
group is done with it, so that each agent more is one more that can hold it up."""
MOST_AGENTS = 200
"""Folders are read to list the agents; none is removed unasked, for it holds what an agent has learnt."""
LONGEST_STEM = 56
RECONCILE_EVERY_S = 30.0
LATE_S = 60.0  # a request to Redis that nobody waits for any more may still arrive so long

log = logging.getLogger(__name__)
GroupChange = Callable[[str], object]


class AgentSupervisor:
    """Starts agents, keeps their processes running, stops them; see `AgentRunner`.

    Args:
        state_dir: agents' folders lie in `agents/` of it.
        environment: of the processes.
        num_shards: streams of the prediction queue.
        make_group: makes a consumer group on every stream of the queue, where it is missing.
        give_up_group: removes one from every stream; what only that group needed is released.
        most_processes: of all agents together; one agent has room with any number of shards.
    """

    def __init__(
        self,
        state_dir: Path,
        environment: Mapping[str, str],
        *,
        num_shards: int = 1,
        make_group: GroupChange | None = None,
        give_up_group: GroupChange | None = None,
        most_processes: int = MOST_PROCESSES,
    ) -> None:
        self._state_dir = state_dir
        self._environment = dict(environment)
        self._num_shards = num_shards
        self._make_group = make_group
        self._give_up_group = give_up_group
        self._most_processes = max(most_processes, num_shards)
        self._processes: dict[str, list[SupervisedProcess]] = {}
        self._changing = asyncio.Lock()
        self._reconciling: asyncio.Task[None] | None = None
        self._unfinished_since: dict[str, float] = {}  # by time.monotonic()
        self._autostart = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """Agents that shall run, in the order in which they were started."""
        return tuple(self._processes)

    async def start(self, *, autostart: bool) -> None:
        """Ends what a killed predecessor left running, and starts every agent that is wanted and finds room.

        With more shards than before there may be room for fewer agents; the log names those that were left out.

        Args:
            autostart: whether `default` is wanted where nobody has said otherwise.
        """
        self._autostart = autostart
        wanted = await asyncio.to_thread(self._found, autostart=autostart)
        async with self._changing:
            for agent_id in wanted:
                try:
                    self._check_room()
                    await self._begin(agent_id)
                except PlatformError as error:
                    log.error("agent %s is wanted and was not started: %s", agent_id, error.message)
        self._reconciling = asyncio.create_task(self._keep_reconciling(), name="agents' groups")

    async def stop(self) -> None:
        """Ends every process; the agents stay wanted and keep their groups."""
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.gather(self._reconciling, return_exceptions=True)
            self._reconciling = None
        async with self._changing:
            everyone = [each for processes in self._processes.values() for each in processes]
            self._processes.clear()
            await asyncio.gather(*(each.stop() for each in everyone))

    async def start_agent(self, definition: AgentDefinition, beginning: Beginning | None, *, is_named: bool) -> str:
        """Leaves a marker, makes the group, writes the definition, starts the processes, in that order."""
        async with self._changing:
            taken = {folder.name for folder in await asyncio.to_thread(agent_folders, self._state_dir)}
            taken.update(self._processes)
            if is_named and definition.id in taken:
                raise ConflictError(
                    f"there is an agent {definition.id} already; choose another id, or start it with POST "
                    f"/api/v1/agents/{definition.id}/start"
                )
            if len(taken) >= MOST_AGENTS:
                raise ConflictError(
                    f"there are {MOST_AGENTS} agents; delete a stopped one that is of no more use: DELETE "
                    "/api/v1/agents/{id}"
                )
            self._check_room()
            agent_id = definition.id if is_named else _free(definition.id, taken)
            definition = definition.model_copy(update={"id": agent_id})
            await asyncio.to_thread(mark_start, self._home(agent_id))
            self._unfinished_since.pop(agent_id, None)
            await self._change(self._make_group, agent_id)  # so that nothing predicted after the answer is missed
            await self._define(definition, beginning)
            await self._begin(agent_id)
            return agent_id

    async def resume(self, agent_id: str) -> None:
        """Makes the group before it says that the agent is wanted, so that a queue that is away changes nothing."""
        async with self._changing:
            if agent_id in self._processes:
                return
            definition = await asyncio.to_thread(known_definition, self._home(agent_id))
            self._check_room()
            await self._change(self._make_group, agent_id)
            await self._want(definition, "running")
            await self._begin(agent_id)

    async def dismiss(self, agent_id: str) -> None:
        """Stops the processes before it gives the group up, which would otherwise be made again."""
        async with self._changing:
            await self._want(await asyncio.to_thread(self._definition, agent_id), "stopped")
            processes = self._processes.pop(agent_id, [])
            await asyncio.gather(*(each.stop() for each in processes))
            await self._change(self._give_up_group, agent_id)

    async def reset(self, agent_id: str) -> None:
        """Stops the processes, begins the checkpoints anew, and starts the processes again where there were some.

        The group stays: what waits in the queue is applied by the agent as it is then.
        """
        async with self._changing:
            await asyncio.to_thread(self._definition, agent_id)
            processes = self._processes.pop(agent_id, None)
            await asyncio.gather(*(each.stop() for each in processes or ()))
            try:
                await asyncio.to_thread(self._reset_files, agent_id)
            finally:
                if processes is not None:
                    await self._begin(agent_id)

    def _reset_files(self, agent_id: str) -> None:
        home = self._home(agent_id)
        make_folder(home)
        check_unled(home)
        reset(home, utc_now())

    async def remove(self, agent_id: str) -> None:
        """Gives the group up once more before the folder goes: nobody would find it afterwards."""
        async with self._changing:
            home = self._home(agent_id)
            await asyncio.to_thread(self._definition, agent_id)
            definition = await asyncio.to_thread(read_definition, home)
            if agent_id in self._processes or (definition is not None and definition.wanted == "running"):
                raise ConflictError(f"agent {agent_id} is to run; stop it first: POST /api/v1/agents/{agent_id}/stop")
            if agent_id == DEFAULT_AGENT_ID and self._autostart:
                raise ConflictError(
                    f"{agent_id} would come back with the next start; set AGENT_AUTOSTART=false first, or begin it "
                    f"anew: POST /api/v1/agents/{agent_id}/reset"
                )
            await asyncio.to_thread(check_unled, home)
            await self._change(self._give_up_group, agent_id)
            await asyncio.to_thread(remove_files, home)

    async def reconcile(self) -> None:
        """Gives up the groups of agents that are not wanted: of stopped ones, and of those that were never made.

        Raises:
            UnavailableError: the queue cannot be reached; the next turn does it.
        """
        async with self._changing:
            stopped, unfinished = await asyncio.to_thread(self._unwanted)
            for agent_id in stopped:
                await self._change(self._give_up_group, agent_id)
            self._unfinished_since = {
                agent_id: self._unfinished_since.get(agent_id, time.monotonic()) for agent_id in unfinished
            }
            for agent_id, since in list(self._unfinished_since.items()):
                was_late = time.monotonic() - since > LATE_S  # and so still is when the group is given up
                await self._change(self._give_up_group, agent_id)
                if was_late:
                    log.info("agent %s was never made, and its group is given up", agent_id)
                    await asyncio.to_thread(undo_definition, self._home(agent_id))
                    await asyncio.to_thread(unmark_start, self._home(agent_id))
                    del self._unfinished_since[agent_id]

    async def _keep_reconciling(self) -> None:
        while True:
            try:
                await self.reconcile()
            except PlatformError as error:
                log.warning("groups of agents that are not wanted stay until the next turn: %s", error.message)
            except Exception:  # the next turn may go well
                log.exception("reconciling the agents' groups failed; the next turn goes on")
            await asyncio.sleep(RECONCILE_EVERY_S)

    def _unwanted(self) -> tuple[list[str], list[str]]:
        """Agents that are stopped, and those of unfinished starts; markers of finished ones are removed."""
        known, stopped = agent_folders(self._state_dir), []
        for folder in known:
            definition = _readable(folder)
            if definition is not None and definition.wanted == "stopped" and folder.name not in self._processes:
                stopped.append(folder.name)
        unfinished = []
        for home in unfinished_starts(self._state_dir):
            if home in known:
                unmark_start(home)
            elif home.name not in self._processes:
                unfinished.append(home.name)
        return stopped, unfinished

    async def _define(self, definition: AgentDefinition, beginning: Beginning | None) -> None:
        """Writes a new agent's definition, after which it is made; otherwise takes back what was made so far."""
        home = self._home(definition.id)
        try:
            await asyncio.to_thread(_write_new, home, definition, beginning)
        except (OSError, PlatformError):
            await asyncio.to_thread(undo_definition, home)
            try:
                await self._change(self._give_up_group, definition.id)
            except PlatformError as error:
                log.warning("the group of agent %s stays until the next turn: %s", definition.id, error.message)
            else:
                await asyncio.to_thread(unmark_start, home)
            raise
        await asyncio.to_thread(unmark_start, home)

    def _found(self, *, autostart: bool) -> list[str]:
        root = self._state_dir / "agents"
        for record in (*root.glob("*/attendant.json"), *root.glob("*/shard*of*/attendant.json")):
            end_leftover(record)
        finish_ends(self._state_dir)
        wanted = {DEFAULT_AGENT_ID: None} if autostart else {}
        for folder in agent_folders(self._state_dir):
            try:
                definition = read_definition(folder)
            except DataValidationError as error:
                SET_ASIDE.note(folder, error.message)
                wanted.pop(folder.name, None)  # who knows whether it was stopped
                continue
            if definition is not None:
                wanted[folder.name] = None
                if definition.wanted == "stopped":
                    del wanted[folder.name]
        return list(wanted)

    def _definition(self, agent_id: str) -> AgentDefinition:
        try:
            return known_definition(self._home(agent_id))
        except AgentNotFoundError:
            if agent_id not in self._processes:
                raise
            # The autostarted agent, before its process has begun.
            return AgentDefinition(id=agent_id, hyperparameters=QLearningHyperparameters(), created_at=utc_now())

    async def _want(self, definition: AgentDefinition, wanted: str) -> None:
        if definition.wanted != wanted:
            changed = definition.model_copy(update={"wanted": wanted})
            await asyncio.to_thread(write_definition, self._home(definition.id), changed)

    async def _change(self, change: GroupChange | None, agent_id: str) -> None:
        if change is not None:
            await asyncio.to_thread(change, agent_group(agent_id))

    async def _begin(self, agent_id: str) -> None:
        await asyncio.to_thread(finish_reset, self._home(agent_id))
        processes = []
        for shard in range(self._num_shards):
            folder = shard_folder(self._state_dir, agent_id, shard=shard, num_shards=self._num_shards)
            make_folder(folder)
            leader = ProcessRecord.read(folder / PROCESS_FILE)
            if leader is None or not leader.is_alive:  # a stand-by that leads is left alone
                (folder / PROCESS_FILE).unlink(missing_ok=True)
            command = [sys.executable, "-m", "ml_workbench_service.runtime.agent_worker", "--agent", agent_id]
            if self._num_shards > 1:
                command += ["--shard", str(shard)]
            name = f"agent {agent_id}" if self._num_shards == 1 else f"agent {agent_id}, shard {shard}"
            processes.append(SupervisedProcess(name, command, self._environment, folder / "attendant.json"))
        self._processes[agent_id] = processes
        for each in processes:
            await each.start()

    def _check_room(self) -> None:
        if (len(self._processes) + 1) * self._num_shards > self._most_processes:
            raise ConflictError(
                f"the agents that run have {len(self._processes) * self._num_shards} of at most "
                f"{self._most_processes} processes; stop one first: POST /api/v1/agents/{{id}}/stop"
            )

    def _home(self, agent_id: str) -> Path:
        return agent_folder(self._state_dir, agent_id)


def _write_new(home: Path, definition: AgentDefinition, beginning: Beginning | None) -> None:
    undo_definition(home)  # what a killed attempt may have left of a table to begin with
    with clear_disk_errors(home / DEFINITION_FILE):
        write_definition(home, definition, beginning)


def _readable(folder: Path) -> AgentDefinition | None:
    """The definition; None where there is none, or where it says nothing."""
    try:
        return read_definition(folder)
    except DataValidationError as error:
        SET_ASIDE.note(folder, error.message)
        return None


def _free(stem: str, taken: set[str]) -> str:
    stem, number = stem[:LONGEST_STEM].rstrip(".-_"), 2
    if stem not in taken:
        return stem
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"
