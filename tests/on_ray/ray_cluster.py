"""A real Ray cluster on the loopback, for tests and benchmarks: a head, and nodes that come and are killed."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from ml_workbench_service.integrations.ray_jobs import RayJobs
from ml_workbench_service.runtime.session_memory import session_of
from tests.service_process import free_port

START_TIMEOUT_S = 120.0
MOST_STARTS = 3
HERE = "127.0.0.1"
OBJECT_STORE_BYTES = 80_000_000
"""Ray's least; nothing large passes through it."""


class RayCluster:
    """A head with token authentication; nodes are added, and killed with all that runs on them.

    Everything is ended by its process id, whatever else of Ray runs on this machine.
    """

    def __init__(self, *, head_cpus: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets below it have short names
        self.token = secrets.token_hex(32)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._num_alive = 0
        try:
            for _ in range(MOST_STARTS):
                self.address = f"http://{HERE}:{(port := free_port())}"
                self._gcs_port = free_port()
                arguments = (
                    "--head", f"--port={self._gcs_port}", f"--dashboard-host={HERE}", f"--dashboard-port={port}",
                    f"--temp-dir={self.folder}", f"--ray-client-server-port={free_port()}",
                )  # fmt: skip
                if self._joined(self._begun(*arguments, num_cpus=head_cpus)):
                    return
            raise AssertionError(f"no head of Ray comes up; see {self.folder}")
        except BaseException:
            self.stop()
            raise

    def jobs(self) -> RayJobs:
        """Its jobs, with the right token."""
        return RayJobs(self.address, token=self.token)

    def add_node(self, *, num_cpus: int = 1) -> subprocess.Popen[bytes]:
        """One more node, which has joined when this returns."""
        for _ in range(MOST_STARTS):
            node = self._begun(f"--address={HERE}:{self._gcs_port}", num_cpus=num_cpus)
            if self._joined(node):
                return node
        raise AssertionError(f"no node of Ray comes up; see {self.folder}")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL to a node and all that runs on it, as a machine that loses its power."""
        _kill_all(node)
        self._num_alive -= 1

    def stop(self) -> None:
        """Ends all of it."""
        for each in reversed(self._processes):
            _kill_all(each)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _joined(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the cluster has one node more; Ray gives a start up by itself where the machine is too busy."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if self._count() > self._num_alive:
                self._num_alive += 1
                return True
            time.sleep(0.5)
        _kill_all(process)
        return False

    def _count(self) -> int:
        """Nodes that the head takes for alive."""
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            found = httpx.get(f"{self.address}/nodes?view=summary", headers=headers, timeout=10.0)
            nodes = found.json()["data"]["summary"]
        except (httpx.HTTPError, ValueError, KeyError):
            return 0
        return sum(each["raylet"].get("state") == "ALIVE" for each in nodes)

    def _begun(self, *arguments: str, num_cpus: int) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", *arguments,
            f"--num-cpus={num_cpus}", f"--node-ip-address={HERE}", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_SCHEDULER_EVENTS": "0",
        }
        with (self.folder / f"start{secrets.token_hex(2)}.log").open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process


def _kill_all(leader: subprocess.Popen[bytes]) -> None:
    """The process, its descendants, its session, and what of these runs in sessions of its own."""
    found = {each for pid in psutil.pids() if session_of(pid) == leader.pid for each in _family(pid)}
    for each in found | {leader.pid}:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    leader.wait()


def _family(pid: int) -> set[int]:
    try:
        return {pid, *(each.pid for each in psutil.Process(pid).children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()
