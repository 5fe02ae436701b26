"""Operation histories: what the producers were told, and what the server's log of effects says became of it.

For a group an entry ends in exactly one way; the server's log shows each: acknowledged, dropped as the oldest at
capacity, expired, dead-lettered, or wiped out by FLUSHALL. What has no end is still open.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.queue import DECISIONS_STREAM
from ml_workbench_service.resilience.server_log import Words, added, blocks, ids_of

Outcome = Literal["acked", "dropped_oldest", "expired", "dead_lettered", "flushed"]
COUNTED: tuple[Outcome, ...] = ("acked", "dropped_oldest", "expired", "dead_lettered")
ACCOUNTING = ":books:"
DEAD = ":dead"
GroupKey = tuple[str, str]
"""Stream and group."""


@dataclass(frozen=True)
class ProducerHistory:
    """What one producing process wrote down."""

    first: int = 0
    acked: tuple[int, ...] = ()
    offered_up_to: int = -1
    late_ms: tuple[float, ...] = ()
    refused: tuple[int, ...] = ()  # at capacity, by the policy `reject`
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
        refused: list[int] = []
        late_ms: list[float] = []
        end: dict[str, Any] = {}
        offered = first - 1
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            said = json.loads(line)
            acked += said.get("acked", ())
            refused += said.get("refused", ())
            late_ms += said.get("late_ms", ())
            offered = said.get("offered", offered)
            end = said if said.get("ended") else end
        return cls(
            first=first,
            acked=tuple(acked),
            offered_up_to=offered,
            late_ms=tuple(late_ms),
            refused=tuple(refused),
            ended=bool(end),
            outbox=end.get("outbox", 0),
            outbox_dropped=end.get("outbox_dropped", 0),
        )


@dataclass(frozen=True)
class Entry:
    """One entry of a predictions stream; its place is the order in which the server took it."""

    stream: str
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
    """One entry of a stream's dead letters."""

    group: GroupKey
    prediction_id: str
    reason: str


