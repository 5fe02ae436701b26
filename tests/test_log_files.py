"""Log files that several processes write and one rotates: every line once, in order; a full disk loses and says so."""

import logging
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from common_lib.log_files import LOG_FILES, LogFile, LogRotation

NUM_WRITERS, NUM_LINES = 3, 1500
WRITER = """
import logging, sys
from pathlib import Path
from common_lib.logging import QUEUE_LOGGER, configure_logging, log_events
configure_logging(level="INFO", log_dir=Path(sys.argv[1]), to_stderr=False)
log, number = logging.getLogger(QUEUE_LOGGER), 0
sys.stdin.readline()
while number < {num}:
    log.info("line", extra={{"writer": sys.argv[2], "number": number}})
    batch = [("line", sys.argv[2], each) for each in range(number + 1, min(number + 8, {num}))]
    log_events(log, logging.INFO, ("writer", "number"), batch)
    number += 1 + len(batch)
"""
FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from common_lib.log_files import LogFile
handler = LogFile(Path(sys.argv[1]))
logger = logging.Logger("tests")
logger.addHandler(handler)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
logger.info("a" * 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, unlimited[1]))
logger.info("b" * 30)
handler.append(["c" * 30, "d" * 30])
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
logger.info("e" * 30)
logger.info("f" * 30)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


def newest_last(folder: Path, name: str) -> list[Path]:
    """A log's files in the order in which they were written."""

    def age(path: Path) -> int:
        return int(path.name.removeprefix(name).removeprefix(".") or 0)

    return sorted(folder.glob(f"{name}*"), key=age, reverse=True)


def test_several_processes_write_while_one_rotates_and_every_line_is_there_once_in_order(tmp_path: Path) -> None:
    name = "queue_processing.log"
    rotation = LogRotation(tmp_path, max_bytes=1000, num_kept=10_000)
    writers = [start(WRITER.format(num=NUM_LINES), str(tmp_path), str(each)) for each in range(NUM_WRITERS)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    num_rotations = 0
    while any(writer.poll() is None for writer in writers):
        num_rotations += len(rotation.rotate_if_due())
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, "")
    seen: dict[str, list[int]] = defaultdict(list)
    for path in newest_last(tmp_path, name):
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"\S+ INFO    ml_workbench\.queue: line writer=(\d) number=(\d+)", line)
            assert match is not None, line
            seen[match[1]].append(int(match[2]))
    assert seen == {str(each): list(range(NUM_LINES)) for each in range(NUM_WRITERS)}
    assert num_rotations >= 3, "too few rotations to prove anything"


def test_a_line_that_another_is_just_writing_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "service.log"
    path.write_text("half of a l")

    def the_other_goes_on(_: float) -> None:
        with path.open("a", encoding="utf-8") as other:
            other.write("ine\n")

    monkeypatch.setattr("common_lib.log_files.time.sleep", the_other_goes_on)
    logger = logging.Logger("tests")
    handler = LogFile(path)
    logger.addHandler(handler)
    logger.info("mine")
    handler.close()
    assert path.read_text(encoding="utf-8") == "half of a line\nmine\n"


def test_a_file_is_rotated_at_its_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    rotation = LogRotation(tmp_path, max_bytes=10, num_kept=2)
    log = tmp_path / "service.log"
    assert rotation.rotate_if_due() == ()
    for number in range(4):
        log.write_text(f"{number}")
        assert rotation.rotate_if_due() == ()
        log.write_text(f"{number}234567890")
        assert rotation.rotate_if_due() == ("service.log",)
        assert not log.exists()
    assert {path.name: path.read_text()[0] for path in tmp_path.iterdir()} == {
        "service.log.1": "3",
        "service.log.2": "2",
    }


