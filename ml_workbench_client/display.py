"""Display: tables and facts as HTML for notebooks, everything escaped, and the live bar of a job."""

import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from ml_workbench_service.contracts.jobs import JobEvent

MOST_ROWS = 50
"""Of a table in a notebook; what is left out is said."""


def text_of(value: Any) -> str:
    """A value as people read it: six digits of a number, lists with commas, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return str(value)


def table_html(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, num_more: int = 0) -> str:
    """A table; every cell escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text_of(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    more = f"<p>and {num_more:,} more</p>" if num_more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """A title and a table of names and values; everything escaped."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text_of(value))}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "", (), [], {})
    )
    return f"<p><b>{html.escape(title)}</b></p><table><tbody>{rows}</tbody></table>"


def in_notebook() -> bool:
    """Whether this is a notebook's kernel, where HTML can be shown; asks IPython only where it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


class ProgressView(Protocol):
    """Shows how far a job is, from its events."""

    def __enter__(self) -> "ProgressView": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: JobEvent) -> None:
        """One more event."""
        ...


def progress_view(title: str) -> ProgressView:
    """The bar for where this runs."""
    return NotebookBar(title) if in_notebook() else TerminalBar(title)


def words_of(event: JobEvent) -> str:
    """What an event says beside its step: its message, and its newest figures."""
    metrics = event.data.get("metrics") or {}
    figures = "  ".join(f"{name} {text_of(value)}" for name, value in metrics.items())
    return "  ".join(each for each in (str(event.data.get("message") or ""), figures) if each)


class TerminalBar:
    """A bar of `rich`; where there is no terminal, its last state alone."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        plain = {"markup": False}
        self._progress = Progress(
            TextColumn("{task.description}", **plain),  # type: ignore[arg-type]
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", **plain),  # type: ignore[arg-type]
        )
        self._title = title
        self._task = self._progress.add_task(title, total=None, words="")

    def __enter__(self) -> "TerminalBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: JobEvent) -> None:
        """Moves the bar."""
        if event.type == "progress":
            self._progress.update(
                self._task,
                completed=event.data.get("step"),
                total=event.data.get("total") or None,
                words=words_of(event),
            )
        elif event.type == "warning":
            self._progress.console.print(f"{self._title}: {event.data.get('message', '')}", markup=False)
        else:
            self._progress.update(self._task, description=f"{self._title} {event.type}")
            if event.type == "succeeded":  # early stopping leaves steps undone
                task = self._progress.tasks[0]
                self._progress.update(self._task, total=task.completed or 1, completed=task.completed or 1)


class NotebookBar:
    """A bar as HTML in one output that is written again; it needs IPython and no widgets."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._status, self._step, self._total, self._words = "queued", 0, 0, ""
        self._warnings: list[str] = []
        self._handle: Any = None

    def __enter__(self) -> "NotebookBar":
        from IPython.display import display

        self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last state stays."""

    def show(self, event: JobEvent) -> None:
        """Writes the output again."""
        if event.type == "progress":
            self._status = "running"
            self._step, self._total = int(event.data.get("step") or 0), int(event.data.get("total") or 0)
            self._words = words_of(event)
        elif event.type == "warning":
            self._warnings.append(str(event.data.get("message", "")))
        else:
            self._status = event.type
        if self._handle is not None:
            self._handle.update(self)

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self._step}" max="{max(self._total, 1)}"></progress>'
        words = html.escape(f"{self._title} {self._status} {self._step}/{self._total} {self._words}")
        return f"<div>{bar} {words}</div>" + "".join(f"<div>{html.escape(each)}</div>" for each in self._warnings)
