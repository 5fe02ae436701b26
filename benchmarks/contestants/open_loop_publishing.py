"""Publishing at a stated rate whatever becomes of it: what is due is published, in an event loop, below HTTP.

Tells of each record when `publish()` was called, in nanoseconds of the machine's monotonic clock, and how long after
it was due.
"""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.contestants.turns import play
from benchmarks.live_records import live_records
from common_lib.logging import configure_logging
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.serving.publisher import PredictionPublisher

LOOP = uvloop.new_event_loop()  # one for the process: what a server does

TICK_S = 0.001
"""libuv's timers know whole milliseconds: a shorter sleep is none, and would take a core from whoever is measured."""


def turn(url: str, capacity: int, rate_per_s: float, duration_s: float, prefix: str, log_dir: str) -> dict[str, Any]:
    """Publishes for so long, then lets the outbox empty."""
    configure_logging(level="INFO", log_dir=Path(log_dir), style="json", to_stderr=False)
    queue = ShardedQueue(url, capacity=capacity)
    queue.ping()
    gc.collect()
    gc.freeze()
    try:
        return LOOP.run_until_complete(_publish(queue, rate_per_s, int(rate_per_s * duration_s), prefix))
    finally:
        queue.close()


async def _publish(queue: ShardedQueue, rate_per_s: float, num: int, prefix: str) -> dict[str, Any]:
    writer = queue.writer()
    publisher = PredictionPublisher(writer.enqueue)
    await publisher.start()
    published_ns: dict[str, int] = {}
    late_ns: list[int] = []
    most_waiting = 0
    processor_s, begun_ns = time.process_time(), time.monotonic_ns() + 10_000_000
    for number, record in enumerate(live_records(num, prefix=prefix)):
        due_ns = begun_ns + int(number * 1e9 / rate_per_s)
        while time.monotonic_ns() < due_ns:
            await asyncio.sleep(TICK_S)
        now_ns = time.monotonic_ns()
        publisher.publish(record, record.metadata.correlation_id)
        published_ns[record.prediction_id] = now_ns
        late_ns.append(now_ns - due_ns)
        most_waiting = max(most_waiting, publisher.outbox)
        if now_ns - due_ns > 1_000_000:
            await asyncio.sleep(0)  # behind its schedule it still lets the loop turn, as requests would
    processor_s = time.process_time() - processor_s
    dropped = publisher.outbox_dropped
    await publisher.stop(10.0)
    await writer.close()
    return {
        "published_ns": published_ns,
        "late_ns": late_ns,
        "most_waiting": most_waiting,
        "dropped": dropped,
        "processor_s": processor_s,
    }


if __name__ == "__main__":
    play(turn)
