"""Hypothesis families: which evaluations of the multiple-testing log bet on one return series and kind of target, and
what p-values the others of a family have today.

A family is every recipe on the same series and subject, however old, and whatever else overlaps in time: evaluations
without a recipe, and trials of other jobs, for a search whose validation part lies in a test part has chosen by it.

Many evaluations are asked at once and the log is read once for all of them; the answers hold until the log has changed.
Which series are one is a fact for good, kept as long as the process lives.
"""

import json
import sqlite3
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.multiple_testing import AGENT_TRIAL
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint

MOST_ANSWERS = 2_000
"""Kept answers: each holds its family's p-values, a few kilobytes."""
MOST_COMPARISONS = 500_000
"""Kept comparisons of two series, some 60 MB."""

_SUBJECTS = "SELECT DISTINCT subject FROM readings WHERE kind = 'look' AND id IN (SELECT value FROM json_each(?))"
_OF_SUBJECTS = "r.subject IN (SELECT value FROM json_each(?))"
_EVALUATIONS = (
    "SELECT r.number, r.id, r.subject, r.start_ms, r.end_ms, h.recipe, s.p_value FROM readings AS r "
    "LEFT JOIN hypotheses AS h ON h.number = r.number LEFT JOIN results AS s ON s.number = r.number "
    f"WHERE r.kind = 'look' AND {_OF_SUBJECTS} ORDER BY r.number"
)
_TRIALS = (
    "SELECT r.number, r.id, r.subject, r.start_ms, r.end_ms FROM readings AS r "
    f"WHERE r.kind = 'trial' AND {_OF_SUBJECTS} AND instr(r.id, ?) = 0"
)

_Series = tuple[frozenset[str], tuple[str, ...]]
"""What an evaluation bets on: symbols, and digests of the series where they are known."""


@dataclass(frozen=True)
class _Part:
    """What was read of a subject; the job tells whose it is, for a job's trials and walk tell of the same model."""

    job: str
    subject: str
    start_ms: int
    end_ms: int
    symbols: frozenset[str]

    def overlaps(self, other: "_Part") -> bool:
        """In time; half-open."""
        return other.start_ms < self.end_ms and other.end_ms > self.start_ms


@dataclass(frozen=True)
class _Noted:
    """An evaluation that was noted."""

    id: str
    part: _Part
    digests: tuple[str, ...]
    recipe: str | None
    p_value: float | None

    @property
    def series(self) -> _Series:
        """What it bets on."""
        return self.part.symbols, self.digests


class HypothesisFamilies:
    """Families of one log's evaluations; for one thread at a time."""

    def __init__(self) -> None:
        self._as_of: object = None
        self._answers: dict[str, tuple[float | None, ...]] = {}
        self._same: dict[tuple[str, str], bool | None] = {}

    def other_p_values(
        self, connection: sqlite3.Connection, evaluations: Iterable[str], *, as_of: object
    ) -> dict[str, tuple[float | None, ...]]:
        """Of each evaluation: today's p-values of all others in its family; empty of one that was never noted.

        The same object until the log has changed.

        Args:
            connection: to the log.
            evaluations: ids.
            as_of: another value where the log may have changed since the last call.
        """
        wanted = list(dict.fromkeys(evaluations))
        if as_of != self._as_of or len(self._answers) > MOST_ANSWERS:
            self._as_of, self._answers = as_of, {}
        missing = [each for each in wanted if each not in self._answers]
        if missing:
            self._answers |= self._read(connection, missing)
        return {each: self._answers[each] for each in wanted}

    def _read(self, connection: sqlite3.Connection, wanted: Sequence[str]) -> dict[str, tuple[float | None, ...]]:
        subjects = json.dumps([name for (name,) in connection.execute(_SUBJECTS, (json.dumps(wanted),))])
        symbols = _gathered(connection, "SELECT number, symbol FROM reading_symbols")
        digests = _gathered(connection, "SELECT number, digest FROM hypothesis_series")
        noted: dict[str, list[_Noted]] = defaultdict(list)
        for number, name, subject, start_ms, end_ms, recipe, p_value in connection.execute(_EVALUATIONS, (subjects,)):
            part = _part(name, subject, start_ms, end_ms, symbols[number])
            noted[subject].append(_Noted(name, part, tuple(digests[number]), recipe, p_value))
        trials = Counter(
            _part(name, subject, start_ms, end_ms, symbols[number])
            for number, name, subject, start_ms, end_ms in connection.execute(_TRIALS, (subjects, AGENT_TRIAL))
        )
        known = _Fingerprints(connection, self._same)
        found: dict[str, tuple[float | None, ...]] = dict.fromkeys(wanted, ())
        own = {each.id: each for members in noted.values() for each in members if each.id in found}
        for name, each in own.items():
            hypotheses = _hypotheses(each, noted[each.part.subject], known)
            found[name] = (*hypotheses, *[None] * _num_foreign(each.part, trials))
        return found


