"""Audit log: a chain that kills do not break and changes do, written by several processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common_lib.exceptions import ConflictError, UnavailableError
from common_lib.redaction import keep_secret
from ml_workbench_service.access.audit_log import AUDIT_FILE, NOTHING, AuditLog, Who, verify
from ml_workbench_service.contracts.audit import AuditHead

WHO = Who("0123abcd", "engine", "127.0.0.1")
APPENDING = """
import sys
from pathlib import Path
from ml_workbench_service.access.audit_log import AuditLog, Who
log = AuditLog(Path(sys.argv[1]))
for number in range(20):
    log.append("noted", f"{sys.argv[2]} {number}", Who("command_line"))
"""


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / AUDIT_FILE)


def fill(log: AuditLog, num: int) -> None:
    for number in range(num):
        log.append("noted", f"change {number}", WHO, before=None, after={"number": number})


def test_an_empty_log_is_whole(log: AuditLog) -> None:
    report = verify(log.path)
    assert (report.is_whole, report.num_entries, report.head) == (True, 0, NOTHING)


def test_entries_follow_each_other(log: AuditLog) -> None:
    fill(log, 5)
    report = verify(log.path)
    assert (report.is_whole, report.num_entries, report.num_torn) == (True, 5, 0)
    assert report.head == log.head()
    assert [each.number for each in log.newest(num=3)] == [5, 4, 3]
    assert [each.number for each in log.newest(num=9, before=3)] == [2, 1]
    assert log.newest(num=1)[0].after == {"number": 4}


@pytest.mark.parametrize("kind", ["changed", "taken out", "put in twice", "moved", "number changed"])
def test_a_change_in_the_middle_is_found(log: AuditLog, kind: str) -> None:
    fill(log, 6)
    lines = log.path.read_bytes().splitlines(keepends=True)
    if kind == "changed":
        lines[2] = lines[2].replace(b"engine", b"nobody")
    elif kind == "taken out":
        del lines[2]
    elif kind == "put in twice":
        lines.insert(2, lines[2])
    elif kind == "moved":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        lines[2] = lines[2].replace(b'"number":3', b'"number":4', 1)
    log.path.write_bytes(b"".join(lines))
    report = verify(log.path)
    assert not report.is_whole
    assert report.faults[0].line in (3, 4)


def test_an_end_that_was_cut_off_is_found_by_a_head_that_was_kept(log: AuditLog) -> None:
    fill(log, 4)
    kept = log.head()
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:3]))
    assert verify(log.path).is_whole, "the chain alone cannot know"
    assert not verify(log.path, kept=kept).is_whole
    assert verify(log.path, kept=log.head()).is_whole
    assert not verify(log.path, kept=AuditHead(number=3, hash="f" * 64)).is_whole


@pytest.mark.parametrize("left", [1, 20, 200])
def test_a_line_that_a_kill_cut_off_breaks_nothing(log: AuditLog, left: int) -> None:
    fill(log, 3)
    whole = log.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:2]) + lines[2][:left])
    again = AuditLog(log.path)
    again.append("noted", "after the kill", WHO)
    report = verify(log.path)
    assert (report.is_whole, report.num_entries, report.num_torn) == (True, 3, 1)
    assert again.newest(num=1)[0].number == 3


def test_threads_and_processes_make_one_chain(log: AuditLog) -> None:
    threads = [threading.Thread(target=fill, args=(log, 20)) for _ in range(4)]
    others = [subprocess.Popen([sys.executable, "-c", APPENDING, str(log.path), name]) for name in ("a", "b")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.wait(120) for each in others] == [0, 0]
    report = verify(log.path)
    assert (report.is_whole, report.num_entries) == (True, 120)


def test_long_values_are_cut_and_secrets_taken_out(log: AuditLog) -> None:
    keep_secret("canary-of-the-audit")
    log.append("noted", "x", WHO, after={"long": "y" * 100_000, "said": "canary-of-the-audit"})
    log.append("noted", "x", WHO, after={"said": "canary-of-the-audit"})
    assert len(log.path.read_bytes()) < 20_000
    assert b"canary-of-the-audit" not in log.path.read_bytes()
    assert verify(log.path).is_whole


def test_backwards_is_forwards_over_blocks(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    from ml_workbench_service.access import audit_log

    fill(log, 30)
    monkeypatch.setattr(audit_log, "BLOCK_BYTES", 97)
    assert [each.number for each in log.newest(num=100)] == list(range(30, 0, -1))


def test_what_cannot_be_written_is_said(log: AuditLog) -> None:
    log.path.mkdir()
    with pytest.raises(UnavailableError, match="audit log"):
        log.append("noted", "x", WHO)


def test_a_change_stands_between_its_two_lines(log: AuditLog) -> None:
    with log.change("x removed", WHO, on="x", before={"size": 3}) as change:
        (asked,) = log.newest(num=9)
        assert (asked.event, asked.what, asked.on, asked.before) == ("asked", "x removed", "x", {"size": 3})
        change.after = {"size": 0}
    done = log.newest(num=1)[0]
    assert (done.event, done.of, done.status, done.after) == ("done", asked.number, 200, {"size": 0})
    assert done.key == asked.key == WHO.key


@pytest.mark.parametrize(("error", "status"), [(ConflictError("it is in use"), 409), (ValueError("unforeseen"), 500)])
def test_a_change_that_failed_says_so(log: AuditLog, error: Exception, status: int) -> None:
    with pytest.raises(type(error)), log.change("x removed", WHO, on="x"):
        raise error
    done, asked = log.newest(num=9)
    assert (done.of, done.status, done.after) == (asked.number, status, {"error": str(error)})


def test_a_change_that_a_kill_cut_short_has_been_asked(log: AuditLog) -> None:
    with pytest.raises(KeyboardInterrupt), log.change("x removed", WHO, on="x"):
        raise KeyboardInterrupt
    (asked,) = log.newest(num=9)
    assert asked.event == "asked"


def test_nothing_is_changed_that_cannot_be_noted(log: AuditLog) -> None:
    log.path.mkdir()
    with pytest.raises(UnavailableError), log.change("x removed", WHO, on="x"):
        pytest.fail("the block ran")


def test_what_was_changed_stands_where_its_end_cannot_be_noted(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    with log.change("x removed", WHO, on="x"):
        log.path.rename(log.path.with_name("away"))
        log.path.mkdir()
    assert "entry 1 of the audit log has no end" in caplog.text
