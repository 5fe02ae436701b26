"""Small workflows that real worker processes run in the tests; `request` says what to do."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common_lib.exceptions import DataValidationError, JobCancelled
from common_lib.logging import correlation_id
from ml_workbench_service.contracts.jobs import JobSpec, Report

MOST_SHOUTED_S = 60.0
SHOUTING_CHILD = f"""
import os, time
parent, end = os.getppid(), time.monotonic() + {MOST_SHOUTED_S}
while os.getppid() == parent and time.monotonic() < end:
    os.write(1, b"c" * 4000 + b"\\n")  # at once, so that no other line stands within it
    time.sleep(0.0001)
"""


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Does what the request's `do` names."""
    request = spec.request
    return ACTIONS[request["do"]](request, checkpoint, report, workbench)


def count(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Reports `steps` epochs, `pause_s` apart."""
    report.say("training")
    for step in range(1, request["steps"] + 1):
        report(step, request["steps"], loss=1.0 / step, odd=float("nan"))
        time.sleep(request.get("pause_s", 0))
    report.warn("few rows")
    (checkpoint / "kept").touch()
    return {"workbench": workbench, "correlation_id": correlation_id(), "num_threads": os.environ["OMP_NUM_THREADS"]}


def ignore(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Never reports again, and does not listen while it does so either."""
    with suppress(JobCancelled):  # a cancellation may come between its step's line and the report's own look
        report(1, 1)
    while True:
        time.sleep(0.05)


def wait(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Reports until a file `told` stands beside its checkpoint, and succeeds."""
    step = 0
    while not (checkpoint / "told").exists():
        step += 1
        report(step, step + 1)
        time.sleep(0.01)
    return {"steps": step}


def shout(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Prints, as does a child of its own, until a file `told` stands beside its checkpoint; for MOST_SHOUTED_S at most,
    and the child no longer than its parent lives: else a test that fails would leave somebody who fills the disk."""
    report(1, 1)
    child = subprocess.Popen([sys.executable, "-u", "-c", SHOUTING_CHILD])
    number, end = 0, time.monotonic() + MOST_SHOUTED_S
    while not (checkpoint / "told").exists() and time.monotonic() < end:
        time.sleep(0.001)
        for _ in range(100):
            number += 1
            os.write(1, f"line {number:09} {'x' * 500}\n".encode())  # at once, as the child's
    child.kill()
    child.wait()
    print(f"the last of {number} lines", flush=True)  # noqa: T201
    return {"num_lines": number}


def refuse(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Fails with one of the platform's own errors."""
    raise DataValidationError.at("body.symbols", "No bars for EUR/USD; ask for another range.")


def stumble(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Fails with a bug."""
    return {"never": 1 // 0}


def devour(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Asks for more memory than there can be."""
    return {"never": len(bytearray(1 << 62))}


def swell(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Holds 150 MB in a child process and waits."""
    child = subprocess.Popen([sys.executable, "-c", "x = b'1' * 150_000_000; import time; time.sleep(60)"])
    report(1, 1, child=child.pid)
    child.wait()
    return {}


def persist(request: dict[str, Any], checkpoint: Path, report: Report, workbench: Any) -> dict[str, Any]:
    """Goes on after the last step in its checkpoint, and kills itself at each step named in `dies_at`."""
    done = checkpoint / "step"
    first = int(done.read_text()) + 1 if done.exists() else 1
    for step in range(first, request["steps"] + 1):
        report(step, request["steps"])
        done.write_text(str(step))
        if step in request["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"first": first}


ACTIONS = {
    "count": count,
    "ignore": ignore,
    "wait": wait,
    "shout": shout,
    "refuse": refuse,
    "stumble": stumble,
    "devour": devour,
    "swell": swell,
    "persist": persist,
}
