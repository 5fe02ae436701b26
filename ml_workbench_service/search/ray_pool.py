"""Pool of Ray tasks for trials: `RayPool` does on a cluster what `WorkerPool` does with processes of this machine.

A trial is one task. Its intermediate scores go to an exchange, an actor on the node of the experiment's worker, and it
waits there for the word whether to go on, as a process of the pool waits at its pipe; so a search proposes, prunes and
ends trials in the same order, and with the same numbers, wherever they are made. A task whose process is lost, with its
node or alone, is begun again elsewhere with the same parameters: Ray does not say which it was. What it had reported
until then comes again and is the same, so nobody hears it twice.

Ray ends all of it with the worker that it belongs to. This is the one file that imports ray.
"""

import asyncio
import atexit
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common_lib.exceptions import JobCancelled, PlatformError, TrainingError
from ml_workbench_service.search.trial import TrialEnd, TrialReport
from ml_workbench_service.search.worker_pool import Done, Maker, OpenMaker, Score, end_of, end_to_json, error_of

MOST_BEGINNINGS = 3
"""Of a trial whose process is lost; after the last it counts as failed."""
ANSWER_S = 60.0
"""That the exchange may take; it is on this node."""

log = logging.getLogger(__name__)
_opened = ExitStack()
atexit.register(_opened.close)
_makers: dict[str, Maker] = {}
"""Of this process: a task finds what the one before it opened, its tables and windows included."""


@dataclass(frozen=True)
class TrialResources:
    """What each trial has of a node.

    Attributes:
        num_cpus: CPUs, and threads.
        num_gpus: or parts of one.
        memory_bytes: by the estimate; 0: not counted.
    """

    num_cpus: int = 1
    num_gpus: float = 0.0
    memory_bytes: int = 0


@dataclass
class _Begun:
    """A trial under way."""

    number: int
    params: dict[str, Any]
    beginning: int = 1  # counted from 1
    step: int = 0  # of the score that waits for its answer
    told: dict[int, str] = field(default_factory=dict)  # what was answered at each step


