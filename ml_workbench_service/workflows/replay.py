"""Replay: the past, bar by bar, through exactly the predict path, into the queue. The live pipeline without a feed.

What adaptive intervals would have covered stands in the result, apart from live ones, which a replay does not move.
All symbols advance together in the order in which bars became known. A replay never drops: it waits for room, and for
a queue that is away, and fails with `QUEUE_STALLED` after a minute without progress.
What it answered, and what its signal earned, is kept row by row in the job's folder (`evaluation/replayed_rows.py`).
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common_lib.exceptions import DataValidationError, QueueStalledError, UnavailableError
from ml_workbench_service.contracts.contract import normal_symbol, to_ms
from ml_workbench_service.contracts.jobs import JobSpec, ReplayRequest, ReplayResult, Report
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.evaluation.replayed_rows import MOST_ROWS, ReplayedRows
from ml_workbench_service.jobs.job import SERIES_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.historical_intervals import HistoricalIntervals
from ml_workbench_service.serving.history import fetch_range, merged_questions
from ml_workbench_service.serving.model import load_model
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.predict import answer

BATCH = 64
STALLED_S = 60.0
PAUSE_S = 0.005
AWAY_PAUSE_S = 0.2
REPORT_EVERY_S = 0.5


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """Streams the request's bars; the job's result.

    Raises:
        QueueStalledError: nobody consumed for a minute.
        DataValidationError: no bars in the range.
        JobCancelled: somebody asked for it.
    """
    request = ReplayRequest.model_validate(spec.request)
    version = spec.plan["version"]
    card = workbench.registry.card(request.model_id, version)
    model = load_model(workbench.registry.folder(request.model_id, version), card)
    live = workbench.history.live(request.model_id)
    chosen = Chosen(model, live if live is not None and live.version == version else None)
    circumstances = replace(chosen.circumstances(spec.correlation_id), source=f"replay:{spec.id}")
    report.say("fetching features")
    symbols, start_ms = list(map(normal_symbol, request.symbols)), to_ms(request.start_date)
    end_ms = to_ms(request.end_date)
    tables = fetch_range(model, workbench.feature_store, symbols=symbols, start_ms=start_ms, end_ms=end_ms)
    questions = list(merged_questions(model, tables, from_ms=start_ms, job_id=spec.id))
    if not questions:
        raise DataValidationError.at(
            "body.start_date", "no bar opens within this range; is the market closed then? Send a longer one"
        )
    report.say("streaming")
    stream = _Stream(workbench, report, total=len(questions), speed=request.speed)
    num_skipped = 0
    intervals, rows = HistoricalIntervals(model), ReplayedRows(model, tables)
    held: dict[str, float] = {}  # what a policy has made of each symbol so far; flat after a gap
    for number, (_, place, question) in enumerate(questions):
        symbol = tables[place].symbol
        stream.keep_speed(number)
        if question is None:
            held.pop(symbol, None)
            num_skipped += 1
            continue
        record = answer(model, replace(question, position=held.get(symbol, 0.0)), circumstances)
        if model.decoder.holds_positions:
            held[symbol] = record.prediction or 0.0  # an abstention is flat
        intervals.follow(question, record)
        rows.add(place, record)
        stream.send(number, record)
    stream.flush(len(questions))
    rows.write(checkpoint / SERIES_FILE)
    if rows.num_left_out:
        report.warn(f"the last {rows.num_left_out} answers are left out of the series, which holds {MOST_ROWS:,}")
    return ReplayResult(
        model_id=request.model_id,
        version=version,
        num_bars=len(questions),
        num_published=stream.num_published,
        num_abstained=stream.num_abstained,
        num_skipped=num_skipped,
        duration_s=round(time.monotonic() - stream.begun, 3),
        adaptive_intervals=intervals.report(),
    ).model_dump()


class _Stream:
    """Batches on their way into the queue, at a pace, with progress."""

    def __init__(self, workbench: Workbench, report: Report, *, total: int, speed: float | None) -> None:
        self._queue = workbench.required_queue()
        self._report = report
        self._total = total
        self._speed = speed
        self._waiting: list[PredictionRecord] = []
        self._reported = 0.0
        self._is_away = False
        self.begun = time.monotonic()
        self.num_published = 0
        self.num_abstained = 0

    def keep_speed(self, number: int) -> None:
        """With a speed, sleeps until this bar's turn; what is due has been sent by then."""
        if self._speed is None:
            return
        due = self.begun + number / self._speed
        if due > time.monotonic():
            self.flush(number)
        while (wait := due - time.monotonic()) > 0:
            self._report.check()
            time.sleep(min(wait, 0.2))

    def send(self, number: int, record: PredictionRecord) -> None:
        """Takes a record; every 64th goes out with those before it."""
        self._waiting.append(record)
        self.num_abstained += record.status == "abstain"
        if len(self._waiting) >= BATCH:
            self.flush(number)

    def _publish(self) -> list[PredictionRecord]:
        """Sends what waits; returns what found no room, all of it while the queue is away.

        Sending again doubles nothing: the queue knows its prediction ids.
        """
        now = time.time()
        outgoing = [Outgoing(record, record.metadata.correlation_id, now) for record in self._waiting]
        try:
            _, left = self._queue.enqueue(outgoing, full="wait")
        except UnavailableError as error:
            if not self._is_away:
                self._report.warn(f"the replay waits for the queue: {error.message}")
            self._is_away = True
            return self._waiting
        self._is_away = False
        waiting = {item.record.prediction_id for item in left}
        return [record for record in self._waiting if record.prediction_id in waiting]

    def flush(self, number: int) -> None:
        """Publishes what waits, as room permits."""
        patience = time.monotonic() + STALLED_S
        while self._waiting:
            self._report.check()
            left = self._publish()
            taken = len(self._waiting) - len(left)
            self._waiting = left
            self.num_published += taken
            if taken:
                patience = time.monotonic() + STALLED_S
                continue
            if time.monotonic() > patience:
                raise QueueStalledError(
                    "the prediction queue had no room for 60 s; GET /api/v1/queue shows which group does not consume"
                )
            time.sleep(AWAY_PAUSE_S if self._is_away else PAUSE_S)
        if time.monotonic() - self._reported > REPORT_EVERY_S or number == self._total:
            self._reported = time.monotonic()
            self._report(number, self._total, num_published=float(self.num_published))
