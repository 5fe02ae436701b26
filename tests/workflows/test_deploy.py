"""Deploying: one line makes a version live; whatever refuses, fails or is killed leaves the one before."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common_lib.exceptions import ConflictError, GateFailedError, PlatformError, UpstreamError, UpstreamTimeoutError
from ml_workbench_service.contracts.deployment import Deployment, DeployRequest
from ml_workbench_service.integrations import strategy_engine
from ml_workbench_service.integrations.strategy_engine import StrategyEngine
from ml_workbench_service.resources import Workbench, close_workbench
from ml_workbench_service.workflows import deploy as workflow
from ml_workbench_service.workflows.deploy import Sender, deploy, finish_interrupted, rollback, run_gates
from tests.integrations.bundles import publish_anew
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.workflows.conftest import OpenBench

NO_GATE = {"digest": False}
_numbers = iter(range(1_000_000))


def go(bench: Workbench, version: str, **changes: Any) -> Deployment:
    """Deploys a version of `small`; keyword arguments replace fields of the request."""
    request = DeployRequest.model_validate({"version": version, "deployment_target": "strategy_engine", **changes})
    return deploy(bench, "small", request, sender())


def sender() -> Sender:
    """Somebody new."""
    return Sender(deployment_id=f"deployment-{next(_numbers)}", correlation_id="corr")


def told(bench: Workbench) -> list[tuple[str, str]]:
    """The history, oldest first, as (version, status)."""
    return [(each.version, each.status) for each in bench.history.of("small")]


@pytest.fixture
def engine() -> Iterator[StrategyEngineServer]:
    """A strategy engine in a good mood."""
    with StrategyEngineServer(slow_s=0.6) as server:
        yield server


def test_an_engine_that_is_too_slow_leaves_the_previous_version_live(
    open_bench: OpenBench, engine: StrategyEngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_engine, "READ_TIMEOUT_S", 0.3)
    bench = open_bench("1.0.0", "1.1.0", engine=engine.url)
    assert go(bench, "1.0.0").status == "live"
    engine.mood = "slow"
    with pytest.raises(UpstreamTimeoutError):
        go(bench, "1.1.0")
    assert told(bench) == [("1.0.0", "live"), ("1.1.0", "failed")]
    failed = bench.history.of("small")[-1]
    assert "did not answer in time" in str(failed.error)
    assert failed.live_at is None
    assert failed.ended_at is not None
    engine.mood = "accept"
    assert go(bench, "1.1.0").previous_version == "1.0.0"


def test_while_the_engine_thinks_the_previous_version_serves_and_others_wait(
    open_bench: OpenBench, engine: StrategyEngineServer
) -> None:
    bench = open_bench("1.0.0", "1.1.0", engine=engine.url)
    go(bench, "1.0.0", deployment_target="local")
    engine.mood = "slow"
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(go, bench, "1.1.0")
        while told(bench)[-1] != ("1.1.0", "pending"):
            assert not slow.done()
            time.sleep(0.005)
        assert bench.history.live_version("small") == "1.0.0"
        waiting = threads.submit(go, bench, "1.0.0", deployment_target="local", expected_current="1.1.0")
        assert slow.result().status == "live"
        assert waiting.result().previous_version == "1.1.0"
    assert told(bench) == [("1.0.0", "superseded"), ("1.1.0", "superseded"), ("1.0.0", "live")]


def test_a_surprise_while_telling_the_engine_leaves_no_pending_line(open_bench: OpenBench) -> None:
    class Surprising:
        def register(self, *_: object) -> None:
            raise RuntimeError("nobody foresaw this")

    bench = replace(open_bench("1.0.0"), strategy_engine=cast(StrategyEngine, Surprising()))
    with pytest.raises(RuntimeError):
        go(bench, "1.0.0")
    assert told(bench) == [("1.0.0", "failed")]
    assert "nobody" not in str(bench.history.of("small")[0].error)


def test_a_stream_that_is_away_does_not_hold_a_deployment_up(
    open_bench: OpenBench,
    redis_server: RedisForTests,
) -> None:
    bench = open_bench("1.0.0", redis=redis_server.url)
    redis_server.stop()
    try:
        assert go(bench, "1.0.0", deployment_target="local").status == "live"
    finally:
        close_workbench(bench)


@pytest.mark.parametrize("file", ["model.onnx", "recipe.json"])
def test_a_whole_bundle_that_does_not_answer_fails_the_smoke_gate(open_bench: OpenBench, file: str) -> None:
    bench = open_bench("1.0.0", "1.1.0")
    go(bench, "1.0.0")
    folder = bench.registry.folder("small", "1.1.0")
    (folder / file).write_text("{}")
    publish_anew(folder)
    gates = run_gates(
        bench, bench.registry.card("small", "1.1.0"), DeployRequest(version="1.1.0", deployment_target="local")
    )
    assert [(gate.gate, gate.passed) for gate in gates][:2] == [("digest", True), ("smoke_prediction", False)]
    with pytest.raises(GateFailedError, match="smoke_prediction") as caught:
        go(bench, "1.1.0")
    assert [gate["passed"] for gate in caught.value.details["gates"]][:2] == [True, False]
    assert told(bench) == [("1.0.0", "live")]


def test_a_deployment_that_a_kill_left_pending_failed(open_bench: OpenBench) -> None:
    bench = open_bench("1.0.0", "1.1.0")
    live = go(bench, "1.0.0")
    bench.history.append(live.model_copy(update={"id": "killed", "version": "1.1.0", "status": "pending"}))
    finish_interrupted(bench)
    assert told(bench) == [("1.0.0", "live"), ("1.1.0", "failed")]
    killed = bench.history.get("killed")
    assert "deploy again" in str(killed.error)
    before = bench.history.everything()
    finish_interrupted(bench)
    assert bench.history.everything() == before


def test_a_deployment_under_way_in_another_service_is_left_to_it(open_bench: OpenBench) -> None:
    bench = open_bench("1.0.0")
    template = go(bench, "1.0.0").model_copy(update={"id": "theirs", "status": "pending", "live_at": None})
    with bench.history.locked("small"):
        bench.history.append(template)
        settling = threading.Thread(target=finish_interrupted, args=(bench,))
        settling.start()
        time.sleep(0.1)
        bench.history.append(template.model_copy(update={"status": "live", "live_at": template.created_at}))
    settling.join()
    assert bench.history.get("theirs").status == "live"


def test_one_id_is_deployed_once(open_bench: OpenBench) -> None:
    bench = open_bench("1.0.0")
    request = DeployRequest(version="1.0.0", deployment_target="local")
    who = sender()
    deploy(bench, "small", request, who)
    with pytest.raises(workflow.DeployedAlready):
        deploy(bench, "small", request, who)
    assert told(bench) == [("1.0.0", "live")]


@dataclass
class Moody:
    """A strategy engine that refuses where it is told to."""

    refuses: bool = False

    def register(self, *_: object) -> None:
        """Consents, or not."""
        if self.refuses:
            raise UpstreamError("the engine said no")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deploy", "refused", "expecting", "rollback", "killed"]), st.sampled_from(["1.0.0", "1.1.0"])
    ),
    max_size=8,
)


def test_whatever_happens_at_most_one_version_is_live_and_it_is_the_last_that_was_accepted(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood = Moody()
    bench = replace(open_bench("1.0.0", "1.1.0"), strategy_engine=cast(StrategyEngine, mood))
    monkeypatch.setattr(workflow, "run_gates", lambda *_, **__: ())  # these have their own tests, and take their time

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS)
    def check(steps: list[tuple[str, str]]) -> None:
        (bench.history.root / "small" / "deployments.jsonl").unlink(missing_ok=True)
        stack: list[str] = []  # versions in the order in which they went live
        for step, version in steps:
            mood.refuses = step == "refused"
            live = bench.history.live("small")
            try:
                if step == "killed":
                    template = live or go(bench, version)
                    stack = stack or [version]
                    bench.history.append(template.model_copy(update={"id": str(next(_numbers)), "status": "pending"}))
                    finish_interrupted(bench)
                elif step == "rollback" and live is not None:
                    stack.append(rollback(bench, live.id, sender()).version)
                elif step == "expecting":
                    go(bench, version, expected_current=version)
                    stack.append(version)
                elif step != "rollback":
                    go(bench, version)
                    stack.append(version)
            except (ConflictError, UpstreamError):
                if step in ("deploy", "killed"):
                    raise
            found = bench.history.of("small")
            assert [each.version for each in found if each.status == "live"] == stack[-1:]
            assert all(each.status != "pending" for each in found)
            served = [each for each in found if each.live_at and each.ended_at]
            assert all(each.live_at <= each.ended_at for each in served if each.live_at and each.ended_at)

    check()


def test_every_refusal_is_one_of_ours(open_bench: OpenBench) -> None:
    bench = open_bench("1.0.0")
    for version, changes in (("9.0.0", {}), ("1.0.0", {"expected_current": "1.0.0"}), ("1.0.0", {"gates": NO_GATE})):
        with pytest.raises(PlatformError):
            go(bench, version, **changes)
    assert told(bench) == []
