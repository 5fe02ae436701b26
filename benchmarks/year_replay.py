"""A year of hourly bars of twenty pairs at full speed through predict, queue and agent; nothing lost, nothing changed.

    python -m benchmarks.year_replay

A small GRU (float32, which is what recurrent gates of this kind are served in) is trained on twenty pairs of the
embedded sample's simulated hours, deployed, and `POST /replays` streams a year: at least 120,000 records. Shown:

    counts      bars asked about = published = enqueued and acknowledged for each group = applied by the agent
    balance     0 of each group, nothing dropped, expired or dead-lettered, nothing left in the stream
    equality    of 2,000 bars spread over the year: what the replay published, what `/predict` answers and what
                `/predict/batch` answers agree in status, prediction, outputs, interval, direction, confidence and
                novelty, to the bit

The replayed records are read from the stream by a group of the benchmark's own. `/predict` is asked by `as_of`, so that
the service fetches the same bars again; the year lies within what the model has seen, since a live interval of later
bars is stretched by what came true before it, which is asked about in its place (tests/serving/test_live_intervals.py).
"""

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.live_records import PAIRS
from benchmarks.running_service import RunningService, started
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tools.interleaved_rounds import Goal, conclude, show

TRAIN: dict[str, Any] = {
    "name": "year",
    "model_type": "time_series",
    "family": "gru",
    "features": ["return_1", "rsi_14", "macd", "bb_width"],
    "target": "price_change_1h",
    "symbols": list(PAIRS),
    "start_date": "2024-10-01T00:00:00Z",
    "end_date": "2025-02-01T00:00:00Z",
    "hyperparameters": {"gru_units": 16, "epochs": 1, "batch_size": 512},
    "validation_split": 0.2,
}
YEAR = ("2024-01-02T00:00:00Z", "2025-01-04T00:00:00Z")
FEWEST_RECORDS, NUM_COMPARED = 120_000, 2000
SAME = ("status", "prediction", "outputs", "interval", "direction", "confidence", "novelty", "price", "abstain_reasons")
GROUP = "year_replay"
PER_CALL = 250
PATIENCE_S = 60.0


@dataclass
class Listener:
    """Reads the stream as a group of its own and keeps one record in `every`."""

    queue: RedisPredictionQueue
    every: int
    kept: list[PredictionRecord] = field(default_factory=list)
    num: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    fault: str = ""

    def listen(self) -> None:
        """Reads until it is ended and nothing is left."""
        while True:
            batch = self.queue.consume(GROUP, "listener", count=256, block_ms=200)
            for delivery in batch:
                if delivery.record is None:
                    self.fault = delivery.fault
                elif self.num % self.every == 0:
                    self.kept.append(delivery.record)
                self.num += 1
            if batch:
                self.queue.ack(GROUP, [delivery.entry_id for delivery in batch])
            elif self.ended.is_set():
                return


def replay(service: RunningService, queue: RedisPredictionQueue, request: dict[str, Any], listener: Listener) -> Any:
    """The replay's result, and when the agent had applied everything, in seconds after it began."""
    queue.create_group(GROUP)
    thread = threading.Thread(target=listener.listen)
    thread.start()
    begun = time.monotonic()
    try:
        result = service.job("/api/v1/replays", request)["result"]
        while queue.accounting().length and time.monotonic() - begun < result["duration_s"] + PATIENCE_S:
            time.sleep(0.02)
        return result, time.monotonic() - begun
    finally:
        listener.ended.set()
        thread.join()


def check_counts(service: RunningService, result: dict[str, Any], listener: Listener) -> None:
    """Ends the benchmark where a record was lost, doubled or dropped."""
    accounting = service.call("GET", "/api/v1/queue")
    agent = service.call("GET", "/api/v1/agents/default")
    num = result["num_published"]
    faults = []
    if accounting["length"] or num + result["num_skipped"] != result["num_bars"]:
        faults.append(f"{accounting['length']} entries are left; {result}")
    for group in accounting["groups"]:
        others = ("pending", "undelivered", "dropped_oldest", "expired", "dead_lettered", "duplicates", "balance")
        if (group["enqueued"], group["acked"]) != (num, num) or any(group[name] for name in others):
            faults.append(f"the accounting of {group['group']}: {group}")
    if (agent["num_applied"], listener.num, listener.fault) != (num, num, ""):
        faults.append(f"{agent['num_applied']} applied, {listener.num} read ({listener.fault}), of {num}")
    if len(accounting["groups"]) != 2 or faults:
        raise SystemExit("; ".join(faults) or f"two groups were expected: {accounting}")


