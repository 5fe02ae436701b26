"""Confusion: which class was stated where which came, beside always stating the most frequent one."""

from typing import ClassVar

from ml_workbench_figures.captions import spelt
from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure
from ml_workbench_figures.inputs import FigureInputs, number
from ml_workbench_figures.measures import class_places

COLUMN = "p_"


class Confusion(Figure):
    """Shares of each class that came, with the counts."""

    name: ClassVar[str] = "confusion"
    title: ClassVar[str] = "Confusion of classes"
    about: ClassVar[str] = "The class stated as most probable against the class that came, in shares of each row"
    columns: ClassVar[tuple[str, ...]] = ("realised",)
    model_types: ClassVar[frozenset[str] | None] = frozenset({"classification"})

    def missing(self, given: FigureInputs) -> str:
        """Also where no class has a probability."""
        if reason := super().missing(given):
            return reason
        return "" if _classes(given) else "the version's rows have no probability of a class"

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A cell a pair, coloured by its share of the class that came."""
        rows, classes = given.part("test"), _classes(given)
        counts = [[0] * len(classes) for _ in classes]
        places = class_places(classes)
        columns = [rows[f"{COLUMN}{name}"] for name in classes]
        for came, *stated in zip(rows["realised"], *columns, strict=True):
            known = [number(each) for each in stated]
            if number(came) is not None and all(each is not None for each in known):
                counts[places[int(came)]][max(range(len(classes)), key=lambda code: known[code] or 0.0)] += 1
        totals = [sum(row) for row in counts]
        shares = [[num / total if total else None for num in row] for row, total in zip(counts, totals, strict=True)]
        names = [spelt(name) for name in classes]
        drawing.add(
            "heatmap", x=names, y=names, z=shares, customdata=counts, zmin=0, zmax=1, showscale=False,
            colorscale=drawing.palette.sequential, xgap=2, ygap=2,
            text=[list(map(_cell, *pair)) for pair in zip(shares, counts, strict=True)],
            texttemplate="%{text}", textfont={"size": 12, "color": drawing.palette.text},
            hovertemplate="came %{y}, stated %{x}: %{customdata:,} rows, %{z:.1%} of those that came<extra></extra>",
        )  # fmt: skip
        num = sum(totals)
        if num:
            right = sum(counts[code][code] for code in range(len(classes))) / num
            frequent = max(range(len(classes)), key=totals.__getitem__)
            drawing.notes.append(
                f"{num:,} rows of the test part: {right:.1%} right; always stating {names[frequent]}, the most "
                f"frequent, would be right in {totals[frequent] / num:.1%}."
            )
        drawing.axes(
            {"title": "stated", "type": "category", "showgrid": False},
            {"title": "came", "type": "category", "autorange": "reversed", "showgrid": False},
        )


def _cell(share: float | None, num: int) -> str:
    return "" if share is None else f"{share:.0%}<br>{num:,}"


def _classes(given: FigureInputs) -> list[str]:
    named = given.card.classes if given.card else ()
    known = [name.removeprefix(COLUMN) for name in given.rows if name.startswith(COLUMN)]
    return [name for name in named if name in known] or known
