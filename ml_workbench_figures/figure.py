"""Figure: one kind of picture, registered by being defined; the registry is the only look-up.

A figure says what it reads and of which model types it can be made. What is missing makes a figure that says so in a
sentence, never an error; only an unknown name is one.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from common_lib.exceptions import DataValidationError, NotFoundError
from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.inputs import FigureInputs, has_values, num_rows
from ml_workbench_figures.theme import PALETTES, Theme

if TYPE_CHECKING:
    from ml_workbench_service.contracts.models import ModelCard

Subject = Literal["version", "experiment", "live", "agent"]
"""Of what a figure is; those of a version make its report."""
Source = Literal["rows", "curves", "trials", "predictions", "decisions", "q_table", "importance", "measured_importance"]
MISSING: dict[Source, str] = {
    "rows": "no rows of its evaluation are kept with this version; train it again to keep them",
    "curves": "its training left no course of epochs, or its job is gone",
    "trials": "no trial has ended yet; look again once one has",
    "predictions": "no live prediction is recorded yet; deploy the version and ask it",
    "decisions": "the agent has decided nothing yet; let it run beside a deployed model",
    "q_table": "the agent keeps no table; only q_learning learns one",
    "importance": "nothing measures importance here: a feature search and an experiment of several trials do",
    "measured_importance": "nobody has measured its columns' importance yet; start such a job (wb.importance)",
}
WHOLE: frozenset[Source] = frozenset({"q_table", "importance", "measured_importance"})
"""What is no table of rows."""


@dataclass(frozen=True)
class Suitability:
    """Whether a figure says something of a version, and why not."""

    name: str
    title: str
    about: str
    applies: bool
    why_not: str


class Figure(ABC):
    """One kind of figure.

    Class attributes:
        name: in addresses.
        title: above it.
        about: one sentence: what it shows, beside what.
        subject: of what it is.
        reads: which table.
        columns: of that table, each with at least one value.
        model_types: that it can be made of; None: of every type that has those columns.
        is_about_money: whether the caption tells what is left after costs.
    """

    known: ClassVar[dict[str, "Figure"]] = {}
    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    subject: ClassVar[Subject] = "version"
    reads: ClassVar[Source] = "rows"
    columns: ClassVar[tuple[str, ...]] = ()
    model_types: ClassVar[frozenset[str] | None] = None
    is_about_money: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for attribute in ("name", "title", "about"):
            assert isinstance(getattr(cls, attribute, None), str), f"{cls.__name__} needs `{attribute}`"
        assert cls.name not in Figure.known, f"two figures are called {cls.name}"
        Figure.known[cls.name] = cls()

    @abstractmethod
    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Draws; everything in `columns` is there."""

    def unsuitable(self, card: "ModelCard") -> str:
        """Why this version can have no such figure; empty where it can."""
        if self.model_types is not None and card.type not in self.model_types:
            types = " and ".join(sorted(each.replace("_", " ") for each in self.model_types))
            return f"it is made of {types}, and this version is of {card.type.replace('_', ' ')}"
        if self.is_about_money and card.evaluation.backtest is None:
            return "nothing is traded on this version's answers"
        return ""

    def is_on_card(self, card: "ModelCard") -> bool:
        """Whether the card alone has all that the figure reads."""
        return False

    def missing(self, given: FigureInputs) -> str:
        """What the figure lacks; empty where nothing is."""
        table = getattr(given, self.reads)
        is_empty = table is None or (not table if self.reads in WHOLE else num_rows(table) == 0)
        if is_empty:
            return MISSING[self.reads]
        absent = [name for name in self.columns if not has_values(table, name)]
        return _without(absent) if absent else ""


def draw(name: str, given: FigureInputs, *, theme: Theme = "light") -> dict[str, Any]:
    """A figure as the dictionary that Plotly reads; a sentence in its place where something is missing.

    Raises:
        NotFoundError: no figure of that name; the message names the nearest.
        DataValidationError: no such theme.
    """
    if theme not in PALETTES:
        raise DataValidationError.at("query.theme", f"a theme is {' or '.join(PALETTES)}")
    figure = figure_named(name)
    drawing = Drawing(theme)
    reason = "" if given.card is None else figure.unsuitable(given.card)
    if reason := reason or figure.missing(given):
        drawing.says(f"Not drawn: {reason}.")
    else:
        figure.draw(given, drawing)
    return drawing.finished(figure.name, figure.title, given.card, is_about_money=figure.is_about_money)


def figure_named(name: str, *, subject: Subject | None = None) -> Figure:
    """The figure of that name, of any subject or of one alone.

    Raises:
        NotFoundError: there is none; the message names the nearest and all.
    """
    known = {each: figure for each, figure in Figure.known.items() if subject in (None, figure.subject)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise NotFoundError(f"no figure has that name; {meant}known: {', '.join(known)}")


def figures_for(card: "ModelCard", *, has: Collection[Source] = ("rows", "curves")) -> tuple[Suitability, ...]:
    """Every figure of a version, and whether it says something of this one, as far as its card tells.

    Args:
        has: which tables there are beside the card.
    """
    found = []
    for figure in Figure.known.values():
        if figure.subject == "version":
            reason = figure.unsuitable(card)
            if not reason and figure.reads not in has and not figure.is_on_card(card):
                reason = MISSING[figure.reads]
            found.append(Suitability(figure.name, figure.title, figure.about, not reason, reason))
    return tuple(found)


def _without(absent: Sequence[str]) -> str:
    names = ", ".join(f"`{name}`" for name in absent)
    return f"the version has no values of {names}, as where nothing is traded or no interval is stated"
