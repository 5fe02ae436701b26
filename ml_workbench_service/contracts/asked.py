"""`Asked`: a contract that people send, whose numbers are numbers as they are written."""

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.strict_numbers import NO_NUMBER, TOO_SMALL, is_denormal

NUMBERS = ("int", "float")
NOT_WALKED = frozenset({"default", "metadata", "serialization", "config", "cls", "expected"})


def _as_written(schema: Any) -> Any:
    """A copy of a schema whose numbers take numbers alone; those that are strict by themselves are data."""
    if isinstance(schema, list):
        return [_as_written(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in NUMBERS:
        return schema if schema.get("strict") else core_schema.no_info_before_validator_function(_written, schema)
    if kind == "union" and {"str", "bool"} & {each.get("type") for each in schema["choices"] if isinstance(each, dict)}:
        return schema
    return {name: value if name in NOT_WALKED else _as_written(value) for name, value in schema.items()}


def _written(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise PydanticCustomError("no_number", NO_NUMBER)
    if is_denormal(value):
        raise PydanticCustomError("too_small", TOO_SMALL)
    return value


class Asked(Contract):
    """A request, or a part of one: `true` is no 1, `"2"` no 2, and 5e-324 nothing that can be computed with.

    A column of data is another thing: its numbers are strict by pydantic's own means (`Strict`), since it is long, and
    take any finite number; what a market comes to is no setting. 2.0 still is an integer.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written: CoreSchema = _as_written(handler(source))
        return written
