"""Resilience test: offer records open loop, break things at random moments, prove what became of every single one.

set up → flood, with faults → wait until all is quiet → read the histories → check → report
"""

import random
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.resilience import ResilienceReport, ResilienceRequest
from ml_workbench_service.resilience import faults as faults  # loading the package registers every fault
from ml_workbench_service.resilience.fault import fault_named
from ml_workbench_service.resilience.reporting import gather, report_of
from ml_workbench_service.resilience.rig import Rig
from ml_workbench_service.resources import Workbench

REPORT_EVERY_S = 0.5


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """The job: a run in a folder of its own below the checkpoint; the result is the report.

    Raises:
        DataValidationError: no such fault.
        UnavailableError: no redis-server to be had, or the run's processes do not come up.
        JobCancelled: somebody asked for it.
    """
    request = ResilienceRequest.model_validate(spec.request)
    found = run_resilience_test(request, checkpoint / "run", report)
    (checkpoint / "report.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    (checkpoint / "report.txt").write_text(found.table + "\n", encoding="utf-8")
    if found.passed:
        shutil.rmtree(checkpoint / "run")  # its data are evidence only where something is wrong
    else:
        report.warn("an invariant was violated; the run's histories are kept in the job's checkpoint folder")
    return found.model_dump(mode="json")


def run_resilience_test(request: ResilienceRequest, folder: Path, report: Report) -> ResilienceReport:
    """One run in `folder`, which must not exist yet; raises like `run`."""
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    chosen = [fault_named(name)(random.Random(f"{seed} {name}")) for name in request.faults]
    begun = time.monotonic()
    with Rig(folder, request, chosen, seed=seed) as rig:
        report.say("starting server, agents and producers")
        rig.start()
        report.say("flooding")
        progress = _Progress(report, request.duration_s)
        rig.run_load(progress)
        report.say("waiting until the queue is empty")
        rig.wait_until_quiet(lambda _: report.check())
        report.say("checking the histories")
        return report_of(rig, gather(rig), duration_s=time.monotonic() - begun)


class _Progress:
    """Tells a job how far the flood is, twice a second, and looks for a cancellation more often."""

    def __init__(self, report: Report, duration_s: float) -> None:
        self._report = report
        self._duration_s = duration_s
        self._told = 0.0

    def __call__(self, elapsed_s: float) -> None:
        self._report.check()
        if elapsed_s - self._told >= REPORT_EVERY_S:
            self._told = elapsed_s
            total = max(1, round(self._duration_s * 10))
            self._report(min(total, round(elapsed_s * 10)), total, elapsed_s=round(elapsed_s, 1))
