"""Three replicas and a control plane behave as one process does, and go on without it."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.api.failures import assert_failure
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.predict_workers.conftest import ASKED, comparable, deploy, figure, in_the_ledger, wait_until
from tests.replicas.conftest import BOTH, NUM_REPLICAS, PREDICT, Fleet, FleetLoad
from tests.service_process import SEED_PREDICT, WEDNESDAY, ServiceProcess

NUM_BARS = 16
HEAVY = ("torch", "mlflow", "talib", "polars", "pyarrow", "pandas", "scipy", "onnx.", "numba", "sklearn", "optuna")


@pytest.fixture(scope="module")
def single(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The same as one process."""
    folder = tmp_path_factory.mktemp("single")
    for version in BOTH:
        copy_version(registry_of(service) / "small" / version, folder / "registry", "small", version)
    running = ServiceProcess(folder, AGENT_AUTOSTART="false").start()
    deploy(running, "1.0.0")
    yield running
    running.close()


def test_answers_equal_those_of_one_process_to_the_bit(fleet: Fleet, single: ServiceProcess) -> None:
    """Bar by bar, by replicas in turn, with intervals that lean by what came true of all of them."""
    prices = 1.1 * np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.004, NUM_BARS)))
    pairs = []
    for number, price in enumerate(prices.tolist()):
        moment = WEDNESDAY.replace(minute=0) + timedelta(hours=number)
        fleet.control.clock.set(moment)
        single.clock.set(moment)
        body = {**SEED_PREDICT, "price": price}
        pairs.append((fleet.ask(number % NUM_REPLICAS, body), single.client.post(PREDICT, json=body).json()))
        wait_until(fleet.is_level)
    assert all(comparable(ours) == comparable(theirs) for ours, theirs in pairs)
    widths = {ours["interval"]["upper"] - ours["interval"]["lower"] for ours, _ in pairs if ours["interval"]}
    assert len(widths) > NUM_BARS / 4, "the intervals lean"
    cards = [each.client.get("/api/v1/models/small/versions/1.0.0").json() for each in (fleet.control, single)]
    assert cards[0]["live_intervals"] == cards[1]["live_intervals"]
    rows = [[{**row, "prediction_id": ""} for row in in_the_ledger(each).values()] for each in (fleet.control, single)]
    assert rows[0] == rows[1]
    assert not (fleet.replicas[0].folder / "state").exists(), "a replica has no STATE_DIR"


def test_a_swap_is_seen_by_all_replicas_at_once_and_mixes_nothing(fleet: Fleet) -> None:
    load = FleetLoad([each.url for each in fleet.replicas])
    for number in range(8):
        version = BOTH[(number + 1) % 2]
        deploy(fleet.control, version)
        assert {fleet.ask(each, ASKED)["version"] for each in range(NUM_REPLICAS)} == {version}
    load.stop()
    said: dict[str, set[str]] = {}
    for record in load.answers:
        told = json.dumps([record["prediction"], record["outputs"], record["metadata"]["precision"]])
        said.setdefault(record["version"], set()).add(told)
        assert record["role"] == "champion"
    assert load.failed == []
    assert {version: len(each) for version, each in said.items()} == dict.fromkeys(BOTH, 1)


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/api/v1/models/train", {"json": {}}),
        ("POST", "/api/v1/models/small/deploy", {"json": {"version": "1.0.0"}}),
        ("GET", "/api/v1/jobs", {}),
        ("GET", "/docs", {}),
        ("POST", "/v2/models/small/infer", {"json": {}}),
        ("POST", f"{PREDICT}?explain=true", {"json": SEED_PREDICT}),
        ("POST", PREDICT, {"json": {"symbol": "EUR/USD", "timeframe": "1h"}}),
        ("POST", f"{PREDICT}/batch", {"json": {"items": [SEED_PREDICT] * 400}}),
    ],
)
def test_what_the_control_plane_does_is_answered_with_its_address(
    fleet: Fleet, method: str, path: str, sent: dict[str, object]
) -> None:
    answer = fleet.replicas[0].client.request(method, path, **sent)  # type: ignore[arg-type]
    assert_failure(answer, 421, "MISDIRECTED")
    assert fleet.control.url in answer.json()["message"]


def test_predictions_go_on_without_the_control_plane_and_their_rows_wait(fleet: Fleet) -> None:
    """Killed twice under load; the long form kills it twenty times."""
    load = FleetLoad([each.url for each in fleet.replicas])
    for _ in range(2):
        load.wait_for(50)
        fleet.control.kill()
        wait_until(lambda: fleet.things()["control_plane"]["state"] == "degraded")
        assert fleet.replicas[0].client.get("/health/ready").json()["status"] == "degraded"
        fleet.control.start()
    load.wait_for(50)
    load.stop()
    assert load.failed == []
    assert fleet.lost_to_the_ledger(load) == set()
    assert figure(fleet.control, "ml_workbench_handover_lost_total") == 0
    wait_until(lambda: fleet.things()["control_plane"]["state"] == "ok")
    told = fleet.control.client.get("/health/ready").json()["things"]["replicas"]
    assert told["detail"] == f"{NUM_REPLICAS} of {NUM_REPLICAS} that report are ready"


def test_a_replica_loads_no_library_of_the_workbench(fleet: Fleet) -> None:
    assert fleet.replicas[0].process is not None
    maps = Path(f"/proc/{fleet.replicas[0].process.pid}/maps").read_text(encoding="utf-8")
    assert {name for name in HEAVY if f"/site-packages/{name}" in maps} == set()
