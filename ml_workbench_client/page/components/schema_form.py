"""Form out of a JSON Schema: one field a property, with its default, its bounds and its sentence.

What is left as it was is not sent, so that a service with other defaults than its schema said keeps its own.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from common_lib.exceptions import DataValidationError

Read = Callable[[], Any]


class SchemaForm:
    """Fields of an object's properties; `values` are those that were changed."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._defaults: dict[str, Any] = {}
        self._read: dict[str, Read] = {}
        with ui.element("div").classes("field-grid"):
            for name, given in schema.get("properties", {}).items():
                self._field(name, resolved(given, schema))

    @property
    def values(self) -> dict[str, Any]:
        """What differs from the defaults.

        Raises:
            DataValidationError: a field holds what its kind has no place for.
        """
        found = {name: read() for name, read in self._read.items()}
        return {name: value for name, value in found.items() if value != self._defaults[name]}

    def _field(self, name: str, given: Mapping[str, Any]) -> None:
        label = name.replace("_", " ")
        default = given.get("default")
        self._defaults[name] = default
        if "enum" in given:
            field: Any = ui.select([*given["enum"]], value=default, label=label)
            self._read[name] = lambda: field.value
        elif given.get("type") == "boolean":
            field = ui.switch(label, value=bool(default))
            self._read[name] = lambda: field.value
        elif given.get("type") in ("integer", "number"):
            field = ui.number(label, value=default, min=given.get("minimum"), max=given.get("maximum"))
            is_whole = given["type"] == "integer"
            self._read[name] = lambda: None if field.value is None else int(field.value) if is_whole else field.value
        else:
            is_text = given.get("type") == "string"
            shown = default if is_text or default is None else json.dumps(default)
            field = ui.input(label, value=shown)
            self._read[name] = lambda: _read_text(name, field.value, is_text=is_text)
        if given.get("type") != "boolean":
            field.props("outlined dense")
            field.props["hint"] = _hint(given)


def resolved(given: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A property's own schema: references followed, and of `this or null` this."""
    if "$ref" in given:
        return resolved({**schema.get("$defs", {}).get(given["$ref"].rpartition("/")[2], {}), **_but(given)}, schema)
    for key in ("anyOf", "oneOf"):
        options = [each for each in given.get(key, ()) if each.get("type") != "null"]
        if len(options) == 1:
            return resolved({**options[0], **_but(given, key)}, schema)
    return given


def _but(given: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("$ref", *keys)}


def _hint(given: Mapping[str, Any]) -> str:
    low, high = given.get("minimum", given.get("exclusiveMinimum")), given.get("maximum", given.get("exclusiveMaximum"))
    bounds = f" ({low} to {high})" if low is not None and high is not None else ""
    return f"{given.get('description', '')}{bounds}".strip()


def _read_text(name: str, written: str | None, *, is_text: bool) -> Any:
    if written is None or written == "":
        return None
    if is_text:
        return written
    try:
        return json.loads(written)
    except ValueError as error:
        raise DataValidationError.at(name, "this field is written as JSON, such as [0.5, 0.9]") from error
