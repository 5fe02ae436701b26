"""Themes: one palette by role, light and dark, that colour-blind readers can tell apart.

Hues are Okabe and Ito's ("Color universal design", 2008); lines that must be told apart differ in dash or marker, too.
Within the light palette no colour stands twice, so that a page turns a light figure dark by exchanging colours
(`exchange`), without drawing it again.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """Colours by what they stand for; on `neutral`, `low` and `high`, cells of a table, `text` can be read."""

    paper: str
    text: str
    muted: str
    grid: str
    model: str
    gross: str
    baseline: str
    truth: str
    second: str
    third: str
    band: str
    cost: str
    gain: str
    shade: str
    neutral: str
    low: str
    high: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Of up to four classes or seeds, in order; more begin anew."""
        return self.baseline, self.second, self.model, self.third

    @property
    def diverging(self) -> list[list[Any]]:
        """Colour scale around zero, for cells: losses, nothing, gains."""
        return [[0.0, self.low], [0.5, self.neutral], [1.0, self.high]]

    @property
    def sequential(self) -> list[list[Any]]:
        """Colour scale from none to all, for cells."""
        return [[0.0, self.neutral], [1.0, self.high]]


PALETTES: Mapping[Theme, Palette] = {
    "light": Palette(
        paper="#ffffff", text="#1f2933", muted="#5a6672", grid="#e2e6ea", model="#0072b2", gross="#56b4e9",
        baseline="#d55e00", truth="#7b8794", second="#009e73", third="#cc79a7", band="rgba(0,114,178,0.18)",
        cost="rgba(213,94,0,0.20)", gain="rgba(0,158,115,0.20)", shade="rgba(31,41,51,0.06)", neutral="#f3f4f6",
        low="#f0a06a", high="#6bb3de",
    ),
    "dark": Palette(
        paper="#14181f", text="#e6e9ed", muted="#a3adb8", grid="#2d3540", model="#56b4e9", gross="#3a8fc9",
        baseline="#e69f00", truth="#8d98a5", second="#1fbf92", third="#d68fb5", band="rgba(86,180,233,0.22)",
        cost="rgba(230,159,0,0.25)", gain="rgba(31,191,146,0.25)", shade="rgba(230,233,237,0.07)", neutral="#232a34",
        low="#8a5a00", high="#1f6391",
    ),
}  # fmt: skip


def exchange() -> dict[str, str]:
    """Of each light colour the dark one."""
    light, dark = asdict(PALETTES["light"]), asdict(PALETTES["dark"])
    return {light[role]: dark[role] for role in light}


def darkened(text: str) -> str:
    """A light figure's JSON as the dark one's, as pages do it."""
    pairs = exchange()
    return re.sub("|".join(map(re.escape, pairs)), lambda found: pairs[found[0]], text)
