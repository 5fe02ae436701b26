"""Worker processes of one core each, begun anew; the service's own choice of threads in them then is one."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

NUM_WORKERS = 2

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_workers(
    work: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    progress: Callable[[int, int], None] | None = None,
    num_workers: int = NUM_WORKERS,
) -> list[Answer]:
    """`work` of every item, in order, by processes of one core each; `work` must be importable.

    With one worker everything happens here. The first exception ends it all.
    """
    if num_workers == 1:
        return [work(item) for item in items]
    answers: dict[int, Answer] = {}
    context = get_context("spawn")
    cores: SimpleQueue[int] = context.SimpleQueue()
    for core in _cores(num_workers):
        cores.put(core)
    with _one_thread_each(), ProcessPoolExecutor(num_workers, context, _take_core, (cores,)) as pool:
        places = {pool.submit(work, item): place for place, item in enumerate(items)}
        try:
            for done in as_completed(places):
                answers[places[done]] = done.result()
                if progress is not None:
                    progress(len(answers), len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [answers[place] for place in range(len(items))]


def _cores(num: int) -> list[int]:
    usable = sorted(os.sched_getaffinity(0))
    return [usable[number % len(usable)] for number in range(num)]


def _take_core(cores: "SimpleQueue[int]") -> None:
    """A worker's start: its core, before anything counts how many there are."""
    os.sched_setaffinity(0, {cores.get()})


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Libraries read these before a worker's first line."""
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
