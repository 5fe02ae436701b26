"""A running service whose disk is full, or whose STATE_DIR goes away: it says so, changes nothing, and comes back."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common_lib.exceptions import StorageFullError
from ml_workbench_service.access.audit_log import AUDIT_FILE, verify
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import Scope
from tests.conftest import SMALL_TRAIN, registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, ServiceProcess
from tests.storage.disks import fill, small_disk

PATIENCE_S = 60.0
QUIET_S = 2.5
ABSENT = "/api/v1/models/absent/undeploy"


def thing(client: httpx.Client, name: str) -> dict[str, Any]:
    """What readiness says of it."""
    found: dict[str, Any] = client.get("/health/ready").json()["things"][name]
    return found


def state_dir(client: httpx.Client) -> dict[str, Any]:
    """The same of STATE_DIR."""
    return thing(client, "state_dir")


def until(is_true: Callable[[], bool]) -> float:
    """Waits; how long it took."""
    begun = time.monotonic()
    while not is_true():
        assert time.monotonic() - begun < PATIENCE_S, "it never came true"
        time.sleep(0.05)
    return time.monotonic() - begun


def test_a_state_dir_that_is_removed_is_noticed_and_made_nowhere_else(tmp_path: Path) -> None:
    running = ServiceProcess(tmp_path).start()
    try:
        client, state = running.client, tmp_path / "state"
        assert state_dir(client)["state"] == "ok"
        away = state.rename(tmp_path / "away")
        took_s = until(lambda: state_dir(client)["state"] == "down")
        print(f"noticed after {took_s:.2f} s")  # noqa: T201
        said = state_dir(client)
        assert "bring it back" in said["detail"]
        assert said["last_ok_at"] is not None
        refused = client.post("/api/v1/models/train", json=SMALL_TRAIN)
        assert (refused.status_code, "taken away" in refused.json()["message"]) == (503, True)
        assert client.get("/api/v1/models").status_code == 200
        time.sleep(QUIET_S)
        assert not state.exists(), "nothing is made in its place"
        away.rename(state)
        until(lambda: state_dir(client)["state"] == "ok")
        assert client.post(ABSENT).status_code == 404
        assert verify(state / AUDIT_FILE).is_whole
    finally:
        running.close()


def test_a_registry_that_is_removed_is_noticed_and_made_nowhere_else(service: ServiceProcess, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    copy_version(registry_of(service) / "small" / "1.0.0", registry, "small", "1.0.0")
    running = ServiceProcess(tmp_path, MODEL_REGISTRY_PATH=str(registry)).start()
    try:
        client = running.client
        deploying = {"version": "1.0.0", "deployment_target": "local", "gates": {"skill": False}}
        client.post("/api/v1/models/small/deploy", json=deploying).raise_for_status()
        assert client.post("/api/v1/models/small/predict", json=SEED_PREDICT).status_code == 200
        assert thing(client, "model_registry")["state"] == "ok"
        away = registry.rename(tmp_path / "away")
        took_s = until(lambda: thing(client, "model_registry")["state"] == "down")
        print(f"noticed after {took_s:.2f} s")  # noqa: T201
        assert "bring it back" in thing(client, "model_registry")["detail"]
        for method, path, body in (
            ("POST", "/api/v1/models/train", SMALL_TRAIN),
            ("POST", "/api/v1/models/small/deploy", deploying),
            ("POST", "/api/v1/models/small/undeploy", None),
            ("DELETE", "/api/v1/models/small/versions/1.0.0", None),
            ("GET", "/api/v1/models", None),
            ("GET", "/api/v1/models/small", None),
            ("GET", "/api/v1/models/small/versions/1.0.0", None),
            ("POST", "/api/v1/models/small/predict", SEED_PREDICT),
        ):
            refused = client.request(method, path, json=body)
            assert (refused.status_code, refused.json()["error_code"]) == (503, "STORAGE"), f"{method} {path}"
            assert "taken away" in refused.json()["message"]
        assert state_dir(client)["state"] == "ok"
        assert client.get("/api/v1/jobs").json()["jobs"] == [], "no training was begun"
        time.sleep(QUIET_S)
        assert not registry.exists(), "nothing is made in its place"
        away.rename(registry)
        until(lambda: thing(client, "model_registry")["state"] == "ok")
        assert [each["id"] for each in client.get("/api/v1/models").json()["models"]] == ["small"]
        assert client.post("/api/v1/models/small/predict", json=SEED_PREDICT).status_code == 200
        assert verify(tmp_path / "state" / AUDIT_FILE).is_whole
    finally:
        running.close()


@pytest.fixture
def on_small_disk(service: ServiceProcess, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service whose state and registry have a disk of their own, with two versions of `small`."""
    with small_disk(tmp_path / "disk", size_mb=96) as disk:
        registry = disk / "registry"
        for version in ("1.0.0", "1.1.0"):
            copy_version(registry_of(service) / "small" / version, registry, "small", version)
        places = {"STATE_DIR": str(disk / "state"), "MODEL_REGISTRY_PATH": str(registry)}
        running = ServiceProcess(tmp_path / "service", **places).start()
        try:
            yield running
        finally:
            running.close()


