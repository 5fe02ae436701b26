"""Captions: what stands above every figure: which version, its verdict with the reason, and how the figure was made.

Plotly breaks no lines by itself, so they are broken here, for a screen of 400 px; a page that breaks lines itself reads
the same sentences from `layout.meta.caption`.
"""

import html
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_workbench_service.contracts.models import ModelCard

LINE_CHARS = 60
"""Of a line of the caption at 11 px: some 340 px."""
TITLE_CHARS = 40


def sentences(card: "ModelCard | None", notes: list[str], *, is_about_money: bool) -> list[str]:
    """The caption's paragraphs: the verdict with its reason, what the money's verdict is, then the notes."""
    found = []
    if card is not None:
        evaluation = card.by_current_rules().evaluation
        found.append(f"Verdict {spelt(evaluation.verdict)}: {evaluation.reason}.".replace("..", "."))
        if is_about_money and evaluation.economic not in (None, "not_applicable"):
            reason = f": {evaluation.economic_reason}" if evaluation.economic_reason else ""
            found.append(f"After costs {spelt(str(evaluation.economic))}{reason}.".replace("..", "."))
    return [*found, *notes]


def spelt(name: str) -> str:
    """A name of the contracts in words: `no_skill` is no skill."""
    return name.replace("_", " ")


def escaped(text: str) -> str:
    """As Plotly shows it letter by letter, though it reads some tags."""
    return html.escape(text, quote=False)


def broken(text: str, width: int = LINE_CHARS) -> list[str]:
    """Lines of at most so many letters, escaped; a longer word is broken."""
    return [escaped(line) for line in textwrap.wrap(text, width)]


def heading(title: str, card: "ModelCard | None") -> list[str]:
    """The figure's title, and below it which version it is of."""
    lines = [f"<b>{line}</b>" for line in broken(title, TITLE_CHARS)]
    if card is None:
        return lines
    return [*lines, *broken(f"{card.id} {card.version}, {card.family}, {', '.join(card.symbols)} {card.timeframe}")]
