"""Two workers and a control process on one port behave as the one process does."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import numpy as np
import pyarrow as pa
import pytest

from ml_workbench_service.access.operations import ARROW
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.predict_workers.conftest import (
    ASKED,
    NUM_WORKERS,
    Load,
    comparable,
    deploy,
    figure,
    in_the_ledger,
    is_in_force,
    readiness,
    wait_until,
    workers_of,
)
from tests.service_process import SEED_PREDICT, WEDNESDAY, ServiceProcess

PREDICT = "/api/v1/models/small/predict"
NUM_BARS = 40
HEAVY = ("torch", "mlflow", "talib", "polars", "pyarrow", "pandas", "scipy", "onnx.", "numba", "sklearn", "optuna")


@pytest.fixture(scope="module")
def single(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The same as one process."""
    folder = tmp_path_factory.mktemp("single")
    for version in ("1.0.0", "1.1.0"):
        copy_version(registry_of(service) / "small" / version, folder / "registry", "small", version)
    running = ServiceProcess(folder, AGENT_AUTOSTART="false").start()
    deploy(running, "1.0.0")
    yield running
    running.close()


def connections_to_each(service: ServiceProcess) -> list[httpx.Client]:
    """A connection to every worker: they are dealt out evenly."""
    clients = [httpx.Client(base_url=service.url, timeout=60.0) for _ in range(NUM_WORKERS)]
    for client in clients:
        assert client.get("/health").status_code == 200
    assert [figure(service, "ml_workbench_predict_worker_connections", worker=str(n)) >= 1 for n in range(NUM_WORKERS)]
    return clients


def test_answers_equal_those_of_one_process_to_the_bit(several: ServiceProcess, single: ServiceProcess) -> None:
    """Bar by bar, by workers in turn, with intervals that lean by what came true of all of them."""
    prices = 1.1 * np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.004, NUM_BARS)))
    clients, pairs = connections_to_each(several), []
    for number, price in enumerate(prices.tolist()):
        moment = WEDNESDAY.replace(minute=0) + timedelta(hours=number)
        several.clock.set(moment)
        single.clock.set(moment)
        body = {**SEED_PREDICT, "price": price}
        told = [client.post(PREDICT, json=body).json() for client in (clients[number % NUM_WORKERS], single.client)]
        again = [
            client.post(PREDICT, json=body).json() for client in (clients[(number + 1) % NUM_WORKERS], single.client)
        ]
        pairs += [told, again]
        wait_until(lambda: is_in_force(several))
    for client in clients:
        client.close()
    assert all(comparable(ours) == comparable(theirs) for ours, theirs in pairs)
    widths = {ours["interval"]["upper"] - ours["interval"]["lower"] for ours, _ in pairs if ours["interval"]}
    assert len(widths) > NUM_BARS / 4, "the intervals lean"
    cards = [each.client.get("/api/v1/models/small/versions/1.0.0").json() for each in (several, single)]
    assert cards[0]["live_intervals"] == cards[1]["live_intervals"]
    rows = [
        [{**row, "prediction_id": ""} for row in in_the_ledger(each).values()] for each in (several, single)
    ]  # newest first: the order in which they were asked
    assert rows[0] == rows[1]
    assert {row["outcome"]["state"] for row in rows[0]} >= {"known", "open"}


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", PREDICT, {"json": {**SEED_PREDICT, "unknown": 1}}),
        ("POST", PREDICT, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("POST", PREDICT, {"content": b"a=1", "headers": {"Content-Type": "text/plain"}}),
        ("POST", f"{PREDICT}?enqueue=perhaps", {"json": SEED_PREDICT}),
        ("POST", f"{PREDICT}/batch", {"json": {"items": [SEED_PREDICT, {"symbol": "EUR/USD", "features": {}}]}}),
        ("POST", "/api/v1/models/nobody/predict", {"json": SEED_PREDICT}),
        ("GET", PREDICT, {}),
        ("POST", PREDICT, {"json": {"symbol": "EUR/USD", "timeframe": "1h"}}),  # fetched by the control process
        ("POST", PREDICT, {"json": {"symbol": "EUR/USD", "as_of": "1999-01-04T00:00:00Z"}}),
        ("GET", "/api/v1/models/nobody", {}),
        ("GET", "/api/v1/models?limit=1&limit=2", {}),
        ("GET", "/nowhere", {}),
        ("GET", "/features", {}),  # what a worker asks the control process is nothing for others
        ("DELETE", "/health", {}),
        ("POST", "/api/v1/models/train", {"json": {"name": "x" * 100}}),
        ("POST", "/api/v1/models/train", {"content": b"[" + b" " * 17_000_000 + b"]"}),
        ("GET", "/api/v1/series", {"headers": {"Accept": "text/csv"}}),
    ],
)  # fmt: skip
def test_whatever_is_asked_is_answered_as_by_one_process(
    several: ServiceProcess, single: ServiceProcess, method: str, path: str, sent: dict[str, object]
) -> None:
    moment = WEDNESDAY + timedelta(days=7)
    answers = []
    for service in (several, single):
        service.clock.set(moment)
        request = service.client.build_request(method, path, **sent)  # type: ignore[arg-type]
        request.headers["X-Correlation-Id"] = "mine-1"
        if method == "POST" and "content-type" not in request.headers:
            request.headers["Content-Type"] = "application/json"
        answers.append(service.client.send(request))
    ours, theirs = answers
    assert ours.status_code == theirs.status_code
    left_out = ("date", "content-length", "transfer-encoding")
    assert [each for each in ours.headers.multi_items() if each[0] not in left_out] == [
        each for each in theirs.headers.multi_items() if each[0] not in left_out
    ]
    assert ours.headers["x-correlation-id"] == "mine-1"
    if ours.headers["content-type"] != "application/json":
        assert ours.content == theirs.content
        return
    told = [comparable(each) if "prediction_id" in each else each for each in (ours.json(), theirs.json())]
    if "predictions" in told[0]:
        told = [[comparable(x) if "metadata" in x else x for x in each["predictions"]] for each in told]  # type: ignore[misc]
    assert told[0] == told[1]


