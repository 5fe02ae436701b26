"""Figures on the wire: which there are of a version, an agent or a search, and what is asked of whoever draws them."""

from typing import Any, Literal

from pydantic import Field

from ml_workbench_service.contracts.agents import Beginning
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.importance import ImportanceReport
from ml_workbench_service.contracts.models import ModelCard

FigureTheme = Literal["light", "dark"]


class FigureDescription(Contract):
    """One kind of figure, and whether it says something of this version, agent or experiment."""

    name: str
    title: str
    about: str = Field(description="What it shows, beside what.")
    applies: bool
    why_not: str = Field(description="Empty where it applies; the figure then says the same in its place.")
    href: str


class FigureList(Contract):
    """`GET /models/{id}/versions/{v}/figures`."""

    model_id: str
    version: str
    figures: tuple[FigureDescription, ...]
    report_href: str = Field(description="All of them on one HTML page.")


class AgentFigureList(Contract):
    """`GET /agents/{id}/figures`."""

    agent_id: str
    figures: tuple[FigureDescription, ...]


class ExperimentFigureList(Contract):
    """`GET /experiments/{id}/figures`."""

    experiment_id: str
    figures: tuple[FigureDescription, ...]


class SentFigureTask(Contract):
    """One figure of tables that the asker has in memory: of an agent, or of a search."""

    kind: Literal["sent_figure"] = "sent_figure"
    name: str
    theme: FigureTheme = "light"
    trials: dict[str, list[Any]] = Field(default_factory=dict)
    importance: dict[str, float] = Field(default_factory=dict)
    decisions: dict[str, list[Any]] = Field(default_factory=dict)
    q_table: Beginning | None = None


class FigureTask(Contract):
    """One figure, or the report with all of them, from a version's card and its rows."""

    kind: Literal["figure"] = "figure"
    card: ModelCard
    rows_path: str | None = Field(description="The version's evaluation.parquet; null where it keeps none.")
    name: str | None = Field(description="Of the figure; null: the report.")
    theme: FigureTheme | None = Field(default=None, description="Null: light, and of a report the reader's setting.")
    curves: dict[str, list[Any]] = Field(default_factory=dict, description="The training's steps by column.")
    importance: dict[str, float] = Field(default_factory=dict, description="Of a search's hyper-parameters.")
    measured_importance: ImportanceReport | None = Field(
        default=None, description="What the newest importance job of the version found."
    )
