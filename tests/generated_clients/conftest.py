"""Other people's tools, installed below .bench once: linters and generators from npm, one in an environment."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.service_process import ServiceProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BENCH = ROOT / ".bench"
PAGE = ROOT / "docs" / "generated_clients.md"
QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "NO_UPDATE_NOTIFIER": "1"}
PYTHON_GENERATOR = ("openapi-python-client==0.29.1", "mypy==2.4.1")
INSTALL_TIMEOUT_S = 480


def run(*command: str | Path, folder: Path | None = None) -> str:
    """What a command prints; its complaints where it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(folder: Path, needs: str, *commands: list[str | Path]) -> Path:
    """The folder, once the commands have put into it what `needs` says; skips where they cannot reach it."""
    folder.mkdir(parents=True, exist_ok=True)
    done_for = folder / "installed.txt"
    with FileLock(folder.with_suffix(".lock")):
        if done_for.is_file() and done_for.read_text(encoding="utf-8") == needs:
            return folder
        for command in commands:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
            )
            if done.returncode:
                pytest.skip(f"{command[0]} cannot install here: {(done.stderr or done.stdout).strip()[-300:]}")
        done_for.write_text(needs, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def npm_tools() -> Path:
    """Redocly, Spectral, openapi-typescript and TypeScript; where their programs lie."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no npm here; .ci/run installs nodejs and npm where it can")
    needs = (HERE / "package.json").read_text(encoding="utf-8")
    folder = BENCH / "generated-clients"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(needs, encoding="utf-8")
    install: list[str | Path] = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    return installed(folder, needs, install) / "node_modules"


@pytest.fixture(scope="session")
def python_generator() -> Path:
    """openapi-python-client and mypy in an environment of their own: the generator pins what it needs."""
    folder = BENCH / "openapi-python-client"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    python = folder / "venv" / "bin" / "python"
    if uv is None:
        make: list[str | Path] = [sys.executable, "-m", "venv", "--clear", "venv"]
        fill: list[str | Path] = [python, "-m", "pip", "install", "--quiet", *PYTHON_GENERATOR]
    else:
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, "venv"]
        fill = [uv, "pip", "install", "--quiet", "--python", python, *PYTHON_GENERATOR]
    return installed(folder, json.dumps(PYTHON_GENERATOR), make, fill) / "venv" / "bin"


@pytest.fixture
def schema(service: ServiceProcess, tmp_path: Path) -> Path:
    """The served document as a file."""
    path = tmp_path / "openapi.json"
    path.write_bytes(service.client.get("/openapi.json").content)
    return path


def printed_program(language: str) -> str:
    """The program of docs/generated_clients.md in that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    return str(found)
