"""Prediction ledger, schema: two tables, and the ways from a served record to a row and from a row to the wire.

series       a model version's answers about one symbol, with what finding out about their outcome needs
predictions  one row a prediction, oldest first; some 300 bytes with its indices and inputs (docs/monitoring.md)
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from common_lib.sqlite_store import Schema, Table, selected
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms, to_ms
from ml_workbench_service.contracts.market import Bools, Costs, Floats32
from ml_workbench_service.contracts.outcomes import (
    Answered,
    Making,
    OutcomeState,
    PredictionOutcome,
    RecordedPrediction,
)
from ml_workbench_service.contracts.prediction import PRIMARY_SIDE, Interval, PredictionRecord, Sample
from ml_workbench_service.contracts.runs.columns import Nested, moments_ms
from ml_workbench_service.contracts.runs.records import RecordRun
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
        making.target if record.status == "ok" else None,
        break_even(record.metadata.costs, record.symbol, record.price or answered.reference_price),
        barrier(making, answered.bar_volatility),
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
        "inputs": _bytes_of(inputs),
        "state": NONE if asked.target is None else OPEN,
        "settle_ms": due_at_ms(asked, answered_ms),
        "actions": _actions(record.metadata.actions_by_position, record.outputs.get(PRIMARY_SIDE)),
    }


class Entry(NamedTuple):
    """An answer on its way into the ledger.

    Attributes:
        row: its series and the values of `INSERT`; None: it is not sampled, and its price alone is read.
        is_past: whether it is about the past.
    """

    asked: Asked
    row: tuple[SeriesKey, dict[str, Any]] | None
    answered_ms: int
    is_past: bool


def entry_of(answered: Answered, making: Making, *, is_sampled: bool) -> Entry:
    """One answer's."""
    record, asked = answered.record, asked_of(answered, making, is_sampled=is_sampled)
    row = (series_key(record, making), row_of(answered, asked)) if is_sampled else None
    return Entry(asked, row, to_ms(record.timestamp), record.sample == HISTORICAL)


def entries_of(
    run: RecordRun, making: Making, is_sampled_N: Bools, *, is_new: Callable[[tuple[str, str, str], int, int], bool]
) -> Iterator[Entry]:
    """Those of a run's answers that say something, in their order: a sampled one, or the price of a new bar.

    Args:
        is_new: whether a moment is of a bar that its series has not seen, of which nothing is asked any more once it
            was not; by series, moment and length of a bar.
    """
    model_id, timeframe = run.coded("model_id").value(0), run.coded("timeframe").value(0)
    bar_ms, known = TIMEFRAMES_MS[timeframe], set[tuple[str, int]]()
    symbols, prices, as_of_ms = run.columns["symbol"].values(), run.columns["price"].values(), run.as_of_ms
    answered_ms, samples = moments_ms(run.columns["timestamp"]).tolist(), run.columns["sample"].values()
    places, whole = iter(np.flatnonzero(is_sampled_N).tolist()), iter(_whole_entries(run, making, is_sampled_N))
    next_sampled = next(places, None)
    for number, (symbol, moment_ms, price) in enumerate(zip(symbols, as_of_ms, prices, strict=True)):
        if number == next_sampled:
            next_sampled = next(places, None)
            yield next(whole)
        elif price is not None and (symbol, moment_ms) not in known and samples[number] != HISTORICAL:
            series = (model_id, timeframe, symbol)
            if is_new(series, moment_ms, bar_ms):
                name = run.prediction_ids[number]
                asked = Asked(name, series, moment_ms, moment_ms, bar_ms, making.horizon, price)
                yield Entry(asked, None, answered_ms[number], is_past=False)
            known.add((symbol, moment_ms))


_READ = (
    "prediction_id", "symbol", "price", "status", "sample", "abstain_reasons", "prediction", "label", "direction",
    "confidence", "interval.level", "interval.lower", "interval.upper", "metadata.volatility", "novelty.score",
    "metadata.actions_by_position", "metadata.costs",
)  # fmt: skip
"""What a row reads of its record."""


