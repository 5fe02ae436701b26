"""The whole story, as a user lives it: one service over HTTP, a real Redis, a real MLflow, and no other help.

Read it from top to bottom: health, the original specification's own training request, its predict body, a deployment,
two replays into the queue, an agent that is rewarded by realised price moves, MLflow's view of it all, and everything
there again after a restart. Each chapter goes on where the one before it ended.
"""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
import redis

from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from tests.integrations.mlflow_server import shared_server
from tests.redis_server import RedisForTests
from tests.service_process import SEED_PREDICT, SEED_TRAIN, ServiceProcess

MODEL = "lstm_price_predictor"
REPLAY_WEEKS = ("2025-01-05T22:00:00Z", "2025-02-03T18:00:00Z")  # four FX weeks and 20 hours: 500 hourly bars
DUMPING_MODULES = """
import json, os, runpy, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: open(os.environ["MODULES_FILE"], "w").write(json.dumps(sorted(sys.modules))))
sys.argv = ["tests.clocked_service"]
runpy.run_module("tests.clocked_service", run_name="__main__")
"""


class Story:
    """The service of this story, with the servers beside it, and what the chapters hand on to each other."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisForTests(folder / "redis_state")
        self.mlflow = shared_server()
        self.mlflow.start()
        self.modules_file = folder / "modules.json"
        self.service = ServiceProcess(
            folder,
            REDIS_URL=self.redis.url,
            EXPERIMENT_TRACKING_URI=self.mlflow.url,
            MODULES_FILE=str(self.modules_file),
        )
        self.command = [sys.executable, "-c", DUMPING_MODULES]
        self.service.start(self.command)
        self.job: dict[str, Any] = {}

    def loaded_modules(self) -> set[str]:
        """`sys.modules` of the running API process."""
        assert self.service.process is not None
        self.modules_file.unlink(missing_ok=True)
        self.service.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                return set(json.loads(self.modules_file.read_text()))
            except (FileNotFoundError, json.JSONDecodeError):
                time.sleep(0.05)
        raise AssertionError("the service did not list its modules")

    def close(self) -> None:
        self.service.close()
        self.redis.stop()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One service for all chapters."""
    telling = Story(tmp_path_factory.mktemp("story"))
    yield telling
    telling.close()


def test_1_the_service_is_healthy_and_says_what_it_works_with(story: Story) -> None:
    client = story.service.client
    assert client.get("/health").json() == {"status": "healthy", "version": "0.1.0"}
    things = client.get("/health/ready").json()["things"]
    assert things["feature_store"]["mode"] == "embedded"
    assert things["experiment_tracking"]["mode"] == "remote"
    assert (things["redis"]["mode"], things["redis"]["state"]) == ("remote", "ok")
    assert things["redis"]["last_ok_at"] is not None
    assert client.get("/api/v1/models").json() == {"models": [], "set_aside": [], "next_cursor": None}
    heavy = {"torch", "mlflow", "talib", "polars", "pandas", "currency_converter", "onnx", "lightgbm"}
    assert not heavy & story.loaded_modules()


@pytest.mark.timeout(400)
def test_2_the_seeds_training_succeeds_within_five_minutes_though_mlflow_goes_down(story: Story) -> None:
    begun = time.monotonic()
    accepted = story.service.client.post("/api/v1/models/train", json=SEED_TRAIN)
    assert accepted.status_code == 202, accepted.text
    assert accepted.headers["Location"] == f"/api/v1/jobs/{accepted.json()['job_id']}"
    assert (accepted.json()["model_id"], accepted.json()["version"]) == (MODEL, "1.0.0")
    path = accepted.headers["Location"]
    while story.service.client.get(path).json()["progress"]["step"] < 2 and time.monotonic() - begun < 120:
        time.sleep(0.1)
    story.mlflow.kill()
    story.job = story.service.wait_for_job(accepted.json()["job_id"], timeout_s=300)
    story.mlflow.start()
    assert story.job["status"] == "succeeded", story.job["error"]
    assert story.job["result"]["href"] == f"/api/v1/models/{MODEL}/versions/1.0.0"


