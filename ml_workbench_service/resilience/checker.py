"""Invariant checker: a run's histories → whether each invariant held, with counter-examples. A pure function.

nothing_lost    what a producer was told is in the queue was applied, or is counted as dropped, expired, dead-
                lettered or wiped out by the operator: each record on its own
applied_once    no record caused two decisions of one agent, or was applied and counted as dropped or expired as well
                (what an agent has in hand is never evicted); no entry ended twice
order           per symbol, in the stream and in the decisions
books_balance   balance 0 whenever the accounting was read; at the end every counter equals the entries that ended so
pending_empty   at the end nothing is pending, undelivered or left in the stream
dead_letters    exactly the poison, each with a reason
outbox          what was offered and not acknowledged is what the outbox says it dropped, or still holds
state_exact     an agent fed once with exactly these entries, in the stream's order, decides the same and ends with
                the same checkpoint, to the bit
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import GroupAccounting
from ml_workbench_service.contracts.resilience import GroupAccount, Invariant, Verdict
from ml_workbench_service.resilience.history import (
    COUNTED,
    Entry,
    GroupHistory,
    GroupKey,
    ProducerHistory,
    ServerHistory,
)
from ml_workbench_service.resilience.synthetic import number_of, prediction_id

MOST_EXAMPLES = 5
NOT_LEARNT = {"saved_at", "term", "stream_epoch", "given_up"}
"""Fields of a checkpoint that say who wrote it, when, and what was still on its way to the dead letters."""


@dataclass(frozen=True)
class AccountingSample:
    """The accounting of every stream at one moment."""

    at_s: float
    length: int
    groups: Mapping[GroupKey, GroupAccounting]


@dataclass(frozen=True)
class AgentEnd:
    """One agent on one stream: its group, where it began and where it ended."""

    agent_id: str
    group: GroupKey
    begun: Checkpoint
    ended: Checkpoint | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.agent_id} on {self.group[0]}"


@dataclass(frozen=True)
class Evidence:
    """Everything that a run left behind.

    Attributes:
        record_of: the record under a prediction id; raises KeyError for one that was never made.
        symbol_of: a record's symbol, by its number.
        poison: prediction ids of entries made to fail.
        samples: the accounting whenever it could be read.
        last: the accounting at the end; None where it could not be read.
    """

    record_of: Callable[[str], PredictionRecord]
    symbol_of: Callable[[int], str]
    producers: Sequence[ProducerHistory]
    server: ServerHistory
    agents: Sequence[AgentEnd]
    poison: frozenset[str] = frozenset()
    samples: Sequence[AccountingSample] = ()
    last: AccountingSample | None = None

    def group(self, agent: AgentEnd) -> GroupHistory:
        """Its group's history; an empty one where it has none."""
        return self.server.groups.get(agent.group, GroupHistory())

    def entries_for(self, agent: AgentEnd) -> list[tuple[int, Entry]]:
        """The entries of its stream, with their places."""
        return [each for each in enumerate(self.server.entries) if each[1].stream == agent.group[0]]

    def decisions_of(self, agent: AgentEnd) -> list[Decision]:
        """What it decided, in order; a decision that answers no entry of any stream belongs to every stream."""
        stream_of = {entry.prediction_id: entry.stream for entry in self.server.entries}
        return [
            each.decision
            for each in self.server.decided
            if each.decision.agent_id == agent.agent_id
            and stream_of.get(each.decision.prediction_id, agent.group[0]) == agent.group[0]
        ]


Check = Callable[[Evidence], Iterator[str | None]]
"""Checks one thing after another: None where all is well, else the counter-example."""


def check(evidence: Evidence) -> tuple[Verdict, ...]:
    """A verdict on every invariant."""
    checks: dict[Invariant, Check] = {
        "nothing_lost": _nothing_lost,
        "applied_once": _applied_once,
        "order": _order,
        "books_balance": _accounting_balances,
        "pending_empty": _pending_empty,
        "dead_letters": _dead_letters,
        "outbox": _outbox,
        "state_exact": _state_exact,
    }
    return tuple(_verdict(invariant, check(evidence)) for invariant, check in checks.items())


def _verdict(invariant: Invariant, checked: Iterable[str | None]) -> Verdict:
    num_checked, violations = 0, []
    for violation in checked:
        num_checked += 1
        if violation is not None:
            violations.append(violation)
    return Verdict(
        invariant=invariant,
        holds=not violations,
        num_checked=num_checked,
        num_violations=len(violations),
        counter_examples=tuple(violations[:MOST_EXAMPLES]),
    )


