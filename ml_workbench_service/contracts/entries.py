"""Contracts as entries of a Redis stream: one field a key, texts as they are, everything else as JSON, nulls left out.

So a consumer in any language reads `symbol`, `price` or `direction` by name, without knowing our classes.

Thousands of records a second pass here twice. A class whose fields are texts, moments, numbers, and tuples, dicts and
contracts of those (each contract of its declared class) is written field by field, without pydantic's dump between; any
other class through that dump, with the same result.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from operator import attrgetter, itemgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import orjson
from pydantic import PlainSerializer, WrapSerializer

from ml_workbench_service.contracts.contract import Contract, iso

AnyContract = TypeVar("AnyContract", bound=Contract)
Write = Callable[[Any], bytes]
SEPARATOR = b"\x1e"
"""ASCII's record separator, which ends each value where a whole entry is one text; JSON never holds it bare."""


def flatten(contract: Contract) -> list[str | bytes]:
    """Names and values, alternating, ready for XADD."""
    columns = _writers(type(contract))
    if columns is None:
        return _flatten_dumped(contract)
    values = contract.__dict__
    fields: list[str | bytes] = []
    for name, write in columns:
        value = values[name]
        if value is not None:
            fields += (name, value if write is None else write(value))
    return fields


def _flatten_dumped(contract: Contract) -> list[str | bytes]:
    fields: list[str | bytes] = []
    for name, value in contract.model_dump(mode="json").items():
        if value is not None:
            fields += (name, value if isinstance(value, str) else orjson.dumps(value))
    return fields


def row(contract: Contract) -> tuple[tuple[str, ...], list[bytes]]:
    """The same as names and values apart; records of the same shape share their names."""
    layout = _layout(type(contract))
    if layout is None:
        fields = flatten(contract)
        return tuple(map(str, fields[::2])), [each.encode() if isinstance(each, str) else each for each in fields[1::2]]
    state = contract.__dict__
    values = layout.read(state)
    written = [write(value) for value, write in zip(values, layout.writes) if value is not None]  # noqa: B905
    gaps = tuple([value is None for value in layout.read_nullable(state)])
    names = layout.names_by_gaps.get(gaps)
    if names is None:
        names = tuple(name for name, value in zip(layout.names, values, strict=True) if value is not None)
        layout.names_by_gaps[gaps] = names
    return names, written


@lru_cache(maxsize=16)
def written_as(kind: type[Contract]) -> Mapping[str, Literal["text", "moment", "json"]]:
    """How an entry has each field of a class that is written field by field."""
    writers = _writers(kind)
    assert writers is not None, "only a class that pydantic's dump is not needed for has columns"
    return {name: "text" if write is None else "moment" if write is _moment else "json" for name, write in writers}


def unflatten(kind: type[AnyContract], fields: Mapping[bytes, bytes]) -> AnyContract:
    """The contract behind an entry; other fields are passed over.

    Raises:
        ValidationError: the fields are not this contract's.
    """
    columns, nullable = _columns(kind)
    parts: dict[str, Any] = {name: None for key, name in nullable if key not in fields}
    for key, value in fields.items():
        column = columns.get(key)
        if column is not None:
            name, is_text = column
            parts[name] = value.decode("utf-8", "replace") if is_text else orjson.Fragment(value)
    return kind.model_validate_json(orjson.dumps(parts))


@lru_cache(maxsize=16)
def _columns(kind: type[Contract]) -> tuple[dict[bytes, tuple[str, bool]], tuple[tuple[bytes, str], ...]]:
    """Each key with its name and whether it is a text; and the required keys that may be null: `flatten` omits them."""
    properties: dict[str, Any] = kind.model_json_schema(mode="serialization")["properties"]
    types = {name: _types(schema) for name, schema in properties.items()}
    columns = {name.encode(): (name, "string" in found) for name, found in types.items()}
    nullable = [name for name, found in types.items() if "null" in found and kind.model_fields[name].is_required()]
    return columns, tuple((name.encode(), name) for name in nullable)


def _types(schema: Mapping[str, Any]) -> set[str]:
    return {each["type"] for each in (schema, *schema.get("anyOf", ())) if "type" in each}


