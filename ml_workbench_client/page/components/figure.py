"""Figures: Plotly dictionaries drawn in the browser, in the theme that the page has there.

NiceGUI's own element would import plotly for Python, which is 30 MiB that nothing here needs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import nicegui
from nicegui import json
from nicegui.element import Element

from ml_workbench_client.page.components.blocks import note
from ml_workbench_figures.theme import exchange

TOP = 22
LEAST_HEIGHT = 240.0
USUAL_HEIGHT = 360
"""Pixels."""
_PLOTLY = str(Path(nicegui.__file__).parent / "elements" / "plotly" / "dist")


class DrawnFigure(NamedTuple):
    """What a page keeps of a figure: its text, since lists of numbers would stay in memory, and what is said of it."""

    text: str
    label: str
    height: float
    caption: tuple[str, ...]

    @classmethod
    def of(cls, figure: Mapping[str, Any]) -> Self:
        """Of a figure as `ml_workbench_figures.draw` gives it."""
        layout = figure.get("layout") or {}
        return cls(
            text=json.dumps(figure),
            label=(layout.get("meta") or {}).get("label") or _text(layout.get("title")) or "figure",
            height=layout.get("height") or USUAL_HEIGHT,
            caption=tuple(_caption(figure)),
        )


class FigureView(Element, component="figure.js", esm={"nicegui-plotly": _PLOTLY}):
    """One figure.

    Args:
        figure: as `ml_workbench_figures.draw` gives it, in the light theme, or what is kept of that.
    """

    def __init__(self, figure: Mapping[str, Any] | DrawnFigure) -> None:
        super().__init__()
        self.props["colours"] = exchange()
        self.show(figure)

    def show(self, figure: Mapping[str, Any] | DrawnFigure) -> None:
        """Draws another figure in its place."""
        drawn = figure if isinstance(figure, DrawnFigure) else DrawnFigure.of(figure)
        self.props["figure"] = drawn.text
        self.props["label"] = drawn.label
        self.props["height"] = drawn.height
        self.update()


def show_figure(figure: Mapping[str, Any] | DrawnFigure, *, but: tuple[str, ...] = ()) -> FigureView:
    """A figure with its caption as text below it, so that it is read on a phone and by a screen reader as well.

    Args:
        figure: as it was drawn, or `DrawnFigure.of(untitled(figure))`, which takes less room.
        but: beginnings of sentences that stand elsewhere on the page.
    """
    drawn = figure if isinstance(figure, DrawnFigure) else DrawnFigure.of(untitled(figure))
    found = FigureView(drawn)
    for sentence in drawn.caption:
        if not sentence.startswith(but):
            note(sentence)
    return found


def untitled(figure: Mapping[str, Any]) -> dict[str, Any]:
    """The figure without the title within it, and without the room that this took: cards have a heading."""
    layout = dict(figure.get("layout") or {})
    margin = dict(layout.get("margin") or {})
    saved = max(float(margin.get("t", TOP)) - TOP, 0.0)
    layout["margin"] = {**margin, "t": TOP}
    if "height" in layout:
        layout["height"] = max(float(layout["height"]) - saved, LEAST_HEIGHT)
    named = layout.pop("title", None)
    return {**figure, "layout": {**layout, "meta": {**(layout.get("meta") or {}), "label": _text(named)}}}


def _caption(figure: Mapping[str, Any]) -> list[str]:
    found = ((figure.get("layout") or {}).get("meta") or {}).get("caption") or []
    return [found] if isinstance(found, str) else [str(each) for each in found]


def _text(title: Any) -> str:
    found = title.get("text", "") if isinstance(title, Mapping) else title or ""
    return re.sub("<[^>]*>", "", str(found).partition("<br>")[0])
