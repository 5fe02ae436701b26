"""Histories: what the producers say that they were told, and what the server's log of effects says became of it.

For a group an entry ends in exactly one way; the server's log shows each: acknowledged, dropped as the oldest at
capacity, expired, dead-lettered, or wiped out by FLUSHALL. What has no end is still open.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.queue import DEAD_LETTERS_STREAM, DECISIONS_STREAM, PREDICTIONS_STREAM
from ml_workbench_service.resilience.server_log import Words, added, blocks, ids_of

Outcome = Literal["acked", "dropped_oldest", "expired", "dead_lettered", "flushed"]
COUNTED: tuple[Outcome, ...] = ("acked", "dropped_oldest", "expired", "dead_lettered")
BOOKS_PREFIX = PREDICTIONS_STREAM + ":books:"


@dataclass(frozen=True)
class ProducerHistory:
    """What one producing process wrote down."""

    first: int = 0
    acked: tuple[int, ...] = ()
    offered_up_to: int = -1
    late_ms: tuple[float, ...] = ()
    acked_at: tuple[float, ...] = ()  # time.monotonic() of each acknowledgment
    ended: bool = False  # in an orderly way; a killed one does not know what it had in hand
    outbox: int = 0
    outbox_dropped: int = 0

    @property
    def num_offered(self) -> int:
        """Records handed to the publisher."""
        return self.offered_up_to - self.first + 1

    @classmethod
    def read(cls, file: Path, *, first: int) -> "ProducerHistory":
        """The history in a file; a torn last line is passed over."""
        acked: list[int] = []
        acked_at: list[float] = []
        late_ms: list[float] = []
        end: dict[str, Any] = {}
        offered = first - 1
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            said = json.loads(line)
            if "acked" in said:
                acked += said["acked"]
                acked_at += [said["at"]] * len(said["acked"])
            late_ms += said.get("late_ms", ())
            offered = said.get("offered", offered)
            end = said if said.get("ended") else end
        return cls(
            first=first,
            acked=tuple(acked),
            offered_up_to=offered,
            late_ms=tuple(late_ms),
            acked_at=tuple(acked_at),
            ended=bool(end),
            outbox=end.get("outbox", 0),
            outbox_dropped=end.get("outbox_dropped", 0),
        )


@dataclass(frozen=True)
class Entry:
    """One entry of the predictions stream; its place is the order in which the server took it."""

    entry_id: str
    prediction_id: str
    is_as_offered: bool = True  # the fields are those that its producer offered


@dataclass(frozen=True)
class Decided:
    """One entry of the decisions stream."""

    entry_id: str
    decision: Decision


@dataclass(frozen=True)
class DeadLetter:
    """One entry of the dead letters."""

    group: str
    prediction_id: str
    reason: str
    place: int | None  # of the entry in the predictions stream


@dataclass
class GroupHistory:
    """How each entry ended for one group, by the entry's place."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    members: set[int] = field(default_factory=set)  # entries in the group's books since it was made last
    faults: list[str] = field(default_factory=list)  # counters that say something else than the entries

    def count(self, outcome: Outcome) -> int:
        """Entries of the present books that ended so."""
        return sum(self.outcomes.get(place) == outcome for place in self.members)


@dataclass
class ServerHistory:
    """Everything that the server took, in its order."""

    entries: list[Entry] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    groups: dict[str, GroupHistory] = field(default_factory=dict)
    num_flushes: int = 0

    @classmethod
    def read(
        cls, folder: Path, groups: Iterable[str], *, is_as_offered: Callable[[str, Mapping[bytes, bytes]], bool]
    ) -> "ServerHistory":
        """The history in a server's append-only file.

        Args:
            folder: where the server keeps its data.
            groups: whose fate is wanted.
            is_as_offered: whether an entry's fields are what was offered under that prediction id.
        """
        reading = _Reading(cls(groups={name: GroupHistory() for name in groups}), is_as_offered)
        for block in blocks(folder):
            reading.take(block)
        return reading.history


