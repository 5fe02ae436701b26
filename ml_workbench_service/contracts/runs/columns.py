"""Columns of a run's records: N values of one field, without a Python object for each.

    Coded      few different values, and which of them each row has
    Numbers    float64; NaN where a row has none
    Moments    milliseconds since the epoch; `NO_TIME` where a row has none
    Words      a text of its own for each row
    Nested     a contract, or the outputs by their names; absent where `is_there_N` says so

Each knows its values as a record has them, and its texts as JSON: one for all rows, or a list of N. A number's text is
orjson's, which is pydantic's too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import orjson
from pydantic_core import to_json

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import Contract, constructed, iso, to_ms
from ml_workbench_service.contracts.market import Bools, Floats, Ints

Texts = bytes | list[bytes]
"""What is written of a column: the same for all rows, or one for each."""
FEW = 64
"""Rows that a loop joins faster than numpy sorts them."""
ABSENT = -1
"""The place of a row that is in no other column."""
_OF_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_OF_MOMENTS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


class Column(ABC):
    """One field of N records."""

    @abstractmethod
    def value(self, number: int) -> Any:
        """A row's value, as its record has it."""

    @abstractmethod
    def values(self) -> list[Any]:
        """All of them."""

    @abstractmethod
    def texts(self) -> Texts:
        """As JSON."""

    @abstractmethod
    def missing(self) -> Bools | bool:
        """(N,) which rows have none; or whether none of them has one."""

    @abstractmethod
    def taken(self, places: Ints) -> "Column":
        """The rows at these places; nothing at `ABSENT`."""

    @abstractmethod
    def where(self, is_kept_N: Bools) -> "Column":
        """The same with nothing in the other rows."""


@dataclass(frozen=True)
class Coded(Column):
    """Few different values.

    Attributes:
        choices: the values; some may be in no row.
        codes_N: the place of each row's.
    """

    choices: tuple[Any, ...]
    codes_N: Ints

    @classmethod
    def same(cls, value: Any, num: int) -> "Coded":
        """One value for all rows."""
        return cls((value,), np.zeros(num, dtype=np.int64))

    @classmethod
    def of(cls, values: Iterable[Any]) -> "Coded":
        """By the different values, which can be hashed."""
        places: dict[Any, int] = {}
        codes = [places.setdefault(each, len(places)) for each in values]
        return cls(tuple(places) or (None,), np.array(codes, dtype=np.int64))

    @classmethod
    def joined(cls, join: Callable[..., Any], *parts: "Coded") -> "Coded":
        """What `join` makes of the rows' values, called once for those that occur together."""
        parts_left, num = [each for each in parts if not each.is_same], len(parts[0].codes_N)
        if not parts_left:
            return cls.same(join(*(each.choices[0] for each in parts)), num)
        if num <= FEW:
            together = cls.of(zip(*(each.codes_N.tolist() for each in parts), strict=True))
            return together.mapped(
                lambda codes: join(*(each.choices[code] for each, code in zip(parts, codes, strict=True)))
            )
        keys_N = np.zeros(len(parts[0].codes_N), dtype=np.int64)
        for each in parts_left:
            keys_N = keys_N * len(each.choices) + each.codes_N
        _, firsts, codes_N = np.unique(keys_N, return_index=True, return_inverse=True)
        found = [join(*(each.value(first) for each in parts)) for first in firsts.tolist()]
        return cls(tuple(found), codes_N)

    @property
    def is_same(self) -> bool:
        """Whether all rows have the same for sure."""
        return len(self.choices) == 1

    def value(self, number: int) -> Any:
        """See `Column`."""
        return self.choices[self.codes_N[number]]

    def values(self) -> list[Any]:
        """See `Column`."""
        if self.is_same:
            return [self.choices[0]] * len(self.codes_N)
        return list(map(self.choices.__getitem__, self.codes_N.tolist()))

    def mapped(self, change: Callable[[Any], Any]) -> "Coded":
        """Every value changed."""
        return Coded(tuple([change(each) for each in self.choices]), self.codes_N)

    def texts(self) -> Texts:
        """See `Column`."""
        return _spread([_json(each) for each in self.choices], self)

    def plain_texts(self) -> Texts:
        """Texts as they are, which are no JSON."""
        return _spread([(each or "").encode() for each in self.choices], self)

    def numbers(self) -> Floats:
        """(N,) numbers, NaN where there is none."""
        return np.array([np.nan if each is None else each for each in self.choices], dtype=np.float64)[self.codes_N]

    def missing(self) -> Bools | bool:
        """See `Column`."""
        is_none = [each is None for each in self.choices]
        if not any(is_none):
            return False
        return True if all(is_none) else np.array(is_none)[self.codes_N]

    def taken(self, places: Ints) -> "Coded":
        """See `Column`."""
        if not len(self.codes_N):
            return Coded.same(None, len(places))
        found = Coded(self.choices, self.codes_N[places])
        return found if not len(places) or places.min() >= 0 else found.where(places >= 0)

    def where(self, is_kept_N: Bools, otherwise: Any = None) -> "Coded":
        """See `Column`."""
        return Coded((*self.choices, otherwise), np.where(is_kept_N, self.codes_N, len(self.choices)))


