"""Drawing: one figure while it is made: its traces, axes and notes, in one theme, as Plotly's dictionaries.

The caption is counted in lines and given its room above; legends lie below, so that no text covers another between 400
and 1,400 px. Rows beyond `downsampling.MOST_POINTS` become an envelope, and the caption says so.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_workbench_figures import captions, downsampling
from ml_workbench_figures.inputs import written
from ml_workbench_figures.theme import PALETTES, Palette, Theme

if TYPE_CHECKING:
    from ml_workbench_service.contracts.models import ModelCard

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
TITLE_PX, TEXT_PX = 16, 11
LINE_PX = 14.3
"""Plotly's lines are 1.3 times their text's size apart."""
PLOT_PX = 330
BELOW_PX = 56
"""For ticks and the horizontal axis's title."""
LEGEND_ROW_PX = 20
Json = dict[str, Any]
SOLID, DASHED, DOTTED, DASH_DOTTED = "solid", "dash", "dot", "dashdot"


class Stroke(NamedTuple):
    """How a line looks; what stands beside it differs in dash, too."""

    color: str
    width: float = 1.6
    dash: str = SOLID


class Drawing:
    """What one figure has so far.

    Attributes:
        palette: colours by role.
        traces: in the order in which they are drawn.
        notes: sentences for the caption.
        height_px: of the plot alone.
        most_points: of one line; fewer where several parts share a line.
        place: where a line's moment stands on the horizontal axis; another one where that is no axis of time.
    """

    def __init__(self, theme: Theme) -> None:
        self.palette: Palette = PALETTES[theme]
        self.traces: list[Json] = []
        self.notes: list[str] = []
        self.height_px = PLOT_PX
        self.most_points = downsampling.MOST_POINTS
        self.place: Callable[[int], Any] = written
        self._bucket_size = 1
        self._shapes: list[Json] = []
        self._annotations: list[Json] = []
        self._axes: dict[str, Json] = {}
        self._layout: Json = {}

    def add(self, kind: str, **trace: Any) -> None:
        """One trace as Plotly has it."""
        self.traces.append({"type": kind, **trace})

    def line(
        self,
        name: str,
        times_ms: Sequence[int],
        values: Sequence[float | None],
        *,
        stroke: "Stroke",
        hover: str,
        is_broken: bool = False,
        **more: Any,
    ) -> None:
        """A line over time; `hover` is how its value is told, such as `%{y:.2%} log return`.

        One that `is_broken` stops where rows are missing, as over a weekend.
        """
        drawn: list[int | None] = list(downsampling.extremes(values, most=self.most_points))
        self._note_bucket(len(values))
        if is_broken and len(drawn) == len(values):
            drawn = _with_gaps(times_ms)
        self.add(
            "scatter",
            name=name,
            x=[None if row is None else self.place(times_ms[row]) for row in drawn],
            y=[None if row is None else rounded(values[row]) for row in drawn],
            mode="lines",
            line={"color": stroke.color, "width": stroke.width, "dash": stroke.dash},
            hovertemplate=f"{hover}<extra>{captions.escaped(name)}</extra>",
            connectgaps=False,
            **more,
        )

    def band(
        self,
        name: str,
        times_ms: Sequence[int],
        lower: Sequence[float | None],
        upper: Sequence[float | None],
        *,
        color: str,
        **more: Any,
    ) -> None:
        """The area between two lines over time; where either is missing there is none."""
        rows, least, greatest = downsampling.envelope(lower, upper, most=self.most_points)
        self._note_bucket(len(lower))
        times = [self.place(times_ms[row]) for row in rows]
        known = [number for number, pair in enumerate(zip(least, greatest, strict=True)) if None not in pair]
        gaps = {before for before, after in itertools.pairwise(known) if after > before + 1}
        if len(rows) == len(lower):
            gaps |= _gaps(times_ms)
        for begin, end in _runs(known, gaps):
            run = known[begin:end]
            self.add(
                "scatter",
                name=name,
                x=[times[row] for row in (*run, *reversed(run))],
                y=[*(rounded(greatest[row]) for row in run), *(rounded(least[row]) for row in reversed(run))],
                mode="lines",
                line={"width": 0, "color": color},
                fill="toself",
                fillcolor=color,
                hoverinfo="skip",
                legendgroup=f"band {name}",
                showlegend=begin == 0 and more.get("showlegend", True),
                **{key: value for key, value in more.items() if key != "showlegend"},
            )

    def level(self, value: float, words: str, *, color: str | None = None, dash: str = DOTTED) -> None:
        """A horizontal line through the whole plot, named in the legend: a baseline, or what is promised."""
        place = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": value, "y1": value}
        self._straight(place, words, color=color or self.palette.baseline, dash=dash)

    def upright(self, value: float, words: str) -> None:
        """A vertical line through the whole plot: a baseline where values lie along x."""
        place = {"xref": "x", "x0": value, "x1": value, "yref": "paper", "y0": 0, "y1": 1}
        self._straight(place, words, color=self.palette.baseline, dash=DOTTED)

    def _straight(self, place: Json, words: str, *, color: str, dash: str) -> None:
        style = {"line": {"color": color, "width": 1.4, "dash": dash}, "name": words, "showlegend": True}
        self._shapes.append({"type": "line", **place, **style})

    def shade(self, begin_ms: int, end_ms: int, words: str) -> None:
        """A span of time, named at its top."""
        self._shapes.append(
            {
                "type": "rect", "xref": "x", "x0": written(begin_ms), "x1": written(end_ms), "yref": "paper", "y0": 0,
                "y1": 1, "fillcolor": self.palette.shade, "line": {"width": 0}, "layer": "below",
            }
        )  # fmt: skip
        self.annotate(words, x=written(begin_ms), y=1, yref="paper", xanchor="left", yanchor="bottom")

    def shade_row(self, place: int, begin: float, end: float, *, half: float, words: str) -> None:
        """A stretch of one category's row, by its place from the bottom; with words it stands in the legend."""
        named = {"name": words, "showlegend": True} if words else {}
        self._shapes.append(
            {
                "type": "rect", "xref": "x", "x0": rounded(begin), "x1": rounded(end), "yref": "y", "y0": place - half,
                "y1": place + half, "fillcolor": self.palette.band, "line": {"width": 0}, "layer": "below", **named,
            }
        )  # fmt: skip

    def annotate(self, words: str, *, color: str | None = None, size: int = TEXT_PX - 1, **place: Any) -> None:
        """A short text without an arrow."""
        self._annotations.append(
            {
                "text": captions.escaped(words), "showarrow": False, "align": "left",
                "font": {"size": size, "color": color or self.palette.muted}, **place,
            }
        )  # fmt: skip

    def axes(self, horizontal: Mapping[str, Any], vertical: Mapping[str, Any], **layout: Any) -> None:
        """Both axes, their units in their titles, and what else the layout needs."""
        self._axes = {"xaxis": dict(horizontal), "yaxis": dict(vertical)}
        self._layout |= layout

    def says(self, sentence: str) -> None:
        """Shows a sentence in place of a plot."""
        self.traces, self._shapes, self._annotations = [], [], []
        hidden = {"visible": False, "range": [0, 1]}
        self.axes(hidden, hidden)
        self.height_px = 150
        lines = captions.broken(sentence, 44)
        self._annotations.append(
            {
                "text": "<br>".join(lines), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5,
                "font": {"size": 13, "color": self.palette.text}, "align": "center",
            }
        )  # fmt: skip

    def finished(self, name: str, title: str, card: "ModelCard | None", *, is_about_money: bool) -> Json:
        """The whole figure."""
        palette = self.palette
        notes = self.notes
        if self._bucket_size > 1:
            of_each = f"of {self._bucket_size:,} rows the first, least, greatest and last are drawn"
            notes = [*notes, f"Lines are an envelope: {of_each}, so no extreme is missing."]
        paragraphs = captions.sentences(card, notes, is_about_money=is_about_money)
        heading = captions.heading(title, card)
        lines = [*heading[1:], *(line for each in paragraphs for line in captions.broken(each))]
        head = f'<span style="font-size:{TITLE_PX}px">{heading[0]}</span>'
        top_px = round(34 + LINE_PX * len(lines))
        named = [*self.traces, *(each for each in self._shapes if "name" in each)]
        names = {each["name"] for each in named if each.get("showlegend", True) and "name" in each}
        below_px = BELOW_PX + (LEGEND_ROW_PX * (1 + len(names) // 3) if len(names) > 1 else 0)
        return {
            "data": self.traces,
            "layout": {
                "title": {
                    "text": "<br>".join([head, *lines]), "x": 0, "xref": "container", "xanchor": "left", "y": 1,
                    "yref": "container", "yanchor": "top", "pad": {"l": 12, "t": 24},
                    "font": {"size": TEXT_PX, "color": palette.text},
                },
                "height": top_px + 18 + self.height_px + below_px,
                "autosize": True,
                "margin": {"l": 12, "r": 14, "t": top_px + 18, "b": below_px, "pad": 2},
                "showlegend": len(names) > 1,
                "legend": {
                    "orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom",
                    "font": {"size": TEXT_PX},
                },
                "shapes": self._shapes,
                "annotations": self._annotations,
                **{name: self._axis(axis) for name, axis in self._axes.items()},
                **self._colors(),
                **{name: self._axis(each) if "axis" in name else each for name, each in self._layout.items()},
                "meta": {"name": name, "title": title, "caption": paragraphs, "top_px": top_px},
            },
        }  # fmt: skip

    def _colors(self) -> Json:
        palette = self.palette
        return {
            "paper_bgcolor": palette.paper,
            "plot_bgcolor": palette.paper,
            "font": {"family": FONT, "size": TEXT_PX, "color": palette.text},
            "hoverlabel": {
                "bgcolor": palette.paper, "bordercolor": palette.muted,
                "font": {"family": FONT, "size": TEXT_PX, "color": palette.text},
            },
            "hovermode": "closest",
        }  # fmt: skip

    def _axis(self, own: Mapping[str, Any]) -> Json:
        palette = self.palette
        usual = {
            "gridcolor": palette.grid, "linecolor": palette.muted, "zeroline": False, "automargin": True,
            "tickfont": {"size": TEXT_PX - 1, "color": palette.muted},
        }  # fmt: skip
        found = {**usual, **own}
        if isinstance(title := found.get("title"), str):
            found["title"] = {"text": title, "font": {"size": TEXT_PX, "color": palette.text}, "standoff": 6}
        return found

    def _note_bucket(self, num: int) -> None:
        self._bucket_size = max(self._bucket_size, downsampling.bucket_size(num, most=self.most_points))


def _gaps(times_ms: Sequence[int]) -> set[int]:
    """Rows after which more than three usual steps pass without one."""
    steps = [after - before for before, after in itertools.pairwise(times_ms)]
    usual = sorted(steps)[len(steps) // 2] if steps else 0
    return {row for row, step in enumerate(steps) if step > 3 * usual}


def _with_gaps(times_ms: Sequence[int]) -> list[int | None]:
    """Every row, with None where a line is broken."""
    gaps = _gaps(times_ms)
    return [each for row in range(len(times_ms)) for each in ((row, None) if row in gaps else (row,))]


def _runs(known: Sequence[int], gaps: set[int]) -> list[tuple[int, int]]:
    """Begin and end, within `known`, of each run without a gap."""
    ends = [number + 1 for number, row in enumerate(known) if row in gaps]
    borders = [0, *ends, len(known)]
    return [(begin, end) for begin, end in itertools.pairwise(borders) if end > begin]


def rounded(value: float | None) -> float | None:
    """To six digits: more than any screen shows, and a third of the bytes."""
    return None if value is None else float(f"{value:.6g}")


def time_axis(**more: Any) -> Json:
    """A horizontal axis of moments."""
    return {"type": "date", "title": "time (UTC)", "nticks": 6, **more}


def share_axis(title: str, **more: Any) -> Json:
    """An axis of shares, told in percent."""
    return {"title": title, "tickformat": ",.0%", **more}
