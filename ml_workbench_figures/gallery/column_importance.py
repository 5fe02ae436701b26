"""Importance of columns: what a version's answers lose where one of its columns tells nothing any more."""

from typing import TYPE_CHECKING, Any, ClassVar

from ml_workbench_figures.drawing import Drawing, rounded
from ml_workbench_figures.figure import Figure, Source
from ml_workbench_figures.inputs import FigureInputs

if TYPE_CHECKING:
    from ml_workbench_service.contracts.importance import ColumnImportance

MOST_BARS = 25
NORMAL_95 = 1.96
LARGEST_P_VALUE = 0.025
"""finance.md: one-sided."""
LOSSES = {"squared_error": "squared error", "brier": "Brier score"}
HALF_BAR = 0.45


class ColumnImportances(Figure):
    """Permutation importance with its errors, each bar on what noise alone would reach of that column."""

    name: ClassVar[str] = "column_importance"
    title: ClassVar[str] = "Importance of columns"
    about: ClassVar[str] = (
        "Loss that a column adds where it is permuted over its whole lookback, with 95 % intervals, beside the loss as "
        "it is and what noise reaches"
    )
    reads: ClassVar[Source] = "measured_importance"

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Horizontal bars, the column that adds most at the top."""
        report = given.measured_importance
        assert report is not None, "figures are drawn of what is there"
        kept = [each for each in report.columns if each.loss_added.value is not None][:MOST_BARS][::-1]
        unit = report.mean_loss or 1.0
        palette, is_first = drawing.palette, True
        for place, each in enumerate(kept):
            if each.loss_added.error is not None:
                noise = NORMAL_95 * each.loss_added.error / unit
                words = "noise (95 %)" if is_first else ""
                drawing.shade_row(place, -noise, noise, half=HALF_BAR, words=words)
                is_first = False
        for words, color, is_there in (
            ("adds loss, after all columns", palette.model, True),
            ("may be noise", palette.truth, False),
        ):
            some = [each for each in kept if _adds(each) is is_there]
            errors = [None if (error := each.loss_added.error) is None else NORMAL_95 * error / unit for each in some]
            drawing.add(
                "bar", orientation="h", name=words, showlegend=True, marker={"color": color}, width=0.5,
                y=[_short(each.name) for each in some],
                x=[rounded((each.loss_added.value or 0.0) / unit) for each in some],
                error_x={
                    "type": "data", "array": [rounded(error) for error in errors], "color": palette.text,
                    "thickness": 1.2, "width": 3,
                },
                customdata=[[each.name, _told(each.adjusted_p_value)] for each in some],
                hovertemplate="%{customdata[0]}: %{x:+.2%}, p = %{customdata[1]}<extra></extra>",
            )  # fmt: skip
        drawing.upright(0.0, "loss as it is")
        shared = f"{report.num_repeats} times in blocks of {report.block_bars} windows"
        drawing.notes.append(
            f"Each column permuted {shared} on the {report.part} part, {report.num_rows:,} rows; bars: share of the "
            f"{LOSSES[report.loss]} there, {report.mean_loss:.4g}. Of two columns that say the same each is done "
            "without."
        )
        if report.num_counted:
            drawing.notes.append(f"On the test part that counts as {report.num_counted} hypotheses in its verdicts.")
        if len(report.columns) > len(kept):
            drawing.notes.append(f"The first {len(kept)} of {len(report.columns)} are drawn.")
        drawing.height_px = max(160, 22 * len(kept) + 40)
        rows = [_short(each.name) for each in kept]
        axis: dict[str, Any] = {"title": "loss added (share of the loss)", "tickformat": "+.1%", "nticks": 5}
        if not any(each.loss_added.value for each in kept):
            axis["range"] = [-0.01, 0.01]  # else it would reach to 100 %
            drawing.notes.append("No column changes the loss: the model says much the same whatever it reads.")
        drawing.axes(
            axis,
            {
                "type": "category", "showgrid": False, "categoryorder": "array", "categoryarray": rows,
                "range": [-0.5, max(len(rows), 1) - 0.5],
            },
            barmode="overlay",
        )  # fmt: skip


def _adds(column: "ColumnImportance") -> bool:
    return column.adjusted_p_value is not None and column.adjusted_p_value <= LARGEST_P_VALUE


def _told(p_value: float | None) -> str:
    return "not known" if p_value is None else f"{p_value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
