"""Tables, row by row: what each column is called, measured in, and means. One class a table; its fields are columns.

One row is one observation; times are in UTC; what is missing is null (an empty cell in CSV). The same names stand in
JSON, CSV, Arrow and Parquet, in the order in which they stand here; further columns, named by what a table holds (a
class, a feature, a hyper-parameter), follow the fixed ones.
"""

from collections.abc import Iterator
from types import NoneType
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.prediction import Direction

EvaluatedPart = Literal["validation", "calibration", "test"]
"""Parts of the data that a version keeps its answers of."""
RowStatus = Literal["ok", "abstain"]
ColumnKind = Literal["time", "text", "number", "integer", "boolean"]
Figure = Finite | None


class Column(Contract):
    """What stands in one column of a table."""

    name: str
    kind: ColumnKind
    unit: str = Field(description="`UTC`, `1` of a plain number, `log return`, `price`, `target` …")
    meaning: str


def column(unit: str, meaning: str, **more: Any) -> Any:
    """A field of a row: its unit stands in the OpenAPI document as `x-unit`."""
    return Field(description=meaning, json_schema_extra={"x-unit": unit}, **more)


class Row(Contract):
    """One row of a table; a table with further columns allows them, and says in `further` what they are."""

    further: ClassVar[Column | None] = None
    """Of each further column: its name as a pattern, such as `p_<class>`."""


class _OpenRow(Row):
    model_config = ConfigDict(extra="allow")


class DecisionRow(_OpenRow):
    """What a version says at one bar, what came true, and what a position taken there pays."""

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": {
                "anyOf": [{"type": "number"}, {"type": "null"}],
                "description": "`p_<class>`: the calibrated probability of each class, where classes are forecast.",
            }
        }
    )
    __pydantic_extra__: dict[str, Figure]
    further: ClassVar[Column | None] = Column(
        name="p_<class>", kind="number", unit="probability", meaning="The calibrated probability of that class."
    )

    as_of: UtcDatetime = column("UTC", "When the row's bar was known, and the decision was made.")
    symbol: str = column("-", "Such as EUR/USD.")
    price: Figure = column("price", "The bar's close.")
    realised: Figure = column(
        "target", "What came true, in the target's units (of classes the number); null where the row has no label."
    )
    prediction: Figure = column(
        "target", "In the target's units; of classes the side or number, of policies the position; null: abstained."
    )
    lower: Figure = column("target", "Lower end of the prediction interval.")
    upper: Figure = column("target", "Upper end of the prediction interval.")
    direction: Direction = column("-", "`buy`, `sell`, or `hold`.")
    confidence: Figure = column("probability", "That the stated direction, or class, comes true.")
    status: RowStatus = column("-", "`ok`, or `abstain`: no answer is given, and the position is flat.")
    position: Figure = column("1", "The signed size that is held; null where nothing is traded.")
    gross: Figure = column("log return", "Of the step that the position is filled for, before costs.")
    cost: Figure = column("log return", "Spread, commission, slippage and swap of that step: gross less net.")
    net: Figure = column("log return", "Of that step, after costs; null where it has no second price.")
    equity: Figure = column(
        "log return",
        "Running sum of `net` over the part; of several symbols that of one account in equal weights, as on the card.",
    )
    action: Literal[-1, 0, 1] | None = column("1", "What the policy chose: the position it goes to.", default=None)


class VersionRow(DecisionRow):
    """A row of `GET /models/{id}/versions/{v}/series`: a version at one bar of a part of its data."""


class ReplayRow(DecisionRow):
    """A row of `GET /jobs/{id}/series`: a replay's answer at one bar; `net` is the reward of its position."""

    prediction_id: str = column("-", "As in the queue and the decisions that agents make of it.")


