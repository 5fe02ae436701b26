"""Served answers for tests of the ledger, and ledgers that are closed in time."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.market.costs import default_costs
from tests.prediction_records import prediction_record

INPUTS = np.array([0.5, -1.25, 3.0, 0.0], dtype=np.float32)


def making(target: str | None = "price_change_1h", **changes: Any) -> Making:
    """What the ledger is told of a version with this target."""
    parsed = None if target is None else parse_target(target)
    return Making(**{"target": parsed, "horizon": 1 if parsed is None else parsed.horizon, **changes})


def answered(number: int = 0, *, inputs: Floats32 | None = INPUTS, **changes: Any) -> Answered:
    """The answer of hour `number` after a Monday; keyword arguments replace fields of its record."""
    symbol = changes.get("symbol", "EUR/USD")
    metadata = {"costs": default_costs(symbol).model_dump(), **changes.pop("metadata", {})}
    return Answered(prediction_record(number, metadata=metadata, **changes), inputs, 0.001, 1.1)


@contextmanager
def opened(path: Path, **arguments: Any) -> Iterator[PredictionLedger]:
    """A ledger that writes."""
    ledger = PredictionLedger(path, **arguments)
    ledger.start()
    try:
        yield ledger
    finally:
        ledger.close()


def keep(ledger: PredictionLedger, *entries: Answered, of: Making | None = None, is_sampled: bool = True) -> None:
    """Records these answers and waits until they are written."""
    for entry in entries:
        ledger.record(entry, of or making(), is_sampled=is_sampled)
    assert ledger.flush(10.0)


def awaited(is_true: Callable[[], bool], timeout_s: float = 200.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def states(path: Path) -> dict[str, int]:
    """Rows by state, as they are on disk."""
    with closing(sqlite3.connect(path)) as connection:
        found = dict(connection.execute("SELECT state, count(*) FROM predictions GROUP BY state"))
    return {name: found.get(number, 0) for number, name in enumerate(("open", "known", "unavailable", "none"))}


def num_waiting(ledger: PredictionLedger) -> int:
    """Answers in memory that are not on disk yet."""
    return len(ledger._queue) + len(ledger._rows)