def accounts(evidence: Evidence) -> tuple[GroupAccount, ...]:
    """Where every record that the server took went, group by group."""
    return tuple(_account(evidence, agent) for agent in evidence.agents)


def _account(evidence: Evidence, agent: AgentEnd) -> GroupAccount:
    group = evidence.group(agent)
    decided = {each.prediction_id for each in evidence.decisions_of(agent)}
    entries = evidence.entries_for(agent)
    ends: Counter[str] = Counter()
    applied_then_evicted = 0
    for place, entry in entries:
        outcome = group.outcomes.get(place)
        if entry.prediction_id in decided:
            ends["applied"] += 1
            applied_then_evicted += outcome in ("dropped_oldest", "expired", "flushed")
        else:
            ends["missing" if outcome in (None, "acked") else str(outcome)] += 1
    named = ("applied", "dropped_oldest", "expired", "dead_lettered", "flushed", "missing")
    return GroupAccount(
        group=agent.name,
        taken=len(entries),
        applied_then_evicted=applied_then_evicted,
        **{name: ends[name] for name in named},
    )


def _nothing_lost(evidence: Evidence) -> Iterator[str | None]:
    taken = {entry.prediction_id for entry in evidence.server.entries}
    acked = {number for producer in evidence.producers for number in producer.acked}
    for number in sorted(acked):
        is_there = prediction_id(number) in taken
        yield None if is_there else f"record-{number} was acknowledged and is not in the server's log"
    for entry in evidence.server.entries:
        yield None if entry.is_as_offered else f"{entry.prediction_id} is not in the stream as it was offered"
    for agent in evidence.agents:
        decided = {each.prediction_id for each in evidence.decisions_of(agent)}
        outcomes = evidence.group(agent).outcomes
        for place, entry in evidence.entries_for(agent):
            outcome = outcomes.get(place)
            if entry.prediction_id in decided or outcome in ("dropped_oldest", "expired", "dead_lettered", "flushed"):
                yield None
            else:
                fate = outcome or "still open"
                yield f"{entry.prediction_id} ({entry.entry_id}) was never applied by {agent.name}; it is {fate}"


def _applied_once(evidence: Evidence) -> Iterator[str | None]:
    for agent in evidence.agents:
        decisions = Counter(each.prediction_id for each in evidence.decisions_of(agent))
        for identifier, count in decisions.items():
            yield None if count == 1 else f"{identifier} caused {count} decisions of {agent.name}"
        outcomes = evidence.group(agent).outcomes
        for place, entry in evidence.entries_for(agent):
            if outcomes.get(place) in ("dropped_oldest", "expired"):
                is_one = entry.prediction_id not in decisions
                yield None if is_one else f"{entry.prediction_id} was applied by {agent.name}, and is {outcomes[place]}"
    entered = Counter(entry.prediction_id for entry in evidence.server.entries)
    for identifier, count in entered.items():
        yield None if count == 1 else f"{identifier} entered the stream {count} times"


def _order(evidence: Evidence) -> Iterator[str | None]:
    streams = {"the stream": [entry.prediction_id for entry in evidence.server.entries]}
    for agent in evidence.agents:
        decisions = evidence.decisions_of(agent)
        streams[f"the decisions of {agent.name}"] = [each.prediction_id for each in decisions]
    for name, identifiers in streams.items():
        newest: dict[str, int] = {}
        for number in _numbers(identifiers):
            symbol = evidence.symbol_of(number)
            before = newest.get(symbol, -1)
            yield None if number > before else f"in {name}, record-{number} of {symbol} comes after record-{before}"
            newest[symbol] = max(before, number)


def _numbers(identifiers: Iterable[str]) -> list[int]:
    return [number for identifier in identifiers if (number := number_of(identifier)) is not None]


def _accounting_balances(evidence: Evidence) -> Iterator[str | None]:
    for sample in [*evidence.samples, *([evidence.last] if evidence.last else [])]:
        for accounting in sample.groups.values():
            yield None if accounting.balance == 0 else f"at {sample.at_s:.2f} s: {accounting.model_dump()}"
    last = evidence.last.groups if evidence.last else {}
    for agent in evidence.agents:
        history = evidence.group(agent)
        yield from history.faults
        found = last.get(agent.group)
        if found is None:
            yield f"{agent.name} has no accounting at the end"
            continue
        counts = {outcome: history.count(outcome) for outcome in COUNTED} | {"enqueued": len(history.members)}
        for name, count in counts.items():
            said = getattr(found, name)
            yield (None if said == count else f"{agent.name}: {name} is {said} in the accounting, {count} in the log")


