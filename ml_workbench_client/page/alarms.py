"""Alarms: what is wrong at the moment, each with where to look: one list out of everything that the service says."""

import asyncio
from dataclasses import dataclass
from typing import Literal

from common_lib.exceptions import UnavailableError
from ml_workbench_client import AsyncWorkbench, Document
from ml_workbench_client.page.components import words
from ml_workbench_service.contracts.agents import Agent
from ml_workbench_service.contracts.jobs import Job
from ml_workbench_service.contracts.models import ModelSummary, SetAside
from ml_workbench_service.contracts.queue import QueueAccounting

NUM_JOBS = 20
NUM_LIVE = 50
"""Deployed models that the overview looks at; of one more it says that there are more."""
OF_NO_CONCERN = ("ok", "disabled")


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong, or may be."""

    kind: Literal["bad", "warn"]
    sentence: str
    where: str  # an address of the page


@dataclass(frozen=True)
class ServiceOverview:
    """What the service says of itself at one moment."""

    ready: Document
    queue: QueueAccounting | None
    agents: tuple[Agent, ...]
    jobs: tuple[Job, ...]
    live: tuple[ModelSummary, ...]
    set_aside: tuple[SetAside, ...] = ()

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Everything that is wrong, worst first."""
        found = [*self._things(), *self._queue(), *self._agents(), *self._jobs(), *self._live(), *self._set_aside()]
        return tuple(sorted(found, key=lambda each: each.kind != "bad"))

    def _things(self) -> list[Alarm]:
        things = self.ready.get("things", {})
        return [
            Alarm(
                "warn" if each["state"] == "degraded" else "bad", f"{words.readable(name)}: {each['detail']}", "/#ready"
            )
            for name, each in things.items()
            if each["state"] not in OF_NO_CONCERN
        ]

    def _queue(self) -> list[Alarm]:
        queue = self.queue
        if queue is None:
            return [Alarm("bad", "the prediction queue does not answer", "/live")]
        found = []
        if queue.dead_letters:
            found.append(Alarm("bad", f"{queue.dead_letters} dead letters: entries that an agent gave up", "/live"))
        if any(each.balance for each in queue.groups):
            found.append(Alarm("bad", "the queue's accounting does not balance", "/live"))
        lost = queue.outbox_dropped + queue.refused + sum(each.dropped_oldest + each.expired for each in queue.groups)
        if lost:
            found.append(Alarm("warn", f"{lost} predictions were dropped or refused by the queue so far", "/live"))
        return found

    def _agents(self) -> list[Alarm]:
        return [
            Alarm("bad", f"agent {each.id} {words.readable(each.status)}", words.path("agents", each.id))
            for each in self.agents
            if each.status == "failed" or (each.wanted == "running" and each.status == "stopped")
        ]

    def _jobs(self) -> list[Alarm]:
        return [
            Alarm("warn", f"{each.kind} {_name(each)} failed: {each.error.message}", words.path("jobs", each.id))
            for each in self.jobs
            if each.status == "failed" and each.error is not None
        ]

    def _live(self) -> list[Alarm]:
        return [
            Alarm(
                "warn",
                f"{each.id} {each.version} is live with warnings: {', '.join(map(words.readable, each.warnings))}",
                words.path("models", each.id),
            )
            for each in self.live
            if each.warnings
        ]

    def _set_aside(self) -> list[Alarm]:
        return [
            Alarm("bad", f"{each.model_id} {each.version} is not served ({each.state})", "/models#set-aside")
            for each in self.set_aside[:NUM_LIVE]
        ]


def _name(job: Job) -> str:
    return str(job.request.get("name") or job.request.get("model_id") or job.id)


async def look(bench: AsyncWorkbench) -> ServiceOverview:
    """The overview, everything asked at once."""
    ready, queue, agents, jobs, live, aside = await asyncio.gather(
        bench.ready,
        _queue_of(bench),
        bench.agents().first(50),
        bench.jobs().first(NUM_JOBS),
        bench.models(status="deployed").first(NUM_LIVE + 1),
        bench.set_aside,
    )
    return ServiceOverview(ready, queue, tuple(agents), tuple(jobs), tuple(live), tuple(aside))


async def _queue_of(bench: AsyncWorkbench) -> QueueAccounting | None:
    try:
        return await bench.queue
    except UnavailableError:
        return None  # said as an alarm, while the rest is shown
