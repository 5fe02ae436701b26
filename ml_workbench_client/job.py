"""`Job`: long work on the service, from its 202 to its result; `Experiment` and replays are jobs too."""

import time
from collections.abc import Mapping
from typing import Any, Generic

from common_lib.exceptions import JobCancelled, NotFoundError, PlatformError
from ml_workbench_client import routes
from ml_workbench_client.display import facts_html, progress_view
from ml_workbench_client.errors import error_of_body
from ml_workbench_client.events import EventStream
from ml_workbench_client.frames import ARROW, Document, Figure, Table
from ml_workbench_client.model import Model
from ml_workbench_client.plans import Emit, Flow, M, Plan, do, following, operation, reading
from ml_workbench_client.sending import Link, Resource
from ml_workbench_client.wire import Now, Pause
from ml_workbench_service.contracts import experiments, jobs

POLL_S = 1.0
"""Between two looks at a job that is waited for with a time limit."""


class Job(Resource[M], Generic[M]):
    """One job. Making this object asks nothing; its work goes on whether anybody looks or not.

    Attributes:
        id: of the job.
        accepted: what the service answered when it took the work on (estimate, model id, version); empty of a job
            that was looked up.
    """

    def __init__(self, link: Link, job_id: str, accepted: Mapping[str, Any] | None = None) -> None:
        super().__init__(link)
        self.id = job_id
        self.accepted = Document(accepted or {})

    @classmethod
    def of(cls, link: Link, accepted: Mapping[str, Any]) -> "Job[M]":
        """From the body of a 202."""
        return cls(link, str(accepted.get("job_id") or accepted["id"]), accepted)

    @reading(routes.SHOW_JOB)
    def state(self) -> Plan[jobs.Job]:
        """As it stands: status, progress with the newest figures, result or error, warnings."""
        return (yield from self._state())

    @following(routes.JOB_EVENTS)
    def events(self, *, after: int = 0) -> Flow[jobs.JobEvent]:
        """Every event so far, then each as it comes, up to the final one; a lost connection is taken up again.

        Args:
            after: the number of the last event that is known already.
        """
        return Flow(self._emitting(after))

    @operation(routes.JOB_EVENTS, routes.SHOW_JOB)
    def progress(self) -> Plan[jobs.Job]:
        """Shows a live bar, in a terminal or a notebook, until the job has ended; the ended job.

        Interrupting it (Ctrl-C) ends the bar, not the job.
        """
        stream = EventStream(self._link, self.id)
        with progress_view(self._title) as view:
            while (event := (yield from stream.next())) is not None:
                view.show(event)
        return (yield from self._state())

    @operation(routes.JOB_EVENTS, routes.SHOW_JOB)
    def wait(self, timeout_s: float | None = None) -> Plan[jobs.Job]:
        """Waits until the job has ended, however it ends; the ended job.

        Raises:
            TimeoutError: it has not within that time; it goes on.
        """
        if timeout_s is None:
            stream = EventStream(self._link, self.id)
            while (yield from stream.next()) is not None:
                pass
            return (yield from self._state())
        deadline = time.monotonic() + timeout_s
        while not (state := (yield from self._state())).status.is_final:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"job {self.id} has not ended within {timeout_s:g} s and goes on ({state.status}, step "
                    f"{state.progress.step} of {state.progress.total}); wait again, or cancel() it"
                )
            yield from do(Pause(min(POLL_S, left_s)))
        return state

    @operation(routes.JOB_EVENTS, routes.SHOW_JOB)
    def result(self, timeout_s: float | None = None) -> Plan[Document]:
        """Waits for the result; of a training `{model_id, version, href}`.

        Raises:
            PlatformError: the job's own error, as the class that it was in the worker.
            JobCancelled: somebody cancelled it.
            TimeoutError: it has not ended within that time.
        """
        state = yield from Job.wait.plan(self, timeout_s)
        if state.status is jobs.JobStatus.FAILED and state.error is not None:
            raise error_of_body({**state.error.model_dump(), "correlation_id": state.correlation_id}, 500)
        if state.status is jobs.JobStatus.CANCELLED:
            raise JobCancelled(f"job {self.id} was cancelled; ask for the work again if it is still wanted")
        return Document(state.result or {})

    @operation(routes.CANCEL_JOB, routes.SHOW_JOB)
    def cancel(self) -> Plan[jobs.Job]:
        """Asks the worker to stop, gracefully, after a while by force; a job that has ended stays as it is."""
        yield from self._ask(routes.CANCEL_JOB, job_id=self.id)
        return (yield from self._read(jobs.Job, routes.SHOW_JOB, job_id=self.id))

    @operation(routes.DELETE_JOB)
    def delete(self) -> Plan[None]:
        """Removes the folder of a job that has ended; what it published stays."""
        yield from self._ask(routes.DELETE_JOB, job_id=self.id)

    @operation(routes.JOB_LOG)
    def log(self, tail: int = 200) -> Plan[str]:
        """What its worker printed: the last lines, without secrets.

        Raises:
            NotFoundError: no worker has begun with it.
        """
        asked = routes.query(tail=tail)
        answer = yield from self._ask(routes.JOB_LOG, accept="text/plain", query=asked, job_id=self.id)
        return answer.content.decode("utf-8", "replace")

    @operation(routes.JOB_CURVES)
    def curves(self) -> Plan[Table]:
        """Learning curves: seed by seed and epoch by epoch, where a training stood."""
        answer = yield from self._ask(routes.JOB_CURVES, accept=ARROW, job_id=self.id)
        return Table(answer.content, f"curves of {self._title}")

    @operation(routes.JOB_SERIES)
    def series(self) -> Plan[Table]:
        """Row by row what a replay predicted, held and earned."""
        answer = yield from self._ask(routes.JOB_SERIES, accept=ARROW, job_id=self.id)
        return Table(answer.content, f"job {self.id}")

    @reading(routes.SHOW_JOB)
    def model(self) -> Plan[Model[M]]:
        """The model version that it makes or made: of a training known from the start.

        Raises:
            NotFoundError: it has made none, or not yet.
        """
        made: Mapping[str, Any] = self.accepted
        if "model_id" not in made or "version" not in made:
            made = (yield from self._state()).result or {}
        if "model_id" not in made:
            raise NotFoundError(f"job {self.id} has made no model; look at its state and result()")
        return Model[M](self._link, made["model_id"], made.get("version"))

    def _state(self) -> Plan[jobs.Job]:
        return (yield from self._read(jobs.Job, routes.SHOW_JOB, job_id=self.id))

    def _emitting(self, after: int) -> Plan[None]:
        stream = EventStream(self._link, self.id, after)
        while (event := (yield from stream.next())) is not None:
            yield Emit(event)

    @property
    def _title(self) -> str:
        made = " ".join(str(self.accepted[name]) for name in ("model_id", "version") if self.accepted.get(name))
        return made or self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{'' if self._title == self.id else f' of {self._title}'}>"

    def _repr_html_(self) -> str | None:
        if not isinstance(self._carrier, Now):
            return None
        try:
            state = self._carrier.run(self._state())
        except PlatformError as error:
            return facts_html(f"Job {self.id}", {"state": error.message})
        progress = state.progress
        return facts_html(
            f"Job {self.id}",
            {
                "kind": state.kind.value,
                "status": state.status.value,
                "progress": f"{progress.step} of {progress.total} {progress.message}" if progress.total else "",
                "figures": progress.metrics,
                "result": state.result,
                "error": state.error.message if state.error else None,
                "warnings": state.warnings,
                "created": state.created_at,
                "finished": state.finished_at,
            },
        )