def _pending_empty(evidence: Evidence) -> Iterator[str | None]:
    if evidence.last is None:
        yield "the accounting could not be read at the end"
        return
    length = evidence.last.length
    yield None if length == 0 else f"{length} entries are left in the stream"
    for (stream, group), accounting in evidence.last.groups.items():
        is_empty = accounting.pending == 0 and accounting.undelivered == 0
        left = f"{accounting.pending} pending, {accounting.undelivered} undelivered"
        yield None if is_empty else f"{group} on {stream}: {left} at the end"


def _dead_letters(evidence: Evidence) -> Iterator[str | None]:
    for letter in evidence.server.dead_letters:
        is_poison = letter.prediction_id in evidence.poison
        yield None if is_poison else f"{letter.prediction_id} is dead and no poison: {letter.reason}"
        yield None if letter.reason.strip() else f"{letter.prediction_id} is dead without a reason"
    for agent in evidence.agents:
        outcomes = evidence.group(agent).outcomes
        buried = Counter(each.prediction_id for each in evidence.server.dead_letters if each.group == agent.group)
        for place, entry in evidence.entries_for(agent):
            if entry.prediction_id not in evidence.poison:
                continue
            wanted = 0 if outcomes.get(place) in ("dropped_oldest", "expired", "flushed") else 1
            count = buried[entry.prediction_id]  # an entry that an agent gave up and nobody buried is missed here
            yield (
                None if count == wanted else f"the poison {entry.prediction_id}: {count} dead letters of {agent.name}"
            )


def _outbox(evidence: Evidence) -> Iterator[str | None]:
    for place, producer in enumerate(evidence.producers):
        acked = set(producer.acked)
        yield None if len(acked) == len(producer.acked) else f"producer {place} was told of a record twice"
        if not producer.ended:
            continue  # killed: nobody knows what it had in hand
        num_open = producer.num_offered - len(acked)
        is_explained = num_open == producer.outbox_dropped + producer.outbox + len(set(producer.refused) - acked)
        yield (
            None
            if is_explained
            else (
                f"producer {place}: {num_open} of {producer.num_offered} records were not acknowledged, but its outbox "
                f"dropped {producer.outbox_dropped} and holds {producer.outbox}, {len(producer.refused)} were refused"
            )
        )


def _state_exact(evidence: Evidence) -> Iterator[str | None]:
    for agent in evidence.agents:
        wanted, expected = _reference(evidence, agent)
        found = evidence.decisions_of(agent)
        same = len(found) == len(expected)
        yield None if same else f"{agent.name} decided {len(found)} times, {len(expected)} follow from its entries"
        for real, due in zip(found, expected, strict=False):
            yield None if real == due else f"{agent.name} decided {_brief(real)} where {_brief(due)} follows"
        if agent.ended is None:
            yield f"{agent.name} left no checkpoint"
            continue
        wrong = _differences(wanted, agent.ended)
        yield None if not wrong else f"the checkpoint of {agent.name} differs in {', '.join(wrong)}"


def _reference(evidence: Evidence, agent: AgentEnd) -> tuple[Checkpoint, list[Decision]]:
    """The agent fed once with every entry that it says it applied, in the stream's order."""
    group = evidence.group(agent)
    decided = {each.prediction_id for each in evidence.decisions_of(agent)}
    twin = QLearningAgent.restored(agent.begun)
    decisions: list[Decision] = []
    for place, entry in evidence.entries_for(agent):
        outcome = group.outcomes.get(place)
        if outcome == "dead_lettered":
            twin.reject(entry.entry_id, _record(evidence, entry.prediction_id))
        elif (outcome == "acked" or entry.prediction_id in decided) and entry.prediction_id not in evidence.poison:
            decision = twin.apply(entry.entry_id, evidence.record_of(entry.prediction_id))
            if decision is not None:
                decisions.append(decision)
    return twin.checkpoint(), decisions


def _record(evidence: Evidence, identifier: str) -> PredictionRecord | None:
    return None if identifier in evidence.poison else evidence.record_of(identifier)


def _differences(wanted: Checkpoint, found: Checkpoint) -> list[str]:
    return [
        f"{name} ({_short(getattr(found, name))} instead of {_short(getattr(wanted, name))})"
        for name in type(wanted).model_fields
        if name not in NOT_LEARNT and getattr(wanted, name) != getattr(found, name)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _brief(decision: Decision) -> str:
    return f"{decision.prediction_id} {decision.action} reward {decision.reward}"
