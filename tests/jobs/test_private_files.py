"""Private files: nobody else's, neither new ones nor those that an earlier version left."""

import os
import stat
from pathlib import Path

from ml_workbench_service.jobs.private_files import narrow


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(each.stat().st_mode) for each in (root, *root.rglob("*"))}


def opened_up(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    return folder


def test_what_is_there_is_narrowed(tmp_path: Path) -> None:
    state = opened_up(tmp_path / "state", "a", "jobs/one/request.json")
    logs = opened_up(tmp_path / "logs", "service.log", "service.log.1")
    narrow([state, tmp_path / "absent"], log_dir=logs, log_names=("service.log",)).join()
    assert modes(state) == modes(logs) == {0o700, 0o600}


def test_a_folder_of_others_logs_stays_as_it_is(tmp_path: Path) -> None:
    logs = opened_up(tmp_path / "log", "service.log", "kernel.log")
    narrow([], log_dir=logs, log_names=("service.log",)).join()
    assert stat.S_IMODE(logs.stat().st_mode) == 0o755
    assert stat.S_IMODE((logs / "kernel.log").stat().st_mode) == 0o644
    assert stat.S_IMODE((logs / "service.log").stat().st_mode) == 0o600


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = opened_up(tmp_path / "outside", "file")
    state = opened_up(tmp_path / "state", "a")
    os.symlink(outside / "file", state / "link")
    os.symlink(outside, state / "folder")
    narrow([state], log_dir=tmp_path / "none", log_names=()).join()
    assert modes(outside) == {0o755, 0o644}
