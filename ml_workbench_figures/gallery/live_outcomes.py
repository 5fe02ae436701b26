"""Live outcomes: what a deployed version forecast, with its interval, and what became of it."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing, Stroke, time_axis
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.inputs import FigureInputs, number, numbers, times_ms
from ml_workbench_figures.measures import wilson


class LiveOutcomes(Figure):
    """Predictions without an outcome yet are drawn, too."""

    name: ClassVar[str] = "live_outcomes"
    title: ClassVar[str] = "Live predictions and outcomes"
    about: ClassVar[str] = "Live forecasts with their intervals, beside what came true and the line of no change"
    subject: ClassVar[Subject] = "live"
    reads: ClassVar[Source] = "predictions"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "prediction")

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Oldest first, whatever order they come in."""
        table, palette = given.predictions, drawing.palette
        order = sorted(range(len(table["as_of"])), key=times_ms(table["as_of"]).__getitem__)
        table = {name: [values[row] for row in order] for name, values in table.items()}
        times, forecasts = times_ms(table["as_of"]), numbers(table["prediction"])
        empty = [None] * len(times)
        lower = numbers(table.get("interval.lower") or empty)
        upper = numbers(table.get("interval.upper") or empty)
        came = numbers(table.get("outcome.realised") or empty)
        if any(value is not None for value in lower):
            drawing.band("interval", times, lower, upper, color=palette.band)
        hover = "%{y:.3%}, %{x} UTC"
        drawing.line("prediction", times, forecasts, stroke=Stroke(palette.model, 2.0), hover=hover)
        drawing.line(
            "outcome",
            times,
            came,
            stroke=Stroke(palette.truth, 1.0),
            hover=hover,
            marker={"size": 4, "color": palette.truth},
        )
        drawing.traces[-1]["mode"] = "lines+markers"
        known = [
            (low <= value <= high)
            for low, value, high in zip(lower, came, upper, strict=True)
            if low is not None and value is not None and high is not None
        ]
        num_known = sum(1 for value in came if value is not None)
        drawing.notes.append(f"{len(times):,} predictions, {num_known:,} with an outcome.")
        if known:
            low, high = wilson(sum(known), len(known))
            promised = number(next((each for each in table.get("interval.level", ()) if each is not None), None))
            words = "" if promised is None else f" of a promised {promised:.0%}"
            drawing.notes.append(
                f"The interval held {sum(known) / len(known):.1%}{words} (95 %: {low:.0%} to {high:.0%})."
            )
        symbols = {str(each) for each in table.get("symbol", ())}
        if len(symbols) > 1:
            drawing.notes.append(f"{len(symbols)} symbols in one line; ask for one of them to tell them apart.")
        drawing.level(0.0, "no change: 0")
        target = next((each for each in table.get("target", ()) if each), None) or "target"
        drawing.axes(time_axis(), {"title": f"{target} (fraction of the price)", "tickformat": ",.2%"})
