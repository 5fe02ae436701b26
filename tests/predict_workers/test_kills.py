"""Workers, control process and Redis are killed under load: only what was on a killed connection is lost to its asker,
and nothing that was answered is lost to the ledger."""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.predict_workers.conftest import (
    NUM_WORKERS,
    Load,
    figure,
    in_the_ledger,
    is_whole,
    readiness,
    start,
    wait_until,
    workers_below,
    workers_of,
)
from tests.service_process import ServiceProcess

NUM_CLIENTS = 6


@pytest.fixture(scope="module")
def mortal(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that lives through the tests in their order; each leaves it whole."""
    running = start(service, tmp_path_factory.mktemp("mortal_workers"))
    yield running
    running.close()


def lost_to_the_ledger(service: ServiceProcess, load: Load) -> set[str]:
    """What was answered and gets no row: what was handed over is applied a moment later, which is waited for."""
    asked = {record["prediction_id"] for record in load.answers}
    deadline = time.monotonic() + 60.0
    while (lost := asked - in_the_ledger(service).keys()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return lost


def lives(process: psutil.Process) -> bool:
    """Whether it runs, and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.more
def test_a_worker_that_dies_is_replaced_and_costs_nobody_elses_answer(mortal: ServiceProcess) -> None:
    load = Load(mortal.url, NUM_CLIENTS)
    for number in (0, 1):
        load.wait_for(100)
        worker = workers_of(mortal)[number]
        held = figure(mortal, "ml_workbench_predict_worker_connections", worker=str(number))
        num_broken = len(load.broken)
        worker.kill()
        wait_until(
            lambda killed=worker.pid, number=number: workers_of(mortal).get(number, psutil.Process()).pid != killed
        )  # type: ignore[misc]
        wait_until(lambda: is_whole(mortal))
        load.wait_for(100)
        assert len(load.broken) - num_broken <= held, "a question of each connection that it had"
    load.stop()
    assert load.refused == []
    assert figure(mortal, "ml_workbench_predict_worker_deaths_total") == 2
    assert lost_to_the_ledger(mortal, load) == set()
    assert figure(mortal, "ml_workbench_predictions_total") >= 200, "what the dead had counted stays"
    assert figure(mortal, "ml_workbench_handover_lost_total") == 0


@pytest.mark.more
def test_without_redis_answers_go_on_and_reach_the_ledger_later(mortal: ServiceProcess) -> None:
    load = Load(mortal.url, NUM_CLIENTS)
    load.wait_for(100)
    assert mortal.process is not None
    (server,) = [each for each in psutil.Process(mortal.process.pid).children() if "redis-server" in each.name()]
    server.kill()
    load.wait_for(200)
    wait_until(lambda: readiness(mortal)["state"] == "ok")
    load.wait_for(100)
    load.stop()
    assert (load.broken, load.refused) == ([], [])
    wait_until(lambda: figure(mortal, "ml_workbench_handover_waiting") == 0)
    assert lost_to_the_ledger(mortal, load) == set()


@pytest.mark.more
def test_a_killed_control_process_leaves_no_orphan_and_the_ledger_is_complete(mortal: ServiceProcess) -> None:
    load = Load(mortal.url, NUM_CLIENTS)
    load.wait_for(200)
    assert mortal.process is not None
    workers = workers_below(mortal.process.pid)
    assert len(workers) == NUM_WORKERS
    mortal.kill()
    wait_until(lambda: not any(map(lives, workers.values())))
    load.stop()
    mortal.start()
    wait_until(lambda: is_whole(mortal))
    assert lost_to_the_ledger(mortal, load) == set()
    again = Load(mortal.url, NUM_CLIENTS)
    again.wait_for(100)
    again.stop()
    assert (again.broken, again.refused) == ([], [])
    assert lost_to_the_ledger(mortal, again) == set()


@pytest.mark.more
def test_what_a_killed_service_left_is_applied_where_there_are_no_workers_any_more(mortal: ServiceProcess) -> None:
    load = Load(mortal.url, NUM_CLIENTS)
    load.wait_for(200)
    assert mortal.process is not None
    workers = list(workers_below(mortal.process.pid).values())
    mortal.kill()
    wait_until(lambda: not any(map(lives, workers)))
    load.stop()
    environment = mortal._environment
    environment["PREDICT_WORKERS"] = "0"
    mortal.start()
    assert lost_to_the_ledger(mortal, load) == set()
    assert "predict_workers" not in mortal.client.get("/health/ready").json()["things"]
    mortal.stop()
    environment["PREDICT_WORKERS"] = str(NUM_WORKERS)
    mortal.start()
    wait_until(lambda: is_whole(mortal))


@pytest.mark.more
def test_sigterm_ends_all_of_them_with_their_answers_out(mortal: ServiceProcess) -> None:
    load = Load(mortal.url, NUM_CLIENTS)
    load.wait_for(100)
    assert mortal.process is not None
    below = psutil.Process(mortal.process.pid).children(recursive=True)
    os.kill(mortal.process.pid, signal.SIGTERM)
    mortal.process.wait(timeout=60)
    wait_until(lambda: not any(map(lives, below)))
    load.stop()
    mortal.process = None
    assert load.refused == []
    mortal.start()
    wait_until(lambda: is_whole(mortal))
    assert lost_to_the_ledger(mortal, load) == set()
