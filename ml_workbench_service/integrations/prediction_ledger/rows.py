"""The ledger's two tables, and the ways from a served record to a row and from a row to the wire.

series       a model version's answers about one symbol, with what finding out about their outcome needs
predictions  one row a prediction, oldest first; some 300 bytes with its indices and inputs (docs/monitoring.md)
"""

import json
import sqlite3
from typing import Any, NamedTuple

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms, to_ms
from ml_workbench_service.contracts.outcomes import (
    Answered,
    Making,
    OutcomeState,
    PredictionOutcome,
    RecordedPrediction,
)
from ml_workbench_service.contracts.prediction import Interval, PredictionRecord
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.market.costs import round_trip_cost
from ml_workbench_service.market.outcomes.pending import Asked
from ml_workbench_service.market.outcomes.realised import has_outcome_in_prices

SCHEMA_VERSION = 1
STATES: tuple[OutcomeState, ...] = ("open", "known", "unavailable", "none")
OPEN, KNOWN, UNAVAILABLE, NONE = range(4)
SETTLE_GRACE_MS = 60_000
"""A later record gets so long to bring the price before the feature store is asked, however old the question is."""

SCHEMA = """
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    model_id TEXT NOT NULL, version TEXT NOT NULL, symbol TEXT NOT NULL, timeframe TEXT NOT NULL, target TEXT NOT NULL,
    foretells INTEGER NOT NULL, horizon INTEGER NOT NULL, barrier_width REAL NOT NULL,
    UNIQUE (model_id, version, symbol, timeframe, target, foretells, horizon, barrier_width)
);
CREATE TABLE predictions (
    number INTEGER PRIMARY KEY,
    prediction_id TEXT NOT NULL UNIQUE,
    series INTEGER NOT NULL REFERENCES series (id),
    as_of_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL, answered_ms INTEGER NOT NULL,
    sample TEXT NOT NULL, abstain_reasons TEXT, price REAL, prediction REAL, label TEXT, direction TEXT NOT NULL,
    confidence REAL, level REAL, lower REAL, upper REAL, volatility REAL, break_even REAL, barrier REAL, novelty REAL,
    inputs BLOB,
    state INTEGER NOT NULL, realised REAL, known_ms INTEGER, source TEXT, reason TEXT,
    settle_ms INTEGER, num_tries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX predictions_by_series ON predictions (series);
CREATE INDEX predictions_not_live ON predictions (series) WHERE sample != 'live';
CREATE INDEX predictions_to_settle ON predictions (settle_ms) WHERE state = 0 AND settle_ms IS NOT NULL;
"""
INSERT_SERIES = (
    "INSERT INTO series (model_id, version, symbol, timeframe, target, foretells, horizon, barrier_width) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET horizon = excluded.horizon RETURNING id"
)
INSERT = (
    "INSERT OR IGNORE INTO predictions (series, prediction_id, as_of_ms, due_ms, answered_ms, sample, abstain_reasons, "
    "price, prediction, label, direction, confidence, level, lower, upper, volatility, break_even, barrier, novelty, "
    f"inputs, state, settle_ms) VALUES ({', '.join('?' * 22)})"
)
WIRE = (
    "SELECT p.number, p.prediction_id, s.model_id, s.version, s.symbol, s.timeframe, s.target, p.as_of_ms, p.due_ms, "
    "p.answered_ms, p.sample, p.abstain_reasons, p.price, p.prediction, p.label, p.direction, p.confidence, p.level, "
    "p.lower, p.upper, p.novelty, p.state, p.realised, p.known_ms, p.source, p.reason "
    "FROM predictions AS p JOIN series AS s ON s.id = p.series"
)
WAITING = (
    "SELECT p.prediction_id, s.model_id, s.version, s.symbol, s.timeframe, s.target, s.horizon, s.barrier_width, "
    "p.as_of_ms, p.due_ms, p.answered_ms, p.price, p.break_even, p.barrier, p.num_tries "
    "FROM predictions AS p JOIN series AS s ON s.id = p.series WHERE p.state = 0 AND p.settle_ms IS NOT NULL"
)

