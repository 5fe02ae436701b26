"""Prediction ledger, schema: two tables, and the ways from a served record to a row and from a row to the wire.

series       a model version's answers about one symbol, with what finding out about their outcome needs
predictions  one row a prediction, oldest first; some 300 bytes with its indices and inputs (docs/monitoring.md)
"""

import json
import sqlite3
from typing import Any, NamedTuple

import numpy as np

from common_lib.sqlite_store import Schema, Table, selected
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms, to_ms
from ml_workbench_service.contracts.outcomes import (
    Answered,
    Making,
    OutcomeState,
    PredictionOutcome,
    RecordedPrediction,
)
from ml_workbench_service.contracts.prediction import Interval, PredictionRecord, Sample
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.market.costs import round_trip_cost
from ml_workbench_service.market.outcomes.pending import Asked
from ml_workbench_service.market.outcomes.realised import has_outcome_in_prices

STATES: tuple[OutcomeState, ...] = ("open", "known", "unavailable", "none")
OPEN, KNOWN, UNAVAILABLE, NONE = range(4)
HISTORICAL: Sample = "historical"
"""Of rows about the past: kept, settled from the feature store alone, and no evidence of how a version fares."""
RESOLVE_GRACE_MS = 60_000
"""A later record gets so long to bring the price before the feature store is asked, however old the question is."""


class SeriesKey(NamedTuple):
    """What a record has in common with others of its version and symbol."""

    model_id: str
    version: str
    symbol: str
    timeframe: str
    target: str
    foretells: bool
    horizon: int
    barrier_width: float


SERIES = Table(
    "series",
    {
        "id": "INTEGER PRIMARY KEY",
        "model_id": "TEXT NOT NULL",
        "version": "TEXT NOT NULL",
        "symbol": "TEXT NOT NULL",
        "timeframe": "TEXT NOT NULL",
        "target": "TEXT NOT NULL",
        "foretells": "INTEGER NOT NULL",
        "horizon": "INTEGER NOT NULL",
        "barrier_width": "REAL NOT NULL",
    },
    constraints=(f"UNIQUE ({', '.join(SeriesKey._fields)})",),
)
PREDICTIONS = Table(
    "predictions",
    {
        "number": "INTEGER PRIMARY KEY",
        "prediction_id": "TEXT NOT NULL UNIQUE",
        "series": "INTEGER NOT NULL REFERENCES series (id)",
        "as_of_ms": "INTEGER NOT NULL",
        "due_ms": "INTEGER NOT NULL",
        "answered_ms": "INTEGER NOT NULL",
        "sample": "TEXT NOT NULL",
        "abstain_reasons": "TEXT",
        "price": "REAL",
        "prediction": "REAL",
        "label": "TEXT",
        "direction": "TEXT NOT NULL",
        "confidence": "REAL",
        "level": "REAL",
        "lower": "REAL",
        "upper": "REAL",
        "volatility": "REAL",
        "break_even": "REAL",
        "barrier": "REAL",
        "novelty": "REAL",
        "inputs": "BLOB",
        "state": "INTEGER NOT NULL",
        "realised": "REAL",
        "known_ms": "INTEGER",
        "source": "TEXT",
        "reason": "TEXT",
        "settle_ms": "INTEGER",
        "num_tries": "INTEGER NOT NULL DEFAULT 0",
        "actions": "TEXT",
    },
)
SCHEMA = Schema(
    "prediction ledger",
    (SERIES, PREDICTIONS),
    extras=(
        "CREATE INDEX predictions_by_series ON predictions (series)",
        "CREATE INDEX predictions_not_live ON predictions (series) WHERE sample != 'live'",
        "CREATE INDEX predictions_to_settle ON predictions (settle_ms) WHERE state = 0 AND settle_ms IS NOT NULL",
    ),
    migrations={2: ("ALTER TABLE predictions ADD COLUMN actions TEXT",)},
)
_KNOWN_LATER = ("realised", "known_ms", "source", "reason", "num_tries")
_SAME_ON_THE_WIRE = (
    "prediction_id", "model_id", "version", "symbol", "timeframe", "sample", "price", "prediction", "label",
    "direction", "confidence", "novelty",
)  # fmt: skip
_ON_THE_WIRE = (
    "number", *_SAME_ON_THE_WIRE, "target", "as_of_ms", "due_ms", "answered_ms", "abstain_reasons", "level", "lower",
    "upper", "state", "realised", "known_ms", "source", "reason",
)  # fmt: skip
INSERT_SERIES = SERIES.insert(without=("id",), then="ON CONFLICT DO UPDATE SET horizon = excluded.horizon RETURNING id")
INSERT = PREDICTIONS.insert(without=("number", *_KNOWN_LATER), verb="INSERT OR IGNORE")
_FROM = "FROM predictions AS p JOIN series AS s ON s.id = p.series"
WIRE = f"SELECT {selected(_ON_THE_WIRE, p=PREDICTIONS, s=SERIES)} {_FROM}"


