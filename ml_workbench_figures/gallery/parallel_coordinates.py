"""Parallel coordinates: each trial a line over its settings, coloured by its score."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.gallery.trials import settings, shown
from ml_workbench_figures.inputs import FigureInputs, number

MOST_DIMENSIONS = 8
MOST_TRIALS = 300
GROUPS = (
    ("lowest third", "truth", "dot", 0.8),
    ("middle third", "gross", "dash", 1.0),
    ("best third", "model", "solid", 1.6),
)


class ParallelCoordinates(Figure):
    """Thirds by score; the best trial stands out."""

    name: ClassVar[str] = "parallel_coordinates"
    title: ClassVar[str] = "Settings of all trials"
    about: ClassVar[str] = "Each trial as a line over its hyper-parameters, in thirds by score; the best one thick"
    subject: ClassVar[Subject] = "experiment"
    reads: ClassVar[Source] = "trials"
    columns: ClassVar[tuple[str, ...]] = ("number", "value")

    def missing(self, given: FigureInputs) -> str:
        """Also where no hyper-parameter varies."""
        return super().missing(given) or ("" if _dimensions(given) else "no hyper-parameter varies between the trials")

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Every axis from its least to its greatest value, which stand at its ends."""
        trials, names = given.trials, _dimensions(given)
        if len(names) > MOST_DIMENSIONS:
            drawing.notes.append(f"Of {len(names)} hyper-parameters the first {MOST_DIMENSIONS} are drawn.")
            names = names[:MOST_DIMENSIONS]
        scales = [_scale(trials[name]) for name in names]
        rows = [row for row, value in enumerate(trials["value"]) if number(value) is not None]
        rows.sort(key=lambda row: float(trials["value"][row]))
        if len(rows) > MOST_TRIALS:
            drawing.notes.append(f"The best {MOST_TRIALS} of {len(rows)} trials are drawn.")
            rows = rows[-MOST_TRIALS:]
        places = list(range(len(names) + 1))
        heights = {
            row: [*(scale[0][row] for scale in scales), rank / max(len(rows) - 1, 1)] for rank, row in enumerate(rows)
        }
        for third, (name, role, dash, width) in enumerate(GROUPS):
            own = rows[len(rows) * third // 3 : len(rows) * (third + 1) // 3]
            _lines(name, [(row, heights[row]) for row in own], drawing, places=places, given=given,
                   style={"color": getattr(drawing.palette, role), "dash": dash, "width": width})  # fmt: skip
        if rows:
            _lines("best", [(rows[-1], heights[rows[-1]])], drawing, places=places, given=given,
                   style={"color": drawing.palette.baseline, "dash": "solid", "width": 3})  # fmt: skip
        for place, (_, least, greatest) in enumerate(scales):
            drawing.annotate(least, x=place, y=-0.02, yanchor="top", size=9)
            drawing.annotate(greatest, x=place, y=1.02, yanchor="bottom", size=9)
        drawing.annotate("worst", x=places[-1], y=-0.02, yanchor="top", size=9)
        drawing.annotate("best", x=places[-1], y=1.02, yanchor="bottom", size=9)
        drawing.axes(
            {
                "tickvals": places, "ticktext": [*(name.removeprefix("params.") for name in names), "rank of score"],
                "range": [-0.35, places[-1] + 0.35], "showgrid": True,
            },
            {"range": [-0.12, 1.12], "showticklabels": False, "showgrid": False},
        )  # fmt: skip


def _lines(
    name: str, lines: Sequence[tuple[int, list[float | None]]], drawing: Drawing, *, places: list[int],
    given: FigureInputs, style: dict[str, Any],
) -> None:  # fmt: skip
    x: list[int | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    for row, heights in lines:
        x += [*places, None]
        y += [*heights, None]
        score = float(given.trials["value"][row])
        told = f"trial {given.trials['number'][row]}: {score:.4g}<br>{settings(given.trials, row)}"
        texts += [told] * (len(places) + 1)
    drawing.add(
        "scatter", name=name, x=x, y=y, mode="lines", line=style, opacity=0.75, connectgaps=False, text=texts,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _dimensions(given: FigureInputs) -> list[str]:
    names = [name for name in given.trials if name.startswith("params.")]
    return [name for name in names if len({str(each) for each in given.trials[name]}) > 1]


def _scale(values: Sequence[Any]) -> tuple[list[float | None], str, str]:
    """Each value's height from 0 to 1, and what stands at both ends; numbers over three decades by their logarithm."""
    plain = [each for each in values if each is not None]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in plain):
        names = sorted({str(each) for each in plain})
        top = max(len(names) - 1, 1)
        heights = [None if each is None else names.index(str(each)) / top for each in values]
        return heights, names[0][:14], names[-1][:14]
    least, greatest = min(plain), max(plain)
    is_log = least > 0 and greatest / least >= 30
    low, high = (math.log(least), math.log(greatest)) if is_log else (float(least), float(greatest))
    span = (high - low) or 1.0
    found = [None if each is None else ((math.log(each) if is_log else float(each)) - low) / span for each in values]
    return found, shown(least), shown(greatest)