SeriesKey = tuple[str, str, str, str, str, bool, int, float]


class Waiting(NamedTuple):
    """A row whose outcome prices may tell, as `WAITING` selects it."""

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

    @property
    def target(self) -> Target:
        """What it foretells."""
        return parse_target(self.target_name)

    def asked(self) -> Asked:
        """As a series reads it."""
        return Asked(
            self.prediction_id, (self.model_id, self.timeframe, self.symbol), self.as_of_ms, self.due_ms,
            TIMEFRAMES_MS[self.timeframe], self.horizon, self.price, self.target, self.break_even, self.barrier,
        )  # fmt: skip


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
    """What a record has in common with others of its version and symbol."""
    return (
        record.model_id, record.version, record.symbol, record.timeframe, record.target or "",
        making.target is not None, making.horizon, making.barrier_width,
    )  # fmt: skip


def row_of(answered: Answered, asked: Asked) -> tuple[Any, ...]:
    """The values of `INSERT` after the series."""
    record, interval = answered.record, answered.record.interval
    answered_ms = to_ms(record.timestamp)
    settle_ms = None
    if asked.target is not None and has_outcome_in_prices(asked.target):
        settle_ms = max(asked.due_ms + asked.bar_ms, answered_ms + SETTLE_GRACE_MS)
    inputs = answered.last_row_F
    return (
        record.prediction_id,
        asked.as_of_ms,
        asked.due_ms,
        answered_ms,
        record.sample,
        json.dumps(record.abstain_reasons) if record.status == "abstain" else None,
        record.price,
        record.prediction,
        record.label,
        record.direction,
        record.confidence,
        None if interval is None else interval.level,
        None if interval is None else interval.lower,
        None if interval is None else interval.upper,
        record.metadata.volatility,
        asked.break_even,
        asked.barrier,
        None if record.novelty is None else record.novelty.score,
        None if inputs is None else np.asarray(inputs, dtype="<f4").tobytes(),
        NONE if asked.target is None else OPEN,
        settle_ms,
    )


def on_the_wire(row: tuple[Any, ...]) -> RecordedPrediction:
    """A row of `WIRE`; it was checked when it was written."""
    (
        _, prediction_id, model_id, version, symbol, timeframe, target, as_of_ms, due_ms, answered_ms, sample, reasons,
        price, prediction, label, direction, confidence, level, lower, upper, novelty, state, realised, available_at_ms,
        source, reason,
    ) = row  # fmt: skip
    return RecordedPrediction(
        prediction_id=prediction_id,
        model_id=model_id,
        version=version,
        symbol=symbol,
        timeframe=timeframe,
        target=target or None,
        as_of=_moment(as_of_ms),
        valid_until=_moment(due_ms),
        timestamp=_moment(answered_ms),
        sample=sample,
        status="ok" if reasons is None else "abstain",
        price=price,
        prediction=prediction,
        label=label,
        direction=direction,
        confidence=confidence,
        interval=None if level is None else Interval(level=level, lower=lower, upper=upper),
        novelty=novelty,
        abstain_reasons=() if reasons is None else tuple(json.loads(reasons)),
        outcome=PredictionOutcome(
            state=STATES[state],
            realised=realised,
            at=None if available_at_ms is None else _moment(available_at_ms),
            source=source,
            reason=reason,
        ),
    )


def series_id(connection: sqlite3.Connection, key: SeriesKey) -> int:
    """The series' row, made where there is none."""
    (found,) = connection.execute(INSERT_SERIES, key).fetchone()
    return int(found)


def _moment(moment_ms: int) -> Any:
    return iso_of_ms(moment_ms)


def _break_even(answered: Answered) -> float | None:
    """The round-trip cost that the answer was judged with, as a fraction of the price."""
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
    return float(making.barrier_width * (answered.bar_volatility * np.sqrt(making.horizon)))
