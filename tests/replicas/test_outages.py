"""Control plane, Redis and replicas are killed under load: answers go on, and each is in the ledger once."""

import base64
from contextlib import ExitStack
from pathlib import Path

import pytest

from ml_workbench_service.access.signing_keys import PUBLIC_FILE, TrustedKeys
from tests.api.failures import assert_failure
from tests.predict_workers.conftest import ASKED, deploy, figure, in_the_ledger, wait_until
from tests.replicas.conftest import PREDICT, REPLICA, Fleet, FleetLoad, is_ready, replica_of

pytestmark = pytest.mark.more

NUM_KILLS = 20


def test_the_control_plane_is_killed_twenty_times(fleet: Fleet) -> None:
    load = FleetLoad([each.url for each in fleet.replicas])
    for _ in range(NUM_KILLS):
        load.wait_for(20)
        fleet.control.kill()
        load.wait_for(20)
        fleet.control.start()
    load.stop()
    assert load.failed == []
    assert fleet.lost_to_the_ledger(load) == set()
    answered = {record["prediction_id"] for record in load.answers}
    assert len(in_the_ledger(fleet.control)) == len(answered), "each of them once, and nothing else"
    assert figure(fleet.control, "ml_workbench_handover_lost_total") == 0


def test_without_redis_answers_go_on_and_reach_the_ledger_later(fleet: Fleet) -> None:
    load = FleetLoad([each.url for each in fleet.replicas])
    load.wait_for(50)
    fleet.redis.kill()
    load.wait_for(50)
    wait_until(lambda: fleet.things()["redis"]["state"] == "degraded")
    assert fleet.replicas[0].client.get("/health/ready").status_code == 200
    fleet.redis.start()
    wait_until(lambda: fleet.things()["serving_state"]["state"] == "ok")
    load.wait_for(50)
    load.stop()
    assert load.failed == []
    wait_until(fleet.is_quiet)
    assert fleet.lost_to_the_ledger(load) == set()
    deploy(fleet.control, "1.1.0")
    wait_until(lambda: {fleet.ask(each, ASKED)["version"] for each in range(len(fleet.replicas))} == {"1.1.0"})
    deploy(fleet.control, "1.0.0")


def test_without_both_what_was_live_last_is_served(fleet: Fleet) -> None:
    load = FleetLoad([each.url for each in fleet.replicas])
    load.wait_for(20)
    fleet.control.kill()
    fleet.redis.kill()
    load.wait_for(100)
    assert {record["version"] for record in load.answers} == {"1.0.0"}
    fleet.redis.start()
    fleet.control.start()
    load.wait_for(20)
    load.stop()
    assert load.failed == []
    wait_until(fleet.is_quiet)
    assert fleet.lost_to_the_ledger(load) == set()


def test_a_killed_replica_costs_nobody_elses_answer_and_none_of_its_rows(fleet: Fleet) -> None:
    load = FleetLoad([each.url for each in fleet.replicas])
    load.wait_for(50)
    fleet.replicas[0].kill()
    wait_until(lambda: len(load.loads[1].answers) > 100)
    fleet.replicas[0].start(REPLICA)
    wait_until(lambda: is_ready(fleet.replicas[0]))
    load.wait_for(20)
    load.stop()
    assert [each.refused + each.broken for each in load.loads[1:]] == [[], []]
    assert load.loads[0].refused == []
    assert fleet.lost_to_the_ledger(load) == set()


def test_a_replica_starts_from_the_registry_alone_with_a_pinned_key(fleet: Fleet, tmp_path: Path) -> None:
    trusted = TrustedKeys(fleet.control.folder / "state")
    assert trusted.path.name == PUBLIC_FILE
    pinned = ",".join(base64.b64encode(each).decode() for each in trusted._known().values())
    nowhere = f"unix://{tmp_path}/nobody.sock"
    with ExitStack() as stack:
        alone = replica_of(fleet.control, tmp_path / "alone", nowhere, SIGNING_KEYS=pinned, API_KEY="a-key-of-tests")
        stack.callback(alone.close)
        alone.client.headers["X-API-Key"] = "a-key-of-tests"
        alone.start(REPLICA)
        wait_until(lambda: is_ready(alone))
        assert alone.client.get("/health/ready").json()["status"] == "degraded"
        assert alone.client.post(PREDICT, json=ASKED).json()["role"] == "champion"
        refused = alone.client.post(PREDICT, json=ASKED, headers={"X-API-Key": "another"})
        assert_failure(refused, 401, "AUTHENTICATION_ERROR")


def test_a_replica_serves_nothing_that_its_pinned_key_has_not_signed(fleet: Fleet, tmp_path: Path) -> None:
    other = base64.b64encode(b"k" * 32).decode()
    with ExitStack() as stack:
        strict = replica_of(fleet.control, tmp_path / "strict", fleet.redis.url, SIGNING_KEYS=other)
        stack.callback(strict.close)
        strict.start(REPLICA)
        wait_until(lambda: "small 1.0.0" in strict.client.get("/health/ready").text)
        answer = strict.client.get("/health/ready")
        assert_failure(answer, 503, "UNAVAILABLE")
        assert "keys that this service does not know" in answer.json()["message"]
        assert_failure(strict.client.post(PREDICT, json=ASKED), 409, "BUNDLE_UNSIGNED")