def _whole_entries(run: RecordRun, making: Making, is_sampled_N: Bools) -> Iterator[Entry]:
    """The sampled answers with their rows, as `entry_of` has them."""
    if not is_sampled_N.any():
        return
    run = run.taken(np.flatnonzero(is_sampled_N))
    model_id, version, timeframe, target = (
        run.coded(name).value(0) for name in ("model_id", "version", "timeframe", "target")
    )
    bar_ms = TIMEFRAMES_MS[timeframe]
    beside = zip(
        run.as_of_ms, moments_ms(run.columns["valid_until"]).tolist(), moments_ms(run.columns["timestamp"]).tolist(),
        run.bar_volatility.values(), run.reference_price.values(), run.last_rows.all(),
        strict=True,
    )  # fmt: skip
    records = zip(*(run.column(path).values() for path in _READ), _primary_sides(run), strict=True)
    for values, (as_of_ms, due_ms, answered_ms, volatility, reference, inputs) in zip(records, beside, strict=True):
        of = dict(zip((*_READ, PRIMARY_SIDE), values, strict=True))
        price, symbol, is_ok = of["price"], of["symbol"], of["status"] == "ok"
        asked = Asked(
            of["prediction_id"], (model_id, timeframe, symbol), as_of_ms, due_ms, bar_ms, making.horizon, price,
            making.target if is_ok else None, break_even(of["metadata.costs"], symbol, price or reference),
            barrier(making, volatility),
        )  # fmt: skip
        key = SeriesKey(
            model_id, version, symbol, timeframe, target or "", making.target is not None, making.horizon,
            making.barrier_width,
        )  # fmt: skip
        row = {
            "prediction_id": of["prediction_id"],
            "as_of_ms": as_of_ms,
            "due_ms": due_ms,
            "answered_ms": answered_ms,
            "sample": of["sample"],
            "abstain_reasons": None if is_ok else json.dumps(of["abstain_reasons"]),
            "price": price,
            "prediction": of["prediction"],
            "label": of["label"],
            "direction": of["direction"],
            "confidence": of["confidence"],
            "level": of["interval.level"],
            "lower": of["interval.lower"],
            "upper": of["interval.upper"],
            "volatility": of["metadata.volatility"],
            "break_even": asked.break_even,
            "barrier": asked.barrier,
            "novelty": of["novelty.score"],
            "inputs": _bytes_of(inputs),
            "state": NONE if asked.target is None else OPEN,
            "settle_ms": due_at_ms(asked, answered_ms),
            "actions": _actions(of["metadata.actions_by_position"], of[PRIMARY_SIDE]),
        }
        yield Entry(asked, (key, row), answered_ms, of["sample"] == HISTORICAL)


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


def _actions(of_policy: Sequence[int] | None, side_of_primary: float | None) -> str | None:
    """The positions that follow for one who holds -1, 0 and 1: of a policy its own, of a follower its primary's side at
    every bar, whatever is held; null of other models' answers."""
    if of_policy is None and side_of_primary is not None:
        of_policy = (int(side_of_primary),) * 3
    return None if of_policy is None else json.dumps(of_policy)


def _primary_sides(run: RecordRun) -> Iterable[float | None]:
    """Of a follower's answers; None of others'."""
    outputs = run.columns["outputs"]  # of records that were made one by one it is their dictionaries
    if isinstance(outputs, Nested) and PRIMARY_SIDE not in outputs.fields:
        return [None] * len(run)
    return run.column(f"outputs.{PRIMARY_SIDE}").values()


def due_at_ms(asked: Asked, answered_ms: int) -> int | None:
    """When the feature store is asked what came true; None where prices cannot tell."""
    if asked.target is None or not has_outcome_in_prices(asked.target):
        return None
    return max(asked.due_ms + asked.bar_ms, answered_ms + RESOLVE_GRACE_MS)


def break_even(costs: Costs | None, symbol: str, price: float | None) -> float | None:
    """The round-trip cost that the answer was decided with, as a fraction of the price."""
    return None if costs is None or not price else round_trip_cost(costs, symbol, price)


def barrier(making: Making, bar_volatility: float | None) -> float | None:
    """How far the barriers of a triple barrier lie from its price, in logarithms."""
    target = making.target
    if target is None or target.measure != "triple_barrier" or bar_volatility is None:
        return None
    return float(making.barrier_width * (bar_volatility * np.sqrt(target.horizon)))


def _bytes_of(inputs: Floats32 | None) -> bytes | None:
    return None if inputs is None else bytes(np.asarray(inputs, dtype="<f4").tobytes())