def differences(replayed: list[PredictionRecord], answered: list[dict[str, Any]]) -> list[str]:
    """Of the fields that must agree, exactly: floats are compared by value, and JSON keeps each to the bit."""
    found = []
    for record, answer in zip(replayed, answered, strict=True):
        said = record.model_dump(mode="json")
        found += [f"{said['symbol']} {said['as_of']} {name}" for name in SAME if said[name] != answer[name]]
    return found


def ask_again(service: RunningService, model_id: str, replayed: list[PredictionRecord]) -> dict[str, float]:
    """Asks `/predict` and `/predict/batch` about the same bars; how many records a second each answered."""
    items = [
        {"symbol": each.symbol, "timeframe": each.timeframe, "as_of": each.model_dump(mode="json")["as_of"]}
        for each in replayed
    ]
    path, rates = f"/api/v1/models/{model_id}/predict", {}
    for item in {each["symbol"]: each for each in items}.values():
        service.call("POST", path, item)  # the service reads each pair's series at its first question
    begun = time.monotonic()
    singles = [service.call("POST", path, item) for item in items]
    rates["single"] = len(items) / (time.monotonic() - begun)
    begun = time.monotonic()
    batches = [
        record
        for start in range(0, len(items), PER_CALL)
        for record in service.call("POST", f"{path}/batch", {"items": items[start : start + PER_CALL]})["predictions"]
    ]
    rates["batch"] = len(items) / (time.monotonic() - begun)
    for name, answered in (("single", singles), ("batch", batches)):
        found = differences(replayed, answered)
        if found:
            raise SystemExit(f"{name} and replayed predictions differ in {len(found)} places: {found[:5]}")
    return rates


def main() -> None:
    """Trains, replays, checks, and prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        embedded = EmbeddedRedis(Path(temporary) / "redis")
        url = embedded.start()
        queue = RedisPredictionQueue(url, capacity=100)
        try:
            with started(Path(temporary) / "service", REDIS_URL=url) as service:
                model_id = service.train(TRAIN)
                service.deploy(model_id)
                card = service.call("GET", f"/api/v1/models/{model_id}")
                if card["precision"] != "fp32":
                    raise SystemExit(f"the model is served in {card['precision']}, where batches are float32")
                request = {"model_id": model_id, "symbols": PAIRS, "start_date": YEAR[0], "end_date": YEAR[1]}
                listener = Listener(queue, every=FEWEST_RECORDS // NUM_COMPARED)
                result, elapsed_s = replay(service, queue, request, listener)
                check_counts(service, result, listener)
                rates = ask_again(service, model_id, listener.kept)
        finally:
            queue.close()
            embedded.stop()
    num = result["num_published"]
    rows = [
        ["replay: predicted and published", f"{num:,}", f"{num / result['duration_s']:,.0f}"],
        ["applied by the agent, from the replay's request on", f"{num:,}", f"{num / elapsed_s:,.0f}"],
        ["`/predict` by as_of, one at a time", f"{len(listener.kept):,}", f"{rates['single']:,.0f}"],
        [f"`/predict/batch` by as_of, {PER_CALL} at a time", f"{len(listener.kept):,}", f"{rates['batch']:,.0f}"],
    ]
    show("A year of hourly bars of twenty pairs", ["stage", "records", "records/s"], rows)
    print(f"  {result['num_abstained']:,} abstained, {result['num_skipped']:,} bars without a window; all counts agree")
    goals = [
        Goal("records replayed, applied once and balanced", num, FEWEST_RECORDS),
        Goal("bars whose replayed, single and batch answers are equal to the bit", len(listener.kept), NUM_COMPARED),
    ]
    conclude("year_replay", goals, {"result": result, "elapsed_s": elapsed_s, "records_per_s": rates})


if __name__ == "__main__":
    main()
