"""Learning curve: loss, or what a policy earns, epoch by epoch, beside the baseline's on the same rows."""

from collections.abc import Sequence
from typing import ClassVar

from ml_workbench_figures.downsampling import extremes
from ml_workbench_figures.drawing import DASHED, SOLID, Drawing
from ml_workbench_figures.figure import Figure, Source
from ml_workbench_figures.inputs import Columns, FigureInputs, has_values, numbers, rows_where

TRAIN, VALIDATION, SKILL = ("train_loss",), ("validation_loss", "stop_loss"), ("validation_skill", "stop_skill")
NET, GROSS = (
    ("validation_net_log_return", "stop_net_log_return"),
    ("validation_gross_log_return", "stop_gross_log_return"),
)
NOT_FIGURES = {"at", "seed", "epoch", "step", "learning_rate"}
MOST_SEEDS = 8


class LearningCurve(Figure):
    """Losses, else a policy's returns, else whatever figure the family reports."""

    name: ClassVar[str] = "learning_curve"
    title: ClassVar[str] = "Learning curve"
    about: ClassVar[str] = (
        "Loss of the training and validation parts by epoch beside the baseline's; of policies the validation part's "
        "log return, gross and net"
    )
    reads: ClassVar[Source] = "curves"
    columns: ClassVar[tuple[str, ...]] = ("epoch",)

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """A colour a seed; training dashed, validation solid, the epoch that was kept marked."""
        curves = given.curves
        seeds = list(dict.fromkeys(curves.get("seed") or ["-"] * len(curves["epoch"])))
        shown = seeds[:MOST_SEEDS]
        if len(seeds) > MOST_SEEDS:
            drawing.notes.append(f"Of {len(seeds)} seeds the first {MOST_SEEDS} are drawn.")
        for number, seed in enumerate(shown):
            own = curves if len(seeds) == 1 else rows_where(curves, [each == seed for each in curves["seed"]])
            color = drawing.palette.model if len(seeds) == 1 else drawing.palette.classes[number % 4]
            _one_seed(own, drawing, color=color, suffix="" if len(seeds) == 1 else f", seed {seed}")
        if _first(curves, NET):
            drawing.level(0.0, "flat: 0")
            drawing.axes({"title": "epoch"}, {"title": "log return of the validation part", "tickformat": ",.2%"})
            return
        if _first(curves, TRAIN) or _first(curves, VALIDATION):
            if (baseline := _baseline(curves)) is not None:
                drawing.level(baseline, "baseline")
                drawing.notes.append(f"Baseline: what says nothing new loses {baseline:.4g} on the validation part.")
            drawing.axes({"title": "epoch"}, {"title": "loss (units of scaled labels)"})
            return
        drawing.axes({"title": "epoch or step"}, {"title": "what the family reports"})


def _one_seed(curves: Columns, drawing: Drawing, *, color: str, suffix: str) -> None:
    if (net := _first(curves, NET)) is not None:
        gross = _first(curves, GROSS)
        if gross is not None:
            _curve(f"gross{suffix}", curves, gross, drawing, color=drawing.palette.gross, dash=DASHED, unit="%{y:.2%}")
        _curve(f"net{suffix}", curves, net, drawing, color=color, dash=SOLID, unit="%{y:.2%}")
        _mark_best(curves, net, drawing, color=color, best=max)
        return
    train, validation = _first(curves, TRAIN), _first(curves, VALIDATION)
    if train is not None:
        train_color = drawing.palette.truth if not suffix else color
        _curve(f"training{suffix}", curves, train, drawing, color=train_color, dash=DASHED, unit="%{y:.4g}")
    if validation is not None:
        _curve(f"validation{suffix}", curves, validation, drawing, color=color, dash=SOLID, unit="%{y:.4g}")
        _mark_best(curves, validation, drawing, color=color, best=min)
    if train is None and validation is None:
        for name in [each for each in curves if each not in NOT_FIGURES and has_values(curves, each)][:3]:
            _curve(f"{name}{suffix}", curves, name, drawing, color=color, dash=SOLID, unit="%{y:.4g}")


def _curve(name: str, curves: Columns, column: str, drawing: Drawing, *, color: str, dash: str, unit: str) -> None:
    values = numbers(curves[column])
    rows = extremes(values)
    drawing.add(
        "scatter", name=name, x=[curves["epoch"][row] for row in rows], y=[values[row] for row in rows],
        mode="lines" if len(rows) > 40 else "lines+markers", marker={"size": 5},
        line={"color": color, "width": 1.6, "dash": dash}, hovertemplate=f"epoch %{{x}}: {unit}<extra>{name}</extra>",
    )  # fmt: skip


def _mark_best(curves: Columns, column: str, drawing: Drawing, *, color: str, best: object) -> None:
    known = [
        (value, epoch)
        for value, epoch in zip(numbers(curves[column]), curves["epoch"], strict=True)
        if value is not None
    ]
    if not known:
        return
    value, epoch = (max if best is max else min)(known, key=lambda each: each[0])
    drawing.add(
        "scatter", name="epoch kept", x=[epoch], y=[value], mode="markers", legendgroup="kept",
        showlegend=not any(each.get("legendgroup") == "kept" for each in drawing.traces),
        marker={"color": color, "size": 11, "symbol": "star", "line": {"color": drawing.palette.text, "width": 1}},
        hovertemplate="epoch %{x} was kept<extra></extra>",
    )  # fmt: skip


def _baseline(curves: Columns) -> float | None:
    """The baseline's loss, from the validation loss and the skill over it."""
    loss, skill = _first(curves, VALIDATION), _first(curves, SKILL)
    if loss is None or skill is None:
        return None
    pairs = zip(numbers(curves[loss]), numbers(curves[skill]), strict=True)
    return next((a / (1 - b) for a, b in pairs if a is not None and b is not None and a > 0 and b < 1 and b != 0), None)


def _first(curves: Columns, names: Sequence[str]) -> str | None:
    return next((name for name in names if has_values(curves, name)), None)
