"""Report: one HTML page of a version, with every figure, that opens without network.

Verdict, costs, lineage and certificate stand as text beside the figures; plotly.js is inlined once, read from the
`plotly` package piece by piece, so that whoever sends the page holds no more than a piece of it. Everything that comes
from a card is escaped. Figures are written in light colours; the page exchanges them for dark ones by the reader's own
setting or by its button.
"""

import html
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common_lib.exceptions import UnavailableError
from ml_workbench_figures import report_sections
from ml_workbench_figures.figure import Figure, draw
from ml_workbench_figures.inputs import FigureInputs
from ml_workbench_figures.theme import Theme, exchange

PIECE_CHARS = 262_144
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
"""Content security policy: nothing is fetched, whatever a card may say."""


def report(given: FigureInputs, *, theme: Theme | None = None) -> Iterator[str]:
    """The page, in pieces.

    Args:
        given: the card, and the tables that figures of a version read.
        theme: the colours to begin with; None: the reader's own setting.

    Raises:
        UnavailableError: the package `plotly` is not installed.
    """
    card = given.card
    assert card is not None, "a report is of a version"
    script = plotly_js()
    figures, left_out = drawn_figures(given)
    title = html.escape(f"{card.id} {card.version}")
    chosen = f' data-theme="{theme}"' if theme else ""
    yield (
        f'<!doctype html>\n<html lang="en"{chosen}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: report</title>\n<style>\n{_text('report.css')}</style>\n</head>\n<body>\n"
    )
    yield report_sections.head(card)
    yield report_sections.summary(card)
    yield '<section aria-labelledby="figures-of">\n<h2 id="figures-of">Figures</h2>\n'
    yield "<noscript><p>Figures need JavaScript; every number of the verdict stands in the tables.</p></noscript>\n"
    for name, figure in figures.items():
        yield _figure(name, figure)
    yield report_sections.left_out(left_out)
    yield "</section>\n"
    yield report_sections.desk(given.desk)
    yield report_sections.tables(card)
    yield "</main>\n<footer><p class='muted'>Log returns are after costs unless called gross.</p></footer>\n"
    yield _json("figures", {name: json.dumps(_bare(figure)) for name, figure in figures.items()})
    yield _json("colours", exchange())
    yield "<script>\n"
    with script.open(encoding="utf-8") as file:
        while piece := file.read(PIECE_CHARS):
            yield piece
    yield f"</script>\n<script>\n{_text('report.js')}</script>\n</body>\n</html>\n"


def plotly_js() -> Path:
    """plotly.js as the package `plotly` brings it; nothing of the package is loaded.

    Raises:
        UnavailableError: it is not installed.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise UnavailableError("reports need the package `plotly`, which is not installed; install the requirements")
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


def drawn_figures(given: FigureInputs) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The figures that say something of the version, and of the others why not."""
    assert given.card is not None, "`report` has looked"
    drawn, left_out = {}, {}
    for name, figure in Figure.known.items():
        if figure.subject != "version":
            continue
        if reason := figure.unsuitable(given.card) or figure.missing(given):
            left_out[figure.title] = reason
        else:
            drawn[name] = draw(name, given)
    return drawn, left_out


def _figure(name: str, figure: dict[str, Any]) -> str:
    about = figure["layout"]["meta"]
    sentences = "".join(f"<p>{html.escape(each)}</p>" for each in about["caption"][1:])
    title, height = html.escape(about["title"]), _bare(figure)["layout"]["height"]
    label = html.escape(f"{about['title']}: {Figure.known[name].about}", quote=True)
    return (
        f'<figure id="{name}"><h3>{title}</h3>\n'
        f'<div class="plot" data-figure="{name}" role="img" aria-label="{label}" style="height:{height}px"></div>\n'
        f"<figcaption><p>{html.escape(Figure.known[name].about)}.</p>{sentences}</figcaption></figure>\n"
    )


def _bare(figure: dict[str, Any]) -> dict[str, Any]:
    """The figure without its caption, which the page has as text."""
    layout = figure["layout"]
    saved = layout["meta"]["top_px"] - 16
    margin = {**layout["margin"], "t": layout["margin"]["t"] - saved}
    kept = {name: value for name, value in layout.items() if name not in ("title", "meta")}
    return {"data": figure["data"], "layout": {**kept, "height": layout["height"] - saved, "margin": margin}}


def _json(name: str, value: object) -> str:
    """As a script of data; no text within ends it."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
