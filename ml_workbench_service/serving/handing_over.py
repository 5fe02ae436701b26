"""Handing over: what a predict worker's answers leave behind goes to the control process instead of to files.

`HandingOver` is the ledger, `MirroredIntervals` the live intervals of a predict worker. Both put what they are told
into one parcel, in the order in which they are told, and a run's parcel is sent before the answers of that run: who was
answered is in the ledger, whatever becomes of the worker.

An interval needs to be known before its answer goes out. So a worker learns from its own questions as a single process
does, and takes over what the control process says of all workers' questions whenever that changes. Both come to the
same for the same questions; what another worker was asked a moment ago is known here a moment later.
"""

import asyncio
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from pydantic_core import to_json

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms
from ml_workbench_service.contracts.handover import HandedDrops, HandedInterval, HandedMaking
from ml_workbench_service.contracts.market import Bools, Floats32
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.prediction import Interval, PredictionRecord
from ml_workbench_service.contracts.runs.columns import moments_ms
from ml_workbench_service.contracts.runs.records import RecordRun
from ml_workbench_service.market.outcomes.pending import Asked, PendingOutcomes, SeriesKey
from ml_workbench_service.serving.interval_outcomes import Reason, VersionIntervals
from ml_workbench_service.serving.live_intervals import LiveContext, LiveIntervals, log, season_factor, state_of

MOST_MAKINGS = 256
PRICES_KNOWN_S = 60.0
"""So long a price that was handed over is taken as known: a control process that began anew hears it again."""

_bytes_of = PredictionRecord.__pydantic_serializer__.to_json


class HandingOver:
    """The `Ledger` of a predict worker; may be called from the event loop and from the inference thread.

    Args:
        send: takes JSON objects in order, in the event loop.
    """

    def __init__(self, send: Callable[[Sequence[bytes]], None]) -> None:
        self._send = send
        self._items: list[bytes] = []
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._makings: dict[Making, bytes] = {}
        self._prices, self._prices_since_s = PendingOutcomes(), 0.0
        self._drops: dict[tuple[str, str, str], dict[Reason, int]] = {}
        self._is_due = False

    def start(self) -> None:
        """From now on what is left here is sent; call it in the event loop."""
        self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._flush()

    def record(self, answered: Answered, making: Making, *, is_sampled: bool) -> None:
        """See `contracts.ledger.Ledger`."""
        record = answered.record
        series, price = (record.model_id, record.timeframe, record.symbol), record.price
        is_news = record.sample != "historical" and self._is_news(
            series, to_ms(record.as_of), price, answered_ms=to_ms(record.timestamp)
        )
        if not (is_sampled or is_news):
            return
        beside = answered.last_row_F, answered.bar_volatility, answered.reference_price
        self._put([_answer(beside, self._made(making), _bytes_of(answered.record), is_sampled=is_sampled)])

    def record_run(self, run: RecordRun, making: Making, *, is_sampled_N: Bools) -> None:
        """See `contracts.ledger.Ledger`."""
        made, is_read_N = self._made(making), is_sampled_N | self._are_news(run)
        beside = zip(run.last_rows.all(), run.bar_volatility.values(), run.reference_price.values(), strict=True)
        each = zip(beside, run.bodies, is_sampled_N.tolist(), is_read_N.tolist(), strict=True)
        self._put(
            [_answer(about, made, body, is_sampled=is_sampled) for about, body, is_sampled, is_read in each if is_read]
        )

    def _are_news(self, run: RecordRun) -> Bools:
        model_id, timeframe = run.coded("model_id").value(0), run.coded("timeframe").value(0)
        symbols, prices, samples = (run.columns[name].values() for name in ("symbol", "price", "sample"))
        answered_ms = moments_ms(run.columns["timestamp"]).tolist()
        each = zip(symbols, run.as_of_ms, prices, samples, answered_ms, strict=True)
        return np.array(
            [
                sample != "historical"
                and self._is_news((model_id, timeframe, symbol), as_of_ms, price, answered_ms=moment_ms)
                for symbol, as_of_ms, price, sample, moment_ms in each
            ],
            dtype=bool,
        )

    def _is_news(self, series: SeriesKey, as_of_ms: int, price: float | None, *, answered_ms: int) -> bool:
        """Whether the price of an answer about the present says what no other has said that was handed over: by the
        ledger's own rules, which judges again.
        """
        if price is None:
            return False
        bar_ms, now_s = TIMEFRAMES_MS[series[1]], time.monotonic()
        with self._lock:
            if now_s - self._prices_since_s > PRICES_KNOWN_S:
                self._prices, self._prices_since_s = PendingOutcomes(), now_s
            is_new = self._prices.is_new(series, as_of_ms, bar_ms)
            if is_new:
                self._prices.take(Asked("", series, as_of_ms, as_of_ms, bar_ms, 0, price), now_ms=answered_ms)
        return is_new

    def interval(self, item: HandedInterval) -> None:
        """A price and what was stated with it."""
        self._put([item.__pydantic_serializer__.to_json(item)])

    def drop(self, key: tuple[str, str, str], reason: Reason, num: int = 1) -> None:
        """Questions that taught nothing: they are counted, and go with the next parcel.

        Args:
            key: model, version and digest.
        """
        with self._lock:
            counts = self._drops.setdefault(key, {})
            counts[reason] = counts.get(reason, 0) + num
        self._wake()

    def _made(self, making: Making) -> bytes:
        found = self._makings.get(making)
        if found is None:
            if len(self._makings) >= MOST_MAKINGS:
                self._makings.clear()
            handed = HandedMaking(target=making.target, horizon=making.horizon, barrier_width=making.barrier_width)
            found = self._makings[making] = handed.__pydantic_serializer__.to_json(handed)
        return found

    def _put(self, items: Sequence[bytes]) -> None:
        with self._lock:
            self._items += items
        self._wake()

    def _wake(self) -> None:
        """Has the parcel sent by the next turn of the loop, ahead of the answers: they are told after it."""
        loop = self._loop
        if loop is None:
            return
        with self._lock:
            if self._is_due:
                return
            self._is_due = True
        if threading.get_ident() == self._loop_thread:
            loop.call_soon(self._flush)
        else:
            loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._is_due = False
            items, self._items = self._items, []
            drops, self._drops = self._drops, {}
        for (model_id, version, digest), counts in drops.items():
            dropped = HandedDrops(
                model_id=model_id, version=version, digest=digest, late=counts.get("late", 0),
                repeated=counts.get("repeated", 0),
            )  # fmt: skip
            items.append(dropped.__pydantic_serializer__.to_json(dropped))
        if items:
            self._send(items)