def test_tables_and_tensors_pass_a_worker_and_say_the_same(several: ServiceProcess, single: ServiceProcess) -> None:
    """The control process alone reads Arrow and the inference protocol; the answer is that of one process."""
    columns = SEED_PREDICT["features"]
    table = pa.table({"symbol": ["EUR/USD"], **{name: [values] for name, values in columns.items()}})
    sent = io.BytesIO()
    with pa.ipc.new_stream(sent, table.schema) as writer:
        writer.write_table(table)
    tensors = [
        {"name": name, "shape": [len(values)], "datatype": "FP64", "data": values} for name, values in columns.items()
    ]
    told = []
    for service in (several, single):
        arrow = service.client.post(f"{PREDICT}/batch", content=sent.getvalue(), headers={"Content-Type": ARROW})
        assert arrow.status_code == 200, arrow.text
        asked = {"inputs": tensors, "parameters": {"symbol": "EUR/USD"}}
        v2 = service.client.post("/v2/models/small/infer", json=asked)
        assert v2.status_code == 200, v2.text
        outputs = {each["name"]: each["data"] for each in v2.json()["outputs"]}
        row = pa.ipc.open_stream(arrow.content).read_all().to_pylist()[0]
        assert row["error"] is None
        told.append(
            (row["novelty.score"], row["abstain_reasons"], outputs["novelty.score"], outputs["abstain_reasons"])
        )
    assert told[0] == told[1]
    assert told[0][0] == told[0][2][0] > 0, "the same by either protocol"


