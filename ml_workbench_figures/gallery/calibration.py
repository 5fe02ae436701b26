"""Calibration: how often what was stated with a probability came true, beside the diagonal of a true promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ml_workbench_figures.captions import spelt
from ml_workbench_figures.drawing import DASHED, Drawing, share_axis
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import Columns, FigureInputs, number
from ml_workbench_figures.measures import class_places, wilson

NUM_BINS = 10
FEWEST_ROWS = 5
"""Of a bin that is drawn."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up")


@dataclass(frozen=True)
class Statement:
    """One thing that was stated, each time with a probability, and whether it came true."""

    name: str
    stated: Sequence[float]
    came_true: Sequence[bool]


class Calibration(Figure):
    """Of classes each class's probability; of forecasts the confidence that the stated side comes true."""

    name: ClassVar[str] = "calibration"
    title: ClassVar[str] = "Calibration of stated probabilities"
    about: ClassVar[str] = "How often what was stated with a probability came true, with Wilson's 95 % intervals"
    columns: ClassVar[tuple[str, ...]] = ("confidence", "realised")
    model_types: ClassVar[frozenset[str] | None] = frozenset({"time_series", "classification"})

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A marker a bin, its size by the rows in it."""
        rows = given.part("test")
        classes = given.card.classes if given.card else ()
        round_trip = 0.0 if classes else _round_trip(given)
        statements = _of_classes(rows, classes) if classes else _of_sides(rows, round_trip)
        drawing.add(
            "scatter", name="as promised", x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip",
            line={"color": drawing.palette.muted, "dash": DASHED, "width": 1.2},
        )  # fmt: skip
        if classes:
            _frequencies(statements, drawing)
        for place, statement in enumerate(statements):
            _points(statement, drawing, color=drawing.palette.classes[place % 4], symbol=SYMBOLS[place % 4])
        drawing.notes.append(
            f"Test part, {NUM_BINS} bins; bins of fewer than {FEWEST_ROWS} rows are left out. Bars: Wilson's 95 %, "
            "rows taken as independent."
        )
        if not classes:
            drawing.notes.append(
                f"A stated rise or fall came true where the move paid for a round trip: {round_trip * 1e4:.2g} bp, the "
                "test part's mean."
            )
        drawing.axes(
            share_axis("stated probability", range=[0, 1]), share_axis("share that came true", range=[-0.02, 1.02])
        )


def _of_classes(rows: Columns, classes: Sequence[str]) -> list[Statement]:
    found, places = [], class_places(classes)
    for code, name in enumerate(classes):
        pairs = [
            (stated, places[int(came)] == code)
            for stated, came in zip(rows.get(f"p_{name}", ()), rows["realised"], strict=False)
            if number(stated) is not None and number(came) is not None
        ]
        found.append(Statement(spelt(name), [float(each[0]) for each in pairs], [each[1] for each in pairs]))
    return [each for each in found if each.stated]


def _round_trip(given: FigureInputs) -> float:
    """What buying and selling again cost on the mean of the test part, a fraction; 0 where nothing was traded."""
    backtest = given.card.evaluation.backtest if given.card else None
    if backtest is None or not backtest.turnover > 0:
        return 0.0
    return max(2 * (backtest.total_cost - backtest.swap_cost) / backtest.turnover, 0.0)


def _of_sides(rows: Columns, round_trip: float) -> list[Statement]:
    found = []
    for name, side in (("fall (sell)", -1.0), ("rise (buy)", 1.0)):
        word = "buy" if side > 0 else "sell"
        pairs = [
            (stated, side * came > round_trip)
            for stated, came, direction in zip(rows["confidence"], rows["realised"], rows["direction"], strict=True)
            if direction == word and number(stated) is not None and number(came) is not None
        ]
        found.append(Statement(name, [each[0] for each in pairs], [each[1] for each in pairs]))
    return [each for each in found if each.stated]


def _frequencies(statements: Sequence[Statement], drawing: Drawing) -> None:
    """Where a model that always says the classes' frequencies would stand: one point a class, on the diagonal."""
    shares = [sum(each.came_true) / len(each.came_true) for each in statements]
    drawing.add(
        "scatter", name="frequencies alone", x=shares, y=shares, mode="markers",
        text=[each.name for each in statements],
        marker={"symbol": "x-thin", "size": 11, "line": {"color": drawing.palette.text, "width": 2}},
        hovertemplate="%{text}: always %{x:.1%}<extra>frequencies alone</extra>",
    )  # fmt: skip


def _points(statement: Statement, drawing: Drawing, *, color: str, symbol: str) -> None:
    bins: list[list[int]] = [[] for _ in range(NUM_BINS)]
    for row, stated in enumerate(statement.stated):
        bins[min(int(stated * NUM_BINS), NUM_BINS - 1)].append(row)
    full = [rows for rows in bins if len(rows) >= FEWEST_ROWS]
    nums, hits = [len(rows) for rows in full], [sum(statement.came_true[row] for row in rows) for rows in full]
    shares = [hit / num for hit, num in zip(hits, nums, strict=True)]
    bounds = [wilson(hit, num) for hit, num in zip(hits, nums, strict=True)]
    most = max(nums, default=1)
    drawing.add(
        "scatter",
        name=statement.name,
        x=[sum(statement.stated[row] for row in rows) / len(rows) for rows in full],
        y=shares,
        mode="lines+markers",
        line={"color": color, "width": 1.4},
        marker={"color": color, "symbol": symbol, "size": [6 + 8 * (num / most) ** 0.5 for num in nums]},
        error_y={
            "type": "data", "symmetric": False, "color": color, "thickness": 1, "width": 3,
            "array": [max(high - share, 0.0) for share, (_, high) in zip(shares, bounds, strict=True)],
            "arrayminus": [max(share - low, 0.0) for share, (low, _) in zip(shares, bounds, strict=True)],
        },
        customdata=nums,
        hovertemplate="stated %{x:.1%}, came true %{y:.1%} of %{customdata:,} rows<extra>"
        + statement.name
        + "</extra>",
    )  # fmt: skip