class Experiment(Job[M], Generic[M]):
    """A search over settings: a job whose trials can be looked at."""

    @classmethod
    def of(cls, link: Link, accepted: Mapping[str, Any]) -> "Experiment[M]":
        """From the body of a 202."""
        return cls(link, str(accepted.get("experiment_id") or accepted["id"]), accepted)

    @reading(routes.SHOW_EXPERIMENT)
    def details(self) -> Plan[experiments.Experiment]:
        """Trials with parameters, score and curve, the best of them, what mattered, and what came of the winner."""
        return (yield from self._read(experiments.Experiment, routes.SHOW_EXPERIMENT, experiment_id=self.id))

    @operation(routes.TRIALS)
    def trials(self) -> Plan[Table]:
        """Every trial so far as a row, its parameters in columns `params.<name>`."""
        answer = yield from self._ask(routes.TRIALS, accept=ARROW, experiment_id=self.id)
        return Table(answer.content, f"trials of {self.id}")

    @operation(routes.LIST_EXPERIMENT_FIGURES)
    def figures(self) -> Plan[Document]:
        """The figures that there are of it."""
        return Document((yield from self._read(dict[str, Any], routes.LIST_EXPERIMENT_FIGURES, experiment_id=self.id)))

    @operation(routes.EXPERIMENT_FIGURE)
    def figure(self, name: str) -> Plan[Figure]:
        """One figure, `trials`, `importance` or `parallel_coordinates`."""
        return Figure(
            (yield from self._read(dict[str, Any], routes.EXPERIMENT_FIGURE, experiment_id=self.id, name=name))
        )
