"""Warm worker: a job worker that has done its imports before there is a job, and waits for one.

    python -m ml_workbench_service.runtime.warm_worker      reads one job folder's path from its standard input

Most of a small training is the start of its process: libraries take seconds to load, the work one or two. A warm worker
does one training, as any worker does, and is gone. Until it has one it belongs to the service: its input ends with the
service's process, however that ends, and so does it; a reload never runs old code.

It holds the loaded libraries in memory while it waits (its line in the log says how much), so none is started where
`FREE_SHARE` of the machine's memory is not free, and `WARM_WORKER=false` has none at all.
"""

import faulthandler
import importlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from common_lib.logging import configure_logging
from common_lib.storage import make_folder
from common_lib.tracing import end_tracing
from ml_workbench_service.jobs.process_record import spawn
from ml_workbench_service.runtime.job_worker import run_worker
from ml_workbench_service.sending_traces import send_traces
from ml_workbench_service.settings import Settings

MODULE = "ml_workbench_service.runtime.warm_worker"
FREE_SHARE = 0.25
PRELOADED = (
    "ml_workbench_service.workflows.train",
    "ml_workbench_service.integrations.feature_store.bar_folder",
    "ml_workbench_service.integrations.feature_store.local",
    "ml_workbench_service.integrations.feature_store.sample_rates",
    "ml_workbench_service.learning.fitting.loop",
    "ml_workbench_service.learning.networks.windowed",
    "polars",
    "talib",
    "onnx",
    "onnxruntime.quantization",
)
"""What a training loads that is not loaded before there is one; families load their own networks on demand."""

log = logging.getLogger(__name__)


class WarmWorkers:
    """At most one waiting worker; whoever takes it has to start the next. For several threads.

    Args:
        environment: the worker's, that of a training.
        output: a file for what it says while it waits.
    """

    def __init__(self, environment: Mapping[str, str], output: Path) -> None:
        self._environment = dict(environment)
        self._output = output
        self._waiting: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def keep(self) -> None:
        """Starts a worker unless one waits, or memory is short."""
        with self._lock:
            if self._is_closed or (self._waiting is not None and self._waiting.poll() is None):
                return
            _discard(self._waiting)
            memory = psutil.virtual_memory()
            if memory.available < FREE_SHARE * memory.total:
                return
            make_folder(self._output.parent)
            with self._output.open("ab") as output:
                self._waiting = spawn((sys.executable, "-m", MODULE), output, self._environment, stdin=subprocess.PIPE)

    def take(self, folder: Path) -> int | None:
        """Hands the job to the waiting worker, which is the caller's to reap; its pid, or None where none took it."""
        with self._lock:
            child, self._waiting = self._waiting, None
        if child is None or child.stdin is None:
            return None
        try:
            child.stdin.write(os.fsencode(folder) + b"\n")
            child.stdin.close()
        except OSError:  # it ended
            _discard(child)
            return None
        child.returncode = 0  # reaped by pid: Popen complains where a service leaves its children alive
        return child.pid

    def close(self) -> None:
        """Ends the waiting worker; none is started any more."""
        with self._lock:
            self._is_closed = True
            child, self._waiting = self._waiting, None
        _discard(child)


def _discard(child: subprocess.Popen[bytes] | None) -> None:
    """Ends a worker without a job, if it has not ended by itself."""
    if child is None:
        return
    child.kill()
    child.wait()
    if child.stdin is not None:
        with suppress(OSError):  # what was not read by then
            child.stdin.close()


def main() -> int:
    """Loads everything, waits for a job's folder, and does the job."""
    from ml_workbench_service.resources import open_for_worker

    began = time.monotonic()
    faulthandler.enable()
    settings = Settings()
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    for module in PRELOADED:
        importlib.import_module(module)
    if settings.TRACES:
        send_traces(settings, "job worker")
    memory_mib = psutil.Process().memory_info().rss / 2**20
    log.info("a warm worker waits after %.1f s, with %.0f MiB", time.monotonic() - began, memory_mib)
    folder = os.fsdecode(sys.stdin.buffer.readline().rstrip(b"\n"))
    if not folder:
        return 0
    path = Path(folder)
    _say_into(path / "worker.log")
    try:
        return run_worker(path, open_workbench=lambda: open_for_worker(settings), log_bytes=settings.job_log_bytes)
    finally:
        end_tracing()


def _say_into(file: Path) -> None:
    """What is printed from now on belongs to the job."""
    with file.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output.fileno(), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
