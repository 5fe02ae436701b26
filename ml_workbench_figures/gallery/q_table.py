"""Q table: what a learning agent expects of each action in each state, and which it would choose."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.inputs import FigureInputs

ACTIONS = ("short", "flat", "long")


class QTable(Figure):
    """A row a bin of forecast and interval width, three columns for each position held."""

    name: ClassVar[str] = "q_table"
    title: ClassVar[str] = "Q table"
    about: ClassVar[str] = "Expected discounted reward of each action in each state; never visited ones are blank"
    subject: ClassVar[Subject] = "agent"
    reads: ClassVar[Source] = "q_table"

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Colours around zero; a dot marks the action that would be chosen."""
        table = given.q_table
        assert table is not None, "`missing` has looked"
        states = _state_names(table.strength_edges, table.width_edges)
        columns = [f"{held}→{action}" for held in ACTIONS for action in ACTIONS]
        values: list[list[float | None]] = []
        visits: list[list[int]] = []
        chosen: list[tuple[str, str]] = []
        for place, state in enumerate(states):
            cells: list[float | None] = []
            counts: list[int] = []
            for held in range(len(ACTIONS)):
                row = place * len(ACTIONS) + held
                own, seen = table.values_SA[row], table.visits_SA[row]
                cells += [value if num else None for value, num in zip(own, seen, strict=True)]
                counts += list(seen)
                if any(seen):
                    best = max(range(len(ACTIONS)), key=lambda action: (own[action], action == 1))
                    chosen.append((columns[held * len(ACTIONS) + best], state))
            values.append(cells)
            visits.append(counts)
        most = max((abs(value) for row in values for value in row if value is not None), default=0.0) or 1.0
        drawing.add(
            "heatmap", x=columns, y=states, z=values, customdata=visits, zmin=-most, zmax=most, zmid=0,
            colorscale=drawing.palette.diverging, xgap=1, ygap=1, hoverongaps=False,
            showscale=False,
            hovertemplate="%{y}<br>%{x}: %{z:.3g} log return<br>%{customdata:,} visits<extra></extra>",
        )  # fmt: skip
        drawing.add(
            "scatter", name="would be chosen", x=[each[0] for each in chosen], y=[each[1] for each in chosen],
            mode="markers", marker={"color": drawing.palette.text, "size": 5}, hoverinfo="skip",
        )  # fmt: skip
        num_seen = sum(1 for row in visits for num in row if num)
        drawing.notes.append(
            f"{num_seen} of {len(states) * 9} state-action pairs were visited. Columns: position held → action; a dot: "
            "the action that would be chosen. Rows: forecast, then width of the interval, in volatilities. Colour: "
            f"discounted log return, from {-most:.2g} (orange) over 0 to {most:.2g} (blue)."
        )
        drawing.height_px = 18 * len(states) + 60
        drawing.axes(
            {"type": "category", "tickangle": -90, "showgrid": False},
            {"type": "category", "autorange": "reversed", "showgrid": False, "tickfont": {"size": 9}},
        )


def _state_names(strength_edges: Sequence[float], width_edges: Sequence[float]) -> list[str]:
    """Of each bin of strength, and within it of width; the last strength is an abstention."""
    strengths = [*_bins(strength_edges), "abstained"]
    widths = [f"width {name}" for name in _bins(width_edges)]
    return [f"{strength}, {width}" for strength in strengths for width in widths]


def _bins(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["any"]
    inner = [f"{low:g}…{high:g}" for low, high in itertools.pairwise(edges)]
    return [f"≤{edges[0]:g}", *inner, f">{edges[-1]:g}"]
