"""`run_agent`: predictions in, decisions out, each stream entry applied exactly once.

    take the lease → read the checkpoint → consume → apply each → write the decisions → have the checkpoint saved
    → consume … and acknowledge, or dead-letter, what a saved checkpoint holds

Why a crash at any point counts nothing twice and loses nothing:
    before the decisions      the checkpoint is old, the entries are still pending: they are applied again
    before the checkpoint     the same, with the same random state; the decisions stream knows what it has
    before the acknowledgment the checkpoint holds the entries: they are settled without effect
The one exception is the queue's own: entries evicted at capacity while the agent was down are gone, and counted.

Why two processes do no harm: one holds the lease, the other stands by (`agents/leader_election.py`). Each step asks for
the lease's term inside Redis, and checkpoints are named by it: whoever was overtaken finds out, and reads the newest
one.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common_lib.exceptions import DataValidationError, LeaseLostError, PlatformError, UnavailableError
from common_lib.logging import RL_LOGGER, correlated, log_events
from common_lib.tracing import span
from ml_workbench_service.agents.agent import Agent
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.checkpoint_writer import MOST_UNSAVED, CheckpointWriter
from ml_workbench_service.agents.leader_election import ALONE, Candidacy, LeaderElection
from ml_workbench_service.agents.status import agent_group
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.queue import Delivery, Lease
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.jobs.guarded_reading import guarded

CONSUMER = "agent"  # always the same name, so that whoever takes the lease finds what its predecessor left pending
BATCH_SIZE = 64
BLOCK_MS = 500  # also how long a stop may take to be seen
MAX_TRIES = 5
RETRY_PAUSE_S = 0.01  # doubles with every try
AWAY_PAUSE_S = 0.2
UNSAVED_BLOCK_MS = 5  # while entries wait for the disk, to settle them soon after; doubles while none becomes safe
LONGEST_BLOCK_MS = 160
BEAT_PERIOD_S = 0.5
ATTEMPTS_FILE = "attempts.json"

UNTRACED: AbstractContextManager[None] = nullcontext()

log = logging.getLogger(__name__)
rl_log = logging.getLogger(RL_LOGGER)


def run_agent(
    agent_id: str,
    folder: Path,
    *,
    open_agent: Callable[[], Agent],
    queue: RedisPredictionQueue,
    decisions: DecisionStream,
    stop: threading.Event,
    candidacy: Candidacy = ALONE,
) -> None:
    """Runs the agent until `stop` is set; a queue that is away, a full disk and another holder are waited for.

    Args:
        agent_id, folder: whose lease is asked for, and where its checkpoint lies.
        open_agent: the agent as of its checkpoint, or a new one; asked for each time the lease is taken.
        queue, decisions: where predictions come from (the group is made where it is missing), where decisions go.
        stop: ends the loop between two batches.
        candidacy: this process among those that may lead the agent.
    """
    loop = _Loop(agent_id, agent_group(agent_id), folder, queue, decisions, stop, candidacy)
    while not stop.is_set():
        if not loop.take_lease():
            return
        candidacy.on_lead()
        try:
            loop.lead(open_agent)
        except LeaseLostError as error:
            log.warning("agent %s: %s", agent_id, error.message)
        else:
            loop.give_back()


@dataclass
class _Loop:
    """One agent's loop, with what it needs at hand."""

    agent_id: str
    group: str
    folder: Path
    queue: RedisPredictionQueue
    decisions: DecisionStream
    stop: threading.Event
    candidacy: Candidacy
    _is_away: bool = False
    _waits_for: str = ""
    _lease: Lease | None = None
    _epoch: str = ""
    _agent: Agent | None = None
    _checkpoint_writer: CheckpointWriter | None = None
    _given_up: dict[str, str] = field(default_factory=dict)
    _is_recovering: bool = True
    _alive_at: float = 0.0
    _unsaved_block_ms: int = UNSAVED_BLOCK_MS

    @property
    def checkpoint_writer(self) -> CheckpointWriter:
        """What saves the agent; there is one while the lease is held, as there is an agent."""
        assert self._checkpoint_writer is not None
        return self._checkpoint_writer

    @property
    def agent(self) -> Agent:
        """What applies; there is one while the lease is held."""
        assert self._agent is not None
        return self._agent

    def take_lease(self) -> bool:
        """Stands by until the lease is ours; False where the agent was stopped first."""
        self._lease = self._agent = None
        self._is_away, self._waits_for = False, ""
        by = LeaderElection(self.queue, self.group, self.candidacy)
        while not self.stop.is_set():
            checkpoint = Checkpoint.load(self.folder)
            try:
                self._lease = by.ask(0 if checkpoint is None else checkpoint.term)
            except UnavailableError as error:
                self._wait_for("the queue", error.message)
                continue
            if self._lease is not None:
                return True
            self.stop.wait(by.pause_s)
        return False

    def lead(self, open_agent: Callable[[], Agent]) -> None:
        """Consumes as the holder of the lease until the agent is stopped.

        Raises:
            LeaseLostError: another process holds it by now.
        """
        self._agent = open_agent()
        checkpoint = Checkpoint.load(self.folder)
        self._epoch = "" if checkpoint is None else checkpoint.stream_epoch
        self._given_up = {} if checkpoint is None else dict(checkpoint.given_up)
        if not self._insist(self._meet_stream) or not self._insist(self._save):
            return
        self._checkpoint_writer = CheckpointWriter(self.folder)
        try:
            self._consume()
        finally:
            self._checkpoint_writer.end()

    def _consume(self) -> None:
        self._is_recovering = True
        while not self.stop.is_set():
            self.candidacy.beat()
            batch: list[Delivery] = []
            # What was left pending goes one by one: an entry that ends the process is told from others.
            count = 1 if self._is_recovering else BATCH_SIZE
            block_ms = self._unsaved_block_ms if self.checkpoint_writer.num_unsaved else BLOCK_MS
            if not self._insist(partial(self._read, batch, count=count, block_ms=block_ms)):
                return
            if self._is_recovering and not (batch and batch[0].num_deliveries > 1):
                self._is_recovering = False
                self._given_up.clear()  # of entries that were settled before, or are gone
            if batch and not self._apply(batch):
                return
            too_many = self.checkpoint_writer.num_unsaved > MOST_UNSAVED
            if not self._acknowledge_safe(wait_for_all=self._is_recovering or too_many):
                return
        self._acknowledge_safe(wait_for_all=True)

    def give_back(self) -> None:
        """The orderly end: the next process need not wait."""
        if self._lease is not None:
            try:
                self.queue.release(self._lease)
            except PlatformError as error:
                log.warning("agent %s could not give its lease back: %s", self.agent_id, error.message)

    def _meet_stream(self) -> None:
        """Makes the group, so that nothing published from now on can miss it; in a new stream nothing was applied."""
        epoch = self.queue.create_group(self.group, last_known_id=self.agent.last_applied_id)
        if self._epoch not in ("", epoch):
            log.warning("agent %s: the server lost the stream; its entries count from the beginning", self.agent_id)
            self.agent.last_applied_id = None
        self._epoch = epoch

    def _read(self, into: list[Delivery], *, count: int, block_ms: int) -> None:
        into[:] = self.queue.consume(self.group, CONSUMER, count=count, block_ms=block_ms, lease=self._lease)

    def _apply(self, batch: Sequence[Delivery]) -> bool:
        """One read batch: applied, decided, on its way to the disk; False where the agent was stopped instead."""
        decided: list[tuple[str, Decision]] = []
        fresh = [delivery for delivery in batch if not self.agent.has_applied(delivery.entry_id)]
        if len(fresh) < len(batch):
            log.warning("%d entries were applied before and are only settled", len(batch) - len(fresh))
        for delivery in fresh:
            self._keep_alive()
            with correlated(delivery.correlation_id), _traced(self.agent_id, delivery):
                fault = self._apply_one(delivery, decided)
            if fault is not None:
                self.agent.reject(delivery.entry_id, delivery.record)
                self._given_up[delivery.entry_id] = fault
        if not self._insist(partial(self._write, decided)):
            return False  # stopped while the queue was away: the next start applies the batch again
        self.checkpoint_writer.keep(self._checkpoint(), batch)
        return True

    def _acknowledge_safe(self, *, wait_for_all: bool) -> bool:
        """Acknowledges or dead-letters what is safe on disk; False where the agent was stopped before it was done."""
        while True:
            if wait_for_all:
                self.checkpoint_writer.hurry()
            safe = self.checkpoint_writer.take_safe(timeout_s=AWAY_PAUSE_S if wait_for_all else 0.0)
            self._unsaved_block_ms = UNSAVED_BLOCK_MS if safe else min(2 * self._unsaved_block_ms, LONGEST_BLOCK_MS)
            for delivery in safe:
                if delivery.entry_id in self._given_up:
                    if not self._insist(partial(self._dead_letter, delivery)):
                        return False
                    del self._given_up[delivery.entry_id]
            if safe and not self._insist(partial(self._ack, safe)):
                return False
            if not wait_for_all or not self.checkpoint_writer.num_unsaved:
                return True
            self._keep_alive()
            if self.stop.is_set() and not safe:
                return False  # the disk is full, and somebody wants us to end

    def _keep_alive(self) -> None:
        """Shows that this process lives, where applying or saving takes its time.

        Raises:
            LeaseLostError: another process holds the lease by now.
        """
        if time.monotonic() - self._alive_at < BEAT_PERIOD_S or self._lease is None:
            return
        self._alive_at = time.monotonic()
        self.candidacy.beat()
        with suppress(UnavailableError):  # the next step sees it, and waits
            self.queue.beat(self._lease)

    def _apply_one(self, delivery: Delivery, decided: list[tuple[str, Decision]]) -> str | None:
        """Applies one entry, with retries; returns why it failed for good, or None."""
        if delivery.record is None:
            return delivery.fault  # unreadable now is unreadable later
        if self._is_recovering and not self._begins(delivery):
            return f"the process that applied it ended {MAX_TRIES} times"
        fault = ""
        for attempt in range(MAX_TRIES):
            self._keep_alive()
            try:
                decision = self.agent.apply(delivery.entry_id, delivery.record)
            except Exception as error:
                # One poisonous entry must not stop the agent at every restart; the dead letters keep it.
                fault = f"{getattr(error, 'error_code', type(error).__name__)}: {error}"
                unforeseen = not isinstance(error, PlatformError)
                log.warning("entry %s failed (try %d): %s", delivery.entry_id, attempt + 1, fault, exc_info=unforeseen)
                if not isinstance(error, DataValidationError):  # what is wrong with the data stays wrong
                    self.stop.wait(RETRY_PAUSE_S * 2**attempt)
                continue
            if decision is not None:
                decided.append((delivery.entry_id, decision))
            return None
        return fault

    def _begins(self, delivery: Delivery) -> bool:
        """Whether one more attempt at an entry left behind is due; the first, among others, was not written down."""
        attempts = Attempts.next(self.folder, delivery.entry_id)
        if attempts.num < MAX_TRIES:
            self._insist(partial(attempts.write, self.folder))
        return attempts.num < MAX_TRIES

    def _write(self, decided: Sequence[tuple[str, Decision]]) -> None:
        if not decided:
            return
        num_new = self.decisions.write(
            self.agent_id, decided, stream=self.queue.stream, epoch=self._epoch, lease=self._lease
        )
        log_decisions([decision for _, decision in decided[len(decided) - num_new :]])

    def _dead_letter(self, delivery: Delivery) -> None:
        self.queue.dead_letter(self.group, delivery, self._given_up[delivery.entry_id], lease=self._lease)

    def _checkpoint(self) -> Checkpoint:
        assert self._lease is not None
        return self.agent.checkpoint(given_up=self._given_up, term=self._lease.term, stream_epoch=self._epoch)

    def _save(self) -> None:
        self._checkpoint().save(self.folder)

    def _ack(self, batch: Sequence[Delivery]) -> None:
        self.queue.ack(self.group, [delivery.entry_id for delivery in batch], lease=self._lease)

    def _insist(self, step: Callable[[], None]) -> bool:
        """Repeats a step until queue and disk allow it; False where the agent was stopped instead.

        After the queue was away the lease is taken anew, under a higher term: a request of ours that was delayed on the
        way must not be carried out behind our back.
        """
        while True:
            try:
                if self._is_away:
                    self._renew()
                step()
            except UnavailableError as error:
                self._is_away = True
                self._wait_for("the queue", error.message)
            except OSError as error:
                self._wait_for("its disk", str(error))
                self._keep_alive()
            else:
                self._is_away, self._waits_for = False, ""
                return True
            if self.stop.is_set():
                return False

    def _renew(self) -> None:
        assert self._lease is not None
        answer = self.queue.renew(self._lease)
        if not isinstance(answer, Lease):
            raise LeaseLostError("The lease changed hands while the queue was away; the checkpoint is read again.")
        self._lease = answer
        self._is_recovering = True  # a read whose answer was lost left entries pending
        if self.queue.create_group(self.group, last_known_id=self.agent.last_applied_id) != self._epoch:
            raise LeaseLostError("The server lost the stream while it was away; the checkpoint is read again.")

    def _wait_for(self, what: str, reason: str) -> None:
        """One pause; says so once."""
        if self._waits_for != what:
            log.warning("agent %s waits for %s: %s", self.agent_id, what, reason)
        self._waits_for = what
        self.candidacy.beat()
        self.stop.wait(AWAY_PAUSE_S)


