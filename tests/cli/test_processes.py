"""The program as a process: Ctrl-C, broken pipes, streams without a terminal, and `serve`."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from common_lib.command_line import ExitCode
from tests.cli.conftest import PROGRAM, environment, process
from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess, free_port

LIMIT_S = 120.0


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Waits for a condition while the process lives."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_the_watching_and_not_the_job(service: ServiceProcess) -> None:
    body = {
        **SMALL_TRAIN,
        "model_id": "watched",
        "hyperparameters": {"lstm_units": 8, "epochs": 1000, "patience": 1000},
    }
    job = service.client.post("/api/v1/models/train", json=body).json()["job_id"]
    watching = process("jobs", "watch", job, WORKBENCH_URL=service.url, PYTHONUNBUFFERED="1")
    try:
        assert watching.stderr is not None
        assert watching.stderr.readline().strip() == f"{job} queued"  # it follows
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=LIMIT_S)
        assert watching.returncode == ExitCode.INTERRUPTED
        assert f"ml-workbench jobs watch {job}" in err
        assert f"ml-workbench jobs cancel {job}" in err
        assert "Traceback" not in out + err
        assert service.client.get(f"/api/v1/jobs/{job}").json()["status"] in ("queued", "running")
    finally:
        watching.kill()
        service.client.post(f"/api/v1/jobs/{job}/cancel")
        service.wait_for_job(job)


@pytest.mark.parametrize("arguments", [["data", "list"], ["features", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(service: ServiceProcess, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads, from the first byte on
    run = subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(WORKBENCH_URL=service.url),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writer)
    assert run.stderr == b""
    assert run.returncode == (1 if arguments == ["--help"] else ExitCode.NO_READER)


def test_without_a_terminal_there_are_no_control_codes(service: ServiceProcess) -> None:
    for arguments in (["models", "list"], ["models", "show", "small"], ["doctor"], ["--help"], ["jobs", "nonsense"]):
        run = process(*arguments, WORKBENCH_URL=service.url, TERM="xterm-256color")
        out, err = run.communicate(timeout=LIMIT_S)
        assert out + err
        assert "\x1b" not in out + err


def test_a_terminal_of_another_encoding_gets_question_marks_instead_of_an_error() -> None:
    run = process("data", "check", "/nowhere/\u00e4", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    _, err = run.communicate(timeout=LIMIT_S)
    assert (run.returncode, "/nowhere/? is no folder" in err) == (ExitCode.USAGE, True)


def test_serve_starts_the_service_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    bars = tmp_path / "bars"
    bars.mkdir()
    places = {"LOG_DIR": str(tmp_path / "logs"), "MODEL_REGISTRY_PATH": str(tmp_path / "registry")}
    serving = process(
        "serve", "--port", str(port), "--state-dir", str(tmp_path / "state"), "--bars", str(bars),
        **places, EXPERIMENT_TRACKING_URI="disabled", WARM_WORKER="false", AGENT_AUTOSTART="false",
    )  # fmt: skip

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, serving)
        ready = httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False, timeout=60).json()
        assert ready["things"]["feature_store"]["mode"] == "folder"
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=LIMIT_S)
        assert serving.returncode in (0, ExitCode.INTERRUPTED)
        assert (tmp_path / "state" / "service.lock").exists()
    finally:
        serving.kill()


def test_serve_refuses_a_wrong_variable_with_its_name(tmp_path: Path) -> None:
    run = process("serve", STATE_DIR=str(tmp_path), REDIS_URL="http://nowhere")
    _, err = run.communicate(timeout=LIMIT_S)
    assert run.returncode == ExitCode.USAGE
    assert err.startswith("REDIS_URL: it takes redis://")
