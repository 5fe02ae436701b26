"""Agent's reward: what an agent's decisions came to so far, before and after costs, and how much it still explores."""

import itertools
from typing import ClassVar

from ml_workbench_figures.drawing import DASHED, DOTTED, Drawing, Stroke, time_axis
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.inputs import FigureInputs, has_values, number, numbers, times_ms
from ml_workbench_figures.measures import running_sum


class AgentReward(Figure):
    """Being flat is the baseline."""

    name: ClassVar[str] = "agent_reward"
    title: ClassVar[str] = "Cumulative reward"
    about: ClassVar[str] = "Cumulative log return of an agent's decisions before and after costs, beside being flat"
    subject: ClassVar[Subject] = "agent"
    reads: ClassVar[Source] = "decisions"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "cumulative_reward")

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Net, gross and the costs between; the exploration rate on the right."""
        decisions, palette = given.decisions, drawing.palette
        times, net = times_ms(decisions["as_of"]), numbers(decisions["cumulative_reward"])
        axis, at = time_axis(), "%{x} UTC"
        if any(before > after for before, after in itertools.pairwise(times)):
            drawing.place = int
            times, axis, at = list(range(1, len(times) + 1)), {"title": "decision", "nticks": 6}, "decision %{x}"
            drawing.notes.append(
                "Drawn decision by decision: their records do not follow one another in time, as where the past was "
                "replayed."
            )
        hover = f"%{{y:.3%}} log return, {at}"
        if has_values(decisions, "cost"):
            costs = running_sum([number(each) or 0.0 for each in decisions["cost"]])
            gross = [None if value is None else value + cost for value, cost in zip(net, costs, strict=True)]
            drawing.band("costs", times, net, gross, color=palette.cost)
            drawing.line("gross", times, gross, stroke=Stroke(palette.gross, 1.2, DOTTED), hover=hover)
            drawing.notes.append(f"Costs of the {len(costs):,} decisions that are drawn: {costs[-1]:.3%}.")
        drawing.line("net", times, net, stroke=Stroke(palette.model, 2.0), hover=hover)
        layout = {}
        if has_values(decisions, "exploration_rate"):
            drawing.line(
                "exploration rate (right)",
                times,
                numbers(decisions["exploration_rate"]),
                stroke=Stroke(palette.third, 1.2, DASHED),
                hover="explores %{y:.1%}",
                yaxis="y2",
            )
            layout["yaxis2"] = {
                "title": "exploration rate",
                "overlaying": "y",
                "side": "right",
                "range": [0, 1.02],
                "tickformat": ",.0%",
                "showgrid": False,
                "tickmode": "auto",
            }
        drawing.level(0.0, "flat: 0")
        drawing.axes(axis, {"title": "cumulative log return", "tickformat": ",.2%"}, **layout)
