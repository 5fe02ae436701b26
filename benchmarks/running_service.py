"""A started service for benchmarks that speak HTTP to it: train, deploy, ask, and wait for jobs."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.startup import PROGRAM, ready_after, service

JOB_TIMEOUT_S = 900.0


class RunningService:
    """One service, by its address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One JSON call; ends the benchmark where the service refuses."""
        parts = urlsplit(self.address)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {said.decode()}")
        return json.loads(said)

    def job(self, path: str, body: Any) -> dict[str, Any]:
        """Begins a job and waits for its end; the succeeded job."""
        accepted = self.call("POST", path, body)
        job_id = accepted.get("job_id") or accepted["id"]
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.call("GET", f"/api/v1/jobs/{job_id}")
            if job["status"] == "succeeded":
                return job
            if job["status"] in ("failed", "cancelled"):
                raise SystemExit(f"the job ended: {job['error']}")
            time.sleep(0.1)
        raise SystemExit(f"the job did not end in {JOB_TIMEOUT_S:.0f} s: {job}")

    def train(self, body: dict[str, Any]) -> str:
        """Trains a version; the model's id."""
        model_id: str = self.job("/api/v1/models/train", body)["result"]["model_id"]
        return model_id

    def deploy(self, model_id: str, version: str = "1.0.0") -> None:
        """Makes a version the live one."""
        body = {"version": version, "deployment_target": "local", "scaling_factor": 1.0, "monitoring_level": "low"}
        self.call("POST", f"/api/v1/models/{model_id}/deploy", body)


@contextmanager
def started(folder: Path, *, program: tuple[str, ...] = PROGRAM, **variables: str) -> Iterator[RunningService]:
    """A service with its own state and logs and, unless `MODEL_REGISTRY_PATH` says otherwise, its own registry."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        "EXPERIMENT_TRACKING_URI": "disabled", "CUDA_VISIBLE_DEVICES": "", "WARM_WORKER": "false", **variables,
    }  # fmt: skip
    with service(errors=folder / "errors.log", program=program, **variables) as (process, address, begun):
        ready_after(process, address, begun)
        yield RunningService(address)


class KeptConnection:
    """Sends one prepared request again and again over one connection, with as little of a client as can be."""

    def __init__(self, address: str, path: str, body: Any, *, key: str | None = None) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        head += f"X-API-Key: {key}\r\n" if key else ""
        self._request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        self._place = (parts.hostname, parts.port)
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(self._place, timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def rest(self) -> None:
        """A new connection: the service closes one that rested for seconds, as one does while the others have turns."""
        self._socket.close()
        self._open()

    def ask(self) -> bytes:
        """One request; the body of the answer. Ends the benchmark where it is refused."""
        self._socket.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, body = answer.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += self._more()
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the service answered {head.decode()} {body.decode()}")
        return body

    def _more(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise SystemExit("the service closed the connection")
        return received

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
