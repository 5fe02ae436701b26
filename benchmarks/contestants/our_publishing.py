"""Publishing: ours, from `publish()` in an event loop to the script's answer.

As the service does it: `PredictionPublisher` over `QueueWriter`, on uvloop. The producer hands over 64 records
between two turns of the loop, and sleeps while the outbox is half full.
"""

import asyncio
import gc
import logging
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.contestants.turns import play
from benchmarks.live_records import live_records
from common_lib.logging import QUEUE_LOGGER, configure_logging
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.serving.publisher import OUTBOX_CAPACITY, PredictionPublisher

BATCH = 64
PAUSE_S = 0.005

LOOP = uvloop.new_event_loop()  # one for the process: what a server does


def turn(url: str, capacity: int, num: int, prefix: str, log_dir: str | None) -> dict[str, Any]:
    """Publishes the records; processor and wall seconds."""
    configure_logging(level="INFO", log_dir=None if log_dir is None else Path(log_dir), style="json", to_stderr=False)
    logging.getLogger(QUEUE_LOGGER).disabled = log_dir is None
    records = list(live_records(num, prefix=prefix))
    queue = ShardedQueue(url, capacity=capacity)
    queue.ping()
    gc.collect()
    gc.freeze()  # the records made beforehand are not the publisher's garbage
    try:
        return LOOP.run_until_complete(_publish(records, queue))
    finally:
        gc.unfreeze()
        queue.close()


async def _publish(records: list[PredictionRecord], queue: ShardedQueue) -> dict[str, Any]:
    writer = queue.writer()
    publisher = PredictionPublisher(writer.enqueue)
    await publisher.start()
    wall, processor = time.perf_counter(), time.process_time()
    for start in range(0, len(records), BATCH):
        for record in records[start : start + BATCH]:
            publisher.publish(record, record.metadata.correlation_id)
        await asyncio.sleep(0)
        while publisher.outbox > OUTBOX_CAPACITY // 2:
            await asyncio.sleep(PAUSE_S)
    while publisher.outbox:
        await asyncio.sleep(PAUSE_S)
    spent = {"processor_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}
    dropped = publisher.outbox_dropped
    await publisher.stop()
    await writer.close()
    return {**spent, "dropped": dropped}


if __name__ == "__main__":
    play(turn)