class CurveRow(_OpenRow):
    """A row of `GET /jobs/{id}/curves`: where a training stood after an epoch (a policy: after a stretch of steps)."""

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": {
                "anyOf": [{"type": "number"}, {"type": "null"}],
                "description": "Whatever else the family reports of a step, such as a policy's mean reward.",
            }
        }
    )
    __pydantic_extra__: dict[str, Figure]
    further: ClassVar[Column | None] = Column(
        name="<figure>", kind="number", unit="the family's", meaning="Whatever else the family reports of a step."
    )

    at: UtcDatetime = column("UTC", "When the step was reported.")
    seed: int = column("-", "The seed that is trained; of several they follow one another.")
    epoch: int = column("epochs", "Within the seed's training, from 1 on; of policies environment steps.")
    train_loss: Figure = column("loss", "Mean over the training part, in units of scaled labels.", default=None)
    validation_loss: Figure = column("loss", "The same over the validation part; decides when to stop.", default=None)
    learning_rate: Figure = column("1", "The optimiser's step size in this epoch.", default=None)


class TrialRow(_OpenRow):
    """A row of `GET /experiments/{id}/trials`: one setting and its score."""

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": {"description": "`params.<name>`: the value that the trial gave a hyper-parameter."}
        }
    )
    further: ClassVar[Column | None] = Column(
        name="params.<name>", kind="text", unit="the family's", meaning="The value that the trial gave that parameter."
    )

    number: int = column("-", "From 0 on, in the order of their beginning.")
    state: str = column("-", "`running`, `complete`, `pruned` or `failed`.")
    value: Figure = column("score", "On the validation part; more is better.", default=None)
    spread: Figure = column("score", "Standard deviation over the seeds, where there are several.", default=None)
    sharpe: Figure = column("per year", "Of daily net returns on the validation part.", default=None)
    started_at: UtcDatetime | None = column("UTC", "When it began.", default=None)
    finished_at: UtcDatetime | None = column("UTC", "When it ended.", default=None)
    run_id: str | None = column("-", "Its run on the tracking server.", default=None)
    message: str = column("-", "Why it failed or was cut short.", default="")


class FeatureRow(_OpenRow):
    """A row of `GET /features/{symbol}` and `POST /features/batch`: a bar and its features, as known at a moment."""

    __pydantic_extra__: dict[str, Figure]
    further: ClassVar[Column | None] = Column(
        name="<feature>", kind="number", unit="the feature's", meaning="The feature's value; null while it is missing."
    )

    symbol: str = column("-", "Such as EUR/USD.")
    timestamp: UtcDatetime = column("UTC", "The bar's opening.")
    available_at: UtcDatetime = column("UTC", "When the row was known.")
    data_source: str = column("-", "`ecb_daily`, `simulated`, `file` or `feature_store`.")
    calendar: str = column("-", "Which closures are no gap: `fx` or `fixings`.")
    fill: str = column("-", "When a signal from the bar's close is filled.")
    warnings: str = column("-", "Of the series, with commas between.")


class LabelRow(Row):
    """A row of `GET /labels/{symbol}`: what a training would see as its target at one bar."""

    symbol: str = column("-", "Such as EUR/USD.")
    timestamp: UtcDatetime = column("UTC", "Opening of the bar that the label belongs to.")
    label: Figure = column("target", "In the target's units, of classes the number; null where there is none.")
    available_at: UtcDatetime | None = column("UTC", "When the label is known; null where there is none.")


