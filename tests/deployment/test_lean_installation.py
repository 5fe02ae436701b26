"""A lean installation, as a replica has it: no extra, at most 350 MB, and each thing that it lacks says which it is.

The environment is a real one: an interpreter that finds the distributions of deploy/requirements/serve.txt, linked from
this environment, and nothing else.
"""

import os
import subprocess
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, SEED_TRAIN, ServiceProcess
from tools.hash_requirements import plain

ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 350
KEPT_OUT = ("torch", "polars", "pyarrow", "talib", "scipy", "pandas", "mlflow", "sklearn", "nicegui", "ray")


def wanted() -> Iterator[Distribution]:
    """The distributions that a replica installs here."""
    text = (ROOT / "deploy" / "requirements" / "serve.txt").read_text(encoding="utf-8")
    for line in plain(text).splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield distribution(requirement.name)


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder."""
    folder = tmp_path_factory.mktemp("lean")
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for each in wanted():
        for name in {file.parts[0] for file in each.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / name).exists():
                (site / name).symlink_to(each.locate_file(name))
    return folder


def run(lean: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of Python in it."""
    command = [lean / "bin" / "python", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_replica_takes_little_room() -> None:
    files = {each.locate_file(file) for each in wanted() for file in each.files or ()}
    num_bytes = sum(os.stat(file).st_size for file in files if os.path.exists(file))
    assert 100 < num_bytes / 1e6 < MOST_MB


def test_whatever_answers_predictions_imports_without_extras(lean: Path) -> None:
    roots = "ml_workbench_service.main, ml_workbench_service.predict_worker, ml_workbench_service.runtime.agent_worker"
    done = run(lean, f"import {roots}, ml_workbench_client.cli.root")
    assert done.returncode == 0, done.stderr
    looks = f"from importlib.util import find_spec; print([name for name in {KEPT_OUT} if find_spec(name)])"
    assert run(lean, looks).stdout == "[]\n"


@pytest.mark.more
@pytest.mark.timeout(600)
def test_a_lean_service_predicts_and_says_what_it_lacks(lean: Path, service: ServiceProcess, tmp_path: Path) -> None:
    copy_version(registry_of(service) / "small" / "1.0.0", tmp_path / "registry", "small", "1.0.0")
    running = ServiceProcess(tmp_path, PREDICT_WORKERS="1", PAGE="true", EXPERIMENT_TRACKING_URI="")
    try:
        running.start([str(lean / "bin" / "python"), "-m", "ml_workbench_service.main"])
        body = {"version": "1.0.0", "deployment_target": "local", "force": True}
        deployed = running.client.post("/api/v1/models/small/deploy", json=body)
        assert deployed.status_code == 200, deployed.text
        here = running.client.post("/api/v1/models/small/predict", json=SEED_PREDICT)
        assert here.status_code == 200, here.text
        asked = {
            "training": running.client.post("/api/v1/models/train", json=SEED_TRAIN),
            "data": running.client.get("/api/v1/series"),
        }
        for extra, answer in asked.items():
            assert answer.status_code == 501, answer.text
            assert answer.json()["error_code"] == "EXTRA_MISSING"
            assert answer.json()["details"]["extra"] == extra
            assert f"ml-workbench-service[{extra}]" in answer.json()["message"]
        things = running.client.get("/health/ready").json()["things"]
        assert "`data`" in things["feature_store"]["detail"]
        assert "`tracking`" in things["experiment_tracking"]["detail"]
        said = running.output.read_text(encoding="utf-8")
        assert "the extra `page` is not installed" in said
        assert "Traceback" not in said
    finally:
        running.close()
