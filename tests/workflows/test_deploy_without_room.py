"""Deploying with every amount of room: live, or refused with nothing pending and the version before it live."""

from collections.abc import Iterator

import pytest

from common_lib.exceptions import StorageFullError
from ml_workbench_service.contracts.deployment import DeployRequest
from ml_workbench_service.integrations.deployment_history import HISTORY_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows import deploy as workflow
from ml_workbench_service.workflows.deploy import Sender, deploy, finish_interrupted, rollback
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.storage.disks import no_file_over
from tests.workflows.conftest import OpenBench

STEP_BYTES = 61


def go(bench: Workbench, version: str, number: int, target: str = "local") -> str:
    request = DeployRequest.model_validate({"version": version, "deployment_target": target, "gates": {"skill": False}})
    return deploy(bench, "small", request, Sender(f"deployment-{number}", "corr")).status


@pytest.fixture
def engine() -> Iterator[StrategyEngineServer]:
    with StrategyEngineServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _gates_pass_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read; what is tried here is what is written."""
    monkeypatch.setattr(workflow, "run_gates", lambda *_, **__: ())


@pytest.mark.parametrize("target", ["local", "strategy_engine"])
def test_no_amount_of_room_leaves_a_deployment_pending(
    open_bench: OpenBench,
    engine: StrategyEngineServer,
    target: str,
) -> None:
    bench = open_bench("1.0.0", "1.1.0", engine=engine.url)
    assert go(bench, "1.0.0", 0, target) == "live"
    history = bench.registry.root / "small" / HISTORY_FILE
    num_refused, room, number = 0, 0, 0
    while True:
        number += 1
        size = history.stat().st_size
        try:
            with no_file_over(size + room):
                go(bench, "1.1.0", number, target)
        except StorageFullError:
            num_refused += 1
        found = bench.history.of("small")
        assert [each.status for each in found].count("live") == 1
        assert not any(each.status == "pending" for each in found), f"with {room} bytes of room"
        if bench.history.live_version("small") == "1.1.0":
            break
        room += STEP_BYTES
        if target == "strategy_engine":
            assert engine.received[-1][1]["parameters"]["version"] == "1.0.0", "the engine holds what is live"
            assert len(engine.strategies) == len(engine.received) - len(engine.unregistered)
    assert num_refused > 10
    if target == "strategy_engine":
        assert engine.unregistered, "some were told and taken back"
        assert engine.received[-1][1]["parameters"]["version"] == "1.1.0"


def test_a_rollback_happens_whole_or_not_at_all(open_bench: OpenBench) -> None:
    bench = open_bench("1.0.0", "1.1.0")
    go(bench, "1.0.0", 0)
    go(bench, "1.1.0", 1)
    history = bench.registry.root / "small" / HISTORY_FILE
    room, number = 0, 1
    found: list[str] = []
    while bench.history.live_version("small") == "1.1.0":
        number += 1
        try:
            with no_file_over(history.stat().st_size + room):
                rollback(bench, "deployment-1", Sender(f"deployment-{number}", "corr"))
        except StorageFullError:
            found.append(bench.history.get("deployment-1").status)
        room += STEP_BYTES
    assert len(found) > 3
    assert set(found) == {"live"}
    assert bench.history.get("deployment-1").status == "rolled_back"
    assert not any(each.status == "pending" for each in bench.history.of("small"))


def test_what_a_broken_disk_left_pending_ends_once_it_can_be_written(
    open_bench: OpenBench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = open_bench("1.0.0", "1.1.0")
    go(bench, "1.0.0", 0)
    append, num = bench.history.append, 0

    def broken(*lines: object) -> None:
        nonlocal num
        num += 1
        if num > 1:
            raise OSError(5, "Input/output error")
        append(*lines)  # type: ignore[arg-type]

    def no_truncate(_: object) -> bool:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(bench.history, "append", broken)
        patched.setattr(bench.history, "take_back", no_truncate)
        with pytest.raises(OSError, match="Input"):
            go(bench, "1.1.0", 1)
        finish_interrupted(bench)
        assert bench.history.get("deployment-1").status == "pending"
    finish_interrupted(bench)
    assert bench.history.get("deployment-1").status == "failed"
    assert bench.history.live_version("small") == "1.0.0"
