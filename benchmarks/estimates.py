"""Estimates of memory beside the measured peak: every family, in the worker process that trains it.

    python -m benchmarks.estimates [NAME …]         all cases, or those whose names begin so

A running service is asked for each training; its 202 says the estimate. The peak is the most that the worker's session
held (`runtime/session_memory.py`, what the watchdog ends a job by): looked at every 20 ms, and the kernel's own high
mark of the leader, which misses nothing. Trainings stop after a few passes: what they hold they hold in the first.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.running_service import JOB_TIMEOUT_S, RunningService, started
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.runtime.session_memory import session_bytes
from tools.interleaved_rounds import Goal, conclude, show

LOOK_S = 0.02
BYTES_PER_GB = 1e9
MOST_OFF = 0.25
"""How far an estimate may lie from the peak, as a share of the peak."""
NEW_YORK = ZoneInfo("America/New_York")
HOURS_A_WEEK = 120
FIRST_WEEK = datetime(2000, 1, 2, tzinfo=UTC)
NUM_WEEKS = 1250
SYMBOLS = ("XAU/USD", "XAG/USD")
"""Which nobody holds against the fixings of the European Central Bank."""
COSTS = dict.fromkeys(("spread_pips", "commission_bp", "slippage_bp", "swap_long_pips", "swap_short_pips"), 0.5)
FORECAST = {"model_type": "time_series", "target": "price_change_1h"}
CLASSES = {"model_type": "classification", "target": "direction_1h"}
POLICY = {"model_type": "reinforcement_learning"}
ANOMALIES = {"model_type": "anomaly_detection"}
SEARCH = {"model_type": "feature_engineering", "target": "price_change_1h"}


@dataclass(frozen=True)
class Case:
    """One training: its family, how much it reads, and the sizes that differ from the defaults."""

    family: str
    asked: Mapping[str, Any]
    num_weeks: int = 60
    num_symbols: int = 1
    num_features: int = 4
    sizes: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as `lstm, 7,200 rows x 4, lookback 60`."""
        rows = self.num_weeks * HOURS_A_WEEK * self.num_symbols
        shown = {**{k: v for k, v in self.sizes.items() if k not in ("epochs", "patience")}, **self.further}
        return ", ".join([self.family, f"{rows:,} rows x {self.num_features}", *(f"{k} {v}" for k, v in shown.items())])

    def body(self, number: int) -> dict[str, Any]:
        """The request."""
        features = ["return_1", "rsi_14", "bb_width", *(f"sma_{each}" for each in range(2, self.num_features + 10))]
        return {
            "name": "measured", "model_id": f"measured-{number}", "family": self.family, **self.asked,
            "timeframe": "1h", "symbols": list(SYMBOLS[: self.num_symbols]), "validation_split": 0.2,
            "features": features[: self.num_features],
            "start_date": FIRST_WEEK.isoformat().replace("+00:00", "Z"),
            "end_date": (FIRST_WEEK + timedelta(weeks=self.num_weeks)).isoformat().replace("+00:00", "Z"),
            "hyperparameters": dict(self.sizes), "costs": COSTS, **self.further,
        }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was said, what was held (GB), and at which step."""

    estimated: float
    peak: float
    step: str
    seconds: float

    @property
    def ratio(self) -> float:
        """The estimate by the peak."""
        return self.estimated / self.peak


def write_bars(file: Path, *, num_weeks: int, seed: int) -> None:
    """A random walk over the hours of the FX week."""
    chance = np.random.default_rng(seed)
    closes = 1.1 * np.exp(np.cumsum(chance.normal(0, 8e-4, num_weeks * HOURS_A_WEEK)) * 0.1)
    lines, before = ["timestamp,open,high,low,close"], 1.1
    for week in range(num_weeks):
        day = (FIRST_WEEK + timedelta(weeks=week)).date()
        opens = datetime(day.year, day.month, day.day, 17, tzinfo=NEW_YORK).astimezone(UTC)
        for hour in range(HOURS_A_WEEK):
            close = float(closes[week * HOURS_A_WEEK + hour])
            high, low = max(before, close) * 1.0002, min(before, close) * 0.9998
            opened = f"{opens + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"
            lines.append(f"{opened},{before:.5f},{high:.5f},{low:.5f},{close:.5f}")
            before = close
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(service: RunningService, jobs: Path, body: Mapping[str, Any]) -> Measured:
    """Trains once; ends the benchmark where the training fails."""
    begun = time.monotonic()
    accepted = service.call("POST", "/api/v1/models/train", body)
    folder = JobFolder(jobs / accepted["job_id"])
    peak, step = 0.0, ""
    while not folder.has_ended:
        time.sleep(LOOK_S)
        worker = folder.worker()
        if worker is not None:
            held = max(session_bytes(worker), _high_mark(worker.pid)) / BYTES_PER_GB
            if held > peak:
                peak, step = held, folder.job().progress.message or ""
        else:
            service.call("GET", "/health")  # raises where the service has ended, and no worker will come
        if time.monotonic() - begun > JOB_TIMEOUT_S:
            raise SystemExit(f"the training did not end in {JOB_TIMEOUT_S:.0f} s")
    if folder.job().status != "succeeded":
        raise SystemExit(f"the training failed: {folder.job().error}")
    return Measured(accepted["estimate"]["memory_gb"], peak, step, time.monotonic() - begun)


def _high_mark(pid: int) -> int:
    """Bytes of the most that the process has held; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def cases() -> list[Case]:
    """Each family small, long, wide, and with what else makes it large."""
    two, wide = {"epochs": 2}, {"epochs": 2, "lookback": 96}
    long: dict[str, Any] = {"num_weeks": NUM_WEEKS, "num_symbols": 2}
    found = [
        Case("linear", FORECAST, sizes=two),
        Case("linear", FORECAST, sizes=two, **long),
        Case("linear", FORECAST, sizes={**two, "lookback": 240}, num_features=40),
        Case("linear", FORECAST, sizes=two, num_features=40, num_weeks=NUM_WEEKS),
        Case("lstm", FORECAST, sizes=two),
        Case("lstm", FORECAST, sizes={**wide, "lstm_units": 256, "batch_size": 1024}, num_weeks=24),
        Case("lstm", FORECAST, sizes={**two, "layers": 2, "batch_size": 1024}, num_weeks=400, num_features=16),
        Case("gru", FORECAST, sizes=two),
        Case("gru", FORECAST, sizes={**wide, "gru_units": 256, "batch_size": 1024}, num_weeks=24),
        Case("transformer", FORECAST, sizes=two),
        Case("transformer", FORECAST, sizes=two, num_weeks=400),
        Case("transformer", FORECAST, sizes={**wide, "transformer_units": 128, "batch_size": 512}, num_weeks=24),
        Case("transformer", FORECAST, sizes={**two, "lookback": 480}, num_weeks=32),
        Case("lightgbm", FORECAST, sizes={"num_iterations": 20}),
        Case("lightgbm", FORECAST, sizes={"num_iterations": 20}, **long),
        Case("lightgbm", FORECAST, sizes={"num_iterations": 20, "num_leaves": 255, "lookback": 96}, num_weeks=400),
        Case("linear_classifier", CLASSES, sizes=two),
        Case("lstm_classifier", CLASSES, sizes=two),
        Case("gru_classifier", CLASSES, sizes=two),
        Case("transformer_classifier", CLASSES, sizes=two),
        Case("lightgbm_classifier", CLASSES, sizes={"num_iterations": 20}),
        Case("lightgbm_classifier", CLASSES, sizes={"num_iterations": 20}, **long),
        Case("autoencoder", ANOMALIES, sizes=two),
        Case("autoencoder", ANOMALIES, sizes={**wide, "autoencoder_units": 128}, num_features=16),
        Case("isolation_forest", ANOMALIES),
        Case("isolation_forest", ANOMALIES, sizes={"trees": 500, "max_samples": 4096}),
        Case("isolation_forest", ANOMALIES, **long),
        Case("q_learning", POLICY, sizes=two),
        Case("q_learning", POLICY, sizes=two, **long),
        Case("linear_policy", POLICY, sizes=two),
        Case("linear_policy", POLICY, sizes={**two, "lookback": 96}, num_features=16),
        Case("dqn", POLICY, sizes={"epochs": 1}),
        Case("dqn", POLICY, sizes={"epochs": 1, "memory": 1_000_000, "lookback": 96}, num_features=16),
        Case("ppo", POLICY, sizes={"epochs": 1}),
        Case("ppo", POLICY, sizes={"epochs": 1, "rollout_steps": 256, "lookback": 96}, num_features=16),
        Case("feature_search", SEARCH, sizes={"num_shuffles": 40, "num_samples": 10, "max_candidates": 60}),
        Case("feature_search", SEARCH, sizes={"num_shuffles": 40, "num_samples": 10}, num_weeks=400),
        Case("linear", FORECAST, sizes=two, further={"seeds": [0, 1, 2]}, num_weeks=400),
        Case("linear", FORECAST, sizes=two, further={"cv": {"scheme": "walk_forward", "folds": 3}}, num_weeks=400),
        Case("linear", FORECAST, sizes=two, further={"quantiles": [0.1, 0.5, 0.9]}, num_weeks=400),
    ]  # fmt: skip
    return found