class Waiting(NamedTuple):
    """A row whose outcome prices may tell, as `WAITING` selects it: column by column, `target_name` is `target`."""

    prediction_id: str
    model_id: str
    version: str
    symbol: str
    timeframe: str
    target_name: str
    horizon: int
    barrier_width: float
    as_of_ms: int
    due_ms: int
    answered_ms: int
    price: float | None
    break_even: float | None
    barrier: float | None
    num_tries: int
    sample: str

    @property
    def target(self) -> Target:
        """The target, parsed; the bars that are kept reach beyond its horizon where its label begins later."""
        target = parse_target(self.target_name)
        return target.model_copy(update={"delay": int(self.horizon > target.horizon)})

    def asked(self) -> Asked:
        """As `market.outcomes` reads it."""
        return Asked(
            self.prediction_id, (self.model_id, self.timeframe, self.symbol), self.as_of_ms, self.due_ms,
            TIMEFRAMES_MS[self.timeframe], self.horizon, self.price, self.target, self.break_even, self.barrier,
        )  # fmt: skip


WAITING = (
    f"SELECT {selected((each.removesuffix('_name') for each in Waiting._fields), p=PREDICTIONS, s=SERIES)} {_FROM} "
    "WHERE p.state = 0 AND p.settle_ms IS NOT NULL"
)


def asked_of(answered: Answered, making: Making, *, is_sampled: bool) -> Asked:
    """What a series reads of a served record; of one that is not sampled its price alone."""
    record = answered.record
    series, as_of_ms = (record.model_id, record.timeframe, record.symbol), to_ms(record.as_of)
    bar_ms = TIMEFRAMES_MS[record.timeframe]
    if not is_sampled:
        return Asked(record.prediction_id, series, as_of_ms, as_of_ms, bar_ms, making.horizon, record.price)
    return Asked(
        record.prediction_id, series, as_of_ms, to_ms(record.valid_until), bar_ms, making.horizon, record.price,
        making.target if record.status == "ok" else None, _break_even(answered), _barrier(answered, making),
    )  # fmt: skip


def series_key(record: PredictionRecord, making: Making) -> SeriesKey:
    """The record's series."""
    return SeriesKey(
        record.model_id, record.version, record.symbol, record.timeframe, record.target or "",
        making.target is not None, making.horizon, making.barrier_width,
    )  # fmt: skip


def row_of(answered: Answered, asked: Asked) -> dict[str, Any]:
    """The values of `INSERT` but for the series."""
    record, interval, inputs = answered.record, answered.record.interval, answered.last_row_F
    answered_ms = to_ms(record.timestamp)
    settle_ms = None
    if asked.target is not None and has_outcome_in_prices(asked.target):
        settle_ms = max(asked.due_ms + asked.bar_ms, answered_ms + RESOLVE_GRACE_MS)
    return {
        "prediction_id": record.prediction_id,
        "as_of_ms": asked.as_of_ms,
        "due_ms": asked.due_ms,
        "answered_ms": answered_ms,
        "sample": record.sample,
        "abstain_reasons": json.dumps(record.abstain_reasons) if record.status == "abstain" else None,
        "price": record.price,
        "prediction": record.prediction,
        "label": record.label,
        "direction": record.direction,
        "confidence": record.confidence,
        "level": None if interval is None else interval.level,
        "lower": None if interval is None else interval.lower,
        "upper": None if interval is None else interval.upper,
        "volatility": record.metadata.volatility,
        "break_even": asked.break_even,
        "barrier": asked.barrier,
        "novelty": None if record.novelty is None else record.novelty.score,
        "inputs": None if inputs is None else np.asarray(inputs, dtype="<f4").tobytes(),
        "state": NONE if asked.target is None else OPEN,
        "settle_ms": settle_ms,
        "actions": _actions(record),
    }


def on_the_wire(values: tuple[Any, ...]) -> RecordedPrediction:
    """A row of `WIRE`; it was checked when it was written."""
    row = dict(zip(_ON_THE_WIRE, values, strict=True))
    reasons, level, known_ms = row["abstain_reasons"], row["level"], row["known_ms"]
    return RecordedPrediction(
        **{name: row[name] for name in _SAME_ON_THE_WIRE},
        target=row["target"] or None,
        as_of=_moment(row["as_of_ms"]),
        valid_until=_moment(row["due_ms"]),
        timestamp=_moment(row["answered_ms"]),
        status="ok" if reasons is None else "abstain",
        interval=None if level is None else Interval(level=level, lower=row["lower"], upper=row["upper"]),
        abstain_reasons=() if reasons is None else tuple(json.loads(reasons)),
        outcome=PredictionOutcome(
            state=STATES[row["state"]],
            realised=row["realised"],
            at=None if known_ms is None else _moment(known_ms),
            source=row["source"],
            reason=row["reason"],
        ),
    )


def series_id(connection: sqlite3.Connection, key: SeriesKey) -> int:
    """The series' row, made where there is none."""
    (found,) = INSERT_SERIES(connection, key._asdict()).fetchone()
    return int(found)


def _moment(moment_ms: int) -> Any:
    return iso_of_ms(moment_ms)


def _actions(record: PredictionRecord) -> str | None:
    """Of a policy: the positions that follow for one who holds -1, 0 and 1; null of other models' answers."""
    found = record.metadata.actions_by_position
    return None if found is None else json.dumps(found)


def _break_even(answered: Answered) -> float | None:
    """The round-trip cost that the answer was decided with, as a fraction of the price."""
    record = answered.record
    price = record.price or answered.reference_price
    if record.metadata.costs is None or not price:
        return None
    return round_trip_cost(record.metadata.costs, record.symbol, price)


def _barrier(answered: Answered, making: Making) -> float | None:
    """How far the barriers of a triple barrier lie from its price, in logarithms."""
    target = making.target
    if target is None or target.measure != "triple_barrier" or answered.bar_volatility is None:
        return None
    return float(making.barrier_width * (answered.bar_volatility * np.sqrt(target.horizon)))