def test_3_its_events_can_be_read_again_from_any_point(story: Story) -> None:
    with story.service.client.stream("GET", f"/api/v1/jobs/{story.job['id']}/events") as answer:
        lines = list(answer.iter_lines())
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert kinds[0] == "queued"
    assert kinds[-1] == "succeeded"
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert ids == list(range(1, len(ids) + 1))
    headers = {"Last-Event-ID": str(ids[-2])}
    with story.service.client.stream("GET", f"/api/v1/jobs/{story.job['id']}/events", headers=headers) as answer:
        again = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert again == ["event: succeeded"]


def test_4_the_model_is_listed_with_honest_figures(story: Story) -> None:
    model = story.service.client.get("/api/v1/models").json()["models"][0]
    assert list(model)[:7] == ["id", "name", "type", "version", "status", "created_at", "metrics"]
    assert (model["id"], model["name"], model["status"]) == (MODEL, "LSTM Price Predictor", "experimental")
    assert model["data_source"] == "simulated"
    card = story.service.client.get(story.job["result"]["href"]).json()
    assert card["evaluation"]["verdict"] == "not_applicable"
    assert 0.87 <= card["metrics"]["interval_coverage"] <= 0.93
    assert abs(card["metrics"]["skill_mse_against_random_walk"]) < 0.02, "simulated prices hold no signal to find"
    parts = card["split"]["num_windows"]
    assert parts["train"] > 4 * parts["stop"] > 0 < parts["calibrate"] < parts["test"]


def test_5_the_seeds_predict_body_answers_with_a_finite_prediction(story: Story) -> None:
    answer = story.service.client.post(f"/api/v1/models/{MODEL}/predict", json=SEED_PREDICT)
    assert answer.status_code == 200, answer.text
    record = answer.json()
    assert (record["status"], record["role"]) == ("ok", "candidate")
    assert math.isfinite(record["prediction"])
    assert record["interval"]["lower"] < record["prediction"] < record["interval"]["upper"]
    assert set(record["warnings"]) == {"as_of_assumed", "short_window", "unconditional_interval"}
    wild = {name: [*values[:-1], values[-1] * 50] for name, values in SEED_PREDICT["features"].items()}
    strange = story.service.client.post(f"/api/v1/models/{MODEL}/predict", json={**SEED_PREDICT, "features": wild})
    assert (strange.json()["status"], strange.json()["abstain_reasons"]) == ("abstain", ["novel_input"])


def test_6_the_version_is_deployed_and_the_list_says_so(story: Story) -> None:
    body = {
        "version": "1.0.0",
        "deployment_target": "strategy_engine",
        "scaling_factor": 1.0,
        "monitoring_level": "high",
    }
    deployment = story.service.client.post(f"/api/v1/models/{MODEL}/deploy", json=body).json()
    assert deployment["status"] == "live"
    assert "simulated_data" in deployment["warnings"]
    assert {gate["gate"]: gate["passed"] for gate in deployment["gate_results"]} == {
        "digest": True, "smoke_prediction": True, "leakage_certificate": True, "skill": False,
    }  # fmt: skip
    assert "no_proven_skill" in deployment["warnings"]
    assert story.service.client.get("/api/v1/models").json()["models"][0]["status"] == "deployed"
    live = story.service.client.post(f"/api/v1/models/{MODEL}/predict", json=SEED_PREDICT).json()
    assert live["role"] == "champion"
    notices = story.redis.client().xrange("ml_workbench:deployments")
    assert notices[-1][1][b"deployment_id"].decode() == deployment["id"]


def test_7_two_replays_reach_the_agent_and_every_record_counts_once(story: Story) -> None:
    client = story.service.client
    expected = 2001  # both replays, and the live prediction of the chapter before
    body = {
        "model_id": MODEL,
        "symbols": ["EUR/USD", "GBP/USD"],
        "start_date": REPLAY_WEEKS[0],
        "end_date": REPLAY_WEEKS[1],
    }
    for _ in range(2):
        job = story.service.wait_for_job(client.post("/api/v1/replays", json=body).json()["id"])
        assert job["status"] == "succeeded", job["error"]
        assert (job["result"]["num_bars"], job["result"]["num_published"]) == (1000, 1000)
    deadline = time.monotonic() + 30
    while client.get("/api/v1/agents/default").json()["num_applied"] < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.get("/api/v1/agents/default").json()["num_applied"] == expected
    while (accounting := client.get("/api/v1/queue").json())["length"] and time.monotonic() < deadline:
        time.sleep(0.05)  # what is applied is acknowledged once a checkpoint holds it
    assert (accounting["length"], accounting["pending"], accounting["undelivered"], accounting["balance"]) == (
        0,
        0,
        0,
        0,
    )
    assert accounting["dropped_oldest"] == accounting["dead_lettered"] == accounting["duplicates"] == 0


