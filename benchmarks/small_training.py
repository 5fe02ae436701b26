"""A small training from request to published version, beside the same work done again in a process that did it before.

    python -m benchmarks.small_training

A linear model on 12,000 hourly bars of a file: its training is a second, and what a user waits for beside it is ours to
answer for: the start of a process, its imports, the first fetch. Each round asks two services for the same training,
one that keeps a warm worker and one that does not, and does the work once more in this process, which has done it
before. The service's time is from the request to the job's final event, by polling; none trains while another is timed.
"""

import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.running_service import RunningService, started
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec, SilentReport
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.resources import Addresses, Workbench, close_workbench, open_workbench
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows import train
from ml_workbench_service.workflows.plan_training import plan_training
from tools.interleaved_rounds import Goal, Rounds, conclude, show

NUM_ROUNDS, NUM_BARS = 5, 12_000
POLL_S = 0.02
WARM, COLD, AGAIN = "with a warm worker", "without one", "the work again, in one process"
WAITS = "a warm worker waits"
MOST_RATIO = 2.0
NEW_YORK = ZoneInfo("America/New_York")
REQUEST: dict[str, Any] = {
    "name": "small",
    "model_type": "time_series",
    "family": "linear",
    "features": ["return_1", "sma_20", "rsi_14", "bb_width"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2023-01-01T00:00:00Z",
    "validation_split": 0.2,
}


def write_bars(file: Path) -> datetime:
    """A random walk over the hours of the FX week; the end of its range."""
    chance, price, at = np.random.default_rng(0), 1.1, datetime(2023, 1, 1, 22, tzinfo=UTC)
    lines = ["timestamp,open,high,low,close"]
    while len(lines) <= NUM_BARS:
        local = at.astimezone(NEW_YORK)
        since_sunday = (local.weekday() + 1) % 7 * 24 + local.hour
        if 17 <= since_sunday < 5 * 24 + 17:
            before, price = price, price * float(np.exp(chance.normal(0, 8e-4)))
            high, low = max(before, price) * 1.0002, min(before, price) * 0.9998
            lines.append(f"{at:%Y-%m-%dT%H:%M:%SZ},{before:.5f},{high:.5f},{low:.5f},{price:.5f}")
        at += timedelta(hours=1)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return at


def asked(service: RunningService, number: int) -> float:
    """Seconds from the request until the version is published."""
    begun = time.perf_counter()
    job_id = service.call("POST", "/api/v1/models/train", {**REQUEST, "model_id": f"small-{number}"})["job_id"]
    while (status := service.call("GET", f"/api/v1/jobs/{job_id}")["status"]) not in ("succeeded", "failed"):
        time.sleep(POLL_S)
    if status == "failed":
        raise SystemExit("the training failed")
    return time.perf_counter() - begun


def done(workbench: Workbench, folder: Path, number: int) -> float:
    """Seconds of the same work, from the checked request to the published version, in this process."""
    request = TrainRequest.model_validate({**REQUEST, "model_id": f"again-{number}"})
    begun = time.perf_counter()
    plan = plan_training(request, workbench, unfinished=[], max_memory_gb=16)
    spec = JobSpec(
        id=f"again-{number}", kind=JobKind.TRAIN, request=request.model_dump(mode="json"), plan=plan.to_json(),
        created_at=utc_now(), correlation_id="benchmark",
    )  # fmt: skip
    checkpoint = folder / f"checkpoint-{number}"
    checkpoint.mkdir()
    train.run(spec, checkpoint=checkpoint, report=SilentReport(lambda: None), workbench=workbench)
    return time.perf_counter() - begun


def wait_until_warm(folder: Path, num_times: int) -> None:
    """Until the service's worker has said so often that it waits."""
    log = folder / "logs" / "service.log"
    while not log.exists() or log.read_text(encoding="utf-8").count(WAITS) < num_times:
        time.sleep(0.1)


def main() -> None:
    """Measures the rounds and prints the table."""
    seconds = Rounds(bigger_is_better=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bars = folder / "bars"
        bars.mkdir()
        REQUEST["end_date"] = write_bars(bars / "EURUSD_1h.csv").strftime("%Y-%m-%dT%H:%M:%SZ")
        store = {"FEATURE_STORE_URL": bars.as_uri(), "AGENT_AUTOSTART": "false"}
        warm = stack.enter_context(
            started(folder / "warm", **store, WARM_WORKER="true", LOG_DIR=str(folder / "warm" / "logs"))
        )
        cold = stack.enter_context(started(folder / "cold", **store))
        settings = Settings(
            **{"FEATURE_STORE_URL": bars.as_uri(), "EXPERIMENT_TRACKING_URI": "disabled"},
            STATE_DIR=folder / "state", MODEL_REGISTRY_PATH=folder / "registry",
        )  # fmt: skip
        addresses = Addresses(bars.as_uri(), "disabled", False, None, False)
        workbench = open_workbench(settings, addresses)
        stack.callback(close_workbench, workbench)
        done(workbench, folder, 0)
        for number in range(1, NUM_ROUNDS + 1):
            wait_until_warm(folder / "warm", number)
            seconds.add(WARM, asked(warm, number))
            wait_until_warm(folder / "warm", number + 1)
            seconds.add(COLD, asked(cold, number))
            seconds.add(AGAIN, done(workbench, folder, number))
    names = (WARM, COLD, AGAIN)
    rows = [[name, f"{seconds.median(name):.2f}", f"{seconds.times_better(AGAIN, name):.2f}"] for name in names]
    show(f"A linear model on {NUM_BARS:,} bars, from request to version", ["", "seconds", "times the work again"], rows)
    goals = [
        Goal("with a warm worker, times the work again", seconds.times_better(AGAIN, WARM), MOST_RATIO, at_most=True)
    ]
    conclude("small_training", goals, seconds.figures)


if __name__ == "__main__":
    main()
