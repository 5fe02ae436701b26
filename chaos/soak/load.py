"""What is asked of the service all the while: predictions at a rate, and beside them trainings, deployments and lists.

Each answer is held against the OpenAPI document: a status from 500 on that the operation does not list, or one without
the platform's error body, is counted and shown.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from chaos.dependencies.verbs import API, FINAL, MODEL, SENT, TRAIN, VERSIONS

TIMEOUT_S = 150.0
MOST_SHOWN = 20
DEPLOYED = {"deployment_target": "strategy_engine", "monitoring_level": "high"}
"""The ledger keeps every answer at this level, of which each that was promised is looked for at the end."""


@dataclass
class Told:
    """What was answered; for several threads."""

    statuses: Counter[str] = field(default_factory=Counter)
    undocumented: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # ids of predictions whose records the service says are in the queue
    slowest_s: float = 0.0
    num_jobs: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, name: str, status: str, elapsed_s: float) -> None:
        """One answer."""
        with self.lock:
            self.statuses[f"{name}: {status}"] += 1
            self.slowest_s = max(self.slowest_s, elapsed_s)

    def against_the_document(self, what: str) -> None:
        """One that the document does not know."""
        with self.lock:
            if len(self.undocumented) < MOST_SHOWN:
                self.undocumented.append(what)


class Load:
    """Threads that ask until they are stopped.

    Args:
        address: the service's.
        rate_per_s: of predictions.
    """

    def __init__(self, address: str, *, rate_per_s: float) -> None:
        self.told = Told()
        self._client = httpx.Client(base_url=address, timeout=TIMEOUT_S)
        self._documented = _statuses(self._client.get("/openapi.json").json())
        self._rate_per_s = rate_per_s
        self._stop = threading.Event()
        works: tuple[Callable[[], None], ...] = (*[self._predict] * 4, self._train, self._deploy, self._read)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def start(self) -> None:
        """Begins."""
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Ends once every question at hand is answered."""
        self._stop.set()
        for each in self._threads:
            each.join(2 * TIMEOUT_S)
        self._client.close()

    def _ask(self, method: str, path: str, body: Any = None, **query: str) -> httpx.Response | None:
        begun = time.monotonic()
        try:
            answer = self._client.request(method, f"{API}{path}", json=body, params=query)
        except httpx.TransportError as error:
            self.told.answer(f"{method} {path}", type(error).__name__, time.monotonic() - begun)
            self.told.against_the_document(f"{method} {path}: no answer ({error!r})")
            return None
        name = next(each for each in self._documented if each[0] == method and each[1].fullmatch(f"{API}{path}"))
        self.told.answer(f"{method} {name[2]}", str(answer.status_code), time.monotonic() - begun)
        if answer.status_code >= 500:
            is_ours = "error_code" in answer.text and "correlation_id" in answer.text
            if str(answer.status_code) not in self._documented[name] or not is_ours:
                self.told.against_the_document(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer

    def _predict(self) -> None:
        """Of now, each in the queue before it is answered."""
        period_s = 4 / self._rate_per_s
        due = time.monotonic()
        while not self._stop.is_set():
            answer = self._ask("POST", f"/models/{MODEL}/predict", SENT, enqueue="guaranteed")
            if answer is not None and answer.status_code == 200:
                with self.told.lock:
                    self.told.kept.append(answer.json()["prediction_id"])
            due = max(due + period_s, time.monotonic() - 1.0)
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _train(self) -> None:
        number = 0
        while not self._stop.wait(5.0):
            number += 1
            answer = self._ask("POST", "/models/train", {**TRAIN, "model_id": f"soak-{number}"})
            while answer is not None and answer.status_code == 202 and not self._stop.wait(1.0):
                job = self._ask("GET", f"/jobs/{answer.json()['job_id']}")
                if job is not None and job.status_code == 200 and (found := job.json())["status"] in FINAL:
                    error = (found.get("error") or {}).get("error_code", "")
                    with self.told.lock:
                        self.told.num_jobs[" ".join(filter(None, [found["status"], error]))] += 1
                    break

    def _deploy(self) -> None:
        number = 0
        while not self._stop.wait(7.0):
            number += 1
            self._ask("POST", f"/models/{MODEL}/deploy", {"version": VERSIONS[number % 2], **DEPLOYED})

    def _read(self) -> None:
        paths = ("/models", "/jobs", "/queue", "/agents", f"/models/{MODEL}/monitoring", "/predictions", "/deployments")
        while not self._stop.is_set():
            for path in paths:
                self._ask("GET", path)
                self._stop.wait(0.5)


_Operation = tuple[str, re.Pattern[str], str]


def _statuses(document: Mapping[str, Any]) -> dict[_Operation, set[str]]:
    """By operation; paths without a parameter first, since `/models/train` fits `/models/{model_id}` too."""
    found = {}
    for path in sorted(document["paths"], key=lambda each: each.count("{")):
        for method, operation in document["paths"][path].items():
            pattern = re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))
            found[method.upper(), pattern, path] = set(operation["responses"])
    return found
