"""The short form of `make fuzz`: random bytes in random files of a real state, and every answer is a documented one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.damage.cases import Cases
from ml_workbench_service.workflows.back_up_state import back_up
from ml_workbench_service.workflows.restore_state import restore
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, ServiceProcess

NUM_CASES, NUM_QUESTIONS = 50, 3


@pytest.fixture
def populated(service: ServiceProcess, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of its own over a copy of the shared one's state, with something live that has answered."""
    here = tmp_path / "here"
    back_up(service.folder / "state", service.folder / "registry", tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", here / "state", here / "registry")
    for version in ("1.0.0", "1.1.0"):
        copy_version(here / "registry" / "small" / version, here / "registry", "damaged", version)
    running = ServiceProcess(here)
    running.start()
    for version in ("1.0.0", "1.1.0"):
        body = {"version": version, "deployment_target": "local"}
        assert running.client.post("/api/v1/models/damaged/deploy", json=body).status_code == 200
        assert running.client.post("/api/v1/models/damaged/predict", json=SEED_PREDICT).status_code == 200
    yield running
    running.close()


@pytest.mark.more
def test_random_damage_is_answered_in_a_documented_way(populated: ServiceProcess) -> None:
    roots = (populated.folder / "state", populated.folder / "registry")
    tally = Cases(populated.client, roots, num_questions=NUM_QUESTIONS).run(NUM_CASES, seed=20_000)
    assert (tally.num_cases, tally.num_answers) == (NUM_CASES, NUM_CASES * NUM_QUESTIONS)
    assert not tally.findings, "\n".join(map(str, tally.findings[:10]))
    assert len(tally.by_kind) >= 15
