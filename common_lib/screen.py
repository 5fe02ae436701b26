"""Screen: what a command writes. Answers go to stdout, everything else to stderr; `rich` is loaded when it is used.

    for people     tables that fit the terminal: cells are wrapped at words; where that does not fit, one block a row
    into a pipe    the same tables as wide as they need to be, without control codes
    for scripts    (`as_json`) one JSON document, ASCII, with the names and values of the service's own answers

Whatever comes from elsewhere is shown with its control characters escaped, so that no name of a model can move the
cursor.
"""

import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

GAP = 2
"""Columns between two columns of a table."""
LONGEST_WORD = 12
"""Columns. Longer words, such as paths, are broken where a table would not fit otherwise."""
UNLIMITED = 100_000
WIDEST_NAME = 28
"""Of the names in a block of facts, in columns."""

Cell = Callable[[Any], Any]
Columns = Mapping[str, str | Cell]
"""A table's columns: by heading, the attribute to show, or a function of the row."""


def clean(text: str) -> str:
    """Text with its control characters escaped, so that it cannot do anything to a terminal."""
    return "".join(each if each == "\n" or unicodedata.category(each)[0] != "C" else repr(each)[1:-1] for each in text)


def shown(value: Any) -> str:
    """A value as people read it: moments in UTC, six digits of a number, lists with commas, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}Z" if value.second == 0 else f"{value:%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return clean(str(value))


class Screen:
    """Where one command writes to."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    # ---- answers, on stdout

    def document(self, value: Any) -> None:
        """One JSON document; contracts as they are on the wire."""
        text = json.dumps(value, default=_on_the_wire, indent=2 if sys.stdout.isatty() else None)
        self._write(text + "\n")

    def line(self, text: str) -> None:
        """One line as it is."""
        self._write(text + "\n")

    def rows(self, name: str, rows: Iterable[Any], columns: Columns, *, nothing: str = "", **more: Any) -> None:
        """A list: `{name: [rows…], …more}` as JSON, else a table; `nothing` says what an empty one means."""
        found = list(rows)
        if self.as_json:
            self.document({name: found, **more})
        elif found:
            self.table(list(columns), [[_cell(row, what) for what in columns.values()] for row in found])
        else:
            self.note(nothing or f"no {name}")

    def thing(self, value: Any, title: str, facts: Mapping[str, Any]) -> None:
        """One thing: its JSON, else its title and the facts that people ask for first."""
        if self.as_json:
            self.document(value)
        else:
            self.facts(title, facts)

    def facts(self, title: str, facts: Mapping[str, Any]) -> None:
        """A title, and names with their values below it; what is empty is left out."""
        there = {name: shown(value) for name, value in facts.items() if shown(value) != ""}
        if title:
            self._write(self._rendered(_bold(clean(title))))
        if there:
            self._write(self._rendered(_fact_table(there)))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that fits; one block a row where it cannot. Numbers stand at the right."""
        texts = [[shown(cell) for cell in row] for row in rows]
        widths = _fitted([[heading, *(row[i] for row in texts)] for i, heading in enumerate(headings)], self._width)
        if widths is not None:
            self._write(self._rendered(_grid(headings, texts, widths), spare=GAP))
            return
        for row in texts:
            self.facts(row[0], dict(zip(headings[1:], row[1:], strict=True)))

    # ---- everything else, on stderr

    def note(self, text: str) -> None:
        """A sentence beside the answer."""
        self._tell(clean(text))

    def error(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        """Why it did not work; with `as_json` as one JSON object in one line."""
        if self.as_json:
            self._tell(json.dumps({"message": message, **(details or {})}, default=_on_the_wire))
        else:
            self._tell(f"error: {clean(message)}")

    def bar(self, title: str) -> "Bar":
        """A progress bar on stderr; where that is no terminal, the lines of what happened."""
        return Bar(title)

    def waiting(self, title: str) -> AbstractContextManager[Any]:
        """Shows on a terminal that something is under way whose length nobody knows."""
        if not sys.stderr.isatty():
            return nullcontext()
        return console_of(sys.stderr).status(clean(title))

    # ---- ways

    @property
    def _width(self) -> int:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED

    def _rendered(self, what: "RenderableType", *, spare: int = 0) -> str:
        """As text for stdout: with bold and dim on a terminal, unless NO_COLOR is set; `spare` columns stay empty."""
        from rich.console import Console

        is_terminal = sys.stdout.isatty()
        out = io.StringIO()
        plain = not is_terminal or os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        Console(
            file=out,
            width=self._width + spare,
            force_terminal=not plain,
            color_system=None if plain else "standard",
            highlight=False,
            legacy_windows=False,
        ).print(what, end="")
        lines = out.getvalue().split("\n")
        return "\n".join(each.rstrip() for each in lines).rstrip("\n") + "\n"

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _tell(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Bar(AbstractContextManager["Bar"]):
    """A progress bar on stderr, which leaves one line behind; without a terminal the lines of what happened."""

    def __init__(self, title: str) -> None:
        self._title = clean(title)
        self._progress: Any = None
        self._task: Any = None
        self._words = ""

    def __enter__(self) -> "Bar":
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            plain: dict[str, Any] = {"markup": False}
            words = TextColumn(
                "{task.fields[words]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"), **plain
            )
            title = TextColumn("{task.description}", table_column=Column(overflow="ellipsis", no_wrap=True), **plain)
            columns = (title, BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn(), words)
            self._progress = Progress(*columns, console=console_of(sys.stderr), expand=True)
            self._task = self._progress.add_task(self._title, total=None, words="")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, done: int, total: int, words: str = "") -> None:
        """Moves it."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total or None, words=clean(words))

    def state(self, words: str) -> None:
        """What it is doing now, beside the title."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"{self._title} {clean(words)}")
        else:
            sys.stderr.write(f"{self._title} {clean(words)}\n")

    def full(self) -> None:
        """Nothing is left to do, whatever was planned."""
        if self._progress is not None:
            done = self._progress.tasks[0].completed or 1
            self._progress.update(self._task, completed=done, total=done)

    def note(self, text: str) -> None:
        """A line above it."""
        if self._progress is not None:
            self._progress.console.print(clean(text), markup=False, highlight=False)
        else:
            sys.stderr.write(f"{clean(text)}\n")


def console_of(stream: TextIO) -> "Console":
    """A console of rich on that stream."""
    from rich.console import Console

    return Console(file=stream, highlight=False)


def _on_the_wire(value: Any) -> Any:
    """What JSON has no word for: contracts, moments, what else pydantic knows."""
    from pydantic_core import to_jsonable_python

    return value.model_dump(mode="json") if hasattr(value, "model_dump") else to_jsonable_python(value)


def _cell(row: Any, what: str | Cell) -> Any:
    if callable(what):
        return what(row)
    return row[what] if isinstance(row, Mapping) else getattr(row, what)


def _fitted(columns: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column: its own, the widest ones wrapped at words, then words broken; None: it cannot fit."""
    from rich.cells import cell_len

    longest = [max(cell_len(word) for text in cells for word in text.split() or [""]) for cells in columns]
    broken = [longest[0], *(min(each, LONGEST_WORD) for each in longest[1:])]  # ids are copied whole
    widths = [max(cell_len(line) for text in cells for line in text.split("\n")) for cells in columns]
    room = width - GAP * (len(columns) - 1)
    for narrowest in (longest, broken):
        while sum(widths) > room:
            spare = [index for index, own in enumerate(widths) if own > narrowest[index]]
            if not spare:
                break
            widths[max(spare, key=lambda index: widths[index])] -= 1
    return widths if sum(widths) <= room else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bold(text: str) -> "RenderableType":
    from rich.text import Text

    return Text(text, style="bold")


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        cells = [row[index] for row in rows]
        is_numeric = any(cells) and all(_is_number(each) for each in cells if each)
        justify: Literal["right", "left"] = "right" if is_numeric else "left"
        table.add_column(Text(heading), justify=justify, width=widths[index], overflow="fold")
    for row in rows:
        table.add_row(*(Text(each) for each in row))
    return table


def _fact_table(facts: Mapping[str, str]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    table.add_column(style="dim", max_width=WIDEST_NAME)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(f"  {name}"), Text(value))
    return table
