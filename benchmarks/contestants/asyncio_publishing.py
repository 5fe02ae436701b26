"""Publishing: one awaited `redis.asyncio` XADD of each record, at its best settings.

hiredis, uvloop, one connection that is not taken from a pool, RESP2, approximate trimming, and our own `flatten`,
which is faster than what the project would otherwise do.
"""

import gc
import time
from typing import Any

import hiredis
import redis.asyncio
import uvloop

from benchmarks.contestants.turns import play
from benchmarks.live_records import live_records
from ml_workbench_service.contracts.entries import flatten
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM

LOOP = uvloop.new_event_loop()  # one for the process: what a server does


def turn(url: str, capacity: int, num: int, prefix: str) -> dict[str, Any]:
    """Publishes the records; processor and wall seconds."""
    records = list(live_records(num, prefix=prefix))
    gc.collect()
    gc.freeze()
    try:
        return {**LOOP.run_until_complete(_publish(records, url, capacity)), "hiredis": hiredis.__version__}
    finally:
        gc.unfreeze()


async def _publish(records: list[PredictionRecord], url: str, capacity: int) -> dict[str, Any]:
    client = redis.asyncio.Redis.from_url(url, protocol=2, single_connection_client=True)
    async with client:
        await client.execute_command("PING")
        wall, processor = time.perf_counter(), time.process_time()
        for record in records:
            fields = flatten(record)
            entry: dict[Any, Any] = dict(zip(fields[::2], fields[1::2], strict=True))
            await client.xadd(PREDICTIONS_STREAM, entry, maxlen=capacity, approximate=True)
        return {"processor_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}


if __name__ == "__main__":
    play(turn)
