"""Monthly returns: the account's net log return month by month, as investors read it, beside buying and holding."""

from datetime import UTC, datetime
from typing import ClassVar

from ml_workbench_figures.account import Account, account_of
from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import FigureInputs

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
Totals = dict[tuple[int, int], list[float]]
"""By year and month: net, gross, buy and hold."""


class MonthlyReturns(Figure):
    """The test part; a cell a month, and a column of years' totals."""

    name: ClassVar[str] = "monthly_returns"
    title: ClassVar[str] = "Monthly returns"
    about: ClassVar[str] = "Net log return of each month and year of the test part; hovering tells buy and hold's"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "net", "gross")
    is_about_money: ClassVar[bool] = True

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Colours around zero, as far out as the largest month."""
        totals = _by_month(account_of(given.part("test")))
        years = sorted({year for year, _ in totals})
        columns = [*MONTHS, "year"]
        cells = [[_of(totals, year, month) for month in (*range(1, 13), None)] for year in years]
        most = max((abs(each[0]) for each in totals.values()), default=0.0) or 1.0
        drawing.add(
            "heatmap",
            x=columns,
            y=[str(year) for year in years],
            z=[[None if cell is None else max(min(cell[0], most), -most) for cell in row] for row in cells],
            customdata=[[cell or [None] * 3 for cell in row] for row in cells],
            text=[["" if cell is None else f"{cell[0] * 100:.1f}" for cell in row] for row in cells],
            texttemplate="%{text}",
            textfont={"size": 9, "color": drawing.palette.text},
            zmin=-most,
            zmax=most,
            zmid=0,
            showscale=False,
            colorscale=drawing.palette.diverging,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="%{x} %{y}<br>net %{customdata[0]:.2%}<br>gross %{customdata[1]:.2%}"
            "<br>buy and hold %{customdata[2]:.2%}<extra>log return</extra>",
        )
        gains = sum(1 for each in totals.values() if each[0] > 0)
        above = sum(1 for each in totals.values() if each[0] > each[2])
        drawing.notes.append(
            f"Log returns in % after costs. {gains} of {len(totals)} months gained, {above} did better than buying and "
            "holding; the first and the last month may be parts of one."
        )
        drawing.height_px = max(70, 34 * len(years) + 20)
        drawing.axes(
            {
                "type": "category",
                "showgrid": False,
                "tickangle": 0,
                "tickfont": {"size": 9, "color": drawing.palette.muted},
            },
            {"type": "category", "autorange": "reversed", "showgrid": False},
        )


def _by_month(account: Account) -> Totals:
    found: Totals = {}
    for moment, *returns in zip(account.times_ms, account.net, account.gross, account.hold, strict=True):
        at = datetime.fromtimestamp(moment / 1000, tz=UTC)
        own = found.setdefault((at.year, at.month), [0.0, 0.0, 0.0])
        for place, value in enumerate(returns):
            own[place] += value
    return found


def _of(totals: Totals, year: int, month: int | None) -> list[float] | None:
    """A month's totals, or with None the year's."""
    if month is not None:
        return totals.get((year, month))
    own = [each for (one, _), each in totals.items() if one == year]
    return [sum(each[place] for each in own) for place in range(3)]