@dataclass(frozen=True)
class Numbers(Column):
    """Numbers, NaN where a row has none."""

    values_N: Floats

    def value(self, number: int) -> float | None:
        """See `Column`."""
        value = float(self.values_N[number])
        return None if value != value else value

    def values(self) -> list[float | None]:
        """See `Column`."""
        found: list[float | None] = self.values_N.tolist()
        return found if not self.has_gaps else [None if each != each else each for each in found]

    @cached_property
    def has_gaps(self) -> bool:
        """Whether a row has none."""
        return bool(np.isnan(self.values_N).any())

    @cached_property
    def _texts(self) -> Texts:
        return _parts(orjson.dumps(np.ascontiguousarray(self.values_N), option=_OF_NUMPY))

    def texts(self) -> Texts:
        """See `Column`."""
        return self._texts

    def missing(self) -> Bools | bool:
        """See `Column`."""
        if not self.has_gaps:
            return False
        is_none = np.isnan(self.values_N)
        return True if is_none.all() else is_none

    def taken(self, places: Ints) -> "Numbers":
        """See `Column`."""
        if not len(self.values_N):
            return Numbers(np.full(len(places), np.nan))
        found = self.values_N[places]
        return Numbers(found if not len(places) or places.min() >= 0 else np.where(places >= 0, found, np.nan))

    def where(self, is_kept_N: Bools) -> "Numbers":
        """See `Column`."""
        return Numbers(np.where(is_kept_N, self.values_N, np.nan))


@dataclass(frozen=True)
class Moments(Column):
    """Moments; every row has one."""

    ms_N: Ints

    def value(self, number: int) -> datetime:
        """See `Column`."""
        return _moment(int(self.ms_N[number]))

    def values(self) -> list[datetime]:
        """See `Column`."""
        return list(map(_moment, self.ms_N.tolist()))

    def texts(self) -> Texts:
        """See `Column`."""
        return _parts(orjson.dumps(self.ms_N.astype("datetime64[ms]"), option=_OF_MOMENTS))

    def missing(self) -> bool:
        """See `Column`."""
        return False

    def taken(self, places: Ints) -> "Moments":
        """See `Column`."""
        return Moments(self.ms_N[places])

    def where(self, is_kept_N: Bools) -> Coded:
        """See `Column`."""
        return Coded.of(self.values()).where(is_kept_N)


@dataclass(frozen=True)
class Words(Column):
    """A text for each row, of letters and figures alone: as JSON it stands in quotes, as it is."""

    words: Sequence[str]

    def value(self, number: int) -> str:
        """See `Column`."""
        return self.words[number]

    def values(self) -> list[str]:
        """See `Column`."""
        return list(self.words)

    def texts(self) -> Texts:
        """See `Column`."""
        return [b'"%b"' % each.encode() for each in self.words]

    def missing(self) -> bool:
        """See `Column`."""
        return False

    def taken(self, places: Ints) -> "Words":
        """See `Column`."""
        return Words([self.words[place] for place in places.tolist()])

    def where(self, is_kept_N: Bools) -> Coded:
        """See `Column`."""
        return Coded.of(self.words).where(is_kept_N)