def test_each_log_is_rotated_by_itself_and_nothing_else_is_touched(tmp_path: Path) -> None:
    for name in (*LOG_FILES, "service.log.old", "worker.log"):
        (tmp_path / name).write_text("x" * 20)
    (tmp_path / "rl_training.log").write_text("x")
    assert LogRotation(tmp_path, max_bytes=10, num_kept=5).rotate_if_due() == ("service.log", "queue_processing.log")
    assert {path.name for path in tmp_path.iterdir()} == {
        "service.log.1", "queue_processing.log.1", "rl_training.log", "service.log.old", "worker.log",
    }  # fmt: skip


def test_keeping_fewer_files_than_before_removes_the_rest_and_a_gap_loses_nothing(tmp_path: Path) -> None:
    for suffix in ("", ".1", ".3", ".7", ".12"):
        (tmp_path / f"service.log{suffix}").write_text(f"was {suffix}")
    LogRotation(tmp_path, max_bytes=1, num_kept=4).rotate_if_due()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "service.log.1": "was ", "service.log.2": "was .1", "service.log.4": "was .3",
    }  # fmt: skip


def test_two_that_rotate_the_same_folder_take_turns(tmp_path: Path) -> None:
    log, begun = tmp_path / "service.log", threading.Barrier(4)

    def rotate() -> None:
        rotation = LogRotation(tmp_path, max_bytes=2, num_kept=1000)
        begun.wait()
        for _ in range(200):
            rotation.rotate_if_due()

    others = [threading.Thread(target=rotate) for _ in range(3)]
    for other in others:
        other.start()
    begun.wait()
    handler = LogFile(log)
    for number in range(300):
        handler.append([str(number)])
    for other in others:
        other.join()
    handler.close()
    assert [line for path in newest_last(tmp_path, log.name) for line in path.read_text().split()] == [
        str(number) for number in range(300)
    ]


def test_a_rotation_that_cannot_be_done_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rotation = LogRotation(tmp_path / "away", max_bytes=1, num_kept=1)
    with caplog.at_level(logging.WARNING):
        assert [rotation.rotate_if_due() for _ in range(3)] == [(), (), ()]
    assert len(caplog.messages) == 1
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "service.log").write_text("x")
    assert rotation.rotate_if_due() == ("service.log",)


@pytest.mark.parametrize(("max_bytes", "num_kept"), [(0, 1), (1, 0)])
def test_a_rotation_that_would_throw_lines_away_is_refused(tmp_path: Path, max_bytes: int, num_kept: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        LogRotation(tmp_path, max_bytes=max_bytes, num_kept=num_kept)


def test_lines_that_found_no_room_are_counted_and_said_once_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "service.log"
    path.symlink_to("/dev/full")
    handler = LogFile(path)
    logger = logging.Logger("tests")
    logger.addHandler(handler)
    for number in range(5):
        logger.info("lost %d", number)
    handler.append(["lost 5", "lost 6"])
    assert handler.num_lost == 7
    path.unlink()
    logger.info("first")
    logger.info("second")
    handler.close()
    assert path.read_text().splitlines() == ["7 lines found no room on the disk and are lost", "first", "second"]
    assert capsys.readouterr().err == ""


def test_a_line_that_the_full_disk_cut_off_ends_where_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    process = start(FULL_DISK, str(path))
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    said = path.read_text().splitlines()
    note = "3 lines found no room on the disk and are lost"
    assert said == ["a" * 30, "b" * 19, note, "e" * 30, "f" * 30]


def test_a_line_that_another_process_left_unfinished_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_text("whole\ntorn")
    handler = LogFile(path)
    handler.append(["next"])
    handler.close()
    assert path.read_text() == "whole\ntorn\nnext\n"


def test_a_folder_that_went_away_loses_lines_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "service.log"
    path.parent.mkdir()
    handler = LogFile(path)
    path.unlink()
    path.parent.rmdir()
    handler.append(["lost"])
    path.parent.mkdir()
    handler.append(["kept"])
    handler.close()
    assert path.read_text().splitlines()[-1] == "kept"
    assert "1 lines found no room" in path.read_text()
