"""Coverage by hour: how often the interval held the outcome, hour by hour of the day, beside what it promises."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing, share_axis
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import Columns, FigureInputs, number, times_ms
from ml_workbench_figures.measures import wilson

HOUR_MS = 3_600_000
NORMAL_9995 = 3.290527
"""Wilson's 99.9 %, as on the card: of 24 hours one would fail at 95 % in most evaluations."""
USUAL_LEVEL = 0.9
Hour = tuple[int, int, float, float, float, bool]
"""Hour, rows, coverage, low, high, whether it failed."""


class CoverageByHour(Figure):
    """The card's own figures where it has them; else of the rows."""

    name: ClassVar[str] = "coverage_by_hour"
    title: ClassVar[str] = "Coverage of the interval by hour"
    about: ClassVar[str] = "Share of outcomes inside the interval by hour of the day (UTC), beside the promised share"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "realised", "lower", "upper")
    model_types: ClassVar[frozenset[str] | None] = frozenset({"time_series"})

    def unsuitable(self, card: object) -> str:
        """Daily bars have no hours."""
        reason = super().unsuitable(card)  # type: ignore[arg-type]
        return reason or ("daily bars have no hours of the day" if getattr(card, "timeframe", "") == "1d" else "")

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A marker an hour; those that failed have another shape and colour."""
        interval = given.card.evaluation.interval if given.card else None
        level = interval.level if interval else USUAL_LEVEL
        hours: list[Hour] = (
            [
                (each.hour_utc, each.num_rows, each.coverage, each.low, each.high, each.failed)
                for each in interval.coverage_by_hour
            ]
            if interval and interval.coverage_by_hour
            else _of_rows(given.part("test"))
        )
        palette = drawing.palette
        for name, has_failed, color, symbol in (
            ("as promised", False, palette.model, "circle"),
            ("more than 5 points off", True, palette.baseline, "x"),
        ):
            own = [each for each in hours if each[5] is has_failed]
            if own:
                drawing.add(
                    "scatter", name=name, x=[each[0] for each in own], y=[each[2] for each in own], mode="markers",
                    marker={"color": color, "symbol": symbol, "size": 8},
                    error_y={
                        "type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3,
                        "array": [max(each[4] - each[2], 0.0) for each in own],
                        "arrayminus": [max(each[2] - each[3], 0.0) for each in own],
                    },
                    customdata=[each[1] for each in own],
                    hovertemplate="%{x}:00 UTC: %{y:.1%} of %{customdata:,} rows<extra></extra>",
                )  # fmt: skip
        drawing.level(level, f"promised: {level:.0%}", color=palette.second)
        if interval is not None:
            drawing.notes.append(
                f"Overall {interval.coverage:.1%} of a promised {level:.0%}, mean width {interval.mean_width:.3%}."
            )
        drawing.notes.append("Bars: Wilson's 99.9 %; by the hour in which the forecast's bar ended.")
        lowest = min([level, *(each[3] for each in hours)])
        drawing.axes(
            {"title": "hour of the day (UTC)", "range": [-0.7, 23.7], "tickvals": [0, 4, 8, 12, 16, 20]},
            share_axis("outcomes inside the interval", range=[max(lowest - 0.05, 0.0), 1.02]),
        )


def _of_rows(rows: Columns) -> list[Hour]:
    counts = {hour: [0, 0] for hour in range(24)}
    columns = zip(times_ms(rows["as_of"]), rows["realised"], rows["lower"], rows["upper"], strict=True)
    for moment, came, low, high in columns:
        value, lower, upper = number(came), number(low), number(high)
        if value is None or lower is None or upper is None:
            continue
        own = counts[moment // HOUR_MS % 24]
        own[0] += 1
        own[1] += int(lower <= value <= upper)
    return [
        (hour, num, inside / num, *wilson(inside, num, NORMAL_9995), False)
        for hour, (num, inside) in counts.items()
        if num
    ]
