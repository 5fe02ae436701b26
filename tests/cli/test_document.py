"""docs/command_line.md does what it says: its `bash` blocks run as they are printed, against a running service."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml_workbench_client.cli.root import build
from tests.cli.conftest import ROOT, environment
from tests.service_process import ServiceProcess

DOCUMENT = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT, flags=re.S | re.M)
LIMIT_S = 840
"""Some thirty processes and six trainings, one after the other, on a machine that others use too."""


@pytest.mark.more
@pytest.mark.timeout(LIMIT_S + 60)
def test_its_blocks_run_one_after_the_other(service: ServiceProcess, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ml-workbench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ml_workbench_client "$@"\n')
    program.chmod(0o755)
    places = {
        "STATE_DIR": str(service.folder / "state"),
        "MODEL_REGISTRY_PATH": str(service.folder / "registry"),
        "LOG_DIR": str(service.folder / "logs"),
        "PORT": str(service.port),
        "EXPERIMENT_TRACKING_URI": "disabled",
    }
    assert len(BLOCKS) >= 9
    run = subprocess.run(
        ["bash", "-c", "set -eu\n" + "\n".join(BLOCKS)],
        cwd=tmp_path,
        env=environment(WORKBENCH_URL=service.url, PATH=f"{program.parent}:/usr/bin:/bin", **places),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "hourly 1.0.0: not_applicable" in run.stdout
    assert json.loads((tmp_path / "second.json").read_text())["job"]["status"] == "succeeded"
    assert json.loads((tmp_path / "prediction.json").read_text())["model_id"] == "hourly"
    assert "EURUSD_1d.csv: read" in run.stdout
    assert "2 of 2, by random" in run.stdout
    assert (tmp_path / "backups" / "today.tar.gz").is_file()


def test_every_verb_is_told_of() -> None:
    root = build()
    verbs = {str(each.name) for each in root.registered_commands}
    for group in root.registered_groups:
        assert group.typer_instance is not None
        verbs |= {str(each.name) for each in group.typer_instance.registered_commands}
    assert len(verbs) > 25
    assert sorted(verb for verb in verbs if not re.search(rf"\b{re.escape(verb)}\b", DOCUMENT)) == []
