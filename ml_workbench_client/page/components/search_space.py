"""Search space out of a JSON Schema: of each hyper-parameter whether it is searched, and where.

Numbers get a range, evenly or by their logarithm, or a list; what is one of a few things gets those to choose from.
"""

import json
from collections.abc import Mapping
from typing import Any

from nicegui import ui

from common_lib.exceptions import DataValidationError
from ml_workbench_client.page.components.blocks import text
from ml_workbench_client.page.components.schema_form import resolved

FIXED, RANGE, LOG, LIST = "as above", "range", "range, logarithmic", "list"
OF_THE_REQUEST: dict[str, Mapping[str, Any]] = {
    "lookback": {"type": "integer", "description": "Bars that a window looks back on."},
    "horizon": {"type": "integer", "description": "Bars ahead of the target."},
}
"""What can be searched beside the family's own."""


class SearchSpaceForm:
    """A line a hyper-parameter; `space` is what a request's `search_space` takes."""

    def __init__(self, schema: Mapping[str, Any], *, has_horizon: bool) -> None:
        given = {name: resolved(each, schema) for name, each in schema.get("properties", {}).items()}
        extra = {name: each for name, each in OF_THE_REQUEST.items() if name != "horizon" or has_horizon}
        self._lines = {
            name: _Line(name, each)
            for name, each in {**given, **{one: extra[one] for one in extra if one not in given}}.items()
        }

    @property
    def space(self) -> dict[str, dict[str, Any]]:
        """The dimensions of those that are searched.

        Raises:
            DataValidationError: none is, or one lacks its ends.
        """
        found = {name: line.dimension for name, line in self._lines.items() if line.kind.value != FIXED}
        if not found:
            raise DataValidationError.at("search_space", "choose at least one hyper-parameter to search")
        return found


class _Line:
    """One hyper-parameter: what kind of search, and the fields that this needs."""

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        self.name = name
        is_number = given.get("type") in ("integer", "number")
        options = [*given["enum"]] if "enum" in given else [False, True] if given.get("type") == "boolean" else None
        label = name.replace("_", " ")
        with ui.element("div").classes("search-line"):
            text(label, "search-name")
            kinds = [FIXED, RANGE, LOG, LIST] if is_number else [FIXED, LIST]
            self.kind = ui.select(kinds, value=FIXED, label=f"Search {label}", on_change=self._chosen)
            self.low = ui.number(f"{label} from")
            self.high = ui.number(f"{label} to")
            if options is None:
                self.listed: Any = ui.input(f"{label} values").props('hint="With commas between"')
            else:
                self.listed = ui.select(options, value=options, label=f"{label} values", multiple=True)
            for each in (self.kind, self.low, self.high, self.listed):
                each.props("outlined dense")
        self._chosen()

    def _chosen(self) -> None:
        for each in (self.low, self.high):
            each.set_visibility(self.kind.value in (RANGE, LOG))
        self.listed.set_visibility(self.kind.value == LIST)

    @property
    def dimension(self) -> dict[str, Any]:
        """As a request has it."""
        if self.kind.value == LIST:
            return {"choices": choices_of(self.name, self.listed.value)}
        if self.low.value is None or self.high.value is None:
            raise DataValidationError.at(f"search_space.{self.name}", f"{self.name} needs both ends of its range")
        found = {"low": self.low.value, "high": self.high.value}
        return {**found, "log": True} if self.kind.value == LOG else found


def choices_of(name: str, written: str | list[Any] | None) -> list[Any]:
    """What stands between commas, numbers as numbers; a list as it is.

    Raises:
        DataValidationError: nothing stands there.
    """
    found = written if isinstance(written, list) else [_read(each) for each in (written or "").split(",")]
    found = [each for each in found if each != ""]
    if not found:
        raise DataValidationError.at(f"search_space.{name}", f"{name} needs at least one value, such as 16, 32")
    return found


def _read(written: str) -> Any:
    try:
        found = json.loads(written)
    except ValueError:
        return written.strip()
    return found if isinstance(found, int | float | str | bool) else written.strip()