@dataclass
class GroupHistory:
    """How each entry ended for one group, by the entry's place."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    members: set[int] = field(default_factory=set)  # entries in the group's accounting since it was made last
    faults: list[str] = field(default_factory=list)  # counters that say something else than the entries

    def count(self, outcome: Outcome) -> int:
        """Entries of the present accounting that ended so."""
        return sum(self.outcomes.get(place) == outcome for place in self.members)


@dataclass
class ServerHistory:
    """Everything that the server took, in its order."""

    entries: list[Entry] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    groups: dict[GroupKey, GroupHistory] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: Path, groups: Iterable[GroupKey], *, is_as_offered: Callable[[str, Mapping[bytes, bytes]], bool]
    ) -> "ServerHistory":
        """The history in a server's append-only file.

        Args:
            folder: where the server keeps its data.
            groups: whose fate is wanted, on which stream.
            is_as_offered: whether an entry's fields are what was offered under that prediction id.
        """
        reading = _Reading(cls(groups={key: GroupHistory() for key in groups}), is_as_offered)
        for block in blocks(folder):
            reading.take(block)
        return reading.history


class _Reading:
    """Follows the server's effects, one script at a time."""

    def __init__(self, history: ServerHistory, is_as_offered: Callable[[str, Mapping[bytes, bytes]], bool]) -> None:
        self.history = history
        self._is_as_offered = is_as_offered
        self._streams = {stream for stream, _ in history.groups}
        self._place_of: dict[tuple[str, str], int] = {}  # by stream and entry id
        self._living: set[tuple[str, str]] = set()
        self._made: set[GroupKey] = set()  # groups that exist

    def take(self, block: Sequence[Words]) -> None:
        """One block of effects."""
        effects = _Effects()
        for words in block:
            verb = words[0].upper()
            key = words[1].decode("utf-8", "replace") if len(words) > 1 else ""
            if verb == b"XADD":
                self._add(words)
            elif verb == b"XACK" and key in self._streams:
                effects.acknowledged.setdefault((key, words[2].decode()), []).extend(ids_of(words, after=3))
            elif verb == b"XDEL" and key in self._streams:
                effects.deleted.setdefault(key, []).extend(ids_of(words, after=2))
            elif verb == b"HINCRBY" and ACCOUNTING in key:
                stream, _, group = key.partition(ACCOUNTING)
                counted = effects.counted.setdefault((stream, group), Counter())
                counted[words[2].decode()] += int(words[3])
            elif verb == b"XGROUP" and words[1].upper() == b"CREATE":
                self._make((words[2].decode(), words[3].decode()))
            elif verb in (b"FLUSHALL", b"FLUSHDB"):
                self._flush()
        for group_key, history in self.history.groups.items():
            self._note_ends(group_key, history, effects)
        for stream, ids in effects.deleted.items():
            self._living.difference_update((stream, entry_id) for entry_id in ids)

    def _add(self, words: Words) -> None:
        entry = added(words)
        identifier = entry.fields.get(b"prediction_id", b"").decode("utf-8", "replace")
        if entry.stream in self._streams:
            place = len(self.history.entries)
            self._place_of[entry.stream, entry.entry_id] = place
            self._living.add((entry.stream, entry.entry_id))
            for key in self._made & self.history.groups.keys():
                if key[0] == entry.stream:
                    self.history.groups[key].members.add(place)
            is_as_offered = self._is_as_offered(identifier, entry.fields)
            self.history.entries.append(Entry(entry.stream, entry.entry_id, identifier, is_as_offered))
        elif entry.stream == DECISIONS_STREAM:
            self.history.decided.append(Decided(entry.entry_id, unflatten(Decision, entry.fields)))
        elif entry.stream.removesuffix(DEAD) in self._streams:
            reason = entry.fields.get(b"reason", b"").decode("utf-8", "replace")
            group = (entry.stream.removesuffix(DEAD), entry.fields.get(b"group", b"").decode())
            self.history.dead_letters.append(DeadLetter(group, identifier, reason))

    def _make(self, key: GroupKey) -> None:
        self._made.add(key)
        if (group := self.history.groups.get(key)) is not None:
            group.members = {self._place_of[living] for living in self._living if living[0] == key[0]}

    def _flush(self) -> None:
        """Whatever a group had not acknowledged is lost by the operator's act, and so are the groups."""
        for (stream, _), group in self.history.groups.items():
            for living in self._living:
                if living[0] == stream:
                    group.outcomes.setdefault(self._place_of[living], "flushed")
            group.members = set()
        self._living.clear()
        self._made.clear()

    def _note_ends(self, key: GroupKey, group: GroupHistory, effects: "_Effects") -> None:
        """The ends that one script brought to a group: the entries it ended, told apart by the counters it raised."""
        deleted = effects.deleted.get(key[0], [])
        if key not in self._made:  # between a FLUSHALL and the group's return: lost by the same act
            for entry_id in deleted:
                group.outcomes.setdefault(self._place_of[key[0], entry_id], "flushed")
            return
        counted = effects.counted.get(key, Counter())
        ended = list(effects.acknowledged.get(key, []))
        if counted["dropped_oldest"] or counted["expired"]:  # what it had not been handed yet is only deleted
            ended += [each for each in deleted if self._place_of[key[0], each] not in group.outcomes]
        places = list(dict.fromkeys(self._place_of[key[0], entry_id] for entry_id in ended))
        kinds = [kind for kind in COUNTED for _ in range(counted[kind])]
        if len(places) != len(kinds):
            group.faults.append(f"{key[1]}: one step ended {len(places)} entries and counted {dict(counted)}")
        for place, kind in zip(places, kinds, strict=False):
            if place in group.outcomes:
                name = self.history.entries[place].prediction_id
                group.faults.append(f"{key[1]}: {name} ended twice: {group.outcomes[place]}, then {kind}")
            group.outcomes.setdefault(place, kind)


@dataclass
class _Effects:
    """What one script did to entries: by group acknowledged, by stream deleted, by group counted."""

    acknowledged: dict[GroupKey, list[str]] = field(default_factory=dict)
    deleted: dict[str, list[str]] = field(default_factory=dict)
    counted: dict[GroupKey, Counter[str]] = field(default_factory=dict)
