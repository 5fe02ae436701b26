"""Backup archives: what is written is what comes back, into empty places alone, and nothing that is damaged."""

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from common_lib.exceptions import ConflictError, DataValidationError, UnavailableError
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog
from ml_workbench_service.contracts.contract import iso, utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.integrations.backup_archive import ArchiveWriter, BackupManifest, verified
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.workflows.back_up_state import NOBODY, back_up
from ml_workbench_service.workflows.restore_state import RESTORING, restore
from tests.previous_version.reading import DATA
from tests.redis_server import installed_servers

pytestmark = pytest.mark.more

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"process.json", "worker.json"}


class Place:
    """A state folder and a registry beside each other."""

    def __init__(self, folder: Path) -> None:
        self.state, self.registry = folder / "state", folder / "registry"

    def back_up(self, target: Path, **arguments: Any) -> BackupManifest:
        return back_up(self.state, self.registry, target, **arguments)

    def restore(self, archive: Path) -> BackupManifest:
        return restore(archive, self.state, self.registry)


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """What version 0.1.0 left."""
    for name in ("state", "registry"):
        shutil.copytree(DATA / name, tmp_path / "here" / name)
    return Place(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Place:
    """Where nothing is."""
    return Place(tmp_path / "there")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole archive, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("archive")
    back_up(DATA / "state", DATA / "registry", folder / "whole.tar")
    return folder / "whole.tar"


def contents(folder: Path) -> dict[str, bytes | list[str]]:
    """Every file below a folder: databases by what they say, others by their bytes."""
    found: dict[str, bytes | list[str]] = {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file() and each.name not in LEFT_OUT):
        name = str(file.relative_to(folder))
        if file.suffix == ".db":
            with closing(sqlite3.connect(file)) as connection:
                found[name] = list(connection.iterdump())
        elif not name.endswith(("-wal", "-shm")):
            found[name] = file.read_bytes()
    return found


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz"])
def test_what_is_written_comes_back(name: str, here: Place, there: Place, tmp_path: Path) -> None:
    (here.state / "notes.txt").write_text("of the user")
    (here.state / "service.lock").touch()
    (here.registry / ".staging" / "draft").mkdir(parents=True)
    (here.registry / ".staging" / "draft" / "card.json").touch()
    manifest = here.back_up(tmp_path / name)
    assert (manifest.queue, manifest.damaged) == ("included", ())
    assert there.restore(tmp_path / name) == manifest
    (here.state / "service.lock").unlink()
    shutil.rmtree(here.registry / ".staging")
    restored = contents(there.state)
    (line,) = AuditLog(there.state / AUDIT_FILE).newest(num=9)
    assert restored.pop(AUDIT_FILE)
    assert restored == contents(here.state)
    assert (line.what, line.on, line.key) == ("state restored from a backup", name, "command_line")
    assert line.before == {"number": 0, "hash": "0" * 64}
    assert (line.after["num_files"], line.after["created_at"]) == (len(manifest.files), iso(manifest.created_at))
    assert contents(there.registry) == contents(here.registry)
    assert not [*there.state.rglob("process.json"), *there.state.rglob(".*"), *there.registry.rglob(".*")]


def test_no_process_of_another_place_is_named(here: Place, there: Place, tmp_path: Path) -> None:
    spec = JobSpec(
        id="unfinished", kind=JobKind.REPLAY, request={}, plan={}, created_at=utc_now(), correlation_id="c"
    )  # fmt: skip
    job = JobFolder.create(here.state / "jobs", spec)
    job.record_worker(attempt=2)
    job.beat()
    here.back_up(tmp_path / "backup.tar")
    there.restore(tmp_path / "backup.tar")
    restored = JobFolder(there.state / "jobs" / "unfinished")
    worker = restored.worker()
    assert worker is not None
    assert (worker.attempt, worker.is_alive, restored.is_beating, restored.has_ended) == (2, False, False, False)
    for file in there.state.rglob("worker.json"):
        assert json.loads(file.read_text()).items() >= NOBODY.items()


def test_a_version_that_is_not_what_was_published_is_named(here: Place, tmp_path: Path) -> None:
    weights = here.registry / "price_lstm" / "1.0.0" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (here.registry / "outlook" / "1.0.0" / "model.onnx").unlink()
    assert here.back_up(tmp_path / "backup.tar").damaged == ("outlook/1.0.0", "price_lstm/1.0.0")


def test_a_damaged_database_is_said_and_leaves_no_archive(here: Place, tmp_path: Path) -> None:
    file = here.state / "ledgers.db"
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(UnavailableError, match=r"ledgers.db in STATE_DIR cannot be copied"):
        here.back_up(tmp_path / "backups" / "backup.tar")
    assert list((tmp_path / "backups").iterdir()) == []


def test_nothing_is_written_over(here: Place, there: Place, archive: Path) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        here.back_up(archive)
    for place, name in ((there.state, "jobs"), (there.registry, "price_lstm")):
        (place / name).mkdir(parents=True)
        with pytest.raises(ConflictError, match=f"not empty: it has {name}"):
            there.restore(archive)
        (place / name).rmdir()
    (there.registry / "README.md").touch()
    (there.state / ".gitkeep").touch()
    there.restore(archive)
    assert {each.name for each in there.registry.iterdir()} > {"README.md", "price_lstm"}


def test_a_place_in_which_a_training_outlived_its_service_is_left_alone(there: Place, archive: Path) -> None:
    command = [sys.executable, "-c", "input()", str(there.state / "jobs" / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        said = f"process {worker.pid} still works in"
        with pytest.raises(ConflictError, match=said):
            there.restore(archive)
        worker.kill()
    there.restore(archive)


def members(archive: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        return [(each.name, tar.extractfile(each).read()) for each in tar]  # type: ignore[union-attr]


def written(file: Path, found: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, payload in found:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def flipped(file: Path, found: list[tuple[str, bytes]]) -> None:
    (name, payload), *rest = found
    written(file, [(name, bytes([payload[0] ^ 1]) + payload[1:]), *rest])


def cut(file: Path, found: list[tuple[str, bytes]]) -> None:
    written(file, found)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SPOILT: dict[str, Callable[[Path, list[tuple[str, bytes]]], object]] = {
    "a byte that changed": flipped,
    "cut off": cut,
    "without its manifest": lambda file, found: written(file, found[:-1]),
    "a file too few": lambda file, found: written(file, found[1:]),
    "a file too many": lambda file, found: written(file, [("state/other", b""), *found]),
    "an unreadable manifest": lambda file, found: written(file, [*found[:-1], ("backup.json", b"{}")]),
    "text": lambda file, found: file.write_text("no archive at all" * 1000),
    "empty": lambda file, found: file.touch(),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_a_damaged_archive_is_said_and_restores_nothing(
    spoil: Callable[[Path, list[tuple[str, bytes]]], object], archive: Path, there: Place, tmp_path: Path
) -> None:
    spoil(tmp_path / "spoilt.tar", members(archive))
    with pytest.raises(DataValidationError, match=r"spoilt.tar is damaged or no backup.*restore another one"):
        there.restore(tmp_path / "spoilt.tar")
    assert not there.state.exists()


def test_a_compressed_archive_that_was_cut_off_is_damaged(here: Place, there: Place, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar.gz"
    here.back_up(file)
    whole = file.read_bytes()
    for size in (10, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(DataValidationError, match="damaged or no backup"):
            there.restore(file)


def test_an_archive_of_a_newer_format_is_refused_with_a_sentence(archive: Path, there: Place, tmp_path: Path) -> None:
    *rest, (name, document) = members(archive)
    newer = json.dumps({**json.loads(document), "format": 2, "mood": "calm"}).encode()
    written(tmp_path / "newer.tar", [*rest, (name, newer)])
    with pytest.raises(UnavailableError, match=r"backup of format 2, made by a newer version.*Upgrade the service"):
        there.restore(tmp_path / "newer.tar")


@pytest.mark.parametrize("name", ["../evil", "state/../../evil", "/evil", "elsewhere/evil", "state"])
def test_no_file_leaves_its_place(name: str, there: Place, tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "evil.tar") as archive:
        archive.add(name, io.BytesIO(b"x"), 1)
        archive.finish(BackupManifest(service_version="0", created_at=utc_now(), state_dir="/", queue="none"))
    with pytest.raises(DataValidationError, match="has no place"):
        there.restore(tmp_path / "evil.tar")
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["evil.tar"]
    assert not (there.state / RESTORING).exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
from common_lib.exceptions import UnavailableError
from ml_workbench_service.workflows.{verb}_state import {name}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # no file may grow beyond it
try:
    {name}(*map(Path, sys.argv[1:]))
except UnavailableError as error:
    print(error.message)
"""


def test_a_full_disk_is_said_and_leaves_nothing(here: Place, there: Place, archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups" / "backup.tar"
    for verb, name, arguments in (
        ("back_up", "back_up", (here.state, here.registry, target)),
        ("restore", "restore", (archive, there.state, there.registry)),
    ):
        script = FULL_DISK.format(verb=verb, name=name)
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert "The disk is full" in done.stdout, done
    assert list(target.parent.iterdir()) == []
    assert list(there.state.iterdir()) == list(there.registry.iterdir()) == []


def test_a_restore_that_was_killed_is_no_state_to_start_from(there: Place, archive: Path) -> None:
    (there.state / RESTORING).mkdir(parents=True)
    environment = {
        **os.environ, "STATE_DIR": str(there.state), "MODEL_REGISTRY_PATH": str(there.registry), "PORT": "0",
        "LOG_DIR": str(there.state.parent / "logs"),
    }  # fmt: skip
    command = [sys.executable, "-m", "ml_workbench_service.main"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "a restore was interrupted in" in done.stdout + done.stderr
    with pytest.raises(ConflictError, match="an earlier restore was interrupted"):
        there.restore(archive)


def test_the_command_says_what_is_in_the_archive(here: Place, there: Place, tmp_path: Path) -> None:
    def run(place: Place, verb: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | more
        environment |= {"STATE_DIR": str(place.state), "MODEL_REGISTRY_PATH": str(place.registry)}
        command = [sys.executable, "-m", "tools.backup", verb, str(tmp_path / "backup.tar.gz")]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    made = run(here, "create", REDIS_URL="redis://elsewhere:6379")
    assert made.returncode == 0, made
    assert "the prediction queue is NOT included" in made.stdout
    assert verified(tmp_path / "backup.tar.gz").queue == "external"
    again = run(here, "create")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert "are restored" in run(there, "restore").stdout
    assert not (there.state / "redis").exists()


class Writing:
    """Adds to a counter and a list in one transaction, and has the append-only file rewritten, again and again."""

    def __init__(self, state_dir: Path) -> None:
        self.server = EmbeddedRedis(state_dir, options={"appendfsync": "always"})
        self.num = self.num_rewrites = 0
        self._url = self.server.start()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._add, self._rewrite)]
        for thread in self._threads:
            thread.start()

    def client(self) -> Any:
        return redis.Redis.from_url(self._url, protocol=2)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.server.stop()

    def _add(self) -> None:
        client = self.client()
        while not self._stop.is_set():
            pipe = client.pipeline(transaction=True)
            pipe.incr("num").rpush("list", "x" * 1000)
            self.num = pipe.execute()[0]
        client.close()

    def _rewrite(self) -> None:
        client = self.client()
        while not self._stop.wait(0.02):
            if not client.info("persistence")["aof_rewrite_in_progress"]:
                client.bgrewriteaof()
                self.num_rewrites += 1
        client.close()


@pytest.fixture(params=installed_servers().values(), ids=list(installed_servers()))
def writing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    """A busy server of each kind at hand."""
    monkeypatch.setenv("PATH", str(request.param), prepend=os.pathsep)
    found = Writing(tmp_path / "here" / "state")
    yield found
    found.stop()


def test_the_queues_file_is_of_one_moment_while_the_server_writes_on(writing: Writing, tmp_path: Path) -> None:
    here = Place(tmp_path / "here")
    number = 0
    while number < 5 or writing.num_rewrites < 2:
        number += 1
        num_before = writing.num
        here.back_up(tmp_path / f"{number}.tar")
        there = Place(tmp_path / f"there-{number}")
        there.restore(tmp_path / f"{number}.tar")
        server = EmbeddedRedis(there.state)
        client = redis.Redis.from_url(server.start(), protocol=2)
        try:
            num, length = int(client.get("num") or 0), client.llen("list")
        finally:
            client.close()
            server.stop()
        assert num == length
        assert num >= num_before, "what was answered is in the file"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own query
def test_artifacts_of_the_embedded_store_are_found_at_the_new_place(here: Place, there: Place, tmp_path: Path) -> None:
    tracker = ExperimentTracker(f"sqlite:///{here.state / 'mlflow.db'}", artifacts=here.state / "mlartifacts")
    run = tracker.open_run("job", name="run", started_ms=0, tags={}, params={})
    tracker.attach(run.id, here.registry / "price_lstm" / "1.0.0")
    tracker.register("price_lstm", "1.0.0", run_id=run.id, tags={})
    here.back_up(tmp_path / "backup.tar")
    there.restore(tmp_path / "backup.tar")
    shutil.rmtree(here.state)
    restored = ExperimentTracker(f"sqlite:///{there.state / 'mlflow.db'}", artifacts=there.state / "mlartifacts")
    client = restored._client
    (version,) = client.search_model_versions("name = 'price_lstm'")
    assert version.source == f"{(there.state / 'mlartifacts').as_uri()}/{run.id}/artifacts/bundle"
    copied = client.download_artifacts(run.id, "bundle/manifest.json", str(tmp_path))
    assert Path(copied).read_bytes() == (here.registry / "price_lstm" / "1.0.0" / "manifest.json").read_bytes()
    assert client.get_run(run.id).info.artifact_uri == f"{(there.state / 'mlartifacts').as_uri()}/{run.id}/artifacts"
