"""Start-up and memory of the API process: how soon `/health` answers, and what it weighs before the first model.

    python -m benchmarks.startup

Each round starts `python -m ml_workbench_service.main` with embedded stand-ins in an empty folder, its own Redis and
agent included, and ends it with SIGTERM. Memory is the resident set of the API process alone, read once it has been
ready for a second. One further start under `-X importtime`, outside the measurement, lists every module that the
process loaded. Beside it, in the same rounds, starts an app of FastAPI and onnxruntime with a `/health` and no more.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.interleaved_rounds import ROOT, Goal, Rounds, conclude, show

NUM_ROUNDS = 5
MOST_SECONDS = 60.0
SETTLED_S = 1.0
PROGRAM = ("-m", "ml_workbench_service.main")
CONTROL = (str(Path(__file__).parent / "contestants" / "bare_startup.py"),)
OURS, BARE = "ours", "FastAPI and onnxruntime alone"
HEAVY = ("torch", "mlflow", "talib", "polars", "pandas", "currency_converter", "onnx")
NEVER = ("torch", "mlflow")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def service(
    *flags: str, errors: Path, program: tuple[str, ...] = PROGRAM, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """The running service, its address, and when it was started; `variables` are added to its environment."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, errors.open("wb") as sink:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "STATE_DIR": f"{folder}/state",
            "LOG_DIR": f"{folder}/logs",
            "MODEL_REGISTRY_PATH": f"{folder}/registry",
            "FEATURE_STORE_URL": "embedded",
            "EXPERIMENT_TRACKING_URI": "embedded",
            **variables,
        }
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *flags, *program],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=sink,
        )
        try:
            yield process, f"http://127.0.0.1:{port}", begun
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ready_after(process: subprocess.Popen[bytes], address: str, begun: float) -> float:
    """Seconds from the start to the first answer of `/health`."""
    while time.perf_counter() - begun < MOST_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
                if answer.status == 200:
                    return time.perf_counter() - begun
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)
    raise SystemExit(f"the service was not ready after {MOST_SECONDS:.0f} s")


def resident_mib(pid: int) -> float:
    """The resident set of one process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def loaded_modules(errors: Path) -> set[str]:
    """Top-level names of everything that a start loads, by the interpreter's own account."""
    with service("-X", "importtime", errors=errors) as (process, address, begun):
        ready_after(process, address, begun)
        time.sleep(SETTLED_S)
    lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    if "fastapi" not in names:
        raise SystemExit(f"the list of loaded modules is incomplete; see {errors}")
    return names


def main() -> None:
    """Measures the rounds and prints the table."""
    seconds, memory = Rounds(bigger_is_better=False), Rounds(bigger_is_better=False)
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors.log"
        for number in range(NUM_ROUNDS + 1):
            for name, program in ((OURS, PROGRAM), (BARE, CONTROL)):
                with service(errors=errors, program=program) as (process, address, begun):
                    taken = ready_after(process, address, begun)
                    time.sleep(SETTLED_S)
                    if number:  # the first start compiles and fills the file cache
                        seconds.add(name, taken)
                        memory.add(name, resident_mib(process.pid))
        loaded = loaded_modules(errors)
    rows = [
        [f"{name}: ready after, s", f"{seconds.median(name):.2f}", f"{max(seconds.figures[name]):.2f}"]
        for name in (OURS, BARE)
    ]
    rows.append([f"{OURS}: resident, MiB", f"{memory.median(OURS):.0f}", f"{max(memory.figures[OURS]):.0f}"])
    show("API process, embedded stand-ins, before the first model", ["figure", "median", "worst"], rows)
    print(f"  heavy libraries loaded: {', '.join(sorted(loaded.intersection(HEAVY))) or 'none'}")
    goals = [
        Goal("ready after, s", seconds.median(OURS), 1.5, at_most=True),
        Goal(f"times {BARE}", seconds.times_better(BARE, OURS), 1.3, at_most=True),
        Goal("resident before the first model, MiB", memory.median(OURS), 150, at_most=True),
        Goal("of torch and mlflow, loaded", float(len(loaded.intersection(NEVER))), 0, at_most=True),
    ]
    figures = {"ready_after_s": seconds.figures, "resident_mib": memory.figures[OURS]}
    conclude("startup", goals, figures)


if __name__ == "__main__":
    main()
