"""Predictions and interval: what was forecast, with its interval, and what came true."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing, Json, Stroke, time_axis
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import Columns, FigureInputs, numbers, rows_where, times_ms

MOST_SYMBOLS = 6
"""In the legend; of more the first are drawn."""


class PredictionsAndInterval(Figure):
    """The test part; of several symbols the first is shown and the others wait in the legend."""

    name: ClassVar[str] = "predictions_and_interval"
    title: ClassVar[str] = "Predictions and their interval"
    about: ClassVar[str] = "Forecast and interval at each row of the test part, beside what came true and no change"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "prediction", "realised")
    model_types: ClassVar[frozenset[str] | None] = frozenset({"time_series"})

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Band, truth, forecast, and the line of no change where the target is a move."""
        rows, card = given.part("test"), given.card
        symbols = list(dict.fromkeys(rows.get("symbol") or ["-"] * len(rows["as_of"])))
        for number, symbol in enumerate(symbols[:MOST_SYMBOLS]):
            own = rows if len(symbols) == 1 else rows_where(rows, [each == symbol for each in rows["symbol"]])
            suffix = "" if len(symbols) == 1 else f", {symbol}"
            _one_symbol(own, drawing, suffix=suffix, is_shown=number == 0)
        _tell(rows, given, drawing)
        if len(symbols) > MOST_SYMBOLS:
            drawing.notes.append(f"Of {len(symbols)} symbols the first {MOST_SYMBOLS} are drawn.")
        target = (card.target if card else None) or "target"
        is_move = not target.startswith("volatility")
        if is_move:
            drawing.level(0.0, "no change: 0")
        drawing.axes(time_axis(), {"title": f"{target} (fraction of the price)", "tickformat": ",.2%"})


def _one_symbol(rows: Columns, drawing: Drawing, *, suffix: str, is_shown: bool) -> None:
    palette, times = drawing.palette, times_ms(rows["as_of"])
    more: Json = {"visible": True if is_shown else "legendonly"}
    if {"lower", "upper"} <= rows.keys():
        lower, upper = numbers(rows["lower"]), numbers(rows["upper"])
        if any(value is not None for value in lower):
            drawing.band(f"interval{suffix}", times, lower, upper, color=palette.band, **more)
    drawing.line(
        f"realised{suffix}",
        times,
        numbers(rows["realised"]),
        stroke=Stroke(palette.truth, 1.0),
        hover="%{y:.3%}, %{x} UTC",
        is_broken=True,
        **more,
    )
    drawing.line(
        f"prediction{suffix}",
        times,
        numbers(rows["prediction"]),
        stroke=Stroke(palette.model, 2.0),
        hover="%{y:.3%}, %{x} UTC",
        is_broken=True,
        **more,
    )


def _tell(rows: Columns, given: FigureInputs, drawing: Drawing) -> None:
    num = len(rows["as_of"])
    status = rows.get("status") or ["ok"] * num
    num_abstained = sum(1 for each in status if each == "abstain")
    drawing.notes.append(f"{num:,} rows of the test part; {num_abstained:,} abstained and are left blank.")
    interval = given.card.evaluation.interval if given.card else None
    if interval is not None:
        drawing.notes.append(f"The interval promises {interval.level:.0%} and held {interval.coverage:.1%}.")
