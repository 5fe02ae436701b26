"""Prediction ledger, reading: every method opens the file for itself, so any thread may ask."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common_lib.exceptions import PredictionNotFoundError
from common_lib.sqlite_store import Schema, SqliteStore, selected
from ml_workbench_service.contracts.outcomes import RecordedPrediction
from ml_workbench_service.integrations.prediction_ledger import rows
from ml_workbench_service.integrations.prediction_ledger.rows import Waiting
from ml_workbench_service.market.outcomes.live_evidence import UNKNOWN_ACTION, LiveAnswers
from ml_workbench_service.market.outcomes.live_metrics import LiveRows

LEDGER_FILE = "predictions.db"
"""In STATE_DIR."""
BUSY_TIMEOUT_S = 5.0
PIECE_ROWS = 2_000
"""Rows that are read before they become columns."""
_NUMBERS = ("prediction", "realised", "confidence", "level", "lower", "upper", "volatility", "break_even")
_FIGURES = ("number", "as_of_ms", "state", "abstain_reasons", "direction", "inputs", *_NUMBERS)
_LIVE = f"SELECT {selected(_FIGURES, p=rows.PREDICTIONS)} FROM predictions AS p"
_OF_AN_ANSWER = ("as_of_ms", "answered_ms", "abstain_reasons", "prediction", "break_even", "barrier", "actions")
_ANSWERS = (
    f"SELECT {selected(_OF_AN_ANSWER, p=rows.PREDICTIONS)} FROM predictions AS p WHERE p.series IN (SELECT id FROM "
    "series WHERE model_id = ? AND version = ? AND symbol = ?) AND p.sample = 'live' ORDER BY p.number"
)
_SERIES = ("model_id", "version", "symbol")


@dataclass(frozen=True)
class Wanted:
    """Which rows a list shows; None: all.

    Attributes:
        from_ms, to_ms: of `as_of`, both inclusive.
        is_known: whether the outcome is known, or still open.
    """

    model_id: str | None = None
    version: str | None = None
    symbol: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    is_known: bool | None = None


@dataclass(frozen=True)
class RecordedVersion:
    """A version that has rows: what it foretells, over how many bars, and how many rows no figure reads."""

    version: str
    target: str | None
    foretells: bool
    horizon: int
    timeframe: str
    num_not_live: int


class LedgerReader:
    """Reads a ledger; all methods raise UnavailableError where the file cannot be read.

    Args:
        path: of the database; one that is not there has no rows.
        schema, timeout_s: of the store.
    """

    def __init__(self, path: Path, *, schema: Schema = rows.SCHEMA, timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        # Synced at checkpoints alone: a power cut may take the last seconds, a killed process nothing committed.
        self._store = SqliteStore(path, schema, timeout_s=timeout_s, synchronous="NORMAL")

    def get(self, prediction_id: str) -> RecordedPrediction:
        """One row; raises PredictionNotFoundError where there is none of this id."""
        with self._reading() as connection:
            found = None if connection is None else one(connection, prediction_id)
        if found is None:
            raise unknown()
        return found

    def known(self, prediction_ids: Sequence[str]) -> set[str]:
        """Those of them that have a row."""
        marks = ", ".join("?" * len(prediction_ids))
        query = f"SELECT prediction_id FROM predictions WHERE prediction_id IN ({marks})"
        with self._reading() as connection:
            found = [] if connection is None else connection.execute(query, tuple(prediction_ids)).fetchall()
        return {row[0] for row in found}

    def page(
        self, wanted: Wanted, *, limit: int, before: int | None = None
    ) -> tuple[list[RecordedPrediction], int | None]:
        """Rows newest first, and the number before which the next page begins, where more follow."""
        clauses = {
            "p.as_of_ms >= ?": wanted.from_ms,
            "p.as_of_ms <= ?": wanted.to_ms,
            "p.state = ?": None if wanted.is_known is None else rows.KNOWN if wanted.is_known else rows.OPEN,
            "p.number < ?": before,
        }
        of_series = {name: getattr(wanted, name) for name in _SERIES}
        with self._reading() as connection:
            found = [] if connection is None else _newest(connection, rows.WIRE, of_series, clauses, limit=limit + 1)
        shown = [rows.on_the_wire(row) for row in found[:limit]]
        return shown, int(found[limit - 1][0]) if len(found) > limit else None

    def overdue(self, now_ms: int, *, limit: int) -> list[Waiting]:
        """Rows whose outcome no record's price has told in time, longest overdue first."""
        query = f"{rows.WAITING} AND p.settle_ms <= ? ORDER BY p.settle_ms LIMIT ?"
        with self._reading() as connection:
            found = [] if connection is None else connection.execute(query, (now_ms, limit)).fetchall()
        return [Waiting(*row) for row in found]

    def versions(self, model_id: str) -> list[RecordedVersion]:
        """The versions of a model that have rows, in no order."""
        query = (
            "SELECT version, max(target), max(foretells), max(horizon), max(timeframe), sum((SELECT count(*) FROM "
            "predictions WHERE series = series.id AND sample != 'live')) FROM series WHERE model_id = ? AND EXISTS "
            "(SELECT 1 FROM predictions WHERE series = series.id) GROUP BY version"
        )
        with self._reading() as connection:
            found = [] if connection is None else connection.execute(query, (model_id,)).fetchall()
        return [RecordedVersion(row[0], row[1] or None, bool(row[2]), *row[3:]) for row in found]

    def live_rows(
        self, model_id: str, version: str, *, from_ms: int | None = None, to_ms: int | None = None, limit: int
    ) -> LiveRows:
        """The newest rows about moments that the training did not know, in the order of those moments.

        Without a range only the version's newest rows are looked at, `limit` of them.
        """
        of_series = {"model_id": model_id, "version": version}
        clauses: dict[str, Any] = {"p.sample = ?": "live", "p.as_of_ms >= ?": from_ms, "p.as_of_ms <= ?": to_ms}
        with self._reading() as connection:
            if connection is None:
                return _live_rows(_together([_figures([])]), limit=limit)
            if from_ms is None and to_ms is None:
                clauses["p.number >= ?"] = _first_of_newest(connection, model_id, version, limit=limit)
            pieces = _newest_in_pieces(connection, _LIVE, of_series, clauses, limit=limit)
            columns = _together([_figures([]), *map(_figures, pieces)])
        return _live_rows(columns, limit=limit)

    def live_answers(self, model_id: str, version: str, symbol: str) -> LiveAnswers:
        """All kept answers of a version about one symbol's moments that its training did not know, oldest first."""
        pieces = [_answers([])]
        with self._reading() as connection:
            if connection is not None:
                found = connection.execute(_ANSWERS, (model_id, version, symbol))
                pieces += map(_answers, _in_pieces(found))
        return LiveAnswers(**_together(pieces))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection for questions; None where nothing was ever written."""
        with self._store.translated():
            if not self.path.exists():
                yield None
                return
            with closing(self._store.connect()) as connection:
                yield connection


def _following(reasons: str | None, actions: str | None) -> tuple[int, ...]:
    """The position after -1, 0 and 1; an abstention makes flat, but where the market was closed."""
    if reasons is not None:
        return (-1, 0, 1) if json.loads(reasons) == ["market_closed"] else (0, 0, 0)
    return (UNKNOWN_ACTION,) * 3 if actions is None else tuple(json.loads(actions))


def _first_of_newest(connection: sqlite3.Connection, model_id: str, version: str, *, limit: int) -> int:
    """The number of the oldest of a version's newest rows, from the index alone."""
    series = connection.execute("SELECT id FROM series WHERE model_id = ? AND version = ?", (model_id, version))
    numbers: list[int] = []
    for (number,) in series.fetchall():
        query = "SELECT number FROM predictions WHERE series = ? ORDER BY number DESC LIMIT ?"
        numbers += [row[0] for row in connection.execute(query, (number, limit))]
    numbers.sort(reverse=True)
    return numbers[:limit][-1] if numbers else 0


