"""The registry in a bucket: conditional writes, the local mirror and cache, a store that is away, kills anywhere."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from common_lib.exceptions import (
    BundleDamagedError,
    BundleUnsignedError,
    ConflictError,
    ModelNotFoundError,
    UnavailableError,
    VersionExistsError,
)
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.integrations.object_registry import bundle_cache
from ml_workbench_service.integrations.object_registry.bucket import AlreadyThereError, Bucket, ChangedError
from ml_workbench_service.integrations.object_registry.kept_bucket import KeptBucket
from ml_workbench_service.integrations.object_registry.mirror import Mirror
from ml_workbench_service.integrations.object_registry.registry import ObjectModelRegistry
from ml_workbench_service.integrations.object_registry.uploads import sweep
from ml_workbench_service.learning.bundle.signatures import Signatures
from tests.integrations.bundles import flip_a_byte
from tests.integrations.object_store import ObjectStore
from tests.integrations.registry_places import BucketPlace, OpenPlace
from tests.integrations.test_deployment_history import deployment
from tests.integrations.test_model_registry import content, publish


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.more)])
def place(request: pytest.FixtureRequest, tmp_path: Path, registry_places: OpenPlace) -> BucketPlace:
    """An empty bucket."""
    found = registry_places(request.param, tmp_path)
    assert isinstance(found, BucketPlace)
    return found


def opened(place: BucketPlace, *, cache_gb: float = 1.0) -> ObjectModelRegistry:
    return place.registry(cache_gb=cache_gb, live_version=lambda _: None)


def keys(place: BucketPlace, prefix: str = "") -> list[str]:
    return [each.key for each in place.bucket.listed(prefix)]


def test_a_store_that_keeps_conditions_is_taken(place: BucketPlace) -> None:
    place.bucket.check_conditions()
    assert keys(place) == []
    etag = place.bucket.create("key", b"first")
    assert place.bucket.create("key", b"first") == etag, "an answer that was lost is no second writer"
    with pytest.raises(AlreadyThereError):
        place.bucket.create("key", b"second")
    place.bucket.replace("key", b"third", etag=etag)
    with pytest.raises(ChangedError):
        place.bucket.replace("key", b"fourth", etag=etag)


def test_a_store_that_takes_no_notice_of_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rclone's S3 server, which answers 200 to every write."""
    plain = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, key, payload, **_: plain(store, key, payload))
    with pytest.raises(UnavailableError, match="takes no notice of If-None-Match"):
        Bucket("s3://bucket", store=MemoryStore()).check_conditions()


def test_a_store_that_cannot_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="takes no notice"):
        Bucket("s3://bucket", store=LocalStore(tmp_path)).check_conditions()


def test_another_machine_sees_versions_and_reads_them_whole(place: BucketPlace) -> None:
    here, there = opened(place), opened(place)
    publish(here)
    assert there.versions("model") == []
    there.mirror.refresh()
    assert there.versions("model") == ["1.0.0"]
    assert there.verify("model", "1.0.0") == here.card("model", "1.0.0").digest
    assert content(there.folder("model", "1.0.0")) == content(here.folder("model", "1.0.0"))
    assert there.file("model", "1.0.0", "no such file") is None
    assert here.folder("model", "1.0.0").parent != there.folder("model", "1.0.0").parent
    assert len(keys(place, "state/")) == 1, "one object is all that publishing makes visible"


def test_of_many_machines_that_publish_one_version_one_does(place: BucketPlace) -> None:
    machines = [opened(place) for _ in range(4)]

    def attempt(number: int) -> bool:
        try:
            publish(machines[number], weights=str(number))
        except VersionExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(attempt, range(4))) == 1
    reader = opened(place)
    reader.verify("model", "1.0.0")
    assert len({key.split("/")[3] for key in keys(place, "bundles/")}) == 1, "uploads in vain are removed"


def test_writers_on_two_machines_lose_no_line(place: BucketPlace) -> None:
    machines = [place.history() for _ in range(3)]

    def several(number: int) -> None:
        for each in range(10):
            machines[number].append(deployment(100 * number + each, "pending"))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(several, range(3)))
    found = place.history().of("model")
    assert sorted(each.id for each in found) == sorted(
        f"deployment-{100 * number + each}" for number in range(3) for each in range(10)
    )