class RayPool:
    """So many trials at a time, each a task of a cluster; the context opens the connection and ends everything.

    Args:
        size: trials at a time.
        open_maker: what each process works with, opened there.
        environment: variables of each process on top of the job's.
        warn: hears, once, that no node has room for a trial.
    """

    def __init__(
        self,
        size: int,
        open_maker: OpenMaker,
        resources: TrialResources,
        *,
        environment: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        self._size, self._resources, self._warn = size, resources, warn
        about = {"open": asdict(open_maker), "num_threads": resources.num_cpus, "environment": dict(environment)}
        self._about = json.dumps(about, sort_keys=True)
        self._task = ray.remote(make_trial)
        self._tasks: dict[Any, _Begun] = {}
        self._exchange: Any = None
        self._news: Any = None

    def __enter__(self) -> "RayPool":
        ray.init(address="auto", logging_level=logging.WARNING)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._exchange = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here).remote()
        self._tell_room()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            ray.cancel(task, force=True)
        ray.shutdown()

    @property
    def has_room(self) -> bool:
        """Whether another trial may begin."""
        return len(self._tasks) < self._size

    def give(self, number: int, params: dict[str, Any]) -> None:
        """Begins a trial."""
        self._begin(_Begun(number, params))

    def answer(self, number: int, sentence: str) -> None:
        """After a score: go on (the empty sentence), or give up because of this."""
        begun = next(each for each in self._tasks.values() if each.number == number)
        begun.told[begun.step] = sentence
        self._exchange.answer.remote(number, begun.beginning, sentence)

    def news(self, timeout_s: float) -> Iterator[Score | Done]:
        """What has happened, after at most that long."""
        if self._news is None:
            self._news = self._exchange.news.remote()
        ready, _ = ray.wait([self._news, *self._tasks], num_returns=1, timeout=timeout_s)
        for each in ready:
            if each == self._news:
                self._news = None
                yield from self._heard(ray.get(each, timeout=ANSWER_S))
            else:
                yield from self._ended(each)

    def _begin(self, begun: _Begun) -> None:
        options: dict[str, Any] = {"num_cpus": self._resources.num_cpus, "num_gpus": self._resources.num_gpus}
        if self._resources.memory_bytes:
            options["memory"] = self._resources.memory_bytes
        task = self._task.options(name=f"trial {begun.number}", max_retries=0, **options)
        given = {"number": begun.number, "beginning": begun.beginning, "params": begun.params}
        self._tasks[task.remote(self._about, given, self._exchange)] = begun

    def _heard(self, scores: list[tuple[int, int, int, float]]) -> Iterator[Score]:
        """Scores of the tasks under way; what a beginning reports again is answered here."""
        under_way = {(each.number, each.beginning): each for each in self._tasks.values()}
        for number, beginning, step, value in scores:
            begun = under_way.get((number, beginning))
            if begun is None:  # its process is lost since
                continue
            begun.step = step
            if step in begun.told:
                self.answer(number, begun.told[step])
                continue
            yield Score(number, step, value)

    def _ended(self, task: Any) -> Iterator[Done]:
        begun = self._tasks[task]
        try:
            found = ray.get(task, timeout=ANSWER_S)
        except (RayTaskError, TaskCancelledError, GetTimeoutError):
            raise
        except RayError as error:  # the process, its node or what it had left there is gone
            yield from self._lost(task, error)
            return
        del self._tasks[task]
        yield Done(begun.number, None, error_of(found)) if "error_type" in found else Done(begun.number, end_of(found))

    def _lost(self, task: Any, error: RayError) -> Iterator[Done]:
        begun = self._tasks.pop(task)
        reason = " ".join(str(error).split())[:300]
        if begun.beginning >= MOST_BEGINNINGS:
            yield Done(begun.number, TrialEnd("failed", message=f"the trial's process was lost again: {reason}"))
            return
        log.warning("trial %d is begun again elsewhere: %s", begun.number, reason)
        begun.beginning += 1
        self._begin(begun)

    def _tell_room(self) -> None:
        """Tasks that fit nowhere wait for ever, and silently."""
        asked = {"CPU": self._resources.num_cpus, "GPU": self._resources.num_gpus}
        nodes = [each["Resources"] for each in ray.nodes() if each["Alive"]]
        if not any(all(each.get(name, 0.0) >= value for name, value in asked.items()) for each in nodes):
            self._warn(
                f"no node of the Ray cluster has {asked['CPU']} CPUs and {asked['GPU']:g} GPUs for a trial; the trials "
                "wait for one: start it, or lower RAY_CPUS and RAY_GPUS"
            )


class Exchange:
    """Where trials report, and their experiment answers: an actor, whose methods wait side by side."""

    def __init__(self) -> None:
        self._scores: asyncio.Queue[tuple[int, int, int, float]] = asyncio.Queue()
        self._answers: dict[tuple[int, int], asyncio.Future[str]] = {}

    async def hear(self, number: int, beginning: int, step: int, value: float) -> str:
        """For a trial: a score; comes back with the answer to it."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[number, beginning] = answer
        self._scores.put_nowait((number, beginning, step, value))
        return await answer

    async def news(self) -> list[tuple[int, int, int, float]]:
        """For the experiment: the scores since, once there are some."""
        scores = [await self._scores.get()]
        while not self._scores.empty():
            scores.append(self._scores.get_nowait())
        return scores

    async def answer(self, number: int, beginning: int, sentence: str) -> None:
        """For the experiment: what to tell a trial that waits."""
        waiting = self._answers.pop((number, beginning), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(sentence)


def make_trial(about: str, given: Mapping[str, Any], exchange: Any) -> dict[str, Any]:
    """One trial, in a process of the cluster: its end as JSON, or the body of an outage, which is the job's."""
    number, beginning = given["number"], given["beginning"]

    def hear(step: int, value: float) -> str:
        sentence: str = ray.get(exchange.hear.remote(number, beginning, step, value))
        return sentence

    try:
        return end_to_json(_maker(about).make(number, given["params"], TrialReport(lambda: None, hear)))
    except JobCancelled as error:  # nobody here asks for it
        raise TrainingError("a trial was cancelled by itself; please report it") from error
    except PlatformError as error:
        return error.body("")


def _maker(about: str) -> Maker:
    """What this process makes trials with, opened at its first; it ends with the process, which ends with the job."""
    if about not in _makers:
        import torch

        told = json.loads(about)
        os.environ.update(told["environment"])
        torch.set_num_threads(told["num_threads"])
        _makers[about] = _opened.enter_context(OpenMaker(**told["open"])())
    return _makers[about]
