"""Equity: the running log return of the account, before and after costs, beside buying and holding."""

from typing import ClassVar

from ml_workbench_figures.account import Account, account_of
from ml_workbench_figures.drawing import DASHED, DOTTED, Drawing, Stroke, time_axis
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import FigureInputs
from ml_workbench_figures.measures import running_sum

HOVER = "%{y:.2%} log return, %{x|%Y-%m-%d %H:%M} UTC"


class Equity(Figure):
    """Gross, net and the costs between them; each part begins at 0, the test part shaded."""

    name: ClassVar[str] = "equity"
    title: ClassVar[str] = "Equity"
    about: ClassVar[str] = "Running log return before and after all costs, beside buying and holding and being flat"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "net", "gross")
    is_about_money: ClassVar[bool] = True

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """One account in equal weights, a stretch for each part."""
        palette, parts = drawing.palette, given.parts
        drawing.most_points //= max(len(parts), 1)
        for number, (part, rows) in enumerate(parts.items()):
            account, is_first = account_of(rows), number == 0
            gross, net = running_sum(account.gross), running_sum(account.net)
            more = {"showlegend": is_first}
            low = [min(pair) for pair in zip(gross, net, strict=True)]
            high = [max(pair) for pair in zip(gross, net, strict=True)]
            drawing.band("costs", account.times_ms, low, high, color=palette.cost, **more)
            drawing.line(
                "buy and hold, before costs",
                account.times_ms,
                running_sum(account.hold),
                stroke=Stroke(palette.baseline, 1.2, DASHED),
                hover=HOVER,
                legendgroup="hold",
                **more,
            )
            drawing.line(
                "gross",
                account.times_ms,
                gross,
                stroke=Stroke(palette.gross, 1.2, DOTTED),
                hover=HOVER,
                legendgroup="gross",
                **more,
            )
            drawing.line(
                "net", account.times_ms, net, stroke=Stroke(palette.model, 2.0), hover=HOVER, legendgroup="net", **more
            )
            if part == "test":
                _tell(account, drawing)
                if len(parts) > 1:
                    drawing.shade(account.times_ms[0], account.times_ms[-1], "test part")
        if len(parts) > 1:
            drawing.notes.append("Each part begins at 0; the model was chosen on what lies left of the test part.")
        drawing.level(0.0, "flat: 0", color=palette.muted)
        drawing.axes(time_axis(), {"title": "cumulative log return", "tickformat": ",.1%"})


def _tell(account: Account, drawing: Drawing) -> None:
    net, gross, hold = sum(account.net), sum(account.gross), sum(account.hold)
    drawing.notes.append(
        f"Test part: net {net:.2%}, gross {gross:.2%}, costs {gross - net:.2%}; buy and hold {hold:.2%} before costs."
    )
