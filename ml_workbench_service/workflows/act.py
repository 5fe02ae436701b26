"""`act`: predictions in, decisions out, each stream entry applied exactly once.

    consume → apply each → write the decisions → dead-letter what failed → save one checkpoint → acknowledge

Why a crash at any point counts nothing twice and loses nothing:
    before the decisions      the checkpoint is old, the entries are still pending: they are applied again
    before the checkpoint     the same, with the same random state; the decisions stream knows what it has
    before the acknowledgment the checkpoint holds the entries: they are acknowledged without effect
The one exception is the queue's own: entries evicted at capacity while the agent was down are gone, and counted.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common_lib.exceptions import PlatformError, UnavailableError
from common_lib.logging import RL_LOGGER, correlated
from ml_workbench_service.agents.mind import Mind
from ml_workbench_service.agents.state import agent_group
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.queue import Delivery, PredictionQueue
from ml_workbench_service.integrations.decision_stream import DecisionStream

CONSUMER = "agent"  # always the same name, so that a restarted agent finds its own pending entries
BATCH_SIZE = 64
BLOCK_MS = 500  # also how long a stop may take to be seen
MAX_TRIES = 5
RETRY_PAUSE_S = 0.01  # doubles with every try
AWAY_PAUSE_S = 0.2

log = logging.getLogger(__name__)
rl_log = logging.getLogger(RL_LOGGER)


def act(
    learner: Mind,
    folder: Path,
    *,
    queue: PredictionQueue,
    decisions: DecisionStream,
    stop: threading.Event,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Runs the agent until `stop` is set; a queue that is away is waited for.

    Args:
        learner: the agent's mind, restored from its checkpoint or new.
        folder: where its checkpoint lies.
        queue: predictions; the agent's group is made where it is missing.
        decisions: where decisions go.
        stop: ends the loop between two batches.
        beat: called at least once a second while the loop lives.
    """
    loop = _Loop(learner, folder, queue=queue, decisions=decisions, stop=stop, beat=beat)
    loop.make_group()
    while not stop.is_set():
        beat()
        try:
            batch = queue.consume(loop.group, CONSUMER, count=BATCH_SIZE, block_ms=BLOCK_MS)
        except UnavailableError as error:
            loop.wait_for_queue(error)
            continue
        if batch:
            loop.apply(batch)


class _Loop:
    """One agent's loop, with what it needs at hand."""

    def __init__(
        self,
        learner: Mind,
        folder: Path,
        *,
        queue: PredictionQueue,
        decisions: DecisionStream,
        stop: threading.Event,
        beat: Callable[[], None],
    ) -> None:
        self.group = agent_group(learner.agent_id)
        self._learner = learner
        self._folder = folder
        self._queue = queue
        self._decisions = decisions
        self._stop = stop
        self._beat = beat
        self._away = False

    def make_group(self) -> None:
        """Makes the agent's group at once, so that nothing published from now on can miss it."""
        self._insist(partial(self._queue.create_group, self.group))

    def wait_for_queue(self, error: UnavailableError) -> None:
        """One pause while the queue is away; says so once."""
        if not self._away:
            log.warning("agent %s waits for the queue: %s", self._learner.agent_id, error.message)
        self._away = True
        self._beat()
        self._stop.wait(AWAY_PAUSE_S)

    def apply(self, batch: Sequence[Delivery]) -> None:
        """One read batch, from the first entry to the acknowledgment."""
        self._away = False
        decided: list[tuple[str, Decision]] = []
        failed: list[tuple[Delivery, str]] = []
        fresh = [delivery for delivery in batch if not self._learner.has_applied(delivery.entry_id)]
        if len(fresh) < len(batch):
            log.warning("%d entries were applied before and are only acknowledged", len(batch) - len(fresh))
        for delivery in fresh:
            with correlated(delivery.correlation_id):
                fault = self._apply_one(delivery, decided)
            if fault is not None:
                self._learner.reject(delivery.entry_id, delivery.record)
                failed.append((delivery, fault))
        if not self._insist(partial(self._write, decided)):
            return  # stopped while the queue was away: nothing is saved, the next start applies the batch again
        for delivery, fault in failed:
            if not self._insist(partial(self._dead_letter, delivery, fault)):
                return
        if fresh:
            self._learner.checkpoint().save(self._folder)
        self._insist(partial(self._ack, batch))

    def _apply_one(self, delivery: Delivery, decided: list[tuple[str, Decision]]) -> str | None:
        """Applies one entry, with retries; returns why it failed for good, or None."""
        if delivery.record is None:
            return delivery.fault  # unreadable now is unreadable later
        fault = ""
        for attempt in range(MAX_TRIES):
            if attempt:
                self._stop.wait(RETRY_PAUSE_S * 2**attempt)
            try:
                decision = self._learner.apply(delivery.entry_id, delivery.record)
            except PlatformError as error:
                fault = f"{error.error_code}: {error.message}"
                log.warning("entry %s failed (try %d): %s", delivery.entry_id, attempt + 1, fault)
                continue
            except Exception as error:
                # One poisonous entry must not stop the agent at every restart; the dead letters keep it.
                fault = f"{type(error).__name__}: {error}"
                log.exception("entry %s failed (try %d)", delivery.entry_id, attempt + 1)
                continue
            if decision is not None:
                decided.append((delivery.entry_id, decision))
            return None
        return fault

    def _write(self, decided: Sequence[tuple[str, Decision]]) -> None:
        if not decided:
            return
        num_new = self._decisions.write(self._learner.agent_id, decided)
        for _, decision in decided[len(decided) - num_new :]:
            _log_decision(decision)

    def _dead_letter(self, delivery: Delivery, fault: str) -> None:
        self._queue.dead_letter(self.group, delivery, fault)

    def _ack(self, batch: Sequence[Delivery]) -> None:
        self._queue.ack(self.group, [delivery.entry_id for delivery in batch])

    def _insist(self, step: Callable[[], None]) -> bool:
        """Repeats a step until the queue answers; False where the agent was stopped instead."""
        while True:
            try:
                step()
            except UnavailableError as error:
                if self._stop.is_set():
                    return False
                self.wait_for_queue(error)
                continue
            self._away = False
            return True


def _log_decision(decision: Decision) -> None:
    if rl_log.isEnabledFor(logging.INFO):
        rl_log.info(
            "Action=%s, Reward=%s, Cumulative Reward=%s",
            decision.action,
            decision.reward,
            decision.cumulative_reward,
            extra={
                "agent_id": decision.agent_id,
                "prediction_id": decision.prediction_id,
                "lane": decision.lane,
                "position": decision.position,
                "mode": decision.mode,
                "explored": decision.explored,
                "cost": decision.cost,
                "exploration_rate": round(decision.exploration_rate, 6),
            },
        )