def _traced(agent_id: str, delivery: Delivery) -> AbstractContextManager[Any]:
    """A span of the step below the one that published its entry; none of an entry that is not traced."""
    if not delivery.traceparent:
        return UNTRACED
    told = {"ml_workbench.agent_id": agent_id, "messaging.message.id": delivery.entry_id}
    return span("agent step", "consumer", attributes=told, carrier={"traceparent": delivery.traceparent})


class Attempts(Contract):
    """How often a process began to apply the first entry that its predecessor left behind; the others wait for it.

    An entry that ends the process that applies it would end every agent that is started again. The server counts how
    often an entry was delivered, but an answer that was lost on the way counts there too; here only a beginning counts.
    """

    entry_id: str = ""
    num: int = 0

    @classmethod
    def next(cls, folder: Path, entry_id: str) -> "Attempts":
        """The attempt that would begin now, counted from what anybody wrote down."""
        # None: there is none, or it is torn by the end of the process that wrote it.
        found = guarded(folder / ATTEMPTS_FILE, cls.model_validate_json) or cls()
        return cls(entry_id=entry_id, num=1 + (found.num if found.entry_id == entry_id else 0))

    def write(self, folder: Path) -> None:
        """Writes it down before the next step; it need not survive a power cut."""
        (folder / ATTEMPTS_FILE).write_text(self.model_dump_json(), encoding="utf-8")


def log_decisions(decisions: Sequence[Decision]) -> None:
    """The original specification's line of each in `rl_training.log`: action, reward, cumulative reward."""
    if not rl_log.isEnabledFor(logging.INFO):
        return
    names = ("agent_id", "prediction_id", "lane", "position", "mode", "explored", "cost", "exploration_rate")
    events = [
        (
            f"Action={each.action}, Reward={each.reward}, Cumulative Reward={each.cumulative_reward}",
            each.agent_id,
            each.prediction_id,
            each.lane,
            each.position,
            each.mode,
            each.explored,
            each.cost,
            round(each.exploration_rate, 6),
        )
        for each in decisions
    ]
    log_events(rl_log, logging.INFO, names, events)
