"""Archiving, restoring, purging: nothing live is lost, what is used stays, and no version number is used twice."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common_lib.exceptions import (
    ConflictError,
    DataValidationError,
    ModelNotFoundError,
    PlatformError,
    UnavailableError,
    VersionExistsError,
    VersionNotFoundError,
)
from ml_workbench_service.agents.definition import write_definition
from ml_workbench_service.agents.status import agent_folder
from ml_workbench_service.contracts.agents import AgentDefinition
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations import model_registry
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle.endings import TOMBSTONES_FILE
from ml_workbench_service.learning.bundle.listing import next_version
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows.end_versions import archive, purge_model, purge_version, restore
from ml_workbench_service.workflows.plan_training import _reserve
from ml_workbench_service.workflows.undeploy import undeploy
from tests.workflows.ends.published_versions import bench_of, deploy, opened_again, publish, ungated_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("ungated")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """Versions 1.0.0, 1.1.0 and 1.2.0 of `model`."""
    bench = bench_of(tmp_path)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(bench.registry, "model", version)
    return bench


def purge(bench: Workbench, version: str, **more: Any) -> Any:
    return purge_version(bench, "model", version, **{"confirm": None, "unfinished": (), **more})


def job(kind: JobKind, request: dict[str, Any], plan: dict[str, Any]) -> JobSpec:
    return JobSpec(id="busy", kind=kind, request=request, plan=plan, created_at=utc_now(), correlation_id="")


def test_a_purged_version_leaves_its_digests_and_its_number(bench: Workbench) -> None:
    card = bench.registry.card("model", "1.1.0")
    with pytest.raises(ConflictError, match="archive it first"):
        purge(bench, "1.1.0")
    assert archive(bench, "model", "1.1.0").status == "archived"
    left = purge(bench, "1.1.0")
    assert (left.digest, left.size_bytes, left.job_id) == (card.digest, card.size_bytes, "job-model-1.1.0")
    assert (left.was_live, left.created_at, left.type) == (False, card.created_at, card.type)
    assert set(left.files) == {"card.json", "model.onnx", "recipe.json"}
    assert not (bench.registry.root / "model" / "1.1.0").exists()
    assert purge(bench, "1.1.0") == left, "once more is as good as once"
    assert bench.registry.versions("model") == ["1.2.0", "1.0.0"]
    with pytest.raises(VersionNotFoundError, match="was purged on") as caught:
        bench.registry.card("model", "1.1.0")
    assert caught.value.details["tombstone"]["digest"] == card.digest
    for call in (archive, restore):
        with pytest.raises(VersionNotFoundError):
            call(bench, "model", "1.1.0")
    with pytest.raises(VersionExistsError, match="never used again"):
        publish(bench.registry, "model", "1.1.0")
    with pytest.raises(VersionExistsError, match="was purged"):
        _reserve(asked("1.1.0"), "model", bench, ())


def asked(version: str | None = None) -> TrainRequest:
    body = {
        "name": "model", "model_type": "time_series", "features": ["macd"], "target": "price_change_1h",
        "symbols": ["EUR/USD"], "start_date": "2020-01-01T00:00:00Z", "end_date": "2021-01-01T00:00:00Z",
        "version": version,
    }  # fmt: skip
    return TrainRequest.model_validate({name: value for name, value in body.items() if value is not None})


def test_a_training_that_runs_meanwhile_or_after_a_restart_gets_no_purged_number(bench: Workbench) -> None:
    busy = job(JobKind.TRAIN, {}, {"model_id": "model", "version": "1.3.0"})
    archive(bench, "model", "1.2.0")
    purge(bench, "1.2.0", unfinished=(busy,))
    assert _reserve(asked(), "model", bench, (busy,)) == "1.4.0"
    registry, _ = opened_again(bench)
    assert _reserve(asked(), "model", replace(bench, registry=registry), ()) == "1.3.0"
    with pytest.raises(ConflictError, match="busy makes a version"):
        purge_model(bench, "model", confirm="model", unfinished=(busy,))
    purged = purge_model(bench, "model", confirm="model", unfinished=()).purged
    assert [each.version for each in purged] == ["1.2.0", "1.1.0", "1.0.0"]
    assert _reserve(asked(), "model", bench, ()) == "1.3.0"
    with pytest.raises(ModelNotFoundError, match="every version of model was purged"):
        bench.registry.cards("model")
    assert purge_model(bench, "model", confirm="model", unfinished=()).purged == purged
    assert "model" not in bench.registry.model_ids()


def test_what_was_live_wants_to_be_confirmed_and_what_is_live_stays(bench: Workbench) -> None:
    deploy(bench, "model", "1.0.0")
    deploy(bench, "model", "1.1.0")
    for call in (lambda: archive(bench, "model", "1.1.0"), lambda: purge(bench, "1.1.0", confirm="model")):
        with pytest.raises(ConflictError):
            call()
    with pytest.raises(ConflictError, match="undeploy the model first"):
        purge_model(bench, "model", confirm="model", unfinished=())
    archive(bench, "model", "1.0.0")
    for confirm in (None, "other"):
        with pytest.raises(DataValidationError, match="confirm=model"):
            purge(bench, "1.0.0", confirm=confirm)
        with pytest.raises(DataValidationError, match="confirm=model"):
            purge_model(bench, "model", confirm=confirm, unfinished=())
    before = bench.history.of("model")
    assert purge(bench, "1.0.0", confirm="model").was_live
    assert bench.history.of("model") == before, "the history outlives the files"
    with pytest.raises(VersionNotFoundError):
        deploy(bench, "model", "1.0.0")
    assert bench.history.live_version("model") == "1.1.0"


def test_an_archived_version_is_a_candidate_again_once_restored(bench: Workbench) -> None:
    archive(bench, "model", "1.2.0")
    assert bench.registry.served_card("model").version == "1.1.0"
    with pytest.raises(ConflictError, match="restore it first"):
        deploy(bench, "model", "1.2.0")
    for _ in range(2):
        assert restore(bench, "model", "1.2.0").status == "experimental"
    assert bench.registry.served_card("model").version == "1.2.0"
    assert archive(bench, "model", "1.2.0").status == "archived"
    registry, _ = opened_again(bench)
    assert registry.card("model", "1.2.0").status == "archived"


FEATURE_SET = {
    "id": "model", "version": "1.0.0", "expressions": [{"name": "f1", "expression": "lag(close, 1)"}],
}  # fmt: skip


def test_what_is_used_is_not_purged_and_the_refusal_names_who_uses_it(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    publish(bench.registry, "model", "1.0.0", type="feature_engineering", findings={"feature_set": FEATURE_SET})
    archive(bench, "model", "1.0.0")
    agent = AgentDefinition(id="trader", model_id="model", created_at=utc_now())

    def refused(words: str, *unfinished: JobSpec) -> None:
        with pytest.raises(ConflictError, match=words) as caught:
            purge(bench, "1.0.0", unfinished=unfinished)
        assert caught.value.details["used_by"]

    refused("replay busy reads it", job(JobKind.REPLAY, {"model_id": "model"}, {"version": "1.0.0"}))
    recorded = {"recorded": {"model_id": "model", "version": "1.0.0"}}
    refused("experiment busy reads it", job(JobKind.EXPERIMENT, {}, recorded))
    for name in ("@model", "@model:1.0.0"):
        refused("train busy reads it", job(JobKind.TRAIN, {"features": [name]}, {"model_id": "x", "version": "1.0.0"}))
        choices = {"search_space": {"features": {"choices": [["macd"], [name]]}}}
        refused("experiment busy reads it", job(JobKind.EXPERIMENT, choices, {"model_id": "x", "version": "1.0.0"}))
    write_definition(agent_folder(bench.state_dir, "trader"), agent)
    refused("agent trader runs for it")
    write_definition(agent_folder(bench.state_dir, "trader"), agent.model_copy(update={"wanted": "stopped"}))
    expressions = {"expressions": {"f1": "lag(close, 1)"}}
    for version, name in (("1.0.0", "@model"), ("1.1.0", "@model:1.0.0")):
        publish(bench.registry, "user", version, features=[name], recipe=expressions)
        refused(f"user {version} has it as its feature set")
        archive(bench, "user", version)
        purge_version(bench, "user", version, confirm=None, unfinished=())
    publish(bench.registry, "bystander", "1.0.0", features=["@model:2.0.0"])
    others = job(JobKind.TRAIN, {"features": ["@other"], "notes": "@ noon"}, {"model_id": "x", "version": "1.0.0"})
    assert purge(bench, "1.0.0", unfinished=(others,)).digest


def test_a_bundle_that_cannot_be_read_can_still_be_purged(bench: Workbench) -> None:
    archive(bench, "model", "1.0.0")
    (bench.registry.root / "model" / "1.0.0" / MANIFEST_FILE).write_text("{")
    registry, _ = opened_again(bench)
    left = purge(replace(bench, registry=registry), "1.0.0")
    assert (left.version, left.digest) == ("1.0.0", "")


def test_a_purge_by_another_process_is_noticed(bench: Workbench) -> None:
    other, _ = opened_again(bench)
    assert other.card("model", "1.0.0").version == "1.0.0"
    archive(bench, "model", "1.0.0")
    purge(bench, "1.0.0")
    assert other.is_purged("model", "1.0.0")
    with pytest.raises(VersionNotFoundError):
        other.card("model", "1.0.0")


@pytest.mark.parametrize("place", ["before the line", "after the line", "among the files"])
def test_a_kill_leaves_the_version_or_its_tombstone(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for version in ("1.0.0", "1.1.0"):
        archive(bench, "model", version)

    def killed(*_: object) -> None:
        raise Killed

    def killed_halfway(folder: Path) -> None:
        (folder / "card.json").unlink()
        raise Killed

    if place == "before the line":
        monkeypatch.setattr(model_registry, "append_line", killed)
    else:
        monkeypatch.setattr(shutil, "rmtree", killed if place == "after the line" else killed_halfway)
    with pytest.raises(Killed):
        purge_model(bench, "model", confirm="model", unfinished=())
    monkeypatch.undo()
    registry, _ = opened_again(bench)
    folders = sorted(each.name for each in (registry.root / "model").iterdir() if each.is_dir())
    if place == "before the line":
        assert registry.versions("model") == ["1.2.0", "1.1.0", "1.0.0"] == folders[::-1]
        assert not registry.tombstones("model")
        return
    assert folders == [] == registry.versions("model")
    assert all(each.digest for each in registry.tombstones("model").values())
    assert len(registry.tombstones("model")) == 3


def test_a_tombstone_is_torn_at_any_byte_and_the_purge_happened_whole_or_not_at_all(bench: Workbench) -> None:
    file = bench.registry.root / "model" / TOMBSTONES_FILE
    purge_model(bench, "model", confirm="model", unfinished=())
    line = file.read_bytes()
    for length in (*range(0, len(line), 37), len(line) - 2):
        file.write_bytes(line[:length])
        assert not FolderModelRegistry(bench.registry.root, live_version=lambda _: None).tombstones("model")
    publish(bench.registry, "model", "2.0.0")
    archive(bench, "model", "2.0.0")
    assert purge(bench, "2.0.0").version == "2.0.0", "the torn line stays by itself"
    assert list(bench.registry.tombstones("model")) == ["2.0.0"]


def test_a_full_disk_refuses_and_changes_nothing(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(bench, "model", "1.0.0")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    for call in (
        lambda: purge(bench, "1.0.0"),
        lambda: archive(bench, "model", "1.1.0"),
        lambda: restore(bench, "model", "1.0.0"),
    ):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UnavailableError, match="disk is full"):
            call()
        monkeypatch.undo()
    registry, _ = opened_again(bench)
    assert {each.version: each.status for each in registry.cards("model")} == {
        "1.0.0": "archived", "1.1.0": "experimental", "1.2.0": "experimental",
    }  # fmt: skip


def test_of_a_deployment_and_a_purge_at_the_same_time_one_wins(bench: Workbench) -> None:
    for number in range(12):
        version = f"2.{number}.0"
        publish(bench.registry, "model", version)
        history_of_another = opened_again(bench)
        other = replace(bench, registry=history_of_another[0], history=history_of_another[1])
        barrier = threading.Barrier(2)

        def quietly(work: Callable[[], object], barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                work()
            except PlatformError:
                return False
            return True

        def end(version: str = version, other: Workbench = other) -> None:
            archive(other, "model", version)
            purge(other, version)

        with ThreadPoolExecutor(2) as threads:
            deployed = threads.submit(quietly, lambda version=version: deploy(bench, "model", version))
            ended = threads.submit(quietly, end)
            assert deployed.result() != ended.result()
        if deployed.result():
            assert bench.registry.card("model", version).status == "deployed"
        else:
            assert bench.registry.is_purged("model", version)


VERSIONS = st.sampled_from([f"1.{number}.0" for number in range(5)])


class Lives(RuleBasedStateMachine):
    """Any order of calls, kills and restarts: live stays live, numbers are used once, tombstones are complete."""

    folder: Path
    patch: pytest.MonkeyPatch

    @initialize()
    def begin(self) -> None:
        for name in ("registry", "state"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.bench = bench_of(self.folder)
        self.digests: dict[str, str] = {}  # of all that was ever published
        self.live: str | None = None
        self.archived: set[str] = set()
        self.purged: set[str] = set()

    @rule(version=st.one_of(st.none(), VERSIONS))
    def train(self, version: str | None) -> None:
        wanted = version or next_version(self.bench.registry.taken("model"))
        if wanted in self.digests:
            with pytest.raises(VersionExistsError):
                publish(self.bench.registry, "model", wanted)
        else:
            self.digests[wanted] = publish(self.bench.registry, "model", wanted).digest

    @rule(version=VERSIONS)
    def archive(self, version: str) -> None:
        if self._does(lambda: archive(self.bench, "model", version)):
            self.archived.add(version)

    @rule(version=VERSIONS)
    def restore(self, version: str) -> None:
        if self._does(lambda: restore(self.bench, "model", version)):
            self.archived.discard(version)

    @rule(version=VERSIONS, is_killed=st.booleans())
    def purge(self, version: str, is_killed: bool) -> None:
        if self._may_be_killed(lambda: purge(self.bench, version, confirm="model"), is_killed=is_killed):
            assert version in self.archived | self.purged
            assert version != self.live
            self._gone(version)

    @rule(is_killed=st.booleans())
    def purge_all(self, is_killed: bool) -> None:
        call = lambda: purge_model(self.bench, "model", confirm="model", unfinished=())  # noqa: E731
        if self._may_be_killed(call, is_killed=is_killed):
            assert self.live is None
            self._gone(*self.digests)

    @rule(version=VERSIONS)
    def deploy(self, version: str) -> None:
        if self._does(lambda: deploy(self.bench, "model", version)):
            assert version not in self.archived | self.purged
            self.live = version

    @rule()
    def undeploy(self) -> None:
        if self._does(lambda: undeploy(self.bench, "model", full="wait")):
            self.live = None
            for each in self.bench.history.of("model"):  # there is no queue: as if agents were told
                if each.owes_closing:
                    self.bench.history.append(each.model_copy(update={"closing_sent": True}))

    @rule()
    def restart(self) -> None:
        registry, history = opened_again(self.bench)
        self.bench = replace(self.bench, registry=registry, history=history)

    @invariant()
    def holds(self) -> None:
        registry = self.bench.registry
        assert self.bench.history.live_version("model") == self.live
        assert set(registry.versions("model")) == set(self.digests) - self.purged
        assert {version: each.digest for version, each in registry.tombstones("model").items()} == {
            version: self.digests[version] for version in self.purged
        }
        if self.live is not None:
            assert registry.card("model", self.live).status == "deployed"
            assert registry.verify("model", self.live) == self.digests[self.live]

    def _gone(self, *versions: str) -> None:
        self.purged.update(versions)
        self.archived -= self.purged

    def _does(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except PlatformError:
            return False
        return True

    def _may_be_killed(self, call: Callable[[], object], *, is_killed: bool) -> bool:
        """Whether it was done, if need be by the next process."""
        if not is_killed:
            return self._does(call)

        def killed(*_: object) -> None:
            raise Killed

        with self.patch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            try:
                return self._does(call)
            except Killed:
                pass
        self.restart()
        return True


def test_whatever_happens_nothing_live_is_lost_and_no_number_is_used_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HereAndNow(Lives):
        folder, patch = tmp_path, monkeypatch

    few = settings(max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(HereAndNow, settings=few)
