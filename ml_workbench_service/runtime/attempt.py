"""Attempt: what a worker does at a job, from `started` to the final event, wherever the job's folder is."""

import importlib
import logging
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from common_lib.exceptions import JobCancelled, PlatformError
from common_lib.logging import correlated
from common_lib.storage import storage_error
from common_lib.tracing import span, waited
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.extras import missing_extra
from ml_workbench_service.contracts.jobs import JobKind, Report
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.traced_report import TracedReport
from ml_workbench_service.jobs.workers_folder import AttemptLostError, WorkersFolder

WORKFLOWS: Mapping[JobKind, str] = {
    JobKind.TRAIN: "ml_workbench_service.workflows.train",
    JobKind.EXPERIMENT: "ml_workbench_service.workflows.run_experiment",
    JobKind.REPLAY: "ml_workbench_service.workflows.replay",
    JobKind.IMPORTANCE: "ml_workbench_service.workflows.judged.measure_importance",
    JobKind.RESILIENCE: "ml_workbench_service.workflows.run_resilience_test",
}
"""Each module has `run(spec, *, checkpoint, report, workbench) -> dict`, the job's result."""

BEAT_PERIOD_S = 1.0
NS_PER_MS = 1_000_000
EXIT_FAILED = 1

log = logging.getLogger(__name__)


def do_job(
    folder: WorkersFolder,
    *,
    open_workbench: Callable[[], AbstractContextManager[Any]],
    workflows: Mapping[JobKind, str] = WORKFLOWS,
    leave: Callable[[], None] = lambda: None,
) -> int:
    """The attempt from `started` to its final event; the exit code.

    Args:
        leave: is called before the final event, whichever it is: what was left must be there before it.

    Raises:
        AttemptLostError: another attempt has the job, or the control plane is away for too long; nothing more is said.
    """
    record = folder.begin_attempt()
    report = EventReport(folder)
    signal.signal(signal.SIGTERM, lambda *_: report.terminate())
    with correlated(folder.spec.correlation_id), _beating(folder):
        try:
            report.check()
            folder.append("started", pid=record.pid, attempt=record.attempt)
            result = _work_traced(folder, report, workflows[folder.spec.kind], open_workbench)
            leave()
        except AttemptLostError:
            raise
        except JobCancelled:
            _left(leave)
            folder.append("cancelled")
            return 0
        except Exception as error:
            is_foreseen = isinstance(error, PlatformError) and error.status < 500
            log.error("job %s failed: %s", folder.id, error, exc_info=not is_foreseen)
            _left(leave)
            folder.append("failed", **_reason(error))
            return EXIT_FAILED
        folder.append("succeeded", result=result)
        return 0


def _left(leave: Callable[[], None]) -> None:
    """What is left behind by a job that did not succeed must not take its last word; raises AttemptLostError."""
    try:
        leave()
    except AttemptLostError:
        raise
    except (PlatformError, OSError) as error:
        log.error("what the worker would leave behind is lost: %s", error)


def _work_traced(
    folder: WorkersFolder, report: EventReport, module: str, open_workbench: Callable[[], AbstractContextManager[Any]]
) -> dict[str, Any]:
    """The work as a span below the request that asked for it, where traces are sent."""
    spec = folder.spec
    asked = {"ml_workbench.job_id": spec.id, "ml_workbench.correlation_id": spec.correlation_id}
    carrier = {} if spec.traceparent is None else {"traceparent": spec.traceparent}
    with span(f"job {spec.kind.value}", "consumer", attributes=asked, carrier=carrier):
        waited("wait for a worker", to_ms(spec.created_at) * NS_PER_MS)
        stages = TracedReport(report)
        try:
            return _work(folder, stages, module, open_workbench)
        finally:
            stages.end()


def _work(
    folder: WorkersFolder, report: Report, module: str, open_workbench: Callable[[], AbstractContextManager[Any]]
) -> dict[str, Any]:
    folder.checkpoint.mkdir(exist_ok=True)
    workflow = importlib.import_module(module)
    with open_workbench() as workbench:
        result: dict[str, Any] = workflow.run(
            folder.spec, checkpoint=folder.checkpoint, report=report, workbench=workbench
        )
    return result


def _reason(error: Exception) -> dict[str, Any]:
    """The data of a `failed` event: error_type, error_code, message, details."""
    told = error if isinstance(error, PlatformError) else missing_extra(error)
    if told is not None:
        body = told.body("")
        del body["correlation_id"]
        return body
    if _is_out_of_memory(error):
        return {
            "error_type": "InsufficientMemoryError",
            "error_code": "WORKER_OUT_OF_MEMORY",
            "message": "The machine had no memory left for this job: lower batch_size or lookback, ask for fewer "
            "symbols or a shorter range, or end other programs, then start it again.",
            "details": {},
        }
    if isinstance(error, OSError | sqlite3.Error) and not isinstance(error, ConnectionError | TimeoutError):
        return _reason(storage_error(error))
    words = str(error).encode("utf-8", "replace").decode()
    return {
        "error_type": type(error).__name__,
        "error_code": "TRAINING_ERROR",
        "message": f"The job ended with an unexpected {type(error).__name__}: {words[:500]}. "
        "The traceback is in worker.log in the job's folder; please report it.",
        "details": {},
    }


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own, numpy's, or torch's (told by its name, since torch may not be loaded)."""
    named = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)


@contextmanager
def _beating(folder: WorkersFolder) -> Iterator[None]:
    """A sign of life every second, from a thread that ends with the work."""
    done = threading.Event()

    def beat() -> None:
        folder.beat()
        while not done.wait(BEAT_PERIOD_S):
            folder.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
