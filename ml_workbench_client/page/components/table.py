"""Tables: sortable, paged, filtered in the browser, and a list of cards where it is narrow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words

ROWS_A_PAGE = 25
_CELL = """
<q-td :props="props" :data-label="props.col.label"
  :class="(props.row['_text_' + props.col.name] ?? props.value) === '' ? 'blank' : ''">
  <a v-if="props.row['_href_' + props.col.name]" class="link" :href="props.row['_href_' + props.col.name]">{{
    props.row['_text_' + props.col.name] ?? props.value }}</a>
  <span v-else-if="props.row['_tone_' + props.col.name]"
    :class="'badge tone-' + props.row['_tone_' + props.col.name]">{{
    props.row['_text_' + props.col.name] ?? props.value }}</span>
  <span v-else>{{ props.row['_text_' + props.col.name] ?? props.value }}</span>
</q-td>
"""
_CHOOSE_ALL = '<q-checkbox v-model="props.selected" dense aria-label="Choose all" />'
_CHOOSE = """<q-checkbox v-model="props.selected" dense :aria-label="'Choose ' + props.row._key" />"""


@dataclass(frozen=True)
class Cell:
    """A value to sort by, how it is shown, and where it leads."""

    value: Any
    text: str | None = None
    href: str | None = None
    tone: str | None = None


def status_cell(word: str | None) -> Cell:
    """A status word as a badge."""
    return Cell(word or "", words.readable(word), tone=words.tone(word) if word else None)


def amount_cell(value: float | None, digits: int = 3) -> Cell:
    """A number, sorted as one."""
    return Cell(value, words.number(value, digits))


def share_cell(value: float | None, *, signed: bool = False, digits: int = 2) -> Cell:
    """A fraction in percent."""
    return Cell(value, words.percent(value, digits, signed=signed))


def time_cell(value: Any) -> Cell:
    """A moment."""
    return Cell(value.isoformat() if value is not None else "", words.moment(value))


Row = Mapping[str, Any]


def rows_of(rows: Sequence[Row], columns: Mapping[str, str], key: str) -> list[dict[str, Any]]:
    """Rows as the browser's table takes them; `key` names the column that tells them apart."""
    found = []
    for index, row in enumerate(rows):
        one: dict[str, Any] = {"_key": str(row.get(key, index)) if key else str(index)}
        for name in columns:
            cell = row.get(name)
            cell = cell if isinstance(cell, Cell) else Cell(cell, None if isinstance(cell, str) else words.plain(cell))
            one[name] = cell.value
            for kind in ("text", "href", "tone"):
                if (value := getattr(cell, kind)) is not None:
                    one[f"_{kind}_{name}"] = value
        found.append(one)
    return found


def table(
    columns: Mapping[str, str], rows: Sequence[Row], *, label: str, key: str = "", numeric: Sequence[str] = (),
    select: bool = False, page_rows: int = ROWS_A_PAGE,
) -> ui.table:  # fmt: skip
    """A table.

    Args:
        columns: their titles by name; one without a title names its row.
        rows: values or cells by column name.
        label: of the table, for screen readers.
        key: entry of a row that tells it apart; default: its place.
        numeric: columns of numbers, which stand to the right.
        select: whether rows can be chosen.
    """
    found = ui.table(
        rows=rows_of(rows, columns, key),
        columns=[
            {
                "name": name,
                "label": title,
                "field": name,
                "sortable": True,
                "align": "right" if name in numeric else "left",
            }
            for name, title in columns.items()
        ],
        row_key="_key",
        selection="multiple" if select else None,
        pagination={"rowsPerPage": page_rows},
    )
    is_pairs = len(columns) == 2 and not next(iter(columns.values()))  # a name and its value
    found.classes("table pairs" if is_pairs else "table").props("flat dense wrap-cells")
    found.props["aria-label"] = label
    found.props["hide-pagination"] = len(rows) <= page_rows
    found.props["rows-per-page-options"] = [page_rows]
    found.add_slot("body-cell", _CELL)
    if select:
        found.add_slot("header-selection", _CHOOSE_ALL)
        found.add_slot("body-selection", _CHOOSE)
    return found
