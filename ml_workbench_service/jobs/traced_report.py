"""Traced report: a job's stages as spans, told by the sentences that it reports anyway."""

import re

from common_lib.redaction import redacted
from common_lib.tracing import OpenSpan, begin
from ml_workbench_service.contracts.jobs import Report

_NAME = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")


class TracedReport:
    """A `Report` beside which each sentence begins a span, which ends with the next one, or with the work.

    A span is named by a sentence's words up to its first figure or mark, so that names are few; all of it is an
    attribute. Without traces a sentence costs one look more.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._stage: OpenSpan | None = None

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Records a step."""
        self._report(step, total, **metrics)

    def say(self, message: str) -> None:
        """Ends the stage before, and begins the one that the message names."""
        self.end()
        named = _NAME.match(message)
        self._stage = begin(named[0] if named else "stage", "internal", {"ml_workbench.message": redacted(message)})
        self._report.say(message)

    def warn(self, message: str) -> None:
        """Leaves a warning on the job."""
        self._report.warn(message)

    def check(self) -> None:
        """Only checks for a cancellation."""
        self._report.check()

    def end(self) -> None:
        """The work has ended, or another stage begins."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.end()
