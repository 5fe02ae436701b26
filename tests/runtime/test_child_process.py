"""One process kept running: started, restarted when it dies, left alone when it ends by itself, ended with us."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.runtime import child_process as module
from ml_workbench_service.runtime.child_process import SupervisedProcess

SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)
COUNT = "open({!r}, 'a').write('x'); raise SystemExit({})"
NOTE_TIME = "import time; open({!r}, 'a').write(f'{{time.time()}} '); raise SystemExit(3)"


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def pid_of(folder: Path) -> int | None:
    """The living process, by its record."""
    record = ProcessRecord.read(folder / "thing" / "process.json")
    return record.pid if record is not None and record.is_alive else None


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Callable[..., SupervisedProcess]]:
    made: list[SupervisedProcess] = []

    def make(command: tuple[str, ...], **options: Any) -> SupervisedProcess:
        record = tmp_path / "thing" / "process.json"
        made.append(SupervisedProcess("thing", command, os.environ, record, **{"first_pause_s": 0.02, **options}))
        return made[-1]

    yield make
    for one in made:
        await one.stop()


async def test_it_runs_until_stopped_and_its_record_says_who_it_is(tmp_path: Path, keep: Any) -> None:
    thing = keep(SLEEP)
    assert pid_of(tmp_path) is None
    await thing.start()
    await until(lambda: pid_of(tmp_path))
    pid = pid_of(tmp_path)
    assert pid in {child.pid for child in psutil.Process().children()}
    await thing.stop()
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "thing" / "process.json").exists()


async def test_it_is_started_again_when_it_dies(tmp_path: Path, keep: Any, caplog: pytest.LogCaptureFixture) -> None:
    thing = keep(SLEEP)
    await thing.start()
    await until(lambda: pid_of(tmp_path))
    first = pid_of(tmp_path)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: pid_of(tmp_path) not in (None, first))
    assert f"thing ended with {-signal.SIGKILL} after" in caplog.text
    assert thing.num_failures == 1


async def test_the_pause_doubles_while_it_keeps_failing(tmp_path: Path, keep: Any) -> None:
    lives = tmp_path / "lives"
    thing = keep((sys.executable, "-S", "-c", NOTE_TIME.format(str(lives))), first_pause_s=0.1)
    await thing.start()
    await until(lambda: thing.num_failures == 4)
    began = [float(each) for each in lives.read_text().split()]
    pauses = [later - earlier for earlier, later in pairwise(began)]
    assert [pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True)] == [True] * 3, pauses


async def test_a_clean_end_rests_until_the_next_poke(
    tmp_path: Path, keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNHEARD_S", 0.0)
    lives = tmp_path / "lives"
    thing = keep((sys.executable, "-S", "-c", COUNT.format(str(lives), 0)), on_demand=True)
    await thing.start()
    await asyncio.sleep(0.1)
    assert not lives.exists()
    thing.poke()
    await until(lambda: lives.exists() and pid_of(tmp_path) is None)
    await asyncio.sleep(0.3)
    assert (lives.read_text(), thing.num_failures) == ("x", 0)
    thing.poke()
    await until(lambda: lives.read_text() == "xx")


async def test_a_poke_just_before_a_clean_end_is_not_lost(tmp_path: Path, keep: Any) -> None:
    lives = tmp_path / "lives"
    thing = keep((sys.executable, "-S", "-c", COUNT.format(str(lives), 0)), on_demand=True)
    await thing.start()
    thing.poke()
    await until(lambda: lives.exists() and lives.read_text() == "xx")
    await asyncio.sleep(0.3)
    assert lives.read_text() == "xx"


async def test_what_a_killed_predecessor_left_running_is_ended_and_nothing_else(tmp_path: Path, keep: Any) -> None:
    record = tmp_path / "thing" / "process.json"
    with subprocess.Popen(SLEEP, start_new_session=True) as leftover, subprocess.Popen(SLEEP) as stranger:
        ProcessRecord.of(leftover.pid).write(record)
        thing = keep(SLEEP)
        await thing.start()
        assert leftover.wait(timeout=30) == -signal.SIGTERM
        await thing.stop()
        ProcessRecord(pid=stranger.pid, started_at=1000.0).write(record)
        await thing.start()
        await until(lambda: pid_of(tmp_path) not in (None, stranger.pid))
        assert stranger.poll() is None
        stranger.kill()


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, keep: Any) -> None:
    thing = keep(STUBBORN, grace_s=0.2)
    await thing.start()
    await until(lambda: (tmp_path / "thing" / "process.log").exists())
    await until(lambda: "up" in (tmp_path / "thing" / "process.log").read_text())
    pid = pid_of(tmp_path)
    assert pid is not None
    await thing.stop()
    assert not psutil.pid_exists(pid)


async def test_a_command_that_does_not_exist_is_tried_again(keep: Any) -> None:
    thing = keep(("/nowhere/python",))
    await thing.start()
    await until(lambda: thing.num_failures >= 2)


async def test_a_process_whose_record_cannot_be_written_is_ended_before_the_next_try(tmp_path: Path, keep: Any) -> None:
    in_the_way = tmp_path / "thing" / f".process.json.{os.getpid()}"  # as on a full disk, writing ends with an OSError
    in_the_way.mkdir(parents=True)
    before = set(psutil.Process().children())
    thing = keep(SLEEP)
    await thing.start()
    await until(lambda: thing.num_failures >= 3)
    assert set(psutil.Process().children()) - before == set()
    in_the_way.rmdir()
    await until(lambda: pid_of(tmp_path))
    assert [child.pid for child in set(psutil.Process().children()) - before] == [pid_of(tmp_path)]
