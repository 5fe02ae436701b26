"""What is asked of a service while something outside is spoilt: train, predict, deploy, replay, each to its end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

MODEL = "asked"
VERSIONS = ("1.0.0", "1.1.0")
FEATURES = ["return_1", "rsi_14"]
TRAIN: dict[str, Any] = {
    "name": "Asked", "model_type": "time_series", "family": "linear", "features": FEATURES,
    "target": "price_change_1h", "symbols": ["EUR/USD"], "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2023-12-01T00:00:00Z",
}  # fmt: skip
REPLAY = {
    "model_id": MODEL, "symbols": ["EUR/USD"], "start_date": "2024-03-04T00:00:00Z", "end_date": "2024-03-06T00:00:00Z",
}  # fmt: skip
FETCHED = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": "2024-01-10T12:00:00Z"}
SENT = {
    "symbol": "EUR/USD",
    "timeframe": "1h",
    "features": {"return_1": [0.0, 0.001, 0.0], "rsi_14": [45.0, 50.0, 55.0]},
}
PATIENCE_S = 300.0
"""After which a question counts as never answered, and a job as one that never ends."""
POLL_S = 0.1
FINAL = ("succeeded", "failed", "cancelled")
API = "/api/v1"


@dataclass(frozen=True)
class Outcome:
    """What came of one verb: `200`, `502 UPSTREAM_ERROR`, `succeeded`, `failed UPSTREAM_ERROR` or `never`."""

    said: str
    seconds: float
    message: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it was done."""
        return self.said in ("200", "succeeded")


@dataclass
class Asker:
    """One client of the service."""

    client: httpx.Client
    number: Iterator[int] = field(default_factory=count)
    newest_job: str = ""
    trained: str = ""  # the newest training's job

    def prepare(self) -> None:
        """Two versions of one model, the first one live."""
        for version in VERSIONS:
            made = self._job(f"{API}/models/train", {**TRAIN, "model_id": MODEL, "version": version, "force": True})
            assert made.is_well, made
        assert self.deploy().is_well

    def train(self) -> Outcome:
        """A new model."""
        done = self._job(f"{API}/models/train", {**TRAIN, "model_id": f"new-{next(self.number)}"})
        self.trained = self.newest_job
        return done

    def predict(self) -> Outcome:
        """Of a past moment, whose features the service fetches."""
        return self._post(f"{API}/models/{MODEL}/predict", FETCHED)

    def predict_sent(self) -> Outcome:
        """With features that the caller sends; the record goes into the queue."""
        return self._post(f"{API}/models/{MODEL}/predict", SENT)

    def deploy(self) -> Outcome:
        """The other one of the two versions, with the strategy engine for its target where there is one."""
        version = VERSIONS[next(self.number) % 2]
        return self._post(f"{API}/models/{MODEL}/deploy", {"version": version, "deployment_target": "strategy_engine"})

    def replay(self) -> Outcome:
        """Two days, into the queue."""
        return self._job(f"{API}/replays", REPLAY)

    def readiness(self) -> tuple[Outcome, Mapping[str, str]]:
        """The state of each outside thing."""
        begun = time.monotonic()
        answer = self.client.get("/health/ready", timeout=PATIENCE_S)
        things = {name: thing["state"] for name, thing in answer.json()["things"].items()}
        return Outcome(str(answer.status_code), time.monotonic() - begun), things

    def is_tracked(self, *, within_s: float) -> bool:
        """Whether MLflow comes to know the newest training."""
        begun = time.monotonic()
        while time.monotonic() - begun < within_s:
            if self.client.get(f"{API}/jobs/{self.trained}").json()["tracking"]["status"] == "synced":
                return True
            time.sleep(POLL_S)
        return False

    def _post(self, path: str, body: Mapping[str, Any]) -> Outcome:
        begun = time.monotonic()
        try:
            answer = self.client.post(path, json=body, timeout=PATIENCE_S)
        except httpx.TimeoutException:
            return Outcome("never", time.monotonic() - begun)
        except httpx.TransportError as error:
            return Outcome("broken", time.monotonic() - begun, repr(error))
        elapsed_s, said = time.monotonic() - begun, answer.json()
        if answer.status_code >= 400:
            return Outcome(f"{answer.status_code} {said['error_code']}", elapsed_s, said["message"])
        return Outcome(str(answer.status_code), elapsed_s, said.get("job_id", ""))

    def _job(self, path: str, body: Mapping[str, Any]) -> Outcome:
        begun = time.monotonic()
        accepted = self._post(path, body)
        if accepted.said != "202":
            return accepted
        self.newest_job = accepted.message
        while time.monotonic() - begun < PATIENCE_S:
            job = self.client.get(f"{API}/jobs/{accepted.message}").json()
            if job["status"] in FINAL:
                error = job.get("error") or {}
                said = " ".join(filter(None, [job["status"], error.get("error_code", "")]))
                return Outcome(said, time.monotonic() - begun, error.get("message", ""))
            time.sleep(POLL_S)
        self.client.post(f"{API}/jobs/{accepted.message}/cancel")
        return Outcome("never", time.monotonic() - begun)


VERBS: Mapping[str, Callable[[Asker], Outcome]] = {
    "train": Asker.train,
    "predict": Asker.predict,
    "predict, features sent": Asker.predict_sent,
    "deploy": Asker.deploy,
    "replay": Asker.replay,
}
