"""One small model trained once, and one running service, for all tests that need them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common_lib import redaction
from ml_workbench_service.accelerators.processor import processor_features
from tests.service_process import SEED_TRAIN, ServiceProcess

SMALL_TRAIN: dict[str, Any] = {
    **SEED_TRAIN,
    "name": "Small",
    "model_id": "small",
    "start_date": "2024-06-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 8, "epochs": 2, "batch_size": 128},
}


def pytest_report_header() -> str:
    """What bits and tolerances were compared on."""
    return f"processor: {' '.join(processor_features())}"


@pytest.fixture(autouse=True)
def _denormals_as_before() -> Iterator[None]:
    """Training in this process makes torch flush denormals; hypothesis needs them."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _no_secrets_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has kept as a secret is not blotted out of the next one's texts."""
    monkeypatch.setattr(redaction, "_secrets", [])


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with two versions of the model `small` (1.0.0 and 1.1.0), trained on the embedded hourly sample.

    Tests share it: whoever deploys, archives or trains uses model ids of its own.
    """
    running = ServiceProcess(tmp_path_factory.mktemp("service")).start()
    running.train(SMALL_TRAIN)
    running.train({**SMALL_TRAIN, "hyperparameters": {"lstm_units": 4, "epochs": 1, "batch_size": 256}})
    yield running
    running.close()


@pytest.fixture
def api(service: ServiceProcess) -> Any:
    """The shared service's HTTP client."""
    return service.client


def registry_of(service: ServiceProcess) -> Path:
    """Where the shared service publishes."""
    return service.folder / "registry"
