"""The packages of docs/integration_notes.md: shown as they are, built, installed elsewhere, listed, and at work."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_TRAIN
from tests.service_process import SEED_PREDICT, ServiceProcess

pytestmark = pytest.mark.more

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ("background", "lasso")
LANGUAGES = {".py": "python", ".toml": "toml"}


def run(*command: str | Path, folder: Path | None = None) -> str:
    """What a command prints; its complaints where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`venv/`: an environment that sees the service and its libraries, with both packages and a broken one."""
    home = tmp_path_factory.mktemp("plugins")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python = home / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "service.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    for name in EXAMPLES:
        shutil.copytree(HERE / name, home / name)  # setuptools builds beside the sources
        run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", home / "wheels", home / name)
    run(*pip, "--python", python, "install", *offline, *(home / "wheels").iterdir())
    broken = site / "acme_broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[ml_workbench.families]\nbroken = a_module_of_yesterday\n")
    return home


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[ServiceProcess]:
    """A service of that environment, whose trainings run on the accelerator of the one package."""
    running = ServiceProcess(home, ACCELERATOR="background")
    running.start([str(home / "venv" / "bin" / "python"), "-m", "ml_workbench_service.main"])
    yield running
    running.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_shows_the_package_as_it_is(name: str) -> None:
    page = (ROOT / "docs" / "integration_notes.md").read_text(encoding="utf-8")
    files = [path for path in (HERE / name).iterdir() if path.suffix in LANGUAGES]
    assert len(files) == 3
    for path in files:
        assert f"```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```" in page, path.name


def test_the_family_is_listed_with_its_package(service: ServiceProcess) -> None:
    types: list[dict[str, Any]] = service.client.get("/api/v1/model-types").json()["model_types"]
    packages = {family["name"]: family["package"] for family in types[0]["families"]}
    assert packages.pop("lasso") == "ml-workbench-lasso==1.0.0"
    assert {package.partition("==")[0] for package in packages.values()} == {"ml-workbench-service"}


def test_a_broken_package_is_named_in_the_log_and_keeps_nothing_from_starting(service: ServiceProcess) -> None:
    log = "".join(path.read_text() for path in (service.folder / "logs").glob("*.log"))
    assert "family broken is left out: the plug-in of package acme-broken==1.0 could not be loaded" in log


def test_the_family_trains_in_a_worker_and_answers(service: ServiceProcess) -> None:
    body = {**SMALL_TRAIN, "model_id": "lasso", "family": "lasso", "hyperparameters": {"epochs": 5}}
    assert service.train(body)["result"]["version"] == "1.0.0"
    card = service.client.get("/api/v1/models/lasso").json()
    assert (card["family"], card["hyperparameters"]["epochs"], card["precision"]) == ("lasso", 5, "fp32")
    answer = service.client.post("/api/v1/models/lasso/predict", json=SEED_PREDICT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_id"] == "lasso"


def test_the_accelerator_is_chosen_and_trains(home: Path) -> None:
    said = run(home / "venv" / "bin" / "python", HERE / "trained_on_background.py")
    assert json.loads(said) == {
        "chosen": "background",
        "named": "cpu",
        "known": ["background", "cpu", "cuda"],
        "package": "ml-workbench-background==1.0.0",
        "is_light": True,
        "providers": ["CPUExecutionProvider"],
        "epochs_run": 2,
        "priority": 10,
        "num_threads": 1,
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_package_passes_the_conformance_suite_that_ships(home: Path, name: str, tmp_path: Path) -> None:
    shutil.copy(HERE / name / f"test_{name}.py", tmp_path)  # away from the sources: what is installed is tested
    said = run(home / "venv" / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=tmp_path)
    assert re.search(r"\d+ passed in ", said)