def main(chosen: list[str] | None = None) -> None:
    """Measures the cases and prints the table."""
    wanted = [each for each in cases() if not chosen or any(each.name.startswith(name) for name in chosen)]
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bars = folder / "bars"
        bars.mkdir()
        for number, symbol in enumerate(SYMBOLS):
            write_bars(bars / f"{symbol.replace('/', '')}_1h.csv", num_weeks=NUM_WEEKS, seed=number)
        state = folder / "state"
        alone = {"AGENT_AUTOSTART": "false", "PAGE": "false", "STATE_DIR": str(state)}
        with started(folder / "service", FEATURE_STORE_URL=bars.as_uri(), **alone) as service:
            for number, case in enumerate(wanted):
                one = found[case.name] = measured(service, state / "jobs", case.body(number))
                print(f"  {one.ratio:.2f}  {case.name}: {one.peak:.3f} GB after {one.seconds:.0f} s", flush=True)
    rows = [
        [name, f"{each.estimated:.2f}", f"{each.peak:.2f}", f"{each.ratio:.2f}", each.step]
        for name, each in found.items()
    ]
    show("Memory of a training, GB", ["", "estimate", "peak", "estimate by peak", "at"], rows)
    worst = max(abs(each.ratio - 1) for each in found.values())
    goals = [Goal("the estimate furthest off, as a share", worst, MOST_OFF, at_most=True)]
    conclude("estimates", goals, {name: vars(each) for name, each in found.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
