"""Trial scheduling: `TrialRunner` takes trials from beginning to end, in this process or some at a time in others.

Law: a trial is in the ledger and in the log, with all that came of it, before anybody is told; whoever goes on after a
kill repeats none that has ended.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.multiple_testing import MultipleTestingLog
from ml_workbench_service.search.study import Proposal, Search
from ml_workbench_service.search.trial import TrialEnd, TrialReport, thinned
from ml_workbench_service.search.worker_pool import Done, Maker, OpenMaker, Pool, Score, WorkerPool

POLL_S = 0.2
"""How often a cancellation is looked for while the trials run in other processes."""
UNPROMISING = "pruned: its scores so far were worse than other trials' at the same step"
SHOW_EVERY_S = 1.0
"""How often the curves of the trials under way are put where they can be watched."""
OUT_OF_TIME = "ended because timeout_s was over"


class TrialRunner:
    """Where a search stands: what goes into the trials' log, the multiple-testing log and the job's progress, and in
    which order.

    Args:
        note: puts a trial's record on disk.
        sketch: puts where they can be watched the records of the trials under way, with their curves so far.
        timeout_s: seconds of work after which no further trial begins; the first one that completes is waited for.
    """

    def __init__(
        self,
        search: Search,
        *,
        note: Callable[[TrialRecord], None],
        sketch: Callable[[Sequence[TrialRecord]], None],
        multiple_testing: MultipleTestingLog,
        report: Report,
        timeout_s: float | None = None,
    ) -> None:
        self.search = search
        self.report = report
        self._note, self._sketch = note, sketch
        self._multiple_testing = multiple_testing
        self._begun: dict[int, TrialRecord] = {}
        self._curves: dict[int, list[tuple[int, float]]] = {}
        self._shown_at = time.monotonic()
        worked_s = sum(map(_seconds, search.finished.values())) / search.strategy.num_parallel
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s - worked_s

    @property
    def is_out_of_time(self) -> bool:
        """Whether no further trial begins."""
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    @property
    def num_running(self) -> int:
        """Trials under way."""
        return len(self._begun)

    def begin(self) -> Proposal | None:
        """The next trial, noted; None where there is none to begin any more."""
        self.report.check()
        if self.is_out_of_time and self.search.best is not None:
            return None
        proposal = self.search.next()
        if proposal is not None:
            record = TrialRecord(number=proposal.number, state="running", params=proposal.params, started_at=utc_now())
            self._begun[proposal.number], self._curves[proposal.number] = record, []
            self._note(record)
        return proposal

    def hear(self, number: int, step: int, value: float) -> str:
        """An intermediate score; why the trial is to be given up, or the empty sentence."""
        self._curves[number].append((step, value))
        self._show()
        if self.search.heard(number, step, value):
            return UNPROMISING
        return OUT_OF_TIME if self.is_out_of_time and self.search.best is not None else ""

    def end(self, number: int, end: TrialEnd) -> None:
        """What came of a trial: first to the ledger and the log, then to everybody."""
        del self._curves[number]
        record = self._begun.pop(number).model_copy(
            update={
                "state": end.state, "value": end.value, "message": end.message, "sharpe": end.sharpe,
                "curve": end.curve, "curve_at_ms": end.curve_at_ms, "finished_at": utc_now(),
            }
        )  # fmt: skip
        if end.noted is not None:
            self._multiple_testing.record_trial(end.noted)
        self._note(record)
        self.search.ended(record)
        best = self.search.best
        figures = {"trial": float(number), "value": record.value, "best_value": None if best is None else best.value}
        self.report(
            len(self.search.finished),
            self.search.strategy.num_trials,
            **{name: value for name, value in figures.items() if value is not None},
        )

    def _show(self) -> None:
        """The curves of the trials under way, now and then."""
        if time.monotonic() - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = time.monotonic()
        self._sketch(
            [
                record.model_copy(update={"curve": tuple(thinned(self._curves[number]))})
                for number, record in self._begun.items()
            ]
        )


def in_turn(runner: TrialRunner, maker: Maker) -> None:
    """One trial at a time, in this process."""
    while (proposal := runner.begin()) is not None:
        hear = partial(runner.hear, proposal.number)
        runner.end(
            proposal.number, maker.make(proposal.number, proposal.params, TrialReport(runner.report.check, hear))
        )


def side_by_side(runner: TrialRunner, open_maker: OpenMaker) -> None:
    """Some trials at a time, each in a process of its own; what the sampler draws then depends on who is done first."""
    import torch

    num_parallel = runner.search.strategy.num_parallel
    num_threads = max(1, torch.get_num_threads() // num_parallel)
    with WorkerPool(num_parallel, open_maker, num_threads=num_threads) as pool:
        in_pool(runner, pool)


def in_pool(runner: TrialRunner, pool: Pool) -> None:
    """As many trials at a time as the pool has room for."""
    while True:
        while pool.has_room and (proposal := runner.begin()) is not None:
            pool.give(proposal.number, proposal.params)
        if runner.num_running == 0:
            return
        for news in pool.news(POLL_S):
            _take(news, runner, pool)
        runner.report.check()


def _take(news: Score | Done, runner: TrialRunner, pool: Pool) -> None:
    if isinstance(news, Score):
        pool.answer(news.number, runner.hear(news.number, news.step, news.value))
        return
    if news.error is not None:
        raise news.error
    assert news.end is not None
    runner.end(news.number, news.end)


def _seconds(record: TrialRecord) -> float:
    """How long a finished trial took."""
    if record.started_at is None or record.finished_at is None:
        return 0.0
    return max(0.0, (record.finished_at - record.started_at).total_seconds())