def test_a_swap_relies_on_what_was_there_when_it_began(place: BucketPlace) -> None:
    here, there = place.history(), place.history()
    here.append(deployment(0))
    with here.locked("model"):
        here.append(deployment(1, "pending"))
        there.append(deployment(2))
        with pytest.raises(ConflictError, match="meanwhile"):
            here.append(deployment(1))
    assert place.history().live_version("model") == "1.2.0"
    with here.locked("model"):
        assert here.live_version("model") == "1.2.0", "who begins looks first"
        here.append(deployment(3))
    assert here.take_back(deployment(3))
    assert not here.take_back(deployment(0))
    assert place.history().live_version("model") == "1.2.0"


def test_a_deployment_and_a_purge_on_two_machines_exclude_each_other(place: BucketPlace) -> None:
    registry, history = opened(place), place.history()
    publish(registry)
    with history.locked("model"):
        registry.purge("model", ["1.0.0"], ever_live=frozenset(), correlation_id="test")
        with pytest.raises(ConflictError, match="meanwhile"):
            history.append(deployment(0, version="1.0.0"))
    assert history.live("model") is None


def test_a_purged_number_is_never_used_again(place: BucketPlace) -> None:
    here, there = opened(place), opened(place)
    publish(here)
    there.mirror.refresh()
    here.purge("model", ["1.0.0"], ever_live=frozenset(), correlation_id="test")
    assert keys(place, "bundles/") == []
    with pytest.raises(VersionExistsError, match="purged"):
        publish(there)
    assert there.versions("model") == []
    assert list(there.tombstones("model")) == ["1.0.0"]
    assert not there.mirror.read_version("model", "1.0.0").content.startswith(b'{"upload')


