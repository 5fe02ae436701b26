"""Measures the stores: redis-server, the hand-over, the prediction ledger, a job's log. Real ones, in a private folder.

A cost for each call and one for each thing in it are told apart by calls of several sizes (least squares), of each size
the round that took least: code whose caches were emptied takes several times as long.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.live_records import PAIRS, live_records
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.handover import HandedDrops
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.integrations.prediction_queue.writer import by_shard
from ml_workbench_service.integrations.replicas.handover import HandoverOutbox, HandoverStream
from ml_workbench_service.jobs.event_log import EventLog
from ml_workbench_service.serving.handing_over import HandingOver
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.workflows.apply_handover import HandoverApplier
from studies.scaling.processor_time import fitted, least, least_s, spent

SIZES = (1, 8, 64)
NUM_RECORDS = 4_000
MANY_SHARDS = 64
NUM_ROUNDS = 3
NUM_ROWS = 20_000
GROUP = "measured"
TARGET = parse_target("price_change_1h")
MAKING = Making(TARGET, TARGET.horizon, 1.0)


def stores() -> dict[str, float]:
    """All constants of this file, by name."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis(Path(folder) / "redis")
        url = server.start()
        assert server.pid is not None
        try:
            found |= _publishing(url, server.pid)
            found |= _handing_over(url, server.pid, Path(folder))
            found |= _passing(url, Path(folder))
        finally:
            server.stop()
        found |= _ledger(Path(folder))
        found |= _events(Path(folder))
    return found


