"""Quantile returns: what came after low and after high forecasts, beside the mean of all rows."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import FigureInputs, number
from ml_workbench_figures.measures import NORMAL_95, groups_by_rank, mean_and_error

NUM_QUANTILES = 5
FEWEST_ROWS = 10
"""Of each quantile."""


class QuantileReturns(Figure):
    """Rows of the test part sorted by their forecast, in fifths."""

    name: ClassVar[str] = "quantile_returns"
    title: ClassVar[str] = "Outcome by fifths of the forecast"
    about: ClassVar[str] = "Mean outcome of each fifth of the forecasts, lowest to highest, beside the mean of all rows"
    columns: ClassVar[tuple[str, ...]] = ("prediction", "realised")
    model_types: ClassVar[frozenset[str] | None] = frozenset({"time_series"})

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A bar a fifth with its 95 % interval; skill rises from left to right."""
        pairs, fewest = _pairs(given), NUM_QUANTILES * FEWEST_ROWS
        if len(pairs) < fewest:
            drawing.says(
                f"Not drawn: the test part has {len(pairs)} rows with forecast and outcome; fifths need {fewest}."
            )
            return
        forecasts, outcomes = [each[0] for each in pairs], [each[1] for each in pairs]
        groups = groups_by_rank(forecasts, NUM_QUANTILES)
        found = [mean_and_error([outcomes[row] for row in rows]) for rows in groups]
        names = [f"{number}" for number in range(1, NUM_QUANTILES + 1)]
        names[0], names[-1] = "1<br>lowest", f"{NUM_QUANTILES}<br>highest"
        palette = drawing.palette
        drawing.add(
            "bar", name="mean outcome", x=names, y=[mean for mean, _ in found], marker={"color": palette.model},
            error_y={
                "type": "data", "array": [NORMAL_95 * error for _, error in found], "color": palette.text,
                "thickness": 1.2, "width": 4,
            },
            customdata=[
                [len(rows), sum(forecasts[row] for row in rows) / len(rows), NORMAL_95 * error]
                for rows, (_, error) in zip(groups, found, strict=True)
            ],
            hovertemplate="mean outcome %{y:.3%} ± %{customdata[2]:.3%}<br>mean forecast %{customdata[1]:.3%}"
            "<br>%{customdata[0]:,} rows<extra></extra>",
        )  # fmt: skip
        mean, _ = mean_and_error(outcomes)
        drawing.level(mean, f"mean of all rows: {mean:.3%}")
        spread = found[-1][0] - found[0][0]
        drawing.notes.append(
            f"{len(pairs):,} rows of the test part; highest less lowest fifth {spread:.3%}. Bars: 95 %, rows taken as "
            "independent, though overlapping horizons are not."
        )
        target = (given.card.target if given.card else None) or "target"
        drawing.axes(
            {"title": "fifth of the forecast", "type": "category", "showgrid": False},
            {"title": f"{target} (fraction of the price)", "tickformat": ",.3%", "zeroline": True,
             "zerolinecolor": palette.muted},
        )  # fmt: skip


def _pairs(given: FigureInputs) -> list[tuple[float, float]]:
    rows = given.part("test")
    pairs = ((number(stated), number(came)) for stated, came in zip(rows["prediction"], rows["realised"], strict=True))
    return [(stated, came) for stated, came in pairs if stated is not None and came is not None]
