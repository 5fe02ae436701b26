"""What type checkers see: one text of a method, two types."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.more
ROOT = Path(__file__).resolve().parents[2]
CHECKED = """
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from ml_workbench_client import AsyncWorkbench, Job, Table, Workbench
from ml_workbench_client.plans import Async, Sync
from ml_workbench_service.contracts.jobs import JobEvent
from ml_workbench_service.contracts.models import ModelCard, ModelSummary


def at_once(wb: Workbench) -> None:
    job = wb.train(name="x", seeds=[1])
    assert_type(job, Job[Sync])
    assert_type(job.events(), Iterator[JobEvent])
    assert_type(job.model.card, ModelCard)
    assert_type(job.model.series("test"), Table)
    assert_type([each for each in wb.models()], list[ModelSummary])
    wb.train(nmae="x")  # error: "nmae"
    wb.train(name=3)  # error: incompatible type
    job.wait("soon")  # error: incompatible type


async def awaited(awb: AsyncWorkbench) -> None:
    job = await awb.train(name="x")
    assert_type(job, Job[Async])
    assert_type(job.events(), AsyncIterator[JobEvent])
    assert_type(await (await job.model).card, ModelCard)
    assert_type([each async for each in awb.models()], list[ModelSummary])
"""


def test_both_clients_are_typed_and_mistakes_are_found(tmp_path: Path) -> None:
    file = tmp_path / "usage.py"
    file.write_text(CHECKED, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    expected = {number for number, line in enumerate(CHECKED.splitlines(), 1) if "# error" in line}
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert found == expected, done.stdout