def _gathered(connection: sqlite3.Connection, query: str) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for number, value in connection.execute(query):
        found[number].append(value)
    return found


def _part(name: str, subject: str, start_ms: int, end_ms: int, symbols: Sequence[str]) -> _Part:
    return _Part(name.partition("/")[0], subject, start_ms, end_ms, frozenset(symbols))


def _hypotheses(own: _Noted, noted: Sequence[_Noted], known: "_Fingerprints") -> list[float | None]:
    """The other hypotheses' latest p-values; None where one never told anything."""
    found: dict[str, float | None] = {}
    shared: dict[_Series, bool] = {}
    for each in noted:
        if each.part.job == own.part.job or (each.recipe is not None and each.recipe == own.recipe):
            continue
        if each.recipe is None and not own.part.overlaps(each.part):
            continue
        if each.series not in shared:
            shared[each.series] = known.are_one(own.series, each.series)
        if shared[each.series]:
            name = each.recipe or f"{each.id} alone"
            found[name] = each.p_value if each.p_value is not None else found.get(name)
    return list(found.values())


def _num_foreign(own: _Part, trials: Mapping[_Part, int]) -> int:
    """Trials of other jobs whose validation part lies in this part."""
    return sum(
        num
        for each, num in trials.items()
        if each.subject == own.subject and each.job != own.job and own.overlaps(each) and own.symbols & each.symbols
    )


class _Fingerprints:
    """Series by their digests, each read once; pairs are compared once for good."""

    def __init__(self, connection: sqlite3.Connection, same: dict[tuple[str, str], bool | None]) -> None:
        self._connection = connection
        self._read: dict[str, ReturnFingerprint] = {}
        self._same = same

    def are_one(self, own: _Series, other: _Series) -> bool:
        """By the series where they can be compared, else by names."""
        found = [self._is_same(one, another) for one in own[1] for another in other[1]]
        told = [each for each in found if each is not None]
        return any(told) if told else bool(own[0] & other[0])

    def _is_same(self, one: str, other: str) -> bool | None:
        """Whether two digests are of one series; None where that cannot be told."""
        if one == other:
            return True
        pair = (one, other) if one < other else (other, one)
        if pair not in self._same:
            if len(self._same) >= MOST_COMPARISONS:
                self._same.clear()
            self._same[pair] = self._of(one).is_same(self._of(other))
        return self._same[pair]

    def _of(self, digest: str) -> ReturnFingerprint:
        if digest not in self._read:
            query = "SELECT symbol, step_ms, steps, log_close FROM return_series WHERE digest = ?"
            symbol, step_ms, steps, log_close = self._connection.execute(query, (digest,)).fetchone()
            arrays = (np.frombuffer(zlib.decompress(blob), kind) for blob, kind in ((steps, "<i8"), (log_close, "<f8")))
            self._read[digest] = ReturnFingerprint(symbol, step_ms, *arrays)
        return self._read[digest]
