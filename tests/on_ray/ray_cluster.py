"""A real Ray cluster on the loopback, for tests and benchmarks: a head, and nodes that come and are killed."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil

from common_lib.exceptions import PlatformError
from ml_workbench_service.integrations.ray_jobs import RayJobs
from tests.service_process import free_port

START_TIMEOUT_S = 120.0
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
        self.address = f"http://{HERE}:{(port := free_port())}"
        self._gcs_port = free_port()
        self._head = self._begun(
            "--head", f"--port={self._gcs_port}", f"--dashboard-host={HERE}", f"--dashboard-port={port}",
            f"--temp-dir={self.folder}", f"--ray-client-server-port={free_port()}", num_cpus=head_cpus,
        )  # fmt: skip
        self._nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._wait_for_head()
        except BaseException:
            self.stop()
            raise

    def jobs(self, **kwargs: float) -> RayJobs:
        """Its jobs, with the right token."""
        return RayJobs(self.address, token=self.token, **kwargs)

    def add_node(self, *, num_cpus: int = 1) -> subprocess.Popen[bytes]:
        """One more node, which joins in some seconds."""
        node = self._begun(f"--address={HERE}:{self._gcs_port}", num_cpus=num_cpus)
        self._nodes.append(node)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL to a node and all that runs on it, as a machine that loses its power."""
        _kill_all(node)

    def stop(self) -> None:
        """Ends all of it."""
        for each in [*getattr(self, "_nodes", ()), self._head]:
            _kill_all(each)
        shutil.rmtree(self.folder, ignore_errors=True)

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
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def _wait_for_head(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with closing(self.jobs()) as jobs:
                    jobs.version()
                return
            except PlatformError:
                if time.monotonic() > deadline or self._head.poll() is not None:
                    raise
                time.sleep(0.5)


def _kill_all(leader: subprocess.Popen[bytes]) -> None:
    """The process, its descendants, and what they started in sessions of their own."""
    try:
        process = psutil.Process(leader.pid)
        found = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        found = []
    for each in found:
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    leader.wait()
