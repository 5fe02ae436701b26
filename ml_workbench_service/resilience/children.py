"""Child processes of a run: the private server, the agents and the producers, each of which can be killed and frozen.

All stay in the session of the process that runs the test, so that whoever ends that session ends them too.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.resilience.history import ProducerHistory
from ml_workbench_service.resilience.producer import ProducerPlan
from ml_workbench_service.resilience.server_log import NEVER_REWRITTEN

WAIT_S = 30.0
POLL_S = 0.005


class Child:
    """One process, started again and again under the same name; threads may share it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], output: Path) -> None:
        self.name = name
        self.is_wanted = False  # whether it is started again when it has ended
        self.exit_codes: list[int] = []
        self._command = command
        self._environment = dict(environment)
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Of the living process."""
        return self._process.pid if self.is_running and self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether it lives; notes the exit code of one that has ended."""
        with self._turn:
            if self._process is None:
                return False
            code = self._process.poll()
            if code is None:
                return True
            self.exit_codes.append(code)
            self._process = None
            return False

    def start(self) -> None:
        """Starts it unless it runs, and wants it to run."""
        with self._turn:
            self.is_wanted = True
            if self.is_running:
                return
            with self._output.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                )

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; False where there is no process."""
        with self._turn:
            if not self.is_running or self._process is None:
                return False
            self._process.send_signal(number)
            return True

    def kill(self, *, wanted: bool = True) -> bool:
        """SIGKILL, and waits for the end; False where there was no process. A wanted one is started again."""
        with self._turn:
            self.is_wanted = wanted
            killed = self.send(signal.SIGKILL)
            if killed and self._process is not None:
                self._process.wait(WAIT_S)
            return killed

    def end(self) -> int | None:
        """SIGTERM, SIGKILL where that is not enough; the exit code."""
        with self._turn:
            self.is_wanted = False
            if self.send(signal.SIGTERM) and self._process is not None:
                self.send(signal.SIGCONT)
                try:
                    self._process.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    self.kill(wanted=False)
            return self.exit_codes[-1] if not self.is_running and self.exit_codes else None


class AgentProcess(Child):
    """A real agent on one shard (`runtime/agent_worker.py`); `place` above 0 stands by at first."""

    def __init__(
        self, agent_id: str, environment: Mapping[str, str], folder: Path, *, shard: int = 0, place: int = 0
    ) -> None:
        command = [
            sys.executable,
            "-m",
            "ml_workbench_service.runtime.agent_worker",
            "--agent",
            agent_id,
            "--shard",
            str(shard),
        ]
        name = f"{agent_id}.{shard}.{place}"
        super().__init__(name, command, environment, folder / f"{name}.out")
        self.agent_id = agent_id
        self.shard = shard


class ProducerProcess(Child):
    """A real publisher in a process of its own; it ends by itself."""

    def __init__(self, plan: ProducerPlan, environment: Mapping[str, str], output: Path) -> None:
        file = plan.history.with_suffix(".plan.json")
        file.write_text(plan.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "ml_workbench_service.resilience.producer", str(file)]
        super().__init__(plan.history.stem, command, environment, output)
        self.plan = plan

    def history(self) -> ProducerHistory:
        """What it has written down so far."""
        return ProducerHistory.read(self.plan.history, first=self.plan.first)


class PrivateRedis:
    """The run's own redis-server, on a Unix socket; its data outlive its death."""

    def __init__(self, state_dir: Path, *, fsync: str, environment: Mapping[str, str]) -> None:
        options = {"appendfsync": fsync, **NEVER_REWRITTEN}
        self.embedded = EmbeddedRedis(state_dir, options=options, environment=environment, own_session=False)
        self.folder = state_dir / "redis"
        self.url = ""
        self.is_wanted = True
        self._turn = threading.RLock()

    @property
    def socket(self) -> str:
        """The path of its Unix socket."""
        return self.url.removeprefix("unix://")

    def start(self) -> None:
        """Starts it unless it runs; returns once it answers with its data."""
        with self._turn:
            self.is_wanted = True
            self.url = self.embedded.start()

    def kill(self) -> None:
        """SIGKILL; somebody must start it again."""
        with self._turn:
            self.is_wanted = False
            if (pid := self.embedded.pid) is not None:
                os.kill(pid, signal.SIGKILL)
                while self.embedded.is_running:
                    time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the server, if it lives."""
        if (pid := self.embedded.pid) is not None:
            os.kill(pid, number)

    def client(self) -> redis.Redis:
        """A connection past every fault."""
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=30.0, retry=Retry(NoBackoff(), 0), protocol=2)

    def revive(self) -> bool:
        """Starts a server that ended by itself; False while it cannot run, as with a full disk."""
        with self._turn:
            if not self.is_wanted or self.embedded.is_running:
                return True
            try:
                self.start()
            except UnavailableError:
                return False
            return True

    def stop(self) -> None:
        """Ends it in an orderly way."""
        with self._turn:
            self.is_wanted = False
            self.send(signal.SIGCONT)
            self.embedded.stop()
