"""A real service in a process of its own, with folders of its own, for tests that speak HTTP to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from ml_workbench_service.testing.clocks import FileClock
from tests.clocked_service import CLOCK_FILE

START_TIMEOUT_S = 60.0
WEDNESDAY = datetime(2030, 3, 6, 12, 30, tzinfo=UTC)
"""Where a service's clock stands unless a test sets it: the market is open, and the embedded sample has long ended."""
SEED_TRAIN: dict[str, Any] = {
    "name": "LSTM Price Predictor",
    "model_type": "time_series",
    "features": ["sma_20", "rsi_14", "macd", "bb_width"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD", "GBP/USD"],
    "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
    "hyperparameters": {
        "lstm_units": 64,
        "dropout": 0.2,
        "learning_rate": 0.001,
        "batch_size": 32,
        "epochs": 100,
    },
    "validation_split": 0.2,
}
SEED_PREDICT: dict[str, Any] = {
    "symbol": "EUR/USD",
    "timeframe": "1h",
    "features": {
        "sma_20": [1.1012, 1.1015, 1.1020],
        "rsi_14": [45.2, 46.8, 48.3],
        "macd": [0.0012, 0.0015, 0.0018],
        "bb_width": [0.0025, 0.0024, 0.0028],
    },
}


def free_port() -> int:
    """A port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """Starts, stops and kills a service over one folder; a restart keeps the folder.

    It is `ml_workbench_service.main` in all but its clock, which stands where `clock` was set.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("API_KEY", "REDIS_URL")},
            "PORT": str(self.port),
            "STATE_DIR": str(folder / "state"),
            "LOG_DIR": str(folder / "logs"),
            "MODEL_REGISTRY_PATH": str(folder / "registry"),
            "FEATURE_STORE_URL": "embedded",
            "EXPERIMENT_TRACKING_URI": "disabled",
            "CUDA_VISIBLE_DEVICES": "",
            CLOCK_FILE: str(folder / "clock"),
            "PAGE": "false",
            "WARM_WORKER": "false",  # the tests share two processors, and count processes
            **environment,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = FileClock(folder / "clock")
        self.clock.set(WEDNESDAY)
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=60.0)

    @property
    def output(self) -> Path:
        """What the service wrote to stdout and stderr."""
        return self.folder / "service.out"

    def start(self, command: list[str] | None = None) -> "ServiceProcess":
        """Starts the service and waits until /health/live answers."""
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "tests.clocked_service"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if self.client.get("/health/live").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended at start:\n{self.output.read_text()[-4000:]}")
            time.sleep(0.05)
        raise AssertionError(f"the service did not answer in {START_TIMEOUT_S} s:\n{self.output.read_text()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL of the service alone; its children stay, as after a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)
        self.process = None

    def close(self) -> None:
        """Ends everything."""
        if self.process is not None:
            self.stop()
        self.client.close()

    def wait_for_job(self, job_id: str, *, timeout_s: float = 240.0) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.client.get(f"/api/v1/jobs/{job_id}").json()
            if job["status"] in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.1)
        raise AssertionError(f"job {job_id} did not end in {timeout_s} s: {job}")

    def train(self, body: dict[str, Any], *, timeout_s: float = 240.0) -> dict[str, Any]:
        """Sends a training and waits for its end; the succeeded job."""
        accepted = self.client.post("/api/v1/models/train", json=body)
        assert accepted.status_code == 202, accepted.text
        job = self.wait_for_job(accepted.json()["job_id"], timeout_s=timeout_s)
        assert job["status"] == "succeeded", job["error"]
        return job
