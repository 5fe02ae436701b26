"""The README's commands do what it says: its `bash` blocks run one after the other against a started service.

They run as they are printed but for two things: the address is the started service's, and the original specification's
100 epochs are two (the story test trains all of them).
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.S | re.M)
[PYTHON_BLOCK] = re.findall(r"^```python\n(.*?)^```$", README, flags=re.S | re.M)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The service that the README has the reader start."""
    service = ServiceProcess(tmp_path_factory.mktemp("readme")).start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def toured(served: ServiceProcess) -> list[str]:
    """What each block printed."""
    script = "\n".join(["set -euo pipefail", *(f"{block}\necho; echo =====" for block in BLOCKS[1:])])
    script = script.replace("http://127.0.0.1:8005", served.url).replace('"epochs": 100', '"epochs": 2')
    environment = {**os.environ, "WORKBENCH_URL": served.url, "PYTHON": sys.executable}
    run = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split("=====\n")


def test_the_first_block_names_the_two_commands_and_make_has_them() -> None:
    commands = [line.split("#")[0].strip() for line in BLOCKS[0].splitlines()]
    assert commands == ["make serve", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^serve:", makefile, flags=re.M)
    assert re.search(r"^test:", makefile, flags=re.M)


def test_the_tour_trains_lists_predicts_deploys_and_replays(toured: list[str]) -> None:
    trained, followed, listed, predicted, deployed, replayed = toured[:6]
    assert '"status":"queued"' in trained
    assert "event: succeeded" in followed
    assert '"id":"lstm_price_predictor"' in listed
    assert predicted.count('"prediction_id"') == 2
    assert predicted.count('"status":"ok"') == 2
    assert '"status":"live"' in deployed
    assert '"balance":0' in replayed
    assert '"num_applied"' in replayed


def test_the_tour_hires_an_agent_looks_at_outcomes_and_breaks_a_queue_on_purpose(toured: list[str]) -> None:
    from_the_terminal, hired, kept, broken = toured[6:10]
    assert "lstm_price_predictor  1.0.0" in from_the_terminal
    assert "prediction id" in from_the_terminal
    assert '"id":"cautious"' in hired
    assert '"id":"default"' in hired
    assert '"realised":' in kept.replace('"realised":null', ""), "an outcome is known"
    assert '"num_outcomes":0,"num_open":0,"num_unavailable":0,"num_not_live":1' in kept
    assert "event: succeeded" in broken
    assert '"passed":true' in broken.replace(" ", "")


def test_the_lines_of_python_train_tell_the_verdict_and_deploy(served: ServiceProcess) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PYTHON_BLOCK], cwd=ROOT, env={**os.environ, "WORKBENCH_URL": served.url},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert re.search(r"\b(no_skill|insufficient_data) ", run.stdout), run.stdout
    assert served.client.get("/api/v1/models/daily").json()["status"] == "deployed"


def test_the_table_of_variables_is_the_settings_own(toured: list[str]) -> None:
    from ml_workbench_service.settings import Settings

    rows = dict(re.findall(r"^\| `([A-Z_]+)` \|.*\| ([^|]+) \|$", README, flags=re.M))
    assert set(rows) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            shown = rows[name].removeprefix("./")
            assert (
                shown == str(field.default).lower() if isinstance(field.default, bool) else shown == str(field.default)
            )
