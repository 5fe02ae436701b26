"""Q table: what a learning agent expects of each action in each state, and which it would choose."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.inputs import FigureInputs
from ml_workbench_figures.state_bins import ACTIONS, best_action, state_words


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
        if not any(map(any, table.visits_SA)):
            drawing.says("Not drawn: the agent has visited no state yet; let it run beside a deployed model.")
            return
        rows = state_words(table.strength_edges, table.width_edges)[:: len(ACTIONS)]
        states = [f"{each.forecast}, width {each.width}" for each in rows]
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
                    chosen.append((f"{ACTIONS[held]}→{best_action(own)}", state))
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
