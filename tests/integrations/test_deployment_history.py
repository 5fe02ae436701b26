"""The deployment history: append-only lines of which the newest of each deployment holds, whatever tears them."""

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import ConflictError, DeploymentNotFoundError
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.integrations import deployment_history
from ml_workbench_service.integrations.deployment_history import HISTORY_FILE, DeploymentHistory
from tests.integrations.model_cards import MOMENT
from tests.integrations.registry_places import REGISTRIES, OpenPlace

STATUSES = ("pending", "live", "failed", "superseded", "rolled_back")


def deployment(number: int = 0, status: str = "live", **changes: Any) -> Deployment:
    """Deployment `number` of version 1.<number>.0, made so many seconds after the others' moment."""
    fields: dict[str, Any] = {
        "id": f"deployment-{number}",
        "model_id": "model",
        "version": f"1.{number}.0",
        "deployment_target": "local",
        "status": status,
        "previous_version": None,
        "created_at": MOMENT + timedelta(seconds=number),
    }
    return Deployment.model_validate(fields | changes)


@pytest.fixture
def history(request: pytest.FixtureRequest, tmp_path: Path, registry_places: OpenPlace) -> DeploymentHistory:
    """An empty history, of a folder unless a test runs over all kinds (`over_all`)."""
    kind = getattr(request, "param", "folder")
    return DeploymentHistory(tmp_path) if kind == "folder" else registry_places(kind, tmp_path).history()


over_all = pytest.mark.parametrize("history", REGISTRIES, indirect=True)
"""Laws that the history of every registry keeps, wherever it lies."""


@over_all
def test_without_a_file_nothing_is_live(history: DeploymentHistory) -> None:
    assert (history.live("model"), history.live_version("model"), history.of("model")) == (None, None, [])
    assert history.everything() == []
    with pytest.raises(DeploymentNotFoundError, match="/api/v1/deployments"):
        history.get("deployment-0")


@over_all
def test_the_newest_line_of_a_deployment_holds(history: DeploymentHistory) -> None:
    history.append(deployment(0, "pending"))
    assert history.live("model") is None
    history.append(deployment(0))
    assert history.live_version("model") == "1.0.0"
    history.append(deployment(1, "pending"))
    history.append(deployment(0, "superseded"), deployment(1))
    assert history.live_version("model") == "1.1.0"
    assert [(each.version, each.status) for each in history.of("model")] == [
        ("1.0.0", "superseded"),
        ("1.1.0", "live"),
    ]
    assert history.get("deployment-0").status == "superseded"
    assert [each.version for each in history.everything()] == ["1.1.0", "1.0.0"]


@over_all
def test_models_have_files_of_their_own(history: DeploymentHistory) -> None:
    history.append(deployment(0))
    history.append(deployment(1, model_id="other"))
    assert (history.live_version("model"), history.live_version("other")) == ("1.0.0", "1.1.0")
    assert [each.model_id for each in history.everything()] == ["other", "model"]


def test_another_writer_of_the_same_files_is_seen_at_once(history: DeploymentHistory) -> None:
    other = DeploymentHistory(history.root)
    for number in range(20):
        history.append(deployment(number, "pending"))
        other.append(deployment(number - 1, "superseded"), deployment(number))
        assert history.live_version("model") == other.live_version("model") == f"1.{number}.0"


def test_a_list_passes_over_models_that_never_were_deployed_until_another_writer_deploys_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / f"model-{number}").mkdir()
    history, other = DeploymentHistory(tmp_path), DeploymentHistory(tmp_path)
    for round_number in range(5):
        os.utime(tmp_path, (0, 0))  # quiet for long
        looked = numbers_of_looks(history, monkeypatch)
        assert (looked, numbers_of_looks(history, monkeypatch)) == (50 + round_number, round_number)
        other.append(deployment(model_id=f"model-{round_number}"))
        assert len(history.everything()) == round_number + 1


