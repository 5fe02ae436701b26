"""Importance: which columns tell about the target, or which hyper-parameters decided the score."""

from typing import TYPE_CHECKING, Any, ClassVar

from ml_workbench_figures.drawing import Drawing
from ml_workbench_figures.figure import MISSING, Figure, Source
from ml_workbench_figures.inputs import FigureInputs

if TYPE_CHECKING:
    from ml_workbench_service.contracts.models import ModelCard

MOST_BARS = 25


class Importance(Figure):
    """A feature set's columns beside what luck reaches; else a search's hyper-parameters by fANOVA."""

    name: ClassVar[str] = "importance"
    title: ClassVar[str] = "Importance"
    about: ClassVar[str] = (
        "Held-out information of a feature set's columns beside what luck reaches; of a tuned version each "
        "hyper-parameter's share of the score's variance (fANOVA)"
    )
    reads: ClassVar[Source] = "importance"

    def is_on_card(self, card: "ModelCard") -> bool:
        """A feature set's scores stand there."""
        return bool(_feature_set(card))

    def missing(self, given: FigureInputs) -> str:
        """Neither a feature set nor a search."""
        return "" if given.importance or _feature_set(given.card) else MISSING["importance"]

    def draw(self, given: FigureInputs, drawing: Drawing) -> None:
        """Horizontal bars, the greatest at the top."""
        found = _feature_set(given.card)
        if found:
            scores = {each["name"]: each["score"] for each in found["expressions"] if each.get("score") is not None}
            unit, form = "held-out information (nats a row)", ".4g"
            chance = (found.get("selection") or {}).get("chance_level")
        else:
            scores, unit, form, chance = dict(given.importance), "share of the score's variance", ".1%", None
            drawing.notes.append(
                "How much of the differences between the trials' scores each hyper-parameter alone explains (fANOVA); "
                "of few trials a rough guess."
            )
        kept = sorted(scores.items(), key=lambda each: each[1])[-MOST_BARS:]
        if len(scores) > MOST_BARS:
            drawing.notes.append(f"The first {MOST_BARS} of {len(scores)} are drawn.")
        drawing.add(
            "bar", orientation="h", y=[_short(name) for name, _ in kept], x=[score for _, score in kept],
            customdata=[name for name, _ in kept], marker={"color": drawing.palette.model},
            hovertemplate=f"%{{customdata}}: %{{x:{form}}}<extra></extra>",
        )  # fmt: skip
        if chance is not None:
            drawing.upright(chance, "luck reaches")
            drawing.notes.append(
                f"Dotted: what the best column reaches on shuffled targets once in 40 times, {chance:.4g} nats."
            )
        drawing.height_px = max(160, 22 * len(kept) + 40)
        axis: dict[str, Any] = {"title": unit, "rangemode": "tozero", "nticks": 5}
        if not found:
            axis["tickformat"] = ",.0%"
        drawing.axes(axis, {"type": "category", "showgrid": False})


def _feature_set(card: "ModelCard | None") -> dict[str, Any]:
    found = card.findings.get("feature_set") if card else None
    return found if isinstance(found, dict) else {}


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
