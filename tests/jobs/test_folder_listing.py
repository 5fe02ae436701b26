"""A folder's names, from memory while it is quiet, and never wrong: whoever changes it, and however soon."""

import os
import time
from pathlib import Path

import pytest

from ml_workbench_service.jobs import folder_listing
from ml_workbench_service.jobs.folder_listing import WatchedFolder
from tests.quiet_folders import make_quiet


def test_a_quiet_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").touch()
    make_quiet(tmp_path)
    watched = WatchedFolder(tmp_path)
    first = watched.look()
    assert first.names == {"one"}
    monkeypatch.setattr(os, "listdir", lambda _: pytest.fail("it was listed again"))
    assert watched.look() is first


def test_a_change_is_seen_whoever_makes_it(tmp_path: Path) -> None:
    watched = WatchedFolder(tmp_path)
    make_quiet(tmp_path)
    assert watched.look().names == set()
    os.spawnlp(os.P_WAIT, "touch", "touch", str(tmp_path / "by_another_process"))
    assert watched.look().names == {"by_another_process"}
    make_quiet(tmp_path)
    (tmp_path / "by_another_process").rename(tmp_path / "renamed")
    assert watched.look().names == {"renamed"}
    make_quiet(tmp_path)
    (tmp_path / "renamed").unlink()
    assert watched.look().names == set()


def test_a_change_within_the_same_tick_is_seen(tmp_path: Path) -> None:
    """The time of change stays as it was: so coarse are the clocks of file systems."""
    watched = WatchedFolder(tmp_path)
    before = watched.look()
    assert not before.is_quiet
    (tmp_path / "one").touch()
    os.utime(tmp_path, ns=(before.stamp[2], before.stamp[2]) if before.stamp else None)
    assert watched.look().names == {"one"}


def test_who_is_held_up_between_the_look_at_the_time_and_the_names_trusts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").touch()
    began_ns = time.time_ns()
    monkeypatch.setattr(folder_listing.time, "time_ns", lambda: began_ns)
    assert not WatchedFolder(tmp_path).look().is_quiet


def test_a_folder_that_is_not_there_has_no_names_until_it_is(tmp_path: Path) -> None:
    watched = WatchedFolder(tmp_path / "later")
    assert watched.look().names == set()
    (tmp_path / "later").touch()
    assert watched.look().names == set()
    (tmp_path / "later").unlink()
    (tmp_path / "later" / "inside").mkdir(parents=True)
    assert watched.look().names == {"inside"}