def test_a_stream_is_passed_on_as_it_comes_and_ends_with_its_client(several: ServiceProcess) -> None:
    body = {
        "model_id": "followed", "name": "Followed", "model_type": "time_series", "target": "price_change_1h",
        "features": ["sma_20", "rsi_14"], "symbols": ["EUR/USD"], "start_date": "2024-11-01T00:00:00Z",
        "end_date": "2025-03-01T00:00:00Z",
        "hyperparameters": {"lstm_units": 4, "batch_size": 256, "epochs": 10_000, "patience": 10_000},
    }  # fmt: skip
    job_id = several.client.post("/api/v1/models/train", json=body).json()["job_id"]
    with several.client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as told:
        assert told.headers["content-type"].startswith("text/event-stream")
        lines = told.iter_lines()
        assert any(line.startswith("data:") for line in lines)
    assert several.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    assert several.wait_for_job(job_id)["status"] == "cancelled"


def test_metrics_are_those_of_all_processes(several: ServiceProcess) -> None:
    name = "ml_workbench_predictions_total"
    before = figure(several, name)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: httpx.post(f"{several.url}{PREDICT}", json=ASKED, timeout=60.0), range(40)))
    assert figure(several, name) == before + 40
    route = {"route": "/api/v1/models/{model_id}/predict", "status": "200"}
    assert figure(several, "ml_workbench_http_requests_total", **route) >= 40
    assert figure(several, "ml_workbench_inference_batch_size_count") > 0
    assert figure(several, "ml_workbench_predict_workers", state="serving") == NUM_WORKERS
    assert readiness(several)["state"] == "ok"


def test_connections_are_dealt_out_evenly(several: ServiceProcess) -> None:
    clients = [httpx.Client(base_url=several.url, timeout=60.0) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda client: client.get("/health"), clients))
    held = [figure(several, "ml_workbench_predict_worker_connections", worker=str(n)) for n in range(NUM_WORKERS)]
    for client in clients:
        client.close()
    assert min(held) >= 6, held


def test_a_worker_loads_no_library_of_the_workbench(several: ServiceProcess) -> None:
    several.client.post(PREDICT, json={"symbol": "EUR/USD", "timeframe": "1h"})
    for worker in workers_of(several).values():
        maps = {row.path for row in worker.memory_maps()}
        found = {name for name in HEAVY if any(f"/site-packages/{name}" in path for path in maps)}
        assert found == set()


def test_a_swap_is_seen_at_once_and_mixes_nothing(several: ServiceProcess) -> None:
    """One question, so each version has one answer; whoever deployed sees it from the next question on."""
    load = Load(several.url)
    said: dict[str, set[str]] = {}
    clients = connections_to_each(several)
    for number in range(30):
        version = f"1.{(number + 1) % 2}.0"
        deploy(several, version)
        assert {client.post(PREDICT, json=ASKED).json()["version"] for client in clients} == {version}
    load.stop()
    for record in load.answers:
        told = json.dumps([record["prediction"], record["outputs"], record["metadata"]["precision"]])
        said.setdefault(record["version"], set()).add(told)
        assert record["role"] == "champion"
    for client in clients:
        client.close()
    assert (load.broken, load.refused) == ([], [])
    assert {version: len(each) for version, each in said.items()} == {"1.0.0": 1, "1.1.0": 1}


@pytest.mark.parametrize("query", ["explain=true", "%65xplain=true", "enqueue=never&explain=true"])
def test_who_asks_for_reasons_is_answered_by_the_control_process(several: ServiceProcess, query: str) -> None:
    """Which has the table process; a worker would have said something else than the route's own words."""
    for client in connections_to_each(several):
        for path, body in (("", SEED_PREDICT), ("/batch", {"items": [SEED_PREDICT]})):
            answer = client.post(f"{PREDICT}{path}?{query}", json=body)
            assert answer.status_code == 422, answer.text
            assert "lightgbm and lightgbm_classifier can" in answer.json()["message"]
        client.close()
