"""Figure inputs: the card and the tables that figures read, each a mapping of column name to a plain list.

    rows         contracts.series VersionRow (or evaluation.parquet, whose `part` then tells the parts apart)
    curves       contracts.series CurveRow
    trials       contracts.series TrialRow, a hyper-parameter as `params.<name>`
    predictions  contracts.series PredictionRow
    decisions    contracts.agent_tables AgentDecisionRow

Missing values are None or NaN. Times are milliseconds since the epoch, datetimes with a zone, or ISO 8601 texts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # contracts of cards load numpy, which nothing here needs
    from ml_workbench_service.contracts.agents import Beginning
    from ml_workbench_service.contracts.desk_report import DeskReport
    from ml_workbench_service.contracts.importance import ImportanceReport
    from ml_workbench_service.contracts.models import ModelCard

Columns = Mapping[str, Sequence[Any]]
PARTS = ("validation", "calibration", "test")


@dataclass(frozen=True)
class FigureInputs:
    """What figures are made of; each reads what it needs and says what is missing.

    Attributes:
        card: of the version; without it captions have no verdict.
        rows: what the version answered, row by row, by part, time and symbol.
        curves: its training's course.
        trials: of a search.
        importance: share of a search's variance by hyper-parameter.
        measured_importance: what the version's columns were found to add, by permutation.
        predictions: live predictions with their outcomes.
        decisions: of one agent, oldest first.
        q_table: of one agent that learns a table.
        desk: what a desk asks of the test part; a report shows its tables.
    """

    card: "ModelCard | None" = None
    rows: Columns = field(default_factory=dict)
    curves: Columns = field(default_factory=dict)
    trials: Columns = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    measured_importance: "ImportanceReport | None" = None
    predictions: Columns = field(default_factory=dict)
    decisions: Columns = field(default_factory=dict)
    q_table: "Beginning | None" = None
    desk: "DeskReport | None" = None

    def part(self, name: str) -> Columns:
        """The rows of one part; all of them where no column tells parts apart."""
        parts = self.rows.get("part")
        if parts is None:
            return self.rows if name == "test" else {}
        here = [row for row, each in enumerate(parts) if each == name]
        if not here:
            return {}
        if here[-1] - here[0] + 1 == len(here):  # they lie together, as every version keeps them
            return {column: values[here[0] : here[-1] + 1] for column, values in self.rows.items()}
        return {column: [values[row] for row in here] for column, values in self.rows.items()}

    @property
    def parts(self) -> dict[str, Columns]:
        """The rows by part, in their order of time; parts without rows are left out."""
        found = {name: self.part(name) for name in PARTS}
        return {name: rows for name, rows in found.items() if num_rows(rows)}


def num_rows(columns: Columns) -> int:
    """Rows of a table."""
    return len(next(iter(columns.values()), ()))


def rows_where(columns: Columns, keep: Sequence[bool]) -> Columns:
    """Those rows alone."""
    return {
        name: [value for value, is_kept in zip(values, keep, strict=True) if is_kept]
        for name, values in columns.items()
    }


def number(value: Any) -> float | None:
    """A finite number, None for what is missing."""
    if value is None:
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Each a finite number or None."""
    return [number(value) for value in values]


def has_values(columns: Columns, name: str) -> bool:
    """Whether a column is there and not all of it is missing."""
    return any(value is not None and value == value for value in columns.get(name, ()))


def times_ms(values: Sequence[Any]) -> list[int]:
    """Milliseconds since the epoch of times in any of the three spellings."""
    if not values:
        return []
    first = values[0]
    if isinstance(first, str):
        return [_to_ms(datetime.fromisoformat(value)) for value in values]
    return [_to_ms(value) for value in values] if isinstance(first, datetime) else [int(value) for value in values]


def _to_ms(moment: datetime) -> int:
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def written(moment_ms: int) -> str:
    """A time as Plotly's date axes read it, in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M")


def day(moment_ms: int) -> str:
    """The date in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC).strftime("%Y-%m-%d")