def numbers_of_looks(history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many models' files and folders a list looks at."""
    before, looked = history._folded, []
    with monkeypatch.context() as patched:
        patched.setattr(history, "_folded", lambda model_id: looked.append(model_id) or before(model_id))
        history.everything()
    return len(looked)


def test_a_history_that_is_copied_by_hand_is_listed_in_the_end(
    history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.append(deployment(0))
    (history.root / "other").mkdir()
    os.utime(history.root, (0, 0))
    assert len(history.everything()) == 1
    (history.root / "other" / HISTORY_FILE).write_bytes((history.root / "model" / HISTORY_FILE).read_bytes())
    monkeypatch.setattr(deployment_history, "LOOK_AGAIN_S", 0.0)
    assert len(history.everything()) == 2


def test_a_torn_last_line_is_skipped_and_the_next_writer_begins_anew(history: DeploymentHistory) -> None:
    history.append(deployment(0))
    file = history.root / "model" / HISTORY_FILE
    line = deployment(1).model_dump_json().encode()
    with file.open("ab") as stream:
        stream.write(line[: len(line) // 2])
    assert history.live_version("model") == "1.0.0"
    history.append(deployment(0, "superseded"), deployment(2))
    for each in (history, DeploymentHistory(history.root)):
        assert [(d.version, d.status) for d in each.of("model")] == [("1.0.0", "superseded"), ("1.2.0", "live")]


def test_a_whole_line_that_lacks_only_its_end_counts_once(history: DeploymentHistory) -> None:
    file = history.root / "model" / HISTORY_FILE
    file.parent.mkdir()
    file.write_bytes(deployment(0).model_dump_json().encode())
    assert history.live_version("model") == "1.0.0"
    history.append(deployment(0, "superseded"), deployment(1))
    assert [(d.version, d.status) for d in history.of("model")] == [("1.0.0", "superseded"), ("1.1.0", "live")]


def test_a_file_restored_from_a_backup_is_read_anew(history: DeploymentHistory) -> None:
    file = history.root / "model" / HISTORY_FILE
    history.append(deployment(0))
    backup = file.read_bytes()
    history.append(deployment(0, "superseded"), deployment(1))
    assert history.live_version("model") == "1.1.0"
    file.write_bytes(backup)
    assert history.live_version("model") == "1.0.0"
    file.write_bytes(b"".join(deployment(9, status).model_dump_json().encode() + b"\n" for status in STATUSES[:2]))
    assert history.live_version("model") == "1.9.0"  # longer, and still another file
    assert len(history.of("model")) == 1
    file.unlink()
    assert history.live_version("model") is None
    staged = file.with_suffix(".new")
    staged.write_bytes(deployment(7).model_dump_json().encode() * 9 + b"\n" + backup)
    staged.replace(file)
    assert history.live_version("model") == "1.0.0"


def test_a_write_seen_half_done_never_leaves_a_model_without_a_live_version(history: DeploymentHistory) -> None:
    file = history.root / "model" / HISTORY_FILE
    history.append(deployment(0))
    history.append(deployment(1, "pending"))
    before = file.read_bytes()
    history.append(deployment(1, live_at=MOMENT), deployment(0, "superseded", ended_at=MOMENT))
    whole = file.read_bytes()
    seen = set()
    for length in range(len(before), len(whole) + 1, 7):
        file.write_bytes(whole[:length])
        found = {each.version: (each.status, each.ended_at) for each in DeploymentHistory(history.root).of("model")}
        seen.add((found["1.0.0"], found["1.1.0"]))
    superseded, live = ("superseded", MOMENT), ("live", None)
    assert seen == {(live, ("pending", None)), (superseded, live)}


LINES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(STATUSES), st.sampled_from(["whole", "torn", "look"])), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(lines=LINES)
def test_reading_as_it_grows_is_reading_it_whole(tmp_path_factory: pytest.TempPathFactory, lines: Any) -> None:
    history = DeploymentHistory(tmp_path_factory.mktemp("history"))
    file = history.root / "model" / HISTORY_FILE
    newest: dict[str, str] = {}
    for number, status, manner in lines:
        each = deployment(number, status)
        if manner == "torn":
            file.parent.mkdir(exist_ok=True)
            with file.open("ab") as stream:
                is_torn = stream.tell() and not file.read_bytes().endswith(b"\n")
                stream.write((b"\n" if is_torn else b"") + each.model_dump_json().encode()[:-5])
        else:
            history.append(each)
            if status == "live":
                newest = {id: "superseded" if before == "live" else before for id, before in newest.items()}
            newest[each.id] = status
        if manner != "whole":
            history.live("model")  # a look in between: the rest is read from here on
    expected = list(newest.items())
    live = [id for id, status in expected if status == "live"]
    for reader in (history, DeploymentHistory(history.root)):
        assert [(each.id, each.status) for each in reader.of("model")] == expected
        found = reader.live("model")
        assert (found.id if found else None) == (live[-1] if live else None)


def test_a_long_history_is_read_once(history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        history.append(deployment(number, "superseded"))
    history.append(deployment(2000))
    assert history.live_version("model") == "1.2000.0"
    monkeypatch.setattr(Path, "open", None)  # a stat each, 20 µs here; reading the lines again took seconds
    monkeypatch.setattr(Path, "read_bytes", None)
    for _ in range(1000):
        assert history.live("model") is not None


@over_all
def test_the_lock_is_exclusive_over_threads(history: DeploymentHistory) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        with history.locked("model"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


HOLDING = """
import sys, time
from pathlib import Path
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
with DeploymentHistory(Path(sys.argv[1])).locked("model"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_is_exclusive_over_processes_and_ends_with_them(
    history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_history, "LOCK_TIMEOUT_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(history.root)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match="under way"), history.locked("model"):
            pass
        with history.locked("other"):  # another model is free
            pass
        holder.kill()
    with history.locked("model"):
        pass


def test_answers_see_an_own_line_at_once_and_another_writers_a_moment_later(
    history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(deployment_history.time, "monotonic", lambda: now_s)
    assert history.live_lately("model") is None
    history.append(deployment(0))
    assert history.live_lately("model") == deployment(0)
    DeploymentHistory(history.root).append(deployment(1))
    assert history.live_lately("model") == deployment(0)
    now_s += deployment_history.WATCH_S
    assert history.live_lately("model") == deployment(1)


@over_all
def test_what_was_read_before_a_line_was_there_is_not_kept(
    history: DeploymentHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = history.live

    def overtaken(model_id: str) -> Deployment | None:
        before = plain(model_id)
        history.append(deployment(0))
        return before

    monkeypatch.setattr(history, "live", overtaken)
    history.live_lately("model")
    monkeypatch.setattr(history, "live", plain)
    assert history.live_lately("model") == deployment(0)