def _answer(
    beside: tuple[Floats32 | None, float | None, float | None], made: bytes, record: bytes, *, is_sampled: bool
) -> bytes:
    """A `HandedAnswer` as JSON."""
    inputs, bar_volatility, reference_price = beside
    head = {
        "kind": "answer",
        "is_sampled": is_sampled,
        "bar_volatility": bar_volatility,
        "reference_price": reference_price,
        "inputs": None if inputs is None else b64encode(np.asarray(inputs, dtype="<f4").tobytes()).decode(),
    }
    return to_json(head)[:-1] + b',"making":' + made + b',"record":' + record + b"}"


class MirroredIntervals(LiveIntervals):
    """The live intervals as a predict worker knows them; it writes no file.

    Args:
        handing_over: where what they learn is left.
        folder: of the control process, read where it has said nothing; None: there is none to read.
    """

    def __init__(self, handing_over: HandingOver, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._handing_over = handing_over
        self.adopted: dict[tuple[str, str], str] = {}
        """By version, the last item of the stream that its state knows of."""

    def adopt(self, payload: bytes) -> None:
        """What the control process says of a version, in place of what is known here."""
        try:
            state = state_of(payload)
        except ValidationError as error:  # of another version of this service
            log.warning("live intervals that the control process sent cannot be read: %s", error)
            return
        with self.lock:
            self._keep(state)
            self.adopted[state.model_id, state.version] = state.applied

    def stating(self, context: LiveContext, interval: Interval | None, *, due_ms: int) -> None:
        """Hands it over."""
        model, symbol, as_of_ms, price = context.question
        target = self._target(model.card.target)
        assert target is not None
        assert price is not None
        scale, lean, is_volatility = context.stated_by
        self._handing_over.interval(
            HandedInterval(
                model_id=model.card.id,
                version=model.card.version,
                digest=model.card.digest,
                symbol=symbol,
                target=target,
                as_of_ms=as_of_ms,
                price=price,
                factor=season_factor(model, symbol, as_of_ms),
                bar_ms=model.timeframe_ms,
                horizon=model.reach,
                delay=model.delay,
                due_ms=due_ms,
                lower=None if interval is None else interval.lower,
                upper=None if interval is None else interval.upper,
                level=None if interval is None else interval.level,
                scale=scale,
                lean=lean,
                is_volatility=is_volatility,
            )
        )

    def save_soon(self, state: VersionIntervals) -> None:
        """Nothing: the control process does."""

    def close(self) -> None:
        """Nothing is written."""

    def _submit(self, state: VersionIntervals) -> None:
        """Nothing: what leaves memory here is kept there."""

    def _dropped(self, state: VersionIntervals, reason: Reason, num: int = 1) -> None:
        super()._dropped(state, reason, num)
        self._handing_over.drop((state.model_id, state.version, state.digest), reason, num)