class PredictionRow(Row):
    """A row of `GET /predictions` as a table: the JSON's nested keys with dots between."""

    prediction_id: str = column("-", "As `POST /predict` answered.")
    model_id: str = column("-", "The model.")
    version: str = column("-", "Its version.")
    symbol: str = column("-", "Such as EUR/USD.")
    timeframe: str = column("-", "Length of a bar.")
    target: str | None = column("-", "What is forecast.")
    as_of: UtcDatetime = column("UTC", "When the newest bar was known.")
    valid_until: UtcDatetime = column("UTC", "The end of its horizon.")
    timestamp: UtcDatetime = column("UTC", "When it was answered.")
    sample: str = column("-", "The part of the data that it is about.")
    status: RowStatus = column("-", "`ok` or `abstain`.")
    price: Figure = column("price", "At `as_of`.")
    prediction: Figure = column("target", "In the target's units; null: abstained.")
    label: str | None = column("-", "The class or action that `prediction` numbers.")
    direction: Direction = column("-", "`buy`, `sell` or `hold`.")
    confidence: Figure = column("probability", "That the stated direction, or class, comes true.")
    novelty: Figure = column("1", "Above 1 the input was unlike the training part.")
    abstain_reasons: str = column("-", "With commas between.")
    interval_level: Figure = column("probability", "What the interval promises.", alias="interval.level")
    interval_lower: Figure = column("target", "Its lower end.", alias="interval.lower")
    interval_upper: Figure = column("target", "Its upper end.", alias="interval.upper")
    outcome_state: str = column("-", "`open`, `known`, `unavailable` or `none`.", alias="outcome.state")
    outcome_realised: Figure = column("target", "What came true.", alias="outcome.realised")
    outcome_at: UtcDatetime | None = column("UTC", "When it became known.", alias="outcome.at")
    outcome_source: str | None = column("-", "Who said so.", alias="outcome.source")
    outcome_reason: str | None = column("-", "Why there is none.", alias="outcome.reason")


class TablePage(Contract):
    """A page of a table in JSON, and what its columns mean."""

    columns: tuple[Column, ...] = Field(description="Those of `rows`, further ones included, in order.")
    num_rows: int = Field(description="Of the whole table.")
    next_cursor: str | None = None
    warnings: tuple[str, ...] = ()


class VersionSeries(TablePage):
    """`GET /models/{id}/versions/{v}/series`, by time and symbol."""

    model_id: str
    version: str
    part: EvaluatedPart
    target: str | None = Field(description="What `prediction` and `realised` are measured as; null of a policy.")
    rows: tuple[VersionRow, ...]


class ReplaySeries(TablePage):
    """`GET /jobs/{id}/series`, by time and symbol."""

    job_id: str
    model_id: str
    version: str
    rows: tuple[ReplayRow, ...]


class Curves(TablePage):
    """`GET /jobs/{id}/curves`, in the order of training."""

    job_id: str
    num_steps: int = Field(description="Reported by the training; of more than `num_rows` the rest is left out.")
    is_thinned: bool = Field(description="Whether steps are left out, evenly; each seed's first, last and best stay.")
    rows: tuple[CurveRow, ...]


class TrialTable(TablePage):
    """`GET /experiments/{id}/trials`, by number."""

    experiment_id: str
    rows: tuple[TrialRow, ...]


_KINDS: dict[str, ColumnKind] = {
    "datetime": "time",
    "float": "number",
    "int": "integer",
    "bool": "boolean",
    "str": "text",
}


def columns_of(row: type[Row]) -> tuple[Column, ...]:
    """The fixed columns of a table, in order."""
    return tuple(_columns(row))


def _columns(row: type[Row]) -> Iterator[Column]:
    for name, field in row.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), "every field of a row is made by `column`"
        yield Column(
            name=field.alias or name,
            kind=_kind(field.annotation),
            unit=str(extra["x-unit"]),
            meaning=field.description or "",
        )


def _kind(annotation: Any) -> ColumnKind:
    """Of a field's type: literals by their values, what may be null by the rest."""
    parts = [part for part in get_args(annotation) if part is not NoneType] or [annotation]
    if all(isinstance(part, str) for part in parts):
        return "text"
    if all(isinstance(part, int) for part in parts):
        return "integer"
    kinds = [_kind_of_part(part) for part in parts]
    return "number" if "number" in kinds else kinds[0]


def _kind_of_part(part: Any) -> ColumnKind:
    if get_args(part) and not isinstance(part, type):
        return _kind(part)
    return _KINDS.get(getattr(part, "__name__", "str"), "text")
