"""Contracts as entries of a Redis stream: one field a key, texts as they are, everything else as JSON, nulls left out.

So a consumer in any language reads `symbol`, `price` or `direction` by name, without knowing our classes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import orjson

from ml_workbench_service.contracts.contract import Contract

AnyContract = TypeVar("AnyContract", bound=Contract)


def flatten(contract: Contract) -> list[str | bytes]:
    """Names and values, alternating, ready for XADD."""
    fields: list[str | bytes] = []
    for name, value in contract.model_dump(mode="json").items():
        if value is not None:
            fields += (name, value if isinstance(value, str) else orjson.dumps(value))
    return fields


def unflatten(kind: type[AnyContract], fields: Mapping[bytes, bytes]) -> AnyContract:
    """The contract behind an entry; other fields are passed over.

    Raises:
        ValidationError: the fields are not this contract's.
    """
    parts = []
    for name, is_text in _columns(kind):
        value = fields.get(name)
        if value is None:
            continue
        text = orjson.dumps(value.decode("utf-8", "replace")) if is_text else value
        parts.append(b'"' + name + b'":' + text)
    nulls = [b'"' + name + b'":null' for name in _nullable(kind) if name not in fields]
    return kind.model_validate_json(b"{" + b",".join(parts + nulls) + b"}")


@lru_cache(maxsize=16)
def _columns(kind: type[Contract]) -> tuple[tuple[bytes, bool], ...]:
    """Each key, and whether it is a text."""
    properties: dict[str, Any] = kind.model_json_schema(mode="serialization")["properties"]
    return tuple((name.encode(), "string" in _types(schema)) for name, schema in properties.items())


@lru_cache(maxsize=16)
def _nullable(kind: type[Contract]) -> tuple[bytes, ...]:
    """The required keys that may be null, which `flatten` leaves out."""
    properties: dict[str, Any] = kind.model_json_schema(mode="serialization")["properties"]
    return tuple(
        name.encode()
        for name, schema in properties.items()
        if "null" in _types(schema) and kind.model_fields[name].is_required()
    )


def _types(schema: Mapping[str, Any]) -> set[str]:
    return {each["type"] for each in (schema, *schema.get("anyOf", ())) if "type" in each}
