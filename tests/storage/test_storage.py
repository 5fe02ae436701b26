"""Storage errors and kept folders: each refusal has its status, and nothing is made in another folder's place."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from common_lib.exceptions import StorageError, StorageFullError
from common_lib.sqlite_store import Schema, SqliteStore, Table
from common_lib.storage import (
    WORD_FILE,
    FolderGoneError,
    check_there,
    keep,
    keep_as_child,
    let_go,
    make_folder,
    storage_error,
    told_to_children,
)
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, Who
from ml_workbench_service.api.errors import unexpected
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.integrations.kept_folder import KeptFolder
from ml_workbench_service.jobs.durable_files import append_line, write_whole
from ml_workbench_service.jobs.handed_in import HANDED_IN_FILE, waits
from ml_workbench_service.jobs.job import JobFolder
from tests.storage.disks import no_file_over

STORE = Schema("sort of notes", (Table("notes", {"text": "TEXT"}),))


@pytest.fixture
def kept(tmp_path: Path):
    folder = tmp_path / "state"
    folder.mkdir()
    keep(folder)
    yield folder
    let_go(folder)


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EFBIG, 507), (errno.EIO, 503), (errno.EROFS, 503),
     (errno.EACCES, 503), (errno.ENOENT, 503), (errno.EMFILE, 503), (errno.ESTALE, 503), (errno.ENOTDIR, 503)],
)  # fmt: skip
def test_every_refusal_of_the_system_has_its_status(number: int, status: int) -> None:
    answer = unexpected(OSError(number, "refused"))
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (status, True)


def test_a_database_that_cannot_be_written_has_its_status(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "some.db") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
        database.execute("INSERT INTO notes VALUES (?)", ["x" * 100_000])
        with no_file_over(0), pytest.raises(sqlite3.Error) as refused:
            database.commit()
        database.rollback()
    assert storage_error(refused.value).status in (503, 507)


def in_a_kept_folder(folder: Path) -> dict[str, object]:
    """Ways of writing, by name."""
    spec = JobSpec(id="job", kind=JobKind.TRAIN, request={}, plan={}, created_at=utc_now(), correlation_id="corr")
    return {
        "a whole file": lambda: write_whole(folder / "file", b"x"),
        "a line": lambda: append_line(folder / "lines", "x"),
        "a folder": lambda: make_folder(folder / "deep" / "er"),
        "a job": lambda: JobFolder.create(folder / "jobs", spec),
        "a database": SqliteStore(folder / "new.db", STORE, timeout_s=1).create,
        "an entry of the audit log": lambda: AuditLog(folder / AUDIT_FILE).append("noted", "x", Who("nobody")),
    }


@pytest.mark.parametrize("what", list(in_a_kept_folder(Path("/nowhere"))))
@pytest.mark.parametrize("at_its_place", ["nothing", "another folder"])
def test_nothing_is_made_where_a_kept_folder_was(kept: Path, what: str, at_its_place: str) -> None:
    write = in_a_kept_folder(kept)[what]
    away = kept.rename(kept.with_name("away"))
    if at_its_place == "another folder":
        kept.mkdir()
    with (
        pytest.raises((FolderGoneError, StorageError))
        if what != "an entry of the audit log"
        else pytest.raises(Exception, match="was removed, or its disk was taken away")
    ):
        write()  # type: ignore[operator]
    assert not kept.exists() or not list(kept.iterdir())
    if kept.exists():
        kept.rmdir()
    away.rename(kept)
    write()  # type: ignore[operator]
    assert {each.name for each in kept.iterdir()} > {WORD_FILE}


def test_a_folder_moved_to_another_disk_with_all_it_holds_is_the_same(kept: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / WORD_FILE).write_bytes((kept / WORD_FILE).read_bytes())
    kept.rename(tmp_path / "old")
    copied.rename(kept)
    check_there(kept)


def test_neighbours_of_a_kept_folder_are_nobodys_concern(kept: Path, tmp_path: Path) -> None:
    kept.rename(tmp_path / "away")
    check_there(tmp_path / "state_of_others")
    with pytest.raises(FolderGoneError):
        check_there(kept / "below")


def test_a_child_believes_the_word_of_the_folder_that_it_was_told_of_alone(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told_to_children(kept).items():
        monkeypatch.setenv(name, value)
    own = tmp_path / "own"  # as a run of faults has one, whose processes inherit the variable
    own.mkdir()
    (own / WORD_FILE).write_bytes(b"another word")
    keep_as_child(own)
    check_there(own / "below")
    let_go(own)
    (kept / WORD_FILE).write_bytes(b"another word")
    keep_as_child(kept)
    with pytest.raises(FolderGoneError):
        check_there(kept / "below")


def test_a_version_still_waits_while_its_folder_is_away(kept: Path, tmp_path: Path) -> None:
    file = kept / HANDED_IN_FILE
    assert not waits(file)
    file.write_text("{}")
    assert waits(file)
    kept.rename(tmp_path / "away")
    assert waits(file)


def test_a_watched_folder_says_when_it_was_last_well(tmp_path: Path) -> None:
    watch = KeptFolder(tmp_path / "state", "STATE_DIR")
    (tmp_path / "state").mkdir()
    try:
        watch.open()
        well = watch.thing()
        assert (well.state, well.last_ok_at is not None) == ("ok", True)
        (tmp_path / "state").rename(tmp_path / "away")
        watch.look()
        gone = watch.thing()
        assert (gone.state, gone.last_ok_at, watch.is_gone) == ("down", well.last_ok_at, True)
        assert "bring it back" in gone.detail
        (tmp_path / "away").rename(tmp_path / "state")
        watch.look()
        assert watch.thing().state == "ok"
    finally:
        watch.close()


def test_a_folder_that_can_be_done_without_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry"
    watch = KeptFolder(registry, "MODEL_REGISTRY_PATH", is_needed=False)
    watch.open()
    try:
        assert registry.is_dir(), "an empty one is made, and kept"
        before = registry.stat().st_mtime_ns
        watch.look()
        assert (watch.thing().state, registry.stat().st_mtime_ns) == ("ok", before), "nothing is written into it"
        monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may everything
        watch.look()
        assert watch.thing().state == "degraded"
        assert "nothing is published or deployed" in watch.thing().detail
        registry.rename(tmp_path / "away")
        watch.look()
        assert (watch.thing().state, watch.is_gone) == ("down", True)
    finally:
        watch.close()


def test_a_child_is_told_of_each_folder_that_is_kept(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    keep(other)
    (told,) = told_to_children(kept, other, tmp_path / "nobodys").items()
    let_go(kept)
    let_go(other)
    monkeypatch.setenv(*told)
    for folder in (kept, other):
        folder.rename(tmp_path / f"{folder.name}-away")
    keep_as_child(kept, other)
    for folder in (kept, other):
        with pytest.raises(FolderGoneError):
            check_there(folder / "below")
        let_go(folder)


def test_a_full_disk_is_507_and_leaves_files_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    append_line(file, "first")
    with no_file_over(file.stat().st_size + 3), pytest.raises(StorageFullError):
        append_line(file, "second")
    assert file.read_text() == "first\n"
    with no_file_over(2), pytest.raises(StorageFullError):
        write_whole(tmp_path / "whole", b"four")
    assert [each.name for each in tmp_path.iterdir()] == ["lines"]