def test_a_purge_that_was_cut_off_is_finished_at_the_next_start(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = opened(place)
    publish(here)
    with monkeypatch.context() as patched:
        patched.setattr(here, "_remove_purged", lambda _: None)
        here.purge("model", ["1.0.0"], ever_live=frozenset(), correlation_id="test")
    again = opened(place)
    assert again.versions("model") == []
    assert keys(place, "bundles/")
    again.finish_purges()
    assert keys(place, "bundles/") == []


def test_a_damaged_cache_is_fetched_anew(place: BucketPlace) -> None:
    here, there = opened(place), opened(place)
    publish(here)
    there.mirror.refresh()
    whole = content(there.folder("model", "1.0.0"))
    flip_a_byte(there.folder("model", "1.0.0") / "weights.safetensors")
    assert content(there.folder("model", "1.0.0")) == whole
    (there.folder("model", "1.0.0") / "model.onnx").unlink()
    there.verify("model", "1.0.0")
    assert content(there.folder("model", "1.0.0")) == whole
    (there.root / "model" / "1.0.0" / "card.json").write_text("{")
    assert there.card("model", "1.0.0").name == "A model"


def test_what_is_damaged_in_the_bucket_is_set_aside(place: BucketPlace) -> None:
    here, there = opened(place), opened(place)
    publish(here)
    [key] = [each for each in keys(place, "bundles/") if each.endswith("weights.safetensors")]
    there.mirror.refresh()
    obstore.put(place.bucket._requests, key, b"x")
    with pytest.raises(BundleDamagedError, match="weights"):
        there.folder("model", "1.0.0")
    assert [each.version for each in there.set_aside()] == ["1.0.0"]
    assert not list(there.cache.root.glob("*/*"))


def test_the_cache_keeps_to_its_bytes(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    here = opened(place)
    for number in range(4):
        publish(here, version=f"1.{number}.0")
    size = here.card("model", "1.0.0").size_bytes
    there = opened(place, cache_gb=2.5 * size / 1e9)
    monkeypatch.setattr(bundle_cache, "IN_USE_S", 0.0)
    for number in (0, 1, 0, 2, 3):
        there.verify("model", f"1.{number}.0")
        time.sleep(0.02)
    assert sorted(each.name for each in there.cache.root.glob("*/*")) == ["1.2.0", "1.3.0"]
    assert there.cache.num_bytes() <= 2.5 * size
    there.verify("model", "1.0.0")


def test_who_is_not_trusted_is_not_served(place: BucketPlace, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    mine = Signatures(tmp_path / "mine", holds_key=True)
    theirs = Signatures(tmp_path / "theirs", holds_key=True)
    theirs.begin_to_trust()
    here = place.registry(live_version=lambda _: None, signatures=mine)
    publish(here)
    assert here.verify("model", "1.0.0")
    there = place.registry(live_version=lambda _: None, signatures=theirs)
    with pytest.raises(BundleUnsignedError):
        there.verify("model", "1.0.0")
    card = here.card("model", "1.0.0")
    theirs.sign(there.folder("model", "1.0.0"), card, by="command")
    there.signed("model", "1.0.0")
    assert there.verify("model", "1.0.0") == card.digest
    here.mirror.refresh()
    assert here.verify("model", "1.0.0") == card.digest, "both have signed"


def test_uploads_that_nobody_finishes_are_swept(place: BucketPlace) -> None:
    here = opened(place)
    publish(here)
    kept = keys(place, "bundles/")
    left = f"bundles/model/1.1.0/{'a' * 32}/model.onnx"
    place.bucket.create(left, b"half")
    now = utc_now()
    assert sweep(here.mirror, untouched_since=now - timedelta(days=7), now=now) == []
    later = now + timedelta(days=8)
    assert sweep(here.mirror, untouched_since=later - timedelta(days=7), now=later) == [left.removesuffix("model.onnx")]
    assert keys(place, "bundles/") == kept


def test_who_asks_for_what_is_not_there_leaves_nothing_behind(place: BucketPlace) -> None:
    here = opened(place)
    os.utime(here.mirror.cache / "synced", (0, 0))
    for name in ("unknown", "../model", "a/b", ".."):
        with pytest.raises(ModelNotFoundError):
            here.card(name, "1.0.0")
    assert list(here.root.iterdir()) == []
    assert [each.name for each in (here.mirror.cache / "locks").iterdir()] in ([], ["unknown.lock"])


def test_a_quiet_bucket_costs_one_listing(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    here = opened(place)
    for number in range(3):
        publish(here, f"model_{number}")
    there, asked = opened(place), []
    plain = Bucket.listed
    monkeypatch.setattr(Bucket, "listed", lambda self, prefix: asked.append(prefix) or plain(self, prefix))
    monkeypatch.setattr(Bucket, "read", lambda *_, **__: pytest.fail("nothing has changed"))
    for _ in range(3):
        there.mirror.refresh()
    assert asked == ["state/"] * 3
    asked.clear()
    assert len(there.model_ids()) == 3
    assert [there.served_card(each).version for each in there.model_ids()] == ["1.0.0"] * 3
    assert asked == [], "lists ask this disk alone"


@pytest.mark.more
def test_what_is_cached_goes_on_while_the_store_is_away(tmp_path: Path, object_store: ObjectStore) -> None:
    place = BucketPlace(tmp_path, Bucket(object_store.new_bucket()))
    here, history = opened(place), place.history()
    publish(here)
    history.append(deployment(0, version="1.0.0"))
    kept = KeptBucket(here.mirror)
    assert kept.thing().state == "ok"
    object_store.freeze()
    try:
        for write in (
            lambda: publish(here, version="1.1.0"),
            lambda: here.archive("model", "1.0.0"),
            lambda: here.taken("model"),
            lambda: history.append(deployment(1)),
        ):
            begun_s = time.monotonic()
            with pytest.raises(UnavailableError, match="does not answer") as refused:
                write()
            assert time.monotonic() - begun_s < 15
            assert refused.value.retry_after_s
            assert "tests-secret-key" not in str(refused.value)
        begun_s = time.monotonic()
        assert here.verify("model", "1.0.0") == here.card("model", "1.0.0").digest
        assert history.live_version("model") == "1.0.0"
        assert time.monotonic() - begun_s < 1
        with pytest.raises(UnavailableError):
            here.mirror.refresh()
        os.utime(here.mirror.cache / "synced", (0, 0))
        assert kept.thing().state == "degraded"
        assert "does not answer" in kept.thing().detail
        again = Mirror(place.bucket, here.mirror.cache)
        again.open()  # a start goes on with what is cached
        with pytest.raises(UnavailableError):
            Mirror(place.bucket, tmp_path / "empty").open()
    finally:
        object_store.thaw()
    publish(here, version="1.1.0")
    assert here.versions("model") == ["1.1.0", "1.0.0"]


@pytest.mark.more
def test_wrong_credentials_and_buckets_name_the_next_step(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="no such bucket"):
        Bucket("s3://nobody-made-this/x").create("key", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begun_s = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        Bucket("s3://bucket/x").listed("state/")
    assert time.monotonic() - begun_s < 15


STEP = """
import os, signal, sys
from pathlib import Path
from ml_workbench_service.integrations.object_registry.bucket import Bucket
from tests.integrations.registry_places import BucketPlace
from tests.integrations.test_deployment_history import deployment
from tests.integrations.test_model_registry import publish

step, address, folder, kill_at = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
place = BucketPlace(folder, Bucket(address))
registry, history = place.registry(live_version=lambda _: None), place.history()
num = 0

def count():
    global num
    num += 1
    if num == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(plain):
    def call(*arguments, **options):
        count()
        found = plain(*arguments, **options)
        count()
        return found
    return call

for name in ("create", "replace", "upload", "remove"):
    setattr(Bucket, name, counted(getattr(Bucket, name)))
if step == "publish":
    publish(registry, version="1.1.0")
elif step == "deploy":
    with history.locked("model"):
        history.append(deployment(1, "pending"))
        before = history.live("model")
        history.append(deployment(1), before.model_copy(update={"status": "superseded"}))
else:
    registry.purge("model", ["1.0.0"], ever_live=frozenset(), correlation_id="test")
print(num)
"""


def run_step(step: str, address: str, folder: Path, *, kill_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STEP, step, address, str(folder), str(kill_at)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.more
@pytest.mark.parametrize("step", ["publish", "deploy", "purge"])
def test_a_kill_anywhere_leaves_the_old_state_or_the_new_one(
    step: str, tmp_path: Path, object_store: ObjectStore
) -> None:
    seen, kill_at = set(), 0
    while True:
        kill_at += 1
        place = BucketPlace(tmp_path / f"before-{kill_at}", Bucket(object_store.new_bucket()))
        registry = opened(place)
        publish(registry)
        place.history().append(deployment(0, version="1.0.0"))
        ended = run_step(step, place.bucket.address, tmp_path / f"killed-{kill_at}", kill_at=kill_at)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        reader, history = opened(place), place.history()
        found = (tuple(reader.versions("model")), history.live_version("model"), tuple(reader.tombstones("model")))
        for version in found[0]:
            reader.verify("model", version)
        assert found[1] is not None
        seen.add(found)
        reader.finish_purges()
        later = utc_now() + timedelta(days=8)
        sweep(reader.mirror, untouched_since=later - timedelta(days=7), now=later)
        uploads = {key.rsplit("/", 1)[0] for key in keys(place, "bundles/")}
        assert len(uploads) == len(found[0]), "nothing that nobody sees stays"
        if step == "publish" and found[0] == ("1.0.0",):
            publish(reader, version="1.1.0")  # nothing stands in the way of the next try
        if ended.returncode == 0:
            break
    expected = {
        "publish": {(("1.0.0",), "1.0.0", ()), (("1.1.0", "1.0.0"), "1.0.0", ())},
        "deploy": {(("1.0.0",), "1.0.0", ()), (("1.0.0",), "1.1.0", ())},
        "purge": {(("1.0.0",), "1.0.0", ()), ((), "1.0.0", ("1.0.0",))},
    }[step]
    assert seen == expected
    assert kill_at > {"publish": 10, "deploy": 4, "purge": 4}[step], "so many kills"