@pytest.mark.more
def test_on_a_full_disk_changes_are_507_and_nothing_stays_half_done(on_small_disk: ServiceProcess) -> None:
    client, disk = on_small_disk.client, on_small_disk.folder.parent / "disk"
    deploying = {"version": "1.0.0", "deployment_target": "local", "gates": {"skill": False}}
    client.post("/api/v1/models/small/deploy", json=deploying).raise_for_status()
    filling = fill(disk)
    until(lambda: state_dir(client)["state"] != "ok")
    for method, path, body in (
        ("POST", "/api/v1/models/train", SMALL_TRAIN),
        ("POST", "/api/v1/models/small/deploy", {**deploying, "version": "1.1.0"}),
        ("POST", "/api/v1/models/small/undeploy", None),
        ("DELETE", "/api/v1/models/small/versions/1.1.0", None),
        ("POST", ABSENT, None),
    ):
        # A disk in memory takes what fits into a block that a file has already: some lines still find room.
        statuses = [client.request(method, path, json=body).status_code for _ in range(16)]
        assert 507 in statuses, f"{method} {path}: {statuses}"
        assert 500 not in statuses
    keys = KeyFile(disk / "state" / KEYS_FILE)
    with pytest.raises((StorageFullError, OSError), match=r"full|space"):
        _fill_with_keys(keys)
    assert client.post("/api/v1/models/small/predict", json=SEED_PREDICT).status_code == 200
    filling.unlink()
    until(lambda: state_dir(client)["state"] == "ok")
    deployments = client.get("/api/v1/deployments").json()["deployments"]
    assert "pending" not in {each["status"] for each in deployments}
    assert not [each.name for each in (disk / "state" / "jobs").glob(".*") if each.is_dir()], "no half folders"
    for version in ("1.0.0", "1.1.0"):
        assert client.get(f"/api/v1/models/small/versions/{version}").status_code == 200
    assert verify(disk / "state" / AUDIT_FILE).is_whole
    client.post("/api/v1/models/small/deploy", json={**deploying, "version": "1.0.0"}).raise_for_status()


def _fill_with_keys(keys: KeyFile) -> None:
    for number in range(200):
        keys.create(f"client_{number}", [Scope.READ])


@pytest.mark.more
def test_a_disk_that_is_taken_away_is_noticed(on_small_disk: ServiceProcess) -> None:
    client, disk = on_small_disk.client, on_small_disk.folder.parent / "disk"
    assert state_dir(client)["state"] == "ok"
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    until(lambda: state_dir(client)["state"] == "down")
    assert client.post("/api/v1/models/train", json=SMALL_TRAIN).status_code == 503
    time.sleep(QUIET_S)
    assert not (disk / "state").exists(), "nothing is written below the place where the disk was"
