"""Tables on their way out: the four formats, and what is asked of whoever reads and writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ml_workbench_service.contracts.agent_tables import AgentDecisionRow, QTableRow
from ml_workbench_service.contracts.batches import NO_TIME as NO_TIME
from ml_workbench_service.contracts.batches import BatchTask
from ml_workbench_service.contracts.bodies import BodyTask
from ml_workbench_service.contracts.contract import Contract, MarketDatetime
from ml_workbench_service.contracts.desk_report import DeskTask
from ml_workbench_service.contracts.explanations import ExplanationTask
from ml_workbench_service.contracts.figures import FigureTask, SentFigureTask
from ml_workbench_service.contracts.market import FillRule, Floats, Ints
from ml_workbench_service.contracts.market_data import FeatureRequest, LabelRequest
from ml_workbench_service.contracts.series import (
    Column,
    ColumnKind,
    CurveRow,
    EvaluatedPart,
    FeatureRow,
    LabelRow,
    PredictionRow,
    ReplayRow,
    Row,
    TrialRow,
    VersionRow,
    columns_of,
)

RowName = Literal["version", "replay", "curve", "trial", "feature", "label", "prediction", "decision", "q_table"]
ROWS: dict[RowName, type[Row]] = {
    "version": VersionRow,
    "replay": ReplayRow,
    "curve": CurveRow,
    "trial": TrialRow,
    "feature": FeatureRow,
    "label": LabelRow,
    "prediction": PredictionRow,
    "decision": AgentDecisionRow,
    "q_table": QTableRow,
}


class TableFormat(StrEnum):
    """A table's media type."""

    JSON = "application/json"
    CSV = "text/csv"
    ARROW = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


class StoredTable(Contract):
    """Rows of a Parquet file of this service: of a bundle, or of a job's folder."""

    kind: Literal["stored"] = "stored"
    row: RowName
    path: str
    part: EvaluatedPart | None = Field(default=None, description="Of a file with a column `part`, the rows wanted.")


class PredictionTable(Contract):
    """Rows of the prediction ledger, newest first."""

    kind: Literal["predictions"] = "predictions"
    row: RowName = "prediction"
    path: str
    model_id: str | None = None
    version: str | None = None
    symbol: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    is_known: bool | None = None
    before: int | None = Field(default=None, description="Rows with smaller numbers alone.")


class SentColumn(Contract):
    """A column whose values come along: texts here, numbers and milliseconds as bytes behind the order."""

    name: str
    kind: ColumnKind
    num_bytes: int = 0
    texts: tuple[str | None, ...] | None = None
    same: str | None = Field(default=None, description="One text for every row.")


class SentTable(Contract):
    """Rows that the asker has in memory."""

    kind: Literal["sent"] = "sent"
    row: RowName
    num_rows: int
    columns: tuple[SentColumn, ...]


class ComparedVersion(Contract):
    """A version whose kept rows are compared with others'."""

    model_id: str
    version: str
    path: str
    target: str | None
    horizon: int
    timeframe: str
    fill: FillRule
    verdict: str


class ComparisonTask(Contract):
    """Several versions on the rows that all of them have."""

    kind: Literal["comparison"] = "comparison"
    versions: tuple[ComparedVersion, ...]


class FeatureTask(Contract):
    """Features out of the feature store; `now` is the service's present."""

    kind: Literal["features"] = "features"
    request: FeatureRequest
    selected: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Expressions of each set of a search that the request names."
    )
    is_batch: bool
    now: MarketDatetime


class LabelTask(Contract):
    """Labels as a training over the range would see them."""

    kind: Literal["labels"] = "labels"
    request: LabelRequest
    now: MarketDatetime


AnyTable = StoredTable | PredictionTable | SentTable
MarketTask = FeatureTask | LabelTask


class TableOrder(Contract):
    """What the table process is asked for; `format` JSON is a page, the others are the whole or a stretch of it."""

    what: Annotated[
        AnyTable
        | ComparisonTask
        | DeskTask
        | FigureTask
        | SentFigureTask
        | MarketTask
        | BatchTask
        | BodyTask
        | ExplanationTask,
        Field(discriminator="kind"),
    ]
    format: TableFormat = TableFormat.JSON
    first: int = Field(default=0, ge=0, description="Rows to leave out before the first.")
    limit: int | None = Field(default=None, ge=1)


class TableHead(Contract):
    """What is known of a table before its rows."""

    columns: tuple[tuple[str, ColumnKind], ...] = ()
    num_rows: int | None = Field(default=None, description="Of the whole table; null where only reading tells.")


@dataclass(frozen=True)
class Sent:
    """A table in memory with the bytes of its columns, in their order.

    Attributes:
        buffers: one for each column that is neither texts nor the same text everywhere.
    """

    table: SentTable
    buffers: tuple[bytes, ...]


@dataclass(frozen=True)
class Values:
    """One column in memory: numbers with NaN where there is none, milliseconds with `NO_TIME`, or texts."""

    name: str
    kind: ColumnKind
    values: Floats | Ints | Sequence[str | None] | str


def sent(row: RowName, columns: Sequence[Values], *, num_rows: int) -> Sent:
    """A table of these columns, ready to be sent."""
    described, buffers = [], []
    for each in columns:
        if isinstance(each.values, str):
            described.append(SentColumn(name=each.name, kind="text", same=each.values))
            continue
        if each.kind == "text":
            described.append(SentColumn(name=each.name, kind="text", texts=tuple(map(_text, each.values))))
            continue
        plain = np.ascontiguousarray(each.values, dtype="<i8" if each.kind == "time" else "<f8").tobytes()
        described.append(SentColumn(name=each.name, kind=each.kind, num_bytes=len(plain)))
        buffers.append(plain)
    return Sent(SentTable(row=row, num_rows=num_rows, columns=tuple(described)), tuple(buffers))


def described(row: RowName, columns: Sequence[tuple[str, ColumnKind]]) -> tuple[Column, ...]:
    """What each column of a table means: the fixed ones by name, the others by what the row says of further ones."""
    kind = ROWS[row]
    fixed = {each.name: each for each in columns_of(kind)}
    return tuple(
        fixed.get(name) or Column(name=name, kind=of_kind, unit=_further(kind).unit, meaning=_further(kind).meaning)
        for name, of_kind in columns
    )


def _further(row: type[Row]) -> Column:
    assert row.further is not None, "a table with other columns than its row's says what they are"
    return row.further


def _text(value: object) -> str | None:
    return None if value is None else str(value)