def _newest(
    connection: sqlite3.Connection,
    query: str,
    of_series: Mapping[str, str | None],
    clauses: Mapping[str, Any],
    *,
    limit: int,
) -> list[tuple[Any, ...]]:
    """The newest rows under these conditions, newest first; whoever has None is no condition."""
    pieces = _newest_in_pieces(connection, query, of_series, clauses, limit=limit)
    found = [row for piece in pieces for row in piece]
    found.sort(key=lambda row: -int(row[0]))
    return found[:limit]


def _newest_in_pieces(
    connection: sqlite3.Connection,
    query: str,
    of_series: Mapping[str, str | None],
    clauses: Mapping[str, Any],
    *,
    limit: int,
) -> Iterator[list[tuple[Any, ...]]]:
    """Each series' newest rows, in pieces: the newest of all are among them.

    Each series is asked for its own, which its index has in order: one question about several would have all of their
    rows sorted.
    """
    names = {name: value for name, value in of_series.items() if value is not None}
    used = {clause: value for clause, value in clauses.items() if value is not None}
    ordered = "ORDER BY p.number DESC LIMIT ?"
    if not names:
        where = f"WHERE {' AND '.join(used)}" if used else ""
        yield from _in_pieces(connection.execute(f"{query} {where} {ordered}", (*used.values(), limit)))
        return
    series = connection.execute(
        f"SELECT id FROM series WHERE {' AND '.join(f'{name} = ?' for name in names)}", tuple(names.values())
    ).fetchall()
    where = " AND ".join(["p.series = ?", *used])
    for (number,) in series:
        yield from _in_pieces(connection.execute(f"{query} WHERE {where} {ordered}", (number, *used.values(), limit)))