class _Reading:
    """Follows the server's effects, one script at a time."""

    def __init__(self, history: ServerHistory, is_as_offered: Callable[[str, Mapping[bytes, bytes]], bool]) -> None:
        self.history = history
        self._is_as_offered = is_as_offered
        self._place_of: dict[str, int] = {}  # of the entries in the stream, and of those just deleted in the block
        self._living: set[str] = set()
        self._made: set[str] = set()  # groups that exist

    def take(self, block: Sequence[Words]) -> None:
        """One block of effects."""
        acknowledged: dict[str, list[str]] = {}
        deleted: list[str] = []
        counted: dict[str, dict[str, int]] = {}
        for words in block:
            verb = words[0].upper()
            key = words[1].decode("utf-8", "replace") if len(words) > 1 else ""
            if verb == b"XADD":
                self._add(words)
            elif verb == b"XACK" and key == PREDICTIONS_STREAM:
                acknowledged.setdefault(words[2].decode(), []).extend(ids_of(words, after=3))
            elif verb == b"XDEL" and key == PREDICTIONS_STREAM:
                deleted += ids_of(words, after=2)
            elif verb == b"HINCRBY" and key.startswith(BOOKS_PREFIX):
                counted.setdefault(key.removeprefix(BOOKS_PREFIX), {})[words[2].decode()] = int(words[3])
            elif verb == b"XGROUP" and words[1].upper() == b"CREATE" and words[2].decode() == PREDICTIONS_STREAM:
                self._make(words[3].decode())
            elif verb in (b"FLUSHALL", b"FLUSHDB"):
                self._flush()
        for name, group in self.history.groups.items():
            self._settle(name, group, acknowledged.get(name, []), deleted, counted.get(name, {}))
        self._living.difference_update(deleted)

    def _add(self, words: Words) -> None:
        entry = added(words)
        identifier = entry.fields.get(b"prediction_id", b"").decode("utf-8", "replace")
        if entry.stream == PREDICTIONS_STREAM:
            self._place_of[entry.entry_id] = len(self.history.entries)
            self._living.add(entry.entry_id)
            for name in self._made & self.history.groups.keys():
                self.history.groups[name].members.add(len(self.history.entries))
            is_as_offered = self._is_as_offered(identifier, entry.fields)
            self.history.entries.append(Entry(entry.entry_id, identifier, is_as_offered))
        elif entry.stream == DECISIONS_STREAM:
            self.history.decided.append(Decided(entry.entry_id, unflatten(Decision, entry.fields)))
        elif entry.stream == DEAD_LETTERS_STREAM:
            place = self._place_of.get(entry.fields.get(b"entry_id", b"").decode())
            reason = entry.fields.get(b"reason", b"").decode("utf-8", "replace")
            group = entry.fields.get(b"group", b"").decode()
            self.history.dead_letters.append(DeadLetter(group, identifier, reason, place))

    def _make(self, name: str) -> None:
        self._made.add(name)
        if (group := self.history.groups.get(name)) is not None:
            group.members = {self._place_of[entry_id] for entry_id in self._living}

    def _flush(self) -> None:
        """Whatever a group had not settled is lost by the operator's act, and so are the groups."""
        self.history.num_flushes += 1
        for group in self.history.groups.values():
            for entry_id in self._living:
                group.outcomes.setdefault(self._place_of[entry_id], "flushed")
            group.members = set()
        self._living.clear()
        self._made.clear()

    def _settle(
        self, name: str, group: GroupHistory, acknowledged: list[str], deleted: list[str], counted: dict[str, int]
    ) -> None:
        """The ends that one script brought to a group: told apart by the counter that it raised."""
        evictions = {kind: counted[kind] for kind in ("dropped_oldest", "expired") if counted.get(kind)}
        ended: list[tuple[str, Outcome]] = []
        if name not in self._made:  # between a FLUSHALL and the group's return: lost by the same act
            ended = [(entry_id, "flushed") for entry_id in deleted]
        elif evictions:
            kinds: list[Outcome] = [kind for kind in COUNTED for _ in range(evictions.get(kind, 0))]
            gone = [each for each in dict.fromkeys(deleted) if self._place_of[each] not in group.outcomes]
            ended = list(zip(gone, kinds, strict=False))
            if len(gone) != len(kinds):
                group.faults.append(f"{len(gone)} entries were evicted in one step, {len(kinds)} were counted")
        else:
            kind: Outcome = "dead_lettered" if counted.get("dead_lettered") else "acked"
            ended = [(entry_id, kind) for entry_id in acknowledged]
            if counted.get(kind, 0) != len(acknowledged):
                group.faults.append(f"{len(acknowledged)} entries were settled in one step, counted {counted}")
        for entry_id, outcome in ended:
            place = self._place_of[entry_id]
            if place in group.outcomes:
                group.faults.append(f"entry {entry_id} ended twice: {group.outcomes[place]}, then {outcome}")
            group.outcomes.setdefault(place, outcome)
