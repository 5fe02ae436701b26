"""The outside things, real ones on the loopback, each behind a proxy: a Feature Store, MLflow, Redis, an engine.

The Feature Store is a service of our own over a folder of bars; the strategy engine says 201 to whatever it is told.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from benchmarks.running_service import started
from benchmarks.startup import free_port
from chaos.dependencies.proxy import FaultyProxy
from ml_workbench_service.integrations.embedded_redis import find_redis_server

FEATURE_STORE, MLFLOW, REDIS, STRATEGY_ENGINE = "feature store", "MLflow", "Redis", "strategy engine"
DEPENDENCIES = (FEATURE_STORE, MLFLOW, REDIS, STRATEGY_ENGINE)
MLFLOW_START_S = 180.0


@contextmanager
def dependencies(folder: Path, bars: Path, *, wanted: tuple[str, ...]) -> Iterator[dict[str, FaultyProxy]]:
    """Those wanted, running, each by its proxy."""
    makers = {FEATURE_STORE: _feature_store, MLFLOW: _mlflow, REDIS: _redis, STRATEGY_ENGINE: _strategy_engine}
    with ExitStack() as stack:
        ports = {}
        for name in wanted:
            own = folder / name.replace(" ", "_")
            own.mkdir(parents=True)
            ports[name] = stack.enter_context(makers[name](own, bars))
        yield {name: stack.enter_context(FaultyProxy(port)) for name, port in ports.items()}


def variables(proxies: Mapping[str, FaultyProxy]) -> dict[str, str]:
    """What tells a service of them; of the others it has its own."""
    kinds = {
        FEATURE_STORE: ("FEATURE_STORE_URL", "http"), MLFLOW: ("EXPERIMENT_TRACKING_URI", "http"),
        REDIS: ("REDIS_URL", "redis"), STRATEGY_ENGINE: ("STRATEGY_ENGINE_URL", "http"),
    }  # fmt: skip
    return {kinds[name][0]: f"{kinds[name][1]}://127.0.0.1:{proxy.port}" for name, proxy in proxies.items()}


@contextmanager
def _feature_store(folder: Path, bars: Path) -> Iterator[int]:
    with started(folder, FEATURE_STORE_URL=bars.as_uri(), PAGE="false", AGENT_AUTOSTART="false") as service:
        port = urlsplit(service.address).port
        assert port is not None
        yield port


@contextmanager
def _redis(folder: Path, bars: Path) -> Iterator[int]:
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    with _running(folder, [str(find_redis_server()), *options]):
        yield port


@contextmanager
def _mlflow(folder: Path, bars: Path) -> Iterator[int]:
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with _running(folder, command):
        deadline = time.monotonic() + MLFLOW_START_S
        while not _answers(f"http://127.0.0.1:{port}/version"):
            if time.monotonic() > deadline:
                raise SystemExit(f"the MLflow server does not come up; see {folder}")
            time.sleep(0.2)
        yield port


@contextmanager
def _strategy_engine(folder: Path, bars: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Engine)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


class _Engine(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "2")
        self.end_headers()
        with suppress(OSError):  # whoever asked had no more patience
            self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def _running(folder: Path, command: list[str]) -> Iterator[None]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **quiet}, cwd=folder, start_new_session=True
        )
        try:
            yield
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