@lru_cache(maxsize=16)
def _writers(kind: type[Contract]) -> tuple[tuple[str, Write | None], ...] | None:
    """How each field is written, None for a text; None for all where pydantic's dump has to do it."""
    if not _is_plain(kind):
        return None
    shapes = {name: _shapes(field.annotation, field.metadata) - {"null"} for name, field in kind.model_fields.items()}
    if any(len(found) > 1 and not found <= set(_JSON) for found in shapes.values()):
        return None  # a text stands as it is, everything else as JSON: what may be either is for the dump
    return tuple((name, _WRITE[max(found, key=list(_WRITE).index, default="leaves")]) for name, found in shapes.items())


class _Layout(NamedTuple):
    """How the fields of one class become values."""

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    writes: tuple[Write, ...]
    read_nullable: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    names_by_gaps: dict[tuple[bool, ...], tuple[str, ...]]


@lru_cache(maxsize=16)
def _layout(kind: type[Contract]) -> _Layout | None:
    """None where pydantic's dump has to do it, or where fewer than two fields may be null."""
    writers = _writers(kind)
    nullable = [n for n, f in kind.model_fields.items() if "null" in _shapes(f.annotation, f.metadata)]
    if writers is None or len(nullable) < 2:
        return None
    names = tuple(name for name, _ in writers)
    writes = tuple(str.encode if write is None else write for _, write in writers)
    return _Layout(names, itemgetter(*names), writes, itemgetter(*nullable), {})


def _moment(value: datetime) -> bytes:
    if value.tzinfo is UTC and type(value) is datetime:
        return orjson.dumps(value, None, orjson.OPT_UTC_Z)[1:-1]  # a tenth of what isoformat costs
    return iso(value).encode()


_state = attrgetter("__dict__")  # pydantic's own isinstance would take as long as all the rest


def _parts(value: Any) -> bytes:
    return orjson.dumps(value, _state)


def _special(value: Any) -> bytes:
    return orjson.dumps(value, _state_of, orjson.OPT_PASSTHROUGH_DATETIME)


def _state_of(value: Any) -> Any:
    return iso(value) if isinstance(value, datetime) else _state(value)


def _is_plain(kind: type[Contract]) -> bool:
    """Whether an instance's `__dict__` is what pydantic would dump of it, moments aside."""
    custom = kind.__pydantic_decorators__
    if custom.field_serializers or custom.model_serializers or custom.computed_fields:
        return False
    if any(isinstance(each, cached_property) for base in kind.__mro__ for each in vars(base).values()):
        return False
    return not any(
        field.exclude
        or field.exclude_if
        or field.serialization_alias
        or "other" in _shapes(field.annotation, field.metadata)
        for field in kind.model_fields.values()
    )


def _shapes(annotation: Any, metadata: Sequence[Any] = ()) -> set[str]:
    """What a field of this type may hold.

    text, moment, null; leaves: numbers, and lists and dicts of texts and numbers; parts: contracts within;
    special: moments within; other: anything else.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shapes(arguments[0], (*annotation.__metadata__, *metadata))
    serializers = [each.func for each in metadata if isinstance(each, PlainSerializer | WrapSerializer)]
    if annotation is datetime:
        return {"moment"} if serializers == [iso] else {"other"}
    if serializers:
        return {"other"}
    if annotation in _LEAVES:
        return {_LEAVES[annotation]}
    if origin is Literal:
        return {_LEAVES.get(type(each), "other") for each in arguments}
    if origin in (Union, UnionType):
        return set().union(*map(_shapes, arguments))
    if origin in (list, tuple, dict):
        is_named = origin is not dict or _shapes(arguments[0]) == {"text"}
        parts = set().union(*(_shapes(each) for each in arguments if each is not Ellipsis))
        if not is_named or "other" in parts:
            return {"other"}
        return {"special" if parts & _SPECIAL else "parts" if "parts" in parts else "leaves"}
    is_contract = isinstance(annotation, type) and issubclass(annotation, Contract)
    return _shapes_of_contract(annotation) if is_contract else {"other"}


def _shapes_of_contract(kind: type[Contract]) -> set[str]:
    if not _is_plain(kind):
        return {"other"}
    parts = set().union(*(_shapes(field.annotation, field.metadata) for field in kind.model_fields.values()))
    return {"special" if parts & _SPECIAL else "parts"}


_LEAVES = {str: "text", NoneType: "null", int: "leaves", float: "leaves", bool: "leaves"}
_SPECIAL = {"special", "moment"}
# Each writes what the ones before it write, too.
_JSON: dict[str, Write] = {"leaves": orjson.dumps, "parts": _parts, "special": _special}
_WRITE: dict[str, Write | None] = {"text": None, "moment": _moment, **_JSON}
