"""Trials: each trial's score in the order of their beginning, and the best so far, beside a score of 0."""

from typing import ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import Figure, Source, Subject
from ml_workbench_figures.inputs import Columns, FigureInputs, number

SHAPES = {"complete": "circle", "pruned": "triangle-down-open", "failed": "x"}


class Trials(Figure):
    """More is better; 0 is what the baseline reaches on the validation part."""

    name: ClassVar[str] = "trials"
    title: ClassVar[str] = "Trials"
    about: ClassVar[str] = "Score of each trial on the validation part, the best so far, and the baseline at 0"
    subject: ClassVar[Subject] = "experiment"
    reads: ClassVar[Source] = "trials"
    columns: ClassVar[tuple[str, ...]] = ("number", "value")

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A marker a trial, its shape by how it ended; a step line of the best."""
        trials, palette = given.trials, drawing.palette
        states = trials.get("state") or ["complete"] * len(trials["number"])
        for state, color in (("complete", palette.model), ("pruned", palette.truth)):
            rows = [
                row for row, each in enumerate(states) if each == state and number(trials["value"][row]) is not None
            ]
            if rows:
                drawing.add(
                    "scatter", name=state, x=[trials["number"][row] for row in rows],
                    y=[trials["value"][row] for row in rows], mode="markers",
                    marker={"color": color, "symbol": SHAPES[state], "size": 7},
                    text=[settings(trials, row) for row in rows],
                    hovertemplate="trial %{x}: %{y:.4g}<br>%{text}<extra></extra>",
                )  # fmt: skip
        numbers, best = _best_so_far(trials, states)
        drawing.add(
            "scatter", name="best so far", x=numbers, y=best, mode="lines", hoverinfo="skip",
            line={"color": palette.second, "width": 1.6, "shape": "hv"},
        )  # fmt: skip
        num_failed = sum(1 for each in states if each == "failed")
        drawing.level(0.0, "baseline: 0")
        drawing.notes.append(
            f"{len(states)} trials, {num_failed} of them failed. Scores are of the validation part: the best of many "
            "is partly luck."
        )
        drawing.axes({"title": "trial", "rangemode": "tozero"}, {"title": "score (1 less loss over the baseline's)"})


def settings(trials: Columns, row: int) -> str:
    """A trial's hyper-parameters, a line each."""
    names = [name for name in trials if name.startswith("params.")]
    return "<br>".join(f"{name.removeprefix('params.')}: {shown(trials[name][row])}" for name in names)


def shown(value: object) -> str:
    """A setting as it is read: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best_so_far(trials: Columns, states: object) -> tuple[list[int], list[float]]:
    assert isinstance(states, list | tuple)
    order = sorted(range(len(states)), key=lambda row: trials["number"][row])
    numbers: list[int] = []
    best: list[float] = []
    for row in order:
        value = number(trials["value"][row])
        if states[row] == "complete" and value is not None:
            numbers.append(trials["number"][row])
            best.append(max(value, best[-1] if best else value))
    return numbers, best
