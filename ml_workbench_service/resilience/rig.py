"""Test rig: a queue, its server, agents and producers, all private to one run and all real; what faults break.

    producers ── publisher ──┐                       ┌── agent processes ── checkpoints
                             ├─► (fault proxy) ─► redis-server, appendfsync always
    accounting, read past it all ─┘                       └── its log of effects: the evidence

Below the run's folder: server/redis (data), agents/state and agents/logs, the producers' histories.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from common_lib.exceptions import PlatformError, UnavailableError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.status import PROCESS_FILE, agent_group, shard_folder
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Outgoing, stream_names
from ml_workbench_service.contracts.resilience import FaultEvent, ResilienceRequest
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.resilience.checker import AccountingSample
from ml_workbench_service.resilience.children import AgentProcess, PrivateRedis, ProducerProcess
from ml_workbench_service.resilience.history import GroupKey
from ml_workbench_service.resilience.machine import FakeClock, SmallDisk
from ml_workbench_service.resilience.producer import ProducerPlan
from ml_workbench_service.resilience.proxy import FaultProxy
from ml_workbench_service.resilience.schedule import Burst, due_times
from ml_workbench_service.resilience.synthetic import SyntheticPredictions

START_TIMEOUT_S = 60.0
QUIET_WITHIN_S = 60.0
SAMPLE_PERIOD_S = 0.05
RESTART_PAUSE_S = 0.1
POLL_S = 0.02
AGENT_DISK_BYTES = 8 << 20
SERVER_DISK_BYTES_PER_RECORD = 8192
SECRETS = {"API_KEY", "REDIS_URL"}

log = logging.getLogger(__name__)


class Need(Enum):
    """What a fault needs the rig to be set up with."""

    PROXY = "producers and agents reach the server through a fault proxy"
    CLOCK = "the processes' clock can be stepped"
    AGENT_DISK = "the agents' state and logs lie on a disk that can be filled"
    STANDBY = "every agent has a process that stands by"
    SERVER_DISK = "the server's data lie on a disk that can be filled"


class Breakage(Protocol):
    """What the rig knows of a fault (`resilience/fault.py`)."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    fsync: ClassVar[str | None]

    def bursts(self, request: ResilienceRequest) -> list[Burst]:
        """Records that it adds to the flood."""
        ...

    def __call__(self, rig: "Rig") -> None: ...


