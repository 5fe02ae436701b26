"""The command line in this process, and as a process of its own, against the shared service."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from ml_workbench_client.cli.root import build
from tests.service_process import ServiceProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "ml_workbench_client"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return orjson.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process; nobody answers at the address unless `url` names a service."""
    monkeypatch.delenv("WORKBENCH_API_KEY", raising=False)
    monkeypatch.setenv("WORKBENCH_URL", f"http://127.0.0.1:{free_port()}")
    app = build()

    def run(*arguments: str, text: str | None = None) -> Ended:
        result = CliRunner().invoke(app, list(arguments), input=text)
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def served(command: Command, service: ServiceProcess, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same, with the shared service behind it."""
    monkeypatch.setenv("WORKBENCH_URL", service.url)
    return command


def environment(**more: str) -> dict[str, str]:
    """Of a process of its own: no key, no colours asked for, found from any folder."""
    left = {
        name: value
        for name, value in os.environ.items()
        if name not in ("WORKBENCH_URL", "WORKBENCH_API_KEY", "FORCE_COLOR", "COLUMNS", "API_KEY", "REDIS_URL")
    }
    return {**left, "PYTHONPATH": str(ROOT), **more}


def process(*arguments: str, **more: str) -> "subprocess.Popen[str]":
    """A command as a process of its own, its streams in pipes."""
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
