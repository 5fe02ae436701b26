"""Drawdown: how far the account lies below its highest point so far, beside buying and holding."""

from typing import ClassVar

from ml_workbench_figures.account import account_of
from ml_workbench_figures.drawing import DASHED, Drawing, Stroke, time_axis
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import FigureInputs, day
from ml_workbench_figures.measures import drawdowns, running_sum

HOVER = "%{y:.2%} below the peak, %{x|%Y-%m-%d %H:%M} UTC"


class Drawdown(Figure):
    """Net, from each part's own beginning."""

    name: ClassVar[str] = "drawdown"
    title: ClassVar[str] = "Drawdown"
    about: ClassVar[str] = "Net log return below its highest point so far, beside buying and holding"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "net", "gross")
    is_about_money: ClassVar[bool] = True

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Filled from the peak down; the deepest point of the test part in the caption."""
        palette, parts = drawing.palette, given.parts
        drawing.most_points //= max(len(parts), 1)
        for number, (part, rows) in enumerate(parts.items()):
            account, more = account_of(rows), {"showlegend": number == 0}
            net, hold = drawdowns(running_sum(account.net)), drawdowns(running_sum(account.hold))
            drawing.line(
                "net",
                account.times_ms,
                net,
                stroke=Stroke(palette.model),
                hover=HOVER,
                fill="tozeroy",
                fillcolor=palette.band,
                legendgroup="net",
                **more,
            )
            drawing.line(
                "buy and hold, before costs",
                account.times_ms,
                hold,
                stroke=Stroke(palette.baseline, 1.2, DASHED),
                hover=HOVER,
                legendgroup="hold",
                **more,
            )
            if part == "test":
                deepest = min(range(len(net)), key=net.__getitem__)
                drawing.notes.append(
                    f"Test part: deepest {net[deepest]:.2%} on {day(account.times_ms[deepest])}; buy and hold "
                    f"{min(hold):.2%}."
                )
                if len(parts) > 1:
                    drawing.shade(account.times_ms[0], account.times_ms[-1], "test part")
        drawing.axes(time_axis(), {"title": "log return below the peak", "tickformat": ",.1%"})
