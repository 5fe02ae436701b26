"""Evidence of a small flawless run, made by hand; tests inject one violation at a time."""

from dataclasses import dataclass, field, replace

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM, GroupAccounting
from ml_workbench_service.resilience.checker import AccountingSample, AgentEnd, Evidence
from ml_workbench_service.resilience.history import (
    Decided,
    Entry,
    GroupHistory,
    Outcome,
    ProducerHistory,
    ServerHistory,
)
from ml_workbench_service.resilience.synthetic import SyntheticPredictions, number_of, prediction_id

AGENT = "agent0"
GROUP = (PREDICTIONS_STREAM, "agent:agent0")
NUM_RECORDS = 40
RECORDS = SyntheticPredictions(3, num_symbols=2, num_records=NUM_RECORDS)


@dataclass
class Made:
    """A run's parts, to be altered before `evidence`."""

    server: ServerHistory
    producer: ProducerHistory
    accounting: GroupAccounting
    ended: Checkpoint
    begun: Checkpoint
    length: int = 0
    poison: set[str] = field(default_factory=set)

    @property
    def group(self) -> GroupHistory:
        """The agent's."""
        return self.server.groups[GROUP]

    def evidence(self) -> Evidence:
        """As the rig hands it over."""
        last = AccountingSample(2.0, self.length, {GROUP: self.accounting})
        return Evidence(
            record_of=lambda name: RECORDS.record(number_of(name) or 0),
            symbol_of=RECORDS.symbol_of,
            producers=[self.producer],
            server=self.server,
            agents=[AgentEnd(AGENT, GROUP, self.begun, self.ended)],
            poison=frozenset(self.poison),
            samples=[AccountingSample(1.0, 3, {GROUP: self.accounting})],
            last=last,
        )

    def lose(self, place: int, outcome: Outcome | None) -> None:
        """The entry at that place ends so instead of being applied; the agent is as it then would be."""
        del self.group.outcomes[place]
        if outcome is not None:
            self.group.outcomes[place] = outcome
            counts = {"acked": self.accounting.acked - 1, outcome: getattr(self.accounting, outcome, 0) + 1}
            self.accounting = self.accounting.model_copy(update=counts)
        self.server.decided, self.ended = _lived(self.server.entries, self.group)


def flawless() -> Made:
    """Every record offered, acknowledged, applied once and in order."""
    entries = [Entry(PREDICTIONS_STREAM, f"{1000 + n}-0", prediction_id(n)) for n in range(NUM_RECORDS)]
    group = GroupHistory(dict.fromkeys(range(NUM_RECORDS), "acked"), set(range(NUM_RECORDS)))
    decided, ended = _lived(entries, group)
    counts = dict.fromkeys(("pending", "undelivered", "dropped_oldest", "expired", "dead_lettered", "duplicates"), 0)
    accounting = GroupAccounting(group=GROUP[1], enqueued=NUM_RECORDS, acked=NUM_RECORDS, balance=0, **counts)
    server = ServerHistory(entries, decided, [], {GROUP: group})
    producer = ProducerHistory(acked=tuple(range(NUM_RECORDS)), offered_up_to=NUM_RECORDS - 1, ended=True)
    return Made(server, producer, accounting, ended, QLearningAgent(AGENT).checkpoint())


def _lived(entries: list[Entry], group: GroupHistory) -> tuple[list[Decided], Checkpoint]:
    """What an agent that was handed the acknowledged entries decided, and how it ended."""
    agent = QLearningAgent(AGENT)
    decided = []
    for place, entry in enumerate(entries):
        if group.outcomes.get(place) == "acked":
            decision = agent.apply(entry.entry_id, RECORDS.record(number_of(entry.prediction_id) or 0))
            assert decision is not None
            decided.append(Decided(f"{2000 + place}-0", decision))
        elif group.outcomes.get(place) == "dead_lettered":
            agent.reject(entry.entry_id, None)
    return decided, agent.checkpoint()


def swapped(made: Made, place: int, other: int) -> None:
    """Two entries of the stream change places."""
    entries = made.server.entries
    entries[place], entries[other] = (
        replace(entries[place], prediction_id=entries[other].prediction_id),
        replace(entries[other], prediction_id=entries[place].prediction_id),
    )