class Rig:
    """One run's set-up; a context that leaves no process, mount or thread behind.

    Attributes:
        ends_at: the flood's planned end, in time.monotonic().
        poison: prediction ids of entries made to fail.
        begun: the checkpoints with which the agents began, by their folders.
        last: the accounting at the end.
    """

    def __init__(self, folder: Path, request: ResilienceRequest, faults: Sequence[Breakage], *, seed: int) -> None:
        self.request = request
        self.seed = seed
        self.timeline: list[FaultEvent] = []
        self.notes: list[str] = []
        self.poison: set[str] = set()
        self.samples: list[AccountingSample] = []
        self.last: AccountingSample | None = None
        self.begun_at = self.ends_at = time.monotonic()
        self.begun_wall = time.time()
        self._folder = folder
        self._faults = faults
        self._over = threading.Event()
        self._broken: list[BaseException] = []
        self._turn = threading.Lock()
        needs = {need for fault in faults for need in fault.needs}
        self.bursts = [burst for fault in faults for burst in fault.bursts(request)]
        due = due_times(
            request.scenario,
            rate_per_s=request.rate_per_s,
            duration_s=request.duration_s,
            seed=seed,
            bursts=self.bursts,
        )
        self.num_records = len(due)
        self.due_s = due
        self.records = SyntheticPredictions(seed, num_symbols=request.num_symbols, num_records=len(due))
        self._begin(folder, needs)

    def _begin(self, folder: Path, needs: set[Need]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = FakeClock(folder) if Need.CLOCK in needs else None
        agent_disk, server_disk = folder / "agents", folder / "server"
        self.agent_disk = SmallDisk(agent_disk, size_bytes=AGENT_DISK_BYTES) if Need.AGENT_DISK in needs else None
        room = (64 << 20) + self.num_records * SERVER_DISK_BYTES_PER_RECORD
        self.server_disk = SmallDisk(server_disk, size_bytes=room) if Need.SERVER_DISK in needs else None
        for place in (agent_disk, server_disk):
            place.mkdir(exist_ok=True)
        fsync = next((fault.fsync for fault in self._faults if fault.fsync), self.request.fsync)
        self.redis = PrivateRedis(server_disk, fsync=fsync, environment=self._environment())
        self.proxy: FaultProxy | None = None
        self._needs_proxy = Need.PROXY in needs
        self.agents: list[AgentProcess] = []
        self.producers: list[ProducerProcess] = []
        self._num_standbys = max(self.request.num_standbys, int(Need.STANDBY in needs))
        self.begun: dict[Path, Checkpoint] = {}
        self._accounting: ShardedQueue | None = None
        self._threads: list[threading.Thread] = []

    def _environment(self, **more: str) -> Mapping[str, str]:
        clock = self.clock.environment if self.clock else {}
        inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
        return {**inherited, "OMP_NUM_THREADS": "1", **clock, **more}

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for child in (*self.agents, *self.producers):
            child.kill(wanted=False)
        for thread in self._threads:
            thread.join(START_TIMEOUT_S)
        if self._accounting is not None:
            self._accounting.close()
        if self.proxy is not None:
            self.proxy.stop()
        self.redis.stop()
        for disk in (self.agent_disk, self.server_disk):
            if disk is not None:
                disk.close()

    @property
    def url(self) -> str:
        """Where producers and agents find the server."""
        return self.proxy.url if self.proxy is not None else self.redis.url

    @property
    def is_flooding(self) -> bool:
        """Whether the flood's planned end is still to come."""
        return not self._over.is_set() and time.monotonic() < self.ends_at

    def sleep(self, seconds: float) -> bool:
        """Waits; False where the run was ended meanwhile."""
        return not self._over.wait(seconds)

    def note(self, fault: str, what: str) -> None:
        """A line of the timeline."""
        at_s = round(time.monotonic() - self.begun_at, 3)
        with self._turn:
            self.timeline.append(FaultEvent(at_s=at_s, fault=fault, what=what))
        log.info("%.3f s %s: %s", at_s, fault, what)

    def start(self) -> None:
        """Server, proxy, agents with their groups, and a producer that waits for the flood to begin."""
        self.redis.start()
        if self._needs_proxy:
            self.proxy = FaultProxy(self.redis.socket)
            self.proxy.start()
        self._accounting = self.open_queue()
        environment = self._environment(
            STATE_DIR=str(self._folder / "agents" / "state"),
            LOG_DIR=str(self._folder / "agents" / "logs"),
            REDIS_URL=self.url,
            PREDICTION_QUEUE_CAPACITY=str(self.request.capacity),
            PREDICTION_QUEUE_SHARDS=str(self.request.num_shards),
            PREDICTION_QUEUE_TTL_S="" if self.request.ttl_s is None else str(self.request.ttl_s),
            LOG_LEVEL="WARNING",
        )
        self.start_producer(first=0)
        for place in range(1 + self._num_standbys):
            for number in range(self.request.num_agents):
                for shard in range(self.request.num_shards):
                    agent = AgentProcess(f"agent{number}", environment, self._folder, shard=shard, place=place)
                    self.agents.append(agent)
                    agent.start()
            self._await("the agents", self._has_begun)

    def open_queue(self) -> ShardedQueue:
        """A connection past every fault; the caller closes it."""
        return ShardedQueue(self.redis.url, capacity=self.request.capacity, num_shards=self.request.num_shards)

    def inject(self, record: PredictionRecord) -> None:
        """Publishes an entry made to fail, past every fault."""
        self.poison.add(record.prediction_id)
        queue = self.open_queue()
        queue.enqueue([Outgoing(record, record.prediction_id, time.time())])
        queue.close()

    def entry_of(self, identifier: str) -> str | None:
        """The entry id of a prediction among the newest of all streams; None where it is gone."""
        client = self.redis.client()
        for stream in stream_names(self.request.num_shards):
            entries: Any = client.xrevrange(stream, count=1000)
            for entry_id, fields in entries:
                if fields[b"prediction_id"].decode() == identifier:
                    return str(entry_id.decode())
        return None

    def leader(self, agent: AgentProcess) -> AgentProcess:
        """Of an agent's processes on one shard the one that leads, by its own word; else the one given."""
        peers = [each for each in self.agents if (each.agent_id, each.shard) == (agent.agent_id, agent.shard)]
        return next((each for each in peers if self.leads(each)), agent)

    def leads(self, agent: AgentProcess) -> bool:
        """Whether this very process leads, by its own word."""
        record = ProcessRecord.read(self.state_of(agent) / PROCESS_FILE)
        return record is not None and record.pid == agent.pid

    def start_producer(self, *, first: int) -> ProducerProcess:
        """One more producer, which offers the records from number `first` on."""
        name = f"producer{len(self.producers)}"
        plan = ProducerPlan(
            request=self.request,
            seed=self.seed,
            bursts=tuple((burst.at_s, burst.num_records) for burst in self.bursts),
            first=first,
            url=self.url,
            history=self._folder / f"{name}.jsonl",
            beginning=self._folder / "beginning",
        )
        producer = ProducerProcess(plan, self._environment(), self._folder / f"{name}.out")
        self.producers.append(producer)
        producer.start()
        producer.is_wanted = False  # it ends by itself
        return producer

    def run_load(self, heard: Callable[[float], None]) -> None:
        """Begins the flood and lets every fault loose; returns when records and faults are at their end.

        Args:
            heard: called several times a second with the seconds since the beginning; may raise to end the run.
        """
        self.begun_at = time.monotonic() + POLL_S
        self.begun_wall = time.time() + POLL_S
        self.ends_at = self.begun_at + self.request.duration_s
        staged = self._folder / "beginning.new"
        staged.write_text(repr(self.begun_at), encoding="ascii")
        staged.replace(self._folder / "beginning")
        self._spawn("watch", self._watch)
        running = [self._spawn(fault.name, partial(fault, self)) for fault in self._faults]
        while any(thread.is_alive() for thread in running) or self.is_flooding:
            self._go_on(heard)
        while any(producer.is_running for producer in self.producers):
            self._go_on(heard)
        ended = [producer.history().ended for producer in self.producers]
        if not ended[-1]:
            raise PlatformError(f"The producer ended by itself; see {self.producers[-1].name}.out in the run's folder.")

    def wait_until_quiet(self, heard: Callable[[float], None]) -> None:
        """Waits until nothing is pending, undelivered or left; gives up after a minute and leaves it to the checker."""
        deadline = time.monotonic() + QUIET_WITHIN_S
        while time.monotonic() < deadline:
            self._go_on(heard)
            sample = self._sample()
            if sample is not None and _is_quiet(sample, len(self.begun)):
                self.last = sample
                break
        else:
            self.last = self._sample()
            self.notes.append(f"the queue was not empty {QUIET_WITHIN_S:.0f} s after the last record")
        for agent in self.agents:
            code = agent.end()
            if code not in (0, -signal.SIGTERM):  # the latter: it had not even begun
                self.notes.append(f"{agent.name} ended with exit code {code} when asked to stop")

    def state_of(self, agent: AgentProcess) -> Path:
        """The folder of the agent's checkpoint."""
        state_dir, num_shards = self._folder / "agents" / "state", self.request.num_shards
        return shard_folder(state_dir, agent.agent_id, shard=agent.shard, num_shards=num_shards)

    def group_of(self, agent: AgentProcess) -> GroupKey:
        """The stream of the agent's shard, and its group."""
        return stream_names(self.request.num_shards)[agent.shard], agent_group(agent.agent_id)

    def _has_begun(self) -> bool:
        """Whether every agent has its group and its first checkpoint, which is kept."""
        for agent in self.agents:
            folder = self.state_of(agent)
            if folder not in self.begun and (begun := Checkpoint.load(folder)) is not None:
                self.begun[folder] = begun
        sample = self._sample()
        return sample is not None and len(sample.groups) == len({self.state_of(each) for each in self.agents}) == len(
            self.begun
        )

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The run waited {START_TIMEOUT_S:.0f} s for {what}; see agent0.0.0.out in its folder."
                )
            self.sleep(POLL_S)

    def _go_on(self, heard: Callable[[float], None]) -> None:
        heard(time.monotonic() - self.begun_at)
        if self._broken:
            raise self._broken[0]
        self.sleep(POLL_S)

    def _spawn(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except Exception as error:
                log.exception("%s ended the run", name)
                self._broken.append(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _watch(self) -> None:
        """Samples the accounting, and starts again what ended and is wanted, as the service does."""
        sampled = 0.0
        ended_at: dict[str, float] = {}
        while self.sleep(POLL_S):
            now = time.monotonic()
            if not self.redis.is_wanted or self.redis.embedded.is_running:
                ended_at.pop("redis", None)
            elif now - ended_at.setdefault("redis", now) >= RESTART_PAUSE_S and self.redis.revive():
                self.note("redis", "had ended by itself and is started again")
            for agent in self.agents:
                if agent.is_running or not agent.is_wanted:
                    ended_at.pop(agent.name, None)
                elif now - ended_at.setdefault(agent.name, now) >= RESTART_PAUSE_S:
                    self.note(agent.name, f"is started again after exit code {agent.exit_codes[-1]}")
                    agent.start()
            if now - sampled >= SAMPLE_PERIOD_S:
                sampled = now
                if (sample := self._sample()) is not None:
                    self.samples.append(sample)

    def _sample(self) -> AccountingSample | None:
        assert self._accounting is not None
        try:
            accounting = self._accounting.shard_accounting()
        except UnavailableError:
            return None
        return AccountingSample(
            at_s=time.monotonic() - self.begun_at,
            length=sum(each.length for each in accounting),
            groups={(each.stream, group.group): group for each in accounting for group in each.groups},
        )


def _is_quiet(sample: AccountingSample, num_groups: int) -> bool:
    is_done = all(accounting.pending == 0 and accounting.undelivered == 0 for accounting in sample.groups.values())
    return is_done and sample.length == 0 and len(sample.groups) >= num_groups
