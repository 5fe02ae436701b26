"""Following the serving state as a replica does: what was live last goes on, a version that cannot be loaded waits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.access.signing_keys import GivenKeys, SigningKey, TrustedKeys
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.handover import HANDOVER_STREAM
from ml_workbench_service.contracts.replicas import KEYS, ReplicaReport, live_field
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.replicas.presence import Presence
from ml_workbench_service.integrations.replicas.serving_state import ServingStateReader, ServingStateWriter
from ml_workbench_service.workflows import follow_serving_state
from ml_workbench_service.workflows.follow_serving_state import ServingStateFollower
from tests.redis_server import RedisForTests, redis_server_fixture

__all__ = ["redis_server_fixture"]

NOW = datetime(2030, 3, 6, tzinfo=UTC)


def live(version: str, model_id: str = "small") -> Deployment:
    return Deployment(
        id=f"of-{version}", model_id=model_id, version=version, deployment_target="local", scaling_factor=1.0,
        monitoring_level="low", status="live", created_at=NOW, live_at=NOW, previous_version=None,
    )  # fmt: skip


def fields(*deployments: Deployment) -> dict[str, bytes]:
    return {live_field(each.model_id): each.model_dump_json().encode() for each in deployments}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def following(
    redis: RedisForTests, root: Path, warm: Callable[[Deployment], None], keys: GivenKeys | None = None
) -> Iterator[ServingStateFollower]:
    follower = ServingStateFollower(
        ServingStateReader(redis.url), DeploymentHistory(root), warm=warm, adopt=lambda payload: None,
        trust=(keys or GivenKeys()).take, remembers=True,
    )  # fmt: skip
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def version_of(follower: ServingStateFollower) -> str | None:
    found = follower.live("small")
    return None if found is None else found.version


def test_what_was_live_last_goes_on_without_redis_until_the_history_says_more(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    writer = ServingStateWriter(redis_server.url)
    writer.replace(fields(live("1.0.0")))
    with following(redis_server, tmp_path, lambda deployment: None) as follower:
        wait_until(lambda: follower.is_known)
        assert version_of(follower) == "1.0.0"
        redis_server.kill()
        wait_until(lambda: follower.follows == "history")
        assert version_of(follower) == "1.0.0"
        DeploymentHistory(tmp_path).append(live("1.1.0"))
        wait_until(lambda: version_of(follower) == "1.1.0")
        redis_server.start()
        wait_until(lambda: follower.follows == "redis")
        assert version_of(follower) == "1.1.0", "Redis says less than the history has said meanwhile"
        writer.change(fields(live("1.2.0")))
        wait_until(lambda: version_of(follower) == "1.2.0")
        assert (follower.epoch, follower.news_number) == (writer.epoch, writer.number)
        assert 0 <= follower.delay_s < 5
    writer.close()


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it_in_force(
    redis_server: RedisForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_serving_state, "WARM_AGAIN_S", 0.0)
    broken = {"1.1.0", "first 1.0.0"}

    def warm(deployment: Deployment) -> None:
        if {deployment.version, f"{deployment.model_id} {deployment.version}"} & broken:
            raise BundleDamagedError("it is not there yet")

    writer = ServingStateWriter(redis_server.url)
    writer.replace(fields(live("1.0.0"), live("1.0.0", "first")))
    with following(redis_server, tmp_path, warm) as follower:
        wait_until(lambda: follower.is_known)
        assert follower.unanswered == {"first 1.0.0": "it is not there yet"}, "a start without it is not ready"
        broken.remove("first 1.0.0")
        wait_until(lambda: follower.cold == {})
        writer.change(fields(live("1.1.0")))
        wait_until(lambda: follower.cold == {"small 1.1.0": "it is not there yet"})
        assert version_of(follower) == "1.0.0"
        assert follower.unanswered == {}
        broken.clear()
        wait_until(lambda: version_of(follower) == "1.1.0")
        assert follower.cold == {}
        writer.change({}, [live_field("small")])
        wait_until(lambda: version_of(follower) is None)
    writer.close()


def test_public_keys_come_before_what_they_verify_unless_they_are_pinned(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    ours, trusted = SigningKey(tmp_path / "ours"), TrustedKeys(tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    trusted.trust(ours.id, ours.public)
    signature = ours.sign(b"message")
    open_keys, pinned = GivenKeys(), GivenKeys([b"k" * 32])
    seen: list[bool | None] = []
    writer = ServingStateWriter(redis_server.url)
    writer.replace({**fields(live("1.0.0")), KEYS: trusted.payload()})
    for keys in (open_keys, pinned):

        def warm(deployment: Deployment, keys: GivenKeys = keys) -> None:
            seen.append(keys.verifies(ours.id, signature, b"message"))

        with following(redis_server, tmp_path, warm, keys) as follower:
            wait_until(lambda follower=follower: follower.is_known)  # type: ignore[misc]
    assert seen == [True, None]
    open_keys.take(b"{")
    assert open_keys.verifies(ours.id, signature, b"message"), "what cannot be read changes nothing"
    assert open_keys.verifies(ours.id, signature, b"another") is False
    writer.close()


def test_control_plane_and_replicas_hear_of_each_other(redis_server: RedisForTests) -> None:
    control, replica, client = Presence(redis_server.url), Presence(redis_server.url), redis_server.client()
    report = ReplicaReport(
        name="r1", epoch="e", news_number=3, is_ready=True, num_loaded=1, outbox=0, num_unhanded=0, num_dropped=0
    )
    replica.report(report)
    assert control.replicas() == [report]
    assert replica.look().beat is None
    entry = client.xadd(HANDOVER_STREAM, {"items": "[]"}).decode()  # type: ignore[union-attr]
    time.sleep(0.02)
    control.beat("0-0")
    assert replica.look().behind_s >= 0.02
    control.beat(entry)
    found = replica.look()
    assert (found.beat, found.behind_s, found.num_unsaved) == (2, 0.0, 1)
    replica.leave("r1")
    assert control.replicas() == []
    for each in (control, replica, client):
        each.close()


def test_a_server_that_came_back_with_less_is_told_everything_again(redis_server: RedisForTests) -> None:
    writer = ServingStateWriter(redis_server.url)
    writer.replace({})
    assert writer.is_known()
    client = redis_server.client()
    client.hset("ml_workbench:serving", "number", 0)
    assert not writer.is_known()
    client.close()
    writer.close()
