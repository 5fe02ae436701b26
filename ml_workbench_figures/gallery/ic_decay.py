"""Decay of the information coefficient: how long a forecast goes on telling about the bars that follow."""

import math
from collections.abc import Sequence
from typing import ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import Columns, FigureInputs, number, rows_where, times_ms
from ml_workbench_figures.measures import NORMAL_95, rank_correlation

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
FEWEST_PAIRS = 30
MOST_PAIRS = 20_000
"""Ranked for a lag; of more every k-th pair."""


class IcDecay(Figure):
    """Rank correlation of the forecast with the log return of each bar that follows."""

    name: ClassVar[str] = "ic_decay"
    title: ClassVar[str] = "Decay of the information coefficient"
    about: ClassVar[str] = "Spearman's correlation of the forecast with the log return of the k-th bar after it"
    columns: ClassVar[tuple[str, ...]] = ("as_of", "prediction", "price")
    model_types: ClassVar[frozenset[str] | None] = frozenset({"time_series", "classification"})

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A bar a lag; outside the dotted lines it is more than chance, one lag at a time."""
        found, palette = _found(given), drawing.palette
        if not found:
            drawing.says(f"Not drawn: fewer than {FEWEST_PAIRS} rows of the test part are followed by others.")
            return
        drawing.add(
            "bar", name="information coefficient", x=[str(lag) for lag, *_ in found], y=[ic for _, ic, _ in found],
            marker={"color": palette.model}, customdata=[num for *_, num in found],
            hovertemplate="bar %{x} after the forecast: %{y:.3f} over %{customdata:,} rows<extra></extra>",
        )  # fmt: skip
        bounds = [NORMAL_95 / math.sqrt(num) for *_, num in found]
        for sign, is_named in ((1, True), (-1, False)):
            drawing.add(
                "scatter", name="chance, 95 %", x=[str(lag) for lag, *_ in found], y=[sign * bound for bound in bounds],
                mode="lines", line={"color": palette.baseline, "dash": "dot", "width": 1.2, "shape": "hvh"},
                hoverinfo="skip", legendgroup="chance", showlegend=is_named,
            )  # fmt: skip
        drawing.notes.append(
            "Test part; bars are counted by rows of the same symbol. Of classes the signal is how much more probable "
            "up is than down, where there are such classes."
            if given.card and given.card.classes
            else "Test part; bars are counted by rows of the same symbol."
        )
        drawing.axes(
            {"title": "bars after the forecast", "type": "category", "showgrid": False},
            {"title": "rank correlation", "zeroline": True, "zerolinecolor": palette.muted, "tickformat": ".3f"},
        )


def _found(given: FigureInputs) -> list[tuple[int, float, int]]:
    """Lag, information coefficient, pairs."""
    rows = given.part("test")
    symbols = rows.get("symbol") or ["-"] * len(rows.get("as_of", ()))
    tables = [rows_where(rows, [each == symbol for each in symbols]) for symbol in dict.fromkeys(symbols)]
    signals = [_signal(table) for table in tables]
    logs = [[math.log(price) if (price := number(each)) else None for each in table["price"]] for table in tables]
    orders = [sorted(range(len(each["as_of"])), key=times_ms(each["as_of"]).__getitem__) for each in tables]
    found = []
    for lag in LAGS:
        pairs = [
            pair
            for signal, log, order in zip(signals, logs, orders, strict=True)
            for pair in _pairs([signal[row] for row in order], [log[row] for row in order], lag)
        ]
        pairs = pairs[:: -(-len(pairs) // MOST_PAIRS) or 1]
        if len(pairs) >= FEWEST_PAIRS:
            ic = rank_correlation([each[0] for each in pairs], [each[1] for each in pairs])
            if ic is not None:
                found.append((lag, ic, len(pairs)))
    return found


def _pairs(signal: Sequence[float | None], log: Sequence[float | None], lag: int) -> list[tuple[float, float]]:
    """The signal and the log return of the `lag`-th bar after it."""
    found = []
    for row in range(len(signal) - lag):
        stated, begin, end = signal[row], log[row + lag - 1], log[row + lag]
        if stated is not None and begin is not None and end is not None:
            found.append((stated, end - begin))
    return found


def _signal(rows: Columns) -> list[float | None]:
    """The forecast; of classes with sides how much more probable up is than down."""
    for up, down in (("p_buy", "p_sell"), ("p_upper", "p_lower"), ("p_trend_up", "p_trend_down")):
        if up in rows and down in rows:
            pairs = zip(rows[up], rows[down], strict=True)
            known = ((number(one), number(other)) for one, other in pairs)
            return [None if one is None or other is None else one - other for one, other in known]
    return [number(each) for each in rows["prediction"]]
