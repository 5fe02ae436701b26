"""Who a process is: by its pid, its start and the machine's boot, whatever the wall clock does meanwhile."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ml_workbench_service.jobs import process_record as processes
from ml_workbench_service.jobs.job import WorkerRecord
from ml_workbench_service.jobs.process_record import ProcessRecord, end_leftover
from ml_workbench_service.runtime.agent_worker import is_dead


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


@pytest.fixture
def clock_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What psutil says of every start after the wall clock was set by half a minute."""
    told = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: told(self) + 30.0)


def owner_of(record: ProcessRecord, host: str = "") -> str:
    return f"{host or socket.gethostname()}/{record.token}"


def written(file: Path, pid: int) -> ProcessRecord:
    ProcessRecord.of(pid).write(file)
    read = ProcessRecord.read(file)
    assert read is not None
    return read


def test_a_living_process_lives_on_when_the_wall_clock_is_set(
    tmp_path: Path, child: subprocess.Popen[bytes], request: pytest.FixtureRequest
) -> None:
    record = written(tmp_path / "process.json", child.pid)
    worker = WorkerRecord(**record.model_dump(), attempt=1)
    assert record.is_alive
    request.getfixturevalue("clock_step")
    assert record.is_alive
    assert worker.is_alive
    assert ProcessRecord.of(child.pid) == record
    assert not is_dead(owner_of(record))
    assert end_leftover(tmp_path / "process.json") is True, "what is left behind is still found"


def test_another_start_or_another_boot_is_another_process(child: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord.of(child.pid)
    a_tick = 1 / os.sysconf("SC_CLK_TCK")
    for change in ({"started_at": record.started_at - a_tick}, {"boot_id": "an-earlier-one"}):
        other = record.model_copy(update=change)
        assert not other.is_alive
        assert is_dead(owner_of(other))
    assert not is_dead(owner_of(record.model_copy(update={"boot_id": "its-own"}), host="another-machine"))
    child.kill()
    child.wait()
    assert is_dead(owner_of(record))
    with pytest.raises(psutil.NoSuchProcess):
        ProcessRecord.of(child.pid)


@pytest.mark.parametrize("owner", ["", "this process", "{host}/1/12.5", "{host}/boot/one/12.5", "{host}/boot/1/late"])
def test_of_an_owner_with_another_kind_of_name_nobody_knows_whether_it_is_dead(owner: str) -> None:
    assert not is_dead(owner.format(host=socket.gethostname()))


def test_a_record_of_an_earlier_version_is_that_process_while_the_wall_clock_agrees_and_nobody_otherwise(
    tmp_path: Path, child: subprocess.Popen[bytes], request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "process.json"
    file.write_text(f'{{"pid":{child.pid},"started_at":{psutil.Process(child.pid).create_time()!r},"ended":false}}')
    old = ProcessRecord.read(file)
    assert old is not None
    assert old.is_alive
    request.getfixturevalue("clock_step")
    assert not old.is_alive
    assert end_leftover(file) is False
    assert child.poll() is None


def test_without_a_proc_the_start_is_what_psutil_tells(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "BOOT_ID", tmp_path / "absent")
    record = ProcessRecord.of(child.pid)
    assert (record.boot_id, record.started_at) == ("", psutil.Process(child.pid).create_time())
    assert record.is_alive
    assert not is_dead(owner_of(record))
    assert not record.model_copy(update={"started_at": record.started_at - 2.0}).is_alive


def test_a_name_with_blanks_and_parentheses_does_not_hide_the_start(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        since_boot_s = psutil.Process(process.pid).create_time() - psutil.boot_time()
        assert ProcessRecord.of(process.pid).started_at == pytest.approx(since_boot_s, abs=1.5)
        process.kill()


@pytest.mark.parametrize("boot_id", ["", "0e57ad4c-9c5e-4f0b-8a51-4a6f2d9be0a1"])
def test_a_token_names_the_very_record(boot_id: str) -> None:
    record = ProcessRecord(pid=4242, started_at=123456.78, boot_id=boot_id)
    assert record.token == f"{boot_id}/4242/123456.78"
    assert ProcessRecord.of_token(record.token) == record


@pytest.mark.parametrize("text", ["", "4242", "a/b/c", "a/1/2/3", "a/1/soon"])
def test_other_text_is_no_token(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ProcessRecord.of_token(text)
