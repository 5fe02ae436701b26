"""A real MLflow server that can be killed and started again within a second.

Importing MLflow's server takes 8 to 30 s, so it is imported once in a launcher process, which forks a serving child for
each `start` it is told and kills it with -9 for each `kill`; every start opens the store on disk anew.
"""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

START_TIMEOUT_S = 60.0


class MlflowServer:
    """Commands to the launcher; `url` is the same across restarts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._is_told = False
        self._database = folder / "mlflow.db"
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self._database}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }
        with (folder / "server.log").open("ab") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, __file__, str(self.port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def start(self, *, database: Path | None = None) -> None:
        """Serves, and returns when it answers; already serving is fine. A new store may begin as a copy of one."""
        if not self._is_told:
            if database is not None and not self._database.exists():
                shutil.copy(database, self._database)
            self._say("start")
            self._is_told = True
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            assert time.monotonic() < deadline, "the MLflow server does not come up"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kills the serving child with -9; returns when nothing answers any more."""
        self._say("kill")
        self._is_told = False
        while self.answers():
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether somebody serves."""
        try:
            with urllib.request.urlopen(f"{self.url}/version", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def close(self) -> None:
        """Ends launcher and server."""
        assert self._launcher.stdin is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        self._launcher.wait()
        self._launcher.stdin.close()

    def _say(self, word: str) -> None:
        assert self._launcher.stdin is not None
        self._launcher.stdin.write(f"{word}\n".encode())
        self._launcher.stdin.flush()


@functools.cache
def shared_server() -> MlflowServer:
    """One launcher for the whole test run, begun early by who will need it; nothing serves before `start`."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
    server = MlflowServer(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.close)
    return server


def launch(port: int) -> None:
    """The launcher's own life: one word a line."""
    import uvicorn
    from mlflow.server.fastapi_app import app

    child = 0
    for word in sys.stdin:
        if word.strip() == "start":
            child = os.fork()
            if child == 0:
                uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
                os._exit(0)
        elif word.strip() == "kill":
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    launch(int(sys.argv[1]))