def _in_pieces(found: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    """A hundred thousand rows as Python's objects take a hundred megabytes, as columns of numbers six."""
    while piece := found.fetchmany(PIECE_ROWS):
        yield piece


def _together(pieces: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in pieces]) for name in pieces[0]}


def one(connection: sqlite3.Connection, prediction_id: str) -> RecordedPrediction | None:
    """A row by its id."""
    row = connection.execute(f"{rows.WIRE} WHERE p.prediction_id = ?", (prediction_id,)).fetchone()
    return None if row is None else rows.on_the_wire(row)


def unknown() -> PredictionNotFoundError:
    """The error about an id that the ledger does not have."""
    return PredictionNotFoundError(
        "the ledger has no prediction of this id: it was not sampled (monitoring_level), not of a live version, or is "
        "older than what is kept; GET /api/v1/predictions lists what there is"
    )


def _figures(piece: list[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    """Rows of `_LIVE` as columns; `inputs` stay the bytes that they are, or None."""
    by_name = dict(zip(_FIGURES, zip(*piece, strict=True) if piece else ((),) * len(_FIGURES), strict=True))
    inputs_N = np.empty(len(piece), dtype=object)
    inputs_N[:] = by_name["inputs"]
    return {
        **{name: np.array(by_name[name], dtype=np.int64) for name in ("number", "as_of_ms", "state")},
        **{name: np.array(by_name[name], dtype=np.float64) for name in _NUMBERS},  # None becomes NaN
        "abstains": np.array([reasons is not None for reasons in by_name["abstain_reasons"]], dtype=np.bool_),
        "side": np.array([{"buy": 1, "sell": -1}.get(each, 0) for each in by_name["direction"]], dtype=np.int64),
        "inputs": inputs_N,
    }


def _live_rows(columns: Mapping[str, np.ndarray], *, limit: int) -> LiveRows:
    """The newest of these rows, in the order of their moments."""
    newest = np.argsort(-columns["number"], kind="stable")[:limit]
    order = newest[np.argsort(columns["as_of_ms"][newest], kind="stable")]
    by_name = {name: column[order] for name, column in columns.items()}
    as_of_ms_N, state_N, inputs_N = by_name["as_of_ms"], by_name["state"], by_name["inputs"]
    width = max((len(row) for row in inputs_N if row is not None), default=0)
    has_inputs_N = np.array([row is not None and len(row) == width for row in inputs_N], dtype=np.bool_)
    inputs = np.frombuffer(b"".join(inputs_N[has_inputs_N]), dtype="<f4")
    return LiveRows(
        as_of_ms_N=as_of_ms_N,
        is_known_N=state_N == rows.KNOWN,
        is_open_N=state_N == rows.OPEN,
        is_unavailable_N=state_N == rows.UNAVAILABLE,
        abstains_N=by_name["abstains"],
        side_N=by_name["side"],
        **{f"{name}_N": by_name[name] for name in _NUMBERS},
        inputs_MF=inputs.reshape(int(has_inputs_N.sum()), width // 4).astype(np.float32),
        inputs_ms_M=as_of_ms_N[has_inputs_N],
    )


def _answers(piece: list[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    """Rows of `_ANSWERS` as the columns of `LiveAnswers`."""
    columns = zip(*piece, strict=True) if piece else ((),) * len(_OF_AN_ANSWER)
    as_of, answered, reasons, prediction, break_even, barrier, actions = columns
    return {
        "as_of_ms_N": np.array(as_of, dtype=np.int64),
        "answered_ms_N": np.array(answered, dtype=np.int64),
        "abstains_N": np.array([each is not None for each in reasons], dtype=np.bool_),
        "prediction_N": np.array(prediction, dtype=np.float64),  # None becomes NaN
        "break_even_N": np.array(break_even, dtype=np.float64),
        "barrier_N": np.array(barrier, dtype=np.float64),
        "actions_N3": np.array(list(map(_following, reasons, actions)), dtype=np.int64).reshape(-1, 3),
    }