@dataclass(frozen=True)
class Nested(Column):
    """Several fields that are one field of the record.

    Attributes:
        kind: the contract; None: the fields by their names.
        fields: in the contract's order.
        is_there_N: (N,) or for all rows alike.
    """

    kind: type[Contract] | None
    fields: Mapping[str, Column]
    is_there_N: Bools | bool = True

    def value(self, number: int) -> Any:
        """See `Column`."""
        if not (self.is_there_N if isinstance(self.is_there_N, bool) else self.is_there_N[number]):
            return None
        return self._made({name: each.value(number) for name, each in self.fields.items()})

    def values(self) -> list[Any]:
        """See `Column`."""
        names = tuple(self.fields)
        columns = [each.values() for each in self.fields.values()]
        found = [self._made(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
        if isinstance(self.is_there_N, bool):
            return found if self.is_there_N else [None] * len(found)
        return [each if is_there else None for each, is_there in zip(found, self.is_there_N.tolist(), strict=True)]

    def _made(self, values: dict[str, Any]) -> Any:
        return values if self.kind is None else constructed(self.kind, values)

    def texts(self) -> Texts:
        """See `Column`."""
        if self.is_there_N is False:
            return b"null"
        found = joined(object_of(self.fields))
        if self.is_there_N is True:
            return found
        each = repeat(found) if isinstance(found, bytes) else found
        return [text if is_there else b"null" for text, is_there in zip(each, self.is_there_N.tolist())]  # noqa: B905

    def missing(self) -> Bools | bool:
        """See `Column`."""
        return not self.is_there_N if isinstance(self.is_there_N, bool) else ~self.is_there_N

    def taken(self, places: Ints) -> "Nested":
        """See `Column`."""
        is_there_N = self.is_there_N if isinstance(self.is_there_N, bool) else self.is_there_N[places]
        fields = {name: each.taken(places) for name, each in self.fields.items()}
        found = replace(self, fields=fields, is_there_N=is_there_N)
        return found if not len(places) or places.min() >= 0 else found.where(places >= 0)

    def where(self, is_kept_N: Bools) -> "Nested":
        """See `Column`."""
        return replace(self, is_there_N=is_kept_N & self.is_there_N)

    def each_where(self, is_kept_N: Bools) -> "Nested":
        """The same with fields of nothing in the other rows, which are still there."""
        return replace(self, fields={name: each.where(is_kept_N) for name, each in self.fields.items()})


def object_of(fields: Mapping[str, Column]) -> list[Texts]:
    """The pieces of an object in JSON."""
    pieces: list[Texts] = []
    for name, each in fields.items():
        pieces += [(b"," if pieces else b"{") + to_json(name) + b":", each.texts()]
    return [*pieces, b"}" if pieces else b"{}"]


def joined(pieces: Iterable[Texts]) -> Texts:
    """Pieces one behind the other, row by row."""
    whole: list[Texts] = []
    for each in pieces:
        if isinstance(each, bytes) and whole and isinstance(whole[-1], bytes):
            whole[-1] = whole[-1] + each
        else:
            whole.append(each)
    if len(whole) == 1:
        return whole[0]
    return list(map(b"".join, zip(*(repeat(each) if isinstance(each, bytes) else each for each in whole))))  # noqa: B905


def moments_ms(column: Column) -> Ints:
    """(N,) milliseconds of a column of moments; `NO_TIME` where there is none."""
    if isinstance(column, Moments):
        return column.ms_N
    assert isinstance(column, Coded), "moments are whole columns of them, or few different ones"
    choices = [NO_TIME if each is None else to_ms(each) for each in column.choices]
    return np.array(choices, dtype=np.int64)[column.codes_N]


def _spread(choices: list[bytes], column: Coded) -> Texts:
    return choices[0] if column.is_same else list(map(choices.__getitem__, column.codes_N.tolist()))


def _parts(whole: bytes) -> Texts:
    """The elements of a list in JSON that has no comma within an element."""
    return whole[1:-1].split(b",") if len(whole) > 2 else []


def _json(value: Any) -> bytes:
    if isinstance(value, datetime):
        return b'"%b"' % iso(value).encode()
    return to_json(value)


def _moment(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
