"""The line before the networks: who waited goes together, alone fails alone, and the loop stays free."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.serving.inference_line import InferenceLine


class Doubling:
    """Work that doubles numbers and remembers its runs; a text is an error of its own, a float so many seconds."""

    def __init__(self) -> None:
        self.runs: list[list[Any]] = []
        self.threads: list[str] = []

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.runs.append(list(items))
        self.threads.append(threading.current_thread().name)
        time.sleep(sum(each for each in items if isinstance(each, float)))
        return [ValueError(each) if isinstance(each, str) else 2 * each for each in items]


async def ask_all(line: InferenceLine, items: Sequence[Any], key: str = "a") -> list[Any]:
    return await asyncio.gather(*(line.ask(key, each) for each in items), return_exceptions=True)


async def test_a_versions_first_run_goes_to_the_thread_and_short_ones_stay_in_the_loop() -> None:
    work = Doubling()
    line = InferenceLine(work, inline_s=5.0)
    assert await line.ask("a", 1) == 2
    assert await ask_all(line, [2, 3, 4]) == [4, 6, 8]
    assert work.runs == [[1], [2, 3, 4]]
    assert work.threads == ["inference_0", threading.current_thread().name]
    line.close()


async def test_what_waited_while_a_long_run_lasted_goes_together_and_the_loop_is_free_meanwhile() -> None:
    work = Doubling()
    line = InferenceLine(work)
    first = asyncio.create_task(line.ask("a", 0.2))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(line.ask("a", number)) for number in range(5)]
    await asyncio.sleep(0.02)
    assert line.num_waiting == 5
    assert await first == 0.4
    assert await asyncio.gather(*others) == [0, 2, 4, 6, 8]
    assert work.runs == [[0.2], [0, 1, 2, 3, 4]]
    line.close()


async def test_versions_do_not_share_a_run_and_a_batch_has_its_own() -> None:
    work = Doubling()
    line = InferenceLine(work)
    asked = [line.ask("a", 1), line.ask("b", 2), line.ask("a", 3), line.ask("a", 4, is_single=False), line.ask("b", 5)]
    assert await asyncio.gather(*asked) == [2, 4, 6, 8, 10]
    assert work.runs == [[1, 3], [2, 5], [4]]
    line.close()


async def test_an_item_that_fails_fails_alone() -> None:
    line = InferenceLine(Doubling())
    one, poison, other = await ask_all(line, [1, "poison", 3])
    assert (one, other) == (2, 6)
    assert isinstance(poison, ValueError)
    line.close()


async def test_work_that_raises_fails_its_run_and_no_later_one() -> None:
    def work(items: Sequence[Any]) -> list[Any]:
        if "bad" in items:
            raise RuntimeError("broken")
        return list(items)

    line = InferenceLine(work)
    for _ in range(2):  # in the thread, then in the loop
        assert [type(each) for each in await ask_all(line, ["bad", "good"])] == [RuntimeError, RuntimeError]
        assert await line.ask("a", "good") == "good"
    line.close()


async def test_who_has_gone_is_passed_over_and_harms_nobody() -> None:
    work = Doubling()
    line = InferenceLine(work)
    first = asyncio.create_task(line.ask("a", 0.1))
    await asyncio.sleep(0.01)
    going, staying = asyncio.create_task(line.ask("a", 1)), asyncio.create_task(line.ask("a", 2))
    await asyncio.sleep(0.01)
    going.cancel()
    assert await staying == 4
    assert await first == 0.2
    assert work.runs[1:] == [[2]]
    line.close()


async def test_a_full_waiting_room_refuses_and_says_when_to_come_again() -> None:
    line = InferenceLine(Doubling(), most_waiting=2)
    running = asyncio.create_task(line.ask("a", 0.1))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(line.ask("a", number)) for number in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError) as refused:
        await line.ask("a", 3)
    assert refused.value.retry_after_s == 1
    assert await asyncio.gather(running, *waiting) == [0.2, 2, 4]
    assert await line.ask("a", 3) == 6
    line.close()


async def test_a_run_is_bounded_and_observed() -> None:
    seen: list[tuple[int, int]] = []
    work = Doubling()
    line = InferenceLine(work, most_together=2, observe=lambda num, waited_s: seen.append((num, len(waited_s))))
    assert await ask_all(line, [1, 2, 3]) == [2, 4, 6]
    assert work.runs == [[1, 2], [3]]
    assert seen == [(2, 2), (1, 1)]
    line.close()


async def test_a_closed_lane_answers_with_an_error_and_never_hangs() -> None:
    line = InferenceLine(Doubling())
    line.close()
    with pytest.raises(UnavailableError, match="stopping"):
        await asyncio.wait_for(line.ask("a", 1), timeout=5)


async def test_one_stall_does_not_send_short_runs_to_the_thread() -> None:
    work = Doubling()
    line = InferenceLine(work, inline_s=1.0)
    await ask_all(line, [1])
    await ask_all(line, [2])
    await ask_all(line, [1.2])
    await ask_all(line, [3])
    assert work.threads[1:] == [threading.current_thread().name] * 3
    line.close()