def test_8_rewards_and_costs_equal_an_independent_computation(story: Story) -> None:
    lanes = replayed_lanes(story.redis.client())
    assert len(lanes) == 4
    bars = true_bars(["EUR/USD", "GBP/USD"])
    total_reward = 0.0
    for lane, decisions in lanes.items():
        assert len(decisions) == 500
        symbol = lane.split("|")[2]
        shown = [bars[symbol][each["as_of"]] for each in decisions]
        assert [float(each["price"]) for each in decisions] == [bar.close for bar in shown]
        assert not any({"reward", "cost", "fill"} & each.keys() for each in decisions[:2]), "nothing is filled and over"
        before = 0
        for decided, filled, ended, told in zip(decisions, shown[1:], shown[2:], decisions[2:], strict=False):
            position = int(decided["position"])
            reward, cost = one_step(symbol, filled, ended, position=position, position_before=before)
            assert told["fill"] == "next_open"
            assert math.isclose(float(told["cost"]), cost, rel_tol=1e-9, abs_tol=1e-15)
            assert math.isclose(float(told["reward"]), reward, rel_tol=1e-9, abs_tol=1e-12)
            before = position
            total_reward += reward
        assert sum(float(each["cost"]) for each in decisions[2:]) > 0
    agent = story.service.client.get("/api/v1/agents/default").json()
    assert agent["num_actions"] >= 2000
    assert math.isclose(agent["cumulative_reward"], total_reward, rel_tol=1e-6, abs_tol=1e-9)
    assert agent["exploration_rate"] < 0.5


def test_9_both_log_files_tell_it(story: Story) -> None:
    queue_log = (story.service.folder / "logs" / "queue_processing.log").read_text()
    assert queue_log.count(": enqueue ") >= 2000
    assert queue_log.count(": dequeue ") >= 2000
    assert "latency_ms=" in queue_log
    rl_log = (story.service.folder / "logs" / "rl_training.log").read_text()
    assert rl_log.count("Action=") >= 2000
    assert "Cumulative Reward=" in rl_log


