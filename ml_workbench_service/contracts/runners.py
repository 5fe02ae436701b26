"""Runner protocols: routes know by these alone who runs jobs and agents and who reads tables, and the job supervisor
knows by `TrainingBackend` the engine of its workers, which is where another one than local processes is plugged in.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ml_workbench_service.contracts.agents import AgentDefinition, Beginning
from ml_workbench_service.contracts.batches import BatchTask
from ml_workbench_service.contracts.bodies import BodyTask
from ml_workbench_service.contracts.comparison import ComparisonReport
from ml_workbench_service.contracts.desk_report import DeskReport, DeskTask
from ml_workbench_service.contracts.explanations import ExplanationTask
from ml_workbench_service.contracts.figures import FigureTask, SentFigureTask
from ml_workbench_service.contracts.jobs import DeletedJob, Job, JobEvent, JobSpec
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.contracts.replicas import WorkerReport
from ml_workbench_service.contracts.tables import AnyTable, ComparisonTask, MarketTask, Sent, TableFormat, TableHead


@dataclass(frozen=True)
class Handle:
    """Opaque reference to one worker of a job.

    Only the backend that gave the token reads it (a process, say, or a remote submission's id); any later instance of
    that backend understands it. Without one it stands for a worker that nobody knows any more, and that has ended.
    """

    job_id: str
    token: str = ""


@dataclass(frozen=True)
class WorkerState:
    """Liveness of a worker.

    Attributes:
        is_alive: also of one that is only to begin, on an engine with a queue of its own.
        exit_code: where the engine has one, which `describe_end` alone interprets.
        waits: why no worker has begun yet, in a sentence for the job's log; empty where one may have, so that the log
            has one writer.
    """

    is_alive: bool
    exit_code: int | None = None
    waits: str = ""


class TrainingBackend(Protocol):
    """Training backend: starts, watches and ends workers, one a job, on whatever engine.

    Contract (`testing.training_backends` holds a backend to it):

    - Threads: one call at a time, from any thread. Every call returns at once; none waits for a worker.
    - Ownership: a running worker belongs to its job. It alone writes the event log; a backend writes no event, and of
      the job's folder only the cancel marker and the worker's output. A worker outlives the backend that started it,
      and every other one over the same jobs finds it by `recover` and rules it as if it were its own.
    - Order: what a worker wrote before its end can be read once `poll` says that it has ended.
    - Idempotent: everything but `submit`. A worker that has ended stays so; cancelling or killing it does nothing.
    - A second worker of one job finds the folder's lock taken and leaves: the worker sees to that, not the backend.
    """

    def submit(self, spec: JobSpec) -> Handle:
        """Starts a worker of a job whose folder exists; raises OSError where the engine refuses."""
        ...

    def poll(self, handle: Handle) -> WorkerState:
        """How the worker is; also what carries a cancellation on from asking to force, so call it regularly."""
        ...

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Leaves the job's cancel marker; presses the worker after `grace_s`, and ends it after as long again."""
        ...

    def kill(self, handle: Handle) -> None:
        """Ends the worker and all that it started, now."""
        ...

    def memory_bytes(self, handle: Handle) -> int:
        """Resident memory of the worker and all that it started; 0 where it has ended or the engine cannot say."""
        ...

    def recover(self) -> list[Handle]:
        """The living workers of unfinished jobs, whoever started them."""
        ...

    def same_worker(self, one: Handle, other: Handle) -> bool:
        """Whether two handles of one job are of the same worker."""
        ...

    def describe_end(self, handle: Handle, state: WorkerState) -> str:
        """How a worker ended, in words that follow "The worker process": `was ended by SIGKILL`."""
        ...


class Cluster(Protocol):
    """The engine of workers on other machines, as readiness shows it."""

    def check(self) -> OutsideThing:
        """As it was last heard of; asks nobody."""
        ...


class JobRunner(Protocol):
    """Job runner: sees every job from its request to its final event.

    Contract: called in the service's event loop, which no call holds up. What `submit` returned is on disk, and runs
    whatever becomes of the service. Running workers belong to their jobs and outlive the runner; the next one adopts
    them. `cancel` is idempotent; `submit` is once for each id. An unknown id raises JobNotFoundError at the call.
    """

    async def submit(self, spec: JobSpec) -> Job:
        """Puts a job on disk, then in the queue; ConflictError for a taken id, UnavailableError for a full disk."""
        ...

    async def delete(self, job_id: str) -> DeletedJob:
        """Deletes an ended job, once its worker is gone; idempotent. ConflictError for one that has not ended."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """Asks a job to stop and returns it as it stands: a queued one is cancelled at once, a final one unchanged."""
        ...

    def follow(
        self, job_id: str, after_seq: int = 0, *, stopping: asyncio.Event | None = None
    ) -> AsyncIterator[JobEvent]:
        """The job's events after that number, those to come included, up to its final one or until `stopping`."""
        ...


class AgentRunner(Protocol):
    """Agent runner: keeps the processes of wanted agents running.

    Contract: called in the service's event loop, which no call holds up; one change at a time. What is wanted is on
    disk when a call returns and is so after a restart, too. Processes belong to the runner and end with it. `resume`
    and `dismiss` are idempotent. Raises AgentNotFoundError for an unknown id, ConflictError where there is no room for
    one more, UnavailableError where the queue cannot be reached or the disk is full: nothing has changed then, save
    that an agent which was dismissed has stopped.
    """

    @property
    def wanted(self) -> tuple[str, ...]:
        """Agents that shall run, in the order in which they were started."""
        ...

    async def start_agent(self, definition: AgentDefinition, beginning: Beginning | None, *, is_named: bool) -> str:
        """A new agent's id: the definition's, to which a number is added where it is taken, unless it `is_named`."""
        ...

    async def resume(self, agent_id: str) -> None:
        """Starts an agent that was stopped."""
        ...

    async def dismiss(self, agent_id: str) -> None:
        """Stops an agent after its batch and gives its consumer group up."""
        ...

    async def reset(self, agent_id: str) -> None:
        """Table, positions and rewards begin anew, of a running agent after its batch; entries count once all the same.

        ConflictError where a process of another service leads the agent.
        """
        ...

    async def remove(self, agent_id: str) -> None:
        """Removes a stopped agent with all that it has learnt; ConflictError for one that is to run."""
        ...


class OnDemandProcess(Protocol):
    """Process on demand: rests while there is nothing to do. It belongs to the service and ends with it."""

    def poke(self) -> None:
        """There is something to do: starts it unless it runs. Call it in the event loop, as often as you like."""
        ...


class WebPage(Protocol):
    """The web page's process, as the service's start address leads to it."""

    @property
    def is_missing(self) -> bool:
        """Whether it cannot run here; the log says why."""
        ...

    def address(self, host: str) -> str | None:
        """Where a browser that reached the service under this host finds the page; None: nowhere."""
        ...

    async def answers(self) -> bool:
        """Whether it takes connections."""
        ...


class PredictProcesses(Protocol):
    """Predict workers: the processes that answer predictions in the service's place."""

    @property
    def num(self) -> int:
        """How many there shall be."""
        ...

    @property
    def num_deaths(self) -> int:
        """How often one has died since the start."""
        ...

    @property
    def reports(self) -> list[WorkerReport]:
        """The newest of each that lives and serves."""
        ...

    async def ask(self) -> list[WorkerReport]:
        """Reports of this moment."""
        ...


class TableReader(Protocol):
    """Table reader: reads rows and writes them in any format, outside the process that asks.

    Contract: called in the service's event loop, which no call holds up. Whatever the table's size, the asker's memory
    does not grow with it: a stream waits for whoever takes it. Raises UnavailableError, with when to try again, where
    too many are read already, and where the reader was lost and could not answer on a second try; before the first
    bytes of a stream every error is raised in place of them.
    """

    async def page(self, table: AnyTable, *, first: int, limit: int) -> tuple[TableHead, bytes]:
        """Up to `limit` rows after the first `first` ones, as a JSON array of objects."""
        ...

    def stream(
        self, table: AnyTable | Sent, format: TableFormat, *, first: int = 0, limit: int | None = None
    ) -> AsyncIterator[bytes]:
        """The table in a format other than JSON, in pieces."""
        ...

    def read_market(self, task: MarketTask, format: TableFormat) -> AsyncIterator[bytes]:
        """Features or labels, whole, in any format, in pieces; raises what the feature store raises."""
        ...

    def converse(
        self, task: BatchTask, more: Callable[[], Awaitable[bytes]], answered: Callable[[bytes], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """The answers to an Arrow stream of windows, in pieces; nothing comes before all of it has been answered.

        Args:
            more: some of the stream, nothing at its end.
            answered: the answers to a chunk, both as `contracts.batches` packs them.
        """
        ...

    async def read_body(self, task: BodyTask, parts: Sequence[bytes]) -> bytes:
        """A large body, in the parts it came in: checked, as `contracts.bodies` says; raises DataValidationError."""
        ...

    async def explain(self, task: ExplanationTask, windows: bytes) -> bytes:
        """What each feature added to each output of these windows, as `ExplanationTask` says."""
        ...

    async def compare(self, task: ComparisonTask) -> ComparisonReport:
        """Several versions on the rows that all of them have; raises DataValidationError where there are none."""
        ...

    async def report_desk(self, task: DeskTask) -> DeskReport:
        """What a desk asks of a version's test part; raises SeriesNotFoundError where it kept no rows of it."""
        ...

    def draw(self, task: FigureTask | SentFigureTask) -> AsyncIterator[bytes]:
        """A figure as Plotly's JSON, or the report's HTML, in pieces."""
        ...