def _publishing(url: str, pid: int) -> dict[str, float]:
    """Writes of one call and of many, of one record and of many; then an agent's reads and acknowledgments."""
    queue = ShardedQueue(url, capacity=100_000)
    queue.create_group(GROUP)
    costs, num_calls, num_records, singles, num = [], [], [], [], 0
    for number, size in enumerate(SIZES * NUM_ROUNDS):
        records = list(live_records(NUM_RECORDS // 4 if size == 1 else NUM_RECORDS, prefix=f"round{number}"))
        batches = _batches(records, size)
        costs.append(_cost_each(pid, queue.enqueue, batches, singles if size == 1 else None))
        num_calls.append(1.0)
        num_records.append(float(size))
        num += len(records)
    for number in range(NUM_ROUNDS):
        batches = _batches(list(live_records(NUM_RECORDS, prefix=f"apart{number}")), len(PAIRS))
        costs.append(asyncio.run(_cost_apart(url, pid, batches)))
        num_calls.append(float(len(list(by_shard(batches[0], MANY_SHARDS)))))
        num_records.append(float(len(PAIRS)))
    costs, num_calls, num_records = least(costs, num_calls, num_records)
    loop_s, call_s, record_s = fitted(costs, [1.0] * len(costs), num_calls, num_records)
    stream, num_read = queue.shards[0], 0
    before = spent(pid)
    while deliveries := stream.consume(GROUP, "measured", count=64, block_ms=0):
        stream.ack(GROUP, [each.entry_id for each in deliveries])
        num_read += len(deliveries)
    consume_s = spent(pid).since(before).run_s / num_read
    assert num_read == num
    queue.close()
    spread = np.asarray(singles)
    return {
        "redis_loop_s": loop_s, "publish_call_s": call_s, "publish_record_s": record_s, "consume_record_s": consume_s,
        "redis_cv2": float(np.var(spread) / np.mean(spread) ** 2),
    }  # fmt: skip


def _batches(records: Sequence[PredictionRecord], size: int) -> list[list[Outgoing]]:
    return [
        [Outgoing(each, "", time.time()) for each in records[place : place + size]]
        for place in range(0, len(records), size)
    ]


async def _cost_apart(url: str, pid: int, batches: Sequence[list[Outgoing]]) -> float:
    """Mean processor time of the server for a write whose records go to many streams, a call each."""
    queue = ShardedQueue(url, capacity=100_000, num_shards=MANY_SHARDS)
    writer = queue.writer()
    before = spent(pid)
    for batch in batches:
        await writer.enqueue(batch)
    found = spent(pid).since(before).run_s / len(batches)
    await writer.close()
    queue.close()
    return found


def _cost_each(
    pid: int, call: Callable[[list[Outgoing]], object], batches: Sequence[list[Outgoing]], each: list[float] | None
) -> float:
    """Mean processor time of the server for a call; every single one's into `each` where it is asked for."""
    begun = before = spent(pid)
    for batch in batches:
        call(batch)
        if each is not None:
            now = spent(pid)
            each.append(now.since(before).run_s)
            before = now
    return spent(pid).since(begun).run_s / len(batches)


def items_of(num_rows: int, num_drops: int, *, prefix: str) -> list[bytes]:
    """What a predict worker hands over: sampled answers, and repeated questions counted by version."""
    kept: list[bytes] = []
    handing_over = HandingOver(kept.extend)
    for record in live_records(num_rows, prefix=prefix):
        handing_over.record(Answered(record, np.zeros(4, np.float32), 0.001, 1.1), MAKING, is_sampled=True)
    kept += handing_over._items  # no loop takes them
    for number in range(num_drops):
        kept.append(_json(HandedDrops(model_id=f"model_{number}", version="1.0.0", digest="0" * 64, repeated=1)))
    return kept


def _json(item: Contract) -> bytes:
    made: bytes = item.__pydantic_serializer__.to_json(item)
    return made


async def _put(url: str, sender: str, parcels: Sequence[list[bytes]], *, apart: int = 64) -> float:
    """One worker's parcels by its real outbox; seconds until the server had all."""
    outbox = HandoverOutbox(url, sender, most_items=10**6, most_entries=10**6)
    await outbox.start()
    await asyncio.sleep(0.2)
    begun = time.perf_counter()
    for number, parcel in enumerate(parcels):
        outbox.put(parcel)
        if number % apart == 0:
            await asyncio.sleep(0)
    while outbox.num_waiting:
        await asyncio.sleep(0.001)
    took_s = time.perf_counter() - begun
    await outbox.stop()
    return took_s


def _handing_over(url: str, pid: int, folder: Path) -> dict[str, float]:
    """Parcels of several kinds and sizes, each written, read, applied, saved and trimmed."""
    redis_s, control_s, items, rows, drops = [], [], [], [], []
    ledger = PredictionLedger(folder / "handed.db", max_rows=10**6)  # its thread is not started: rows wait
    for number, (num_rows, num_drops) in enumerate(((0, 1), (1, 0), (8, 0), (0, 8), (4, 4), (1, 1)) * NUM_ROUNDS):
        num = 400
        put = [items_of(num_rows, num_drops, prefix=f"handed{number}-{each}") for each in range(num)]
        before = spent(pid)
        asyncio.run(_put(url, f"sender{number}", put))
        stream = HandoverStream(url)
        applier = HandoverApplier(stream, ledger, LiveIntervals(None))
        begun = time.process_time()
        place = ""
        while entries := stream.read(place, count=64):
            for entry in entries:
                applier._apply(entry)
            place = entries[-1].entry_id
        stream.trim(place)
        control_s.append((time.process_time() - begun + _entered_s(ledger)) / num)
        redis_s.append(spent(pid).since(before).run_s / num)
        stream.close()
        items.append(float(num_rows + num_drops))
        rows.append(float(num_rows))
        drops.append(float(num_drops))
    redis_s, items_of_least = least(redis_s, items)
    parcel_s, item_s = fitted(redis_s, [1.0] * len(redis_s), items_of_least)
    control_s, rows, drops = least(control_s, rows, drops)
    apply_parcel_s, apply_row_s, apply_drop_s = fitted(control_s, [1.0] * len(control_s), rows, drops)
    return {
        "parcel_s": parcel_s, "item_s": item_s, "apply_parcel_s": apply_parcel_s, "apply_row_s": apply_row_s,
        "apply_drop_s": apply_drop_s,
    }  # fmt: skip


def _entered_s(ledger: PredictionLedger) -> float:
    """What the ledger's thread does before it writes: outcomes by the series of prices, and the row's values."""
    begun = time.process_time()
    ledger._take()
    took_s = time.process_time() - begun
    ledger._rows, ledger._outcomes = [], []
    return took_s


def _passing(url: str, folder: Path, *, seconds: float = 6.0) -> dict[str, float]:
    """One worker hands over a parcel a question, as fast as they pass, to a control process's applier with its ledger.

    With the bounds of the service: what does not pass waits with the worker.
    """
    ledger = PredictionLedger(folder / "passing.db")
    ledger.start()
    applier = HandoverApplier(HandoverStream(url), ledger, LiveIntervals(None))
    applier.recover()
    applier.start()
    parcel = items_of(0, 1, prefix="passing")

    async def worker() -> float:
        outbox = HandoverOutbox(url, "passing")
        await outbox.start()
        await asyncio.sleep(0.2)
        begun, num_put = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            while outbox.num_waiting < 8_192:
                outbox.put(parcel)
                num_put += 1
            await asyncio.sleep(0.005)
        passed = (num_put - outbox.num_waiting) / (time.perf_counter() - begun)
        await outbox.stop(drain_s=0.1)
        return passed

    try:
        passed = asyncio.run(worker())
    finally:
        applier.stop()
        ledger.close()
    return {"parcels_per_s": passed}


def _ledger(folder: Path) -> dict[str, float]:
    """Rows that wait, written in batches of a tenth of a second's."""
    path = folder / "measured.db"
    ledger = PredictionLedger(path, capacity=10**6)
    spent_s, clock_s = [], []
    batch = 1_000
    for number in range(NUM_ROWS // batch):
        for record in live_records(batch, prefix=f"row{number}"):
            ledger.record(Answered(record, np.zeros(4, np.float32), 0.001, 1.1), MAKING, is_sampled=True)
        ledger._take()
        processor, clock = time.process_time(), time.perf_counter()
        ledger._write()
        spent_s.append((time.process_time() - processor) / batch)
        clock_s.append((time.perf_counter() - clock) / batch)
    ledger._writer.disconnect()
    return {
        "write_row_s": min(spent_s), "write_row_clock_s": float(np.median(clock_s)),
        "row_bytes": path.stat().st_size / NUM_ROWS,
    }  # fmt: skip


def _events(folder: Path) -> dict[str, float]:
    """Steps of a training, and one that waits for the disk."""
    events = EventLog(folder / "events.jsonl")
    metrics = {"loss": 0.123456789, "val_loss": 0.23456789, "learning_rate": 0.001}

    def step() -> None:
        events.append("progress", {"step": 1, "total": 100, "metrics": metrics})

    event_s = least_s(step)
    begun, num = time.perf_counter(), 50
    for _ in range(num):
        events.append("progress", {"step": 1, "total": 100, "metrics": metrics}, durable=True)
    return {"event_s": event_s, "durable_event_clock_s": (time.perf_counter() - begun) / num}