def test_a1_mlflow_knows_the_run_its_metrics_the_version_and_the_champion(story: Story) -> None:
    deadline = time.monotonic() + 120
    job = story.job
    while job["tracking"]["status"] != "synced" and time.monotonic() < deadline:
        time.sleep(0.25)
        job = story.service.client.get(f"/api/v1/jobs/{story.job['id']}").json()
    assert job["tracking"]["status"] == "synced", job["tracking"]
    api = f"{story.mlflow.url}/api/2.0/mlflow"
    run = story.service.client.get(f"{api}/runs/get", params={"run_id": job["tracking"]["run_id"]}).json()["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {tag["key"]: tag["value"] for tag in run["data"]["tags"]}["job_id"] == job["id"]
    query = {"run_id": job["tracking"]["run_id"], "metric_key": "stop_loss", "max_results": 1000}
    history = story.service.client.get(f"{api}/metrics/get-history", params=query).json()["metrics"]
    assert sorted(int(point["step"]) for point in history) == list(range(1, job["progress"]["step"] + 1))
    champion = {}
    while not champion and time.monotonic() < deadline:
        answer = story.service.client.get(f"{api}/registered-models/alias", params={"name": MODEL, "alias": "champion"})
        champion = answer.json().get("model_version", {})
    assert champion["run_id"] == job["tracking"]["run_id"]


def test_a2_the_api_process_never_met_torch_or_mlflow(story: Story) -> None:
    assert story.service.client.post(f"/api/v1/models/{MODEL}/predict", json={"symbol": "EUR/USD", "timeframe": "1h"})
    modules = story.loaded_modules()
    assert "talib" in modules, "it fetched features for that prediction"
    assert not {"torch", "mlflow", "sklearn", "lightgbm"} & modules


def test_a3_after_a_restart_everything_is_there_again(story: Story) -> None:
    client = story.service.client
    before = [client.get(path).json() for path in ("/api/v1/models", "/api/v1/jobs", "/api/v1/deployments")]
    deadline = time.monotonic() + 20
    while client.get("/api/v1/queue").json()["length"] and time.monotonic() < deadline:
        time.sleep(0.05)  # the last prediction is on its way to the agent
    agent = client.get("/api/v1/agents/default").json()
    assert story.service.stop() in (0, -signal.SIGTERM)  # uvicorn raises the signal again once all is closed
    story.service.start(story.command)
    assert [client.get(path).json() for path in ("/api/v1/models", "/api/v1/jobs", "/api/v1/deployments")] == before
    again = client.get("/api/v1/agents/default").json()
    assert {**again, "updated_at": None, "status": ""} == {**agent, "updated_at": None, "status": ""}
    record = client.post(f"/api/v1/models/{MODEL}/predict", json=SEED_PREDICT).json()
    assert (record["role"], record["version"]) == ("champion", "1.0.0")


def replayed_lanes(client: "redis.Redis") -> dict[str, list[dict[str, str]]]:
    """Decisions on replays, by series, in order."""
    lanes: dict[str, list[dict[str, str]]] = {}
    for _, fields in client.xrange("ml_workbench:decisions"):
        decision = {name.decode(): value.decode() for name, value in fields.items()}
        if decision["lane"].startswith("replay:"):
            lanes.setdefault(decision["lane"], []).append(decision)
    return lanes


class TrueBar(NamedTuple):
    """A bar of the sample as the store has it."""

    opened: datetime
    open: float
    close: float


def true_bars(symbols: list[str]) -> dict[str, dict[str, TrueBar]]:
    """Bars of the sample by the moment at which each became known."""
    tables = LocalFeatureStore(SampleRates()).fetch(
        symbols, "1h", start_ms=1_735_000_000_000, end_ms=1_740_000_000_000, features=["open", "close"]
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return {
        table.symbol: {
            (epoch + timedelta(milliseconds=int(known))).strftime("%Y-%m-%dT%H:%M:%SZ"): TrueBar(
                epoch + timedelta(milliseconds=int(opened)), float(open_), float(close)
            )
            for known, opened, open_, close in zip(
                table.available_at_ms, table.opened_ms, table.columns["open"], table.columns["close"], strict=True
            )
        }
        for table in tables
    }


def one_step(
    symbol: str, filled: TrueBar, ended: TrueBar, *, position: int, position_before: int
) -> tuple[float, float]:
    """Reward and cost of a position taken at one bar's open and held to the next one's, from the bars alone."""
    spread_pips = {"EUR/USD": 0.2, "GBP/USD": 0.6}[symbol] * session(filled.opened)
    per_unit = spread_pips * 0.0001 / 2 / filled.open + (0.35 + 0.1) * 1e-4
    swap_pips = {"EUR/USD": 0.237, "GBP/USD": 0.28}[symbol]
    swap = abs(position) * nights(filled.opened, ended.opened) * swap_pips * 0.0001 / filled.open
    cost = per_unit * abs(position - position_before)
    return math.log(1 + position * (ended.open / filled.open - 1) - cost - swap), cost + swap


def session(moment: datetime) -> float:
    """How much wider than in London's hours a spread is: by New York's clock, widest around the roll at 17:00."""
    there = moment.astimezone(ZoneInfo("America/New_York"))
    hour = there.hour + there.minute / 60
    if 16.5 <= hour < 17.5:
        return 5.0
    if 3 <= hour < 12:
        return 1.0
    return 1.2 if 12 <= hour < 16.5 else 1.5


def nights(begin: datetime, end: datetime) -> int:
    """Swap nights between two moments: each 17:00 New York roll counts one, Wednesday's three, the weekend's none."""
    new_york = ZoneInfo("America/New_York")
    count, day = 0, begin.astimezone(new_york).date() - timedelta(days=1)
    while day <= end.astimezone(new_york).date():
        roll = datetime(day.year, day.month, day.day, 17, tzinfo=new_york)
        if begin < roll <= end:
            count += (1, 1, 3, 1, 1, 0, 0)[day.weekday()]
        day += timedelta(days=1)
    return count
