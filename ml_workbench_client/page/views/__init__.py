"""Views, one a file; importing this registers them all."""

from ml_workbench_client.page.views import (
    agents,
    comparison,
    deployments,
    experiments,
    jobs,
    live,
    model,
    models,
    new_experiment,
    overview,
    train,
)

__all__ = [
    "agents", "comparison", "deployments", "experiments", "jobs", "live", "model", "models", "new_experiment",
    "overview", "train",
]  # fmt: skip
