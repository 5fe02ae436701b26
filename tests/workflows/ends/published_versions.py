"""A workbench whose versions are cards and a file or two: for what needs no trained model."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.deployment import Deployment, DeployRequest
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows import deploy as deploying
from tests.integrations.model_cards import model_card
from tests.trained_models import open_bench

_numbers = itertools.count()


@pytest.fixture(name="ungated")
def ungated_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are passed: they have their own tests, and ask for a model that answers."""
    monkeypatch.setattr(deploying, "run_gates", lambda *_, **__: ())


def bench_of(folder: Path) -> Workbench:
    """A workbench in the folder, as another process would open it."""
    return open_bench(folder)


def publish(
    registry: FolderModelRegistry, model_id: str, version: str, *, features: Sequence[str] = ("macd",), **card: Any
) -> ModelCard:
    """Publishes a version by a job of its own; `features` are those of its request."""
    draft = registry.draft()
    (draft / "model.onnx").write_bytes(f"{model_id} {version}".encode())
    recipe = {"request": {"features": list(features)}, "expressions": {}, "costs": {}, **card.pop("recipe", {})}
    (draft / "recipe.json").write_text(json.dumps(recipe))
    plain = model_card().lineage.model_dump() | {"job_id": f"job-{model_id}-{version}"}
    return registry.publish(draft, model_card(model_id, version, **{"lineage": plain, **card}))


def deploy(bench: Workbench, model_id: str, version: str, target: str = "local") -> Deployment:
    """Makes it the live one."""
    request = DeployRequest.model_validate({"version": version, "deployment_target": target})
    return deploying.deploy(bench, model_id, request, deploying.Sender(f"deployment-{next(_numbers)}", "corr"))


def opened_again(bench: Workbench) -> tuple[FolderModelRegistry, DeploymentHistory]:
    """The registry and the history as the next process finds them, once it has finished what was interrupted."""
    history = DeploymentHistory(bench.history.root)
    registry = FolderModelRegistry(bench.registry.root, live_version=history.live_version)
    registry.finish_purges()
    return registry, history
