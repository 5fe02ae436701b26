"""Publishing: the original queue, rebuilt: a `queue.Queue` behind `multiprocessing.managers.BaseManager`.

    python manager_publishing.py                      the client
    python manager_publishing.py serve PORT CAPACITY  its `queue_server.py`

What it does for each prediction: `full()`, where it is full `get()` the oldest, `put`, a log line.
The server is a process of its own, started here and never forked.
"""

import gc
import logging
import os
import queue
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from benchmarks.contestants.turns import play
from benchmarks.live_records import live_records
from ml_workbench_service.contracts.entries import flatten

KEY = b"benchmark"
START_TIMEOUT_S = 30.0


class QueueServer(BaseManager):
    """Knows one queue."""


@cache
def queue_behind_a_server(capacity: int) -> Any:
    """The queue's proxy; its server's process ends with this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.Popen([sys.executable, __file__, "serve", str(port), str(capacity)], stdin=subprocess.PIPE)
    QueueServer.register("prediction_queue")
    server: Any = QueueServer(("127.0.0.1", port), KEY)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            server.connect()
            return server.prediction_queue()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def turn(capacity: int, num: int, prefix: str, log_dir: str) -> dict[str, Any]:
    """Publishes the records; processor and wall seconds, and what arrived."""
    prediction_queue = queue_behind_a_server(capacity)
    log = logging.getLogger("queue_processing")
    if not log.handlers:
        handler = logging.FileHandler(Path(log_dir) / "seed_queue_processing.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    records = list(live_records(num, prefix=prefix))
    gc.collect()
    gc.freeze()
    wall, processor = time.perf_counter(), time.process_time()
    for record in records:
        fields = flatten(record)
        if prediction_queue.full():
            prediction_queue.get()
        prediction_queue.put(dict(zip(fields[::2], fields[1::2], strict=True)))
        log.info("Enqueued prediction: %s", record.prediction_id)
    spent = {"processor_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}
    gc.unfreeze()
    arrived = [prediction_queue.get()["prediction_id"] for _ in range(prediction_queue.qsize())]
    return {**spent, "arrived": arrived}


def serve(port: int, capacity: int) -> None:
    """The original specification's queue server; ends with its standard input."""
    prediction_queue: queue.Queue[Any] = queue.Queue(maxsize=capacity)
    QueueServer.register("prediction_queue", callable=lambda: prediction_queue)
    server: Any = QueueServer(("127.0.0.1", port), KEY).get_server()
    ThreadPoolExecutor(1).submit(server.serve_forever)
    sys.stdin.read()
    os._exit(0)  # the server's own end would be the interpreter's


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]))
    play(turn)
